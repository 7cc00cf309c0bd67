"""Intervals: coverage of known truths, invariants, refusals."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from locojax.methods.smelu import differences, intervals

KEY = jax.random.key(0)


def _coverage(found, truth):
  low, high = np.asarray(found.low), np.asarray(found.high)
  return float(np.mean((low <= truth) & (truth <= high)))


def test_examples_cover_a_known_mean():
  # 500 data sets of 200 exponential values, of mean 1, weighted. Three
  # standard errors of the share are 0.03, and the percentile bootstrap of 200
  # skewed values is known to be a little below its level.
  rng = np.random.default_rng(0)
  values = rng.exponential(size=(500, 200)).astype(np.float32)
  weights = rng.integers(1, 4, 200)
  found = intervals.bootstrap_examples(values, key=KEY, weights=weights)
  assert 0.90 <= _coverage(found, 1.0) <= 0.98
  np.testing.assert_allclose(
    found.estimate, np.average(values, axis=1, weights=weights), rtol=1e-5
  )
  narrow = intervals.bootstrap_examples(
    values, key=KEY, weights=weights, level=0.5
  )
  assert 0.43 <= _coverage(narrow, 1.0) <= 0.57


def test_poisson_counts_are_poisson():
  counts = np.asarray(intervals._poisson_counts(KEY, (200_000,)))
  observed = np.bincount(counts.astype(int), minlength=6)[:6] / len(counts)
  np.testing.assert_allclose(
    observed, stats.poisson.pmf(np.arange(6), 1), atol=0.004
  )


def test_width_is_that_of_the_normal_interval():
  values = np.random.default_rng(1).normal(size=4000)
  found = intervals.bootstrap_examples(values, key=KEY, num_samples=4000)
  expected = 2 * 1.96 * values.std() / math.sqrt(4000)
  np.testing.assert_allclose(found.high - found.low, expected, rtol=0.06)


def _grouped_values():
  """500 groups of 10 equal values each: as good as 500 values."""
  rng = np.random.default_rng(2)
  return np.repeat(rng.normal(size=500), 10), np.repeat(np.arange(500), 10)


def test_groups_widen_the_interval():
  values, groups = _grouped_values()
  alone = intervals.bootstrap_examples(values, key=KEY)
  whole = intervals.bootstrap_examples(values, key=KEY, groups=groups)
  ratio = (whole.high - whole.low) / (alone.high - alone.low)
  np.testing.assert_allclose(ratio, math.sqrt(10), rtol=0.12)
  np.testing.assert_allclose(whole.estimate, values.mean(), rtol=1e-4)
  # The same as each group given once.
  once = intervals.bootstrap_examples(values[::10], key=KEY)
  np.testing.assert_allclose(whole.low, once.low, atol=1e-5)


def test_masked_is_removed():
  values = np.random.default_rng(3).normal(size=(2, 100))
  keep = np.arange(100) < 60
  holed = np.where(keep, values, np.nan)
  found = intervals.bootstrap_examples(holed, key=KEY, weights=keep, chunk=20)
  # With chunks of 20 the first three draws are those of 60 values.
  kept = intervals.bootstrap_examples(values[:, :60], key=KEY, chunk=20)
  for a, b in zip(found, kept):
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_examples_ragged_chunks_and_joint_draws():
  values = np.random.default_rng(4).normal(size=1001)
  both = np.stack([values, 2 * values + 1])
  found = intervals.bootstrap_examples(both, key=KEY, chunk=128)
  np.testing.assert_allclose(found.low[1], 2 * found.low[0] + 1, atol=1e-4)
  np.testing.assert_allclose(found.high[1], 2 * found.high[0] + 1, atol=1e-4)
  alone = intervals.bootstrap_examples(values, key=KEY, chunk=128)
  np.testing.assert_allclose(alone.low, found.low[0], rtol=1e-4)
  other = intervals.bootstrap_examples(values, key=jax.random.key(1), chunk=128)
  assert float(other.low) != float(alone.low)


def _model_pairs(num_models, num_sets=600):
  """|x_i - x_j| of normal models, of mean 2 / sqrt(pi), by pair."""
  x = np.random.default_rng(5).normal(size=(num_sets, num_models))
  i, j = differences.pair_indices(num_models)
  return np.abs(x[:, i] - x[:, j]), 2 / math.sqrt(math.pi)


def test_models_cover_a_known_difference():
  values, truth = _model_pairs(20)
  found = intervals.bootstrap_models(values, key=KEY)
  assert 0.88 <= _coverage(found, truth) <= 0.97
  # To draw pairs as if they were independent is far from it.
  drawn = np.random.default_rng(6).integers(0, 190, (300, 190))
  means = values[:, drawn].mean(axis=-1)
  low, high = np.quantile(means, [0.025, 0.975], axis=1)
  naive = np.mean((low <= truth) & (truth <= high))
  assert naive < 0.65


@pytest.mark.parametrize("num_models", [4, 8])
def test_jackknife_covers_with_few_models(num_models):
  values, truth = _model_pairs(num_models)
  found = intervals.jackknife_models(values)
  assert 0.88 <= _coverage(found, truth) <= 0.98
  assert (np.asarray(found.low) >= 0).all()


def test_models_by_hand():
  values = np.array([0.1, 0.2, 0.4])  # Pairs 01, 02, 12.
  matrix = np.zeros((3, 3))
  matrix[0, 1], matrix[0, 2], matrix[1, 2] = values
  matrix += matrix.T
  drawn = np.asarray(jax.random.randint(KEY, (50, 3), 0, 3))
  means = []
  for models in drawn:
    pairs = [
      matrix[models[a], models[b]]
      for a, b in zip(*differences.pair_indices(3))
      if models[a] != models[b]
    ]
    means.append(np.mean(pairs) if pairs else np.nan)
  expected = np.nanquantile(means, [0.025, 0.975])
  found = intervals.bootstrap_models(values, key=KEY, num_samples=50)
  np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-5)


def test_jackknife_of_a_sum_is_students_interval():
  # U of the kernel (x_i + x_j) / 2 is the mean, of which Student's interval is
  # exact; and it may be below zero.
  x = np.random.default_rng(7).normal(size=6)
  i, j = differences.pair_indices(6)
  found = intervals.jackknife_models((x[i] + x[j]) / 2)
  width = stats.t.ppf(0.975, 5) * x.std(ddof=1) / math.sqrt(6)
  np.testing.assert_allclose(found.estimate, x.mean(), rtol=1e-4)
  np.testing.assert_allclose(found.high - found.low, 2 * width, rtol=1e-4)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 30, 63])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.975])
def test_student_quantile_is_that_of_scipy(degrees, probability):
  np.testing.assert_allclose(
    intervals.student_quantile(probability, degrees),
    stats.t.ppf(probability, degrees),
    rtol=1e-9,
    atol=1e-12,
  )


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: intervals.bootstrap_examples([1.0], key=KEY, level=1), "level=1"),
    (
      lambda: intervals.bootstrap_examples([1.0], key=KEY, num_samples=0),
      "num_samples=0",
    ),
    (lambda: intervals.bootstrap_examples([1.0], key=KEY, chunk=0), "chunk=0"),
    (
      lambda: intervals.bootstrap_examples([1.0], key=KEY, weights=[0.0]),
      "not all 0",
    ),
    (
      lambda: intervals.bootstrap_examples([1.0], key=KEY, groups=[0, 1]),
      "groups has shape",
    ),
    (lambda: intervals.bootstrap_models([1.0], key=KEY), "three models"),
    (lambda: intervals.jackknife_models(jnp.ones(4)), "4 values"),
    (lambda: intervals.student_quantile(0.2, 3), "probability=0.2"),
  ],
)
def test_bad_arguments_are_refused(call, words):
  with pytest.raises(ValueError, match=words):
    call()


def test_a_key_is_required():
  with pytest.raises(TypeError, match="key"):
    intervals.bootstrap_examples([1.0])
