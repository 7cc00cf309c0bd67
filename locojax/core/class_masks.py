"""Logits of some classes only, and the cross-entropy among them.

For streams of tasks, each with some classes: while one is trained, logits of
all other classes are minus infinity, and their gradient is exactly zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks
from locojax.core import labels as labels_lib


def class_mask(classes: ArrayLike, num_classes: int) -> jax.Array:
  """Classes by their ids, or as the mask that they are, to a mask.

  Args:
    classes: `[k]` integers, ids of classes in any order; or `[..., C]` bool,
      true at classes that count.
    num_classes: C.

  Returns:
    `[C]` bool for ids, else the mask itself.

  Raises:
    ValueError: no class, an id outside [0, C), a mask of another length; in
      traced values the shape alone is seen, and an id outside hits no class.

  >>> class_mask([2, 0], 4).tolist()
  [True, False, True, False]
  """
  checks.positive_int("num_classes", num_classes)
  if arrays.is_concrete(classes):
    _check_classes(np.asarray(classes), num_classes)
  if jnp.asarray(classes).dtype == bool:
    mask = jnp.asarray(classes)
    if not mask.ndim or mask.shape[-1] != num_classes:
      raise ValueError(
        f"classes has shape {mask.shape}: a mask must be [..., {num_classes}]."
      )
    return mask
  ids = checks.index_array("classes", classes)
  return jnp.any(ids[:, None] == jnp.arange(num_classes), axis=0)


def _check_classes(classes: np.ndarray, num_classes: int) -> None:
  """The values of classes that are known."""
  if not classes.size or (classes.dtype == bool and not _all_rows(classes)):
    raise ValueError(
      f"classes has shape {classes.shape} and names no class: each row of it "
      "must have one or more."
    )
  if classes.dtype == bool:
    return
  if classes.dtype.kind not in "iu" or classes.ndim != 1:
    raise ValueError(
      f"classes has dtype {classes.dtype} and shape {classes.shape}: it must "
      "be [k] integers or a mask of bool."
    )
  wrong = classes[(classes < 0) | (classes >= num_classes)]
  if wrong.size:
    raise ValueError(
      f"classes has ids {wrong.tolist()}, which are not allowed: they must be "
      f"in [0, {num_classes - 1}]."
    )


def _all_rows(mask: np.ndarray) -> bool:
  return mask.ndim > 0 and bool(mask.any(axis=-1).all())


def mask_logits(logits: ArrayLike, classes: ArrayLike) -> jax.Array:
  """Logits with minus infinity at all classes but the given ones.

  The gradient of what is masked is exactly 0, so the columns of a linear head
  that belong to other classes stay as they are.

  Args:
    logits: `[..., C]`, a floating dtype, which is kept.
    classes: `[k]` ids, or a mask of bool that broadcasts to `[..., C]`.

  Raises:
    ValueError: as `class_mask`.

  >>> mask_logits([1.0, 2.0, 3.0], [0, 1]).tolist()
  [1.0, 2.0, -inf]
  """
  logits = jnp.asarray(logits)
  mask = class_mask(classes, logits.shape[-1])
  return jnp.where(mask, logits, jnp.array(-jnp.inf, logits.dtype))


def labels_inside(
  labels: ArrayLike, classes: ArrayLike | None, num_classes: int
) -> jax.Array:
  """Whether each label is one of the classes that count, `[...]` bool.

  Args:
    labels: `[...]` integers.
    classes: as for `mask_logits`; None stands for all.
    num_classes: C.

  Raises:
    ValueError: labels that are not integers, or classes as in `class_mask`.
  """
  labels = checks.index_array("labels", labels)
  inside = (labels >= 0) & (labels < num_classes)
  if classes is None:
    return inside
  mask = class_mask(classes, num_classes)
  mask = jnp.broadcast_to(mask, (*labels.shape, num_classes))
  safe = jnp.where(inside, labels, 0)
  return inside & jnp.take_along_axis(mask, safe[..., None], axis=-1)[..., 0]


def masked_cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  classes: ArrayLike | None = None,
  *,
  mask: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy among some classes, example by example.

  The label of a class that does not count would be an infinite loss. Where
  values are known (outside `jit`) it is an error; in traced code its loss is 0
  and the second result says so, to be counted. What is no class at all follows
  the rule of `labels`: an error, or NaN.

  Args:
    logits: `[..., C]`; computed in float32 or wider.
    labels: `[...]` integers. One-hot labels are refused: with masked logits
      they would give 0 * inf.
    classes: `[k]` ids, or bool that broadcasts to `[..., C]`; None: all.
    mask: `[...]`, zero at padding, whose labels may be anything.

  Returns:
    The losses `[...]`, and `[...]` bool: whether the label counts.

  Raises:
    ValueError: labels that are not integers or not of the logits' shape, a
      known label outside the classes, or classes as in `class_mask`.

  >>> losses, _ = masked_cross_entropy([[1.0, 2, 3, 0.5]], [1], [0, 1])
  >>> round(float(losses[0]), 6)
  0.313262
  """
  logits = arrays.as_float(logits)
  _check_labels(labels, logits.shape)
  num_classes = logits.shape[-1]
  found = labels_lib.check("labels", labels, num_classes, mask)
  inside = labels_inside(found.index, classes, num_classes)
  live = True if mask is None else jnp.asarray(mask) != 0
  _refuse_outside(labels, inside, live)
  counts = inside & live
  if classes is not None:
    logits = mask_logits(logits, classes)
  # Rows that do not count may have no class at all; their gradient is 0.
  logits = jnp.where(counts[..., None], logits, 0)
  log_p = jax.nn.log_softmax(logits, axis=-1)
  picked = jnp.take_along_axis(log_p, found.index[..., None], axis=-1)[..., 0]
  losses = jnp.where(counts, -picked, jnp.zeros_like(picked))
  return labels_lib.spoil(losses, found.bad), counts & ~found.bad


def _check_labels(labels, shape: tuple[int, ...]) -> None:
  labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
  if labels.shape == shape and len(shape) > 1:
    raise ValueError(
      f"labels has shape {labels.shape}, that of the logits: it must be "
      f"integers {shape[:-1]}; one-hot labels give 0 * inf under a mask."
    )
  checks.same_shape("labels", labels.shape, "logits[..., 0]", shape[:-1])
  checks.index_array("labels", labels)  # No floats, not even whole ones.


def _refuse_outside(labels, inside, live) -> None:
  """Raises for a label outside the classes, where all values are known."""
  wrong = live & ~inside
  if not arrays.is_concrete(wrong, labels) or not bool(jnp.any(wrong)):
    return
  found = np.unique(np.asarray(labels)[np.asarray(wrong)])
  raise ValueError(
    f"labels has {found[:8].tolist()}, which are not among the classes that "
    "count: their loss would be infinite."
  )
