"""What a benchmark ends with: its result file."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from locojax.report import results


def save(
  path: str,
  module: str,
  argv: Sequence[str],
  rows: Sequence[Mapping[str, Any]],
  *,
  start: float,
  seeds: Sequence[int],
  notes: str,
  device: str | None = None,
  shown: Mapping[str | None, str] | None = None,
) -> None:
  """Writes the result file of `python -m MODULE ARGV`.

  Args:
    path: where.
    module: dotted path of the benchmark.
    argv: its arguments.
    rows: of the table.
    start: `time.perf_counter()` when it began.
    seeds, notes, device: of the file; no device is the host processor.
    shown: what stands in the command for arguments that are places of this
      machine; None, an option that was not given, is none of them.
  """
  names = {k: v for k, v in (shown or {}).items() if k is not None}
  given = [names.get(a, a) for a in argv]
  results.save(
    path,
    command=shlex.join(["python", "-m", module, *given]),
    seeds=seeds,
    rows=rows,
    time_seconds=time.perf_counter() - start,
    device=device,
    notes=notes,
  )
