"""Sets of videos: class folders, lists of files, folders of frames, arrays.

A set holds paths and labels; what a file contains is read when it is asked for,
and little of it is kept. All sets can be pickled, and read by several threads
and processes.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from locojax.core import checks
from locojax.data import (
  folders,
  image_files,
  video_files,
  video_index,
  video_types,
)

SUFFIXES = (
  *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts"),
  *(".mpg", ".mpeg", ".ogv", ".flv", ".wmv", ".3gp"),
)
MOST_KEPT = 256  # indices that a process keeps, of the files read last


class VideoSet(Protocol):
  """Videos by number, with labels.

  Attributes:
    labels: `[videos]` int32.
    classes: names of the labels.
    names: of the videos.
  """

  labels: np.ndarray
  classes: list[str]
  names: list[str]

  def __len__(self) -> int: ...

  def open(self, index: int) -> video_types.Video: ...


def is_video(path: pathlib.Path) -> bool:
  """Whether a file has the name of a video."""
  return path.suffix.lower() in SUFFIXES and path.is_file()


def _by_number(path: pathlib.Path) -> list[tuple[int, int, str]]:
  """A key that sorts `frame_10` after `frame_9`."""
  parts = re.split(r"(\d+)", path.name)
  return [(1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts]


def images_of(folder: pathlib.Path) -> list[pathlib.Path]:
  """Images right in a folder, in the order of the numbers in their names."""
  inside = folders.visible(folder, deep=False)
  return sorted(filter(image_files.is_image, inside), key=_by_number)


class FrameFolderVideo:
  """Images in a folder as the frames of a video, see `video_types.Video`.

  Their order is that of the numbers in their names: `frame_10` comes after
  `frame_9`. All must have the size of the first.

  Args:
    folder: with images.
    rate: frames a second.

  Raises:
    ValueError: no image in it, or a bad rate.
  """

  def __init__(self, folder: str | os.PathLike, *, rate: float):
    self.name = str(folder)
    self._images = images_of(pathlib.Path(folder))
    if not self._images:
      raise video_index.unreadable(folder, "there is no image in the folder")
    header = image_files.read_header(self._images[0])
    self.height, self.width = header.height, header.width
    self.times, self.duration = video_types.regular_times(
      len(self._images), rate
    )

  def __len__(self) -> int:
    return len(self._images)

  def _frame(self, index: int, size: tuple[int, int]) -> np.ndarray:
    path, own = self._images[index], (self.height, self.width)
    header = image_files.read_header(path)
    if (header.height, header.width) != own:
      raise video_index.unreadable(
        self.name,
        f"{path.name} has {header.height} x {header.width} pixels and "
        f"{self._images[0].name} has {own[0]} x {own[1]}",
      )
    return image_files.read_image(path, size=None if size == own else size)

  def frames(
    self,
    indices: Sequence[int],
    *,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
  ) -> np.ndarray:
    """Frames as uint8 `[n, height, width, 3]`; any order, repeats allowed.

    Raises:
      ValueError: a number that is not there, or an image that is damaged or
        of another size; it is named.
    """
    wanted = video_types.output_size(
      self.height, self.width, short_side=short_side, size=size
    )
    rows = video_types.check_indices(self.name, indices, len(self))
    unique, back = np.unique(rows, return_inverse=True)
    return np.stack([self._frame(i, wanted) for i in unique])[back]


def open_video(
  path: str | os.PathLike, *, rate: float | None = None
) -> video_types.Video:
  """A video file, or a folder of frames.

  Args:
    path: of it.
    rate: frames a second of a folder of frames; files say it themselves.

  Raises:
    VideoError: it cannot be read; it is named.
    FileNotFoundError: it is not there.
    ValueError: a folder and no rate.
    ImportError: a file, and PyAV is not installed.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    return video_files.open_file(path)
  if rate is None:
    checks.refuse("rate", rate, f"frames a second of the folder {path}")
  return FrameFolderVideo(path, rate=rate)


class FileSet:
  """Videos in files and folders of frames, see `from_video_folder`.

  Attributes:
    paths: of the videos.
    labels: `[videos]` int32.
    classes: names of the labels.
    names: of the videos, below the folder they were found in.
  """

  def __init__(self, paths, labels, classes, names, rate):
    self.paths, self.names = list(paths), list(names)
    self.labels = np.asarray(labels, np.int32)
    self.classes = list(classes)
    self._rate = rate
    self._forget()

  def _forget(self) -> None:
    self._kept: collections.OrderedDict = collections.OrderedDict()
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    lost = ("_kept", "_lock")
    return {k: v for k, v in self.__dict__.items() if k not in lost}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._forget()

  def __len__(self) -> int:
    return len(self.paths)

  def open(self, index: int) -> video_types.Video:
    """A video; its index is kept for a while.

    Raises:
      VideoError: it cannot be read; it is named.
    """
    index = int(index)
    with self._lock:
      if index in self._kept:
        self._kept.move_to_end(index)
        return self._kept[index]
    found = open_video(self.paths[index], rate=self._rate)
    with self._lock:
      self._kept[index] = found
      while len(self._kept) > MOST_KEPT:
        self._kept.popitem(last=False)
    return found

  def subset(self, indices: Iterable[int]) -> FileSet:
    """The videos at these places; none is read."""
    rows = [int(i) for i in indices]
    paths, names = ([x[i] for i in rows] for x in (self.paths, self.names))
    return FileSet(paths, self.labels[rows], self.classes, names, self._rate)

  def with_labels(
    self, labels: Iterable[int], classes: Sequence[str]
  ) -> FileSet:
    """The same videos with other labels, which `classes` names."""
    labels = check_set_labels(list(labels), len(self), classes)
    return FileSet(self.paths, labels, classes, self.names, self._rate)


