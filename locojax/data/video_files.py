"""Random access to the frames of a video file.

A clip is read by going to the key frame at or before it and decoding from
there, no further than needed; frames that nothing depends on are skipped on the
way. Which frame is which is known by the number of its packet, not by counting:
after a seek, the key packet is known again by what the index says of it, and
where the container lands behind it (MPEG-TS does), the reader goes further
back. A frame that does not come, or that depends on something damaged, is an
error that names the file.

Colours are what FFmpeg makes of the file (BT.601 where it has no tags), pixels
are taken for squares. A file whose frames change size is brought to its first
size. Needs PyAV (extra `video`).
"""

from __future__ import annotations

import array
import collections
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from locojax.data import video_index, video_types

MAX_OPEN = 4  # files that a thread holds open
_DELAY = 64  # packets after which no decoder still holds a frame
_NEAR = 8  # packets that are sooner decoded than skipped by a seek
_REORDERED = 32  # frames by which the order of decoding may be ahead
_open = threading.local()


class _MissingError(Exception):
  """A frame did not come, or cannot be relied upon."""


def oriented(
  frame: np.ndarray, matrix: tuple[int, int, int, int]
) -> np.ndarray:
  """A coded frame `[h, w, channels]` as it shows, by its display matrix.

  Args:
    frame: as it was decoded.
    matrix: (a, b, c, d), each -1, 0 or 1: pixel (x, y) shows at
      (a x + c y, b x + d y), up to a shift.
  """
  a, b, c, d = matrix
  if b:
    frame, along_x, along_y = frame.swapaxes(0, 1), c, b
  else:
    along_x, along_y = a, d
  return frame[:: along_y or 1, :: along_x or 1]


