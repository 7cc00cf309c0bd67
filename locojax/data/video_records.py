"""Videos in ArrayRecord files: frames as images, read without a video codec.

A record is one video: a line of JSON (times, size, and how long each image is),
then the images. A read brings one record, and only the frames that are asked
for are decoded. Beside the file, `<name>.json` tells labels, classes and names.
Needs the package `array_record` (extra `video`) and Pillow.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from locojax.core import checks, files
from locojax.data import image_files, video_index, video_sets, video_types

FORMATS = {
  "JPEG": {"quality": 92, "subsampling": 0},
  "PNG": {},
  "WEBP": {"lossless": True},
}
_OPTIONS = "group_size:1"  # each record is read alone
_AT_ONCE = 32  # frames in memory while writing


def _library() -> Any:
  try:
    from array_record.python import array_record_module
  except ImportError as error:
    raise ImportError(
      "array_record is missing: install locojax[video]."
    ) from error
  return array_record_module


def about_file(path: str | os.PathLike) -> pathlib.Path:
  """The file that tells what is in a file of records."""
  path = pathlib.Path(path)
  return path.with_name(path.name + ".json")


def _images(
  video: video_types.Video, form: str, size: tuple[int, int]
) -> Iterator[bytes]:
  from PIL import Image

  for first in range(0, len(video), _AT_ONCE):
    rows = np.arange(first, min(first + _AT_ONCE, len(video)))
    for frame in video.frames(rows, size=size):
      held = io.BytesIO()
      Image.fromarray(frame).save(held, form, **FORMATS[form])
      yield held.getvalue()


def _record(
  video: video_types.Video, form: str, short_side: int | None
) -> bytes:
  size = video_types.output_size(
    video.height, video.width, short_side=short_side, size=None
  )
  images = list(_images(video, form, size))
  head = {
    "height": size[0],
    "width": size[1],
    "duration": video.duration,
    "times": list(map(float, video.times)),
    "bytes": list(map(len, images)),
  }
  return json.dumps(head).encode() + b"\n" + b"".join(images)


def write_video_records(
  path: str | os.PathLike,
  videos: video_sets.VideoSet,
  *,
  short_side: int | None = None,
  form: str = "JPEG",
) -> pathlib.Path:
  """Writes a set of videos, one after the other, as images.

  Args:
    path: of the file; `<path>.json` is written beside it.
    videos: a set.
    short_side: pixels of the shorter side; None keeps the sizes.
    form: of the images, of `FORMATS`; JPEG is small, the others are exact.

  Returns:
    The path.

  Raises:
    ValueError: a bad value, or a video that cannot be read (it is named).
    ImportError: array_record or Pillow is not installed.
  """
  path = pathlib.Path(path)
  checks.one_of("form", form, FORMATS)
  video_types.check_resizing(short_side, None)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    part = pathlib.Path(folder) / "records"
    writer = _library().ArrayRecordWriter(str(part), _OPTIONS)
    for i in range(len(videos)):
      writer.write(_record(videos.open(i), form, short_side))
    writer.close()
    with part.open("rb") as made:
      files.write(path, lambda file: shutil.copyfileobj(made, file))
  about = {
    "labels": np.asarray(videos.labels).tolist(),
    "classes": list(videos.classes),
    "names": list(videos.names),
  }
  files.write_json(about_file(path), about)
  return path


class RecordVideo:
  """A video of a file of records, see `video_types.Video`."""

  def __init__(self, record: bytes, name: str):
    self.name = name
    try:
      line = record.index(b"\n")
      head = json.loads(record[:line])
      self.height, self.width = int(head["height"]), int(head["width"])
      self.times = np.asarray(head["times"], np.float64)
      self.duration = float(head["duration"])
      ends = line + 1 + np.cumsum([0, *head["bytes"]])
    except (ValueError, KeyError, TypeError) as error:
      raise video_index.unreadable(name, f"no video ({error})") from error
    if ends[-1] != len(record) or len(ends) != len(self.times) + 1:
      raise video_index.unreadable(name, "its record is damaged")
    self._record, self._ends = record, ends

  def __len__(self) -> int:
    return len(self.times)

  def frames(
    self,
    indices: Sequence[int],
    *,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
  ) -> np.ndarray:
    """Frames as uint8 `[n, height, width, 3]`; any order, repeats allowed.

    Raises:
      ValueError: a number that is not there, or a damaged image.
    """
    wanted = video_types.output_size(
      self.height, self.width, short_side=short_side, size=size
    )
    rows = video_types.check_indices(self.name, indices, len(self))
    unique, back = np.unique(rows, return_inverse=True)
    found = np.stack([self._frame(int(i)) for i in unique])
    return video_types.resize_clip(found, wanted)[back]

  def _frame(self, index: int) -> np.ndarray:
    held = io.BytesIO(self._record[self._ends[index] : self._ends[index + 1]])
    try:
      return image_files.read_image(held)
    except ValueError as error:
      raise video_index.unreadable(
        self.name, f"frame {index} is damaged: {error}"
      ) from error


class RecordSet:
  """Videos in a file of records, see `from_video_records`.

  Attributes:
    labels: `[videos]` int32.
    classes: names of the labels.
    names: of the videos.
  """

  def __init__(self, path, rows, labels, classes, names):
    _library()
    from array_record.python import array_record_data_source

    self._path, self._rows = path, rows
    self._source = array_record_data_source.ArrayRecordDataSource([str(path)])
    self.labels = np.asarray(labels, np.int32)
    self.classes, self.names = list(classes), list(names)

  def __len__(self) -> int:
    return len(self._rows)

  def open(self, index: int) -> RecordVideo:
    """A video: its record is read.

    Raises:
      VideoError: the record is damaged; it is named.
    """
    index = int(index)
    name = f"{self._path}: {self.names[index]}"
    return RecordVideo(self._source[int(self._rows[index])], name)

  def subset(self, indices: Any) -> RecordSet:
    """The videos at these places; none is read."""
    at = [int(i) for i in indices]
    names = [self.names[i] for i in at]
    return RecordSet(
      self._path, self._rows[at], self.labels[at], self.classes, names
    )

  def with_labels(self, labels: Any, classes: Sequence[str]) -> RecordSet:
    """The same videos with other labels, which `classes` names."""
    found = video_sets.check_set_labels(labels, len(self), classes)
    return RecordSet(self._path, self._rows, found, classes, self.names)


def from_video_records(path: str | os.PathLike) -> RecordSet:
  """Videos that `write_video_records` has written, read by position.

  Raises:
    FileNotFoundError: the file, or the one that tells of it, is missing.
    ValueError: they do not go together.
    ImportError: array_record is not installed.
  """
  path = pathlib.Path(path)
  for file in (path, about_file(path)):
    if not file.is_file():
      raise FileNotFoundError(f"there is no {file}.")
  about = files.read_json(about_file(path), remedy="write the records again")
  labels, classes, names = (about[k] for k in ("labels", "classes", "names"))
  labels = video_sets.check_set_labels(labels, len(names), classes)
  made = RecordSet(path, np.arange(len(names)), labels, classes, names)
  if len(made._source) != len(names):
    raise ValueError(
      f"{path} has {len(made._source)} videos, and {about_file(path)} names "
      f"{len(names)}: write the records again."
    )
  return made
