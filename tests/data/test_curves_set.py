"""CURVES: the worked image, determinism, errors."""

from __future__ import annotations

import numpy as np
import pytest

from locojax.data import curves


def test_worked_image():
  points = np.array([[[6, 8], [14, 20], [22, 7]]], float)
  (image,) = curves.render(points, size=28)
  np.testing.assert_allclose(image.sum(), 65.58623955, rtol=1e-6)
  for pixel, value in (
    ((6, 8), 1.0),
    ((14, 20), 0.99490039),
    ((10, 15), 0.39781303),
    ((20, 12), 0.96032315),
  ):
    np.testing.assert_allclose(image[pixel], value, atol=1e-7)


def test_a_straight_line_is_its_distance():
  points = np.array([[[2, 5], [5, 5], [8, 5]]], float)
  (image,) = curves.render(points, size=11, num_samples=601)
  column = np.arange(11)
  expected = np.exp(-((column - 5.0) ** 2) / (2 * 0.8**2))
  np.testing.assert_allclose(image[4], expected, atol=1e-5)


def test_same_seed_same_images_and_more_than_one_chunk():
  make = lambda n: curves.curves(n, rng=np.random.default_rng(3), size=9)
  a, b = make(300), make(300)
  np.testing.assert_array_equal(a, b)
  assert a.shape == (300, 9, 9) and a.dtype == np.float32
  assert a.min() >= 0 and a.max() <= 1
  assert len(np.unique(a.reshape(300, -1), axis=0)) == 300


def test_bad_sizes():
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match="num_examples=0"):
    curves.curves(0, rng=rng)
  with pytest.raises(ValueError, match="sigma=0"):
    curves.curves(1, rng=rng, sigma=0)
