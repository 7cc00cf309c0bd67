"""Integer labels, and the one rule for those that are no class.

A label is bad if it is no integer in [0, number of classes).

  at hand   Where labels and mask are concrete, a bad label is a `ValueError`
            that names the argument, the label and the range.
  traced    Under `jit` and other transformations nothing can be raised: the
            value of the example is NaN, and so is its gradient, and what is
            averaged over it. It never counts as another class.
  removed   A label under a mask (or of weight 0) is not looked at.

Every loss and metric of this library that takes integer labels follows it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks


class Checked(NamedTuple):
  """Labels that may serve as indices.

  Attributes:
    index: `[...]` int32 in [0, number of classes); 0 where the label is bad or
      removed.
    bad: `[...]` bool, where a traced label is bad and not removed.
  """

  index: jax.Array
  bad: jax.Array


def check(
  name: str,
  labels: ArrayLike,
  num_classes: int,
  mask: ArrayLike | None = None,
) -> Checked:
  """Labels by the rule at the head of this file.

  Args:
    name: of the argument.
    labels: `[...]` integers; booleans and whole floats count as such.
    num_classes: how many classes there are.
    mask: of the leading axes, zero at what is removed; None keeps all.

  Returns:
    The labels, and which of them are bad: give these to `spoil`.

  Raises:
    ValueError: a bad label, if labels and mask are concrete.
  """
  checks.positive_int("num_classes", num_classes)
  if arrays.is_concrete(labels, mask):
    _refuse(name, np.asarray(labels), num_classes, mask)
  labels = _integers(name, labels, num_classes)
  good = (labels >= 0) & (labels < num_classes)
  bad = ~good if mask is None else ~good & (arrays.spread(mask, good.ndim) != 0)
  return Checked(jnp.where(good, labels, 0), bad)


def _integers(name: str, labels: ArrayLike, num_classes: int) -> jax.Array:
  """Int32 labels; what is no integer becomes `num_classes`."""
  if not isinstance(labels, jax.Array):
    labels = np.asarray(labels)
    if labels.dtype.kind in "iu":  # Removed ones may be beyond any dtype.
      return jnp.asarray(np.clip(labels, -1, num_classes).astype(np.int32))
    labels = jnp.asarray(labels)
  if labels.dtype == jnp.bool_:
    return labels.astype(jnp.int32)
  if jnp.issubdtype(labels.dtype, jnp.floating):
    whole = (labels == jnp.floor(labels)) & (labels >= 0)
    whole &= labels < num_classes
    return jnp.where(whole, labels, num_classes).astype(jnp.int32)
  return checks.index_array(name, labels)


def _refuse(name: str, labels: np.ndarray, num_classes: int, mask) -> None:
  if labels.dtype == bool:
    labels = labels.astype(np.int32)
  good = (labels >= 0) & (labels < num_classes)
  if labels.dtype.kind not in "iu":
    good &= np.where(good, labels, 0) == np.floor(np.where(good, labels, 0))
  if mask is not None:
    mask = np.asarray(mask)
    good |= mask.reshape(mask.shape + (1,) * (good.ndim - mask.ndim)) == 0
  if not good.all():
    raise ValueError(
      f"{name} holds {labels[~good][0]}, which is not allowed: with "
      f"{num_classes} classes labels must be integers in [0, "
      f"{num_classes - 1}]."
    )


def spoil(values: jax.Array, bad: jax.Array) -> jax.Array:
  """`values`, NaN where a label is bad, with a gradient of NaN there.

  Args:
    values: `[...]` floats.
    bad: of the leading axes of `values`.
  """
  bad = arrays.spread(bad, values.ndim)
  factor = jnp.where(bad, jnp.nan, 1.0).astype(values.dtype)
  # The product is for the gradient. Alone it is not enough for values: XLA
  # makes a choice of the product of a converted boolean, and 0 of 0 times NaN.
  return jnp.where(bad, jnp.nan, values * factor)


def cross_entropy(
  logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> jax.Array:
  """Softmax cross-entropy of integer labels, example by example.

  Args:
    logits: `[..., classes]`, any real dtype; computed in float32 at least.
    labels: `[...]` integers in [0, classes); others are refused, or where they
      are traced give NaN.
    mask: of the leading axes; what it removes is 0, with gradient 0.

  Returns:
    `[...]` float32 or float64.

  Raises:
    ValueError: a bad label, if labels and mask are concrete.

  >>> round(float(cross_entropy([0.0, 0.0], 1)), 4)
  0.6931
  """
  logits = arrays.kept(arrays.as_float(logits), mask)
  checks.same_shape("labels", np.shape(labels), "logits", logits.shape[:-1])
  index, bad = check("labels", labels, logits.shape[-1], mask)
  own = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
  each = spoil(jax.nn.logsumexp(logits, axis=-1) - own, bad)
  return arrays.kept(each, mask)
