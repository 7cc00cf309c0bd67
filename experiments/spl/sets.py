"""Clean clips of the target, weakly labelled ones, and what is true of them.

`data.name` is one of

  made        videos drawn in memory (`data.video_made`), motions the classes
  made_files  the same, written as MP4 and WebM and read back
  folder      your own: `weak/`, `train/`, `test/` with a folder of videos for
              each class; without `test/` a share of `train/` serves
  others      a set of images (`common.datasets`): some with clean labels as the
              target, the others with noisy ones (`noise`) as weak
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import (
  datasets,
  noisy_labels,
  pictures,
  places,
  trained_on,
)
from locojax.core import checks
from locojax.data import sources, video, video_made, video_made_files

MADE, FILES, OWN = "made", "made_files", "folder"
VIDEOS = (MADE, FILES, OWN)
IMAGES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10}
NAMES = (*VIDEOS, *IMAGES)
_STREAM = 0x5E7


@dataclasses.dataclass(frozen=True)
class Part:
  """Clips (or images) and what is known of them.

  Attributes:
    clips: `[n, ...]` uint8, or a source whose examples have `clip`.
    label: `[n]` int32: the class, or the weak label.
    video: `[n]` int32, the video that each is of.
    truth: `[n]` int32, -1 for none of the classes; None if it is not known.
  """

  clips: Any
  label: np.ndarray
  video: np.ndarray
  truth: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.label)

  @property
  def in_memory(self) -> bool:
    """Whether the clips are an array."""
    return isinstance(self.clips, np.ndarray)

  def take(self, rows: np.ndarray) -> Part:
    """Some of them."""
    clips = self.clips
    clips = clips[rows] if self.in_memory else sources.subset(clips, rows)
    truth = None if self.truth is None else self.truth[rows]
    return Part(clips, self.label[rows], self.video[rows], truth)

  def some(self, rows: Sequence[int]) -> np.ndarray:
    """The clips of some rows as an array."""
    if self.in_memory:
      return self.clips[list(rows)]
    return np.stack([self.clips[int(r)]["clip"] for r in rows])


@dataclasses.dataclass(frozen=True)
class Data:
  """What a study is made of.

  Attributes:
    train, valid, test: of the target, clean.
    weak: with weak labels.
    classes: names.
  """

  train: Part
  valid: Part
  test: Part
  weak: Part
  classes: list[str]


class Columns:
  """Clips of a source with values of one's own, for `pipeline.batches`."""

  def __init__(self, clips: Any, columns: Mapping[str, np.ndarray]):
    self._clips, self._columns = clips, dict(columns)

  def __len__(self) -> int:
    return len(next(iter(self._columns.values())))

  def __getitem__(self, index: int) -> dict[str, Any]:
    own = {k: v[index] for k, v in self._columns.items()}
    return {"clip": self._clips[index]["clip"], **own}


def clip_shape(data: Mapping[str, Any]) -> tuple[int, ...]:
  """The shape of a clip, or of an image."""
  side = data["size"]
  if data["name"] in VIDEOS:
    return data["num_frames"], side, side, 3
  return side, side, data["channels"]


def num_classes(data: Mapping[str, Any]) -> int:
  """Classes of the target; of a folder as many as it has."""
  if data["name"] == OWN:
    return data["num_classes"] or len(_own_classes(data["path"]))
  if data["name"] in VIDEOS:
    return data["num_classes"]
  return IMAGES[data["name"]]


def _own_classes(path: str) -> list[str]:
  root = places.expanded(path) / "train"
  found = root.iterdir() if root.is_dir() else ()
  return sorted(
    p.name for p in found if p.is_dir() and not p.name.startswith(".")
  )


def recipe(data: Mapping[str, Any]) -> video_made.Recipe:
  """How videos are made, of a config's `data`."""
  return video_made.Recipe(
    num_classes=data["num_classes"],
    size=data["size"],
    span=data["num_frames"],
    right=data["right"],
    num_companions=min(3, data["num_classes"] - 1),
    context=data["context"],
    noise=data["pixel_noise"],
  )