def check_set_labels(
  labels: Any, num: int, classes: Sequence[str]
) -> np.ndarray:
  """Labels `[num]` int32 in `[0, len(classes))`.

  Raises:
    ValueError: another number of them, or one out of range.
  """
  found = checks.integers("labels", labels)
  if found.shape != (num,):
    raise ValueError(
      f"labels of shape {found.shape} are not allowed: they must be [{num}], "
      "one for each."
    )
  if num and not 0 <= found.min() <= found.max() < len(classes):
    raise ValueError(
      f"labels from {found.min()} to {found.max()} are not allowed: they must "
      f"be in [0, {len(classes) - 1}], as there are {len(classes)} classes."
    )
  return found


def from_files(
  paths: Iterable[str | os.PathLike],
  *,
  labels: Any = None,
  classes: Sequence[str] = ("video",),
  rate: float | None = None,
) -> FileSet:
  """Videos from a list of files and folders of frames.

  Args:
    paths: of them, at least one.
    labels: `[videos]` integers; None gives all the first class.
    classes: names of the labels.
    rate: frames a second of folders of frames.

  Raises:
    FileNotFoundError: one is missing.
    ValueError: none, or bad labels.
  """
  paths = [pathlib.Path(p) for p in paths]
  if not paths:
    checks.refuse("paths", paths, "at least one video")
  missing = [str(p) for p in paths if not p.exists()]
  if missing:
    raise FileNotFoundError(f"paths: there is no {missing[0]}.")
  labels = np.zeros(len(paths), np.int32) if labels is None else labels
  labels = check_set_labels(labels, len(paths), classes)
  return FileSet(paths, labels, classes, map(str, paths), rate)


def _inside(folder: pathlib.Path) -> tuple[list, list]:
  """Videos of a class folder, and what is none."""
  videos, unused = [], []
  for path in folders.visible(folder, deep=False):
    taken = images_of(path) if path.is_dir() else is_video(path)
    (videos if taken else unused).append(path)
  return videos, unused


def from_video_folder(
  root: str | os.PathLike, *, rate: float | None = None
) -> FileSet:
  """Videos from `root/<class>/<name>`, one sub-folder a class.

  Args:
    root: the folder. Classes are its sub-folders in sorted order; videos are
      their files with an ending of `SUFFIXES`, and their sub-folders with
      images in them. What is hidden is left out; that and what is not read is
      counted in the log.
    rate: frames a second of folders of frames.

  Returns:
    A set of videos, none of them opened; `classes` lists the names.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: no sub-folders, one without videos, or folders of frames and no
      rate.
  """
  root = pathlib.Path(root)
  paths, labels, classes = folders.of_classes(
    root,
    _inside,
    kind=f"video ({', '.join(SUFFIXES)}, or a folder of images for each)",
    rule="a video is <class>/<name> with an ending of a video",
  )
  frames = [p for p in paths if p.is_dir()]
  if frames and rate is None:
    checks.refuse("rate", rate, f"frames a second of folders as {frames[0]}")
  if rate is not None:
    checks.positive("rate", rate)
  names = [p.relative_to(root).as_posix() for p in paths]
  return FileSet(paths, labels, classes, names, rate)


class ArraySet:
  """Videos in memory, see `from_arrays`."""

  def __init__(self, videos, labels, classes):
    self._videos = list(videos)
    self.labels = np.asarray(labels, np.int32)
    self.classes = list(classes)
    self.names = [v.name for v in self._videos]

  def __len__(self) -> int:
    return len(self._videos)

  def open(self, index: int) -> video_types.Video:
    """A video."""
    return self._videos[int(index)]

  def subset(self, indices: Iterable[int]) -> ArraySet:
    """The videos at these places."""
    rows = [int(i) for i in indices]
    videos = [self._videos[i] for i in rows]
    return ArraySet(videos, self.labels[rows], self.classes)

  def with_labels(
    self, labels: Iterable[int], classes: Sequence[str]
  ) -> ArraySet:
    """The same videos with other labels, which `classes` names."""
    labels = check_set_labels(list(labels), len(self), classes)
    return ArraySet(self._videos, labels, classes)


def from_arrays(
  frames: Sequence[Any],
  *,
  labels: Any,
  classes: Sequence[str],
  rate: float = 25.0,
) -> ArraySet:
  """Videos in memory.

  Args:
    frames: of each video, `[frames, height, width, 3]` uint8; lengths and
      sizes may differ.
    labels: `[videos]` integers.
    classes: names of the labels.
    rate: frames a second.

  Raises:
    ValueError: no videos, one of another shape, or bad labels.
  """
  if not len(frames):
    checks.refuse("frames", frames, "at least one video")
  videos = [
    video_types.ArrayVideo(f, rate=rate, name=f"video {i}")
    for i, f in enumerate(frames)
  ]
  return ArraySet(
    videos, check_set_labels(labels, len(videos), classes), classes
  )
