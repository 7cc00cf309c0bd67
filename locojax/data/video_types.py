"""What a video is to the rest of the library, and one in memory.

Files, folders of frames and records have the same few members, so that
samplers, clips and sources do not know what they read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from locojax.core import checks
from locojax.data import resizing


@runtime_checkable
class Video(Protocol):
  """Frames by number; reading is safe from several threads.

  Attributes:
    name: for messages: the path of a file.
    times: `[frames]` float64, seconds at which each frame begins to show,
      counted from the first; they do not fall.
    duration: seconds from the first frame to the end of the last.
    height, width: of the frames, upright.
  """

  name: str
  times: np.ndarray
  duration: float
  height: int
  width: int

  def __len__(self) -> int: ...

  def frames(
    self,
    indices: Sequence[int],
    *,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
  ) -> np.ndarray: ...


def short_side_size(
  height: int, width: int, short_side: int
) -> tuple[int, int]:
  """(height, width) with the shorter side of that many pixels.

  The other side is `floor(side * short_side / shorter)`, as in Model Garden.

  >>> short_side_size(120, 200, 256), short_side_size(300, 90, 256)
  ((256, 426), (853, 256))
  """
  checks.positive_int("short_side", short_side)
  short = min(height, width)
  return height * short_side // short, width * short_side // short


def check_resizing(short_side: int | None, size: Any) -> None:
  """Refuses a bad short side or size, or both at once."""
  if short_side is not None:
    checks.positive_int("short_side", short_side)
  if size is None:
    return
  if short_side is not None:
    checks.refuse("size", size, f"None where short_side={short_side} is given")
  if len(checks.sizes("size", size)) != 2:
    checks.refuse("size", size, "(height, width)")


def output_size(
  height: int, width: int, *, short_side: int | None, size: Any
) -> tuple[int, int]:
  """(height, width) of frames that are asked for.

  Args:
    height, width: of the video.
    short_side: pixels of the shorter side; None keeps them.
    size: (height, width) instead; None keeps them.

  Raises:
    ValueError: both are given, or a bad value.
  """
  check_resizing(short_side, size)
  if size is not None:
    return tuple(size)
  if short_side is None:
    return height, width
  return short_side_size(height, width, short_side)


def check_indices(name: str, indices: Any, length: int) -> np.ndarray:
  """Frame numbers `[n]` int64 of a video of `length` frames.

  Raises:
    ValueError: not a list of integers, empty, or out of range; the video is
      named.
  """
  found = np.asarray(indices)
  if found.ndim != 1 or not found.size or found.dtype.kind not in "iu":
    checks.refuse("indices", indices, "a list of integers, not empty")
  low, high = int(found.min()), int(found.max())
  if low < 0 or high >= length:
    raise ValueError(
      f"frames {low} to {high} of {name} are not there: it has {length} frames "
      f"(0 to {length - 1})."
    )
  return found.astype(np.int64)


def check_clip(clip: Any) -> np.ndarray:
  """A clip `[frames, height, width, channels]` uint8, not empty.

  Raises:
    ValueError: another shape or dtype.
  """
  clip = np.asarray(clip)
  if clip.ndim != 4 or clip.dtype != np.uint8 or 0 in clip.shape:
    raise ValueError(
      f"a clip of shape {clip.shape} and dtype {clip.dtype} is not allowed: it "
      "must be [frames, height, width, channels] uint8, not empty."
    )
  return clip


def resize_clip(clip: Any, size: tuple[int, int]) -> np.ndarray:
  """All frames of a clip in another size, bilinear with antialiasing.

  Args:
    clip: `[frames, height, width, channels]` uint8.
    size: (height, width).

  Returns:
    `[frames, *size, channels]` uint8.
  """
  clip = check_clip(clip)
  num, height, width, channels = clip.shape
  if tuple(size) == (height, width):
    return clip
  # Frames are channels to a function of images.
  flat = clip.transpose(1, 2, 0, 3).reshape(height, width, num * channels)
  out = resizing.resize(flat, size).reshape(*size, num, channels)
  return np.ascontiguousarray(out.transpose(2, 0, 1, 3))


def regular_times(num: int, rate: float) -> tuple[np.ndarray, float]:
  """Times and duration of frames at a constant rate (frames a second)."""
  checks.positive("rate", rate)
  return np.arange(num) / rate, num / rate


def check_times(times: Any, num: int) -> np.ndarray:
  """Time stamps `[num]` float64 in seconds that rise.

  Raises:
    ValueError: another number of them, or they do not rise.
  """
  found = np.asarray(times, np.float64)
  if found.shape != (num,) or not np.all(np.isfinite(found)):
    checks.refuse("times", times, f"{num} finite numbers, one for each frame")
  if np.any(np.diff(found) <= 0):
    i = int(np.argmax(np.diff(found) <= 0))
    raise ValueError(
      f"times[{i}]={found[i]} and times[{i + 1}]={found[i + 1]} are not "
      "allowed: times must rise."
    )
  return found


def last_gap(times: np.ndarray) -> float:
  """How long a last frame shows, if nobody says: the median of the others.

  One frame alone shows for 1/25 s.
  """
  return float(np.median(np.diff(times))) if len(times) > 1 else 0.04


class ArrayVideo:
  """Frames in memory, see `Video`.

  Args:
    frames: `[frames, height, width, 3]` uint8, not copied.
    rate: frames a second; or
    times: `[frames]` seconds that rise; they are counted from the first.
    name: for messages.

  Raises:
    ValueError: another shape or dtype, or both or neither of rate and times.
  """

  def __init__(
    self,
    frames: Any,
    *,
    rate: float | None = None,
    times: Any = None,
    name: str = "array",
  ):
    self._frames = check_clip(frames)
    num, self.height, self.width, _ = self._frames.shape
    self.name = name
    if (rate is None) == (times is None):
      checks.refuse("rate", rate, "given, or times, and not both")
    if times is None:
      self.times, self.duration = regular_times(num, rate)
    else:
      self.times = check_times(times, num)
      self.times = self.times - self.times[0]
      self.duration = float(self.times[-1]) + last_gap(self.times)

  def __len__(self) -> int:
    return len(self._frames)

  def frames(
    self,
    indices: Sequence[int],
    *,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
  ) -> np.ndarray:
    """Frames as uint8 `[n, height, width, 3]`; any order, repeats allowed."""
    wanted = output_size(
      self.height, self.width, short_side=short_side, size=size
    )
    rows = check_indices(self.name, indices, len(self))
    return resize_clip(self._frames[rows], wanted)
