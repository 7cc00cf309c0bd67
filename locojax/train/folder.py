"""The texts of a run folder: `config.json`, `params.txt`, `result.json`.

Each is written by process 0, at one stroke.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from locojax.core import files, trees, types
from locojax.train import distributed, profiling, writers
from locojax.train import experiment as experiment_lib

CONFIG, RESULT = "config.json", "result.json"
ABSENT = "(not there)"
# What a config may have besides: digests of the data, by name.
DATA = "data_digest"
# What a run may be continued or read with otherwise: how it is watched, kept
# and spread over devices. All else is another run. An experiment whose result
# depends on when it is evaluated names that key otherwise.
MAY_DIFFER = (
  *("log_every", "save_every", "keep", "eval_every", "num_evals"),
  *("eval_batch_size", "results", "profile", "check", "mesh", "layout"),
)


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file at one stroke, on process 0."""
  if distributed.is_main():
    files.write_text(path, text)


def as_json(config: Mapping | None) -> Any:
  """A config as `config.json` holds it; what JSON has not, as text."""
  return json.loads(json.dumps(config, default=str))


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
  """Dotted names and values of a config as JSON."""
  if isinstance(node, Mapping) and node:
    for name, value in node.items():
      yield from _leaves(f"{prefix}.{name}" if prefix else name, value)
  else:
    yield prefix, node


def differences(
  old: Mapping, new: Mapping, may_differ: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
  """Dotted keys in which two configs differ, with both values.

  Args:
    old, new: configs; `ABSENT` stands for what one of them lacks.
    may_differ: names of keys that do not count, nor what is below them.
  """
  old, new = (dict(_leaves("", as_json(c))) for c in (old, new))
  out = {}
  for key in sorted({**old, **new}):
    pair = (old.get(key, ABSENT), new.get(key, ABSENT))
    ignored = any(key == n or key.startswith(f"{n}.") for n in may_differ)
    if pair[0] != pair[1] and not ignored:
      out[key] = pair
  return out


def _listed(found: Mapping[str, tuple[Any, Any]]) -> str:
  pairs = found.items()
  return ", ".join(f"{k} ({a!r} there, {b!r} here)" for k, (a, b) in pairs)


def check_config(
  workdir: pathlib.Path,
  config: Mapping | None,
  may_differ: Sequence[str] = (),
  *,
  name: str = CONFIG,
) -> None:
  """Refuses a folder that belongs to a run of another config.

  `MAY_DIFFER` never counts.

  Args:
    workdir: a folder, with or without a config in it.
    config: what is wanted; None is not compared.
    may_differ: further keys that do not count.
    name: of the file with the folder's config.

  Raises:
    ValueError: it differs; names the keys and both values.
  """
  path = workdir / name
  if config is None or not path.exists():
    return
  old = files.read_json(path, remedy="take another --workdir")
  found = differences(old, config, (*MAY_DIFFER, *may_differ))
  if found:
    listed = _listed(found)
    on_others = {k.partition(".")[0] == DATA for k in found}
    kind = "on other data" if all(on_others) else "of another config"
    if len(on_others) > 1:
      kind += " and on other data"
    raise ValueError(
      f"{workdir} has a run {kind}: {listed}. Take another "
      "--workdir, set these back, or remove that folder."
    )


def check_data(path: pathlib.Path, digests: Mapping[str, str]) -> None:
  """Refuses a folder that belongs to a run on other data.

  Args:
    path: the file with the folder's config.
    digests: of the data as they are now, by name; may be empty.

  Raises:
    ValueError: they are others than in the config.
  """
  old = files.read_json(path, remedy="take another --workdir").get(DATA, {})
  found = differences({DATA: old}, {DATA: digests})
  if found:
    listed = _listed(found)
    raise ValueError(
      f"{path.parent} has a run on other data: {listed}. Set the data back, or "
      "take another --workdir."
    )


def write_config(
  workdir: pathlib.Path, config: Mapping | None, *, name: str = CONFIG
) -> str:
  """Writes `config.json`.

  Args:
    workdir: the run folder.
    config: anything that JSON can hold; other values as text. None writes
      nothing.
    name: of the file.

  Returns:
    16 hexadecimal digits that change with the config.
  """
  text = json.dumps(as_json(config), indent=2, sort_keys=True) + "\n"
  if config is not None:
    write_text(workdir / name, text)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=4)
def _sums(replicated: jax.sharding.NamedSharding):
  """`{path: array} -> {path: sum}`, the same on all devices."""
  return jax.jit(
    lambda tree: {k: jnp.sum(x.astype(jnp.float32)) for k, x in tree.items()},
    out_shardings=replicated,
  )


def write_params(
  workdir: pathlib.Path,
  state: types.TrainState,
  replicated: jax.sharding.NamedSharding,
) -> None:
  """Writes `params.txt`: path, shape, dtype, sharding and sum."""
  part = {"params": state.params, "model_state": state.model_state}
  flat = trees.flatten(part)
  sums = _sums(replicated)(
    {k: x for k, x in flat.items() if jnp.issubdtype(x.dtype, jnp.number)}
  )
  sums = jax.device_get(sums)
  rows = [("path", "shape", "dtype", "sharding", "sum")]
  for path, x in flat.items():
    total = f"{sums[path]:.8g}" if path in sums else "-"
    spec = str(x.sharding.spec)
    rows.append((path, str(list(x.shape)), str(x.dtype), spec, total))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths)) for r in rows]
  write_text(workdir / "params.txt", "".join(x.rstrip() + "\n" for x in lines))


def remove_result(workdir: pathlib.Path) -> None:
  """Removes the `result.json` of a run that goes on for more steps."""
  if distributed.is_main():
    (workdir / RESULT).unlink(missing_ok=True)


def write_result(
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  meta: Mapping[str, Any],
) -> None:
  """Writes `result.json` from the last checkpoint and `metrics.jsonl`."""
  if not distributed.is_main():
    return
  values: dict[str, float] = {}
  for row in writers.read_lines(workdir / writers.METRICS):
    if row["step"] == meta["step"]:
      values.update({k: v for k, v in row.items() if "/" in k})
  seconds = meta["seconds"]
  examples = meta["step"] * experiment.examples_per_step
  result = {
    "step": meta["step"],
    "seconds": seconds,
    "compile_seconds": meta.get("compile_seconds"),
    "examples_per_second": examples / seconds if seconds else None,
    "values": values,
    "device_kind": jax.devices()[0].device_kind,
    "num_devices": jax.device_count(),
    "num_processes": jax.process_count(),
    "jax_version": jax.__version__,
    "peak_bytes": profiling.memory().get("peak"),
    "step_bytes": meta.get("step_bytes"),
    "journal": meta.get("journal"),
  }
  write_text(workdir / RESULT, json.dumps(result, indent=2) + "\n")
