#!/usr/bin/env bash
# Package:  decord (VideoReader.get_batch)
# Version:  decord 0.6.0 on MPEG-4 part 2 with B-frames, written by av 18.1.0
# Expected: get_batch([k]) is frame k, whatever was read before.
# Happens:  read in order, all frames are right; read on their own, frames that
#           follow a key frame are some frames later ones, without an error. In
#           the same file without B-frames all are right.
# Matters:  clips for training begin at random frames: labels by frame or time
#           are put to other frames. H.264 in MP4 was right in the same test.
#           Check a reader on frames that show their numbers.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'av==18.1.0' \
  'decord==0.6.0' \
  'numpy==2.4.6'
cd "$work"
"$work/venv/bin/python" -I - <<'END'
import sys

import av
import decord
import numpy as np

NUM_FRAMES = 100


def write(path, b_frames):
  """Each frame has a white block for each bit of its number."""
  with av.open(path, "w") as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.gop_size = 128, 16, 25
    stream.codec_context.max_b_frames = b_frames
    for i in range(NUM_FRAMES):
      bits = np.repeat(i >> np.arange(8) & 1, 16).astype(np.uint8) * 255
      pixels = np.broadcast_to(bits[None, :, None], (16, 128, 3))
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels))
      frame.pts = i
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def number(frame):
  bits = frame[8, 8::16].mean(axis=-1) > 128
  return sum(1 << i for i, bit in enumerate(bits) if bit)


def wrong(path):
  """(frame, what came) of frames that were read on their own."""
  video = decord.VideoReader(path, num_threads=1)
  order = [k * 37 % NUM_FRAMES for k in range(NUM_FRAMES)]
  found = [(k, number(video.get_batch([k]).asnumpy()[0])) for k in order]
  return [pair for pair in found if pair[0] != pair[1]]


def in_order(path):
  frames = decord.VideoReader(path, num_threads=1)
  frames = frames.get_batch(range(NUM_FRAMES)).asnumpy()
  return [number(frame) for frame in frames] == list(range(NUM_FRAMES))


write("plain.mp4", 0)
write("b_frames.mp4", 2)
plain, found = wrong("plain.mp4"), wrong("b_frames.mp4")
print(f"decord {decord.__version__}: {NUM_FRAMES} frames, read one by one")
print(f"without B-frames {len(plain)} are wrong, with them {len(found)}:")
print(", ".join(f"{k} is {n}" for k, n in found[:6]))
print("in order, all are right:", in_order("b_frames.mp4"))
if plain or not found or not in_order("b_frames.mp4"):
  sys.exit("changed: with B-frames as without, each frame is the right one.")
print("so: a frame read on its own is another one than read in order.")
END
