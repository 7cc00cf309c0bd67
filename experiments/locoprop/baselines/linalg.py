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


def by_shape(f: Callable, *columns: Sequence[jax.Array]) -> list:
  """Applies `f` to every row, with one copy in the program for equal shapes.

  Equal shapes run one after the other in a loop, which compiles much faster
  than a decomposition for each. They are not one batched call: on CPU jaxlib
  splits the batch of a LAPACK call over the threads that also run the calls,
  and two such calls at the same time wait for each other forever.

  Args:
    f: a function of arrays, one for each column, which returns a tree of
      arrays.
    *columns: equally long lists of arrays; row i is one problem.

  Returns:
    A list with the result of every row.
  """
  groups: dict[tuple, list[int]] = {}
  for i, row in enumerate(zip(*columns, strict=True)):
    groups.setdefault(tuple((x.shape, x.dtype) for x in row), []).append(i)
  out = [None] * len(columns[0])
  for members in groups.values():
    stacks = [jnp.stack([c[i] for i in members]) for c in columns]
    result = jax.lax.map(lambda row: f(*row), stacks)
    for k, i in enumerate(members):
      out[i] = jax.tree.map(lambda r, k=k: r[k], result)
  return out


def matrix_power(stat: jax.Array, power: jax.Array, eps: float) -> jax.Array:
  """`(S + eps lambda_max(S) I)^power` by an eigendecomposition.

  Args:
    stat: `[n, n]` symmetric positive semidefinite.
    power: `[]`.
    eps: ridge relative to the largest eigenvalue.

  Returns:
    `[n, n]`; the identity where `stat` is zero.
  """
  values, vectors = jnp.linalg.eigh(stat)
  largest = values[-1]
  ridged = jnp.maximum(values, 0.0) + eps * largest
  ridged = jnp.where(largest > 0, ridged, 1.0)
  return matmul(vectors * ridged**power, vectors.T)


def eigenvectors(stat: jax.Array) -> jax.Array:
  """Eigenvectors in columns `[n, n]`, largest eigenvalue first."""
  return jnp.linalg.eigh(stat)[1][:, ::-1]
