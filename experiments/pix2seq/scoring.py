"""Detections of a whole set of images, and their score: no image is lost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from locojax.core import boxes as layouts
from locojax.data import box_transforms, pipeline
from locojax.methods import pix2seq

NUMBERS = (
  *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
  *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
# Of `pix2seq.THRESHOLDS`.
_AT = {"50": 0, "75": 5}


class Found(NamedTuple):
  """What a detector says of a batch, in its slots.

  Attributes:
    boxes: `[B, N, 4]` yxyx, shares of the canvas.
    classes: `[B, N]` labels from 1.
    scores: `[B, N]`.
    said: `[B, N]` bool, false where there is nothing.
    tokens: `[B, T]`, or `[B, 0]` where there are none.
  """

  boxes: Any
  classes: Any
  scores: Any
  said: Any
  tokens: Any


# {"image" [B, S, S, 3] uint8, "row" [B] position in the set} -> Found
Detector = Callable[[Mapping[str, np.ndarray]], Found]


class Numbered:
  """Examples for evaluation: fitted into the canvas, with their position."""

  def __init__(self, source: Any, image_size: int):
    self._source = source
    size = (image_size, image_size)
    self._fit = box_transforms.chain(
      functools.partial(box_transforms.resize_to_fit, size=size),
      functools.partial(box_transforms.pad, size=size),
    )

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self._fit(self._source[index])
    keys = ("image", "size", "unpadded")
    return {k: example[k] for k in keys} | {"row": np.int32(index)}


def first(config, source: Any) -> dict[str, np.ndarray]:
  """The first batch of evaluation of a run, its filling too."""
  numbered = Numbered(source, config.data.image_size)
  batches = pipeline.padded_batches(numbered, config.eval_batch_size)
  return next(iter(batches))


def _rows(batch: Mapping[str, Any], found: Found, keep: np.ndarray):
  """Position, label, score and xywh in pixels of what is said of a batch."""
  sides = batch["image"].shape[1:3]
  boxes = np.asarray(
    pix2seq.rescale_boxes(
      np.asarray(found.boxes)[keep],
      canvas=np.array(sides),
      unpadded=batch["unpadded"][keep],
      original=batch["size"][keep],
    ),
    np.float64,
  )
  said = np.asarray(found.said)[keep] & layouts.is_proper(boxes)
  row = np.broadcast_to(batch["row"][keep][:, None], said.shape)
  return {
    "row": row[said],
    "label": np.asarray(found.classes)[keep][said],
    "score": np.asarray(found.scores, np.float64)[keep][said],
    "bbox": layouts.yxyx_to_xywh(boxes[said]),
  }


def detections(
  detect: Detector,
  source: Any,
  image_ids: np.ndarray,
  category_ids: np.ndarray,
  *,
  image_size: int,
  batch_size: int,
) -> dict[str, np.ndarray]:
  """All detections of a set as columns of `coco_tables`.

  The last batch is filled up, and what is said of the filling left out; so are
  boxes without area and labels that the data set does not have.

  Args:
    detect: the detector.
    source: examples of `locojax.data.boxes`; their boxes are not looked at.
    image_ids: `[images]`, in the order of the source.
    category_ids: `[classes]`; label l is `category_ids[l - 1]`.
    image_size: side of the canvas.
    batch_size: images of a batch.
  """
  parts = []
  numbered = Numbered(source, image_size)
  for batch in pipeline.padded_batches(numbered, batch_size=batch_size):
    keep = batch.pop("mask") != 0
    found = detect({k: batch[k] for k in ("image", "row")})
    parts.append(_rows(batch, found, keep))
  joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  known = joined["label"] <= len(category_ids)
  joined = {k: v[known] for k, v in joined.items()}
  return {
    "image_id": np.asarray(image_ids)[joined["row"]],
    "category_id": np.asarray(category_ids)[joined["label"] - 1],
    "bbox": joined["bbox"],
    "score": joined["score"],
  }


def score(
  truth: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, float]:
  """The twelve COCO numbers that there are: -1 is left out.

  Args:
    truth: columns of true boxes.
    found: columns of detections.
  """
  numbers = pix2seq.coco_ap(truth, found)
  return {k: float(numbers[k]) for k in NUMBERS if numbers[k] >= 0}


def curves(
  truth: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, list[float]]:
  """Precision at `pix2seq.RECALLS`, a mean over the classes that occur.

  Returns:
    `50` and `75`, by the threshold of the overlap in %.
  """
  precision = pix2seq.evaluate(truth, found).precision[..., 0]
  occurs = (precision >= 0).all(axis=(0, 1))
  if not occurs.any():
    return {name: [0.0] * len(pix2seq.RECALLS) for name in _AT}
  mean = precision[..., occurs].mean(axis=-1)
  return {name: mean[i].tolist() for name, i in _AT.items()}
