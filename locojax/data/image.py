"""Augmentations of images as NumPy functions of (images, rng).

Each takes one image `[height, width, channels]` or a batch of them
`[n, height, width, channels]`, and draws for each image by itself. `chain`
makes of them the `map` or `random_map` of `pipeline.batches` (examples) as well
as of `pipeline.array_batches` (whole batches), so that batch k stays a function
of (seed, k):

    augment = image.chain(
      functools.partial(image.random_crop, pad=4),
      image.random_flip,
      functools.partial(
        image.normalize, mean=image.CIFAR10_MEAN, std=image.CIFAR10_STD
      ),
    )
    pipeline.array_batches(arrays, random_map=augment, ...)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import checks

# (images, rng) -> images
ImageFn = Callable[[np.ndarray, np.random.Generator | None], np.ndarray]

# Of the channels red, green and blue in [0, 1], as is usual for these sets.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)
CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)

PAD_MODES = ("constant", "edge", "reflect")


def _as_batch(images: Any) -> np.ndarray:
  """`[n, height, width, channels]`, with n = 1 for a single image."""
  images = np.asarray(images)
  if images.ndim not in (3, 4):
    raise ValueError(
      f"images of shape {images.shape} are not allowed: they must be [height, "
      "width, channels] or [n, height, width, channels]."
    )
  return images if images.ndim == 4 else images[None]


def chain(
  *functions: ImageFn, key: str = "image"
) -> Callable[..., dict[str, Any]]:
  """A map of examples, or of batches, from functions of their images.

  Args:
    *functions: applied in turn, each as `f(images, rng)`.
    key: name of the images in the example.

  Returns:
    `(example, rng=None) -> example`, everything but `key` untouched. The rng
    may be left out if no function is random.

  Raises:
    ValueError: on a call with an example that has no `key`.

  >>> flip = chain(lambda images, rng: images[..., ::-1, :])
  >>> flip({"image": np.array([[[1], [2]]]), "label": 3})["image"].tolist()
  [[[2], [1]]]
  """

  def apply(
    example: Mapping[str, Any], rng: np.random.Generator | None = None
  ) -> dict[str, Any]:
    checks.one_of("key", key, example)
    images = example[key]
    for f in functions:
      images = f(images, rng)
    return {**example, key: images}

  return apply


def opaque(images: Any, background: int = 255) -> np.ndarray:
  """Transparent images laid on a grey background, white unless told.

  Args:
    images: `[..., 4]` uint8: red, green, blue and alpha.
    background: 0 to 255.

  Returns:
    `[..., 3]` uint8, `round(colour alpha + background (1 - alpha))`.

  >>> opaque(np.array([[0, 0, 0, 0], [9, 8, 7, 255]], np.uint8)).tolist()
  [[255, 255, 255], [9, 8, 7]]
  """
  images = np.asarray(images)
  if images.dtype != np.uint8 or images.shape[-1:] != (4,):
    raise ValueError(
      f"images of dtype {images.dtype} and shape {images.shape} are not "
      "allowed: they must be uint8 [..., 4]."
    )
  alpha = images[..., 3:].astype(np.float32) / 255
  out = images[..., :3] * alpha + background * (1 - alpha)
  return np.round(out).astype(np.uint8)


def random_crop(
  images: Any,
  rng: np.random.Generator,
  *,
  pad: int,
  mode: str = "constant",
) -> np.ndarray:
  """Pads every side and cuts out a window of the old size at random.

  The offsets (row, column) are uniform on {0, ..., 2 pad}^2, each image its
  own.

  Args:
    images: `[height, width, channels]` or `[n, height, width, channels]`.
    rng: source of the offsets.
    pad: pixels on each side, 0 or more.
    mode: what fills them: `constant` (0), `edge` or `reflect` (then `pad` must
      be below the height and width).

  Returns:
    Shape and dtype of `images`.

  Raises:
    ValueError: a bad shape, pad or mode.
  """
  if pad != 0:
    checks.positive_int("pad", pad)
  checks.one_of("mode", mode, PAD_MODES)
  batch = _as_batch(images)
  n, height, width = batch.shape[:3]
  if mode == "reflect":
    checks.in_range("pad", pad, 0, min(height, width) - 1)
  border = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  padded = np.pad(batch, border, mode=mode)
  top, left = rng.integers(0, 2 * pad + 1, (2, n))
  out = np.empty_like(batch)
  for i in range(n):
    rows = slice(top[i], top[i] + height)
    out[i] = padded[i, rows, left[i] : left[i] + width]
  return out.reshape(np.shape(images))


def random_flip(
  images: Any, rng: np.random.Generator, *, probability: float = 0.5
) -> np.ndarray:
  """Mirrors each image, left to right, with the given probability.

  Args:
    images: `[height, width, channels]` or `[n, height, width, channels]`.
    rng: source of the choice.
    probability: in [0, 1].

  Returns:
    Shape and dtype of `images`.

  Raises:
    ValueError: a bad shape or probability.
  """
  checks.in_range("probability", probability, 0, 1)
  batch = _as_batch(images)
  flip = rng.random(len(batch)) < probability
  out = np.where(flip[:, None, None, None], batch[:, :, ::-1], batch)
  return out.reshape(np.shape(images))


def cutout(
  images: Any, rng: np.random.Generator, *, size: int, fill: float = 0
) -> np.ndarray:
  """Blanks a square at a random place (DeVries and Taylor 2017).

  The centre is uniform over the pixels, so part of the square may lie outside
  the image.

  Args:
    images: `[height, width, channels]` or `[n, height, width, channels]`.
    rng: source of the places.
    size: side of the square in pixels, 1 or more.
    fill: value of its pixels.

  Returns:
    Shape and dtype of `images`.

  Raises:
    ValueError: a bad shape or size, or a fill that the dtype does not hold.
  """
  checks.positive_int("size", size)
  batch = _as_batch(images)
  n, height, width = batch.shape[:3]
  top = rng.integers(0, height, n) - size // 2
  left = rng.integers(0, width, n) - size // 2
  row = np.arange(height) - top[:, None]
  column = np.arange(width) - left[:, None]
  in_row = (row >= 0) & (row < size)
  in_column = (column >= 0) & (column < size)
  hole = in_row[:, :, None, None] & in_column[:, None, :, None]
  kept = np.array(fill).astype(batch.dtype)
  if batch.dtype.kind in "iu" and kept != fill:
    checks.refuse("fill", fill, f"a value of {batch.dtype}, as the images are")
  out = np.where(hole, kept, batch)
  return out.reshape(np.shape(images))


def normalize(
  images: Any,
  rng: np.random.Generator | None = None,
  *,
  mean: Sequence[float],
  std: Sequence[float],
) -> np.ndarray:
  """(images - mean) / std by channel, with uint8 first divided by 255.

  Args:
    images: `[..., channels]`, uint8 in 0..255, or floats in [0, 1].
    rng: not used; it lets the function stand in a `chain`.
    mean, std: a number a channel, in units of [0, 1]; std above 0.

  Returns:
    Shape of `images`, float32.

  Raises:
    ValueError: another integer dtype, sizes that differ, or std not above 0.
  """
  del rng
  images = np.asarray(images)
  if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
    raise ValueError(
      f"images of dtype {images.dtype} are not allowed: they must be uint8 or "
      "floats."
    )
  for name, values in (("mean", mean), ("std", std)):
    if np.shape(values) != images.shape[-1:]:
      raise ValueError(
        f"{name}={values!r} is not allowed: it must have one number for each "
        f"of the {images.shape[-1]} channels."
      )
  for value in std:
    checks.positive("std", float(value))
  unit = 255.0 if images.dtype == np.uint8 else 1.0
  scale = np.float32(1.0 / (unit * np.asarray(std, np.float64)))
  shift = np.float32(np.asarray(mean, np.float64) / np.asarray(std))
  return images.astype(np.float32) * scale - shift
