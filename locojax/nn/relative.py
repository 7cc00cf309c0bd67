"""Relative positions as a bias of the attention scores, as T5 has them.

Raffel et al. 2020, arXiv 1910.10683, section 2.1.
Letters: B batch, T queries, S keys, H heads.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from locojax.core import checks


def _bounds(num: int, max_distance: int) -> np.ndarray:
  """The least distance of each bucket after the exact ones, but the first."""
  exact = num // 2
  ratio = max_distance / exact
  return np.array(
    [
      math.ceil(exact * ratio ** (j / (num - exact)) - 1e-9)
      for j in range(1, num - exact)
    ]
  )


def buckets(
  distances: jax.Array,
  *,
  bidirectional: bool,
  num_buckets: int = 32,
  max_distance: int = 128,
) -> jax.Array:
  """The bucket of each distance, of key minus query.

  Half of the buckets of a direction hold one distance each, the others grow by
  a constant factor up to `max_distance`, beyond which all share the last.

  Args:
    distances: integers of any shape.
    bidirectional: whether keys after the query have buckets of their own, the
      upper half; otherwise they share the one of distance 0.
    num_buckets: in all, an even number, 4 or more.
    max_distance: where the last bucket ends, more than half of the buckets.

  Returns:
    int32 in [0, num_buckets), of the shape of `distances`.

  Raises:
    ValueError: a setting.
  """
  checks.boolean("bidirectional", bidirectional)
  checks.int_in_range("num_buckets", num_buckets, 4, 2**20)
  checks.divisible("num_buckets", num_buckets, "directions", 2)
  num = num_buckets // 2 if bidirectional else num_buckets
  checks.int_in_range("max_distance", max_distance, num // 2 + 1, 2**31 - 1)
  distance = -distances
  first = jnp.zeros_like(distance)
  if bidirectional:
    first = jnp.where(distance < 0, num, 0)
    distance = jnp.abs(distance)
  distance = jnp.maximum(distance, 0)
  above = distance[..., None] >= jnp.asarray(_bounds(num, max_distance))
  bucket = jnp.minimum(distance, num // 2) + jnp.sum(above, axis=-1)
  return (first + bucket).astype(jnp.int32)


class RelativeBias(nn.Module):
  """A learned number for each head and bucket, one table for a whole stack.

  Attributes:
    num_heads: H.
    bidirectional, num_buckets, max_distance: as in `buckets`.
    embedding_init: initialiser of the table `[num_buckets, H]`.
  """

  num_heads: int
  bidirectional: bool = True
  num_buckets: int = 32
  max_distance: int = 128
  embedding_init: Any = nn.initializers.normal(1.0)

  @nn.compact
  def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Positions `[B, T]` and `[B, S]` (or of one row) to `[B, H, T, S]`."""
    checks.positive_int("num_heads", self.num_heads)
    shape = (self.num_buckets, self.num_heads)
    table = self.param("embedding", self.embedding_init, shape)
    found = buckets(
      keys[:, None, :] - queries[:, :, None],
      bidirectional=self.bidirectional,
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
    )
    return jnp.moveaxis(table[found], -1, 1)
