"""Other evaluators of COCO's numbers, and made detections to hold against them.

The evaluators are pycocotools and faster-coco-eval (the `test` extra).
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

NAMES = (
  *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
  *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
HELP = "the other evaluators need: pip install 'locojax[test]'"
_SIDE = 600


def twelve(found: dict[str, Any]) -> np.ndarray:
  """The numbers of `coco_ap` in the order of the other evaluators."""
  return np.array([found[name] for name in NAMES])


def _boxes(rng, num: int) -> np.ndarray:
  """xywh, 4 to 200 pixels wide and high."""
  size = np.exp(rng.uniform(1.5, 5.3, (num, 2)))
  return np.concatenate([rng.uniform(0, _SIDE / 2, (num, 2)), size], axis=1)


def made(
  seed: int,
  *,
  images: int = 12,
  dets: int = 15,
  classes: int = 3,
  objects: int = 6,
  crowd: float = 0.0,
  grid: float = 0.0,
  odd_area: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """True boxes, and detections of which most are near one of them.

  Args:
    seed: of everything.
    images, classes: how many.
    dets: of an image.
    objects: of an image, 0 to this.
    crowd: probability that an object is a crowd.
    grid: boxes on a grid of this many pixels, and scores on tenths, have ties;
      0 for none.
    odd_area: areas are of masks, smaller than the boxes.

  Returns:
    COCO's dict and COCO's list of results.
  """
  rng = np.random.default_rng(seed)
  snap = lambda b: np.round(b / grid) * grid if grid else b
  number = rng.integers(0, objects + 1, images)
  first = np.cumsum(number) - number
  category = 10 * rng.integers(1, classes + 1, number.sum())
  true = snap(_boxes(rng, number.sum()))
  area = true[:, 2] * true[:, 3]
  area *= rng.uniform(0.2, 1, len(area)) if odd_area else 1.0
  image = np.repeat(np.arange(images), dets)
  found = _boxes(rng, len(image))
  own = 10 * rng.integers(1, classes + 1, len(image))
  near = (rng.random(len(image)) < 0.6) & (number[image] > 0)
  near_image = image[near]
  pick = (rng.random(len(near_image)) * number[near_image]).astype(int)
  one = first[near_image] + pick
  shift = rng.normal(0, 0.06, (len(one), 4)) * np.tile(true[one, 2:], (1, 2))
  found[near], own[near] = true[one] + shift, category[one]
  found[:, 2:] = abs(found[:, 2:])
  scores = rng.random(len(image))
  annotations = {
    "id": np.arange(1, len(true) + 1),
    "image_id": np.repeat(np.arange(1, images + 1), number),
    "category_id": category,
    "bbox": true,
    "area": area,
    "iscrowd": (rng.random(len(true)) < crowd).astype(int),
  }
  results = {
    "image_id": image + 1,
    "category_id": own,
    "bbox": snap(found),
    "score": scores.round(1) if grid else scores,
  }
  truth = {
    "images": [
      {"id": i + 1, "width": _SIDE, "height": _SIDE} for i in range(images)
    ],
    "annotations": _rows(annotations),
    "categories": [
      {"id": 10 * c, "name": f"c{c}"} for c in range(1, classes + 1)
    ],
  }
  return truth, _rows(results)


def _rows(columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
  lists = [column.tolist() for column in columns.values()]
  return [dict(zip(columns, values)) for values in zip(*lists)]


def quiet():
  """Other evaluators print; here they do not."""
  return contextlib.redirect_stdout(io.StringIO())


def load_pycocotools(truth: dict, results: list) -> tuple[Any, Any]:
  """True boxes and detections as pycocotools holds them; it changes them."""
  try:
    from pycocotools import coco
  except ImportError as e:
    raise ImportError(HELP) from e
  with quiet():
    gt = coco.COCO()
    gt.dataset = truth
    gt.createIndex()
    return gt, gt.loadRes(results)


def run_pycocotools(gt: Any, found: Any) -> Any:
  """COCOeval, evaluated: `stats` are the twelve numbers, `eval` the curves."""
  from pycocotools import cocoeval

  return _run(cocoeval.COCOeval, gt, found)


def load_faster(truth: dict, results: list) -> tuple[Any, Any]:
  """Those of faster-coco-eval, which changes them as well."""
  try:
    import faster_coco_eval as faster
  except ImportError as e:
    raise ImportError(HELP) from e
  with quiet():
    gt = faster.COCO(truth)
    return gt, gt.loadRes(results)


def run_faster(gt: Any, found: Any) -> Any:
  """COCOeval_faster, evaluated; the first twelve of `stats` are the numbers."""
  import faster_coco_eval as faster

  return _run(faster.COCOeval_faster, gt, found)


def _run(evaluator, gt: Any, found: Any) -> Any:
  with quiet():
    run = evaluator(gt, found, "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
  return run
