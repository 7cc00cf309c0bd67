"""What boxes and labels of images must be, wherever they come in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import boxes as layouts
from locojax.core import checks

_ROOM = 1e-3  # by which a box may leave the image, for rounding.


def objects(
  boxes: Any, labels: Any, valid: Any, *, num_classes: int | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Boxes, labels and mask as JAX arrays, looked at where they are known.

  Args:
    boxes: `[..., n, 4]` float, normalised yxyx.
    labels: `[..., n]` integers, 1 or more where valid.
    valid: `[..., n]` booleans: which are objects.
    num_classes: the largest label; None for any.

  Returns:
    float32, int32, bool; what is not valid is 0.

  Raises:
    ValueError: shapes that do not go together; among valid ones, NaN, boxes
      that are not normalised or end before they begin, and bad labels. Traced
      values are not looked at.
  """
  boxes = layouts.of_fours("boxes", boxes)
  shape = boxes.shape[:-1]
  labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
  valid = valid if isinstance(valid, jax.Array) else np.asarray(valid)
  checks.same_shape("labels", labels.shape, "boxes[..., 0]", shape)
  checks.same_shape("valid", valid.shape, "boxes[..., 0]", shape)
  if valid.dtype != bool:
    raise ValueError(
      f"valid has dtype {valid.dtype}, which is not allowed: it must be bool."
    )
  if not any(isinstance(a, jax.core.Tracer) for a in (boxes, labels, valid)):
    kept = np.asarray(valid)
    _check_boxes(np.asarray(boxes, np.float32)[kept])
    _check_labels(np.asarray(labels)[kept], num_classes)
  valid = jnp.asarray(valid)
  boxes = jnp.where(valid[..., None], jnp.asarray(boxes, jnp.float32), 0.0)
  labels = jnp.where(valid, checks.index_array("labels", labels), 0)
  return boxes, labels, valid


def _check_boxes(boxes: np.ndarray) -> None:
  if not boxes.size:
    return
  if not np.isfinite(boxes).all():
    bad = boxes[~np.isfinite(boxes).all(-1)][0]
    checks.refuse("boxes", bad.tolist(), "finite numbers")
  outside = ((boxes < -_ROOM) | (boxes > 1 + _ROOM)).any(-1)
  if outside.any():
    bad = boxes[outside][0].tolist()
    checks.refuse("boxes", bad, "normalised yxyx, in [0, 1]")
  turned = (boxes[..., :2] > boxes[..., 2:]).any(-1)
  if turned.any():
    bad = boxes[turned][0].tolist()
    checks.refuse("boxes", bad, "yxyx with ymin <= ymax and xmin <= xmax")


def _check_labels(labels: np.ndarray, num_classes: int | None) -> None:
  if labels.size and labels.dtype.kind not in "iu":
    raise ValueError(
      f"labels have dtype {labels.dtype}, which is not allowed: they must be "
      "integers."
    )
  high = np.inf if num_classes is None else num_classes
  bad = labels[(labels < 1) | (labels > high)]
  if bad.size:
    most = "1 or more" if num_classes is None else f"in [1, {num_classes}]"
    checks.refuse("labels", int(bad[0]), f"{most} (0 means no object)")


def key_of(key: jax.Array | None, why: str) -> jax.Array:
  """The key, or an error that says what it is needed for."""
  if key is None:
    checks.refuse("key", key, f"a JAX key: {why} is random")
  return key
