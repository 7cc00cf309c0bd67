"""Samples of noise that a privacy proof can rest on.

`jax.random.normal` in float32 never leaves [-5.42, 5.23]: what is missing is
about 1e-7 of probability, more than a delta of 1e-10 allows. `normal` takes 64
random bits for each value and inverts the tail, which reaches 9.2 standard
deviations; what is missing is 5e-20. It stays a float32, whose lowest bits can
tell on what it is added to (Mironov 2012); `discrete_gaussian` is for sums on a
grid of integers, where they do not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks

# Levels beyond which the discrete table is cut: probability below 2^-64.
_REACH = 9.4
MAX_SIGMA = 2.0**14


def _words(key: jax.Array, shape: Sequence[int]) -> tuple[jax.Array, jax.Array]:
  high, low = (
    jax.random.bits(jax.random.fold_in(key, i), shape, jnp.uint32)
    for i in range(2)
  )
  return high, low


def normal(key: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Standard normal values with whole tails, float32.

  x = -+ Phi^-1(p) for p in (0, 1/2) of 63 random bits, whose relative (not
  absolute) accuracy in float32 is 2^-24, so that the tail is right.

  >>> normal(jax.random.key(0), (2, 3)).shape
  (2, 3)
  """
  high, low = _words(key, tuple(shape))
  sign = jnp.where(high >> 31 == 0, 1.0, -1.0).astype(jnp.float32)
  top = (high & jnp.uint32(0x7FFFFFFF)).astype(jnp.float32)
  p = top * jnp.float32(2.0**-32)
  p += (low.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-64)
  x = -jax.scipy.special.ndtri(jnp.minimum(p, 0.5))
  return sign * x


@functools.lru_cache(maxsize=8)
def _table(sigma: float) -> np.ndarray:
  """`[2, n]` uint32: P(|k| <= i) in units of 2^-64, upper and lower words."""
  reach = math.ceil(_REACH * sigma) + 1
  k = np.arange(reach + 1, dtype=np.longdouble)
  mass = np.exp(-(k**2) / (2 * np.longdouble(sigma) ** 2))
  mass[1:] *= 2
  units = [int(v) for v in mass / mass.sum() * np.longdouble(2) ** 64]
  units[0] += 2**64 - sum(units)
  total, out = 0, []
  for unit in units:
    total += unit
    out.append(min(total, 2**64 - 1))
  return np.array(
    [[v >> 32 for v in out], [v & 0xFFFFFFFF for v in out]]
  ).astype(np.uint32)


def discrete_gaussian(
  key: jax.Array, shape: Sequence[int], sigma: float
) -> jax.Array:
  """Integers with P(k) proportional to exp(-k^2 / (2 sigma^2)), int32.

  By a table of cumulative probabilities, exact to 2^-64 each. On integers the
  mechanism is at least as private as the Gaussian one of the same sigma
  (Canonne, Kamath, Steinke 2020, arXiv 2004.00010, theorem 4).

  Args:
    key: typed key.
    shape: of the result.
    sigma: in units of the grid, in (0, 16384]; static.

  Raises:
    ValueError: sigma out of range.

  >>> discrete_gaussian(jax.random.key(0), (4,), 3.0).dtype
  dtype('int32')
  """
  checks.positive("sigma", sigma)
  checks.in_range("sigma", sigma, 0.0, MAX_SIGMA)
  table = jnp.asarray(_table(float(sigma)))
  size = table.shape[1]
  high, low = _words(key, tuple(shape))

  def halve(_, ends):
    """Keeps `first <= answer <= last` of the first entry above the draw."""
    first, last = ends
    middle = (first + last) // 2
    upper, lower = table[0][middle], table[1][middle]
    above = (upper > high) | ((upper == high) & (lower > low))
    return jnp.where(above, first, middle + 1), jnp.where(above, middle, last)

  ends = (jnp.zeros(shape, jnp.int32), jnp.full(shape, size - 1, jnp.int32))
  rounds = max(1, math.ceil(math.log2(size)) + 1)
  magnitude, _ = jax.lax.fori_loop(0, rounds, halve, ends)
  magnitude = jnp.minimum(magnitude, size - 1)
  sign = jax.random.bits(jax.random.fold_in(key, 2), shape, jnp.uint32) >> 31
  return jnp.where(sign == 0, magnitude, -magnitude)
