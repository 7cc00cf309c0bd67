"""Which frames of a video make a clip: by number, or by time.

The rules are those of Model Garden's `preprocess_ops_3d`. A video that is too
short is repeated from its start, not padded: frame i of a longer list is frame
`i mod length`. Frame numbers at a stride take a constant rate for granted;
`clip_indices_at` lays an even grid over the time stamps of any video.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from locojax.core import checks

MODES = ("middle", "random", "linspace", "even", "tsn")
# Time stamps of Matroska and WebM are rounded to milliseconds.
_ROUNDING = 0.0005


def _middle(length, num_frames, stride, num_clips, rng):
  del rng
  if num_clips != 1:
    checks.refuse("num_clips", num_clips, "1 with mode='middle'")
  return np.array([max(0, (length - num_frames * stride) // 2)])


def _random(length, num_frames, stride, num_clips, rng):
  if rng is None:
    checks.refuse("rng", rng, "a generator with mode='random'")
  reach = (num_frames - 1) * stride
  most = length - reach if length > reach else length
  return rng.integers(0, most, num_clips)


def _linspace(length, num_frames, stride, num_clips, rng):
  del rng
  last = max(0, length - num_frames * stride)
  return np.linspace(0, last, num_clips).astype(np.int64)


def _even(length, num_frames, stride, num_clips, rng):
  """One window in each of equal parts: in its middle, or anywhere there."""
  share = length / num_clips
  slack = max(0.0, share - num_frames * stride)
  at = 0.5 if rng is None else rng.random(num_clips)
  starts = np.floor(np.arange(num_clips) * share + at * slack).astype(np.int64)
  return np.clip(starts, 0, max(0, length - num_frames * stride))


_STARTS = {
  "middle": _middle,
  "random": _random,
  "linspace": _linspace,
  "even": _even,
}


def _segments(length, num_frames, num_clips, rng):
  """TSN: a frame of each of `num_frames` equal segments."""
  starts = np.linspace(0, length, num_frames + 1).astype(np.int64)[:-1]
  inside = length // num_frames
  if rng is None:
    offsets = np.full((num_clips, num_frames), inside // 2)
  else:
    offsets = rng.integers(0, max(1, inside), (num_clips, num_frames))
  return starts + offsets


def check_sampling(
  *, num_frames: int, stride: int, mode: str, num_clips: int
) -> None:
  """Refuses bad settings of `clip_indices`."""
  checks.positive_int("num_frames", num_frames)
  checks.positive_int("stride", stride)
  checks.one_of("mode", mode, MODES)
  checks.positive_int("num_clips", num_clips)
  if mode == "tsn" and stride != 1:
    checks.refuse("stride", stride, "1 with mode='tsn'")


def clip_indices(
  length: int,
  num_frames: int,
  *,
  stride: int = 1,
  mode: str = "middle",
  num_clips: int = 1,
  rng: np.random.Generator | None = None,
) -> np.ndarray:
  """Frame numbers of clips: `(offset + stride * arange(n)) mod length`.

  With L the length and n the number of frames, the offset is by `mode`
    * `middle`: `max(0, (L - n stride) // 2)`, one clip;
    * `random`: uniform on `0 .. M - 1`, M = L - (n-1) stride, or L where that
      is not positive; each clip its own;
    * `linspace`: `floor(linspace(0, max(0, L - n stride), num_clips))`;
    * `even`: the video in `num_clips` equal parts, a window in the middle of
      each, or with `rng` anywhere in it; they do not overlap if they fit;
    * `tsn`: a frame in each of n equal segments (Wang et al. 2016), at
      `floor(linspace(0, L, n + 1))[:-1]` plus `(L // n) // 2`, or with `rng`
      plus uniform on `0 .. L // n - 1`.

  Args:
    length: frames of the video, 1 or more.
    num_frames: n, of a clip.
    stride: from a frame to the next; 1 for `tsn`.
    mode: of `MODES`.
    num_clips: how many.
    rng: of the random modes.

  Returns:
    `[num_clips, num_frames]` int64 in `[0, length)`.

  Raises:
    ValueError: a bad value; no `rng` with `random`, or several clips with
      `middle`.

  >>> clip_indices(12, 8, stride=2).tolist()
  [[0, 2, 4, 6, 8, 10, 0, 2]]
  """
  checks.positive_int("length", length)
  check_sampling(
    num_frames=num_frames, stride=stride, mode=mode, num_clips=num_clips
  )
  if mode == "tsn":
    return _segments(length, num_frames, num_clips, rng) % length
  starts = _STARTS[mode](length, num_frames, stride, num_clips, rng)
  return (starts[:, None] + stride * np.arange(num_frames)) % length


def frames_at(times: Any, seconds: Any) -> np.ndarray:
  """The frame that shows at each moment.

  That is the last one whose time stamp is not later than the moment by more
  than half a millisecond, as far as containers round; before the first frame,
  the first.

  Args:
    times: `[frames]` seconds that do not fall.
    seconds: any shape.

  Returns:
    The shape of `seconds`, int64.

  >>> frames_at([0.0, 0.033, 0.067], [0.0, 1 / 30, 2 / 30, 9.0]).tolist()
  [0, 1, 2, 2]
  """
  moments = np.asarray(seconds, np.float64) + _ROUNDING
  found = np.searchsorted(np.asarray(times, np.float64), moments, side="right")
  return np.maximum(found - 1, 0).astype(np.int64)


def clip_indices_at(
  times: Any,
  duration: float,
  num_frames: int,
  *,
  rate: float,
  stride: int = 1,
  mode: str = "middle",
  num_clips: int = 1,
  rng: np.random.Generator | None = None,
) -> np.ndarray:
  """Frame numbers of clips on an even grid of time.

  The grid has `max(1, floor(duration * rate))` moments, `k / rate` seconds
  after the first frame. A clip is chosen among them by `clip_indices`, and each
  moment takes the frame that shows then: twice the same one where the video has
  fewer.

  Args:
    times: `[frames]` seconds, see `Video`.
    duration: seconds.
    num_frames: of a clip.
    rate: moments a second.
    stride, mode, num_clips, rng: of `clip_indices`, on the grid.

  Returns:
    `[num_clips, num_frames]` int64.
  """
  checks.positive("rate", rate)
  checks.positive("duration", duration)
  length = max(1, math.floor(duration * rate + 1e-6))
  grid = clip_indices(
    length,
    num_frames,
    stride=stride,
    mode=mode,
    num_clips=num_clips,
    rng=rng,
  )
  return frames_at(times, grid / rate)
