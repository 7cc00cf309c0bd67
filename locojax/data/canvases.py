"""Detection data that need no file: shapes and pasted objects on canvases.

Both are sources of the examples of `boxes`. Example i is a function of (seed,
i). A box is the tightest one around the pixels of its object, as if nothing lay
over it; later objects lie over earlier ones. Clutter are thin lines of random
colours, under all objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.data import resizing

SHAPES = ("square", "disc", "triangle", "cross")
VISIBLE = 0.25  # alpha from which a pixel belongs to an object
_TRIES = 30

# (rng, side) -> (colours [h, w, 3] in 0..255, alpha [h, w] in 0..1, label)
_Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray, int]]


def _mask(shape: str, side: int) -> np.ndarray:
  """`[side, side]` bool, which touches all four sides."""
  at = np.arange(side) + 0.5
  y, x = np.meshgrid(at, at, indexing="ij")
  middle = side / 2
  if shape == "square":
    return np.ones((side, side), bool)
  if shape == "disc":
    return (y - middle) ** 2 + (x - middle) ** 2 <= middle**2
  if shape == "triangle":
    return np.abs(x - middle) <= np.maximum(y / 2, 0.5)
  arm = side / 6 + 0.25
  return (np.abs(y - middle) <= arm) | (np.abs(x - middle) <= arm)


def _colour(rng: np.random.Generator, unlike: np.ndarray) -> np.ndarray:
  """A colour that stands out from another one."""
  for _ in range(_TRIES):
    colour = rng.integers(0, 256, 3)
    if np.abs(colour - unlike).max() >= 100:
      break
  return colour.astype(np.float32)


def _covered(box: np.ndarray, others: np.ndarray) -> float:
  """The largest overlap with other boxes, as a share of the smaller box."""
  if not len(others):
    return 0.0
  low = np.maximum(box[:2], others[:, :2])
  high = np.minimum(box[2:], others[:, 2:])
  both = np.prod(np.maximum(high - low, 0), axis=1)
  area = lambda b: np.prod(b[..., 2:] - b[..., :2], axis=-1)
  return float((both / np.minimum(area(box), area(others))).max())


def _place(rng, size, own, others, overlap: float) -> np.ndarray | None:
  """A place for an object of size `own`, yxyx; None if none was found."""
  for _ in range(_TRIES):
    corner = rng.integers(0, np.array(size) - own + 1)
    box = np.concatenate([corner, corner + own])
    if _covered(box, np.array(others).reshape(-1, 4)) <= overlap:
      return box
  return None


def _lines(rng, image: np.ndarray, number: int) -> None:
  """Draws lines of one pixel, 3 to 8 long."""
  size = np.array(image.shape[:2])
  for _ in range(number):
    steps = np.arange(rng.integers(3, 9))[:, None]
    slope = rng.uniform(-1, 1, 2)
    at = rng.uniform(0, size) + steps * slope / np.abs(slope).max()
    y, x = at[((at >= 0) & (at < size)).all(axis=1)].astype(int).T
    image[y, x] = rng.integers(0, 256, 3)


class CanvasSource:
  """Canvases that are drawn when they are asked for.

  Attributes:
    classes: names; label l is `classes[l - 1]`.
    category_ids: 1, 2, ...
  """

  def __init__(
    self,
    num: int,
    draw: _Draw,
    classes: Sequence[str],
    *,
    seed: int,
    size: tuple[int, int],
    objects: tuple[int, int],
    sides: tuple[int, int],
    overlap: float,
    clutter: int,
    noise: float,
    ground: tuple[int, int],
  ):
    checks.positive_int("num", num)
    checks.seed("seed", seed)
    checks.in_range("overlap", overlap, 0, 1)
    checks.nonnegative_int("clutter", clutter)
    checks.nonnegative("noise", noise)
    self._num, self._draw, self._seed = num, draw, seed
    self._size = _pair("size", size, 1)
    self._objects = _range("objects", objects, 0)
    self._sides = _range("sides", sides, 1)
    checks.int_in_range("sides[1]", sides[1], 1, min(self._size))
    self._overlap, self._clutter, self._noise = overlap, clutter, noise
    self._ground = _range("ground", ground, 0)
    checks.int_in_range("ground[1]", ground[1], 0, 255)
    self.classes = tuple(classes)
    self.category_ids = np.arange(1, len(self.classes) + 1)

  def __len__(self) -> int:
    return self._num

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < self._num:
      raise IndexError(f"index={index!r}: there are {self._num} canvases.")
    sequence = np.random.SeedSequence(self._seed, spawn_key=(int(index),))
    rng = np.random.Generator(np.random.Philox(sequence))
    ground = rng.integers(self._ground[0], self._ground[1] + 1, 3)
    image = np.ones((*self._size, 3), np.float32) * ground
    _lines(rng, image, self._clutter)
    boxes, labels = self._paste(rng, image, ground)
    image += rng.normal(0, self._noise, image.shape) if self._noise else 0
    pixels = np.array(boxes, np.float64).reshape(-1, 4)
    height, width = pixels[:, 2:].T - pixels[:, :2].T
    return {
      "image": np.clip(np.rint(image), 0, 255).astype(np.uint8),
      "boxes": (pixels / np.tile(self._size, 2)).astype(np.float32),
      "labels": np.array(labels, np.int32),
      "area": (height * width).astype(np.float32),
      "is_crowd": np.zeros(len(labels), bool),
      "image_id": np.int64(index + 1),
      "size": np.array(self._size, np.int32),
    }

  def _paste(self, rng, image: np.ndarray, ground: np.ndarray):
    boxes, labels = [], []
    low, high = self._objects
    for _ in range(rng.integers(low, high + 1)):
      side = int(rng.integers(self._sides[0], self._sides[1] + 1))
      colours, alpha, label = self._draw(rng, side)
      if colours is None:
        colours = _colour(rng, ground)
      box = _place(rng, self._size, alpha.shape, boxes, self._overlap)
      if box is None:
        continue
      part = image[box[0] : box[2], box[1] : box[3]]
      part += alpha[..., None] * (colours - part)
      boxes.append(box)
      labels.append(label)
    return boxes, labels


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
  """Two integers."""
  if isinstance(value, str) or len(np.shape(value)) != 1 or len(value) != 2:
    checks.refuse(name, value, "two integers")
  for i in range(2):
    checks.int_in_range(f"{name}[{i}]", value[i], least, 2**20)
  return int(value[0]), int(value[1])


def _range(name: str, value: Any, least: int) -> tuple[int, int]:
  low, high = _pair(name, value, least)
  if low > high:
    checks.refuse(name, value, "(least, most)")
  return low, high


def _draw_shape(rng: np.random.Generator, side: int):
  label = int(rng.integers(len(SHAPES)))
  return None, _mask(SHAPES[label], side).astype(np.float32), label + 1


def shapes(
  num: int,
  *,
  seed: int,
  size: tuple[int, int] = (48, 48),
  objects: tuple[int, int] = (1, 3),
  sides: tuple[int, int] = (9, 18),
  overlap: float = 0.3,
  clutter: int = 4,
  noise: float = 8.0,
  ground: tuple[int, int] = (0, 255),
) -> CanvasSource:
  """Filled squares, discs, triangles and crosses of random colours.

  Args:
    num: canvases.
    seed: in [0, 2^32); another one for test.
    size: (height, width) of a canvas.
    objects: least and most of them; one that finds no place is left out.
    sides: least and greatest side of an object, at most the canvas.
    overlap: largest overlap of two boxes, as a share of the smaller one.
    clutter: lines.
    noise: standard deviation of the pixels, of 255.
    ground: least and greatest value of each channel of the ground.

  Returns:
    A source of the examples of `boxes`.

  Raises:
    ValueError: a bad setting.
  """
  return CanvasSource(
    *(num, _draw_shape, SHAPES),
    seed=seed,
    size=size,
    objects=objects,
    sides=sides,
    overlap=overlap,
    clutter=clutter,
    noise=noise,
    ground=ground,
  )


def _alpha(sprite: Any, index: int) -> tuple[np.ndarray | None, np.ndarray]:
  """Colours (None: to be drawn) and alpha in 0..1 of an object's picture."""
  sprite = np.asarray(sprite)
  sprite = sprite[..., None] if sprite.ndim == 2 else sprite
  if sprite.ndim != 3 or sprite.shape[-1] not in (1, 4):
    raise ValueError(
      f"sprites[{index}] has shape {sprite.shape}, which is not allowed: it "
      "must be [height, width], [height, width, 1] or [height, width, 4]."
    )
  if sprite.dtype != np.uint8:
    raise ValueError(
      f"sprites[{index}] has dtype {sprite.dtype}: it must be uint8."
    )
  colours = (
    sprite[..., :3].astype(np.float32) if sprite.shape[-1] == 4 else None
  )
  return colours, sprite[..., -1].astype(np.float32) / 255


