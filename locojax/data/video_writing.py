"""Writing video files: frames to MP4, WebM, Matroska, AVI or MPEG-TS.

The same frames and settings give the same bytes (one thread, no dates), as far
as the version of the encoder goes. Needs PyAV (extra `video`).
"""

from __future__ import annotations

import fractions
import os
import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from locojax.core import checks, files
from locojax.data import video_index, video_types

# By ending: the container's name, and encoders in the order of preference.
CONTAINERS = {
  ".mp4": ("mp4", ("libx264", "mpeg4")),
  ".mov": ("mov", ("libx264", "mpeg4")),
  ".mkv": ("matroska", ("libx264", "mpeg4")),
  ".webm": ("webm", ("libvpx-vp9",)),
  ".avi": ("avi", ("mpeg4",)),
  ".ts": ("mpegts", ("libx264", "mpeg2video")),
}
# Of a file that many random clips are cut from: a key frame every second or so.
_OPTIONS = {
  "libx264": {"preset": "veryfast", "crf": "20"},
  "libvpx-vp9": {"cpu-used": "6", "deadline": "good", "crf": "30", "b": "0"},
  "mpeg4": {"qscale": "3"},
}
_TICKS = {".webm": 1000, ".mkv": 1000}  # a second; others take finer ones
_FINE = 90_000
_EVEN = ("libx264", "libx265", "mpeg2video")  # halves of both sides


def has_encoder(codec: str) -> bool:
  """Whether the installed PyAV encodes with this codec."""
  av = video_index.library()
  try:
    av.codec.Codec(codec, "w")
  except av.error.FFmpegError:
    return False
  return True


def _encoder(suffix: str, codec: str | None) -> str:
  preferred = CONTAINERS[suffix][1] if codec is None else (codec,)
  for name in preferred:
    if has_encoder(name):
      return name
  checks.refuse("codec", codec, f"an encoder of this PyAV for {suffix}")


def _ticks(suffix, codec, num, rate, times) -> tuple[list[int], Any]:
  """The time stamps of the frames, and their unit in seconds."""
  if times is None:
    return list(range(num)), 1 / fractions.Fraction(rate).limit_denominator(
      1001
    )
  times = video_types.check_times(times, num)
  # MPEG-4 part 2 counts a second in at most 16 bits.
  fine = 1000 if codec == "mpeg4" else _FINE
  unit = fractions.Fraction(1, _TICKS.get(suffix, fine))
  found = np.rint(times / float(unit)).astype(np.int64)
  if np.any(np.diff(found) < 1):
    checks.refuse("times", times, f"at least {unit} s apart in {suffix}")
  return found.tolist(), unit


def write_video(
  path: str | os.PathLike,
  frames: Any,
  *,
  rate: float | None = None,
  times: Any = None,
  codec: str | None = None,
  options: Mapping[str, str] | None = None,
  key_every: int = 24,
  pixels: str = "yuv420p",
  rotation: int = 0,
  mirrored: bool = False,
) -> pathlib.Path:
  """Writes a video file, whole or not at all.

  Args:
    path: its ending, of `CONTAINERS`, says what it is.
    frames: `[frames, height, width, 3]` uint8, as they are coded.
    rate: frames a second; or
    times: `[frames]` seconds that rise, rounded to what the container holds
      (milliseconds in WebM and Matroska).
    codec: FFmpeg's name of an encoder; None takes one of the container.
    options: of the encoder, over the defaults here.
    key_every: frames from one key frame to the next, at most.
    pixels: FFmpeg's name of the format of pixels; `yuv444p` keeps odd sides
      in H.264.
    rotation: degrees counterclockwise by which players turn it; a multiple of
      90. Not all containers hold it.
    mirrored: players mirror it, left to right.

  Returns:
    The path.

  Raises:
    ValueError: a bad value, or odd sides where the codec takes none.
    ImportError: PyAV is not installed.
  """
  path = pathlib.Path(path)
  checks.one_of("the ending of path", path.suffix, CONTAINERS)
  frames = video_types.check_clip(frames)
  if (rate is None) == (times is None):
    checks.refuse("rate", rate, "given, or times, and not both")
  if rate is not None:
    checks.positive("rate", rate)
  checks.positive_int("key_every", key_every)
  checks.divisible("rotation", rotation, "a quarter turn", 90)
  name = _encoder(path.suffix, codec)
  _check_sides(frames, name, pixels)
  ticks, unit = _ticks(path.suffix, name, len(frames), rate, times)
  settings = {
    "codec": name,
    "options": {**_OPTIONS.get(name, {}), **(options or {})},
    "key_every": key_every,
    "pixels": pixels,
    "turn": (rotation, mirrored),
  }

  def fill(file: BinaryIO) -> None:
    _encode(file, CONTAINERS[path.suffix][0], frames, ticks, unit, settings)

  return files.write(path, fill)


def _check_sides(frames: np.ndarray, codec: str, pixels: str) -> None:
  height, width = frames.shape[1:3]
  if codec in _EVEN and "420" in pixels and (height % 2 or width % 2):
    raise ValueError(
      f"frames of {height} x {width} are not allowed with {codec}: with "
      f"pixels={pixels!r} both sides must be even."
    )


def _encode(
  file: BinaryIO,
  container_format: str,
  frames: np.ndarray,
  ticks: list[int],
  unit: fractions.Fraction,
  settings: Mapping[str, Any],
) -> None:
  av = video_index.library()
  with av.open(file, "w", format=container_format) as container:
    container.flags |= av.container.Flags.bitexact.value
    stream = container.add_stream(
      settings["codec"], rate=1 / unit, options=settings["options"]
    )
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = settings["pixels"]
    context = stream.codec_context
    context.time_base = unit
    context.gop_size = settings["key_every"]
    context.thread_count = 1
    context.flags |= av.codec.context.Flags.bitexact.value
    if any(settings["turn"]):
      stream.set_display_rotation(settings["turn"][0], settings["turn"][1])
    for tick, pixels in zip(ticks, frames, strict=True):
      frame = av.VideoFrame.from_ndarray(pixels)
      frame.pts, frame.time_base = tick, unit
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
