"""Checkpoints: the only file that imports orbax.

A checkpoint at step s holds the whole state after s updates and, as JSON, what
the host must know to go on: the next batch is batch s. The state is stored as
a flat dict from '/' path to array, so any other program can read a part of it
by name.

A checkpoint is written beside its place and moved there when complete: a
process killed at any moment leaves the earlier ones as they were.
"""

from __future__ import annotations

import logging
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from locojax.core import checks, trees
from locojax.train import distributed

_log = logging.getLogger(__name__)

PyTree = Any
_KEYS = "key_impls"
# Not RuntimeError: JAX says with it that memory ran out.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError)


class Unreadable(ValueError):
  """There are checkpoints, and none of them can be read."""


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data_struct(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  data = jax.eval_shape(jax.random.key_data, leaf)
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _impls(flat: Mapping[str, Any]) -> dict[str, str]:
  """Names of the generators of typed keys, by path."""
  return {
    path: str(jax.random.key_impl(leaf))
    for path, leaf in flat.items()
    if _is_key(leaf)
  }


def _abstract_impls(flat: Mapping[str, Any]) -> dict[str, str]:
  def impl(leaf):
    out = []

    def probe(key):
      out.append(str(jax.random.key_impl(key)))
      return key

    jax.eval_shape(probe, leaf)
    return out[0]

  return {path: impl(leaf) for path, leaf in flat.items() if _is_key(leaf)}


def _to_plain(state: PyTree) -> dict[str, jax.Array]:
  """The state by path, typed keys as their data."""
  return {
    path: jax.random.key_data(leaf) if _is_key(leaf) else leaf
    for path, leaf in trees.flatten(state).items()
  }


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any], place: str):
  """Orbax casts and pads without a word; this does not."""
  for path, leaf in wanted.items():
    there = found[path]
    if tuple(there.shape) != tuple(leaf.shape):
      raise ValueError(
        f"{path!r} has shape {tuple(there.shape)} in {place} and shape "
        f"{tuple(leaf.shape)} in this run: they must be equal."
      )
    if jnp.dtype(there.dtype) != jnp.dtype(leaf.dtype):
      raise ValueError(
        f"{path!r} has dtype {jnp.dtype(there.dtype).name} in {place} and "
        f"dtype {jnp.dtype(leaf.dtype).name} in this run: they must be equal."
      )


def _compare_names(found: Iterable[str], wanted: Iterable[str], place: str):
  missing = sorted(set(wanted) - set(found))
  extra = sorted(set(found) - set(wanted))
  if missing or extra:
    raise ValueError(
      f"the state of this run and {place} differ: only in this run: "
      f"{missing}; only in the checkpoint: {extra}."
    )


