"""Labelled images by name, of one size, and where a part of their classes.

A name is that of a set, `mnist`, or of some of its classes, `cifar10/5-9`. Sets
are those of `datasets` and `drawings`, and `scenes`: shapes drawn on the spot,
whose class is the shape and its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import datasets, drawings, pictures, trained_on
from locojax.core import checks
from locojax.data import scenes

Split = dict[str, np.ndarray]
_NAME = re.compile(r"([a-z0-9_]+)(?:/(\d+)-(\d+))?")
_SCENES, _SCENES_PER_CLASS = "scenes", 200
_CLASSES = {
  _SCENES: len(scenes.SHAPES) * len(scenes.PLACES),
  "cifar100": 100,
  **dict.fromkeys(("digits", "mnist", "fashion_mnist", "cifar10"), 10),
  **drawings.NUM_CLASSES,
}
KNOWN = tuple(_CLASSES)


def parse(key: str, name: str) -> tuple[str, int, int]:
  """`cifar10/5-9` to `("cifar10", 5, 10)`: set, first class, and the end.

  Args:
    key: of the config, for the message.
    name: of a set, with classes or without.

  Raises:
    ValueError: no such set, or no such classes of it.
  """
  found = _NAME.fullmatch(checks.text(key, name))
  if found is None:
    checks.refuse(key, name, "as 'mnist' or 'cifar10/5-9'")
  of = checks.one_of(key, found[1], KNOWN)
  if found[2] is None:
    return of, 0, _CLASSES[of]
  first, last = int(found[2]), int(found[3])
  if not first <= last < _CLASSES[of]:
    what = f"classes from 0 to {_CLASSES[of] - 1}, the first one first"
    checks.refuse(key, name, what)
  return of, first, last + 1


def num_classes(name: str) -> int:
  """Number of classes that a name speaks of."""
  _, first, end = parse("name", name)
  return end - first


def _scenes(data: Mapping[str, Any]) -> dict[str, Split]:
  """Shapes of all colours on all backgrounds."""
  places = len(scenes.PLACES)
  shape, place = scenes.SHAPES, tuple(scenes.PLACES)
  label = np.array(
    [
      places * shape.index(c[1]) + place.index(c[2])
      for c in scenes.COMBINATIONS
    ]
  )
  every, out = np.arange(len(label)), {}
  num = _SCENES_PER_CLASS * _CLASSES[_SCENES]
  for i, (split, size) in enumerate({"train": num, "test": num // 10}.items()):
    seed = data["seed"] + i
    found = scenes.pairs(every, size, seed=seed, size=data["image_size"])
    labels = label[found["combination"]].astype(np.int32)
    out[split] = {"image": found["image"], "label": labels}
  return out


def _whole(of: str, data: Mapping[str, Any]) -> dict[str, Split]:
  if of == _SCENES:
    return _scenes(data)
  if of in drawings.SETS:
    return drawings.load(of, data_dir=data["data_dir"] or None)
  return datasets.load(of, data_dir=data["data_dir"] or None)


def few(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
  """Rows of up to `per_class` examples of every class, in their old order.

  Args:
    labels: `[n]` integers.
    per_class: how many; 0 takes all.
    seed: of the choice.
  """
  if not per_class:
    return np.arange(len(labels))
  rng = np.random.default_rng(seed)
  rows = [
    rng.permutation(np.flatnonzero(labels == c))[:per_class]
    for c in np.unique(labels)
  ]
  return np.sort(np.concatenate(rows))


def _part(split: Split, first: int, end: int, per_class: int, data) -> Split:
  rows = np.flatnonzero((split["label"] >= first) & (split["label"] < end))
  rows = rows[few(split["label"][rows], per_class, data["seed"])]
  return {
    "image": pictures.resized(
      split["image"][rows], data["image_size"], data["channels"]
    ),
    "label": (split["label"][rows] - first).astype(np.int32),
  }


@trained_on.cached(lambda name, data, *_: {**dict(data), "names": (name,)})
def _load(name: str, data: tuple, train: int, test: int) -> dict[str, Split]:
  data = dict(data)
  of, first, end = parse("name", name)
  whole = _whole(of, data)
  limits = {"train": train, "test": test}
  return {s: _part(whole[s], first, end, limits[s], data) for s in limits}


def load(
  name: str, data: Mapping[str, Any], *, train: int, test: int
) -> dict[str, Split]:
  """Both splits of a set, resized, labels from 0.

  Args:
    name: see the head of this file.
    data: with `data_dir`, `image_size`, `channels`, `seed`.
    train: examples of a class at most; 0 takes all.
    test: likewise.

  Returns:
    Split name -> `image` uint8 `[n, size, size, channels]`, `label` int32.

  Raises:
    ValueError: a name that is not known.
    FileNotFoundError: the set is not there; says how to get it.
  """
  keys = ("data_dir", "image_size", "channels", "seed")
  return _load(name, tuple((k, data[k]) for k in keys), train, test)


def joined(parts: list[Split]) -> Split:
  """Several splits as one, labels one set after the other."""
  offsets = np.cumsum([0, *[int(p["label"].max()) + 1 for p in parts]])
  return {
    "image": np.concatenate([p["image"] for p in parts]),
    "label": np.concatenate(
      [p["label"] + o for p, o in zip(parts, offsets)]
    ).astype(np.int32),
  }
