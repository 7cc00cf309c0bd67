"""The texts of a run folder: `config.json`, `params.txt`, `result.json`.

Each is written by process 0, at one stroke.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from locojax.core import trees, types
from locojax.train import distributed, profiling, writers
from locojax.train import experiment as experiment_lib

_log = logging.getLogger(__name__)

CONFIG = "config.json"


def _write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file at one stroke, on process 0."""
  if distributed.is_main():
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def as_json(config: Mapping | None) -> Any:
  """A config as `config.json` holds it; what JSON has not, as text."""
  return json.loads(json.dumps(config, default=str))


def changed_keys(workdir: pathlib.Path, config: Mapping) -> list[str]:
  """Sorted top-level keys in which `config.json` differs from a config."""
  new = as_json(config)
  old = json.loads((workdir / CONFIG).read_text())
  return sorted(k for k in {**old, **new} if old.get(k) != new.get(k))


def write_config(workdir: pathlib.Path, config: Mapping | None) -> str:
  """Writes `config.json`; says which keys an earlier one had otherwise.

  Args:
    workdir: the run folder.
    config: anything that JSON can hold; other values as text. None writes
      nothing.

  Returns:
    16 hexadecimal digits that change with the config.
  """
  text = json.dumps(as_json(config), indent=2, sort_keys=True) + "\n"
  path = workdir / CONFIG
  if config is not None:
    if path.exists():
      keys = changed_keys(workdir, config)
      if keys:
        _log.warning("%s: the config was changed: %s", workdir, ", ".join(keys))
    _write_text(path, text)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_params(
  workdir: pathlib.Path,
  state: types.TrainState,
  replicated: jax.sharding.NamedSharding,
) -> None:
  """Writes `params.txt`: path, shape, dtype, sharding and sum."""
  part = {"params": state.params, "model_state": state.model_state}
  flat = trees.flatten(part)
  sums = jax.jit(
    lambda tree: {k: jnp.sum(x.astype(jnp.float32)) for k, x in tree.items()},
    out_shardings=replicated,
  )({k: x for k, x in flat.items() if jnp.issubdtype(x.dtype, jnp.number)})
  sums = jax.device_get(sums)
  rows = [("path", "shape", "dtype", "sharding", "sum")]
  for path, x in flat.items():
    total = f"{sums[path]:.8g}" if path in sums else "-"
    spec = str(x.sharding.spec)
    rows.append((path, str(list(x.shape)), str(x.dtype), spec, total))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths)) for r in rows]
  _write_text(workdir / "params.txt", "".join(x.rstrip() + "\n" for x in lines))


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
  }
  _write_text(workdir / "result.json", json.dumps(result, indent=2) + "\n")
