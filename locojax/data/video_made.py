"""Made videos for weak labels: a query, and what really happens in the video.

A class is a motion of an item, whose form tells nothing. A *weak video* was
"found" by querying for one motion: it is cut into spans, of which some show
that motion, and others one of a few companions of it, or nothing that moves;
some videos never show what was queried. Behind the item is a texture that goes
with the query, the trace that a search leaves. *Clean clips* show one motion,
in front of the texture of any class. What happens in each span is kept.

Video i is a function of (seed, i) and drawn when it is opened: no memory, and
the same in every process. `video_made_files` writes and reads them as files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from locojax.core import checks
from locojax.data import video_clips, video_sets, video_types

MOTIONS = (
  *("right", "left", "up", "down", "grow", "shrink"),
  *("turn_left", "turn_right", "bounce", "sway", "blink", "shake"),
)
STILL = -1  # the motion of a span in which nothing moves
NO_MOTION = "still"  # its name
# Streams of random numbers that come from one seed.
_COMPANIONS, _SHAPES, _ORDER, _PLAN, _DRAW, _CONTEXT, _TIMES = range(7)
_REACH = 0.28  # of a motion, in sides of the frame
_SIDE = 0.45  # of an item
_GROUND = 90.0


class Span(NamedTuple):
  """Frames `start` to `end - 1` of a video, and what happens in them.

  `motion` is a class, or `STILL`.
  """

  start: int
  end: int
  motion: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """How videos are made.

  Attributes:
    num_classes: the first so many of `MOTIONS`, 2 to 12.
    size: height and width in pixels, even.
    span: frames of a span.
    spans: least and most spans of a weak video.
    right: share of spans that show what was queried.
    still: share of spans in which nothing moves.
    wrong: share of weak videos that never show what was queried.
    num_companions: motions that go with a query; the first is the most usual.
    context: strength of the texture of the query, in [0, 1].
    noise: standard deviation of the pixels, of 255.
    rate: frames a second.
    varying: share of videos whose rate varies, by up to 40 percent.
  """

  num_classes: int = 8
  size: int = 32
  span: int = 16
  spans: tuple[int, int] = (3, 4)
  right: float = 0.5
  still: float = 0.1
  wrong: float = 0.1
  num_companions: int = 3
  context: float = 0.5
  noise: float = 6.0
  rate: float = 25.0
  varying: float = 0.0

  def __post_init__(self):
    checks.int_in_range("num_classes", self.num_classes, 2, len(MOTIONS))
    checks.int_in_range("size", self.size, 16, 4096)
    checks.divisible("size", self.size, "a factor of codecs", 2)
    checks.int_in_range("span", self.span, 4, 10_000)
    spans = checks.sizes("spans", self.spans)
    if len(spans) != 2 or spans[0] > spans[1]:
      checks.refuse("spans", self.spans, "(least, most)")
    for name in ("right", "still", "wrong", "context", "varying"):
      checks.in_range(name, getattr(self, name), 0, 1)
    if self.right + self.still > 1:
      checks.refuse("right + still", self.right + self.still, "at most 1")
    most = self.num_classes - 1
    checks.int_in_range("num_companions", self.num_companions, 1, most)
    checks.nonnegative("noise", self.noise)
    checks.positive("rate", self.rate)

  @property
  def classes(self) -> list[str]:
    """Names of the motions, sorted as folders are."""
    return sorted(MOTIONS[: self.num_classes])


def _rng(seed: int, *stream: int) -> np.random.Generator:
  sequence = np.random.SeedSequence(checks.seed("seed", seed), spawn_key=stream)
  return np.random.Generator(np.random.Philox(sequence))


def companions(recipe: Recipe, *, seed: int) -> np.ndarray:
  """The motions that go with each query, `[num_classes, num_companions]`."""
  rng = _rng(seed, _COMPANIONS)
  rows = []
  for query in range(recipe.num_classes):
    others = np.delete(np.arange(recipe.num_classes), query)
    rows.append(rng.permutation(others)[: recipe.num_companions])
  return np.array(rows)


def shapes(num: int, *, seed: int, side: int = 24) -> np.ndarray:
  """Blobs that look otherwise from every side, `[num, side, side]` uint8.

  Args:
    num: how many.
    seed: of them.
    side: pixels.
  """
  checks.positive_int("num", num)
  rng = _rng(seed, _SHAPES)
  at = (np.arange(side) + 0.5) / side * 2 - 1
  y, x = np.meshgrid(at, at, indexing="ij")
  radius, angle = np.hypot(y, x), np.arctan2(y, x)
  waves = np.arange(1, 5)[:, None, None]
  out = []
  for _ in range(num):
    size, phase = rng.uniform(0.3, 1, 4) / [2, 1, 1.5, 2], rng.uniform(0, 7, 4)
    edge = np.einsum(
      "k,kyx->yx", size, np.cos(waves * angle + phase[:, None, None])
    )
    edge = 0.55 + 0.4 * edge / np.abs(edge).max()
    out.append(np.clip((edge - radius) * side / 2 + 0.5, 0, 1))
  return np.rint(255 * np.array(out)).astype(np.uint8)


# What an item does. Each gives the change of place (x, y), the share of its
# usual side, the angle and whether it shows, of moments t in [0, 1).


def _poses(name: str, num: int, rng: np.random.Generator) -> np.ndarray:
  """`[5, num]`: x, y, size, angle, shown, of a motion by its name."""
  t, k = np.arange(num) / num, np.arange(num)
  x, y, angle = np.zeros((3, num))
  size, shown = np.ones((2, num))
  across = _REACH * (2 * t - 1)
  if name in ("right", "left"):
    x = across if name == "right" else -across
  elif name in ("down", "up"):
    y = across if name == "down" else -across
  elif name in ("grow", "shrink"):
    size = 0.55 + 0.8 * (t if name == "grow" else 1 - t)
  elif name in ("turn_left", "turn_right"):
    angle = 1.5 * np.pi * (t if name == "turn_right" else -t)
  elif name == "bounce":
    y = 0.2 - 0.4 * np.abs(np.sin(2 * np.pi * t))
  elif name == "sway":
    x = 0.22 * np.sin(4 * np.pi * t)
  elif name == "blink":
    shown = (k // 2 % 2 == 0).astype(float)
  elif name == "shake":
    x, y = rng.uniform(-0.08, 0.08, (2, num))
  return np.stack([x, y, size, angle, shown])


def _sampled(item: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
  """An item `[h, w]` at places in pixels, bilinear; 0 outside."""
  padded = np.pad(item.astype(np.float32) / 255, 2)
  height, width = padded.shape
  y = np.clip(y + 2, 0, height - 1.001)
  x = np.clip(x + 2, 0, width - 1.001)
  top, left = y.astype(int), x.astype(int)
  dy, dx = y - top, x - left
  above = padded[top, left] * (1 - dx) + padded[top, left + 1] * dx
  below = padded[top + 1, left] * (1 - dx) + padded[top + 1, left + 1] * dx
  return above * (1 - dy) + below * dy


def _cover(item: np.ndarray, poses: np.ndarray, size: int) -> np.ndarray:
  """How much of each pixel an item covers, `[frames, size, size]`."""
  at = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
  x, y, scale, angle, shown = poses.astype(np.float32)[:, :, None, None]
  dx, dy = at[None, None, :] - x, at[None, :, None] - y
  cos, sin = np.cos(angle), np.sin(angle)
  along = (cos * dx + sin * dy) / (scale * _SIDE) + 0.5
  across = (cos * dy - sin * dx) / (scale * _SIDE) + 0.5
  height, width = item.shape
  found = _sampled(item, across * height - 0.5, along * width - 0.5)
  return found * shown


def _texture(recipe: Recipe, query: int, rng: np.random.Generator) -> Any:
  """The ground behind a video, `[size, size, 3]`: waves of the query."""
  share = query / recipe.num_classes
  turn, waves = np.pi * share, 2 + query % 3
  at = np.arange(recipe.size) / recipe.size
  phase = rng.uniform(0, 2 * np.pi)
  along = np.cos(turn) * at[None, :] + np.sin(turn) * at[:, None]
  wave = np.cos(2 * np.pi * waves * along + phase)
  colour = np.cos(2 * np.pi * (share + np.array([0, 1, 2]) / 3))
  return _GROUND + 70 * recipe.context * wave[..., None] * colour


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What is drawn: the texture's class, and what happens."""

  context: int
  spans: tuple[Span, ...]


