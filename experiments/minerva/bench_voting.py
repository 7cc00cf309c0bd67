"""Time of the exact maj1@k of a question with 256 samples.

  python -m experiments.minerva.bench_voting \\
    --results results/minerva/bench_voting.json

Classes as models make them, and the worst there are: of 22 sizes, all alone,
all alike. For each number of votes k the slowest class is correct. Times are
CPU time of one thread, the median and the least over rounds, after a first call
that fills what is remembered for this n and k; `first_ms` is that call.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

from experiments.common import benches, commands
from locojax.core import checks
from locojax.methods import minerva
from locojax.methods.minerva import estimators
from locojax.report import tables

SAMPLES = 256
TARGET_MS = 1.0
LIKELY = (120, 40, 20, 12, 10, 8, 6, 6, 4, 4, 3, 3, 2, 2, *(1,) * 10)
PROFILES = {
  "likely": LIKELY,
  "22 sizes": tuple(range(1, 23)),
  "all alone": (1,) * 250,
  "16 alike": (16,) * 15,
  "two": (140, 110),
}
VOTES = (4, 16, 64, 128)


def _forget() -> None:
  for kept in ("_terms", "_base_powers", "_circle", "_nodes", "_binomial"):
    getattr(estimators, kept).cache_clear()


def _ms(counts: tuple[int, ...], correct: int, k: int) -> float:
  start = time.thread_time()
  minerva.maj_at_k(counts, correct, SAMPLES - sum(counts), k)
  return 1e3 * (time.thread_time() - start)


def row(name: str, k: int, *, rounds: int) -> dict[str, Any]:
  """Times of one profile, of the slowest of three classes."""
  counts = PROFILES[name]
  slowest: dict[str, Any] = {"ms": 0.0}
  for correct in {0, len(counts) // 2, len(counts) - 1}:
    _forget()
    first = _ms(counts, correct, k)
    times = [_ms(counts, correct, k) for _ in range(rounds)]
    middle = statistics.median(times)
    if middle > slowest["ms"]:
      slowest = {"ms": middle, "least_ms": min(times), "first_ms": first}
  return {"classes": name, "number": len(counts), "k": k, **slowest}


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the result file."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--rounds", type=int, default=200)
  args, start = parser.parse_args(argv), time.perf_counter()
  checks.positive_int("rounds", args.rounds)
  rows = [row(n, k, rounds=args.rounds) for n in PROFILES for k in VOTES]
  print(tables.render(rows))
  benches.save(
    args.results,
    "experiments.minerva.bench_voting",
    argv,
    rows,
    start=start,
    seeds=[],
    notes=(
      f"{SAMPLES} samples of a question; CPU milliseconds of maj_at_k, exact: "
      f"median and least of {args.rounds} calls, and the first one. Target: "
      f"{TARGET_MS:g} ms."
    ),
  )


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
