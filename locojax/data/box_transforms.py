"""Augmentations of images with boxes, as functions of (example, rng).

They take the examples of `boxes` and stand, one by one or in a `chain`, as the
`map` or `random_map` of `pipeline.batches`:

    train = box_transforms.chain(
      functools.partial(box_transforms.scale_jitter, size=(640, 640)),
      functools.partial(box_transforms.fixed_crop, size=(640, 640)),
      box_transforms.random_flip,
      box_transforms.filter_invalid,
      functools.partial(box_transforms.pad, size=(640, 640)),
      functools.partial(box_transforms.pad_objects, max_objects=100),
    )

That is the training of Pix2Seq (arXiv 2109.10852), but for the order of objects
and noise, which are on the device (`locojax.pix2seq`). Boxes are shares of the
image as it is at each point. `area`, `size` and `image_id` stay those of the
image that was read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import boxes as layouts
from locojax.core import checks
from locojax.data import resizing

Example = Mapping[str, Any]
# (example, rng) -> example
Transform = Callable[[Example, np.random.Generator | None], dict[str, Any]]
# What an example has for each of its objects.
OBJECT_KEYS = ("boxes", "labels", "area", "is_crowd")
PAD_VALUE = 0.3
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_TO_YIQ = np.array(
  [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]
)


def chain(*functions: Transform) -> Transform:
  """The functions one after the other; all draw from the same rng."""

  def apply(
    example: Example, rng: np.random.Generator | None = None
  ) -> dict[str, Any]:
    for f in functions:
      example = f(example, rng)
    return dict(example)

  return apply


def _image(example: Example) -> np.ndarray:
  checks.one_of("key", "image", example)
  image = np.asarray(example["image"])
  if image.ndim != 3:
    raise ValueError(
      f"image of shape {image.shape} is not allowed: it must be [height, "
      "width, channels]."
    )
  return image


def _size(value: Any) -> tuple[int, int]:
  found = checks.sizes("size", value)
  if len(found) != 2:
    checks.refuse("size", value, "(height, width)")
  return found


def _kept(example: Example, keep: np.ndarray) -> dict[str, Any]:
  """The objects of a mask or of positions."""
  own = {k: np.asarray(example[k])[keep] for k in OBJECT_KEYS if k in example}
  return {**example, **own}


def _unit(image: np.ndarray) -> np.ndarray:
  """Float32 in [0, 1] from uint8, floats as they are."""
  image = image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)
  return image


def _like(image: np.ndarray, dtype: Any) -> np.ndarray:
  if dtype == np.uint8:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
  return image.astype(np.float32)


def to_float(example: Example, rng=None) -> dict[str, Any]:
  """The image as float32 in [0, 1]; no mean is taken off."""
  del rng
  return {**example, "image": _unit(_image(example))}


def scale_jitter(
  example: Example,
  rng: np.random.Generator,
  *,
  size: tuple[int, int],
  low: float = 0.3,
  high: float = 2.0,
) -> dict[str, Any]:
  """Resizes by `s min(H / h, W / w)`, s ~ U[low, high]; bilinear, no antialias.

  Sizes are truncated to integers, 1 or more. Boxes stay as they are.

  Args:
    example: with an image.
    rng: of s.
    size: (H, W) that s = 1 fits in.
    low, high: above 0.
  """
  size = _size(size)
  checks.positive("low", low)
  checks.positive("high", high)
  if low > high:
    checks.refuse("low", low, f"at most high={high}")
  image = _image(example)
  scale = rng.uniform(low, high) * min(np.array(size) / image.shape[:2])
  wanted = tuple(max(1, int(scale * s + 1e-6)) for s in image.shape[:2])
  image = resizing.resize(image, wanted, antialias=False)
  return {**example, "image": image}


def resize_to_fit(
  example: Example, rng=None, *, size: tuple[int, int], antialias: bool = True
) -> dict[str, Any]:
  """The largest size of the same aspect that fits in, bilinear.

  Args:
    example: with an image; boxes stay as they are.
    rng: not used.
    size: (height, width).
    antialias: of `resizing.resize`.
  """
  del rng
  image, size = _image(example), _size(size)
  scale = min(np.array(size) / image.shape[:2])
  fitted = (min(max(1, round(scale * a)), b) for a, b in zip(image.shape, size))
  image = resizing.resize(image, tuple(fitted), antialias=antialias)
  return {**example, "image": image}


def fixed_crop(
  example: Example, rng: np.random.Generator, *, size: tuple[int, int]
) -> dict[str, Any]:
  """Cuts out a window where the image is larger; two independent offsets.

  (The official code has one random number for both axes.) Boxes are cut at the
  window: those outside it have no area left, see `filter_invalid`.

  Args:
    example: with `image` and `boxes`.
    rng: of the offsets, uniform on those that fit.
    size: (height, width) of the window; a shorter side stays as it is.
  """
  image, size = _image(example), _size(size)
  full = np.array(image.shape[:2])
  window = np.minimum(full, size)
  corner = rng.integers(0, full - window + 1)
  rows, columns = (slice(c, c + w) for c, w in zip(corner, window))
  moved = np.asarray(example["boxes"]) * np.tile(full, 2) - np.tile(corner, 2)
  boxes = np.clip(moved / np.tile(window, 2), 0, 1).astype(np.float32)
  return {**example, "image": image[rows, columns], "boxes": boxes}


def flip(example: Example, rng=None) -> dict[str, Any]:
  """The mirror image, left to right; twice is the identity."""
  del rng
  top, left, bottom, right = np.asarray(example["boxes"]).T
  boxes = np.stack([top, 1 - right, bottom, 1 - left], axis=-1)
  return {**example, "image": _image(example)[:, ::-1], "boxes": boxes}


def random_flip(
  example: Example, rng: np.random.Generator, *, probability: float = 0.5
) -> dict[str, Any]:
  """`flip` with a probability."""
  checks.in_range("probability", probability, 0, 1)
  return flip(example) if rng.random() < probability else dict(example)


def _contrast(image: np.ndarray, by: float) -> np.ndarray:
  mean = image.mean(axis=(0, 1))
  return (image - mean) * by + mean


def _saturation(image: np.ndarray, by: float) -> np.ndarray:
  grey = (image @ _LUMA)[..., None]
  return grey + (image - grey) * by


def _hue(image: np.ndarray, turns: float) -> np.ndarray:
  """Turns the colours around the grey axis."""
  c, s = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
  turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
  return image @ (np.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ).T.astype(np.float32)


def colour_jitter(
  example: Example, rng: np.random.Generator, *, strength: float = 0.5
) -> dict[str, Any]:
  """Brightness, contrast, saturation and hue at random, in random order.

  The first three are factors U[1 - 0.8 s, 1 + 0.8 s] (0 or more), hue turns by
  U[-0.2 s, 0.2 s], as in SimCLR (Chen et al. 2020). Values are cut to [0, 1].

  Args:
    example: with a colour image, uint8 or floats in [0, 1].
    rng: of all draws.
    strength: s in [0, 1.25].
  """
  checks.in_range("strength", strength, 0, 1.25)
  image = _image(example)
  if image.shape[-1] != 3:
    checks.refuse("channels", image.shape[-1], "3")
  out = _unit(image)
  factors = rng.uniform(1 - 0.8 * strength, 1 + 0.8 * strength, 3)
  turns = rng.uniform(-0.2 * strength, 0.2 * strength)
  steps = (
    lambda x: x * np.float32(factors[0]),
    lambda x: _contrast(x, np.float32(factors[1])),
    lambda x: _saturation(x, np.float32(factors[2])),
    lambda x: _hue(x, turns),
  )
  for k in rng.permutation(len(steps)):
    out = np.clip(steps[k](out), 0, 1)
  return {**example, "image": _like(out, image.dtype)}


def pad(
  example: Example,
  rng=None,
  *,
  size: tuple[int, int],
  value: float = PAD_VALUE,
) -> dict[str, Any]:
  """Fills up at the bottom and right; boxes become shares of the canvas.

  Args:
    example: with `image`, at most `size`, and `boxes`.
    rng: not used.
    size: (height, width) of the canvas.
    value: of the new pixels, in [0, 1]; of 255 in uint8 images.

  Returns:
    The example with `unpadded`, (height, width) of the image in it, int32.

  Raises:
    ValueError: the image is larger.
  """
  del rng
  image, size = _image(example), _size(size)
  checks.in_range("value", value, 0, 1)
  own = image.shape[:2]
  if own[0] > size[0] or own[1] > size[1]:
    raise ValueError(
      f"size={size} is not allowed: it must be at least that of the image, "
      f"{own}; crop or resize it first."
    )
  fill = _like(np.float32(value), image.dtype)
  canvas = np.full((*size, image.shape[2]), fill, image.dtype)
  canvas[: own[0], : own[1]] = image
  boxes = np.asarray(example["boxes"]) * np.tile(np.divide(own, size), 2)
  return {
    **example,
    "image": canvas,
    "boxes": boxes.astype(np.float32),
    "unpadded": np.array(own, np.int32),
  }


def filter_invalid(
  example: Example, rng=None, *, keep_crowd: bool = False
) -> dict[str, Any]:
  """Leaves out boxes without area, and crowds unless they are kept."""
  del rng
  checks.boolean("keep_crowd", keep_crowd)
  keep = layouts.is_proper(example["boxes"])
  if not keep_crowd and "is_crowd" in example:
    keep = keep & ~np.asarray(example["is_crowd"])
  return _kept(example, keep)


def miss_boxes(
  example: Example, rng: np.random.Generator, *, probability: float
) -> dict[str, Any]:
  """Leaves out each box with a probability: annotations that miss objects.

  As a `random_map` it is drawn anew at every showing of an image.
  """
  checks.in_range("probability", probability, 0, 1)
  return _kept(example, rng.random(len(example["labels"])) >= probability)


def shuffle_objects(
  example: Example, rng: np.random.Generator
) -> dict[str, Any]:
  """The objects in random order, before some may be cut off."""
  return _kept(example, rng.permutation(len(example["labels"])))


def pad_objects(
  example: Example, rng=None, *, max_objects: int
) -> dict[str, Any]:
  """Objects in `max_objects` slots, so that examples can be stacked.

  Args:
    example: with n objects; of more than the slots the first ones are kept.
    rng: not used.
    max_objects: slots N.

  Returns:
    `boxes` `[N, 4]`, `labels` `[N]` (0 where there is none), `area`,
    `is_crowd`, and `valid` `[N]` bool.
  """
  del rng
  checks.positive_int("max_objects", max_objects)
  number = min(len(example["labels"]), max_objects)
  out = dict(example)
  for name in OBJECT_KEYS:
    if name in example:
      values = np.asarray(example[name])[:max_objects]
      room = [(0, max_objects - number)] + [(0, 0)] * (values.ndim - 1)
      out[name] = np.pad(values, room)
  return {**out, "valid": np.arange(max_objects) < number}


def training(
  size: tuple[int, int],
  max_objects: int,
  *,
  low: float = 0.3,
  high: float = 2.0,
  flip_probability: float = 0.5,
  colour_strength: float = 0.0,
  missing: float = 0.0,
) -> Transform:
  """The augmentations of the paper as one `random_map`, uint8 to uint8.

  Scale jitter, crop, flip, colour, filter, missing boxes (none), shuffle, pad.

  Args:
    size: (height, width) of the canvas.
    max_objects: slots.
    low, high: of `scale_jitter`.
    flip_probability: of `random_flip`.
    colour_strength: of `colour_jitter`; 0 leaves it out.
    missing: probability of `miss_boxes`.
  """
  of = functools.partial
  colour = (of(colour_jitter, strength=colour_strength),)
  return chain(
    of(scale_jitter, size=size, low=low, high=high),
    of(fixed_crop, size=size),
    of(random_flip, probability=flip_probability),
    *(colour if colour_strength else ()),
    *_finish(size, max_objects, of(miss_boxes, probability=missing)),
  )


def evaluation(size: tuple[int, int], max_objects: int) -> Transform:
  """What an image goes through for evaluation: fit and pad, nothing random.

  Crowds and all boxes stay: the truth of an evaluation is taken from the
  source (`boxes.ground_truth`), never from here.
  """
  of = functools.partial
  return chain(
    of(resize_to_fit, size=size),
    of(pad, size=size),
    of(pad_objects, max_objects=max_objects),
  )


def _finish(size, max_objects: int, miss: Transform) -> Sequence[Transform]:
  of = functools.partial
  return (
    filter_invalid,
    miss,
    shuffle_objects,
    of(pad, size=size),
    of(pad_objects, max_objects=max_objects),
  )
