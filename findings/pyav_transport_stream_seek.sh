#!/usr/bin/env bash
# Package:  av (PyAV; container.seek)
# Version:  av 18.1.0
# Expected: seek(t, backward=True) ends on a key frame at or before t, so that
#           decoding from there reaches t, as it does in MP4 and Matroska.
# Happens:  in an MPEG transport stream (.ts) the first decoded frame is later
#           than t: the next key frame and not the one before.
# Matters:  clips cut from broadcast recordings miss their first frames, and a
#           loop that decodes until t returns another frame than asked for.
#           Look at the first frame's time and seek earlier if need be.
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

RATE, NUM_FRAMES, TIMES = 25, 150, (0.5, 1.5, 2.5, 3.5)


def write(path):
  """Six seconds with a key frame every second."""
  with av.open(path, "w") as container:
    stream = container.add_stream("mpeg2video", rate=RATE)
    stream.width = stream.height = 64
    stream.pix_fmt, stream.gop_size = "yuv420p", RATE
    for i in range(NUM_FRAMES):
      frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), i, np.uint8))
      frame.pts = i
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def first_after_seek(path, seconds):
  """The time of the first frame after a seek, from the video's start."""
  with av.open(path) as container:
    stream = container.streams.video[0]
    start = stream.start_time
    offset = start + round(seconds / stream.time_base)
    container.seek(offset, backward=True, stream=stream)
    frame = next(container.decode(stream))
    return float((frame.pts - start) * stream.time_base)


print(f"av {av.__version__}: seek backward to t, time of the first frame")
found = {}
for path in ("video.mkv", "video.ts"):
  write(path)
  found[path] = [round(first_after_seek(path, t), 2) for t in TIMES]
  print(path, ", ".join(f"{t}: {f}" for t, f in zip(TIMES, found[path])))
before = all(f <= t for f, t in zip(found["video.mkv"], TIMES))
after = all(f > t for f, t in zip(found["video.ts"], TIMES))
if not (before and after):
  sys.exit("changed: a seek in a transport stream ends before t.")
print("so: in a transport stream the frame that was asked for is skipped.")
END
