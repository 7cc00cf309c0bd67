"""Spatial augmentations of clips, one draw for all frames of a clip.

Functions of (clip, rng) on uint8 `[frames, height, width, channels]`, which
`image.chain(..., key="clip")` makes a `map` or `random_map` of the pipeline.
Several of them want their settings bound by `functools.partial`:

    augment = image.chain(
      functools.partial(video.random_resized_crop_clip, size=112),
      video.random_flip_clip,
      key="clip",
    )
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.data import video_types

_TRIES = 10


def resize_short_side(
  clip: Any, rng: np.random.Generator | None = None, *, short_side: int
) -> np.ndarray:
  """All frames with a shorter side of `short_side` pixels.

  Args:
    clip: `[frames, height, width, channels]` uint8.
    rng: not used; it lets the function stand in a chain.
    short_side: pixels; the longer side is rounded down.

  Returns:
    The same of another height and width.

  Raises:
    ValueError: another shape or dtype, or a bad side.
  """
  del rng
  clip = video_types.check_clip(clip)
  size = video_types.short_side_size(*clip.shape[1:3], short_side)
  return video_types.resize_clip(clip, size)


def _range(name: str, values: Sequence[float], most: float) -> None:
  if len(values) != 2 or not 0 < values[0] <= values[1] <= most:
    limit = "" if most == math.inf else f" <= {most}"
    checks.refuse(name, values, f"(low, high) with 0 < low <= high{limit}")


def _window(height, width, area, aspect, rng) -> tuple[int, int, int, int]:
  """Top, left, height and width of a random crop."""
  low, high = map(math.log, aspect)
  for _ in range(_TRIES):
    pixels = height * width * rng.uniform(*area)
    ratio = math.exp(rng.uniform(low, high))
    h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
    if 0 < h <= height and 0 < w <= width:
      top = int(rng.integers(0, height - h + 1))
      return top, int(rng.integers(0, width - w + 1)), h, w
  ratio = min(max(width / height, aspect[0]), aspect[1])
  h = min(height, max(1, round(width / ratio)))
  w = min(width, max(1, round(height * ratio)))
  return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop_clip(
  clip: Any,
  rng: np.random.Generator,
  *,
  size: int | tuple[int, int],
  area: tuple[float, float] = (0.49, 1.0),
  aspect: tuple[float, float] = (0.5, 2.0),
) -> np.ndarray:
  """One random window of all frames, resized.

  Its share of the area is uniform and its width over height log-uniform. Where
  ten draws do not fit, it is the largest window in the middle that fits.

  Args:
    clip: `[frames, height, width, channels]` uint8.
    rng: of the window.
    size: side, or (height, width), of the result.
    area: least and largest share, in (0, 1].
    aspect: least and largest width over height.

  Returns:
    `[frames, *size, channels]` uint8.

  Raises:
    ValueError: another shape or dtype, or a bad setting.
  """
  clip = video_types.check_clip(clip)
  _range("area", area, 1.0)
  _range("aspect", aspect, math.inf)
  top, left, h, w = _window(*clip.shape[1:3], area, aspect, rng)
  window = clip[:, top : top + h, left : left + w]
  return video_types.resize_clip(window, _size(size))


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
  sides = (size, size) if np.ndim(size) == 0 else size
  if len(checks.sizes("size", sides)) != 2:
    checks.refuse("size", size, "a side or (height, width)")
  return tuple(sides)


def random_flip_clip(
  clip: Any, rng: np.random.Generator, *, probability: float = 0.5
) -> np.ndarray:
  """Mirrors all frames or none, left to right.

  Args:
    clip: `[frames, height, width, channels]` uint8.
    rng: of the choice.
    probability: in [0, 1].
  """
  clip = video_types.check_clip(clip)
  checks.in_range("probability", probability, 0, 1)
  return clip[:, :, ::-1] if rng.random() < probability else clip


def _check_fits(clip: np.ndarray, size: tuple[int, int]) -> None:
  height, width = clip.shape[1:3]
  if size[0] > height or size[1] > width:
    raise ValueError(
      f"size={size} is not allowed: it must be at most the height and width "
      f"of the clip, {(height, width)}."
    )


def centre_crop_clip(
  clip: Any,
  rng: np.random.Generator | None = None,
  *,
  size: int | tuple[int, int],
) -> np.ndarray:
  """The middle of all frames.

  Args:
    clip: `[frames, height, width, channels]` uint8.
    rng: not used; it lets the function stand in a chain.
    size: side, or (height, width), at most those of the clip.

  Raises:
    ValueError: another shape or dtype, or a size that does not fit.
  """
  del rng
  clip, (h, w) = video_types.check_clip(clip), _size(size)
  _check_fits(clip, (h, w))
  top, left = (clip.shape[1] - h) // 2, (clip.shape[2] - w) // 2
  return clip[:, top : top + h, left : left + w]


def three_crops(clip: Any, *, size: int) -> np.ndarray:
  """Three squares along the longer side: first, middle and last.

  The middle one begins at `round(side / 2 - size // 2)`, halves to even, as in
  Model Garden; across, all are in the middle.

  Args:
    clip: `[frames, height, width, channels]` uint8.
    size: side of the squares, at most the shorter side.

  Returns:
    `[3, frames, size, size, channels]`.

  Raises:
    ValueError: another shape or dtype, or a size that does not fit.
  """
  clip = video_types.check_clip(clip)
  checks.positive_int("size", size)
  _check_fits(clip, (size, size))
  axis = 1 if clip.shape[1] >= clip.shape[2] else 2
  across = (clip.shape[3 - axis] - size) // 2
  strip = np.take(clip, range(across, across + size), axis=3 - axis)
  side = clip.shape[axis]
  middle = min(round(side / 2 - size // 2), side - size)
  starts = (0, middle, side - size)
  cut = [np.take(strip, range(s, s + size), axis=axis) for s in starts]
  return np.stack(cut)
