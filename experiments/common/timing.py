"""Timing programs against each other: rounds in which all take their turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from locojax.core import checks

Seconds = dict[str, list[float]]


def _one(run: Callable[[], Any], calls: int) -> float:
  start = time.perf_counter()
  for _ in range(calls):
    out = run()
  jax.block_until_ready(out)
  return (time.perf_counter() - start) / calls


def rounds(
  programs: Mapping[str, Callable[[], Any]],
  *,
  num: int,
  rng: np.random.Generator,
  calls: int = 1,
) -> Seconds:
  """Seconds a call of each program in each round, after a warm-up.

  A round visits all programs, in an order of its own, so that a slow moment of
  the machine meets each of them alike.

  Args:
    programs: functions of nothing that return what is to be waited for.
    num: rounds.
    rng: of the orders.
    calls: calls timed in a visit.
  """
  checks.positive_int("num", num)
  checks.positive_int("calls", calls)
  for run in programs.values():
    jax.block_until_ready(run())
  seconds: Seconds = {name: [] for name in programs}
  for _ in range(num):
    for name in rng.permutation(list(programs)).tolist():
      seconds[name].append(_one(programs[name], calls))
  return seconds


def summary(seconds: Seconds, name: str, *, reference: str) -> dict[str, float]:
  """Median and least time of a program, and its ratio to the reference.

  The ratio is the median, with quartiles, of those within each round.

  Returns:
    `ms`, `least_ms`, `ratio`, `ratio_low` and `ratio_high`.
  """
  pairs = zip(seconds[name], seconds[reference], strict=True)
  low, middle, high = np.quantile([a / b for a, b in pairs], [0.25, 0.5, 0.75])
  return {
    "ms": 1e3 * statistics.median(seconds[name]),
    "least_ms": 1e3 * min(seconds[name]),
    "ratio": float(middle),
    "ratio_low": float(low),
    "ratio_high": float(high),
  }


def device_name() -> str | None:
  """The accelerator as a result file names it; None on CPU."""
  device = jax.devices()[0]
  return None if device.platform == "cpu" else device.device_kind


def num_cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
