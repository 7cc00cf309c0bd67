"""The frames of a video file, their times, and from where each is decoded.

A file tells little that can be relied on: the number of frames of its header is
0 or wrong, its first time stamp is not 0, time stamps are in the order of
decoding, absent or made up. So all its packets are read once (not decoded), and
numbered. In MP4, QuickTime, Matroska and WebM with the usual codecs, each
packet is a frame and has its time stamp; elsewhere, and where time stamps are
missing or repeated, the file is decoded once to see which packets become
frames, in which order. The result is the same in every process.

Needs PyAV (extra `video`).
"""

from __future__ import annotations

import dataclasses
import fractions
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.data import video_types

AV_HELP = "reading video files needs PyAV: pip install 'locojax[video]'"
HOW = ("auto", "packets", "decode")
# Where each packet is one frame and carries its own time stamp.
_CONTAINERS = ("mov", "mp4", "matroska", "webm")
_CODECS = (
  *("h264", "hevc", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "prores"),
  *("dnxhd", "ffv1"),
)
NONE = np.iinfo(np.int64).min  # a time stamp that is missing
_log = logging.getLogger(__name__)


def library() -> Any:
  """PyAV, or an error that says how to get it."""
  try:
    import av
  except ImportError as error:
    raise ImportError(AV_HELP) from error
  return av


class VideoError(ValueError):
  """A video cannot be read; the message names it."""


def unreadable(path: Any, why: object) -> VideoError:
  """The error of all that is wrong with a file."""
  return VideoError(f"the video {path} cannot be read: {why}.")


@dataclasses.dataclass(frozen=True)
class VideoIndex:
  """What is known of a video file.

  Attributes:
    path: of the file.
    stamp: (bytes, modification in ns) of the file that was indexed.
    packets: `[frames]` int64, the number of the packet of each frame, frames
      in the order in which they show.
    times: `[frames]` float64, seconds from the first frame; they do not fall.
    duration: seconds, with the last frame.
    height, width: upright.
    matrix: (a, b, c, d) with the signs of the display matrix: pixel (x, y) of
      the coded frame shows at (a x + c y, b x + d y).
    key_packets: `[keys]` int64, numbers of packets from which decoding can
      start, rising.
    key_frames: `[keys]` int64, the first frame that each serves.
    key_marks: `[keys, 4]` int64, pts, dts, place in the file and bytes, by
      which each is known again; the lowest int64 stands for none.
    decoded: whether it was made by decoding.
  """

  path: str
  stamp: tuple[int, int]
  packets: np.ndarray
  times: np.ndarray
  duration: float
  height: int
  width: int
  matrix: tuple[int, int, int, int]
  key_packets: np.ndarray
  key_frames: np.ndarray
  key_marks: np.ndarray
  decoded: bool

  def __len__(self) -> int:
    return len(self.packets)


def stamp_of(path: str | os.PathLike) -> tuple[int, int]:
  """(bytes, time of modification) of a file."""
  found = os.stat(path)
  return found.st_size, found.st_mtime_ns


def open_container(path: str | os.PathLike) -> tuple[Any, Any]:
  """An opened file and its video stream, set up for exact decoding.

  Raises:
    VideoError: no video can be found in it.
    FileNotFoundError: no such file.
    ImportError: PyAV is not installed.
  """
  av = library()
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"there is no video file {path}.")
  try:
    # A whole path: what has a colon in it is a protocol otherwise.
    container = av.open(
      str(path.resolve()), metadata_errors="replace", mode="r"
    )
  except (av.FFmpegError, OSError) as error:
    raise unreadable(path, error) from error
  try:
    return container, _video_stream(container, path)
  except BaseException:
    container.close()
    raise


def _video_stream(container: Any, path: pathlib.Path) -> Any:
  from av.stream import Disposition

  # Covers of music are pictures attached to it.
  covers = Disposition.attached_pic
  found = [s for s in container.streams.video if not s.disposition & covers]
  if not found:
    kinds = sorted({s.type for s in container.streams}) or ["nothing"]
    raise unreadable(path, f"it has no video, only {', '.join(kinds)}")
  best = container.streams.best("video")
  stream = best if best in found else found[0]
  if stream.codec_context is None:
    raise unreadable(path, "its codec is unknown here")
  stream.codec_context.thread_count = 1
  # Damage is to be an error, and not something made up in its place.
  stream.codec_context.options = {"err_detect": "explode"}
  return stream


