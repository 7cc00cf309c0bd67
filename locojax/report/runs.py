"""Reads run folders: config.json, metrics.jsonl, result.json.

A run folder is written by one run of the loop. `metrics.jsonl` has a JSON
object a line, with `step`, `seconds` and any metrics (`train/loss`,
`test/accuracy`); not every line has every metric.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from locojax.report import names

CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"


@dataclasses.dataclass(frozen=True)
class Run:
  """One run folder, read.

  Attributes:
    path: the folder.
    config: contents of `config.json`, empty if there is none.
    metrics: the lines of `metrics.jsonl`, in order.
    result: contents of `result.json`; None while the run is not finished.
  """

  path: pathlib.Path
  config: Mapping[str, Any]
  metrics: Sequence[Mapping[str, Any]]
  result: Mapping[str, Any] | None

  @property
  def finished(self) -> bool:
    """Whether the run has written its result."""
    return self.result is not None

  def keys(self) -> list[str]:
    """All names that some line of the metrics has, sorted."""
    return sorted({k for line in self.metrics for k in line})


def load(path: str | os.PathLike) -> Run:
  """Reads a run folder, also that of a run still going or killed.

  Args:
    path: a folder with at least one of config.json and metrics.jsonl.

  Raises:
    FileNotFoundError: no such folder, or no run in it.
    ValueError: a file is damaged; a half-written *last* line of metrics.jsonl
      is no damage and is left out.
  """
  path = pathlib.Path(path)
  if not _is_run(path):
    raise FileNotFoundError(
      f"{path} is not a run folder: it has neither {CONFIG} nor {METRICS}."
    )
  return Run(
    path=path,
    config=_read_json(path / CONFIG) or {},
    metrics=_read_metrics(path / METRICS),
    result=_read_json(path / RESULT),
  )


def load_all(paths: str | os.PathLike | Iterable[str | os.PathLike]):
  """Reads all run folders in or below some folders, sorted by path.

  Args:
    paths: a folder or several; each is a run folder or holds some, at any
      depth.

  Returns:
    A list of `Run`.

  Raises:
    FileNotFoundError: a folder holds no run.
  """
  if isinstance(paths, str | os.PathLike):
    paths = [paths]
  found: set[pathlib.Path] = set()
  for path in map(pathlib.Path, paths):
    below = {p.parent for p in path.rglob(METRICS)}
    below |= {p.parent for p in path.rglob(CONFIG) if _is_run(p.parent)}
    if not below:
      raise FileNotFoundError(f"no run folder is in or below {path}.")
    found |= below
  return [load(p) for p in sorted(found)]


def _is_run(path: pathlib.Path) -> bool:
  return (path / CONFIG).is_file() or (path / METRICS).is_file()


def _read_json(path: pathlib.Path) -> Any:
  if not path.is_file():
    return None
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as e:
    raise ValueError(f"{path} is damaged: {e}") from e


def _read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.is_file():
    return []
  lines = path.read_bytes().split(b"\n")
  lines = [(n, raw) for n, raw in enumerate(lines, 1) if raw.strip()]
  out = []
  for i, (number, raw) in enumerate(lines):
    try:
      value = json.loads(raw)
      if not isinstance(value, dict):
        raise ValueError("not a JSON object")
      out.append(value)
    except ValueError as e:
      if i + 1 < len(lines):
        raise ValueError(f"{path}, line {number} is damaged: {e}") from e
  return out


def series(
  run: Run, key: str, *, x: str = "step", steps_per_epoch: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """A metric against steps, seconds, epochs or another metric.

  Args:
    run: a run.
    key: name of the metric.
    x: `step`, `seconds` or a name logged in the same lines. `epoch` may also
      be computed, from the steps.
    steps_per_epoch: for `x='epoch'` where the lines have no `epoch`.

  Returns:
    Two float64 arrays `[points]`, by ascending step. Where a step was logged
    twice, the later line counts.

  Raises:
    ValueError: no line has the metric, or a line with it has no `x`.
  """
  if steps_per_epoch is not None and not steps_per_epoch > 0:
    raise ValueError(
      f"steps_per_epoch={steps_per_epoch!r} is not allowed: it must be above 0."
    )
  names.one_of("key", key, run.keys())
  by_step = {}
  for line in run.metrics:
    if key in line:
      by_step[line["step"]] = (_x(run, line, x, steps_per_epoch), line[key])
  points = [by_step[s] for s in sorted(by_step)]
  out = np.asarray(points, dtype=np.float64)
  return out[:, 0], out[:, 1]


def _x(run: Run, line: Mapping[str, Any], x: str, steps_per_epoch) -> float:
  if x in line:
    return line[x]
  if x == "epoch" and steps_per_epoch is not None:
    return line["step"] / steps_per_epoch
  hint = " (or give steps_per_epoch)" if x == "epoch" else ""
  raise ValueError(
    f"x={x!r} is not allowed: a line of {run.path / METRICS} with the metric "
    f"has only {sorted(line)}{hint}."
  )


def final(run: Run, key: str) -> float:
  """The last value of a metric."""
  return float(series(run, key)[1][-1])


def best(run: Run, key: str, mode: str = "min") -> float:
  """The least (`min`) or greatest (`max`) value, NaN left out."""
  names.one_of("mode", mode, ("min", "max"))
  values = series(run, key)[1]
  return float(np.nanmin(values) if mode == "min" else np.nanmax(values))


def at(run: Run, key: str, x: str, value: float) -> float:
  """The last value of a metric at or before `x <= value`.

  For comparisons at equal steps or equal seconds.

  Raises:
    ValueError: nothing was logged so early.
  """
  xs, ys = series(run, key, x=x)
  before = ys[xs <= value]
  if not before.size:
    raise ValueError(
      f"value={value!r} is not allowed: {key!r} was first logged at "
      f"{x}={xs.min()}."
    )
  return float(before[-1])


def flat_config(run: Run) -> dict[str, Any]:
  """The config with nested names joined by dots, `optimizer.name`."""

  def walk(prefix, node):
    for key, value in node.items():
      if isinstance(value, Mapping):
        yield from walk(f"{prefix}{key}.", value)
      else:
        yield prefix + key, value

  return dict(walk("", run.config))


def group(
  runs: Iterable[Run], by: str | Sequence[str] | None = None
) -> dict[Any, list[Run]]:
  """Runs that belong together, such as the seeds of one setting.

  Args:
    runs: runs.
    by: a dotted name in the config or several: runs with equal values form a
      group. None: all names but `seed`.

  Returns:
    Groups in order of first appearance. The key is the value for one name, a
    tuple of values for several, a canonical JSON text for None.

  Raises:
    ValueError: a run's config lacks a name.
  """
  out: dict[Any, list[Run]] = {}
  for run in runs:
    config = flat_config(run)
    if by is None:
      rest = {k: v for k, v in config.items() if k.split(".")[-1] != "seed"}
      key = json.dumps(rest, sort_keys=True)
    elif isinstance(by, str):
      key = _hashable(names.lookup("by", by, config))
    else:
      key = tuple(_hashable(names.lookup("by", name, config)) for name in by)
    out.setdefault(key, []).append(run)
  return out


def _hashable(value: Any) -> Any:
  if isinstance(value, list | dict):
    return json.dumps(value, sort_keys=True)
  return value
