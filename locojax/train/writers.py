"""Where the numbers of a run go; only process 0 has writers that do anything.

`metrics.jsonl` is always written. Other writers are told the same numbers, so
none of them is needed to read a run.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from locojax.core import checks, files

METRICS = "metrics.jsonl"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run has come and how fast it goes.

  Attributes:
    step: number of updates done.
    num_steps: number of updates in all.
    loss: loss of the newest batch.
    examples_per_second: since the last report.
    step_seconds: time of one step since the last report.
    mfu: share of the devices' peak, or None when unknown.
  """

  step: int
  num_steps: int
  loss: float
  examples_per_second: float
  step_seconds: float
  mfu: float | None = None

  @property
  def eta(self) -> float:
    """Seconds of training that are left."""
    return (self.num_steps - self.step) * self.step_seconds


class Writer:
  """The interface; every method may be left as it is."""

  def write(
    self, step: int, seconds: float, values: Mapping[str, float]
  ) -> None:
    """Takes the values of one source (`train/...`, `<eval>/...`) at a step.

    Args:
      step: number of updates done.
      seconds: seconds of training so far.
      values: numbers by name.
    """

  def progress(self, progress: Progress) -> None:
    """Takes the state of the run after each log step."""

  def close(self) -> None:
    """Writes what is left."""


