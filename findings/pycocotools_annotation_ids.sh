#!/usr/bin/env bash
# Package:  pycocotools (COCOeval)
# Version:  pycocotools 2.0.11
# Expected: average precision 1 for detections that equal the ground truth,
#           whatever integers its annotations are numbered with.
# Happens:  the match of a detection is stored as the annotation's id and 0
#           stands for "no match", so what matches annotation 0 is a false
#           positive: AP 0.2525 with two objects, 0.5644 with four.
# Matters:  annotations written by enumerate() start at 0. On a large set the
#           loss is small enough to go unseen, and it depends on which object
#           comes first. Number from 1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'pycocotools==2.0.11' \
  'numpy==2.4.6'
cd "$work"
"$work/venv/bin/python" -I - <<'END'
import contextlib
import io
import sys
from importlib import metadata

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

BOX = [10, 10, 20, 20]


def average_precision(ids):
  """Of detections that equal the true boxes, one box an image."""
  truth = COCO()
  truth.dataset = {
    "images": [{"id": i, "width": 99, "height": 99} for i in range(len(ids))],
    "categories": [{"id": 1, "name": "thing"}],
    "annotations": [
      dict(id=k, image_id=i, category_id=1, bbox=BOX, area=400, iscrowd=0)
      for i, k in enumerate(ids)
    ],
  }
  found = np.array([[i, *BOX, 0.9 - 0.1 * i, 1] for i in range(len(ids))])
  with contextlib.redirect_stdout(io.StringIO()):
    truth.createIndex()
    run = COCOeval(truth, truth.loadRes(found), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
  return round(float(run.stats[0]), 4)


print(f"pycocotools {metadata.version('pycocotools')}: AP of perfect boxes")
found = {ids: average_precision(ids) for ids in ((1, 2), (0, 1), (0, 1, 2, 3))}
for ids, value in found.items():
  print(f"annotation ids {ids}: {value}")
if list(found.values()) != [1.0, 0.2525, 0.5644]:
  sys.exit("changed: an annotation with id 0 counts as found.")
print("so: the detection matched to annotation 0 is a false positive.")
END