def _tight(alpha: np.ndarray) -> tuple[slice, slice] | None:
  """Rows and columns of what is visible; None if nothing is."""
  seen = alpha >= VISIBLE
  if not seen.any():
    return None
  rows, columns = (np.flatnonzero(seen.any(axis=a)) for a in (1, 0))
  return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def visible(sprites: Sequence[Any]) -> np.ndarray:
  """Which pictures have a pixel that is seen, `[n]` bool; see `pasted`."""
  found = [_tight(_alpha(s, i)[1]) is not None for i, s in enumerate(sprites)]
  return np.array(found, bool)


class _Sprites:
  """Draws one of the pictures; a class, so that it can be pickled."""

  def __init__(self, sprites: Sequence[Any], labels: np.ndarray):
    self._labels = labels
    self._cut = []
    for i, sprite in enumerate(sprites):
      colours, alpha = _alpha(sprite, i)
      at = _tight(alpha)
      if at is None:
        raise ValueError(
          f"sprites[{i}] has no visible pixel; canvases.visible tells which "
          "pictures have one."
        )
      self._cut.append((None if colours is None else colours[at], alpha[at]))

  def __call__(self, rng: np.random.Generator, side: int):
    index = int(rng.integers(len(self._cut)))
    colours, alpha = self._cut[index]
    scale = side / max(alpha.shape)
    size = tuple(max(1, round(scale * s)) for s in alpha.shape)
    small = resizing.resize(alpha[..., None], size)
    at = _tight(small[..., 0])
    if at is None:  # Thin ink may fade: it is made as strong as it was.
      small = small * (alpha.max() / small.max())
      at = _tight(small[..., 0])
    shown = np.where(small >= VISIBLE, small, 0)[at]
    if colours is not None:
      # Colours of what is transparent mean nothing: weigh by alpha.
      weighed = resizing.resize(colours * alpha[..., None], size)
      colours = (weighed / np.maximum(small, 1e-6))[at]
    return colours, shown[..., 0], int(self._labels[index])


