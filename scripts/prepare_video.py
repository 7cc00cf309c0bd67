"""Makes videos for weak labels, as real MP4 and WebM files in class folders.

  python -m scripts.prepare_video --out DIR
  python -m scripts.prepare_video --out DIR --videos 600 --size 64 --varying 0.3

`DIR/weak/<query>/` has videos that show the queried motion only part of the
time, `DIR/train/<motion>/` and `DIR/test/<motion>/` clean clips, and
`DIR/truth.csv` what happens when in each of them. The same command makes the
same files, and goes on where it was broken off. Needs the extra `video`; own
videos in class folders take the place of these.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

import numpy as np

from experiments.common import commands
from locojax.core import checks, files
from locojax.data import video_made, video_made_files

_EVERY = 100  # videos from one line of progress to the next


def _sprites(path: str | None) -> np.ndarray | None:
  """Items of a file of an array `[n, height, width]` uint8."""
  if path is None:
    return None
  if not os.path.isfile(path):
    checks.refuse("--sprites", path, "a file that is there")
  return files.read_array(path, remedy="give another")


def _told(split: str, done: int, of: int) -> None:
  if done == of or done % _EVERY == 0:
    print(f"{split}: {done} of {of}", flush=True)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", required=True, help="the folder to make")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--endings", nargs="+", default=[".mp4", ".webm"], help="in turn"
  )
  parser.add_argument(
    "--sprites", help="a .npy of items, [n, height, width] uint8"
  )
  for field in dataclasses.fields(video_made_files.Numbers):
    parser.add_argument(f"--{field.name}", type=int, default=field.default)
  for field in dataclasses.fields(video_made.Recipe):
    several = {"nargs": 2} if field.name == "spans" else {}
    kind = int if field.name == "spans" else type(field.default)
    parser.add_argument(
      f"--{field.name}", type=kind, default=field.default, **several
    )
  return parser


def _built(kind, given: argparse.Namespace):
  """A dataclass from the arguments of its names."""
  names = [field.name for field in dataclasses.fields(kind)]
  values = {name: getattr(given, name) for name in names}
  return kind(
    **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
  )


def main(argv: list[str]) -> None:
  """Makes the files."""
  given = _parser().parse_args(argv)
  made = video_made_files.write_sets(
    given.out,
    _built(video_made.Recipe, given),
    _built(video_made_files.Numbers, given),
    seed=given.seed,
    endings=given.endings,
    sprites=_sprites(given.sprites),
    told=_told,
  )
  print(f"{made / video_made_files.TRUTH}")


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
