"""Fits of buffers are as good as the best of many random starts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from locojax.methods.dp_ftrl import matrix, sensitivity

# (T, buffers, k, b, objective) -> the least loss of 20 or more random starts
# and those of `fit_blt`, found on 2026-11-29.
BEST = {
  (2000, 1, 6, 314, "max"): 135.221557,
  (2000, 2, 6, 314, "max"): 119.224517,
  (2000, 3, 6, 314, "max"): 117.234794,
  (2000, 4, 6, 314, "max"): 116.945763,
  (2000, 3, 6, 314, "mean"): 85.202012,
  (2000, 3, 1, 1, "max"): 12.219562,
  (2000, 3, 1, 1, "mean"): 10.716872,
  (1600, 4, 1, 1, "mean"): 10.235790,
  (600, 3, 10, 60, "mean"): 136.446358,
  (500, 3, 4, 100, "max"): 54.854668,
  (240, 3, 5, 48, "mean"): 44.113610,
  (200, 2, 3, 60, "mean"): 22.627148,
  (160, 3, 8, 20, "mean"): 77.431108,
  (100, 3, 10, 10, "max"): 157.602689,
  (64, 4, 4, 16, "max"): 34.857276,
  (20, 3, 2, 10, "mean"): 7.230755,
  (6, 3, 1, 6, "mean"): 2.134977,
}
QUICK = {
  (2000, 3, 6, 314, "max"),
  (200, 2, 3, 60, "mean"),
  (100, 3, 10, 10, "max"),
}


def _fit(num, buffers, k, b, objective):
  return matrix.fit_blt(
    num,
    num_buffers=buffers,
    max_participations=k,
    min_sep=b,
    objective=objective,
  )


def _variances(c):
  noise = signal.lfilter([1.0], c, np.eye(1, len(c))[0])
  return np.cumsum(np.cumsum(noise) ** 2)


@pytest.mark.parametrize(
  "setting",
  [
    pytest.param(s, marks=() if s in QUICK else pytest.mark.slow, id=str(s))
    for s in BEST
  ],
)
def test_a_fit_is_as_good_as_the_best_known(setting):
  num, _, k, b, objective = setting
  theta, omega = _fit(*setting)
  assert (np.diff(theta) <= 0).all() and (theta > 0).all() and theta[0] < 1
  c = matrix.blt_coefficients(theta, omega, num)
  assert (np.diff(c) <= 1e-12).all() and (c >= 0).all()
  squared = sensitivity.toeplitz(
    c, num_rounds=num, max_participations=k, min_sep=b
  )
  loss = squared * getattr(np, objective)(_variances(c))
  assert loss <= BEST[setting] * (1 + 1e-6)


def test_a_fit_is_the_same_again():
  first, again = (_fit(20, 2, 3, 6, "max") for _ in range(2))
  np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("num", [1, 2, 9, 64])
def test_the_loss_of_the_search_is_the_loss(num):
  """Also with equal decays, where C^-1 has no eigenvectors of its own."""
  for theta, omega in (
    ([0.9, 0.4], [0.3, 0.2]),
    ([0.8, 0.8, 0.3], [0.2, 0.2, 0.1]),
    ([0.99], [1e-9]),
  ):
    theta, omega = np.array(theta), np.array(omega)
    c = matrix.blt_coefficients(theta, omega, num)
    inverse = matrix._blt_inverse_coefficients(theta, omega, num)
    product = np.convolve(c, inverse)[:num]
    np.testing.assert_allclose(product, np.eye(1, num)[0], atol=1e-12)
    k = sensitivity.feasible(num, 3, 2)
    squared = sensitivity.toeplitz(
      c, num_rounds=num, max_participations=k, min_sep=2
    )
    for objective in ("mean", "max"):
      found = matrix._blt_loss(theta, omega, num, k, 2, objective)
      wanted = squared * getattr(np, objective)(_variances(c))
      assert found == pytest.approx(wanted, rel=1e-10)
