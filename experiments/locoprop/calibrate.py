"""Holds our LocoProp-M against a logged run of the official code.

  python -m experiments.run --workdir runs/locoprop_notebook/seed_0 \\
    --config experiments/locoprop/configs/autoencoder.py:notebook \\
    --config.num_epochs=15
  python -m experiments.locoprop.calibrate runs/locoprop_notebook/seed_* \\
    --results results/locoprop/calibration.json

The run may be unfinished: the epochs it has are compared. The log is that of
`locoprop_training.ipynb` (MNIST, tanh, T = 10) as run in
dvruette/locoprop-torch.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from experiments.common import commands
from locojax.report import results, runs, tables

# epoch: (train loss, test loss)
LOG = {
  1: (547.24, 547.22),
  2: (122.69, 121.70),
  3: (80.72, 79.93),
  4: (69.61, 69.44),
  5: (65.24, 65.65),
  6: (62.85, 63.77),
  8: (60.19, 61.95),
  10: (58.72, 61.04),
  12: (57.76, 60.57),
  14: (57.02, 60.20),
}


def _by_epoch(run: runs.Run, name: str) -> dict[int, float]:
  data, batch = run.config["data"], run.config["batch_size"]
  per_epoch = -(-data["num_train"] // batch)
  x, y = runs.series(run, f"eval/{name}", x="epoch", steps_per_epoch=per_epoch)
  return {round(e): float(v) for e, v in zip(x, y, strict=True)}


def compare(folders: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
  """A row for each logged epoch that every run has: logged, ours, ratio."""
  found = [runs.load(f) for f in folders]
  train = [_by_epoch(r, "train_loss") for r in found]
  test = [_by_epoch(r, "test_loss") for r in found]
  rows = []
  for epoch, (logged_train, logged_test) in LOG.items():
    if not all(epoch in t for t in train):
      continue
    ours = [t[epoch] for t in train]
    rows.append(
      {
        "epoch": epoch,
        "train_logged": logged_train,
        "train": ours,
        "train_ratio": sum(ours) / len(ours) / logged_train,
        "test_logged": logged_test,
        "test": [t[epoch] for t in test],
      }
    )
  if not rows:
    raise ValueError(f"no run of {list(map(str, folders))} has a logged epoch.")
  return rows


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the comparison and writes the result file."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("runs", nargs="+", type=pathlib.Path)
  parser.add_argument("--results", default="")
  args = parser.parse_args(argv)
  rows = compare(args.runs)
  print(tables.render(rows, list(rows[0])))
  if args.results:
    found = [runs.load(f) for f in args.runs]
    results.save(
      args.results,
      command="python -m experiments.locoprop.calibrate "
      + shlex.join(sys.argv[1:] if argv is None else argv),
      seeds=[r.config["seed"] for r in found],
      rows=rows,
      time_seconds=sum(r.metrics[-1]["seconds"] for r in found),
    )


if __name__ == "__main__":
  sys.exit(commands.run(main))
