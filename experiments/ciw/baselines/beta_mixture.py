"""Mixture of two Beta distributions over losses (Arazo et al., ICML 2019).

The losses of an epoch, brought to (0, 1), are modelled as two Beta
distributions: clean examples (small losses) and mislabelled ones (large). The
parameters come from EM with weighted moments in the M-step. Fixed shapes and
numbers of iterations: it may run inside a jitted step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln
from jax.typing import ArrayLike

from locojax.core import checks

_MARGIN = 1e-3  # how near to 0 and 1 a loss may be
_MIN_VARIANCE = 1e-6


class BetaMixture(NamedTuple):
  """Two components, that of smaller losses first.

  Attributes:
    a, b: `[2]` parameters of the Beta distributions.
    share: `[2]` their shares, summing to one.
    low, high: `[]` the losses that stand for 0 and 1.
  """

  a: jax.Array
  b: jax.Array
  share: jax.Array
  low: jax.Array
  high: jax.Array


def _unit(losses, low, high) -> jax.Array:
  span = jnp.maximum(high - low, jnp.finfo(losses.dtype).tiny)
  return jnp.clip((losses - low) / span, _MARGIN, 1 - _MARGIN)


def _posterior(x, a, b, share) -> jax.Array:
  """Probabilities of the components at `x`, `[n, 2]`."""
  x = x[:, None]
  density = (a - 1) * jnp.log(x) + (b - 1) * jnp.log1p(-x) - betaln(a, b)
  tiny = jnp.finfo(x.dtype).tiny
  return jax.nn.softmax(jnp.log(jnp.maximum(share, tiny)) + density, axis=-1)


def _moments(x, weights) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`a, b, share` that match the weighted mean and variance, `[2]` each."""
  tiny = jnp.finfo(x.dtype).tiny
  totals = jnp.maximum(jnp.sum(weights, axis=0), tiny)
  mean = jnp.sum(weights * x[:, None], axis=0) / totals
  mean = jnp.clip(mean, _MARGIN, 1 - _MARGIN)
  square = jnp.square(x[:, None] - mean)
  variance = jnp.sum(weights * square, axis=0) / totals
  most = mean * (1 - mean)
  variance = jnp.clip(variance, _MIN_VARIANCE, 0.99 * most)
  total = most / variance - 1
  return mean * total, (1 - mean) * total, totals / jnp.sum(totals)


def fit(
  losses: ArrayLike, *, num_iters: int = 10, quantile: float = 0.05
) -> BetaMixture:
  """Fits the mixture by EM, from Beta(1, 2) and Beta(2, 1) in equal shares.

  Args:
    losses: `[n]` losses of all examples.
    num_iters: EM iterations.
    quantile: share of the losses at either end that is left out of the fit;
      the quantiles become 0 and 1. In [0, 0.5).

  Returns:
    A `BetaMixture`; component 0 has the smaller mean.

  Raises:
    ValueError: a bad setting, or losses that are no vector.
  """
  losses = jnp.asarray(losses)
  losses = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
  if losses.ndim != 1 or not losses.size:
    raise ValueError(
      f"losses of shape {losses.shape} are not allowed: they must be [n]."
    )
  checks.positive_int("num_iters", num_iters)
  checks.in_range("quantile", quantile, 0.0, 0.49)
  low, high = jnp.quantile(losses, jnp.array([quantile, 1 - quantile]))
  kept = ((losses >= low) & (losses <= high)).astype(losses.dtype)
  x = _unit(losses, low, high)

  def iterate(_, found):
    return _moments(x, kept[:, None] * _posterior(x, *found))

  pairs = ([1.0, 2.0], [2.0, 1.0], [0.5, 0.5])
  start = tuple(jnp.array(pair, x.dtype) for pair in pairs)
  a, b, share = jax.lax.fori_loop(0, num_iters, iterate, start)
  order = jnp.argsort(a / (a + b))
  return BetaMixture(a[order], b[order], share[order], low, high)


def noisy_probability(mixture: BetaMixture, losses: ArrayLike) -> jax.Array:
  """Probability that an example is of the component of large losses.

  The posterior where it rises: below the mean of the small losses it is 0, and
  beyond its peak it stays there, whatever the tails of the densities say.

  Args:
    mixture: from `fit`.
    losses: `[n]`.

  Returns:
    `[n]` in [0, 1], never falling as the loss grows.
  """
  losses = jnp.asarray(losses).astype(mixture.low.dtype)
  grid = jnp.linspace(_MARGIN, 1 - _MARGIN, 1000, dtype=losses.dtype)
  table = _posterior(grid, mixture.a, mixture.b, mixture.share)[:, 1]
  smaller = mixture.a[0] / (mixture.a[0] + mixture.b[0])
  table = jax.lax.cummax(jnp.where(grid < smaller, 0.0, table))
  return jnp.interp(_unit(losses, mixture.low, mixture.high), grid, table)