def mark_of(packet: Any) -> tuple[int, int, int, int]:
  """Pts, dts, place and bytes of a packet; `NONE` stands for none."""
  return tuple(_filled((packet.pts, packet.dts, packet.pos, packet.size), NONE))


@dataclasses.dataclass
class _Scan:
  """The packets of a file `[packets, ...]`, and what decoding gave."""

  marks: np.ndarray
  durations: np.ndarray
  keys: np.ndarray
  shown: np.ndarray
  first: Any
  output: list[int]


def _scan(path: str, *, everything: bool) -> tuple[_Scan, Any]:
  """Reads all packets; decodes the first frame, or everything.

  Returns:
    The scan, and facts of the stream.
  """
  av = library()
  container, stream = open_container(path)
  rows, first, output = [], None, []
  with container:
    context = stream.codec_context
    try:
      for number, packet in numbered(container.demux(stream)):
        if number is not None:
          rows.append(
            (
              *(packet.pts, packet.dts, packet.pos, packet.size),
              packet.duration,
              packet.is_keyframe,
              packet.is_discard or packet.is_corrupt,
            )
          )
        if everything or first is None:
          found = _whole_frames(context, number, packet)
          first = first or (found[0] if found else None)
          output += [frame.pts for frame in found]
    except av.error.InvalidDataError as error:
      _log.warning("%s ends in damage (%s): the rest is left out.", path, error)
    facts = _facts(container, stream)
  if not rows or first is None:
    raise unreadable(path, "no frame can be decoded")
  *marks, durations, keys, hidden = zip(*rows)
  scan = _Scan(
    marks=np.array([_filled(column, NONE) for column in marks], np.int64).T,
    durations=np.array(_filled(durations, 0), np.int64),
    keys=np.array(keys, bool),
    shown=~np.array(hidden, bool),
    first=first,
    output=output,
  )
  return scan, facts


def _filled(values: Iterable[int | None], missing: int) -> list[int]:
  return [missing if v is None else v for v in values]


def numbered(
  packets: Iterable[Any], first: int = 0
) -> Iterator[tuple[int | None, Any]]:
  """Packets with their numbers from `first` on; at the end (None, flush).

  The flush brings the frames that a decoder still holds. A packet without
  content inside a file is a frame that was left out there, and no flush.
  """
  for number, packet in enumerate(packets, first):
    is_flush = not packet.size and packet.pts is None and packet.dts is None
    yield (None if is_flush else number), packet


def decode(context: Any, number: int | None, packet: Any) -> list[Any]:
  """The frames that a packet brings, their `pts` the number of their packet."""
  if number is None:
    return context.decode(None)
  if not packet.size:
    return []
  packet.pts, packet.dts = number, None
  return context.decode(packet)


def _whole_frames(context: Any, number: int | None, packet: Any) -> list[Any]:
  """As `decode`, without what is damaged."""
  try:
    found = decode(context, number, packet)
  except library().FFmpegError:
    return []
  return [frame for frame in found if not frame.is_corrupt]


@dataclasses.dataclass(frozen=True)
class _Facts:
  """Of a stream: its containers, codec, tick and rate."""

  containers: frozenset[str]
  codec: str
  tick: fractions.Fraction
  rate: fractions.Fraction


def _facts(container: Any, stream: Any) -> _Facts:
  rate = stream.average_rate or stream.guessed_rate or stream.base_rate
  return _Facts(
    containers=frozenset(container.format.name.split(",")),
    codec=stream.codec_context.name,
    tick=stream.time_base,
    rate=rate or fractions.Fraction(25),
  )


def _is_reliable(scan: _Scan, facts: _Facts) -> bool:
  """Whether each packet that shows is one frame with a time of its own."""
  pts = scan.marks[scan.shown, 0]
  return (
    not facts.containers.isdisjoint(_CONTAINERS)
    and facts.codec in _CODECS
    and NONE not in pts
    and len(np.unique(pts)) == len(pts)
  )


