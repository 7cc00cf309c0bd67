"""What the activations share: dtypes, checks of parameters, infinities."""

from __future__ import annotations

import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks

# The backward pass keeps the input alone and recomputes the rest. Without the
# barrier against merging, XLA keeps what the forward pass computed as well.
keep_input = jax.checkpoint


def floating(x: ArrayLike) -> jax.Array:
  """An array of a real floating dtype; the own one, if it is one."""
  x = jnp.asarray(x)
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    raise ValueError(f"x of dtype {x.dtype} is not allowed: it must be real.")
  return x.astype(jnp.result_type(x, float))


wide = arrays.wide


def parameter(name, value, x, *, zero=False):
  """A positive number (or zero), or an array with NaN where it is not."""
  dtype = wide(x.dtype)
  if isinstance(value, numbers.Real):
    check = checks.nonnegative if zero else checks.positive
    return np.asarray(check(name, value), dtype)
  value = jnp.asarray(value, dtype)
  return jnp.where(value >= 0 if zero else value > 0, value, jnp.nan)


def slope(name, value, x):
  """Any finite number, or an array."""
  if isinstance(value, numbers.Real):
    checks.in_range(name, value, *bounds(np.float64))
  return jnp.asarray(value, wide(x.dtype))


def bounds(dtype) -> tuple[float, float]:
  return float(jnp.finfo(dtype).min), float(jnp.finfo(dtype).max)


def is_number(value, number) -> bool:
  return isinstance(value, numbers.Real) and value == number


def times(g, v):
  """g v, with 0 inf = 0."""
  return jnp.where((g == 0) & jnp.isinf(v), 0, g * v)
