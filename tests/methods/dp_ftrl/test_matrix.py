"""Matrix mechanisms: streams are C^-1, samplers have whole tails."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from locojax.methods.dp_ftrl import (
  accounting,
  matrix,
  noise,
  sampling,
  sensitivity,
)

NUM = 12
STRATEGIES = {
  "identity": matrix.identity(),
  "sqrt": matrix.sqrt_toeplitz(NUM),
  "banded": matrix.banded([1.0, 0.4, 0.2]),
  "one band": matrix.banded([2.0]),
  "blt": matrix.blt([0.9, 0.5], [0.3, 0.1]),
  "dense": matrix.dense(
    np.tril(np.random.default_rng(0).random((NUM, NUM))) + np.eye(NUM)
  ),
}


def _streamed(strategy, rows):
  shapes = {"a": jnp.zeros((3,)), "b": jnp.zeros(())}
  state, out = strategy.init(shapes), []
  step = jax.jit(strategy.next)
  for t, row in enumerate(rows):
    made, state = step({"a": row[:3], "b": row[3]}, state, jnp.int32(t))
    out.append(np.append(made["a"], made["b"]))
  return np.stack(out)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_stream_is_the_inverse(name):
  strategy = STRATEGIES[name]
  z = np.random.default_rng(1).normal(size=(NUM, 4)).astype(np.float32)
  expected = np.linalg.solve(strategy.matrix(NUM), z)
  np.testing.assert_allclose(_streamed(strategy, z), expected, atol=2e-5)


def test_square_root_coefficients():
  c = matrix.sqrt_coefficients(6)
  np.testing.assert_allclose(c, [1, 0.5, 0.375, 0.3125, 0.2734375, 0.24609375])
  dense = matrix.toeplitz_matrix(c, 6)
  np.testing.assert_allclose(dense @ dense, np.tril(np.ones((6, 6))))
  inverse = np.linalg.inv(dense)[:5, 0]
  np.testing.assert_allclose(inverse, [1, -0.5, -0.125, -0.0625, -0.0390625])


def test_the_inverse_of_a_blt_is_one():
  theta, omega = [0.95, 0.6], [0.25, 0.15]
  other = matrix.blt_inverse(theta, omega)
  product = matrix.toeplitz_matrix(
    matrix.blt_coefficients(theta, omega, 9), 9
  ) @ matrix.toeplitz_matrix(matrix.blt_coefficients(*other, 9), 9)
  np.testing.assert_allclose(product, np.eye(9), atol=1e-12)


def test_fitted_buffers_beat_the_square_root():
  num, k, b = 200, 3, 60
  theta, omega = matrix.fit_blt(
    num, num_buffers=2, max_participations=k, min_sep=b
  )

  def loss(c):
    squared = sensitivity.toeplitz(
      c, num_rounds=num, max_participations=k, min_sep=b
    )
    dense = matrix.toeplitz_matrix(c, num)
    return squared * matrix.prefix_variances(dense).mean()

  fitted = loss(matrix.blt_coefficients(theta, omega, num))
  assert fitted < loss(matrix.sqrt_coefficients(num))
  assert fitted < loss(np.eye(1, num)[0])


def test_added_noise_has_the_covariance():
  strategy = STRATEGIES["blt"]
  tx = noise.add_matrix_noise(
    strategy, 2.0, 1.5, key=jax.random.key(0), max_rounds=8
  )
  x = jnp.zeros(40_000)
  state, rows = tx.init(x), []
  for _ in range(8):
    updates, state = jax.jit(tx.update)(x, state)
    rows.append(np.asarray(updates))
  found = np.stack(rows) @ np.stack(rows).T / 40_000 / 9
  inverse = np.linalg.inv(strategy.matrix(8))
  np.testing.assert_allclose(found, inverse @ inverse.T, atol=0.03)
  noise.check_open(state)
  last, state = tx.update(x, state)
  assert np.isnan(last).all()
  with pytest.raises(noise.Closed, match="closed in round 8"):
    noise.check_open(state)


def test_strategies_end():
  with pytest.raises(ValueError, match="max_rounds=13"):
    noise.add_matrix_noise(
      STRATEGIES["sqrt"], 1.0, 1.0, key=jax.random.key(0), max_rounds=13
    )


def test_a_foreign_stream_is_taken():
  class Differences:
    """C^-1 with 1 on the diagonal and -1/2 below it."""

    def init_multiply(self, value):
      return jax.tree.map(jnp.zeros_like, value)

    def multiply_next(self, value, state):
      out = jax.tree.map(lambda v, s: v - 0.5 * s, value, state)
      return out, value

  strategy = matrix.from_streaming(Differences(), num_rounds=NUM)
  z = np.random.default_rng(1).normal(size=(NUM, 4)).astype(np.float32)
  expected = z - 0.5 * np.vstack([np.zeros((1, 4)), z[:-1]])
  np.testing.assert_allclose(_streamed(strategy, z), expected, atol=1e-6)
  with pytest.raises(ValueError, match="multiply"):
    matrix.from_streaming(object())


def test_normal_samples_are_normal_with_whole_tails():
  x = np.asarray(sampling.normal(jax.random.key(0), (400_000,)), np.float64)
  assert stats.kstest(x, "norm").pvalue > 1e-3
  assert abs(stats.skew(x)) < 0.02 and abs(stats.kurtosis(x)) < 0.04
  # The map from bits to values, far beyond where 24 bits end.
  for bits in (1.0, 2.0**20, 2.0**40, 2.0**60):
    p = bits * 2.0**-64
    value = -float(jax.scipy.special.ndtri(jnp.float32(p)))
    assert value == pytest.approx(-stats.norm.ppf(p), rel=2e-6)
  assert -stats.norm.ppf(2.0**-65) > 9.1


@pytest.mark.parametrize("sigma", [0.7, 5.0, 300.0])
def test_discrete_gaussian_has_its_probabilities(sigma):
  x = np.asarray(
    sampling.discrete_gaussian(jax.random.key(1), (200_000,), sigma)
  )
  k = np.arange(-int(9 * sigma) - 2, int(9 * sigma) + 3)
  mass = np.exp(-(k**2) / (2 * sigma**2))
  mass /= mass.sum()
  assert x.mean() == pytest.approx(0, abs=5 * sigma / 447)
  assert x.var() == pytest.approx((mass * k**2).sum(), rel=0.02)
  near = np.abs(k) <= 2 * sigma
  counts = np.array([(x == i).sum() for i in k[near][:40]])
  expected = 200_000 * mass[near][:40]
  z = (counts - expected) / np.sqrt(expected * (1 - mass[near][:40]))
  assert np.abs(z).max() < 4.5


def test_the_table_is_exact_to_its_bits():
  table = sampling._table(5.0).astype(object)
  total = table[0] * 2**32 + table[1]
  k = np.arange(len(total))
  mass = np.exp(-(k.astype(np.longdouble) ** 2) / 50)
  mass[1:] *= 2
  expected = np.cumsum(mass / mass.sum())
  found = total.astype(np.float64) / 2.0**64
  np.testing.assert_allclose(found, expected.astype(np.float64), atol=1e-15)
  assert all(a <= b for a, b in zip(total, total[1:]))


@pytest.mark.parametrize(
  "make, words",
  [
    (lambda: matrix.banded([0.0, 1.0]), "coefficients"),
    (lambda: matrix.blt([1.0], [0.5]), r"in \(0, 1\)"),
    (lambda: matrix.blt([0.5], [0.5, 0.1]), r"\[buffers\]"),
    (lambda: matrix.dense(np.ones((2, 2))), "lower"),
    (lambda: matrix.dense(np.zeros((2, 2))), "diagonal"),
    (
      lambda: sampling.discrete_gaussian(jax.random.key(0), (), 0.0),
      "sigma=0.0",
    ),
  ],
)
def test_mistakes_are_named(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_equal_rho_for_all_mechanisms():
  zeta = sensitivity.tree(64, 2, 20)
  z = accounting.noise_multiplier_for(zeta, rho=0.5)
  assert accounting.zcdp(zeta, z) == pytest.approx(0.5)


def test_strategies_of_jax_privacy_give_the_noise_of_ours():
  from jax_privacy.matrix_factorization import buffered_toeplitz, toeplitz

  z = np.random.default_rng(3).normal(size=(NUM, 4)).astype(np.float32)
  c = np.array([1.0, 0.5, 0.375])
  theirs = matrix.from_streaming(
    toeplitz.inverse_as_streaming_matrix(jnp.asarray(c, jnp.float32)),
    num_rounds=NUM,
  )
  np.testing.assert_allclose(
    _streamed(theirs, z), _streamed(matrix.banded(c), z), atol=1e-5
  )
  theta, omega = [0.9, 0.5], [0.2, 0.1]
  with jax.enable_x64(True):
    blt = buffered_toeplitz.BufferedToeplitz.build(
      buf_decay=theta, output_scale=omega
    )
    coefficients = np.asarray(blt.toeplitz_coefs(NUM))
  np.testing.assert_allclose(
    coefficients, matrix.blt_coefficients(theta, omega, NUM), rtol=1e-6
  )


def test_an_optimised_blt_of_jax_privacy_is_taken_without_x64():
  from jax_privacy.matrix_factorization import buffered_toeplitz

  found = buffered_toeplitz.optimize(n=NUM, min_sep=1, max_participations=1)
  assert np.asarray(found.buf_decay).dtype == np.float64
  assert not jax.config.jax_enable_x64
  ours = matrix.from_buffered_toeplitz(found)
  with jax.enable_x64(True):
    column = np.asarray(found.toeplitz_coefs(NUM), np.float64)
  c = ours.matrix(NUM)
  np.testing.assert_allclose(c[:, 0], column, rtol=1e-12)
  z = np.random.default_rng(5).normal(size=(NUM, 4)).astype(np.float32)
  np.testing.assert_allclose(
    _streamed(ours, z), np.linalg.solve(c, z), atol=1e-4
  )
  with pytest.raises(ValueError, match="has no buf_decay"):
    matrix.from_buffered_toeplitz(object())