class _Reader:
  """An open file, of one thread."""

  def __init__(self, index: video_index.VideoIndex):
    self._av = video_index.library()
    from av.video.reformatter import VideoReformatter

    self._index = index
    self._scaler = VideoReformatter()
    rank = np.full(int(index.packets.max()) + 1, -1, np.int64)
    rank[index.packets] = np.arange(len(index))
    # Read one by one, as Python's integers.
    self._rank = array.array("q", rank.tobytes())
    order = np.argsort(index.key_frames, kind="stable")
    self._key_order, self._key_frames = order, index.key_frames[order]
    self._container = None
    self._open()

  def _open(self) -> None:
    self.close()
    found = video_index.stamp_of(self._index.path)
    if found != self._index.stamp:
      raise video_index.unreadable(
        self._index.path, "it has changed since it was indexed"
      )
    opened = video_index.open_container(self._index.path)
    self._container, self._stream = opened
    self._context = self._stream.codec_context
    self._flow: Iterator | None = None
    self._skipping = False

  def close(self) -> None:
    if self._container is not None:
      self._container.close()

  # Where to begin.

  def _keys_of(self, frames: np.ndarray) -> np.ndarray:
    """The key to decode each frame from; -1 for the start of the file."""
    at = np.searchsorted(self._key_frames, frames, side="right") - 1
    return np.where(at >= 0, self._key_order[at], -1)

  def _key_packet(self, key: int) -> int:
    return int(self._index.key_packets[key]) if key >= 0 else 0

  def _runs(self, frames: np.ndarray) -> list[tuple[int, list[int]]]:
    """Frames by the key packet from which they are decoded in one go."""
    keys = self._keys_of(frames)
    begins = np.where(keys >= 0, self._index.key_packets[keys], 0)
    packets = self._index.packets[frames].tolist()
    runs: list[tuple[int, list[int]]] = []
    reached = -1
    for i, frame in enumerate(frames.tolist()):
      if not runs or begins[i] > reached + _NEAR:
        runs.append((int(keys[i]), []))
        reached = -1
      runs[-1][1].append(frame)
      reached = max(reached, packets[i])
    return runs

  def _targets(self, key: int) -> list[int]:
    """Time stamps to seek for a key packet, each earlier than the last."""
    marks = self._index.key_marks
    back = (key - 2**i for i in range(key.bit_length()))
    found = [marks[key, 0], marks[key, 1], *(marks[k, 0] for k in back)]
    known = [int(t) for t in found if t != video_index.NONE]
    return list(dict.fromkeys(known))

  def _seek(self, key: int) -> Iterator:
    """Packets with their numbers, from a key packet on."""
    for target in self._targets(key) if key >= 0 else ():
      try:
        self._container.seek(target, stream=self._stream)
        flow = self._find(key)
      except self._av.FFmpegError:
        continue
      if flow is not None:
        return flow
    return self._from_start()

  def _from_start(self) -> Iterator:
    self._open()
    return video_index.numbered(self._container.demux(self._stream))

  def _find(self, key: int) -> Iterator | None:
    """The packets from the key packet on, if a seek ended before it."""
    wanted = tuple(self._index.key_marks[key].tolist())
    packets = self._container.demux(self._stream)
    for packet in packets:
      mark = video_index.mark_of(packet)
      if packet.is_keyframe and _is_same(mark, wanted):
        rest = itertools.chain([packet], packets)
        return video_index.numbered(rest, self._key_packet(key))
      if not packet.size or _is_beyond(mark, wanted, packet.is_keyframe):
        return None
    return None

  # Decoding.

  def read(self, frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames `[n, *size, 3]`, each number once and rising."""
    out = np.empty((len(frames), *size, 3), np.uint8)
    place = {int(frame): i for i, frame in enumerate(frames)}

    def take(number: int, frame: Any) -> None:
      out[place[number]] = self._pixels(frame, size)

    for key, run in self._runs(frames):
      self._read_run(key, run, take)
    return out

  def _read_run(self, key: int, run: list[int], take: Callable) -> None:
    why: object = None
    if self._goes_on(key, run[0]):
      try:
        return self._collect(run, take, skip=True)
      except _MissingError:
        pass
    # In an open group of pictures, a decoder may miss what is before the key.
    tries = ((key, True), (key, False), (max(key - 1, -1), False), (-1, False))
    for at, skip in dict.fromkeys(tries):
      try:
        self._flow, self._done, self._ahead = self._seek(at), -1, {}
        self._reached = self._key_packet(at)
        # What shows before this one may lack what it depends on.
        self._sound = int(self._index.key_frames[key]) if key >= 0 else 0
        return self._collect(run, take, skip=skip)
      except _MissingError as missing:
        why = missing
    self._flow = None
    raise video_index.unreadable(self._index.path, why)

  def _goes_on(self, key: int, frame: int) -> bool:
    """Whether decoding on from where the reader is leads to a frame soonest."""
    return (
      self._flow is not None
      and self._done < frame
      and self._key_packet(key) <= self._reached + _NEAR
    )

  def _collect(self, run: list[int], take: Callable, *, skip: bool) -> None:
    """Decodes until all frames of a run are there.

    Raises:
      _MissingError: one does not come, or depends on what is damaged.
    """
    packets, wanted = self._index.packets, set(run)
    left = {int(packets[frame]): frame for frame in run}
    # What shows after the run and was decoded before its end may be what it
    # was made of: whether that is damaged must be seen as well.
    after = np.arange(run[-1] + 1, min(run[-1] + _REORDERED, len(packets)))
    made_of = after[packets[after] < max(left)]
    left |= {int(packets[frame]): int(frame) for frame in made_of}
    last, came = max(left) + _DELAY, list(self._ahead.values())
    self._ahead = {}
    while True:
      for frame in came:
        number = frame.pts
        found = left.pop(number, None)
        if found in wanted:
          take(found, frame)
        if self._rank_of(number) > run[-1]:
          self._ahead[number] = frame
      if not left:
        self._done = run[-1]
        return
      number, packet = next(self._flow, (None, None))
      if packet is None or self._reached > last:
        break
      skips = skip and self._may_skip(number, left, run[-1])
      self._set_skipping(skips)
      came = self._decoded(number, packet)
    missing = min(left.values())
    self._flow = None
    raise _MissingError(self._told(missing, "is not in it"))

  def _told(self, frame: int, what: str) -> str:
    seconds = self._index.times[frame]
    return f"frame {frame}, at {seconds:.3f} s, {what}"

  def _rank_of(self, number: int) -> int:
    return self._rank[number] if number < len(self._rank) else -1

  def _may_skip(self, number: int | None, left: dict, last: int) -> bool:
    """Whether the decoder may leave this packet out if nothing depends on it.

    What shows after the run is decoded in full, so that reading can go on.
    """
    if number is None or number in left or number >= len(self._rank):
      return False
    return 0 <= self._rank[number] < last

  def _set_skipping(self, skips: bool) -> None:
    if skips != self._skipping:
      self._context.skip_frame = "NONREF" if skips else "DEFAULT"
      self._skipping = skips

  def _decoded(self, number: int | None, packet: Any) -> list[Any]:
    """The frames that a packet brings."""
    try:
      found = video_index.decode(self._context, number, packet)
    except self._av.FFmpegError as error:
      rank = self._sound if number is None else self._rank_of(number)
      if rank < 0 or rank >= self._sound:
        self._flow = None
        raise _MissingError(
          self._told(max(rank, 0), f"is damaged: {error}")
        ) from error
      return []
    for frame in found:
      if frame.is_corrupt and self._rank_of(frame.pts) >= self._sound:
        self._flow = None
        rank = self._rank_of(frame.pts)
        raise _MissingError(self._told(rank, "is damaged"))
    if number is not None:
      self._reached = number
    return found

  def _pixels(self, frame: Any, size: tuple[int, int]) -> np.ndarray:
    matrix = self._index.matrix
    height, width = size[::-1] if matrix[1] else size
    scaled = self._scaler.reformat(
      frame, width=width, height=height, format="rgb24", threads=1
    )
    return oriented(scaled.to_ndarray(), matrix)


def _is_same(mark: Sequence[int], wanted: Sequence[int]) -> bool:
  """Whether two packets are one: by time stamp, place in the file and bytes.

  After a seek the second time stamp (dts) may be unknown or another.
  """
  return all(
    m == w
    for i, (m, w) in enumerate(zip(mark, wanted))
    if i != 1 and video_index.NONE not in (m, w)
  )


def _is_beyond(
  mark: Sequence[int], wanted: Sequence[int], is_key: bool
) -> bool:
  """Whether a packet comes after the wanted key packet in the file."""
  for column in (1, 0) if is_key else (1,):
    both = (mark[column], wanted[column])
    if video_index.NONE not in both:
      return both[0] > both[1]
  return False


def _reader(index: video_index.VideoIndex) -> _Reader:
  """This thread's open reader of a file; the one used longest ago is closed."""
  readers = _open.__dict__.setdefault("readers", collections.OrderedDict())
  key = (index.path, index.stamp)
  if key not in readers:
    while len(readers) >= MAX_OPEN:
      readers.popitem(last=False)[1].close()
    readers[key] = _Reader(index)
  readers.move_to_end(key)
  return readers[key]


def close_all() -> None:
  """Closes the files that this thread holds open; reading opens them again."""
  readers = _open.__dict__.setdefault("readers", collections.OrderedDict())
  while readers:
    readers.popitem()[1].close()


class FileVideo:
  """The frames of a video file, see `video_types.Video`.

  It holds an index and no open file, so that it can be pickled; each thread
  opens the file when it reads, and holds at most `MAX_OPEN` files open.

  Attributes:
    index: of the file.
  """

  def __init__(self, index: video_index.VideoIndex):
    self.index = index
    self.name = index.path
    self.times, self.duration = index.times, index.duration
    self.height, self.width = index.height, index.width

  def __len__(self) -> int:
    return len(self.index)

  def frames(
    self,
    indices: Sequence[int],
    *,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
  ) -> np.ndarray:
    """Frames by number.

    Args:
      indices: `[n]` integers, in any order, repeats allowed.
      short_side: pixels of the shorter side, bilinear by FFmpeg; None keeps
        the size.
      size: (height, width) instead.

    Returns:
      `[n, height, width, 3]` uint8, red, green and blue, upright.

    Raises:
      ValueError: a number that is not there; a `VideoError` where the file is
        damaged there or has changed. The file is named.
    """
    wanted = video_types.output_size(
      self.height, self.width, short_side=short_side, size=size
    )
    rows = video_types.check_indices(self.name, indices, len(self))
    reader = _reader(self.index)
    if np.all(np.diff(rows) > 0):
      return reader.read(rows, wanted)
    unique, back = np.unique(rows, return_inverse=True)
    return reader.read(unique, wanted)[back]


def open_file(path: str | os.PathLike, *, how: str = "auto") -> FileVideo:
  """A video file, indexed; `how` and errors as in `video_index.read_index`."""
  return FileVideo(video_index.read_index(path, how=how))
