"""Clips of videos as sources of examples, for `pipeline.batches`.

`Clips` are fixed: clip c of video v is the same at every call, as evaluation,
and labels for each clip, want it. For clips that are new in every epoch, the
pipeline reads `VideoRefs` and a `RandomClips` as its `random_map`:

    videos = video.from_video_folder("videos")
    batches = pipeline.batches(
      video.VideoRefs(videos),
      random_map=video.then(
        video.RandomClips(videos, num_frames=16, rate=12.5, short_side=128),
        image.chain(crop, video.random_flip_clip, key="clip"),
      ),
      batch_size=32, seed=0, num_workers=8,
    )

Nothing of a video is kept but what a few open files need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.data import video_sampling, video_sets, video_types

Example = dict[str, Any]


class Sampling:
  """How clips are chosen and resized; the settings of the classes below.

  Args:
    num_frames: of a clip.
    stride: from a frame to the next, of the video or of the grid.
    rate: frames a second of an even grid in time, for videos of any rate; None
      counts frames.
    mode: of `video_sampling.MODES`.
    short_side: pixels; None keeps the size.
    size: (height, width) instead.
  """

  def __init__(
    self,
    *,
    num_frames: int,
    stride: int = 1,
    rate: float | None = None,
    mode: str = "middle",
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
  ):
    video_sampling.check_sampling(
      num_frames=num_frames, stride=stride, mode=mode, num_clips=1
    )
    if rate is not None:
      checks.positive("rate", rate)
    video_types.check_resizing(short_side, size)
    self.num_frames, self.stride, self.rate = num_frames, stride, rate
    self.mode, self.short_side, self.size = mode, short_side, size

  def indices(
    self,
    video: video_types.Video,
    *,
    num_clips: int = 1,
    rng: np.random.Generator | None = None,
  ) -> np.ndarray:
    """Frame numbers of clips of a video, `[num_clips, num_frames]` int64."""
    settings = {
      "stride": self.stride,
      "mode": self.mode,
      "num_clips": num_clips,
      "rng": rng,
    }
    if self.rate is None:
      return video_sampling.clip_indices(
        len(video), self.num_frames, **settings
      )
    return video_sampling.clip_indices_at(
      video.times, video.duration, self.num_frames, rate=self.rate, **settings
    )

  def read(self, video: video_types.Video, indices: np.ndarray) -> np.ndarray:
    """Frames `[n, height, width, 3]` uint8 of a video, resized."""
    return video.frames(indices, short_side=self.short_side, size=self.size)


class Clips:
  """A fixed number of clips of each video, as a source.

  Example k is clip `k mod clips_per_video` of video `k // clips_per_video`:
  `clip` `[frames, height, width, 3]` uint8, `label` int32 (of its video, or
  its own), `video`, `clip_index` int32, and `start` float32, the seconds at
  which its first frame shows.

  Attributes:
    videos: the set.
    labels: `[clips]` int32.
    video_of, clip_of: `[clips]` int32, the video, and the number in it.
    classes: names of the labels.
    clips_per_video: see below.
  """

  def __init__(
    self,
    videos: video_sets.VideoSet,
    *,
    clips_per_video: int = 1,
    mode: str = "even",
    map: Callable[[Example], Example] | None = None,
    **settings: Any,
  ):
    """Clips of all videos.

    Args:
      videos: a set.
      clips_per_video: how many of each; 1 with `mode='middle'`.
      mode: of `video_sampling.MODES`, without randomness: not `random`.
      map: example -> example, such as a crop to one size; picklable.
      **settings: of `Sampling`.

    Raises:
      ValueError: a bad value.
    """
    checks.positive_int("clips_per_video", clips_per_video)
    fixed = tuple(m for m in video_sampling.MODES if m != "random")
    checks.one_of("mode", mode, fixed)
    if mode in ("middle", "tsn") and clips_per_video != 1:
      checks.refuse("clips_per_video", clips_per_video, f"1 with mode={mode!r}")
    self.videos, self.clips_per_video = videos, clips_per_video
    self.classes = list(videos.classes)
    self._sampling = Sampling(mode=mode, **settings)
    self._map = map
    self._choose(np.arange(len(videos) * clips_per_video))
    self.labels = np.asarray(videos.labels, np.int32)[self.video_of]

  def _choose(self, numbers: np.ndarray) -> None:
    self._numbers = numbers
    self.video_of = (numbers // self.clips_per_video).astype(np.int32)
    self.clip_of = (numbers % self.clips_per_video).astype(np.int32)

  def __len__(self) -> int:
    return len(self._numbers)

  def frame_numbers(self, index: int) -> np.ndarray:
    """Frame numbers `[frames]` int64 of a clip in its video."""
    video = self.videos.open(int(self.video_of[index]))
    every = self._sampling.indices(video, num_clips=self.clips_per_video)
    return every[self.clip_of[index]]

  def seconds(self, index: int) -> np.ndarray:
    """When each frame of a clip shows in its video, `[frames]` float64."""
    video = self.videos.open(int(self.video_of[index]))
    return video.times[self.frame_numbers(index)]

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(f"index {index} of {len(self)} clips.")
    video = self.videos.open(int(self.video_of[index]))
    rows = self.frame_numbers(index)
    example = {
      "clip": self._sampling.read(video, rows),
      "label": np.int32(self.labels[index]),
      "video": np.int32(self.video_of[index]),
      "clip_index": np.int32(self.clip_of[index]),
      "start": np.float32(video.times[rows[0]]),
    }
    return self._map(example) if self._map else example

  def _copy(self) -> Clips:
    made = object.__new__(Clips)
    made.__dict__.update(self.__dict__)
    return made

  def with_labels(self, labels: Any, classes: Sequence[str]) -> Clips:
    """The same clips with a label each, which `classes` names.

    Args:
      labels: `[clips]` integers.
      classes: names of the labels.

    Raises:
      ValueError: another number of labels, or one out of range.
    """
    made = self._copy()
    made.labels = video_sets.check_set_labels(labels, len(self), classes)
    made.classes = list(classes)
    return made

  def subset(self, indices: Iterable[int] | np.ndarray) -> Clips:
    """The clips at these places, or where a mask `[clips]` is true.

    Raises:
      ValueError: no clip is left, or one is out of range.
    """
    rows = np.asarray(indices)
    if rows.dtype == bool and rows.shape == (len(self),):
      rows = np.flatnonzero(rows)
    rows = video_types.check_indices("the clips", rows, len(self))
    made = self._copy()
    made._choose(self._numbers[rows])
    made.labels = self.labels[rows]
    return made


class VideoRefs:
  """The videos of a set as examples `{"video": int32, "label": int32}`."""

  def __init__(self, videos: video_sets.VideoSet):
    self.videos = videos

  def __len__(self) -> int:
    return len(self.videos)

  def __getitem__(self, index: int) -> Example:
    label = np.int32(self.videos.labels[index])
    return {"video": np.int32(index), "label": label}


class RandomClips:
  """Reads a random clip of the video that an example names.

  Called with (example, rng), it adds `clip` `[frames, height, width, 3]` uint8
  and `start` float32 (seconds) to the example. The draw is a function of `rng`
  alone, so that batches do not depend on the number of workers.

  Args:
    videos: the set that `example["video"]` counts.
    mode: `random`, `tsn` or `even`.
    **settings: of `Sampling`.
  """

  def __init__(
    self,
    videos: video_sets.VideoSet,
    *,
    mode: str = "random",
    **settings: Any,
  ):
    checks.one_of("mode", mode, ("random", "tsn", "even"))
    self.videos = videos
    self._sampling = Sampling(mode=mode, **settings)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    video = self.videos.open(int(example["video"]))
    rows = self._sampling.indices(video, rng=rng)[0]
    clip = self._sampling.read(video, rows)
    return {**example, "clip": clip, "start": np.float32(video.times[rows[0]])}


class _Then:
  """Functions of (example, rng), one after the other."""

  def __init__(self, functions):
    self._functions = functions

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    for f in self._functions:
      example = f(example, rng)
    return example


def then(*functions: Callable[[Example, Any], Example]) -> _Then:
  """One function of (example, rng) from several; picklable if they are."""
  return _Then(functions)