def _draw(
  recipe: Recipe,
  plan: _Plan,
  sprites: np.ndarray,
  rng: np.random.Generator,
) -> np.ndarray:
  """The frames of a video, `[frames, size, size, 3]` uint8."""
  ground = _texture(recipe, plan.context, rng)
  names, out = [*recipe.classes, NO_MOTION], []  # STILL is the last
  for start, end, motion in plan.spans:
    poses = _poses(names[motion], end - start, rng)
    poses[:2] += rng.uniform(-0.05, 0.05, (2, 1))
    poses[3] += rng.uniform(-0.4, 0.4)
    item = sprites[rng.integers(len(sprites))]
    cover = _cover(item, poses, recipe.size)[..., None]
    ink = rng.uniform(150, 255, 3) * rng.permutation([1.0, 0.9, 0.6])
    frames = cover * ink + (1 - cover) * ground
    frames += recipe.noise * rng.standard_normal(frames.shape, np.float32)
    out.append(np.clip(frames, 0, 255).astype(np.uint8))
  return np.concatenate(out)


class Made:
  """A set of made videos, see `video_sets.VideoSet`.

  Attributes:
    recipe: how they are made.
    labels: `[videos]` int32: queries, or the motions of clean clips.
    classes: names of the motions.
    names: of the videos.
    spans: of each video, what happens in it.
  """

  def __init__(self, recipe, seed, sprites, plans, labels, numbers):
    self.recipe, self._seed, self._sprites = recipe, seed, sprites
    self._plans, self._numbers = list(plans), list(numbers)
    self.labels = np.asarray(labels, np.int32)
    self.classes = recipe.classes
    self.names = [f"made {i}" for i in self._numbers]
    self.spans = [list(p.spans) for p in self._plans]

  def __len__(self) -> int:
    return len(self._plans)

  def open(self, index: int) -> video_types.ArrayVideo:
    """A video, drawn now."""
    index = int(index)
    rng = _rng(self._seed, _DRAW, self._numbers[index])
    frames = _draw(self.recipe, self._plans[index], self._sprites, rng)
    return video_types.ArrayVideo(
      frames, times=self.times(index)[:-1], name=self.names[index]
    )

  def times(self, index: int) -> np.ndarray:
    """Seconds at which each frame of a video begins, and the last one ends.

    Returns:
      `[frames + 1]` float64.
    """
    num = self.spans[index][-1].end
    rng = _rng(self._seed, _TIMES, self._numbers[index])
    gaps = np.ones(num)
    if rng.random() < self.recipe.varying:
      gaps = rng.uniform(0.6, 1.4, num)
    return np.concatenate([[0.0], np.cumsum(gaps)]) / self.recipe.rate

  def subset(self, indices: Iterable[int]) -> Made:
    """The videos at these places."""
    rows = [int(i) for i in indices]
    plans, numbers = (
      [x[i] for i in rows] for x in (self._plans, self._numbers)
    )
    made = Made(
      self.recipe, self._seed, self._sprites, plans, self.labels[rows], numbers
    )
    made.classes = self.classes
    return made

  def with_labels(self, labels: Any, classes: Sequence[str]) -> Made:
    """The same videos with other labels, which `classes` names."""
    made = self.subset(range(len(self)))
    made.labels = video_sets.check_set_labels(labels, len(self), classes)
    made.classes = list(classes)
    return made


