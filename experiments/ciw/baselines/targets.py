"""Labels of either kind as distributions over the classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import checks
from locojax.core import labels as labels_lib


def distributions(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
  """Labels as rows that sum to one, `[n, classes]` float32 or wider.

  Args:
    logits: `[n, classes]`; only the shape and dtype are used.
    labels: `[n]` class indices, or `[n, classes]` soft labels.

  Returns:
    One-hot rows, or the soft labels. An index outside the classes is refused,
    or where it is traced gives a row of NaN (`core.labels`).

  Raises:
    ValueError: shapes or dtypes that do not fit.

  >>> distributions(jnp.zeros((1, 3)), jnp.array([2])).tolist()
  [[0.0, 0.0, 1.0]]
  """
  logits, labels = jnp.asarray(logits), checks.array("labels", labels)
  if logits.ndim != 2:
    raise ValueError(
      f"logits of shape {logits.shape} are not allowed: they must be "
      "[n, classes]."
    )
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  if labels.shape == logits.shape:
    return labels.astype(dtype)
  if labels.shape != logits.shape[:1] or not jnp.issubdtype(
    labels.dtype, jnp.integer
  ):
    raise ValueError(
      f"labels of shape {labels.shape} and dtype {labels.dtype} are not "
      f"allowed: they must be [{logits.shape[0]}] class indices, or soft "
      f"labels of shape {logits.shape}."
    )
  index, bad = labels_lib.check("labels", labels, logits.shape[1])
  rows = jax.nn.one_hot(index, logits.shape[1], dtype=dtype)
  return labels_lib.spoil(rows, bad)


def log_probabilities(logits: ArrayLike) -> jax.Array:
  """Log-softmax over the last axis, in float32 or wider."""
  logits = jnp.asarray(logits)
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  return jax.nn.log_softmax(logits.astype(dtype), axis=-1)
