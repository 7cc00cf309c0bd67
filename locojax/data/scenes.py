"""Captioned scenes that need no file: a coloured shape on a background.

Each scene is a combination of colour, shape, place and background, and its
caption names them, with one of several wordings. The combinations can be split,
so that a test asks for what was never seen together.
"""

from __future__ import annotations

import itertools

import numpy as np

from locojax.core import checks

COLOURS = {
  "red": (220, 40, 40),
  "green": (40, 170, 60),
  "blue": (50, 80, 220),
  "yellow": (235, 215, 60),
  "purple": (150, 60, 190),
  "orange": (240, 140, 40),
  "cyan": (60, 200, 210),
  "pink": (240, 140, 190),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
PLACES = {
  "top left": (0.3, 0.3),
  "top right": (0.3, 0.7),
  "middle": (0.5, 0.5),
  "bottom left": (0.7, 0.3),
  "bottom right": (0.7, 0.7),
}
BACKGROUNDS = {
  "white": (245, 245, 245),
  "black": (15, 15, 15),
  "gray": (128, 128, 128),
}
WORDINGS = (
  "a {colour} {shape} in the {place} on {background}",
  "{colour} {shape}, {place}, {background} background",
  "the {place} of a {background} picture has a {colour} {shape}",
  "on {background}: {shape} of {colour} colour at the {place}",
)
COMBINATIONS = tuple(itertools.product(COLOURS, SHAPES, PLACES, BACKGROUNDS))


def _inside(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Whether points, in units of the shape's radius, are in it."""
  r = np.hypot(y, x)
  if shape == "circle":
    return r < 1
  if shape == "square":
    return np.maximum(abs(x), abs(y)) < 0.85
  if shape == "triangle":
    return (y < 0.8) & (y > -0.9 + 1.9 * abs(x))
  if shape == "cross":
    return (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1)
  if shape == "ring":
    return (r < 1) & (r > 0.55)
  return abs(x) + abs(y) < 1.1


def draw(
  combination: tuple[str, str, str, str],
  rng: np.random.Generator,
  *,
  size: int = 16,
  noise: float = 12.0,
) -> np.ndarray:
  """A scene, `[size, size, 3]` uint8; place, radius and pixels vary by `rng`.

  Args:
    combination: colour, shape, place, background.
    rng: NumPy's generator.
    size: of the sides, 8 or more.
    noise: standard deviation of the pixels, of 255.

  Raises:
    ValueError: an unknown name or a bad size.
  """
  colour, shape, place, background = combination
  checks.in_range("size", size, 8, 4096)
  checks.nonnegative("noise", noise)
  checks.one_of("shape", shape, SHAPES)
  ink = np.array(checks.lookup("colour", colour, COLOURS), float)
  ground = np.array(checks.lookup("background", background, BACKGROUNDS), float)
  at = np.array(checks.lookup("place", place, PLACES))
  at = at + rng.uniform(-0.06, 0.06, 2)
  radius = rng.uniform(0.19, 0.27)
  # Four by four points a pixel, for smooth edges.
  points = (np.arange(4 * size) + 0.5) / (4 * size)
  y, x = np.meshgrid(points, points, indexing="ij")
  inside = _inside(shape, (y - at[0]) / radius, (x - at[1]) / radius)
  share = inside.reshape(size, 4, size, 4).mean(axis=(1, 3))[..., None]
  image = share * ink + (1 - share) * ground
  image = image + rng.normal(0, noise, image.shape)
  return np.clip(image, 0, 255).astype(np.uint8)


def caption(combination: tuple[str, str, str, str], wording: int = 0) -> str:
  """The caption of a scene in one of `WORDINGS`."""
  checks.in_range("wording", wording, 0, len(WORDINGS) - 1)
  names = ("colour", "shape", "place", "background")
  return WORDINGS[wording].format(**dict(zip(names, combination)))


def held_out(share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of `COMBINATIONS` for training and for test.

  Every colour, shape, place and background is in training; only combinations
  of them are kept back.

  Args:
    share: of the combinations, in (0, 0.5].
    seed: of the choice.

  Raises:
    ValueError: a bad share.
  """
  checks.in_range("share", share, 1 / len(COMBINATIONS), 0.5)
  order = np.random.default_rng(seed).permutation(len(COMBINATIONS))
  num = max(1, round(share * len(COMBINATIONS)))
  return np.sort(order[num:]), np.sort(order[:num])


def pairs(
  combinations: np.ndarray,
  num: int,
  *,
  seed: int,
  size: int = 16,
  noise: float = 12.0,
) -> dict[str, np.ndarray]:
  """Captioned scenes.

  Args:
    combinations: numbers of `COMBINATIONS` to draw from, evenly.
    num: pairs.
    seed: of everything.
    size, noise: of `draw`.

  Returns:
    `image` `[num, size, size, 3]` uint8, `caption` `[num]` of strings,
    `combination` `[num]` int32.
  """
  checks.positive_int("num", num)
  rng = np.random.default_rng(seed)
  rounds = -(-num // len(combinations))
  chosen = np.concatenate(
    [rng.permutation(combinations) for _ in range(rounds)]
  )[:num]
  images, captions = [], []
  for c in chosen:
    images.append(draw(COMBINATIONS[c], rng, size=size, noise=noise))
    captions.append(caption(COMBINATIONS[c], int(rng.integers(len(WORDINGS)))))
  return {
    "image": np.stack(images),
    "caption": np.array(captions),
    "combination": chosen.astype(np.int32),
  }
