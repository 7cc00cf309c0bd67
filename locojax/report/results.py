"""Result files: numbers worth committing, with all that made them.

A result file is JSON, `results/<method>/<name>.json`:

  command       what was run, to be run again
  commit        git commit of the checkout, `-dirty` if it had changes, or null
  date          UTC, ISO 8601
  seeds         list of integers
  hardware      text: processor and cores, or the accelerator
  versions      of python and the packages that matter
  time_seconds  of the whole command
  rows          list of flat objects. A cell is text, a number, null, or a list
                of numbers: one for each seed, in the order of `seeds`
  notes         text, or null
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import numbers
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from locojax.core import files
from locojax.report import names

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_FIELDS = {
  "command": str,
  "commit": str | None,
  "date": str,
  "seeds": list,
  "hardware": str,
  "versions": dict,
  "time_seconds": numbers.Real,
  "rows": list,
  "notes": str | None,
}


def hardware() -> str:
  """The host processor and its cores, as `Xeon E5, 2 cores`."""
  model = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  if cpuinfo.is_file():
    for line in cpuinfo.read_text(encoding="utf-8").splitlines():
      if line.startswith("model name"):
        model = line.split(":", 1)[1].strip()
        break
  if hasattr(os, "sched_getaffinity"):
    cores = len(os.sched_getaffinity(0))
  else:
    cores = os.cpu_count()
  return f"{model}, {cores} core{'s' if cores != 1 else ''}"


def git_commit(folder: str | os.PathLike = ".") -> str | None:
  """The commit of a checkout, with `-dirty` if files differ; None without git.

  Files under `results/` do not make it dirty: a result may overwrite an
  earlier one.
  """

  def git(*args):
    out = subprocess.run(
      ["git", *args], cwd=folder, capture_output=True, text=True, check=True
    )
    return out.stdout.strip()

  try:
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", ":/", ":(top,exclude)results")
  except (OSError, subprocess.CalledProcessError):
    return None
  return f"{commit}-dirty" if changed else commit


def versions() -> dict[str, str]:
  """Versions of python and of the installed packages of `PACKAGES`."""
  out = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return out


def save(
  path: str | os.PathLike,
  *,
  command: str,
  seeds: Sequence[int],
  rows: Sequence[Mapping[str, Any]],
  time_seconds: float,
  device: str | None = None,
  notes: str | None = None,
) -> dict[str, Any]:
  """Writes a result file, whole or not at all; see the head of this file.

  Args:
    path: where; folders are made.
    command: the command line that gives it again.
    seeds: the seeds of the runs.
    rows: rows of the table; lists in them have a number for each seed.
    time_seconds: what the whole command took.
    device: the accelerator, as `NVIDIA H200`; None for the host processor.
    notes: anything a reader must know.

  Returns:
    What was written.

  Raises:
    ValueError: something does not fit the schema.
  """
  result = {
    "command": command,
    "commit": git_commit(),
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "seeds": [int(s) for s in seeds],
    "hardware": device or hardware(),
    "versions": versions(),
    "time_seconds": round(float(time_seconds), 1),
    "rows": [_plain(row) for row in rows],
    "notes": notes,
  }
  validate(result)
  files.write_json(path, result)
  return result


def _plain(value: Any) -> Any:
  """NumPy and JAX numbers as Python's; mappings and sequences walked."""
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  return value.tolist() if hasattr(value, "tolist") else value


def load(path: str | os.PathLike) -> dict[str, Any]:
  """Reads and checks a result file.

  Raises:
    FileNotFoundError: there is none.
    ValueError: damaged, or not of the schema; the file is named.
  """
  path = pathlib.Path(path)
  try:
    result = json.loads(path.read_text(encoding="utf-8"))
    return validate(result)
  except ValueError as e:
    raise ValueError(f"the result file {path} is damaged: {e}") from e


def validate(result: Any) -> dict[str, Any]:
  """The same object, if it fits the schema.

  Raises:
    ValueError: names the field, or the row and cell, and what is allowed.
  """
  if not isinstance(result, dict):
    raise ValueError(f"a result must be a dict, not {type(result).__name__}.")
  for name in result:
    names.one_of("field", name, _FIELDS)
  for name, kind in _FIELDS.items():
    if name not in result:
      raise ValueError(f"the field {name!r} is missing.")
    if not isinstance(result[name], kind):
      wanted = getattr(kind, "__name__", kind)
      raise ValueError(f"{name}={result[name]!r} must be of type {wanted}.")
  if not result["rows"]:
    raise ValueError("rows=[] is not allowed: at least one is needed.")
  for i, row in enumerate(result["rows"]):
    _check_row(i, row, len(result["seeds"]))
  return result


def _check_row(i: int, row: Any, num_seeds: int) -> None:
  if not isinstance(row, dict):
    raise ValueError(f"rows[{i}]={row!r} must be a dict.")
  for name, cell in row.items():
    if isinstance(cell, list):
      good = all(_is_number(v) or v is None for v in cell)
      if not good or len(cell) != num_seeds:
        raise ValueError(
          f"rows[{i}][{name!r}]={cell!r} must be a list of {num_seeds} "
          "numbers (or null for a run that failed), one for each seed."
        )
    elif not (cell is None or isinstance(cell, str) or _is_number(cell)):
      raise ValueError(
        f"rows[{i}][{name!r}]={cell!r} must be text, a number, null or a list "
        "of numbers."
      )


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real)
