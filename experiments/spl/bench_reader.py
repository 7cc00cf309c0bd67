"""Clips a second from video files, against decord, torchcodec and OpenCV.

  python -m experiments.spl.bench_reader --results results/spl/bench_reader.json

Random clips of 16 frames from files that are written first: moving items in
256 x 256, 10 s of 25 frames a second, each frame with its number drawn into it.
All have one thread and read the same clips in turns; the others live in
processes with an environment of their own. `wrong` counts frames that were not
those asked for. A library that does not load here (torchcodec wants the shared
libraries of FFmpeg) is left out, and named. `held`: files stay open; `opened`:
each clip opens its file anew, index included, as a pass over a large set does.
`--memory N` reads N clips more with each and tells the memory on the way.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import benches, commands, peers, timing
from experiments.spl import bench_reader_peer as peer
from locojax.core import checks
from locojax.data import video, video_files, video_made
from locojax.report import tables

OURS = "locojax"
PEER = pathlib.Path(peer.__file__)
WAYS = ("held", "opened")
PACKAGES = (
  *peers.pins("numpy", "torch"),
  "decord==0.6.0",
  "opencv-python-headless==5.0.0.93",
  "torchcodec==0.17.0",
)
SEED = 0
SIZE = 256
# x264 as it comes (B-frames, a key frame in ten seconds unless the scene
# changes), and as one writes files that clips are cut from.
_X264 = {"preset": "medium", "crf": "23"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
  "H.264": (".mp4", {"options": _X264, "key_every": 250}),
  "H.264, a key frame a second": (".mp4", {"options": _X264, "key_every": 25}),
  "H.264, MPEG-TS": (".ts", {"options": _X264, "key_every": 25}),
  "VP9": (".webm", {"key_every": 128}),
  "MPEG-4 part 2": (".mp4", {"codec": "mpeg4", "options": {"bf": "2"}}),
}


def write_files(
  folder: pathlib.Path, kind: str, num_files: int, *, size: int = SIZE
) -> list[str]:
  """Files of a kind, `peer.LENGTH` frames each."""
  ending, settings = checks.lookup("kind", kind, KINDS)
  spans = -(-peer.LENGTH // 25)
  recipe = video_made.Recipe(
    size=size, span=25, spans=(spans, spans), num_classes=12, noise=3.0
  )
  made = video_made.weak_videos(recipe, 12, seed=SEED)
  paths = []
  for i in range(num_files):
    frames = made.open(i).frames(range(peer.LENGTH)).copy()
    peer.draw_numbers(frames)
    path = folder / f"{kind.replace(' ', '_')}_{i}{ending}"
    paths.append(str(video.write_video(path, frames, rate=25, **settings)))
  return paths


def _open_ours(path: str) -> peer.Read:
  return video_files.open_file(path).frames


def _fresh(path: str) -> peer.Read:
  """As `_open_ours`, without what is held open."""
  video_files.close_all()
  return _open_ours(path)


def our_reader(files: Sequence[str], way: str) -> peer.Reader:
  """Our reader in one of `WAYS`."""
  return peer.Reader(_open_ours if way == "held" else _fresh, files, way)


def _row(
  kind: str, way: str, name: str, seconds: Mapping, clips: int, told: Mapping
) -> dict[str, Any]:
  summary = timing.summary(seconds, name, reference=OURS)
  return {
    "video": kind,
    "way": way,
    "reader": name,
    "version": told["version"],
    "clips_per_second": clips / (summary["ms"] / 1e3),
    "times_ours": 1 / summary["ratio"],
    "times_ours_low": 1 / summary["ratio_high"],
    "times_ours_high": 1 / summary["ratio_low"],
    "wrong": told["wrong"],
    "of_frames": clips * peer.NUM_FRAMES,
  }


def measure(
  files: Mapping[str, Sequence[str]],
  *,
  clips: int,
  rounds: int,
  python: str,
  libraries: Sequence[str],
) -> list[dict[str, Any]]:
  """A row for each reader, kind of file and way.

  Args:
    files: kind -> paths.
    clips: in a round.
    rounds: after a warm-up.
    python: of an environment with `PACKAGES`.
    libraries: of `peer.LIBRARIES`.
  """
  rows = []
  for kind, paths in files.items():
    wanted = peer.random_clips(len(paths), clips, SEED)
    for way in WAYS:
      ours = our_reader(paths, way)
      told = {
        OURS: {
          "version": importlib.metadata.version("av"),
          "wrong": ours.read(wanted),
        }
      }
      options = {
        "files": json.dumps(list(paths)),
        "way": way,
        "clips": clips,
        "seed": SEED,
      }
      ways = {name: [f"--library={name}"] for name in libraries}
      with peers.steppers(
        PEER, options, ways, python=python, packages=(), settings={}
      ) as others:
        told |= {name: other.told for name, other in others.items()}
        own = functools.partial(ours.read, wanted)
        programs = {OURS: own, **others}
        rng = np.random.default_rng(SEED)
        seconds = timing.rounds(programs, num=rounds, rng=rng)
      rows += [
        _row(kind, way, name, seconds, clips, told[name]) for name in programs
      ]
      for row in rows[-len(programs) :]:
        print(_line(row), flush=True)
  return rows


def _line(row: Mapping[str, Any]) -> str:
  return (
    f"{row['video']}, {row['way']}: {row['reader']} "
    f"{row['clips_per_second']:.1f} clips a second, {row['wrong']} frames wrong"
  )


def measure_memory(
  files: Mapping[str, Sequence[str]],
  *,
  num: int,
  python: str,
  libraries: Sequence[str],
) -> list[dict[str, Any]]:
  """A row for each reader: MB held on the way through `num` clips.

  All kinds of files in turn, held open as far as the reader holds them.
  """
  paths = [path for of_kind in files.values() for path in of_kind]
  rows = []
  for name in (OURS, *libraries):
    if name == OURS:
      reader = our_reader(paths, "held")
      held = peer.memory(reader, len(paths), num, SEED)
    else:
      held = _memory_of(name, paths, num, python)
    rows.append(
      {
        "reader": name,
        "clips": num,
        "mb_after_a_tenth": held[0],
        "mb_at_the_end": held[-1],
        "mb_most": max(held),
        "kb_a_clip": (held[-1] - held[0]) / (0.9 * num) * 1e3,
      }
    )
  return rows


def _asked(python: str, name: str, *more: str) -> dict[str, Any]:
  """What the script of the others says of a library."""
  command = [python, "-P", str(PEER), f"--library={name}", *more]
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
  return json.loads(done.stdout)


def _memory_of(
  name: str, paths: Sequence[str], num: int, python: str
) -> list[float]:
  files = f"--files={json.dumps(list(paths))}"
  return _asked(python, name, files, f"--memory={num}")["megabytes"]


def missing(python: str, libraries: Sequence[str], path: str) -> dict[str, str]:
  """Libraries that do not load, or do not open a file, and why."""
  files = f"--files={json.dumps([path])}"
  found = {name: _asked(python, name, files, "--probe") for name in libraries}
  return {n: told["missing"] for n, told in found.items() if "missing" in told}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", required=True, help="result file to write")
  parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
  parser.add_argument("--files", type=int, default=4, help="of each kind")
  parser.add_argument("--clips", type=int, default=100, help="in a round")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--memory", type=int, default=10_000, help="clips")
  parser.add_argument("--python", help="Python of an environment that is there")
  parser.add_argument(
    "--libraries",
    nargs="*",
    default=list(peer.LIBRARIES),
    choices=peer.LIBRARIES,
  )
  return parser


def _run(
  args: argparse.Namespace, folder: pathlib.Path
) -> tuple[list[dict], list[dict], dict[str, str]]:
  """Rows of time and of memory, and what was left out."""
  python = args.python
  if python is None and args.libraries:
    python = peers.environment(folder / "venv", PACKAGES)
  files = {kind: write_files(folder, kind, args.files) for kind in args.kinds}
  lacking = missing(python, args.libraries, files[args.kinds[0]][0])
  for name, why in lacking.items():
    print(f"{name} is left out: {why}", file=sys.stderr)
  common = {
    "python": python,
    "libraries": [n for n in args.libraries if n not in lacking],
  }
  memory = measure_memory(files, num=args.memory, **common)
  print(tables.render(memory, list(memory[0])), flush=True)
  rows = measure(files, clips=args.clips, rounds=args.rounds, **common)
  return rows, memory, lacking


def main(argv: list[str]) -> None:
  """Measures, prints the tables and writes the file."""
  args, start = _parser().parse_args(argv), time.perf_counter()
  for name in ("files", "clips", "rounds", "memory"):
    checks.positive_int(f"--{name}", getattr(args, name))
  with tempfile.TemporaryDirectory() as folder:
    rows, memory, lacking = _run(args, pathlib.Path(folder))
  left_out = f" Left out, as it did not load: {', '.join(lacking)}."
  benches.save(
    args.results,
    "experiments.spl.bench_reader",
    argv,
    [*rows, *memory],
    start=start,
    seeds=[SEED],
    shown={args.python: "PEER/bin/python"},
    notes=(
      f"{args.files} files of each kind, {SIZE} x {SIZE}, {peer.LENGTH} "
      f"frames; random clips of {peer.NUM_FRAMES} frames, one thread each, "
      f"medians of {args.rounds} interleaved rounds of {args.clips} clips; "
      "times_ours above 1 is faster than locojax, with quartiles. The version "
      f"of locojax is that of PyAV. Memory over {args.memory} clips of all "
      "files, held open as far as the reader holds them."
      + (left_out if lacking else "")
    ),
  )
  print(tables.render(rows, list(rows[0])))


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
