"""Exact tree sensitivity: ours against TensorFlow Privacy's recursion.

  python -m venv PEER && PEER/bin/pip install --no-deps tensorflow-privacy \\
    dp-accounting==0.4.3
  PEER/bin/pip install absl-py attrs dm-tree mpmath numpy scipy
  python -m experiments.dp_ftrl.bench_accountant --peer PEER/bin/python \\
    --results FILE.json

Both answer the same questions (rounds, max participations, minimum separation)
in fresh processes; import time is not counted. The peer keeps its answers of
one process, so it is asked each question once. Its accountant runs without
TensorFlow.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from typing import Any

import numpy as np

from experiments.common import timing
from locojax.report import results, tables

# (rounds, k, b); b as the difference of rounds. The last: the production run.
CASES = ((128, 4, 32), (256, 4, 64), (512, 4, 128), (2000, 6, 314))
_OURS = """
import json, sys, time
from locojax.methods.dp_ftrl import sensitivity
start = time.perf_counter()
found = sensitivity.tree(*map(int, sys.argv[1:]))
print(json.dumps([found, time.perf_counter() - start]))
"""
_PEER = """
import json, sys, time
sys.skip_tf_privacy_import = True
from tensorflow_privacy.privacy.analysis import tree_aggregation_accountant as a
rounds, k, b = map(int, sys.argv[1:])
start = time.perf_counter()
rho = a.compute_zcdp_single_tree(1.0, rounds, k, b - 1)
print(json.dumps([2 * rho, time.perf_counter() - start]))
"""
COLUMNS = {
  "rounds": "rounds",
  "k": "k",
  "b": "b",
  "ours": "zeta^2",
  "peer": "TensorFlow Privacy",
  "seconds": "seconds",
  "peer_seconds": "its seconds",
  "ratio": "ratio",
}


def _ask(python: str, code: str, case, limit: float | None = None):
  """Answer and seconds, or None and the limit."""
  command = [python, "-c", code, *map(str, case)]
  try:
    done = subprocess.run(
      command, capture_output=True, text=True, timeout=limit, check=True
    )
  except subprocess.TimeoutExpired:
    return None, limit
  return json.loads(done.stdout.splitlines()[-1])


def run(peer: str, *, repeats: int, limit: float) -> list[dict[str, Any]]:
  """A row for each case; ours is the median of some fresh processes."""
  rows = []
  for case in CASES:
    own = [_ask(sys.executable, _OURS, case) for _ in range(repeats)]
    other, seconds = _ask(peer, _PEER, case, limit)
    ours = float(np.median([s for _, s in own]))
    rows.append(
      {
        **dict(zip(("rounds", "k", "b"), case)),
        "ours": own[0][0],
        "peer": other,
        "seconds": ours,
        "peer_seconds": seconds,
        "ratio": seconds / ours,
        "peer_finished": other is not None,
      }
    )
    print(tables.render(rows[-1:], COLUMNS), flush=True)
  return rows


def main(argv: list[str]) -> None:
  """Measures, prints the table, and writes the result file."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", help="result file to write")
  parser.add_argument("--peer", required=True, help="its Python")
  parser.add_argument("--limit", type=float, default=1800.0, help="seconds")
  args, start = parser.parse_args(argv), time.perf_counter()
  rows = run(args.peer, repeats=3, limit=args.limit)
  if args.results:
    shown = ["--peer", "PEER/bin/python", "--results", args.results]
    results.save(
      args.results,
      command="python -m experiments.dp_ftrl.bench_accountant "
      + shlex.join(shown),
      seeds=[],
      rows=rows,
      time_seconds=time.perf_counter() - start,
      device=timing.device_name(),
      notes=(
        "squared sensitivity of one tree; a peer that is not done after "
        f"{args.limit:g} s has that time and no answer, its ratio then is a "
        "lower bound."
      ),
    )
  print(tables.render(rows, COLUMNS))


if __name__ == "__main__":
  main(sys.argv[1:])
