"""Pairs of answers whose verdict was worked out by hand, under each grader.

  python -m experiments.minerva.bench_checked \\
    --pairs tests/methods/minerva/pairs.tsv --results FILE.json

`--pairs` is a table with tabs: class, both answers, and `equal` or `unequal`.
A grader is asked both ways round; `one way` is where it says both. The graders
are those of `experiments.minerva.bench_grading`; ours holds an answer to its
units, as it does by default.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.common import benches, commands
from experiments.minerva import bench_grading
from locojax.core import checks
from locojax.report import tables

COLUMNS = ("class", "a", "b", "verdict")
VERDICTS = ("equal", "unequal")
_SAID = {(True, True): "equal", (False, False): "unequal"}


class Pair(NamedTuple):
  """Two answers, and what is right."""

  kind: str
  a: str
  b: str
  verdict: str


def read(path: str) -> list[Pair]:
  """The pairs of a table.

  Raises:
    ValueError: other columns, or another verdict, with its line.
  """
  with open(path, encoding="utf-8", newline="") as file:
    rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
  if not rows or tuple(rows[0]) != COLUMNS:
    raise ValueError(f"{path} is not allowed: its columns must be {COLUMNS}.")
  for number, row in enumerate(rows[1:], 2):
    if len(row) != len(COLUMNS):
      raise ValueError(f"{path}, line {number} has {len(row)} cells, not 4.")
    checks.one_of(f"verdict of {path}, line {number}", row[3], VERDICTS)
  return [Pair(*row) for row in rows[1:]]


def rows_of(
  pairs: Sequence[Pair], verdicts: Mapping[str, Sequence[bool]]
) -> list[dict[str, Any]]:
  """A row for each pair; verdicts are of (a, b) and (b, a) in turn."""
  rows = []
  for i, pair in enumerate(pairs):
    row = {"class": pair.kind, "a": f"`{pair.a}`", "b": f"`{pair.b}`"}
    row["by_hand"] = pair.verdict
    for grader, told in verdicts.items():
      both = (bool(told[2 * i]), bool(told[2 * i + 1]))
      row[grader] = _SAID.get(both, "one way")
    rows.append(row)
  return rows


def summary(
  rows: Sequence[Mapping[str, Any]], graders: Sequence[str]
) -> list[dict[str, Any]]:
  """How often each grader is right, both ways round."""
  out = []
  for grader in graders:
    right = {
      v: sum(r[grader] == v for r in rows if r["by_hand"] == v)
      for v in VERDICTS
    }
    out.append(
      {
        "grader": grader,
        **{f"right_of_{v}": n for v, n in right.items()},
        "right": sum(right.values()),
        "pairs": len(rows),
        "one_way": sum(r[grader] == "one way" for r in rows),
      }
    )
  return out


def _strict(asked: list[tuple[str, str]]) -> dict[str, Any]:
  return bench_grading.ours(asked, units="strict")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pairs", required=True, help="table with tabs")
  parser.add_argument("--results", required=True, help="result file to write")
  return parser


def main(argv: list[str]) -> None:
  """Asks all graders, prints the summary, writes pairs and summary."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  pairs = read(args.pairs)
  asked = [p for one in pairs for p in ((one.a, one.b), (one.b, one.a))]
  with tempfile.TemporaryDirectory() as folder:
    told = bench_grading.others(asked, pathlib.Path(folder))
  found = {bench_grading.OURS: _strict(asked), **told["graders"]}
  verdicts = {name: grader["verdicts"] for name, grader in found.items()}
  rows = rows_of(pairs, verdicts)
  totals = summary(rows, list(verdicts))
  versions = ", ".join(f"{n} {v}" for n, v in told["versions"].items())
  path = pathlib.Path(args.results)
  for where, content in (
    (path, totals),
    (path.with_name(f"{path.stem}_pairs{path.suffix}"), rows),
  ):
    benches.save(
      str(where),
      "experiments.minerva.bench_checked",
      argv,
      content,
      start=start,
      seeds=[],
      notes=f"Both ways round; one way: the order decides. {versions}.",
    )
  print(tables.render(totals, list(totals[0])))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
