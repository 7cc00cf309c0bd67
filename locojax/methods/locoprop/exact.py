"""The exact squared local solution, also where inputs are redundant.

Letters: N rows, I inputs, O outputs of a layer. X [N, I] inputs, W [I, O]
kernel, G = dL/dA, gamma the activation learning rate, eta the inverse of the
proximal weight. C = X^T X.

  W - W0 = -gamma (C + I/eta)^-1 X^T G

In exact arithmetic X^T G has nothing in the directions that no row of X sees
(of two equal columns, their difference), so nothing changes there: the smallest
change among those that do the same to the layer. Rounding leaves something of
the size of the dtype's eps, and 1/(C + I/eta) makes eta times as much of it.
So there are two ways, chosen for each layer by what the first one can do:

- Cholesky, while `_cholesky`'s estimate of its relative error is below
  `TOLERANCE`;
- else the singular values s of X itself (from R of X = Q R, so that s is not
  squared on the way): 1/(s^2 + 1/eta) where s is above 4 eps sqrt(N + I) of the
  largest, and 0 below: what no row sees is left as it is, whatever gradient is
  handed in for it.

Measured against float64, relative to the norm of the solution, the worst of
layers of 100 x 32, 500 x 196 and 4000 x 64 inputs with a bias, eta 1e2 to 1e6:

  columns doubled     2e-6
  8 copies of each    1e-6
  a constant column   3e-3 (500 x 196, eta 1e2, Cholesky), 2e-6 from 1e3 on
  all constant        4e-6

Where float32 ends: of a direction that rows do see, but whose s is below 1e-3
of the largest, the gradient that is handed in holds no more than eps / s of the
largest, relative; 1 % at the least s that is kept. What differs by less than
that is the same to float32. With float64 parameters all is in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from locojax.core import types
from locojax.methods.locoprop import changes, rows, taps, targets

# Relative error from which on Cholesky is not used.
TOLERANCE = 5e-3


def exact_squared_update(
  x: jax.Array,
  preact_grad: jax.Array,
  w: jax.Array,
  *,
  gamma: float,
  eta: float,
) -> jax.Array:
  """The minimiser of the proximal squared local loss.

    W = W0 - gamma (X^T X + I/eta)^-1 X^T G

  an implicit-gradient step: the input-side Kronecker factor of K-FAC. See the
  module for redundant inputs.

  Args:
    x: `[N, I]` inputs, with a column of ones if the bias is folded in.
    preact_grad: `[N, O]`, dL/dA.
    w: `[I, O]`.
    gamma: activation learning rate, above 0.
    eta: local learning rate, the inverse of the proximal weight, above 0.

  Returns:
    `[I, O]`, the new kernel, in the dtype of `w`; computed in float64 where
    that is float64, else in float32.

  >>> x, grad, w = jnp.eye(2), jnp.ones((2, 1)), jnp.zeros((2, 1))
  >>> new = exact_squared_update(x, grad, w, gamma=1.0, eta=1.0)
  >>> [round(float(v), 4) for v in new[:, 0]]
  [-0.5, -0.5]
  """
  dtype = rows.dtype_of(w)
  x, g = x.astype(dtype), preact_grad.astype(dtype)
  step = solve([x], _product(x.T, g), eta)
  return w - (gamma * step).astype(w.dtype)


def exact_delta(
  records: Sequence[taps.LayerRecord],
  grads: types.PyTree,
  eta: jax.Array,
  options: targets.LocalOptions,
  shift: types.PyTree | None = None,
):
  """`exact_squared_update` from gradients: -gamma (C + I/eta)^-1 dW.

  Args:
    records: all calls of one dense layer; their Gram matrices add up.
    grads: gradient of the layer's parameters.
    eta: local learning rate.
    options: `gamma`, `max_rows`, `axis_name` count.
    shift: what is added to gamma `grads`, if anything.

  Returns:
    The displacement, a tree like `grads`, in float64 where those are float64,
    else in float32.
  """
  dtype, seen = rows.dtype_of(grads), []
  for record in map(rows.flatten, records):
    stride = rows.stride(record.preact.shape[0], options.max_rows)
    record = rows.in_dtype(record, dtype)
    x, weight = changes.seen_inputs(record, stride, changes.has_bias(grads))
    seen.append(x * weight**0.5)
  rhs = options.gamma * changes.fold(grads)
  rhs = rhs if shift is None else rhs + changes.fold(shift)
  solution = solve(seen, -rhs.astype(dtype), eta, options.axis_name)
  return changes.unfold(solution, grads)


def solve(
  inputs: Sequence[jax.Array], rhs: jax.Array, eta, axis_name: str | None = None
) -> jax.Array:
  """(C + I/eta)^-1 B, C the sum of X^T X, in directions that some X sees.

  Args:
    inputs: `[N, I]` each.
    rhs: `[I, O]`, B, in the dtype of the inputs.
    eta: number or scalar array, 0 or more.
    axis_name: mapped axis over which the rows lie, if any.

  Returns:
    `[I, O]`, in the same dtype.
  """
  eta = jnp.asarray(eta, rhs.dtype)
  x = inputs[0] if len(inputs) == 1 else jnp.concatenate(inputs)
  gram = _product(x.T, x)
  gram = gram if axis_name is None else jax.lax.psum(gram, axis_name)
  solution, error = _cholesky(gram, rhs, eta)
  good = error < TOLERANCE
  if axis_name is not None:  # The branches below talk: all must take one.
    good = jax.lax.pmin(good.astype(jnp.int32), axis_name) > 0
  return jax.lax.cond(
    good,
    lambda: solution,
    lambda: _filtered(x, rhs, eta, axis_name),
  )


def _product(a, b):
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _cholesky(gram, rhs, eta):
  """The solution, and an estimate of its relative error; NaN if it failed.

  With pivots d of A = I + eta C, the part of row i that is left after the
  columns before it: what rounds row i of A is amplified by |A_i| / d_i, and
  what rounds row i of B by 1 / d_i. Sums of rounding errors of one sign, as
  equal columns make them, came out up to 6 times the latter: hence the 8.
  """
  a = jnp.eye(len(gram), dtype=gram.dtype) + eta * gram
  factor = jax.scipy.linalg.cho_factor(a, lower=True)
  solution = jax.scipy.linalg.cho_solve(factor, eta * rhs)
  pivots = jnp.square(jnp.diagonal(factor[0]))
  of_matrix = jnp.max(jnp.linalg.norm(a, axis=1) / pivots)
  of_rhs = jnp.linalg.norm(eta * jnp.linalg.norm(rhs, axis=1) / pivots)
  size = jnp.linalg.norm(solution)
  of_rhs = jnp.where(of_rhs > 0, 8 * of_rhs / size, 0)
  eps = jnp.finfo(gram.dtype).eps
  return solution, eps * jnp.maximum(of_matrix, of_rhs)


def _filtered(x, rhs, eta, axis_name):
  """1/(s^2 + 1/eta) in the directions of x whose s is above rounding."""
  num = sum(x.shape)
  r = jnp.linalg.qr(x, mode="r")
  if axis_name is not None:
    num += x.shape[0] * (jax.lax.axis_size(axis_name) - 1)
    r = jnp.linalg.qr(_gathered(r, axis_name), mode="r")
  _, s, v = jnp.linalg.svd(r, full_matrices=False)
  least = 4 * jnp.finfo(x.dtype).eps * num**0.5 * s[0]
  factor = jnp.where(s > least, 1 / (jnp.square(s) + 1 / eta), 0)
  # Not a number stays one.
  factor = jnp.where(jnp.isnan(s), s, factor)
  return _product(v.T, factor[:, None] * _product(v, rhs))


def _gathered(r, axis_name):
  """`r` of all devices, one below the other; the same on all of them."""
  size, index = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
  place = jnp.zeros((size, *r.shape), r.dtype).at[index].set(r)
  return jax.lax.psum(place, axis_name).reshape(-1, r.shape[-1])
