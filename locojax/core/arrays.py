"""Arrays of losses and metrics: their dtype, and what a mask removes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def is_concrete(*arrays) -> bool:
  """Whether all values are at hand: none is traced, none on another host."""
  for x in arrays:
    if isinstance(x, jax.core.Tracer):
      return False
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return False
  return True


def wide(dtype) -> np.dtype:
  """The dtype of a loss: float32, or float64 for float64."""
  return jnp.promote_types(dtype, jnp.float32)


def as_float(x: ArrayLike) -> jax.Array:
  """An array in float32, or in float64 if it is that."""
  x = jnp.asarray(x)
  return x.astype(wide(x.dtype))


def spread(mask: ArrayLike, ndim: int) -> jax.Array:
  """A mask of the leading axes, with axes of 1 behind them up to `ndim`."""
  mask = jnp.asarray(mask)
  return mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))


def kept(x: ArrayLike, mask: ArrayLike | None, fill: float = 0.0) -> jax.Array:
  """`x`, and `fill` where the mask is zero, whatever stood there.

  Before a computation, this makes masked mean removed: neither NaN nor infinity
  under the mask reaches a value, and no gradient reaches what is under it.

  Args:
    x: `[...]`.
    mask: of the leading axes of `x`, zero at what is removed; None keeps all.
    fill: a value at which all that follows is finite.
  """
  x = jnp.asarray(x)
  if mask is None:
    return x
  return jnp.where(spread(mask, x.ndim) != 0, x, jnp.asarray(fill, x.dtype))


def root(x: jax.Array) -> jax.Array:
  """The square root, whose gradient at 0 is 0 instead of infinite."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), x * 0.0)


def ratio(total: jax.Array, weight: jax.Array, empty: float) -> jax.Array:
  """`total / weight`, and `empty`, with gradient 0, where the weight is 0."""
  none = weight == 0
  return jnp.where(none, empty, total / jnp.where(none, 1.0, weight))
