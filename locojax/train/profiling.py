"""Step time, examples per second, MFU, device memory, and a trace window."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from locojax.core import checks

_log = logging.getLogger(__name__)

# Dense peak of one device in floating-point operations per second, at 16 bits,
# by the start of the lower-case `device_kind`; the longest start wins.
_PEAK_FLOPS = {
  "nvidia a100": 312e12,
  "nvidia h100": 989e12,
  "nvidia h100 pcie": 756e12,
  "nvidia h100 nvl": 835e12,
  "nvidia h200": 989e12,
  "tpu v4": 275e12,
  "tpu v5 lite": 197e12,
  "tpu v5e": 197e12,
  "tpu v5": 459e12,
  "tpu v5p": 459e12,
  "tpu v6 lite": 918e12,
  "tpu v6e": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
  """The dense 16-bit peak of one device, in operations per second.

  Args:
    device_kind: as `jax.devices()[0].device_kind` says it.

  Returns:
    The vendor's figure, or None for a device that is not in the table.
  """
  kind = device_kind.lower()
  known = [start for start in _PEAK_FLOPS if kind.startswith(start)]
  return _PEAK_FLOPS[max(known, key=len)] if known else None


def mfu(
  flops_per_step: float | None,
  step_seconds: float,
  *,
  num_devices: int,
  peak: float | None,
) -> float | None:
  """Model FLOP utilisation: `flops / (seconds * devices * peak)`.

  Args:
    flops_per_step: floating-point operations of one step on all devices,
      counted from the model.
    step_seconds: time of one step.
    num_devices: devices that share the step.
    peak: operations per second of one device; see `peak_flops`.

  Returns:
    A share of the peak, or None when a figure is unknown.
  """
  if flops_per_step is None or peak is None or step_seconds <= 0:
    return None
  return flops_per_step / (step_seconds * num_devices * peak)


def memory() -> dict[str, int]:
  """Bytes on the fullest local device: `in_use`, `peak`, `limit`.

  Names that the backend does not tell are left out (all of them on CPU).
  """
  names = {
    "in_use": "bytes_in_use",
    "peak": "peak_bytes_in_use",
    "limit": "bytes_limit",
  }
  stats = [d.memory_stats() or {} for d in jax.local_devices()]
  out = {}
  for name, field in names.items():
    known = [s[field] for s in stats if field in s]
    if known:
      out[name] = max(known)
  return out


def step_bytes(compiled: Any) -> int | None:
  """Bytes on a device that a compiled step holds at once.

  Arguments, results that do not take their place, and temporaries, as the
  compiler plans them; None where it does not tell.
  """
  plan = compiled.memory_analysis()
  if plan is None:
    return None
  return (
    plan.argument_size_in_bytes
    + plan.output_size_in_bytes
    - plan.alias_size_in_bytes
    + plan.temp_size_in_bytes
  )


class Clock:
  """A stop watch that starts at the seconds of earlier runs."""

  def __init__(self, seconds: float = 0.0):
    self._before = seconds
    self._since: float | None = None

  def start(self) -> None:
    """Runs on; no effect when running."""
    if self._since is None:
      self._since = time.perf_counter()

  def stop(self) -> float:
    """Stands still; returns the seconds so far."""
    if self._since is not None:
      self._before += time.perf_counter() - self._since
      self._since = None
    return self._before

  @contextlib.contextmanager
  def paused(self) -> Iterator[float]:
    """Stands still within the context; gives the seconds so far."""
    running = self._since is not None
    yield self.stop()
    if running:
      self.start()


@dataclasses.dataclass(frozen=True)
class Window:
  """Steps that `jax.profiler` records.

  Attributes:
    start: number of updates done before the first recorded step. Leave a few
      steps for warming up.
    num_steps: how many steps are recorded.
  """

  start: int
  num_steps: int

  def __post_init__(self):
    checks.nonnegative("profile.start", self.start)
    checks.positive_int("profile.num_steps", self.num_steps)


def window(settings: Mapping[str, int]) -> Window | None:
  """The window of a config's `{"start": s, "num_steps": n}`; None if n is 0.

  Raises:
    ValueError: an unknown setting, or a number that is not allowed.
  """
  for name in settings:
    checks.one_of("profile", name, ("start", "num_steps"))
  if not settings.get("num_steps"):
    return None
  return Window(**settings)


class Trace:
  """Writes a trace of the steps in a window to `folder`."""

  def __init__(self, window: Window, folder: pathlib.Path):
    self._window = window
    self._folder = folder
    self._running = False

  def before_step(self, step: int) -> None:
    """Starts or stops the recording; `step` updates are done."""
    if step == self._window.start:
      jax.profiler.start_trace(str(self._folder))
      self._running = True
    elif step == self._window.start + self._window.num_steps:
      self.close()

  def close(self) -> None:
    """Ends a recording that is under way."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
      _log.info("profile written to %s", self._folder)