def _numbers(data: Mapping[str, Any]) -> video_made_files.Numbers:
  return video_made_files.Numbers(
    videos=data["num_videos"],
    train=data["train_per_class"],
    test=data["test_per_class"],
  )


def files_of(data: Mapping[str, Any]) -> pathlib.Path:
  """Where made videos are kept as files, written if they are not there."""
  made = {"seed": data["seed"], "recipe": dataclasses.asdict(recipe(data))}
  made["numbers"] = dataclasses.asdict(_numbers(data))
  text = json.dumps(made, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:12]
  root = os.environ.get("LOCOJAX_CACHE") or "~/.cache/locojax"
  root = places.expanded(data["path"] or f"{root}/made_videos_{digest}")
  return video_made_files.write_sets(
    root, recipe(data), _numbers(data), seed=data["seed"]
  )


def _video_sets(data: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
  """Sets of videos by split, and the spans of the weak ones, if known."""
  if data["name"] == MADE:
    found = video_made_files.made_sets(
      recipe(data), _numbers(data), seed=data["seed"]
    )
    return {k: _drawn(v) for k, v in found.items()}, found["weak"].spans
  root = (
    files_of(data) if data["name"] == FILES else places.expanded(data["path"])
  )
  names = [n for n in ("weak", "train", "test") if (root / n).is_dir()]
  found = {n: video.from_video_folder(root / n) for n in names}
  _check_classes(found, root)
  if not (root / video_made_files.TRUTH).is_file():
    return found, None
  truth = video_made_files.read_truth(
    root / video_made_files.TRUTH, "weak", classes=found["weak"].classes
  )
  return found, video_made_files.spans_of(found["weak"], truth)


def _drawn(videos: video_made.Made) -> Any:
  """The same videos, each drawn once."""
  opened = [videos.open(i) for i in range(len(videos))]
  return video.from_arrays(
    [v.frames(range(len(v))) for v in opened],
    labels=videos.labels,
    classes=videos.classes,
    rate=videos.recipe.rate,
  )


def _check_classes(found: Mapping[str, Any], root: pathlib.Path) -> None:
  for name in ("weak", "train"):
    if name not in found:
      raise ValueError(
        f"data.path={str(root)!r} is not allowed: it must hold folders `weak` "
        "and `train`, with a folder of videos for each class."
      )
  for name, videos in found.items():
    if list(videos.classes) != list(found["train"].classes):
      raise ValueError(
        f"data.path={str(root)!r} is not allowed: the classes of {name}, "
        f"{videos.classes}, must be those of train, {found['train'].classes}."
      )


def _part(videos, data, per_video: int, spans=None) -> Part:
  sampling = {"num_frames": data["num_frames"], "stride": data["stride"]}
  if data["rate"]:
    sampling["rate"] = data["rate"]
  side = data["size"]
  if data["in_memory"]:
    sampling["size"] = (side, side)
  else:
    sampling["short_side"] = data["short_side"]
  clips = video.Clips(videos, clips_per_video=per_video, **sampling)
  truth = None if spans is None else video_made.true_labels(clips, spans)
  read: Any = clips
  if data["in_memory"]:
    read = sources.as_arrays(clips)["clip"]
  return Part(
    read,
    np.asarray(clips.labels, np.int32),
    np.asarray(clips.video_of, np.int32),
    truth,
  )


def _content(items: tuple, per_video: int) -> dict[str, Any]:
  del per_video
  return dict(items)


@trained_on.cached(_content)
def _videos(items: tuple, per_video: int) -> Data:
  data = dict(items)
  found, spans = _video_sets(data)
  train = _part(found["train"], data, data["eval_clips"])
  weak = _part(found["weak"], data, per_video, spans)
  if "test" in found:
    test = _part(found["test"], data, data["eval_clips"])
  else:
    train, test = _split(train, data, 1)
  train, valid = _split(train, data, 0)
  return Data(train, valid, test, weak, list(found["train"].classes))


def _split(part: Part, data, stream: int) -> tuple[Part, Part]:
  """Without a share of the videos of each class, and that share."""
  rng = np.random.default_rng([_STREAM, data["seed"], stream])
  held = np.zeros(len(part), bool)
  for label in np.unique(part.label):
    own = np.unique(part.video[part.label == label])
    num = max(1, round(data["validation"] * len(own)))
    if num >= len(own):
      raise ValueError(
        f"data.validation={data['validation']!r} is not allowed: class {label} "
        f"has {len(own)} videos for training, and one must be left."
      )
    chosen = rng.permutation(own)[:num]
    held |= np.isin(part.video, chosen) & (part.label == label)
  return part.take(np.flatnonzero(~held)), part.take(np.flatnonzero(held))


def _with_noise(items: tuple, noise: str) -> dict[str, Any]:
  return {**dict(items), "noises": (noise,)}


@trained_on.cached(_with_noise)
def _images(items: tuple, noise: str) -> Data:
  data = dict(items)
  found = datasets.load(data["name"], data_dir=data["data_dir"] or None)
  train, test = found["train"], found["test"]
  kind, rate = parse_noise(noise)
  given = noisy_labels.corrupt(
    train,
    kind=kind,
    rate=rate,
    num_classes=IMAGES[data["name"]],
    rng=np.random.default_rng(data["seed"]),
    data_dir=data["data_dir"] or None,
  )
  clean = _images_part(train, train["label"], data)
  num, rows = data["num_target"], np.arange(len(clean))
  target, valid = _split(clean.take(rows[:num]), data, 0)
  weak = rows[num : num + data["num_weak"]]
  weak = dataclasses.replace(
    clean.take(weak),
    label=given[weak].astype(np.int32),
    truth=clean.label[weak],
  )
  tested = _images_part(test, test["label"], data)
  tested = tested.take(np.arange(min(len(tested), data["num_test"])))
  names = [str(i) for i in range(IMAGES[data["name"]])]
  if data["name"] == "cifar10":
    names = list(CIFAR10)
  return Data(target, valid, tested, weak, names)


CIFAR10 = (
  *("airplane", "automobile", "bird", "cat", "deer"),
  *("dog", "frog", "horse", "ship", "truck"),
)


def _images_part(split, label, data) -> Part:
  images = pictures.resized(split["image"], data["size"], data["channels"])
  numbers = np.arange(len(label), dtype=np.int32)
  return Part(images, np.asarray(label, np.int32), numbers)


def parse_noise(text: str) -> tuple[str, float | None]:
  """`symmetric:0.4` as its kind and rate; `human_worst` has no rate.

  Raises:
    ValueError: an unknown kind, or a rate that is no number.

  >>> parse_noise("next:0.4")
  ('next', 0.4)
  """
  kind, colon, rate = text.partition(":")
  checks.one_of("kind of noise", kind, noisy_labels.KINDS)
  human = kind.startswith(noisy_labels.HUMAN)
  try:
    if human != (not colon):
      raise ValueError
    return kind, None if human else checks.in_range("rate", float(rate), 0, 1)
  except ValueError as e:
    raise ValueError(
      f"noise={text!r} is not allowed: it must be as 'next:0.4' or "
      "'human_worst'."
    ) from e


def load(config, per_video: int | None = None) -> Data:
  """The data of a config.

  Args:
    config: of `configs/weak.py`.
    per_video: clips of each weak video; None is `config.clips_per_video[-1]`.
  """
  items = tuple(sorted(config.data.to_dict().items()))
  if config.data.name in VIDEOS:
    per_video = config.clips_per_video[-1] if per_video is None else per_video
    return _videos(items, per_video)
  return _images(items, config.noise)
