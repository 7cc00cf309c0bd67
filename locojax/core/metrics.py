"""Mergeable metrics: sums inside jit, the final value outside.

A metric is a `Mean`: a pair of a weighted sum and the sum of weights. Pairs of
several microbatches, devices or batches are merged by addition, so masked
examples count nowhere and unequal batches are weighed rightly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import arrays, checks
from locojax.core import labels as labels_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
  """A weighted sum and the sum of its weights, `[]` float32 or float64."""

  total: jax.Array
  weight: jax.Array

  def merge(self, other: Mean) -> Mean:
    """The mean over both sets of entries."""
    return Mean(self.total + other.total, self.weight + other.weight)

  def value(self) -> jax.Array:
    """The mean; NaN, with gradient 0, when nothing was counted."""
    return arrays.ratio(self.total, self.weight, jnp.nan)

  def loss(self) -> jax.Array:
    """The mean as a loss: 0, with gradient 0, when nothing was counted."""
    return arrays.ratio(self.total, self.weight, 0.0)


def mean(values: ArrayLike, mask: ArrayLike | None = None) -> Mean:
  """A masked (or weighted) mean.

  Args:
    values: `[...]` any real dtype.
    mask: weights, broadcast from the left to the shape of `values` (an
      `[batch]` mask serves `[batch, time]` values). None counts all.
      Masked values do not matter, not even NaN.

  Returns:
    A `Mean` in float32, or in float64 for float64 values.
  """
  values = arrays.as_float(values)
  if mask is None:
    return Mean(jnp.sum(values), jnp.asarray(values.size, values.dtype))
  mask = jnp.asarray(mask).astype(values.dtype)
  mask = jnp.broadcast_to(arrays.spread(mask, values.ndim), values.shape)
  total = jnp.sum(jnp.where(mask != 0, values, 0.0) * mask)
  return Mean(total, jnp.sum(mask))


def _hits(hits, bad, mask, dtype) -> Mean:
  return mean(labels_lib.spoil(hits.astype(arrays.wide(dtype)), bad), mask)


def accuracy(
  logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> Mean:
  """Top-1 accuracy.

  Args:
    logits: `[..., classes]`.
    labels: `[...]` integers in [0, classes); others are refused, or where they
      are traced make the total NaN (see `labels`).
    mask: `[...]`, or fewer leading axes.

  Returns:
    A `Mean` of hits.

  Raises:
    ValueError: a bad label, if labels and mask are concrete.
  """
  logits = jnp.asarray(logits)
  index, bad = labels_lib.check("labels", labels, logits.shape[-1], mask)
  return _hits(jnp.argmax(logits, axis=-1) == index, bad, mask, logits.dtype)


def top_k_accuracy(
  logits: ArrayLike,
  labels: ArrayLike,
  k: int,
  mask: ArrayLike | None = None,
) -> Mean:
  """Share of examples whose label is among the `k` largest logits.

  Args:
    logits, labels, mask: as for `accuracy`.
    k: in [1, classes].

  Raises:
    ValueError: a bad k; a bad label, if labels and mask are concrete.
  """
  logits = jnp.asarray(logits)
  checks.int_in_range("k", k, 1, logits.shape[-1])
  _, top = jax.lax.top_k(logits, k)
  index, bad = labels_lib.check("labels", labels, logits.shape[-1], mask)
  hits = jnp.any(top == index[..., None], axis=-1)
  return _hits(hits, bad, mask, logits.dtype)


def merge(
  first: Mapping[str, Mean], second: Mapping[str, Mean]
) -> dict[str, Mean]:
  """Merges two dicts of metrics, name by name."""
  if set(first) != set(second):
    raise ValueError(
      f"metrics of different names do not merge: {sorted(first)} and "
      f"{sorted(second)}."
    )
  return {name: first[name].merge(second[name]) for name in first}


def values(metrics: Mapping[str, Mean]) -> dict[str, float]:
  """Final values on the host."""
  fetched = jax.device_get(dict(metrics))
  out = {}
  for name, m in fetched.items():
    if isinstance(m, Mean):
      out[name] = float(m.total / m.weight) if m.weight else float("nan")
    else:
      out[name] = float(m)
  return out
