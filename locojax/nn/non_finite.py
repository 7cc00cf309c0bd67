"""Vectors that are not finite, and zeros in their place.

Products with a weight of 0 are 0 only then, and so are their gradients.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _zeros_where(x: jax.Array, bad: jax.Array) -> jax.Array:
  return jnp.where(bad[..., None], jnp.zeros((), x.dtype), x)


def _found(x: jax.Array) -> jax.Array:
  return ~jnp.all(jnp.isfinite(x), axis=-1)


def cleaned(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`[..., D]` with zeros for vectors that are not finite; `[...]` where."""
  bad = _found(x)
  return _zeros_where(x, bad), bad


def cleaned_pairs(
  key: jax.Array, value: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Zeros in place of keys and values of which one is not finite.

  Args:
    key, value: `[..., D]`.

  Returns:
    `(key, value, bad)`; bad is `[...]` bool, true where zeros stand in.
  """
  bad = _found(key) | _found(value)
  return _zeros_where(key, bad), _zeros_where(value, bad), bad