class Checkpoints:
  """The checkpoints of one run, in one folder.

  Every method is to be called by all processes.

  Args:
    folder: where they are, or will be.
    keep: how many of the newest stay.
    read_only: whether the folder belongs to another run.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    keep: int = 2,
    read_only: bool = False,
  ):
    checks.positive_int("keep", keep)
    self.folder = pathlib.Path(folder).absolute()
    self._read_only = read_only
    options = ocp.CheckpointManagerOptions(
      max_to_keep=None if read_only else keep,
      create=not read_only,
      cleanup_tmp_directories=not read_only,
      enable_async_checkpointing=False,
    )
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=options,
      item_handlers={
        "state": ocp.PyTreeCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
      },
    )

  def close(self) -> None:
    """Frees what the manager holds."""
    self._manager.close()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    self._manager.reload()
    return distributed.from_main(sorted(self._manager.all_steps()))

  def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint; returns when it is complete on disk.

    Args:
      step: number of updates done.
      state: tree of `jax.Array`, typed keys included.
      meta: anything that JSON can hold.
    """
    meta = {**meta, _KEYS: _impls(trees.flatten(state))}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(_to_plain(state)),
        meta=ocp.args.JsonSave(meta),
      ),
      force=True,
    )
    self._manager.wait_until_finished()

  def restore(self, abstract: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
    """The newest checkpoint that can be read.

    An unreadable one is named in a warning with the reason and the one before
    it is taken; it then moves to the folder `unreadable` beside this one.

    Args:
      abstract: tree of `jax.ShapeDtypeStruct` with shardings, of any mesh.

    Returns:
      `(state, meta)`, or None when there has never been a checkpoint.

    Raises:
      ValueError: a path, shape or dtype differs from that of the checkpoint.
      Unreadable: there are checkpoints and none can be read.
    """
    refused: dict[int, str] = {}
    self._say_unfinished()
    for step in reversed(self.steps()):
      found, reason = self._metadata(step)
      if not reason:
        state, meta, reason = self._read(step, abstract, found)
      if not reason:
        self._move_aside(list(refused))
        return state, meta
      refused[step] = reason
      _log.warning("checkpoint %s is unreadable: %s", step, reason)
    if refused:
      raise Unreadable(
        f"no checkpoint in {self.folder} can be read ({_listed(refused)}): "
        "choose another folder, or remove this one to start afresh."
      )
    return None

  def _say_unfinished(self) -> None:
    names = [p.name for p in self.folder.iterdir() if p.name.isdigit()]
    for name in sorted(set(names) - {str(s) for s in self.steps()}):
      _log.warning("checkpoint %s was never completed: left out", name)

  def _metadata(self, step: int) -> tuple[dict[str, Any], str]:
    """Shapes and dtypes by path, and the reason why not."""
    found, reason = {}, ""
    try:
      found = dict(self._manager.item_metadata(step)["state"].tree)
    except _UNREADABLE as error:
      reason = _short(error)
    except AttributeError:
      reason = "the description of the state is missing"
    return found, _agreed(reason)

  def _read(self, step: int, abstract: PyTree, found: Mapping[str, Any]):
    """`(state, meta, reason)`; a difference of structure raises."""
    flat = trees.flatten(abstract)
    plain = {
      p: _key_data_struct(x) if _is_key(x) else x for p, x in flat.items()
    }
    place = f"checkpoint {step} of {self.folder}"
    _compare_names(found, plain, place)
    _compare(found, plain, place)
    arrays, meta, reason = self._arrays(step, plain)
    if reason:
      return None, None, reason
    impls = meta.pop(_KEYS)
    for path, impl in _abstract_impls(flat).items():
      if impls.get(path) != impl:
        raise ValueError(
          f"{path!r} is a key of {impls.get(path)!r} in {place} and of "
          f"{impl!r} in this run: they must be equal."
        )
      arrays[path] = jax.random.wrap_key_data(arrays[path], impl=impl)
    tree = jax.tree.structure(abstract)
    return jax.tree.unflatten(tree, [arrays[p] for p in flat]), meta, ""

  def _arrays(self, step: int, wanted: Mapping[str, Any]):
    """`(arrays, meta, reason)` of some paths of a checkpoint."""
    wanted = dict(wanted)
    arrays, meta, reason = {}, {}, ""
    try:
      out = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(
            wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
          ),
          meta=ocp.args.JsonRestore(),
        ),
      )
      arrays, meta = dict(out["state"]), dict(out["meta"])
    except _UNREADABLE as error:
      reason = _short(error)
    return arrays, meta, _agreed(reason)

  def _move_aside(self, steps: Sequence[int]) -> None:
    if self._read_only or not steps:
      return
    distributed.sync("unreadable checkpoints")
    if distributed.is_main():
      aside = self.folder.parent / "unreadable"
      aside.mkdir(exist_ok=True)
      for step in steps:
        target = aside / str(step)
        if target.exists():
          shutil.rmtree(target)
        os.replace(self.folder / str(step), target)
    distributed.sync("unreadable checkpoints moved")

  def read(
    self, state: PyTree, patterns: str | Sequence[str]
  ) -> tuple[PyTree, dict[str, list[str]]]:
    """Replaces the leaves whose path matches by those of the newest checkpoint.

    Args:
      state: a tree of arrays, or a part of one.
      patterns: regular expressions; any that is found in the path counts.

    Returns:
      The new tree, with shapes, dtypes and shardings as before, and a report:
      `taken`; `missing`, paths that match and that the checkpoint lacks;
      `unused`, paths that match and that only the checkpoint has.

    Raises:
      ValueError: nothing matches, or a shape or dtype differs.
      Unreadable: there is no checkpoint that can be read.
    """
    refused: dict[int, str] = {}
    for step in reversed(self.steps()):
      found, reason = self._metadata(step)
      if not reason:
        taken, report = _select(state, found, patterns, self.folder)
        _compare(found, taken, f"checkpoint {step} of {self.folder}")
        arrays, _, reason = self._arrays(step, taken)
      if not reason:
        flat = {**trees.flatten(state), **arrays}
        tree = jax.tree.structure(state)
        return jax.tree.unflatten(tree, list(flat.values())), report
      _log.warning("checkpoint %s is unreadable: %s", step, reason)
      refused[step] = reason
    why = _listed(refused) or "the folder has none"
    raise Unreadable(f"no checkpoint in {self.folder} can be read ({why}).")


def _select(state, found, patterns, folder):
  """Structs of the leaves to load, and the report."""
  flat = trees.flatten(state)
  wanted = [p for p in flat if trees.matches(p, patterns)]
  taken = {
    p: jax.ShapeDtypeStruct(
      flat[p].shape, flat[p].dtype, sharding=flat[p].sharding
    )
    for p in wanted
    if p in found
  }
  roots = {p.split("/")[0] for p in flat}
  report = {
    "taken": list(taken),
    "missing": [p for p in wanted if p not in found],
    "unused": [
      p
      for p in found
      if p not in flat
      and p.split("/")[0] in roots
      and trees.matches(p, patterns)
    ],
  }
  if not taken:
    raise ValueError(
      f"patterns={patterns!r} is not allowed: it must match a path that this "
      f"run and {folder} share. This run has {list(flat)}; the checkpoint has "
      f"{sorted(found)}."
    )
  return taken, report


def _short(error: BaseException) -> str:
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text[:300]}"


def _listed(refused: Mapping[int, str]) -> str:
  return "; ".join(f"step {step}: {why}" for step, why in refused.items())


def _agreed(reason: str) -> str:
  """The reason, also where only another process has one."""
  if distributed.all_true(not reason):
    return ""
  return reason or "another process could not read it"
