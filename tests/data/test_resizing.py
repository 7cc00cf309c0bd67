"""Bilinear resizing equals Pillow's and JAX's."""

import jax
import numpy as np
import pytest
from PIL import Image

from locojax.data import resizing

SIZES = [(7, 9), (5, 23), (31, 4), (13, 17)]


@pytest.mark.parametrize("size", SIZES)
def test_equal_to_jax_and_pillow(size):
  image = np.random.default_rng(0).random((13, 17, 3)).astype(np.float32)
  for antialias in (True, False):
    found = resizing.resize(image, size, antialias=antialias)
    wanted = jax.image.resize(
      image, (*size, 3), method="linear", antialias=antialias
    )
    np.testing.assert_allclose(found, wanted, atol=2e-6)
  pixels = (image * 255).astype(np.uint8)
  theirs = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
  found = resizing.resize(pixels, size)
  assert found.dtype == np.uint8
  gap = np.abs(found.astype(int) - np.asarray(theirs).astype(int))
  assert gap.max() <= 1


def test_a_constant_stays_and_the_same_size_is_the_same():
  image = np.full((5, 6, 1), 77, np.uint8)
  assert (resizing.resize(image, (11, 3)) == 77).all()
  noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
  np.testing.assert_array_equal(resizing.resize(noise, (5, 6)), noise)


def test_bad_values_are_named():
  with pytest.raises(ValueError, match=r"size=\(0, 3\)"):
    resizing.resize(np.zeros((2, 2, 1)), (0, 3))
  with pytest.raises(ValueError, match="dtype int32"):
    resizing.resize(np.zeros((2, 2, 1), np.int32), (2, 3))
  with pytest.raises(ValueError, match="shape"):
    resizing.resize(np.zeros((2, 2)), (2, 3))
