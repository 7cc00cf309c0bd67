"""Dense linear algebra that the second-order baselines share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax


def accumulator(dtype) -> jnp.dtype:
  """The dtype of statistics: float32, or float64 for float64 parameters."""
  return jnp.promote_types(jnp.float32, dtype)


def matmul(*factors: jax.Array) -> jax.Array:
  """The product of matrices, left to right, in full float32 precision."""
  out = factors[0]
  for factor in factors[1:]:
    out = jnp.matmul(out, factor, precision=jax.lax.Precision.HIGHEST)
  return out


def transpose(x: jax.Array) -> jax.Array:
  """Swaps the last two axes."""
  return jnp.swapaxes(x, -1, -2)


def is_absent(x) -> bool:
  """Whether a place in an optimiser state holds nothing."""
  return isinstance(x, optax.MaskedNode)


def as_matrix(x: jax.Array) -> jax.Array:
  """`[..., m, n]` with all but the last axis merged, in the accumulator."""
  return x.reshape(-1, x.shape[-1]).astype(accumulator(x.dtype))


def matrix_shape(shape: Sequence[int]) -> tuple[int, int] | None:
  """The shape of `as_matrix`, or None for scalars and vectors."""
  if len(shape) < 2:
    return None
  rows = 1
  for size in shape[:-1]:
    rows *= size
  return rows, shape[-1]


def batched(f: Callable, *columns: Sequence[jax.Array]) -> list:
  """Applies `f` once to every stack of equal shapes.

  One decomposition of a stack compiles faster, and on an accelerator runs
  faster, than one for every member.

  Args:
    f: a function of stacks `[members, ...]`, one for each column, which
      returns a tree of arrays with the same leading axis.
    *columns: equally long lists of arrays; row i is one problem.

  Returns:
    A list with the result of every row.
  """
  groups: dict[tuple, list[int]] = {}
  for i, row in enumerate(zip(*columns, strict=True)):
    groups.setdefault(tuple((x.shape, x.dtype) for x in row), []).append(i)
  out = [None] * len(columns[0])
  for members in groups.values():
    result = f(*(jnp.stack([c[i] for i in members]) for c in columns))
    for k, i in enumerate(members):
      out[i] = jax.tree.map(lambda r, k=k: r[k], result)
  return out


def matrix_power(stat: jax.Array, power: jax.Array, eps: float) -> jax.Array:
  """`(S + eps lambda_max(S) I)^power` by an eigendecomposition.

  Args:
    stat: `[members, n, n]` symmetric positive semidefinite.
    power: `[members]`.
    eps: ridge relative to the largest eigenvalue.

  Returns:
    `[members, n, n]`; the identity where `stat` is zero.
  """
  values, vectors = jnp.linalg.eigh(stat)
  largest = values[..., -1:]
  ridged = jnp.maximum(values, 0.0) + eps * largest
  ridged = jnp.where(largest > 0, ridged, 1.0)
  root = ridged ** power[..., None]
  return matmul(vectors * root[..., None, :], transpose(vectors))


def eigenvectors(stat: jax.Array) -> jax.Array:
  """Eigenvectors `[members, n, n]`, largest eigenvalue first."""
  return jnp.linalg.eigh(stat)[1][..., ::-1]