class JsonLines(Writer):
  """One JSON object a line: `step`, `seconds`, then the values.

  Lines of steps after `start` are dropped, for those steps will be taken
  again; so is a last line that was cut off.

  Args:
    path: the file.
    start: number of updates done in the state that the run starts from; -1
      empties the file.
    expected: number of lines up to `start` that were written once; a warning
      says if some of them are gone.

  Attributes:
    num_rows: number of lines in the file.
  """

  def __init__(self, path: str | os.PathLike, start: int, expected: int = 0):
    self._path = pathlib.Path(path)
    kept = [row for row in read_lines(self._path) if row["step"] <= start]
    if len(kept) < expected:
      _log.warning(
        "%s has %d rows up to step %d, where %d were written: the others are "
        "gone for good",
        *(self._path, len(kept), start, expected),
      )
    files.write_text(
      self._path, "".join(json.dumps(row) + "\n" for row in kept)
    )
    self.num_rows = len(kept)
    self._file = self._path.open("a")

  def write(
    self, step: int, seconds: float, values: Mapping[str, float]
  ) -> None:
    """Appends a line and hands it to the system at once."""
    row = {"step": step, "seconds": round(seconds, 6), **values}
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()
    self.num_rows += 1

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def read_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The rows of a `metrics.jsonl`; none when there is no file.

  A last line that was cut off is left out.

  Raises:
    ValueError: another line is not JSON.
  """
  path = pathlib.Path(path)
  lines = path.read_text().splitlines() if path.exists() else []
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number < len(lines):
        raise ValueError(f"{path}, line {number}: {error}") from error
  return rows


def duration(seconds: float) -> str:
  """Seconds as people say them.

  >>> duration(3.21), duration(75), duration(7380)
  ('3.2s', '1m15s', '2h03m')
  """
  if not math.isfinite(seconds):
    return "?"
  if seconds < 60:
    return f"{seconds:.1f}s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes}m{rest:02d}s"
  return f"{minutes // 60}h{minutes % 60:02d}m"


def progress_line(name: str, p: Progress) -> str:
  """The progress of a run in one line."""
  parts = [
    f"{name} {p.step}/{p.num_steps}" if name else f"{p.step}/{p.num_steps}",
    f"loss {p.loss:.5g}",
    f"{p.examples_per_second:.4g} examples/s",
  ]
  if p.mfu is not None:
    parts.append(f"MFU {100 * p.mfu:.1f}%")
  parts.append(f"ETA {duration(p.eta)}" if p.eta else "done")
  return "  ".join(parts)


class Console(Writer):
  """One line of progress, in place on a terminal.

  Elsewhere plain lines: at most one in `interval` seconds, and the last.

  Args:
    name: what the line begins with.
    stream: where to; standard error by default.
    interval: seconds between two plain lines.
  """

  def __init__(
    self,
    name: str = "",
    *,
    stream: TextIO | None = None,
    interval: float = 10.0,
  ):
    self._name = name
    self._stream = sys.stderr if stream is None else stream
    self._interval = checks.nonnegative("interval", interval)
    self._in_place = self._stream.isatty()
    self._last = -math.inf
    self._width = 0

  def progress(self, progress: Progress) -> None:
    """Shows the line, if it is time."""
    line = progress_line(self._name, progress)
    if self._in_place:
      self._stream.write("\r" + line.ljust(self._width))
      self._width = len(line)
      self._stream.flush()
      return
    now = time.monotonic()
    last = progress.step >= progress.num_steps
    if last or now - self._last >= self._interval:
      self._last = now
      self._stream.write(line + "\n")
      self._stream.flush()

  def close(self) -> None:
    """Ends the line."""
    if self._in_place and self._width:
      self._stream.write("\n")
      self._stream.flush()


class TensorBoard(Writer):
  """Scalars for TensorBoard, by whichever of its two writers is installed.

  Args:
    folder: where the event files go.

  Raises:
    ImportError: neither `tensorboard` nor `tensorboardX` is installed.
  """

  def __init__(self, folder: str | os.PathLike):
    if importlib.util.find_spec("tensorboardX"):
      module = importlib.import_module("tensorboardX")
      self._writer = module.SummaryWriter(str(folder))
    elif importlib.util.find_spec("tensorboard"):
      module = importlib.import_module("tensorboard.summary")
      self._writer = module.Writer(str(folder))
    else:
      raise ImportError(
        "TensorBoard files need a writer: `pip install tensorboard` or "
        "`pip install tensorboardX`."
      )

  def write(
    self, step: int, seconds: float, values: Mapping[str, float]
  ) -> None:
    """Adds the scalars, and the seconds of training as `seconds`."""
    for name, value in {**values, "seconds": seconds}.items():
      self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()


class WeightsAndBiases(Writer):
  """Scalars for Weights & Biases; used only where it is asked for.

  Args:
    project: name of the project.
    **settings: for `wandb.init`.

  Raises:
    ImportError: `wandb` is not installed.
  """

  def __init__(self, project: str, **settings: Any):
    if not importlib.util.find_spec("wandb"):
      raise ImportError("Weights & Biases needs `pip install wandb`.")
    self._run = importlib.import_module("wandb").init(
      project=project, **settings
    )

  def write(
    self, step: int, seconds: float, values: Mapping[str, float]
  ) -> None:
    """Logs the values at the step."""
    self._run.log({**values, "seconds": seconds}, step=step)

  def close(self) -> None:
    """Ends the run."""
    self._run.finish()


def default(workdir: str | os.PathLike) -> list[Writer]:
  """Progress on the console, and TensorBoard files when it is installed."""
  workdir = pathlib.Path(workdir)
  out: list[Writer] = [Console(workdir.name)]
  known = ("tensorboardX", "tensorboard")
  if any(importlib.util.find_spec(name) for name in known):
    out.append(TensorBoard(workdir / "tensorboard"))
  return out


class Several(Writer):
  """Tells several writers the same."""

  def __init__(self, writers: Sequence[Writer]):
    self._writers = tuple(writers)

  @property
  def num_rows(self) -> int:
    """Lines that the first one has in its file; 0 if it has none."""
    return getattr(self._writers[0], "num_rows", 0) if self._writers else 0

  def write(
    self, step: int, seconds: float, values: Mapping[str, float]
  ) -> None:
    """To all of them."""
    for writer in self._writers:
      writer.write(step, seconds, values)

  def progress(self, progress: Progress) -> None:
    """To all of them."""
    for writer in self._writers:
      writer.progress(progress)

  def close(self) -> None:
    """All of them."""
    for writer in self._writers:
      writer.close()