def _checked_sprites(sprites: Any, seed: int) -> np.ndarray:
  if sprites is None:
    return shapes(64, seed=seed)
  sprites = np.asarray(sprites)
  if sprites.ndim != 3 or sprites.dtype != np.uint8 or not sprites.size:
    raise ValueError(
      f"sprites of shape {sprites.shape} and dtype {sprites.dtype} are not "
      "allowed: they must be [n, height, width] uint8, 255 for ink."
    )
  return sprites


def _weak_plan(recipe, query, others, rng) -> _Plan:
  num = int(rng.integers(recipe.spans[0], recipe.spans[1] + 1))
  right = 0.0 if rng.random() < recipe.wrong else recipe.right
  usual = np.arange(len(others), 0, -1.0)
  spans = []
  for i in range(num):
    draw, other = rng.random(), rng.choice(others, p=usual / usual.sum())
    motion = int(other)
    if draw < right:
      motion = query
    elif draw > 1 - recipe.still:
      motion = STILL
    spans.append(Span(i * recipe.span, (i + 1) * recipe.span, motion))
  return _Plan(query, tuple(spans))


def weak_videos(
  recipe: Recipe, num_videos: int, *, seed: int, sprites: Any = None
) -> Made:
  """Videos as a query finds them; labels are the queries, each as often.

  Args:
    recipe: how.
    num_videos: how many, at least one for each class.
    seed: of everything; the companions are those of the same seed.
    sprites: `[n, height, width]` uint8, 255 for ink; None draws `shapes`.

  Raises:
    ValueError: a bad number or bad sprites.
  """
  checks.int_in_range("num_videos", num_videos, recipe.num_classes, 10**9)
  rounds = -(-num_videos // recipe.num_classes)
  order = np.tile(np.arange(recipe.num_classes), rounds)[:num_videos]
  queries = _rng(seed, _ORDER).permutation(order)
  table = companions(recipe, seed=seed)
  plans = [
    _weak_plan(recipe, int(q), table[q], _rng(seed, _PLAN, i))
    for i, q in enumerate(queries)
  ]
  sprites = _checked_sprites(sprites, seed)
  return Made(recipe, seed, sprites, plans, queries, range(num_videos))


def clean_clips(
  recipe: Recipe,
  num_per_class: int,
  *,
  seed: int,
  num_frames: int | None = None,
  sprites: Any = None,
) -> Made:
  """Clips of one motion each, which is their label; the ground tells nothing.

  Args:
    recipe: how.
    num_per_class: clips of each class.
    seed: of everything. With sprites of another seed, forms of a test are
      those of no training clip.
    num_frames: of a clip; None takes a span.
    sprites: as for `weak_videos`.

  Raises:
    ValueError: a bad number or bad sprites.
  """
  checks.positive_int("num_per_class", num_per_class)
  num_frames = recipe.span if num_frames is None else num_frames
  checks.positive_int("num_frames", num_frames)
  labels = np.tile(np.arange(recipe.num_classes), num_per_class)
  labels = _rng(seed, _ORDER).permutation(labels)
  contexts = _rng(seed, _CONTEXT).integers(0, recipe.num_classes, len(labels))
  plans = [
    _Plan(int(c), (Span(0, num_frames, int(m)),))
    for c, m in zip(contexts, labels)
  ]
  sprites = _checked_sprites(sprites, seed)
  return Made(recipe, seed, sprites, plans, labels, range(len(labels)))


# What really happens.


def true_labels(
  clips: video_clips.Clips, spans: Sequence[Sequence[Span]]
) -> np.ndarray:
  """The motion that most frames of each clip show, `[clips]` int32.

  Args:
    clips: of videos.
    spans: of each of `clips.videos`, as `Made.spans` or
      `video_made_files.spans_of`.

  Returns:
    Motions; the lower one where two have as many frames, `STILL` below all.
  """
  if len(spans) != len(clips.videos):
    raise ValueError(
      f"spans of {len(spans)} videos are not allowed: clips are of "
      f"{len(clips.videos)}."
    )
  out = []
  for i in range(len(clips)):
    motions = per_frame(spans[clips.video_of[i]])[clips.frame_numbers(i)]
    out.append(np.bincount(motions + 1).argmax() - 1)
  return np.array(out, np.int32)


def per_frame(spans: Sequence[Span]) -> np.ndarray:
  """The motion of each frame of a video, `[frames]`."""
  return np.repeat([s.motion for s in spans], [s.end - s.start for s in spans])