def read_index(path: str | os.PathLike, *, how: str = "auto") -> VideoIndex:
  """Reads the index of a video file.

  Args:
    path: any file that FFmpeg reads.
    how: `auto`, see the head of this file; `packets` trusts the packets
      whatever the container; `decode` decodes the file in any case.

  Raises:
    VideoError: the file is damaged, has no video, or no frame of it can be
      decoded; it is named.
    FileNotFoundError: no such file.
    ImportError: PyAV is not installed.
  """
  checks.one_of("how", how, HOW)
  path = str(path)
  stamp = stamp_of(path) if os.path.isfile(path) else (0, 0)
  scan, facts = _scan(path, everything=how == "decode")
  if how == "auto" and not _is_reliable(scan, facts):
    how = "decode"
    scan, facts = _scan(path, everything=True)
  if how == "decode":
    packets = np.array(scan.output, np.int64)
    shown = np.zeros(len(scan.keys), bool)
    shown[packets] = True
  else:
    packets = _by_time(path, scan)
  return _index(path, stamp, scan, facts, packets, decoded=how == "decode")


def _by_time(path: str, scan: _Scan) -> np.ndarray:
  """Numbers of the packets that show, in the order of their time stamps."""
  numbers = np.flatnonzero(scan.shown)
  pts = scan.marks[numbers, 0]
  if NONE in pts:
    raise unreadable(path, "packets lack time stamps (how='decode' may help)")
  return numbers[np.argsort(pts, kind="stable")]


def _times(
  scan: _Scan, facts: _Facts, packets: np.ndarray
) -> tuple[np.ndarray, float]:
  """Seconds from the first frame, and the duration."""
  for column in (0, 1):  # pts, dts
    ticks = scan.marks[packets, column]
    if NONE not in ticks:
      # In AVI they are in the order of decoding, whatever they are called.
      ticks = np.sort(ticks)
      times = (ticks - ticks[0]) * float(facts.tick)
      last = int(scan.durations[packets[-1]]) * float(facts.tick)
      return times, float(times[-1]) + (last or video_types.last_gap(times))
  times = np.arange(len(packets)) / float(facts.rate)
  return times, len(packets) / float(facts.rate)


def _key_frames(
  scan: _Scan, packets: np.ndarray, keys: np.ndarray, *, decoded: bool
) -> np.ndarray:
  """The first frame that each key packet serves.

  That is the frame of the key packet itself: what shows before it and comes
  after it in the file may need what is before the key packet. A key packet
  that does not show serves what shows after it.
  """
  if not decoded:
    return np.searchsorted(scan.marks[packets, 0], scan.marks[keys, 0])
  # Without time stamps to go by, only a key packet that shows is used.
  frame_of = np.full(len(scan.keys), len(packets), np.int64)
  frame_of[packets] = np.arange(len(packets))
  return frame_of[keys]


def _matrix(path: str, frame: Any) -> tuple[int, int, int, int]:
  """The signs of the frame's display matrix."""
  # A frame and its side data hold each other: of a small copy, that is little.
  small = frame.reformat(width=2, height=2, format="rgb24", threads=1)
  held = small.side_data.get("DISPLAYMATRIX")
  if held is None:
    return (1, 0, 0, 1)
  a, b, _, c, d = np.frombuffer(bytes(held), np.int32)[:5].astype(float)
  found = np.array([a, b, c, d])
  largest = np.abs(found).max()
  signs = np.where(np.abs(found) > 0.02 * largest, np.sign(found), 0)
  signs = tuple(int(s) for s in signs)
  if not largest or abs(signs[0] * signs[3] - signs[1] * signs[2]) != 1:
    raise unreadable(path, "it is turned by an angle that is no quarter turn")
  return signs


def _index(path, stamp, scan, facts, packets, *, decoded) -> VideoIndex:
  if not len(packets):
    raise unreadable(path, "no frame can be decoded")
  times, duration = _times(scan, facts, packets)
  keys = np.flatnonzero(scan.keys)
  serves = _key_frames(scan, packets, keys, decoded=decoded)
  matrix = _matrix(path, scan.first)
  height, width = scan.first.height, scan.first.width
  if matrix[1]:
    height, width = width, height
  return VideoIndex(
    path=path,
    stamp=stamp,
    packets=packets,
    times=times,
    duration=duration,
    height=height,
    width=width,
    matrix=matrix,
    key_packets=keys,
    key_frames=serves,
    key_marks=scan.marks[keys],
    decoded=decoded,
  )
