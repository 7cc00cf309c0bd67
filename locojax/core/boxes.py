"""Boxes in the layouts that people write them in.

This library keeps boxes as `yxyx`: (ymin, xmin, ymax, xmax). Other layouts are
named in full: `xyxy`, `xywh` (COCO: left, top, width, height) and `cxcywh`
(YOLO, DETR: centre and size). Functions keep pixels or shares as they are, and
return NumPy for NumPy, JAX for JAX.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def of_fours(name: str, boxes: Any) -> Any:
  """The boxes as an array `[..., 4]`.

  Raises:
    ValueError: another last size.
  """
  if not isinstance(boxes, jax.Array):
    boxes = np.asarray(boxes)
  if boxes.ndim < 1 or boxes.shape[-1] != 4:
    raise ValueError(
      f"{name} of shape {tuple(boxes.shape)} is not allowed: it must be "
      "[..., 4]."
    )
  return boxes


def _columns(boxes: Any) -> tuple[Any, ...]:
  boxes = of_fours("boxes", boxes)
  return tuple(boxes[..., i] for i in range(4))


def _stacked(*columns: Any) -> Any:
  numpy = jnp if isinstance(columns[0], jax.Array) else np
  return numpy.stack(columns, axis=-1)


def yxyx_to_xyxy(boxes: Any) -> Any:
  """`[..., 4]`: the axes change places; the other way is the same."""
  top, left, bottom, right = _columns(boxes)
  return _stacked(left, top, right, bottom)


xyxy_to_yxyx = yxyx_to_xyxy


def yxyx_to_xywh(boxes: Any) -> Any:
  """`[..., 4]`: corners to (left, top, width, height).

  >>> yxyx_to_xywh(np.array([1, 2, 4, 8])).tolist()
  [2, 1, 6, 3]
  """
  top, left, bottom, right = _columns(boxes)
  return _stacked(left, top, right - left, bottom - top)


def xywh_to_yxyx(boxes: Any) -> Any:
  """`[..., 4]`: (left, top, width, height) to corners."""
  left, top, width, height = _columns(boxes)
  return _stacked(top, left, top + height, left + width)


def xyxy_to_xywh(boxes: Any) -> Any:
  """`[..., 4]`: (left, top, right, bottom) to (left, top, width, height)."""
  return yxyx_to_xywh(xyxy_to_yxyx(boxes))


def xywh_to_xyxy(boxes: Any) -> Any:
  """`[..., 4]`: (left, top, width, height) to (left, top, right, bottom)."""
  return yxyx_to_xyxy(xywh_to_yxyx(boxes))


def yxyx_to_cxcywh(boxes: Any) -> Any:
  """`[..., 4]`: corners to (centre x, centre y, width, height)."""
  top, left, bottom, right = _columns(boxes)
  middle = ((left + right) / 2, (top + bottom) / 2)
  return _stacked(*middle, right - left, bottom - top)


def cxcywh_to_yxyx(boxes: Any) -> Any:
  """`[..., 4]`: (centre x, centre y, width, height) to corners."""
  x, y, width, height = _columns(boxes)
  return _stacked(y - height / 2, x - width / 2, y + height / 2, x + width / 2)


def is_proper(boxes: Any) -> Any:
  """Whether boxes `[..., 4]`, yxyx, have a height and a width above 0."""
  top, left, bottom, right = _columns(boxes)
  return (bottom > top) & (right > left)
