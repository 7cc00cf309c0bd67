"""Confidence intervals of prediction differences, over examples and models.

They answer two questions. *Over examples*: how would the PD of these very
models change on other examples? *Over models*: how would it change if the
models were trained again? The second is mostly the wider one, and what a claim
about an activation needs.

The pairs of M models are not independent: a model is in M - 1 of them, and an
odd one raises them all. To resample the P pairs as if they were P independent
numbers gives intervals that are far too narrow (their mean is a U-statistic,
whose variance goes down with M, not with M^2). So models are resampled, and
all pairs of distinct models among them are taken. A model drawn twice is no
pair with itself: that difference is zero and would pull the interval down.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks
from locojax.methods.smelu import differences

_MAX_COUNT = 12


class Interval(NamedTuple):
  """An estimate and its interval, `[...]` each.

  Attributes:
    estimate: the value on all data.
    low: lower end.
    high: upper end.
  """

  estimate: jax.Array
  low: jax.Array
  high: jax.Array


def _check_settings(num_samples: int, level: float) -> None:
  checks.positive_int("num_samples", num_samples)
  if not 0 < level < 1:
    raise ValueError(
      f"level={level!r} is not allowed: it must be above 0 and below 1."
    )


@jax.jit
def _percentiles(estimate, samples, level) -> Interval:
  """Ends over the first axis; draws without any weight (NaN) are left out."""
  tail = (1 - level) / 2
  low, high = jnp.nanquantile(samples, jnp.array([tail, 1 - tail]), axis=0)
  return Interval(estimate, low, high)


def _poisson_thresholds() -> np.ndarray:
  """P(Poisson(1) <= k) in units of 2^-32."""
  pmf = [math.exp(-1) / math.factorial(k) for k in range(_MAX_COUNT)]
  return np.round(np.cumsum(pmf) * 2**32).astype(np.uint32)


def _poisson_counts(key, shape):
  """Poisson(1) counts, by inversion of 32 random bits."""
  bits = jax.random.bits(key, shape, jnp.uint32)
  counts = jnp.zeros(shape, jnp.float32)
  for threshold in _poisson_thresholds():
    counts += bits >= threshold
  return counts


@functools.partial(jax.jit, static_argnames=("num_samples", "chunk"))
def _poisson_means(key, totals, sizes, *, num_samples, chunk):
  """Means of resampled units: totals `[R, U]`, sizes `[U]` -> `[B, R]`."""
  num_units = sizes.shape[0]
  chunk = min(chunk, num_units)
  columns = jnp.concatenate([totals, sizes[None]]).T
  pad = -num_units % chunk
  columns = jnp.pad(columns, ((0, pad), (0, 0)))
  columns = columns.reshape(-1, chunk, columns.shape[-1])

  def add(sums, index_and_part):
    index, part = index_and_part
    drawn = jax.random.fold_in(key, index)
    counts = _poisson_counts(drawn, (num_samples, chunk)).astype(part.dtype)
    step = jnp.matmul(counts, part, precision=jax.lax.Precision.HIGHEST)
    return sums + step, None

  start = jnp.zeros((num_samples, columns.shape[-1]), columns.dtype)
  indices = jnp.arange(columns.shape[0])
  sums, _ = jax.lax.scan(add, start, (indices, columns))
  return sums[:, :-1] / sums[:, -1:]


def _unit_sums(values, weights, groups):
  """Sums over the examples of each group: `[R, U]` and `[U]`."""
  _, index = np.unique(np.asarray(groups), return_inverse=True)
  num_units = int(index.max()) + 1
  add = functools.partial(
    jax.ops.segment_sum, segment_ids=index, num_segments=num_units
  )
  return add(values.T).T, add(weights)


def bootstrap_examples(
  values: ArrayLike,
  *,
  key: jax.Array,
  weights: ArrayLike | None = None,
  groups: ArrayLike | None = None,
  num_samples: int = 1000,
  level: float = 0.95,
  chunk: int = 4096,
) -> Interval:
  """Percentile bootstrap, over examples, of weighted means.

  Each example is drawn a Poisson(1) number of times, which for many examples
  is the same as drawing with replacement, and needs no pass over all of them
  at once: memory is num_samples x chunk counts.

  Args:
    values: `[..., N]` value of every example, as of `reduce="examples"`.
      Leading axes share the draws.
    key: PRNG key.
    weights: `[N]` weights or a mask; NaN values of weight zero do not matter.
    groups: `[N]` any labels (queries, users): groups are drawn instead of
      examples, as examples of a group are dependent. It also serves to join
      many independent examples into thousands of blocks, to save time.
    num_samples: bootstrap samples.
    level: confidence, in (0, 1).
    chunk: examples or groups whose counts are in memory together. Another
      chunk gives another draw.

  Returns:
    An `Interval` of arrays `[...]`.

  Raises:
    ValueError: shapes do not fit, no weight, or settings out of range.

  >>> found = bootstrap_examples([2.0, 2.0, 2.0], key=jax.random.key(0))
  >>> [float(x) for x in found]
  [2.0, 2.0, 2.0]
  """
  _check_settings(num_samples, level)
  checks.positive_int("chunk", chunk)
  values = arrays.as_float(values)
  size = values.shape[-1:]
  weights = jnp.ones(size) if weights is None else jnp.asarray(weights)
  weights = weights.astype(values.dtype)
  checks.same_shape("weights", weights.shape, "the last axis of values", size)
  if arrays.is_concrete(weights) and not float(weights.sum()) > 0:
    raise ValueError("weights must be 0 or more and not all 0.")
  flat = values.reshape((-1,) + size)
  flat = jnp.where(weights != 0, flat, 0) * weights
  estimate = flat.sum(axis=1) / weights.sum()
  if groups is not None:
    checks.same_shape("groups", np.shape(groups), "the last axis", size)
    flat, weights = _unit_sums(flat, weights, groups)
  samples = _poisson_means(
    key, flat, weights, num_samples=num_samples, chunk=chunk
  )
  found = _percentiles(estimate, samples, level)
  return Interval(*(x.reshape(values.shape[:-1]) for x in found))


def _num_models(num_pairs: int) -> int:
  """M of P = M (M - 1) / 2 pairs."""
  m = (1 + math.isqrt(1 + 8 * num_pairs)) // 2
  if m < 3 or m * (m - 1) // 2 != num_pairs:
    raise ValueError(
      f"pair_values has {num_pairs} values on its last axis: it must be those "
      "of all pairs of three models or more (3, 6, 10, 15, ...)."
    )
  return m


def _matrix(pair_values: jax.Array, m: int) -> jax.Array:
  """`[..., P]` pairs as a symmetric `[..., M, M]` with a zero diagonal."""
  first, second = differences.pair_indices(m)
  upper = jnp.zeros(pair_values.shape[:-1] + (m, m), pair_values.dtype)
  upper = upper.at[..., first, second].set(pair_values)
  return upper + jnp.swapaxes(upper, -1, -2)


def bootstrap_models(
  pair_values: ArrayLike,
  *,
  key: jax.Array,
  num_samples: int = 1000,
  level: float = 0.95,
) -> Interval:
  """Percentile bootstrap over models of the mean over their pairs.

  M models are drawn with replacement, and all pairs of distinct ones among
  them averaged (see the head of this file). Of few models no resampling can
  tell much: on simulated models a 95 % interval held the truth in 73 to 89 %
  of cases for M = 4 to 10, and in 90 to 92 % for M = 20 (pairs taken as
  independent: 34 to 70 %). `jackknife_models` held it in 91 to 94 %
  throughout, and is the one to report of few models.

  Args:
    pair_values: `[..., P]` value of each pair of three models or more, as of
      `reduce="pairs"`; symmetric quantities only, not the signed difference.
    key: PRNG key.
    num_samples: bootstrap samples.
    level: confidence, in (0, 1).

  Returns:
    An `Interval` of arrays `[...]`.

  Raises:
    ValueError: P is not M (M - 1) / 2 of an M >= 3, or settings out of range.
  """
  _check_settings(num_samples, level)
  pair_values = arrays.as_float(pair_values)
  m = _num_models(pair_values.shape[-1])
  return _resample_models(pair_values, key, level, num_samples, m)


@functools.partial(jax.jit, static_argnames=("num_samples", "m"))
def _resample_models(pair_values, key, level, num_samples, m) -> Interval:
  drawn = jax.random.randint(key, (num_samples, m), 0, m)
  counts = jax.nn.one_hot(drawn, m, dtype=pair_values.dtype).sum(axis=1)
  matrix = _matrix(pair_values, m)
  totals = jnp.einsum("bi,...ij,bj->b...", counts, matrix, counts)
  sizes = m * m - (counts**2).sum(axis=1)
  sizes = sizes.reshape((-1,) + (1,) * (totals.ndim - 1))
  return _percentiles(pair_values.mean(axis=-1), totals / sizes, level)


def _student_central(t: float, degrees: int) -> float:
  """P(|T| < t): the finite trigonometric series for whole degrees."""
  angle = math.atan(t / math.sqrt(degrees))
  sine, cosine = math.sin(angle), math.cos(angle)
  odd = degrees % 2
  term, series = (cosine if odd else 1.0), 0.0
  for k in range(2 + odd, degrees + 1, 2):
    series += term
    term *= cosine**2 * (k - 1) / k
  return 2 / math.pi * (angle + sine * series) if odd else sine * series


def student_quantile(probability: float, degrees: int) -> float:
  """Quantile of Student's t, by bisection of its distribution function.

  Args:
    probability: in [0.5, 1).
    degrees: degrees of freedom, 1 or more.

  >>> round(student_quantile(0.975, 4), 4)
  2.7764
  """
  checks.positive_int("degrees", degrees)
  if not 0.5 <= probability < 1:
    raise ValueError(
      f"probability={probability!r} is not allowed: it must be in [0.5, 1)."
    )
  central, low, high = 2 * probability - 1, 0.0, 1.0
  while _student_central(high, degrees) < central and high < 1e9:
    low, high = high, 2 * high
  for _ in range(60):
    middle = (low + high) / 2
    below = _student_central(middle, degrees) < central
    low, high = (middle, high) if below else (low, middle)
  return high


def jackknife_models(
  pair_values: ArrayLike, *, level: float = 0.95
) -> Interval:
  """Jackknife over models, with Student's t: for few models.

  With U the mean over pairs and U_-m the one without model m,

    variance = (M - 1) / M sum_m (U_-m - mean U_-m)^2,

  and the interval is U +- t(M - 1) sqrt(variance), not below zero where no
  pair is (Arvesen 1969, "Jackknifing U-statistics").

  Args:
    pair_values: as in `bootstrap_models`.
    level: confidence, in (0, 1).

  Returns:
    An `Interval` of arrays `[...]`.

  Raises:
    ValueError: as `bootstrap_models`.

  >>> found = jackknife_models([1.0, 1.0, 1.0])
  >>> [float(x) for x in found]
  [1.0, 1.0, 1.0]
  """
  _check_settings(1, level)
  pair_values = arrays.as_float(pair_values)
  m = _num_models(pair_values.shape[-1])
  factor = student_quantile((1 + level) / 2, m - 1)
  return _jackknife(pair_values, factor, m)


@functools.partial(jax.jit, static_argnames="m")
def _jackknife(pair_values, factor, m: int) -> Interval:
  sums = _matrix(pair_values, m).sum(axis=-1)
  total = pair_values.sum(axis=-1, keepdims=True)
  without = (total - sums) / ((m - 1) * (m - 2) / 2)
  spread = without - without.mean(axis=-1, keepdims=True)
  error = jnp.sqrt((m - 1) / m * jnp.sum(spread**2, axis=-1))
  width = factor * error
  estimate = pair_values.mean(axis=-1)
  floor = jnp.where(pair_values.min(axis=-1) >= 0, 0.0, -jnp.inf)
  low = jnp.maximum(estimate - width, floor)
  return Interval(estimate, low, estimate + width)
