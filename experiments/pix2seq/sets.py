"""Images with boxes by name, for training and for the test.

  shapes    canvases of coloured shapes, drawn on the spot
  sprites   canvases of pasted pictures of `data.sprites` (digits, mnist,
            fashion_mnist); training and test have different pictures
  bccd      blood cells, by tfds
  coco128   256 photographs of COCO, by tfds
  coco      COCO 2017, by tfds
  folder    your own; `data.format` says in which format the boxes are

A folder of format `coco` has `annotations/instances_SPLIT.json` and images in
`SPLIT/`, as COCO itself, or `SPLIT/_annotations.coco.json` beside the images;
`voc` has `Annotations/`, `JPEGImages/` and lists `ImageSets/Main/SPLIT.txt`;
`yolo` has `images/SPLIT/` and `labels/SPLIT/`, or both in `SPLIT/`. Without
`data.test_split` a share of the training images is kept back for the test, and
a folder may have no splits at all (`data.train_split` empty: the whole folder;
for `coco` then `annotations.json` or `_annotations.coco.json` beside the
images).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.common import datasets, places, trained_on
from locojax.core import checks
from locojax.data import (
  box_sources,
  box_transforms,
  boxes,
  canvases,
  sources,
)

FORMATS = ("coco", "voc", "yolo")
CANVASES = ("shapes", "sprites")
SPRITES = ("digits", "mnist", "fashion_mnist")
# As tfds names them; the training split, and that of the test.
TFDS = {
  "bccd": ("bccd", "train", "test"),
  "coco128": ("coco128", "train", "validation"),
  "coco": ("coco/2017", "train", "validation"),
}
OWN = "folder"
NAMES = (*CANVASES, *TFDS, OWN)
_KEPT_BACK = 0x7E57


class Sets(NamedTuple):
  """Two sources of the examples of `locojax.data.boxes`.

  Attributes:
    train, test: with boxes as shares and labels from 1.
    truth: boxes of the test, in pixels of its images, as `coco_ap` takes them.
    classes: names; label l is `classes[l - 1]`.
    category_ids: what the data set calls them, `[classes]`.
    test_files: image files of the test below the folder, None if it has none.
  """

  train: Any
  test: Any
  truth: Mapping[str, Any]
  classes: tuple[str, ...]
  category_ids: np.ndarray
  test_files: tuple[str, ...] | None = None


class Subset(sources.SubsetSource):
  """Some examples of a source of boxes, with its classes.

  Args:
    source: with `classes` and `category_ids`.
    rows: their positions.
  """

  def __init__(self, source: Any, rows: np.ndarray):
    super().__init__(source, rows)
    self.classes, self.category_ids = source.classes, source.category_ids
    self.files = tuple(source.files[i] for i in rows)
    self.box_counts = source.box_counts[rows]

  def annotation(self, index: int) -> dict[str, Any]:
    """As of the source."""
    return self._source.annotation(int(self._indices[index]))


class Memory:
  """A source decoded once; images larger than needed are made smaller.

  Args:
    source: with `classes` and `category_ids`.
    largest: pixels of the canvas that images are fitted in, if they exceed it.
  """

  def __init__(self, source: Any, largest: int):
    self.classes, self.category_ids = source.classes, source.category_ids
    size = (largest, largest)
    self._examples = []
    for i in range(len(source)):
      example = source[i]
      if max(example["image"].shape[:2]) > largest:
        example = box_transforms.resize_to_fit(example, size=size)
      self._examples.append(example)
    self.box_counts = np.array([len(e["labels"]) for e in self._examples])

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._examples[index]


def _canvas(data: Mapping[str, Any], split: str):
  """A canvas source; another seed, and other pictures, for the test."""
  test = split == "test"
  settings = {
    "seed": 2 * data["seed"] + test,
    "size": (data["image_size"],) * 2,
    "objects": tuple(data["objects"]),
    "sides": tuple(data["sides"]),
    "clutter": data["clutter"],
    "noise": data["noise"],
    "ground": tuple(data["ground"]),
  }
  num = data["num_test" if test else "num_train"]
  if data["name"] == "shapes":
    return canvases.shapes(num, **settings)
  sprites, labels, names = _sprites(data, split)
  return canvases.pasted(sprites, labels, num, classes=names, **settings)


def _sprites(data: Mapping[str, Any], split: str):
  """Pictures of several sets, their labels from 1, and names of the classes."""
  pictures, labels, names = [], [], []
  for name in data["sprites"]:
    found = datasets.load(name, data_dir=data["data_dir"] or None)[split]
    keep = canvases.visible(found["image"])
    pictures += list(found["image"][keep])
    labels.append(found["label"][keep] + 1 + len(names))
    names += [f"{name} {c}" for c in range(10)]
  return pictures, np.concatenate(labels).astype(np.int32), names


def _tfds(data: Mapping[str, Any]):
  name, train, test = TFDS[data["name"]]
  read = lambda split: boxes.from_tfds(
    name, split=split, data_dir=data["data_dir"] or None
  )
  return read(train), read(test)


def own(path: str | os.PathLike, format: str, split: str, **settings: Any):
  """A source of a user's folder.

  Args:
    path: of the folder; variables of the environment are filled in.
    format: one of `FORMATS`.
    split: its name, or empty for a folder without splits.
    **settings: of the reader.

  Raises:
    FileNotFoundError: what belongs to the format is not there.
    ValueError: an unknown format; what the readers of `boxes` refuse.
  """
  checks.one_of("data.format", format, FORMATS)
  root = places.expanded(path)
  inside = root / "images" if (root / "images").is_dir() else root
  if format == "yolo" and not split and (inside / "train").is_dir():
    what = f"'train' or another folder of {inside}"
    checks.refuse("data.train_split", "", what)
  if format == "voc":
    return boxes.from_voc(root, split=split or None, **settings)
  if format == "yolo":
    return boxes.from_yolo(root, split=split or None, **settings)
  return boxes.from_coco(*coco_files(root, split), **settings)


def coco_files(root: pathlib.Path, split: str):
  """The JSON and the folder of images of a split.

  Raises:
    FileNotFoundError: none of the layouts is there; names them.
  """
  inside = root / split if split else root
  images = inside if any(_files(inside)) else root / "images"
  tried = [
    (root / "annotations" / f"instances_{split}.json", images),
    (inside / "_annotations.coco.json", inside),
    (inside / "annotations.json", images),
  ]
  tried = tried if split else tried[1:]
  for json, folder in tried:
    if json.is_file():
      return json, folder
  names = ", ".join(str(json) for json, _ in tried)
  raise FileNotFoundError(
    f"none of these is there: {names}. The splits are named by "
    "data.train_split and data.test_split."
  )


def _files(folder: pathlib.Path):
  if not folder.is_dir():
    return iter(())
  return (p for p in folder.iterdir() if p.is_file() and p.suffix != ".json")


def _own(data: Mapping[str, Any]):
  given = {"classes": data["classes"]} if data["classes"] else {}
  if data["format"] == "voc":
    given["first_pixel"] = data["first_pixel"]
  read = lambda split, **settings: own(
    data["path"], data["format"], split, **{**given, **settings}
  )
  train = read(data["train_split"])
  if data["test_split"]:
    # The same labels in both, whatever classes occur.
    fixed = {} if data["format"] == "coco" else {"classes": train.classes}
    test = read(data["test_split"], **fixed)
    if tuple(test.classes) != tuple(train.classes):
      raise ValueError(
        f"data.test_split={data['test_split']!r} has the classes "
        f"{list(test.classes)} and data.train_split={data['train_split']!r} "
        f"{list(train.classes)}: they must be the same."
      )
    return train, test
  return _kept_back(train, data["held_out_share"], data["seed"])


def _kept_back(source: Any, share: float, seed: int):
  """Two subsets of a source, in its order."""
  rng = np.random.default_rng([seed, _KEPT_BACK])
  num = min(max(1, round(share * len(source))), len(source) - 1)
  if num < 1:
    checks.refuse("images of data.path", len(source), "2 or more")
  test = np.isin(np.arange(len(source)), rng.permutation(len(source))[:num])
  return tuple(Subset(source, np.flatnonzero(keep)) for keep in (~test, test))


_READ: dict[str, Callable] = {
  **dict.fromkeys(TFDS, _tfds),
  **dict.fromkeys(
    CANVASES, lambda data: (_canvas(data, "train"), _canvas(data, "test"))
  ),
  OWN: _own,
}


@trained_on.cached(dict, maxsize=2)
def _load(items: tuple) -> Sets:
  data = dict(items)
  train, test = _READ[checks.one_of("data.name", data["name"], NAMES)](data)
  truth = box_sources.ground_truth(test)
  files = None
  if data["name"] == OWN:
    root = places.expanded(data["path"])
    files = tuple(f.relative_to(root).as_posix() for f in test.files)
  if data["in_memory"]:
    train, test = (Memory(s, data["largest"]) for s in (train, test))
  return Sets(
    *(train, test, truth, tuple(train.classes)),
    *(np.asarray(train.category_ids), files),
  )


def load(data: Mapping[str, Any], *, zoom: float = 1.0) -> Sets:
  """Both sets of a config's `data`.

  Args:
    data: of the config.
    zoom: how far training enlarges images, which are kept large enough for it.

  Raises:
    FileNotFoundError: a set is not there; says how to get it.
    ValueError: what the readers refuse.
  """
  largest = int(np.ceil(max(zoom, 1.0) * data["image_size"]))
  return _load(tuple(sorted({**data, "largest": largest}.items())))


def canvas_classes(data: Mapping[str, Any]) -> int:
  """How many classes canvases have, without drawing one."""
  if data["name"] == "shapes":
    return len(canvases.SHAPES)
  return 10 * len(data["sprites"])
