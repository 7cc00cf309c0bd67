"""Made videos as real files: class folders, and a table of what is in them.

    DIR/weak/<query>/00000.mp4     as a query finds them
    DIR/train/<motion>/00000.mp4   few clean clips
    DIR/test/<motion>/00000.mp4    clean clips with items of other forms
    DIR/truth.csv                  a row for each span of each video
    DIR/made.json                  how they were made

Needs PyAV (extra `video`).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import checks, files
from locojax.data import (
  csv_rows,
  digests,
  video_made,
  video_sets,
  video_writing,
)

SPLITS = ("weak", "train", "test")
TRUTH, ABOUT = "truth.csv", "made.json"
COLUMNS = (
  *("split", "name", "query", "motion"),
  *("start_frame", "end_frame", "start", "end"),
)
_FOR_TEST = 0.2  # of sprites that are given


def _name(videos: video_made.Made, index: int, endings: Sequence[str]) -> str:
  folder = videos.classes[videos.labels[index]]
  return f"{folder}/{index:05d}{endings[index % len(endings)]}"


def truth_rows(
  split: str, names: Sequence[str], videos: video_made.Made
) -> list[list]:
  """Rows of a table of truth, a span each.

  Args:
    split: of the videos.
    names: of their files, `<class>/<name>`.
    videos: a set.
  """
  motions = [*videos.recipe.classes, video_made.NO_MOTION]  # STILL is the last
  rows = []
  for name, label, spans, times in zip(
    names, videos.labels, videos.spans, map(videos.times, range(len(videos)))
  ):
    told = (split, name, videos.classes[label])
    for span in spans:
      seconds = (f"{times[k]:.6f}" for k in (span.start, span.end))
      rows.append([*told, motions[span.motion], span.start, span.end, *seconds])
  return rows


def write_split(
  root: str | os.PathLike,
  split: str,
  videos: video_made.Made,
  *,
  endings: Sequence[str] = (".mp4", ".webm"),
  key_every: int = 24,
  told: Callable[[int], Any] | None = None,
) -> list[list]:
  """Writes a set as `root/split/<class>/<number><ending>`.

  Files that are there stay: a writing that was broken off goes on.

  Args:
    root: the folder of all splits.
    split: name of this one.
    videos: a set.
    endings: of the files, in turn.
    key_every: frames from one key frame to the next, at most.
    told: called with the number of videos that are written.

  Returns:
    Rows of the table of truth.
  """
  names = [_name(videos, i, endings) for i in range(len(videos))]
  for i, name in enumerate(names):
    path = pathlib.Path(root) / split / name
    if not path.is_file():
      made = videos.open(i)
      frames = made.frames(np.arange(len(made)))
      video_writing.write_video(
        path, frames, times=made.times, key_every=key_every
      )
    if told:
      told(i + 1)
  return truth_rows(split, names, videos)


def write_truth(path: str | os.PathLike, rows: Iterable[Sequence]) -> None:
  """Writes a table of truth."""
  held = io.StringIO()
  csv.writer(held, lineterminator="\n").writerows([COLUMNS, *rows])
  files.write_text(path, held.getvalue())


def read_truth(
  path: str | os.PathLike, split: str, *, classes: Sequence[str]
) -> dict[str, list[video_made.Span]]:
  """What happens in the videos of a split, by `<class>/<name>`.

  Args:
    path: of the table.
    split: such as `weak`.
    classes: names of the motions, in the order of their numbers.

  Raises:
    ValueError: no such table, an unknown motion, or nothing of the split.
  """
  number = {name: i for i, name in enumerate(classes)}
  number[video_made.NO_MOTION] = video_made.STILL
  out: dict[str, list[video_made.Span]] = {}
  for line, cells in csv_rows.read(path, COLUMNS, of="made videos")[1:]:
    if cells[0] != split:
      continue
    if cells[3] not in number:
      raise ValueError(f"{path}, line {line}: there is no motion {cells[3]!r}.")
    span = video_made.Span(int(cells[4]), int(cells[5]), number[cells[3]])
    out.setdefault(cells[1], []).append(span)
  if not out:
    raise ValueError(f"{path} has no videos of the split {split!r}.")
  return out


def spans_of(
  videos: video_sets.VideoSet, truth: Mapping[str, list[video_made.Span]]
) -> list[list[video_made.Span]]:
  """The spans of each video of a set, by its name.

  Raises:
    ValueError: a video that the table does not name.
  """
  missing = [name for name in videos.names if name not in truth]
  if missing:
    raise ValueError(f"the table of truth does not name {missing[0]}.")
  return [truth[name] for name in videos.names]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
  """How much is made.

  Attributes:
    videos: weak videos.
    train, test: clean clips of each class.
  """

  videos: int = 200
  train: int = 20
  test: int = 20

  def __post_init__(self):
    for name in ("videos", "train", "test"):
      checks.positive_int(name, getattr(self, name))


def made_sets(
  recipe: video_made.Recipe,
  numbers: Numbers,
  *,
  seed: int,
  sprites: Any = None,
) -> dict[str, video_made.Made]:
  """The splits `weak`, `train` and `test`, in memory.

  Args:
    recipe: how.
    numbers: how many.
    seed: of everything; the companions are those of the same seed.
    sprites: `[n, height, width]` uint8, of which the last fifth is kept for
      the test; None draws other shapes for each split.
  """
  checks.seed("seed", seed)
  seeds = np.random.SeedSequence(seed).generate_state(2).tolist()
  seen, unseen = sprites, sprites
  if sprites is not None:
    cut = len(sprites) - max(1, round(_FOR_TEST * len(sprites)))
    seen, unseen = sprites[:cut], sprites[cut:]
  clean = video_made.clean_clips
  return {
    "weak": video_made.weak_videos(
      recipe, numbers.videos, seed=seed, sprites=seen
    ),
    "train": clean(recipe, numbers.train, seed=seeds[0], sprites=seen),
    "test": clean(recipe, numbers.test, seed=seeds[1], sprites=unseen),
  }


def write_sets(
  root: str | os.PathLike,
  recipe: video_made.Recipe,
  numbers: Numbers,
  *,
  seed: int,
  endings: Sequence[str] = (".mp4", ".webm"),
  sprites: Any = None,
  told: Callable[[str, int, int], Any] | None = None,
) -> pathlib.Path:
  """Writes all splits and the table; nothing where they are there already.

  Args:
    root: the folder.
    recipe, numbers, seed, sprites: of `made_sets`.
    endings: of the files, in turn, of `video_writing.CONTAINERS`.
    told: called with split, videos written, videos in all.

  Returns:
    The folder.

  Raises:
    ValueError: a bad value, or the folder holds videos made otherwise.
    ImportError: PyAV is not installed.
  """
  root = pathlib.Path(root)
  if not endings:
    checks.refuse("endings", endings, "at least one")
  for ending in endings:
    checks.one_of("endings", ending, video_writing.CONTAINERS)
  about = _about(recipe, numbers, seed, endings, sprites)
  _check_same(root, about)
  if (root / TRUTH).is_file():
    return root
  files.write_json(root / ABOUT, about)
  rows = []
  sets = made_sets(recipe, numbers, seed=seed, sprites=sprites)
  for split, videos in sets.items():
    tell = told and (lambda n, s=split, v=videos: told(s, n, len(v)))
    rows += write_split(root, split, videos, endings=endings, told=tell)
  write_truth(root / TRUTH, rows)
  return root


def _about(recipe, numbers, seed, endings, sprites) -> dict[str, Any]:
  about = {
    "recipe": dataclasses.asdict(recipe),
    "numbers": dataclasses.asdict(numbers),
    "seed": seed,
    "endings": list(endings),
    "sprites": _digest(sprites),
  }
  return json.loads(json.dumps(about))  # as it is read back


def _digest(sprites: Any) -> str | None:
  return None if sprites is None else digests.of_arrays({"sprites": sprites})


def _check_same(root: pathlib.Path, about: Mapping[str, Any]) -> None:
  if not (root / ABOUT).is_file():
    return
  found = files.read_json(root / ABOUT, remedy="remove the folder")
  for key, value in about.items():
    if found.get(key) != value:
      raise ValueError(
        f"{root} holds videos made with {key}={found.get(key)!r}, not "
        f"{value!r}: take another folder."
      )
