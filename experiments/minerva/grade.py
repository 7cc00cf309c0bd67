"""Grades samples that any model has written, and says what voting gains.

  python -m experiments.minerva.grade samples.jsonl --task math --out graded

Files are those of lm-evaluation-harness (`--log_samples`) or ours, see
`experiments/minerva/records.py`; several make one evaluation. The folder gets
`grades.jsonl` (`experiments/minerva/grading.py`), `table.md` and, with
`--results`, a result file. A program that was killed goes on by the same
command: what was graded stays, and nothing is graded twice.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys
import time
from typing import Any

from experiments.common import commands, timing
from experiments.minerva import grading, measures, records, tasks
from locojax.core import checks, files
from locojax.data import digests
from locojax.report import results, tables
from locojax.train import lock

SETTINGS = "grading.json"
_EVERY = 2.0  # seconds between two lines of progress


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("samples", nargs="+", help="files of JSON lines")
  parser.add_argument("--task", required=True, help=f"one of {list(_TASKS)}")
  parser.add_argument("--out", help="folder; samples.graded by default")
  parser.add_argument(
    "--engine",
    default="sympy",
    help="sympy, math_verify, or none: exact values alone",
  )
  parser.add_argument("--workers", type=int, default=timing.num_cores())
  parser.add_argument(
    "--cpu_seconds",
    type=float,
    default=5.0,
    help="CPU time that one comparison may take",
  )
  parser.add_argument(
    "--k",
    type=int,
    nargs="+",
    default=[],
    help="numbers of samples; powers of two by default",
  )
  parser.add_argument("--results", default="", help="result file to write")
  return parser


_TASKS = tasks.TASKS


def _belongs(folder: pathlib.Path, args: argparse.Namespace) -> None:
  """A folder has the grades of one set of samples, graded in one way.

  Raises:
    ValueError: it has others.
  """
  wanted = {
    "task": args.task,
    "engine": args.engine,
    "cpu_seconds": args.cpu_seconds,
    "samples": {
      str(path): digests.of_files(pathlib.Path(path)) for path in args.samples
    },
  }
  path = folder / SETTINGS
  if not path.exists():
    files.write_json(path, wanted)
    return
  known = files.read_json(path)
  for key, value in wanted.items():
    if known.get(key) != value:
      raise ValueError(
        f"--out={str(folder)!r} is not allowed: it has grades made with {key} "
        f"{known.get(key)!r}, and this is {value!r}. Take another folder."
      )


class _Progress:
  """Says how many questions are done, every few seconds."""

  def __init__(self):
    self._start, self._told, self._first = time.monotonic(), 0.0, None

  def __call__(self, done: int, total: int) -> None:
    now = time.monotonic() - self._start
    if self._first is None:
      self._first = done - 1
    if now - self._told < _EVERY and done < total:
      return
    self._told = now
    left = now / (done - self._first) * (total - done)
    print(f"{done}/{total} questions, {left:.0f} s left", flush=True)


def _table(rows: list[dict[str, Any]], ks: tuple[int, ...]) -> str:
  """All questions, then over k, then by subject and level."""
  whole = measures.summary(rows, ks)
  shares = {n: v for n, v in whole.items() if "@" not in n}
  parts = [[shares], measures.over_k(rows, ks)]
  for key in ("subject", "level"):
    parts.append(measures.by(rows, key, ks))
  return "\n\n".join(tables.render(p, digits=3) for p in parts if p)


def run(args: argparse.Namespace, command: str = "") -> list[dict[str, Any]]:
  """Grades, writes the table, and gives the grades."""
  checks.one_of("--task", args.task, _TASKS)
  checks.one_of("--engine", args.engine, grading.ENGINES)
  checks.positive_int("--workers", args.workers)
  checks.positive("--cpu_seconds", args.cpu_seconds)
  found, start = records.read(args.samples, task=args.task), time.monotonic()
  fewest = min(len(q.samples) for q in found)
  for k in args.k:
    checks.int_in_range("--k", k, 1, fewest)
  folder = pathlib.Path(args.out or f"{args.samples[0]}.graded")
  with lock.hold(folder):
    _belongs(folder, args)
    with grading.grader(
      args.engine, num_workers=args.workers, cpu_seconds=args.cpu_seconds
    ) as made:
      rows = grading.grade_all(
        found,
        folder / grading.GRADES,
        made,
        task=args.task,
        num_threads=args.workers,
        tell=_Progress(),
      )
    table = _table(rows, tuple(args.k))
    files.write_text(folder / "table.md", table + "\n")
    if args.results:
      results.save(
        args.results,
        command=command,
        seeds=[0],
        rows=[{"task": args.task, **measures.summary(rows, args.k)}],
        time_seconds=time.monotonic() - start,
        notes=f"{args.engine}; intervals: bootstrap over questions, 95 %.",
      )
  print(f"{table}\n\ngrades: {folder / grading.GRADES}")
  return rows


def main(argv: list[str]) -> None:
  """Grades what the command line names."""
  module = "experiments.minerva.grade"
  run(_parser().parse_args(argv), shlex.join(["python", "-m", module, *argv]))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