def pasted(
  sprites: Sequence[Any],
  labels: Any,
  num: int,
  *,
  seed: int,
  size: tuple[int, int] = (64, 64),
  objects: tuple[int, int] = (1, 4),
  sides: tuple[int, int] = (12, 28),
  overlap: float = 0.3,
  clutter: int = 4,
  noise: float = 8.0,
  ground: tuple[int, int] = (0, 255),
  classes: Sequence[str] | None = None,
) -> CanvasSource:
  """Pictures of objects (digits, emoji, ...) pasted on canvases.

  For test, take other pictures, not the same ones at other places.

  Args:
    sprites: `[n, height, width]` or `[n, height, width, 1]` uint8, whose ink is
      painted in a random colour; or `[n, height, width, 4]`, red, green, blue
      and alpha. A list may have different sizes. Each must have a pixel of
      alpha `VISIBLE` or more, see `visible`.
    labels: `[n]` integers, from 1.
    num, seed, size, objects, overlap, clutter, noise, ground: as for `shapes`.
    sides: least and greatest longer side of an object before what is faint is
      cut off.
    classes: names; None numbers them, to the largest label.

  Returns:
    A source of the examples of `boxes`.

  Raises:
    ValueError: a bad setting, picture or label.
  """
  labels = checks.integers("labels", labels)
  checks.same_shape("labels", labels.shape, "sprites[:, 0]", (len(sprites),))
  checks.positive_int("len(sprites)", len(sprites))
  if classes is None:
    classes = [str(i) for i in range(1, int(labels.max()) + 1)]
  for label in (int(labels.min()), int(labels.max())):
    checks.int_in_range("labels", label, 1, len(classes))
  return CanvasSource(
    *(num, _Sprites(sprites, labels), classes),
    seed=seed,
    size=size,
    objects=objects,
    sides=sides,
    overlap=overlap,
    clutter=clutter,
    noise=noise,
    ground=ground,
  )
