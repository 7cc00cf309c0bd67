#!/usr/bin/env bash
# Package:  av (PyAV; Packet.opaque, Frame.opaque, copy_opaque)
# Version:  av 18.1.0
# Expected: with `copy_opaque` set, each decoded frame has the object that its
#           packet was given, whatever else has the same object.
# Happens:  where several packets are given one object (the name of their file,
#           say), most frames have None; with an object each, all have theirs.
# Matters:  a label that is meant to follow packets through the decoder is lost
#           without an error. Give each packet an object of its own, or know
#           frames by `pts`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'av==18.1.0' \
  'numpy==2.4.6'
cd "$work"
"$work/venv/bin/python" -I - <<'END'
import sys

import av
import numpy as np

NUM_FRAMES, PATH = 12, "video.mkv"


def write():
  with av.open(PATH, "w") as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width = stream.height = 64
    for i in range(NUM_FRAMES):
      frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), i, np.uint8))
      frame.pts = i
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def kept(name_of):
  """How many frames have what their packet was given."""
  found, given = 0, {}
  with av.open(PATH) as container:
    stream = container.streams.video[0]
    stream.codec_context.copy_opaque = True
    stream.codec_context.thread_count = 1
    for packet in container.demux(stream):
      if packet.size:
        given[packet.pts] = packet.opaque = name_of(packet.pts)
      for frame in packet.decode():
        found += frame.opaque is not None and frame.opaque is given[frame.pts]
  return found


write()
shared = f"the file {PATH}"
one, own = kept(lambda pts: shared), kept(lambda pts: f"{shared} at {pts}")
print(f"av {av.__version__}: of {NUM_FRAMES} frames, those with their opaque")
print(f"one object for all packets: {one}; an object each: {own}")
if own != NUM_FRAMES or one == NUM_FRAMES:
  sys.exit("changed: frames of packets with one object keep it.")
print("so: an object that several packets share does not reach their frames.")
END
