"""Grading of MATH answers against math-verify, the public harness and SymPy.

  python -m experiments.minerva.bench_grading --answers DIR/text/... \\
    --results FILE.json

`--answers` is a file of JSON lines with `answer` (gzip or not): the gold
answers. Three kinds of pairs are made of them: an answer and itself, an answer
in another notation of the same value (`\\dfrac`, blanks, `\\left(`, dollars),
and an answer with another one. CPU time is taken in one process each, with
nothing remembered from before; the others have an environment of their own.
Wrong are verdicts "unequal" for the first two kinds; for the third, pairs on
which the graders disagree with ours are written out by the result file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from experiments.common import benches, commands, peers
from locojax.core import checks, files
from locojax.methods.minerva import equivalence
from locojax.report import tables

PEER = pathlib.Path(__file__).with_name("bench_grading_peer.py")
# Without what these need: the file of the harness that is used needs no torch.
PACKAGES = (
  "--no-deps",
  "math-verify==0.9.0",
  "latex2sympy2_extended==1.11.0",
  "lm-eval==0.4.9",
  "sympy==1.14.0",
  "mpmath==1.3.0",
  "antlr4-python3-runtime==4.11.1",
)
KINDS = ("itself", "rewritten", "another")
OURS = "locojax"
SHOWN = 40


def read_answers(path: str) -> list[str]:
  """The answers of a file of JSON lines, gzip or not."""
  opened = gzip.open if str(path).endswith(".gz") else open
  with opened(path, "rt", encoding="utf-8") as file:
    return [json.loads(line)["answer"] for line in file if line.strip()]


def rewritten(text: str) -> str:
  """The same answer as another would write it."""
  other = text.replace(r"\frac", r"\dfrac").replace("+", " + ")
  if "(" in other and r"\left" not in other and other.count("(") == 1:
    other = other.replace("(", r"\left(").replace(")", r"\right)")
  return other


def pairs_of(
  answers: list[str],
  *,
  num: int,
  rng: np.random.Generator,
  kinds: tuple[str, ...] = KINDS,
) -> list[tuple[str, str, str]]:
  """Kind and both answers of each pair; the kinds take turns.

  Args:
    answers: gold answers.
    num: how many pairs.
    rng: draws the answers.
    kinds: of pairs, of `KINDS`.
  """
  out = []
  order = np.concatenate(
    [rng.permutation(len(answers)) for _ in range(-(-num // len(answers)))]
  )
  for k, at in enumerate(order[:num].tolist()):
    text, kind = answers[at], kinds[k % len(kinds)]
    other = answers[int(rng.integers(len(answers)))]
    second = {"itself": text, "rewritten": rewritten(text), "another": other}
    out.append((kind, text, second[kind]))
  return out


def _forget() -> None:
  for remembered in (equivalence._read, equivalence._tidy):
    remembered.cache_clear()


def ours(
  pairs: list[tuple[str, str]], *, units: str = "optional"
) -> dict[str, Any]:
  """Our verdicts on pairs, and CPU seconds; `units` as of `is_equivalent`."""
  _forget()
  start = time.process_time()
  found = [equivalence.is_equivalent(a, b, units=units) for a, b in pairs]
  return {"verdicts": found, "cpu_seconds": time.process_time() - start}


def others(pairs: list[tuple[str, str]], folder: pathlib.Path) -> dict:
  """Those of the other graders, in an environment made in a folder."""
  python = peers.environment(folder / "venv", PACKAGES)
  given = folder / "pairs.json"
  files.write_json(given, [list(pair) for pair in pairs])
  command = [python, str(PEER), str(given)]
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
  return json.loads(done.stdout)


def rows_of(
  pairs: list[tuple[str, str, str]], found: dict[str, dict]
) -> list[dict[str, Any]]:
  """A row for each grader: throughput, and verdicts by kind."""
  kinds = np.array([kind for kind, _, _ in pairs])
  ours = np.array(found[OURS]["verdicts"])
  rows = []
  for name, told in found.items():
    verdicts, seconds = np.array(told["verdicts"]), told["cpu_seconds"]
    row = {
      "grader": name,
      "pairs": len(pairs),
      "cpu_seconds": seconds,
      "pairs_per_second": len(pairs) / seconds,
      "ratio": seconds / found[OURS]["cpu_seconds"],
    }
    for kind in KINDS:
      row[f"{kind}_equal"] = int(verdicts[kinds == kind].sum())
      row[f"{kind}_pairs"] = int((kinds == kind).sum())
    row["differs_from_ours"] = int((verdicts != ours).sum())
    rows.append(row)
  return rows


def disagreements(pairs, found: dict[str, dict], name: str) -> list[list[str]]:
  """Pairs on which a grader and ours differ: kind, both, ours."""
  verdicts = zip(found[name]["verdicts"], found[OURS]["verdicts"], strict=True)
  return [
    [*pair, "equal" if ours else "unequal"]
    for pair, (theirs, ours) in zip(pairs, verdicts, strict=True)
    if theirs != ours
  ]


def measure(
  answers: list[str], *, num: int, seed: int, kinds: tuple[str, ...] = KINDS
) -> dict[str, Any]:
  """Rows, versions of the others, and where they differ from ours."""
  checks.positive_int("num", num)
  for kind in kinds:
    checks.one_of("kinds", kind, KINDS)
  rng = np.random.default_rng(checks.seed("seed", seed))
  pairs = pairs_of(answers, num=num, rng=rng, kinds=kinds)
  plain = [(a, b) for _, a, b in pairs]
  with tempfile.TemporaryDirectory() as folder:
    told = others(plain, pathlib.Path(folder))
  found = {OURS: ours(plain), **told["graders"]}
  differ = {n: disagreements(pairs, found, n) for n in told["graders"]}
  return {
    "rows": rows_of(pairs, found),
    "versions": told["versions"],
    "differ": differ,
  }


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--answers", required=True, help="JSON lines of answers")
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--pairs", type=int, default=12_500)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kinds", nargs="+", default=list(KINDS), help="pairs")
  return parser


def main(argv: list[str]) -> None:
  """Measures, prints the table and where graders differ, writes the file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  answers = read_answers(args.answers)
  found = measure(
    answers, num=args.pairs, seed=args.seed, kinds=tuple(args.kinds)
  )
  versions = ", ".join(f"{n} {v}" for n, v in found["versions"].items())
  benches.save(
    args.results,
    "experiments.minerva.bench_grading",
    argv,
    found["rows"],
    start=start,
    seeds=[args.seed],
    shown={args.answers: "ANSWERS"},
    notes=(
      f"{args.pairs} pairs of {len(answers)} gold answers, as many of "
      f"each kind; CPU seconds of one process. {versions}."
    ),
  )
  print(tables.render(found["rows"], list(found["rows"][0])))
  for name, pairs in found["differ"].items():
    print(f"\n{name} differs from ours on {len(pairs)} pairs")
    for pair in pairs[:SHOWN]:
      print("  " + " | ".join(pair))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
