"""Checks configs as `experiments.run --mode=check` does, and keeps a table.

  python -m scripts.check_paper --results results/limoe/paper_check.json \\
    --config experiments/limoe/configs/pairs.py:paper_s32 \\
    --config experiments/limoe/configs/pairs.py:paper

Each config is compiled ahead of time for the TPU slice that it names; no TPU
and no data are needed. A row is written as soon as it is known. Rows of other
configs that the file has already stay: a size can be checked again alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import launch
from locojax.report import results
from locojax.train import check, collectives

_GIB, _MIB = 2**30, 2**20
_NOTES = (
  "Compiled ahead of time by libtpu, without a TPU. GiB on one device; "
  "temporary and peak: the compiler's account of a step. Collectives: runs in "
  "a step (bodies of loops by their trip counts) and payload on a device. "
  "hbm_percent: of what the compiler lets a program have. operations_ratio: "
  "products and convolutions of the compiled step over those written; kernels: "
  "runs of programs that are in neither count. "
  "roofline: a lower bound of the step time, not a forecast."
)


def load(text: str) -> Any:
  """The config that `FILE` or `FILE:variant` names.

  Raises:
    ValueError: there is no such file, or it has no such variant.
  """
  path, _, variant = text.partition(":")
  if not pathlib.Path(path).is_file():
    raise ValueError(f"--config={text!r} is not allowed: no file {path!r}.")
  spec = importlib.util.spec_from_file_location("_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*filter(None, (variant,)))


def _mib(size: int) -> str:
  return f"{size / _MIB:,.0f} MiB" if size >= _MIB else "below 1 MiB"


def _sent(compiled: check.Compiled) -> str:
  """Collectives by kind and axes, the most bytes first."""
  found = collectives.totals(compiled.collectives)
  parts = [
    f"{kind} over {axes} {runs} x, {_mib(size)}"
    for (kind, axes), (runs, size) in sorted(
      found.items(), key=lambda item: -item[1][1]
    )
  ]
  return "; ".join(parts) or "none"


def row(text: str, topology: str, report: check.Report) -> dict[str, Any]:
  """A row of the table.

  Args:
    text: what `--config` says.
    topology: name of the slice.
    report: of the check, compiled.
  """
  found, axes = report.compiled, report.axes
  path, _, variant = text.partition(":")
  return {
    "config": text,
    "name": f"{pathlib.Path(path).stem}:{variant}",
    "topology": topology,
    "devices": math.prod(axes.values()),
    "mesh": ", ".join(f"{n} {size}" for n, size in axes.items() if size > 1),
    "parameters": report.num_params,
    "params_gib": report.state_bytes["params"] / _GIB,
    "optimizer_gib": report.state_bytes["opt_state"] / _GIB,
    "batch_gib": report.batch_bytes / _GIB,
    "temporary_gib": found.memory["temporary"] / _GIB,
    "peak_gib": found.peak_bytes / _GIB,
    "hbm_percent": 100 * found.peak_bytes / found.hbm_bytes,
    "collectives": _sent(found),
    "operations_ratio": found.operations_ratio,
    "kernels": found.operations.kernels,
    "compiler": found.compiler,
    "roofline_seconds": found.roofline.seconds,
    "limit": found.roofline.limit,
    "compile_seconds": found.seconds,
  }


def _more(text: str, config: Any) -> dict[str, dict[str, Any]]:
  """Rows of what a config has besides its step, such as generation."""
  out, start = {}, time.perf_counter()
  for name, report in launch.more_check_reports(config).items():
    print(f"\n{name}\n\n{report.text}", flush=True)
    found = row(text, config.check.topology, report)
    own = {"config": f"{text} {name}", "name": f"{found['name']} {name}"}
    out[own["config"]] = found | own
  share = (time.perf_counter() - start) / max(len(out), 1)
  return {key: {**r, "check_seconds": share} for key, r in out.items()}


def _save(path: pathlib.Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
  configs = " ".join(f"--config {text}" for text in rows if " " not in text)
  results.save(
    path,
    command=f"python -m scripts.check_paper --results {path} {configs}",
    seeds=(),
    rows=list(rows.values()),
    time_seconds=sum(r["check_seconds"] for r in rows.values()),
    notes=_NOTES,
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Checks the configs one after the other; the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m scripts.check_paper",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--config", action="append", required=True, metavar="FILE:variant"
  )
  parser.add_argument("--results", required=True, type=pathlib.Path)
  args = parser.parse_args(argv)
  rows = {}
  if args.results.exists():
    rows = {r["config"]: r for r in results.load(args.results)["rows"]}
  try:
    for text in args.config:
      config, start = load(text), time.perf_counter()
      if not config.check.topology:
        raise ValueError(f"--config={text!r} has no config.check.topology.")
      report = launch.check_report(config)
      print(report.text, flush=True)
      rows[text] = row(text, config.check.topology, report)
      rows[text]["check_seconds"] = time.perf_counter() - start
      _save(args.results, rows)
      rows |= _more(text, config)
      _save(args.results, rows)
  except ValueError as error:
    print(f"error: {text}: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
