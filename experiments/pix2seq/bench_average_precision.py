"""Time of COCO's average precision against pycocotools and faster-coco-eval.

  python -m experiments.pix2seq.bench_average_precision --results FILE.json

Made detections of about the size of COCO's val2017: 5,000 images, 100
detections each, 80 classes. In each round all evaluators take their turn, with
a copy of their own, and two times are taken:

  evaluation  from what they hold in memory (columns; their COCO objects)
  whole       from COCO's dict and list of results as JSON gives them

The twelve numbers are held against each other.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.metadata
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.common import benches, commands, timing
from experiments.pix2seq import coco_peers
from locojax.core import checks, coco_tables
from locojax.methods.pix2seq import average_precision
from locojax.report import tables

SEED = 0
OURS = "locojax"
# Of each: what it holds from COCO's dict and list, and the evaluation of that.
EVALUATORS: dict[str, tuple[Callable, Callable]] = {
  OURS: (
    lambda truth, dets: (
      coco_tables.true_boxes(truth),
      coco_tables.detections(dets),
    ),
    average_precision.coco_ap,
  ),
  "faster-coco-eval": (coco_peers.load_faster, coco_peers.run_faster),
  "pycocotools": (coco_peers.load_pycocotools, coco_peers.run_pycocotools),
}


def _numbers(name: str, found: Any) -> np.ndarray:
  if name == OURS:
    return coco_peers.twelve(found)
  return np.asarray(found.stats[:12], np.float64)


def visit(
  name: str, truth: dict, dets: list
) -> tuple[float, float, np.ndarray]:
  """Seconds of the evaluation and of the whole, and the twelve numbers."""
  load, run = EVALUATORS[name]
  given = copy.deepcopy((truth, dets))
  gc.collect()
  start = time.perf_counter()
  held = load(*given)
  middle = time.perf_counter()
  found = run(*held)
  end = time.perf_counter()
  return end - middle, end - start, _numbers(name, found)


def measure(
  *, images: int, dets: int, classes: int, num: int
) -> list[dict[str, Any]]:
  """One row for each evaluator.

  Args:
    images, dets, classes: images, detections of each one, classes.
    num: rounds, after a warm-up on few images.

  Returns:
    Rows with times in seconds, how many times the time of ours that is, and
    the largest difference of the twelve numbers to ours.
  """
  checks.positive_int("num", num)
  settings = dict(dets=dets, classes=classes, objects=14, crowd=0.02)
  few = coco_peers.made(SEED, images=min(images, 20), **settings)
  for name in EVALUATORS:
    visit(name, *few)
  truth, found = coco_peers.made(SEED, images=images, **settings)
  seconds = {w: {k: [] for k in EVALUATORS} for w in ("evaluation", "whole")}
  numbers, rng = {}, np.random.default_rng(SEED)
  for _ in range(num):
    for name in rng.permutation(list(EVALUATORS)).tolist():
      one, whole, numbers[name] = visit(name, truth, found)
      seconds["evaluation"][name].append(one)
      seconds["whole"][name].append(whole)
  boxes = {"true_boxes": len(truth["annotations"]), "detections": len(found)}
  return [_row(name, seconds, numbers) | boxes for name in EVALUATORS]


def _row(name: str, seconds: dict, numbers: dict) -> dict[str, Any]:
  row = {"evaluator": name, "version": importlib.metadata.version(name)}
  for what, taken in seconds.items():
    told = timing.summary(taken, name, reference=OURS)
    row[f"{what}_seconds"] = told["ms"] / 1e3
    row[f"{what}_least_seconds"] = told["least_ms"] / 1e3
    for key in ("ratio", "ratio_low", "ratio_high"):
      row[f"{what}_{key}"] = told[key]
  gap = float(np.abs(numbers[name] - numbers[OURS]).max())
  return row | {"AP": float(numbers[name][0]), "largest_difference": gap}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--images", type=int, default=5000)
  parser.add_argument("--dets", type=int, default=100)
  parser.add_argument("--classes", type=int, default=80)
  parser.add_argument("--rounds", type=int, default=3)
  return parser


def main(argv: list[str]) -> None:
  """Measures, prints the table and writes the result file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  rows = measure(
    images=args.images, dets=args.dets, classes=args.classes, num=args.rounds
  )
  benches.save(
    args.results,
    "experiments.pix2seq.bench_average_precision",
    argv,
    rows,
    start=start,
    seeds=[SEED],
    notes=(
      f"{args.images} images, {args.dets} detections each, {args.classes} "
      f"classes, made. Medians of {args.rounds} interleaved rounds after a "
      "warm-up; a ratio is the median of the ratios to locojax within a round, "
      "with quartiles. evaluation: from what the evaluator holds in memory; "
      "whole: from COCO's dict and list of results. faster-coco-eval is C++, "
      "pycocotools Python and C."
    ),
  )
  columns = [c for c in rows[0] if not c.endswith(("low", "high"))]
  print(tables.render(rows, columns))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
