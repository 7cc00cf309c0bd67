"""Prints the privacy of a run: sensitivity, rho and eps.

  python -m experiments.dp_ftrl.statement
  python -m experiments.dp_ftrl.statement --rounds 1600 -k 1 -b 1 -z 1.13 \\
    --delta 1e-6
  python -m experiments.dp_ftrl.statement --ledger DIR/ledger.jsonl

Without arguments: the run of Google's blog post of 2022 (Spanish next-word
model, 2000 rounds, noise multiplier 7, at most 6 participations at least 314
rounds apart), next to the US census of 2020. With a ledger: what that run
released, by its realised participation; where its `result.json` lies beside it,
the ledger must be the one that the run ended with.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from experiments.dp_ftrl import record
from locojax.methods.dp_ftrl import accounting, sensitivity


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--rounds", type=int, default=2000)
  add("-k", "--max-participations", type=int, default=6)
  add("-b", "--min-sep", type=int, default=314, help="difference of rounds")
  add("-z", "--noise-multiplier", type=float, default=7.0)
  add("--delta", type=float, default=1e-10)
  add("--lengths", type=int, nargs="+", help="rounds of restarted trees")
  add("--completed", action="store_true", help="the trees were filled up")
  add("--ledger", help="a ledger file")
  add("--run-id", default="run")
  return parser


def _shown(value: Any) -> str:
  if isinstance(value, str):
    return value
  return f"{value:,d}" if isinstance(value, int) else f"{value:.6g}"


def _print(found: dict[str, Any]) -> None:
  for name, value in found.items():
    shown = _shown(value)
    print(f"  {name.replace('_', ' '):<22}{shown}")


def _tree(args) -> int:
  if args.lengths:
    return sensitivity.restarts(args.lengths, completed=args.completed)
  return sensitivity.tree(args.rounds, args.max_participations, args.min_sep)


def _of_ledger(args) -> None:
  try:
    book = record.read(pathlib.Path(args.ledger))
    found = book.statement(args.run_id, delta=args.delta)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  print(f"{args.ledger}, run {args.run_id!r}")
  _print(found)


def main(argv: list[str]) -> None:
  """Prints the statement; leaves with 2 if a ledger is not sound."""
  args = _parser().parse_args(argv)
  if args.ledger:
    _of_ledger(args)
    return
  squared = _tree(args)
  print(
    f"{args.rounds} rounds, each user in at most {args.max_participations}, at "
    f"least {args.min_sep} apart:"
    if not args.lengths
    else f"trees of {args.lengths} rounds, each user at most once in each:"
  )
  _print(
    accounting.statement(
      num_rounds=sum(args.lengths or [args.rounds]),
      squared_sensitivity=squared,
      noise_multiplier=args.noise_multiplier,
      delta=args.delta,
    )
  )
  most = sensitivity.feasible(args.rounds, args.rounds, args.min_sep)
  if not args.lengths and most > args.max_participations:
    more = sensitivity.tree(args.rounds, most, args.min_sep)
    rho = accounting.zcdp(more, args.noise_multiplier)
    print(
      f"By the separation alone {most} participations would fit: squared "
      f"sensitivity {more}, rho {rho:.4g}."
    )
  print(f"US census 2020: rho {accounting.US_CENSUS_2020_RHO}.")


if __name__ == "__main__":
  main(sys.argv[1:])
