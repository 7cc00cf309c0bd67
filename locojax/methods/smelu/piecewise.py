"""SmeLU and generalised SmeLU: lines joined by a quadratic."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import checks
from locojax.methods.smelu import arrays

OFFSETS = ("origin", "zero")


# SmeLU.


def _reciprocal(beta):
  """1 / beta, and 0 for beta = 0 (and for one so small that it is inf)."""
  normal = beta >= jnp.finfo(beta.dtype).tiny
  return jnp.where(normal, 1 / jnp.where(normal, beta, 1), 0)


def _smelu_slope(y, beta):
  """min(sqrt(y / beta), 1): the derivative by x as a function of y.

  Differentiated by y, times dy/dx, it gives y'' = 1 / (2 beta) inside.
  """
  y, top = y.astype(beta.dtype), jnp.maximum(beta, jnp.finfo(beta.dtype).tiny)
  positive = y > 0
  root = jnp.sqrt(jnp.where(positive, y, 1) * _reciprocal(beta))
  return jnp.where(y >= top, 1, jnp.where(positive, root, y))


@jax.custom_jvp
def _smelu(x, beta):
  v = x.astype(beta.dtype)
  s = jnp.clip((v + beta) * (0.5 * _reciprocal(beta)), 0, 1)
  return jnp.where(v >= beta, v, beta * s * s).astype(x.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _smelu_tangent(y, beta, dx, dbeta):
  """s dx + s (1 - s) dbeta; None stands for a tangent that is zero.

  The checkpoint keeps `y` in place of `s`. Nothing in it could be merged with
  the forward pass, so it needs no barrier, which would block fusion.
  """
  s = _smelu_slope(y, beta)
  parts = [] if dx is None else [s * dx.astype(s.dtype)]
  if dbeta is not None:
    parts.append(s * (1 - s) * dbeta)
  return sum(parts).astype(y.dtype)


@functools.partial(_smelu.defjvp, symbolic_zeros=True)
def _smelu_jvp(primals, tangents):
  y = _smelu(*primals)
  zero = jax.custom_derivatives.SymbolicZero
  dx, dbeta = (None if isinstance(t, zero) else t for t in tangents)
  if dx is None and dbeta is None:
    return y, jnp.zeros_like(y)
  return y, _smelu_tangent(y, primals[1], dx, dbeta)


smelu_core = jax.jit(_smelu, inline=True)


def smelu(x: ArrayLike, beta: ArrayLike = 1.0) -> jax.Array:
  """Smooth ReLU: 0, then (x + beta)^2 / (4 beta) on [-beta, beta], then x.

  ReLU convolved with the uniform density on [-beta, beta] (arXiv 2202.06499).
  The larger beta, the smoother; beta = 0 is ReLU.

  Args:
    x: `[...]` any real dtype.
    beta: half-width of the transition, a number or an array that broadcasts
      against `x`, such as `[channels]`. Differentiable.

  Returns:
    `[...]`, the dtype of `x`; NaN where an array `beta` is negative.

  Raises:
    ValueError: `beta` is a negative or non-finite number; `x` is complex.

  >>> smelu(jnp.array([-2.0, 0.0, 0.5, 2.0])).tolist()
  [0.0, 0.25, 0.5625, 2.0]
  """
  x = arrays.floating(x)
  beta = arrays.parameter("beta", beta, x, zero=True)
  return smelu_core(x, beta)


# Generalised SmeLU.


@functools.partial(jax.jit, inline=True)
@arrays.keep_input
def _gsmelu(x, low, high, alpha, beta, offset):
  v = x.astype(alpha.dtype)
  left, right = v <= -alpha, v >= beta
  length = alpha + beta
  w = (jnp.where(left | right, 0, v) + alpha) / length
  w = jnp.where(left, 0, jnp.where(right, 1, w))
  middle = length * w * (low + 0.5 * (high - low) * w)
  below = arrays.times(low, jnp.where(left, v + alpha, 0))
  above = arrays.times(high, jnp.where(right, v - beta, 0))
  return (offset + middle + below + above).astype(x.dtype)


def _offset(offset, low, high, alpha, beta, x):
  """The value at the left joint."""
  if isinstance(offset, str):
    if checks.one_of("offset", offset, OFFSETS) == "origin":
      return -low * alpha
    total = alpha**2 * (high + low) + 2 * alpha * beta * low
    return -total / (2 * (alpha + beta))
  return arrays.slope("offset", offset, x)


def gsmelu(
  x: ArrayLike,
  *,
  negative_slope: ArrayLike = 0.0,
  positive_slope: ArrayLike = 1.0,
  alpha: ArrayLike = 1.0,
  beta: ArrayLike = 1.0,
  offset: ArrayLike | Literal["origin", "zero"] = 0.0,
) -> jax.Array:
  """Generalised SmeLU: two lines, joined by a quadratic on [-alpha, beta].

  arXiv 2010.09931, equation 11. Continuous with its derivative for all
  parameters; nondecreasing where both slopes are 0 or more, convex where
  `positive_slope` is the larger one.

  Args:
    x: `[...]` any real dtype.
    negative_slope, positive_slope: slopes of the left and right line.
    alpha, beta: the joints are at -alpha and beta; above 0.
    offset: the value at the left joint; 'origin' puts the left line through the
      origin, 'zero' makes the value at 0 zero. All parameters are numbers or
      arrays that broadcast against `x`, and are differentiable.

  Returns:
    `[...]`, the dtype of `x`; NaN where an array `alpha` or `beta` is not
    above 0.

  Raises:
    ValueError: `alpha` or `beta` is a number not above 0; a slope is not
      finite; `offset` is an unknown word.

  >>> round(float(gsmelu(0.5, negative_slope=0.1, offset="origin")), 6)
  0.55625
  """
  x = arrays.floating(x)
  alpha = arrays.parameter("alpha", alpha, x)
  beta = arrays.parameter("beta", beta, x)
  low = arrays.slope("negative_slope", negative_slope, x)
  high = arrays.slope("positive_slope", positive_slope, x)
  offset = _offset(offset, low, high, alpha, beta, x)
  return _gsmelu(x, low, high, alpha, beta, offset)
