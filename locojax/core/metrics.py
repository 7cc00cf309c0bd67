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

from locojax.core import checks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
  """A weighted sum and the sum of its weights, both `[]` float32."""

  total: jax.Array
  weight: jax.Array

  def merge(self, other: Mean) -> Mean:
    """The mean over both sets of entries."""
    return Mean(self.total + other.total, self.weight + other.weight)

  def value(self) -> jax.Array:
    """The mean; NaN when nothing was counted."""
    return self.total / self.weight


def mean(values: ArrayLike, mask: ArrayLike | None = None) -> Mean:
  """A masked (or weighted) mean.

  Args:
    values: `[...]` any real dtype.
    mask: weights, broadcast from the left to the shape of `values` (an
      `[batch]` mask serves `[batch, time]` values). None counts all.
      Masked values do not matter, not even NaN.

  Returns:
    A `Mean` in float32.
  """
  values = jnp.asarray(values).astype(jnp.float32)
  if mask is None:
    return Mean(jnp.sum(values), jnp.float32(values.size))
  mask = jnp.asarray(mask).astype(jnp.float32)
  mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
  mask = jnp.broadcast_to(mask, values.shape)
  total = jnp.sum(jnp.where(mask != 0, values, 0.0) * mask)
  return Mean(total, jnp.sum(mask))


def accuracy(
  logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> Mean:
  """Top-1 accuracy.

  Args:
    logits: `[..., classes]`.
    labels: `[...]` integer class indices.
    mask: `[...]`, or fewer leading axes.

  Returns:
    A `Mean` of hits; a class index outside the classes never hits.
  """
  return mean(
    jnp.argmax(logits, axis=-1) == checks.array("labels", labels), mask
  )


def top_k_accuracy(
  logits: ArrayLike,
  labels: ArrayLike,
  k: int,
  mask: ArrayLike | None = None,
) -> Mean:
  """Share of examples whose label is among the `k` largest logits."""
  _, top = jax.lax.top_k(jnp.asarray(logits), k)
  labels = checks.array("labels", labels)
  return mean(jnp.any(top == labels[..., None], axis=-1), mask)


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
