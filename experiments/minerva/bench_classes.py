"""Which classes of MATH answers each grader reads.

  python -m experiments.minerva.bench_classes --answers DIR/text/... \\
    --results FILE.json

Gold answers are sorted into classes by how they are written. Of each class up
to `--most` different answers are drawn; an answer is *read* by a grader that
calls it equal to itself, unequal to the same answer with another last digit
(or, where it has none, to another answer of its class), and unequal to what
parsers are known to make of it: the first of a list, a base left away, a mixed
number as a product. The graders are those of
`experiments.minerva.bench_grading`.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common import benches, commands
from experiments.minerva import bench_grading
from locojax.core import checks
from locojax.report import tables

_NUMBER = r"-?\d+(?:\.\d+)?"
# The first that is found in an answer is its class.
CLASSES = {
  "empty": r"^\s*$",
  "matrix": r"\\begin\{[a-z]*(?:matrix|array)\}",
  "interval or infinity": r"\\infty|\\cup|\\in\b"
  r"|^[\[(][^()\[\]]*,[^()\[\]]*\]$|^\[[^\[\]]*,[^\[\]]*\)$",
  "pair or tuple": r"^\\?(?:left)?\(.*,.*\)$",
  "set": r"^\\?(?:left)?\\\{.*\}$",
  "thousands": r"\d(?:,|\{,\}|,\\!)\d{3}(?!\d)",
  "list": r",|\\text\{ ?(?:and|or) ?\}",
  "number base": r"\d_\{?\d",
  "dollars": r"\\\$|^\$",
  "percent": r"%",
  "degrees": r"\^\{?\\circ|\\degree",
  "time": r"\d:\d",
  "mixed number": r"\d ?\\[dt]?frac",
  "brace-less": r"\\sqrt\s*\d|\\[dt]?frac\s*\d",
  "text or unit": r"\\(?:text|mbox|mathrm|textbf)\b|[A-Za-z]{4,}(?<!frac)"
  r"(?<!sqrt)(?<!left)(?<!right)",
  "plus or minus": r"\\pm",
  "inequality": r"[<>]|\\[lg]e|\\leq|\\geq",
  "leading zero or dot": r"^-?(?:\.\d|0\d)",
  "whole or decimal": rf"^{_NUMBER}$",
  "fraction": r"^-?\\[dt]?frac\{-?\d+\}\{-?\d+\}$",
}
REST = "other expression"


def class_of(answer: str) -> str:
  """The class of an answer, `REST` if it is of none.

  >>> class_of("(1,2)"), class_of("2215_6"), class_of("x^2+1")
  ('pair or tuple', 'number base', 'other expression')
  """
  for name, pattern in CLASSES.items():
    if re.search(pattern, answer):
      return name
  return REST


# What a class is misread as: pattern and replacement, once.
_MISREAD = {
  "list": (r"(?:,|\\text\{ ?(?:and|or) ?\}).*", ""),
  "thousands": (r"(?:,|\{,\}|,\\!)\d{3}.*", ""),
  "number base": (r"_.*", ""),
  "mixed number": (r"(\d) ?(\\[dt]?frac)", r"\1 \\cdot \2"),
  "time": (r"^(\d+):(\d+)$", r"\\frac{\1}{\2}"),
  "brace-less": (r"(\d)\\sqrt.*", r"\1"),
  "plus or minus": (r"\\pm", "+"),
  "pair or tuple": (r"^\(([^,]+),([^,]+)\)$", r"(\2,\1)"),
}


def misread(answer: str, name: str) -> str | None:
  """What parsers are known to make of an answer of a class; None if nothing.

  >>> misread("-2, 2", "list"), misread("2215_6", "number base")
  ('-2', '2215')
  """
  if name not in _MISREAD:
    return None
  pattern, other = _MISREAD[name]
  found = re.sub(pattern, other, answer, count=1)
  return None if found in (answer, "") else found


def altered(answer: str, others: Sequence[str]) -> str | None:
  """The answer with another last digit; without one, another of its class.

  None if there is neither.
  """
  found = list(re.finditer(r"\d", answer))
  if found:
    at = found[-1].start()
    return f"{answer[:at]}{(int(answer[at]) + 1) % 10}{answer[at + 1 :]}"
  return next((other for other in others if other != answer), None)


def _symmetric(answer: str) -> bool:
  """Whether a pair is the same the other way round."""
  parts = [part.strip() for part in answer.strip("()").split(",")]
  return len(parts) == 2 and parts[0] == parts[1]


class Asked(NamedTuple):
  """An answer, and what it must not equal."""

  answer: str
  unequal: tuple[str, ...]


def drawn(
  answers: Sequence[str], *, most: int, rng: np.random.Generator
) -> dict[str, list[Asked]]:
  """Answers of each class, and what they must not equal."""
  by_class: dict[str, list[str]] = collections.defaultdict(list)
  for answer in dict.fromkeys(answers):
    by_class[class_of(answer)].append(answer)
  out: dict[str, list[Asked]] = {}
  for name in (*CLASSES, REST):
    every = by_class[name]
    mixed = [every[i] for i in rng.permutation(len(every)).tolist()]
    for answer in mixed[:most]:
      others = [altered(answer, mixed)]
      if not _symmetric(answer):
        others.append(misread(answer, name))
      found = tuple(other for other in others if other is not None)
      if found:
        out.setdefault(name, []).append(Asked(answer, found))
  return out


def pairs_of(asked: Mapping[str, Sequence[Asked]]) -> list[tuple[str, str]]:
  """All pairs, an answer and itself first."""
  return [
    (one.answer, other)
    for own in asked.values()
    for one in own
    for other in (one.answer, *one.unequal)
  ]


def rows_of(
  counts: Mapping[str, int],
  asked: Mapping[str, Sequence[Asked]],
  verdicts: Mapping[str, Sequence[bool]],
) -> list[dict[str, Any]]:
  """A row for each class: how many answers each grader reads, in %.

  Args:
    counts: gold answers of each class.
    asked: of `drawn`.
    verdicts: of each grader, on the pairs of `pairs_of`.
  """
  rows = []
  told = {name: iter(found) for name, found in verdicts.items()}
  for name, own in asked.items():
    row = {"class": name, "count": counts[name], "asked": len(own)}
    row["example"] = f"`{own[0].answer}`"
    for grader, found in told.items():
      read = [
        [next(found) for _ in (one.answer, *one.unequal)]
        == [True, *[False] * len(one.unequal)]
        for one in own
      ]
      row[grader] = 100.0 * sum(read) / len(read)
    rows.append(row)
  return rows


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--answers", required=True, help="JSON lines of answers")
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--most", type=int, default=40, help="answers of a class")
  parser.add_argument("--seed", type=int, default=0)
  return parser


def main(argv: list[str]) -> None:
  """Measures, prints the table and what ours does not read, writes the file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  checks.positive_int("most", args.most)
  rng = np.random.default_rng(checks.seed("seed", args.seed))
  answers = bench_grading.read_answers(args.answers)
  asked = drawn(answers, most=args.most, rng=rng)
  pairs = pairs_of(asked)
  with tempfile.TemporaryDirectory() as folder:
    told = bench_grading.others(pairs, pathlib.Path(folder))
  found = {bench_grading.OURS: bench_grading.ours(pairs), **told["graders"]}
  verdicts = {name: grader["verdicts"] for name, grader in found.items()}
  rows = rows_of(collections.Counter(map(class_of, answers)), asked, verdicts)
  versions = ", ".join(f"{n} {v}" for n, v in told["versions"].items())
  benches.save(
    args.results,
    "experiments.minerva.bench_classes",
    argv,
    rows,
    start=start,
    seeds=[args.seed],
    shown={args.answers: "ANSWERS"},
    notes=(
      f"{len(answers)} gold answers, up to {args.most} different ones of each "
      "class; in %: equal to itself, and unequal to what is written alike and "
      f"has another value, or is what parsers misread it as. {versions}."
    ),
  )
  print(tables.render(rows, list(rows[0])))
  for (a, b), equal in zip(pairs, verdicts[bench_grading.OURS], strict=True):
    if equal != (a == b):
      print(f"ours: {a!r} and {b!r} are {'equal' if equal else 'unequal'}")


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
