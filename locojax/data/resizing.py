"""Bilinear resizing of image arrays, in NumPy.

Pixels are squares: the middle of output pixel i is at `(i + 1/2) in / out` of
the input, so that boxes in shares of the image stay where they were. What lies
outside does not count. With antialiasing (as Pillow and `jax.image.resize` have
it) the kernel widens when the image shrinks; without (as TensorFlow), a pixel
is made of the four around its middle.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from locojax.core import checks


def _taps(size: int, wanted: int, antialias: bool):
  """Input positions and weights `[wanted, taps]` of each output position."""
  scale = size / wanted
  width = max(scale, 1.0) if antialias else 1.0
  middle = (np.arange(wanted) + 0.5) * scale - 0.5
  first = np.ceil(middle - width).astype(int)
  at = first[:, None] + np.arange(int(np.floor(2 * width)) + 1)
  weights = np.maximum(0.0, 1.0 - np.abs(at - middle[:, None]) / width)
  weights[(at < 0) | (at >= size)] = 0.0
  weights /= weights.sum(axis=1, keepdims=True)
  return np.clip(at, 0, size - 1), weights.astype(np.float32)


def _along_rows(image: np.ndarray, wanted: int, antialias: bool) -> np.ndarray:
  if image.shape[0] == wanted:
    return image
  at, weights = _taps(image.shape[0], wanted, antialias)
  out = np.zeros((wanted, *image.shape[1:]), np.float32)
  for k in range(at.shape[1]):
    out += weights[:, k, None, None] * image[at[:, k]]
  return out


def resize(
  image: Any, size: tuple[int, int], *, antialias: bool = True
) -> np.ndarray:
  """An image in another size, bilinear.

  Args:
    image: `[height, width, channels]`, uint8 or floats.
    size: (height, width), each 1 or more.
    antialias: see the head of this file.

  Returns:
    `[*size, channels]`; uint8 of uint8, rounded, else float32.

  Raises:
    ValueError: another shape, dtype or size.
  """
  image = np.asarray(image)
  height, width = checks.sizes("size", size)
  if image.ndim != 3 or 0 in image.shape[:2]:
    raise ValueError(
      f"image of shape {image.shape} is not allowed: it must be [height, "
      "width, channels]."
    )
  if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
    raise ValueError(
      f"image of dtype {image.dtype} is not allowed: it must be uint8 or "
      "floats."
    )
  out = image.astype(np.float32)
  out = _along_rows(out, height, antialias)
  out = _along_rows(out.swapaxes(0, 1), width, antialias).swapaxes(0, 1)
  if image.dtype == np.uint8:
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)
  return np.ascontiguousarray(out)
