"""AP of true boxes after quantisation, against the number of bins.

  python -m experiments.pix2seq.bins --sets shapes bccd coco128 \\
    --results results/pix2seq/bins.json

Nothing is trained: the boxes of a test set are put into bins and taken out
again, and scored as detections. It is what a perfect model would reach.
Rounding is compared with truncation, as in the pseudo-code of the paper.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import commands
from experiments.pix2seq import sets
from experiments.pix2seq.configs import detection
from locojax.core import boxes as layouts
from locojax.core import checks
from locojax.methods import pix2seq
from locojax.methods.pix2seq import quantization
from locojax.report import curves, results, tables

BINS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def requantized(
  truth: Mapping[str, Any], sides: np.ndarray, num_bins: int, mode: str
) -> dict[str, np.ndarray]:
  """True boxes through the bins and back, as detections of score 1.

  Boxes that have no area any more are left out.

  Args:
    truth: columns of `coco_tables`.
    sides: `[boxes]`, pixels of the square canvas that each one's image is on.
    num_bins: of a coordinate.
    mode: of `pix2seq.quantize`.
  """
  sides = np.asarray(sides, np.float64)[:, None]
  shares = layouts.xywh_to_yxyx(truth["bbox"]) / sides
  q = pix2seq.quantize(np.clip(shares, 0, 1), num_bins, mode)
  boxes = np.asarray(pix2seq.dequantize(q, num_bins), np.float64) * sides
  keep = layouts.is_proper(boxes)
  return {
    "image_id": truth["image_id"][keep],
    "category_id": truth["category_id"][keep],
    "bbox": layouts.yxyx_to_xywh(boxes)[keep],
    "score": np.ones(int(keep.sum())),
  }


def _data(name: str, data_dir: str) -> dict[str, Any]:
  variant = {"bccd": "cells", "coco128": "coco128"}.get(name, "cpu")
  data = detection.get_config(variant).data.to_dict()
  return {**data, "data_dir": data_dir, "in_memory": False}


def measure(
  name: str, bins: Sequence[int], *, data_dir: str = ""
) -> list[dict[str, Any]]:
  """Rows of one set.

  Args:
    name: `shapes`, `bccd`, `coco128` or `coco`.
    bins: numbers of bins.
    data_dir: of prepared sets.
  """
  found = sets.load({**_data(name, data_dir), "name": name})
  truth = found.truth
  sizes = {int(e["image_id"]): max(e["size"]) for e in _annotations(found.test)}
  sides = np.array([sizes[i] for i in truth["image_id"].tolist()])
  rows = []
  for num in bins:
    row = {
      "set": name,
      "bins": num,
      "bins_per_pixel": num / float(np.mean(list(sizes.values()))),
      "boxes": len(sides),
    }
    for mode in quantization.MODES:
      boxes = requantized(truth, sides, num, mode)
      ap = pix2seq.coco_ap(truth, boxes)
      row |= {f"{mode}_{k}": ap[k] for k in ("AP", "AP50", "AP75")}
      row[f"{mode}_AP_small"] = ap["AP_small"]
    rows.append(row)
  return rows


def _annotations(source: Any):
  read = getattr(source, "annotation", source.__getitem__)
  return [read(i) for i in range(len(source))]


def figure(rows: Sequence[Mapping[str, Any]], path) -> pathlib.Path:
  """AP against bins, a curve for each set, rounded and truncated."""
  panels = [
    curves.Panel(
      key=f"{mode}_AP",
      title=f"coordinates are {word}",
      x_label="bins",
      y_label="AP of the true boxes",
      x_log=True,
      y_limits=(0, 1.02),
    )
    for mode, word in zip(quantization.MODES, ("rounded", "truncated"))
  ]
  names = list(dict.fromkeys(r["set"] for r in rows))
  data = {
    (name, i): curves.average(
      [
        (
          np.array([r["bins"] for r in rows if r["set"] == name], float),
          np.array([r[panel.key] for r in rows if r["set"] == name]),
        )
      ]
    )
    for name in names
    for i, panel in enumerate(panels)
  }
  return curves.draw(data, names, panels, path)


def main(argv: Sequence[str]) -> None:
  """Measures, prints the table and writes result file and figure."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  allowed = ("shapes", *sets.TFDS)
  parser.add_argument("--sets", nargs="+", default=["shapes"], choices=allowed)
  parser.add_argument("--bins", nargs="+", type=int, default=list(BINS))
  parser.add_argument("--data_dir", default="", help="of prepared sets")
  args, start = parser.parse_args(argv), time.perf_counter()
  for i, num in enumerate(args.bins):
    checks.int_in_range(f"--bins[{i}]", num, 2, quantization.MAX_BINS)
  rows = []
  for name in args.sets:
    rows += measure(name, args.bins, data_dir=args.data_dir)
  results.save(
    args.results,
    command=shlex.join(["python", "-m", "experiments.pix2seq.bins", *argv]),
    seeds=[],
    rows=rows,
    time_seconds=time.perf_counter() - start,
    notes="Exact: true boxes of the test sets as detections, after they went "
    "into bins of the square canvas around the image and back. Nothing is "
    "trained. bins per pixel: of the mean longer side.",
  )
  figure(rows, pathlib.Path(args.results).with_suffix(".png"))
  print(tables.render(rows, list(rows[0]), digits=3))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
