"""Rows of a matrix by index, whose gradient is a gather as well."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def gather(x, there, index, back_there, back_index):
  """`where(there, x[index], 0)`; the gradient is a gather as well.

  Args:
    x: `[A, D]`.
    there, index: `[B]`: each row of x is taken at most K times.
    back_there, back_index: `[A, K]`: where in the result.
  """
  del back_there, back_index
  return jnp.where(there[:, None], x[jnp.where(there, index, 0)], 0)


def _forward(x, there, index, back_there, back_index):
  out = gather(x, there, index, back_there, back_index)
  return out, (back_there, back_index)


def _backward(kept, g):
  back_there, back_index = kept
  total = None
  for k in range(back_there.shape[1]):
    there = back_there[:, k]
    rows = g[jnp.where(there, back_index[:, k], 0)]
    rows = jnp.where(there[:, None], rows, 0)
    total = rows if total is None else total + rows
  return total, None, None, None, None


gather.defvjp(_forward, _backward)
