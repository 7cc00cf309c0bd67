"""Other readers of video, for `experiments.spl.bench_reader`.

  python -P experiments/spl/bench_reader_peer.py --library=decord \\
    --files='["a.mp4"]' --way=held --clips=100 --seed=0

Reads random clips of 16 frames, which show their numbers, and says in a line of
JSON when it is ready: its version, and how many frames were others than asked
for. Then it reads the same clips again for each `step` that it is told
(`experiments/common/peers.py`). With `--memory=N` it reads N clips instead, and
tells the memory that it holds on the way; with `--probe`, only whether it opens
the first file. One thread each; frames are uint8, red, green and blue, of the
size of the file.

  held    files stay open
  opened  each clip opens its file anew, as for a large set of files
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NUM_FRAMES = 16  # of a clip
LENGTH = 250  # frames of a file
BITS, BLOCK = 8, 24  # numbers of frames: blocks along the top, one for each bit

Read = Callable[[Sequence[int]], np.ndarray]


def draw_numbers(frames: np.ndarray) -> None:
  """Draws the number of each frame into it, in place."""
  numbers = np.arange(len(frames))
  for bit in range(BITS):
    ink = np.where(numbers >> bit & 1, 235, 16).astype(np.uint8)
    columns = slice(bit * BLOCK, (bit + 1) * BLOCK)
    frames[:, :BLOCK, columns] = ink[:, None, None, None]


def read_numbers(frames: np.ndarray) -> np.ndarray:
  """The numbers that frames show."""
  out = np.zeros(len(frames), int)
  for bit in range(BITS):
    seen = frames[:, BLOCK // 2, bit * BLOCK + BLOCK // 2].mean(axis=-1)
    out |= (seen > 128).astype(int) << bit
  return out


def random_clips(num_files: int, num: int, seed: int) -> list[tuple[int, list]]:
  """(number of a file, numbers of frames) of random clips."""
  rng = np.random.default_rng(seed)
  files = rng.integers(0, num_files, num).tolist()
  starts = rng.integers(0, LENGTH - NUM_FRAMES + 1, num).tolist()
  return [(f, list(range(s, s + NUM_FRAMES))) for f, s in zip(files, starts)]


class Reader:
  """Reads clips of files in one of two ways.

  Args:
    open_file: path -> (numbers of frames -> frames).
    files: paths.
    way: `held` or `opened`.
  """

  def __init__(
    self, open_file: Callable[[str], Read], files: Sequence[str], way: str
  ):
    self._open_file, self._files = open_file, files
    self._held = {} if way == "held" else None

  def __call__(self, file: int, numbers: Sequence[int]) -> np.ndarray:
    """Frames `[n, height, width, 3]` uint8."""
    if self._held is None:
      return self._open_file(self._files[file])(numbers)
    if file not in self._held:
      self._held[file] = self._open_file(self._files[file])
    return self._held[file](numbers)

  def read(self, clips: Sequence[tuple[int, list]]) -> int:
    """Reads all clips; how many frames were not those asked for."""
    wrong = 0
    for file, numbers in clips:
      try:
        found = self(file, numbers)
      except RuntimeError:  # what these libraries raise where they fail
        found = ()
      right = (
        read_numbers(found) == numbers if len(found) == len(numbers) else 0
      )
      wrong += len(numbers) - int(np.sum(right))
    return wrong


def megabytes_held() -> float:
  """What this process holds in memory now."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * 4096 / 1e6


def memory(reader: Reader, num_files: int, num: int, seed: int) -> list[float]:
  """MB held after each tenth of `num` random clips."""
  clips, told = random_clips(num_files, num, seed), []
  for tenth in np.array_split(np.arange(num), 10):
    for i in tenth:
      with contextlib.suppress(RuntimeError):
        reader(*clips[i])
    told.append(megabytes_held())
  return told


def _decord() -> tuple[Callable, str]:
  import decord

  def open_file(path: str) -> Read:
    video = decord.VideoReader(path, num_threads=1)
    return lambda numbers: video.get_batch(numbers).asnumpy()

  return open_file, decord.__version__


def _torchcodec() -> tuple[Callable, str]:
  import torch
  import torchcodec
  from torchcodec import decoders

  torch.set_num_threads(1)

  def open_file(path: str) -> Read:
    video = decoders.VideoDecoder(
      path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
    )
    return lambda numbers: video.get_frames_at(numbers).data.numpy()

  return open_file, torchcodec.__version__


def _opencv() -> tuple[Callable, str]:
  import cv2

  cv2.setNumThreads(1)

  def open_file(path: str) -> Read:
    options = [cv2.CAP_PROP_N_THREADS, 1]
    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, options)

    def read(numbers: Sequence[int]) -> np.ndarray:
      video.set(cv2.CAP_PROP_POS_FRAMES, numbers[0])
      found = []
      for _ in numbers:
        good, frame = video.read()
        if good:
          found.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
      return np.stack(found) if found else np.zeros((0, 1, 1, 3), np.uint8)

    return read

  return open_file, cv2.__version__


LIBRARIES = {"decord": _decord, "torchcodec": _torchcodec, "opencv": _opencv}


def _say(told: Any) -> None:
  print(json.dumps(told), flush=True)


def main() -> None:
  """Answers steps until its input ends, or measures the memory."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--library", required=True, choices=list(LIBRARIES))
  parser.add_argument("--files", required=True, type=json.loads)
  parser.add_argument("--way", default="held", choices=["held", "opened"])
  parser.add_argument("--clips", type=int, default=100)
  parser.add_argument("--memory", type=int, default=0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--probe", action="store_true")
  given = parser.parse_args()
  try:
    open_file, version = LIBRARIES[given.library]()
    open_file(given.files[0])
  except (ImportError, OSError, RuntimeError) as error:
    return _say({"missing": str(error).strip().splitlines()[0]})
  if given.probe:
    return _say({"version": version})
  reader = Reader(open_file, given.files, given.way)
  if given.memory:
    held = memory(reader, len(given.files), given.memory, given.seed)
    return _say({"version": version, "megabytes": held})
  clips = random_clips(len(given.files), given.clips, given.seed)
  _say({"version": version, "wrong": reader.read(clips)})
  for _ in sys.stdin:
    reader.read(clips)
    _say("done")
  return None


if __name__ == "__main__":
  main()
