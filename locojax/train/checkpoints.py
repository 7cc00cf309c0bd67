"""Checkpoints: the only file that imports orbax.

A checkpoint at step s holds the whole state after s updates and, as JSON, what
the host must know to go on: the next batch is batch s. The state is stored as
a flat dict from '/' path to array, so any other program can read a part of it
by name.

A checkpoint is written beside its place and moved there when complete: a
process killed at any moment leaves the earlier ones as they were.

The JSON beside the arrays (`manifest.py`) has shape, dtype and checksum of each
(`checksums.py`, with the cost), and a checksum of itself. So damage of any kind
is found when a checkpoint is read, also where the store does not notice it, and
is never taken for a difference between two runs.
"""

from __future__ import annotations

import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from locojax.core import checks, trees
from locojax.train import checksums, distributed, manifest

_log = logging.getLogger(__name__)

PyTree = Any
# Not RuntimeError: JAX says with it that memory ran out.
_UNREADABLE = (
  OSError,
  ValueError,
  LookupError,
  TypeError,
  AttributeError,
  EOFError,
)


class Unreadable(ValueError):
  """There are checkpoints, and none of them can be read."""


def _plain_struct(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  if not manifest.is_key(leaf):
    return leaf
  data = jax.eval_shape(jax.random.key_data, leaf)
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _to_plain(state: PyTree) -> dict[str, jax.Array]:
  """The state by path, typed keys as their data."""
  return {
    path: jax.random.key_data(leaf) if manifest.is_key(leaf) else leaf
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
      # Else a damaged file that nothing needs can end the manager.
      lightweight_initialize=True,
    )
    self._handlers = {
      "state": ocp.PyTreeCheckpointHandler(),
      "meta": ocp.JsonCheckpointHandler(),
    }
    self._make_manager = lambda: ocp.CheckpointManager(
      self.folder, options=options, item_handlers=self._handlers
    )
    self._manager = self._make_manager()

  def close(self) -> None:
    """Frees what the manager holds."""
    self._manager.close()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    paths = ocp.utils.checkpoint_steps_paths(self.folder)
    steps = [int(p.name) for p in paths if p.name.isdigit()]
    return distributed.from_main(sorted(steps))

  def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint; returns when it is complete on disk.

    Args:
      step: number of updates done.
      state: tree of `jax.Array`, typed keys included.
      meta: anything that JSON can hold.
    """
    plain = _to_plain(state)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave({p: x for p, x in plain.items() if x.size}),
        meta=ocp.args.JsonSave(manifest.describe(meta, state, plain)),
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
      found, reason = self._found(step)
      if not reason:
        state, reason = self._read(step, abstract, found)
      if not reason:
        self._move_aside(list(refused))
        return state, found.meta
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

  def _item(self, step: int, name: str) -> pathlib.Path:
    return self.folder / str(step) / name

  def _found(self, step: int) -> tuple[manifest.Manifest | None, str]:
    """What the checkpoint says of itself, or the reason why it cannot."""

    def read():
      record = self._handlers["meta"].restore(self._item(step, "meta"))
      if not manifest.is_old(record):
        return manifest.checked(record)
      tree = self._handlers["state"].metadata(self._item(step, "state")).tree
      return manifest.of_old(record, tree)

    return _attempt(read)

  def _read(self, step: int, abstract: PyTree, found: manifest.Manifest):
    """`(state, reason)`; a difference of structure raises."""
    flat = trees.flatten(abstract)
    plain = {p: _plain_struct(x) for p, x in flat.items()}
    place = f"checkpoint {step} of {self.folder}"
    _compare_names(found.arrays, plain, place)
    _compare(found.arrays, plain, place)
    impls = manifest.impls_of(flat)
    for path, impl in impls.items():
      if found.impls.get(path) != impl:
        raise ValueError(
          f"{path!r} is a key of {found.impls.get(path)!r} in {place} and of "
          f"{impl!r} in this run: they must be equal."
        )
    arrays, reason = self._arrays(step, plain, found)
    if reason:
      return None, reason
    for path, impl in impls.items():
      arrays[path] = jax.random.wrap_key_data(arrays[path], impl=impl)
    tree = jax.tree.structure(abstract)
    return jax.tree.unflatten(tree, [arrays[p] for p in flat]), ""

  def _arrays(
    self, step: int, wanted: Mapping[str, Any], found: manifest.Manifest
  ):
    """`(arrays, reason)` of some paths of a checkpoint, verified."""
    stored = {p: x for p, x in wanted.items() if x.size}
    folder = self._item(step, "state")

    def read():
      # The handler itself: the manager has a barrier at the end, at which the
      # others would wait for a process that meets the damage alone.
      if not (folder / "_METADATA").is_file():
        raise FileNotFoundError("the description of the state is missing")
      if not stored:
        return {}
      out = self._handlers["state"].restore(
        folder,
        args=ocp.args.PyTreeRestore(
          stored,
          restore_args=ocp.checkpoint_utils.construct_restore_args(stored),
          partial_restore=True,
        ),
      )
      _check_restored(out, stored)
      return out

    arrays, reason = _attempt(read)
    if reason:
      return None, reason
    reason = _trouble(arrays, found.sums)
    arrays = {
      p: arrays[p] if p in stored else _nothing(x) for p, x in wanted.items()
    }
    return arrays, _agreed(reason)

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
    # It still counts those that are gone.
    self._manager.close()
    self._manager = self._make_manager()

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
      found, reason = self._found(step)
      if not reason:
        taken, report = _select(state, found.arrays, patterns, self.folder)
        _compare(found.arrays, taken, f"checkpoint {step} of {self.folder}")
        arrays, reason = self._arrays(step, taken, found)
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


def _check_restored(arrays: Mapping[str, Any], wanted: Mapping[str, Any]):
  """Orbax leaves a struct where a description does not speak of an array."""
  bad = sorted(
    path
    for path, leaf in wanted.items()
    if not isinstance(arrays.get(path), jax.Array)
    or (arrays[path].shape, arrays[path].dtype) != (leaf.shape, leaf.dtype)
  )
  if bad:
    raise ValueError(f"{bad} could not be restored")


def _trouble(arrays: Mapping[str, Any], sums: Mapping[str, int] | None) -> str:
  """What is wrong with arrays that the store read without complaint."""
  if sums is not None:
    now = checksums.of(arrays)
    bad = sorted(path for path in arrays if now[path] != sums[path])
    return f"{bad} are not as they were written (checksum)" if bad else ""
  _log.info("a checkpoint without checksums: its values are not verified")
  # No run saves these: they can only be damage.
  bad = sorted(
    path
    for path, x in arrays.items()
    if path.startswith("params/") and not _all_finite(x)
  )
  return f"{bad} are not finite" if bad else ""


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
  if not jnp.issubdtype(x.dtype, jnp.inexact):
    return jnp.bool_(True)
  return jnp.all(jnp.isfinite(x))


def _nothing(leaf: Any) -> jax.Array:
  """An array of size 0, which the store refuses to hold."""
  return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)


def _attempt(read: Callable[[], Any]) -> tuple[Any, str]:
  """`(what was read, "")` or `(None, the reason why not)`, on all processes."""
  out, reason = None, ""
  try:
    out = read()
  except Exception as error:
    if not _is_damage(error):
      raise
    reason = _short(error)
  reason = _agreed(reason)
  return (None, reason) if reason else (out, "")


def _causes(error: BaseException) -> list[BaseException]:
  """An error and what caused it; the store wraps whatever it meets."""
  out = [error]
  while out[-1].__cause__ is not None:
    out.append(out[-1].__cause__)
  return out


def _is_damage(error: BaseException) -> bool:
  """Whether files are at fault; not for lack of memory or an interrupt.

  The store raises a bare `Exception` from whatever stopped it at an array.
  """
  return all(
    type(e) is Exception or isinstance(e, _UNREADABLE) for e in _causes(error)
  )


def _short(error: BaseException) -> str:
  root = _causes(error)[-1]
  text = " ".join(str(root).split())
  return f"{type(root).__name__}: {text[:300]}"


def _listed(refused: Mapping[int, str]) -> str:
  return "; ".join(f"step {step}: {why}" for step, why in refused.items())


def _agreed(reason: str) -> str:
  """The reason, also where only another process has one."""
  if distributed.all_true(not reason):
    return ""
  return reason or "another process could not read it"
