"""Images with noisy labels: training, noisy validation, clean test.

The noise is drawn from a seed in the order in which the images were loaded,
before any shuffling; the last part of the noisy set is for validation. So the
noise is the same for all methods of a seed.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import datasets, noisy_labels, trained_on
from locojax.core import checks
from locojax.data import label_noise, sources

# Height, width, channels; number of classes.
SHAPES: dict[str, tuple[tuple[int, int, int], int]] = {
  "digits": ((8, 8, 1), 10),
  "mnist": ((28, 28, 1), 10),
  "fashion_mnist": ((28, 28, 1), 10),
  "cifar10": ((32, 32, 3), 10),
  "cifar100": ((32, 32, 3), 100),
}
# Images of the user's own, `data.path/<class>/<anything>.png`.
FOLDER = "folder"
NAMES = (*SHAPES, FOLDER)
# Of each class of a folder, one image of so many is for the test.
_TEST_EVERY = 5


@dataclasses.dataclass(frozen=True)
class Part:
  """Images and labels.

  Attributes:
    image: `[n, height, width, channels]` uint8.
    label: `[n]` int32, as given: what training and validation see.
    true: `[n]` int32, without noise.
  """

  image: np.ndarray
  label: np.ndarray
  true: np.ndarray

  @property
  def wrong(self) -> np.ndarray:
    """`[n]` bool, where the label is not the true one."""
    return self.label != self.true


def parse_noise(text: str) -> tuple[str, float | None]:
  """`symmetric:0.4` -> its kind and rate; `human_worst` has no rate.

  Raises:
    ValueError: an unknown kind, or a rate that is no number.

  >>> parse_noise("symmetric:0.4")
  ('symmetric', 0.4)
  """
  kind, colon, rate = text.partition(":")
  checks.one_of("kind of noise", kind, noisy_labels.KINDS)
  try:
    return kind, float(rate) if colon else None
  except ValueError as e:
    raise ValueError(
      f"noise={text!r} is not allowed: it must be as 'symmetric:0.4' or "
      "'human_worst'."
    ) from e


def raw_shape(data: Mapping[str, Any]) -> tuple[int, int, int]:
  """Height, width and channels of the images, before pooling."""
  if data["name"] == FOLDER:
    return data["side"], data["side"], 3
  return checks.lookup("data.name", data["name"], SHAPES)[0]


def image_shape(data: Mapping[str, Any]) -> tuple[int, int, int]:
  """Height, width and channels of the images, after pooling."""
  shape = raw_shape(data)
  for name, size in zip(("height", "width"), shape):
    checks.divisible(name, size, "data.pool", data["pool"])
  return shape[0] // data["pool"], shape[1] // data["pool"], shape[2]


def num_classes(data: Mapping[str, Any]) -> int:
  """Number of classes; of a folder, see `resolved`."""
  if data["name"] == FOLDER:
    return data["num_classes"]
  return checks.lookup("data.name", data["name"], SHAPES)[1]


def _folder(data: Mapping[str, Any]) -> tuple[Any, np.ndarray]:
  """The images of a folder, none of them read, and which are for the test."""
  path = pathlib.Path(os.path.expandvars(data["path"])).expanduser()
  side = data["side"]
  source = sources.from_image_folder(path, size=(side, side))
  labels, test = np.asarray(source.labels), np.zeros(len(source), bool)
  for label in np.unique(labels):
    every = slice(_TEST_EVERY - 1, None, _TEST_EVERY)
    test[np.flatnonzero(labels == label)[every]] = True
  return source, test


def resolved(config: Any) -> Any:
  """The config with the sizes of its folder in the place of zeros.

  `data.num_classes` is the number of folders in `data.path`; `data.num_test`
  each fifth image of every class, in the order of names, `data.num_train` the
  others. The files are listed, not read.

  Raises:
    ValueError: the folder has no folders of images, or no more classes than
      one, or none of five images.
  """
  data = config.data
  keys = ("num_classes", "num_train", "num_test")
  if data.name != FOLDER or all(data[key] for key in keys):
    return config
  try:
    source, test = _folder(data)
  except (ValueError, FileNotFoundError) as error:
    raise ValueError(
      f"data.path={data.path!r} is not allowed: {error}"
    ) from error
  there = (len(source.classes), int((~test).sum()), int(test.sum()))
  if there[0] < 2 or not there[2]:
    checks.refuse(
      "data.path", data.path, "a folder of two classes or more, of five images"
    )
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for key, number in zip(keys, there, strict=True):
      config.data[key] = data[key] or number
  return config


def num_validation(data: Mapping[str, Any]) -> int:
  """How many of `data.num_train` are for validation."""
  return max(1, round(data["validation"] * data["num_train"]))


def _pooled(images: np.ndarray, pool: int) -> np.ndarray:
  """Means over squares of `pool` pixels, rounded."""
  if pool == 1:
    return images
  n, height, width, channels = images.shape
  cells = (n, height // pool, pool, width // pool, pool, channels)
  return np.round(images.reshape(cells).mean(axis=(2, 4))).astype(np.uint8)


def _from_folder(data: Mapping[str, Any]) -> dict[str, datasets.Split]:
  """Both parts of a folder, each in an order that mixes the classes."""
  source, test = _folder(data)
  if len(source.classes) != data["num_classes"]:
    raise ValueError(
      f"data.num_classes={data['num_classes']} is not allowed: {data['path']} "
      f"has {len(source.classes)} folders."
    )
  out = {}
  for split, part in (("train", ~test), ("test", test)):
    rows = np.random.default_rng(0).permutation(np.flatnonzero(part))
    out[split] = sources.as_arrays(source.subset(rows))
  return out


@trained_on.cached(dict)
def _loaded(items: tuple) -> dict[str, datasets.Split]:
  """The first rows of both splits, clean."""
  data = dict(items)
  if data["name"] == FOLDER:
    found = _from_folder(data)
  else:
    found = datasets.load(data["name"], data_dir=data["data_dir"] or None)
  out = {}
  for split in datasets.SPLITS:
    arrays, count = found[split], data[f"num_{split}"]
    most = len(arrays["label"])
    if checks.positive_int(f"data.num_{split}", count) > most:
      raise ValueError(
        f"data.num_{split}={count} is not allowed: {data['name']} has {most}."
      )
    out[split] = {k: v[:count] for k, v in arrays.items()}
    out[split]["image"] = _pooled(out[split]["image"], data["pool"])
  return out


def _with_noise(items: tuple, noise: str, seed: int) -> dict[str, Any]:
  del seed
  return {**dict(items), "noises": (noise,)}


@trained_on.cached(_with_noise, maxsize=64)
def _noisy(items: tuple, noise: str, seed: int) -> np.ndarray:
  """Noisy labels of the training split."""
  data = dict(items)
  kind, rate = parse_noise(noise)
  return noisy_labels.corrupt(
    _loaded(items)["train"],
    kind=kind,
    rate=rate,
    num_classes=num_classes(data),
    rng=np.random.default_rng(seed),
    exact=data["exact"],
    data_dir=data["data_dir"] or None,
  )


def make(data: Mapping[str, Any], noise: str, seed: int) -> dict[str, Part]:
  """`train`, `valid` (noisy as well) and `test` (clean).

  Args:
    data: `name`, `data_dir`, `num_train` (with validation), `num_test`,
      `validation` (its share), `pool` and `exact` of the config; for a folder
      `path`, `side` and `num_classes` too.
    noise: as `parse_noise` reads it.
    seed: of the noise.
  """
  items = tuple(sorted(data.items()))
  splits, given = _loaded(items), _noisy(items, noise, seed)
  image, true = (splits["train"][k] for k in ("image", "label"))
  cut = len(true) - num_validation(data)
  test = splits["test"]
  return {
    "train": Part(image[:cut], given[:cut], true[:cut]),
    "valid": Part(image[cut:], given[cut:], true[cut:]),
    "test": Part(test["image"], test["label"], test["label"]),
  }


def describe(part: Part, classes: int) -> dict[str, Any]:
  """The noise that was realised: its rate and transition matrix."""
  return {
    "rate": label_noise.noise_rate(part.true, part.label),
    "matrix": label_noise.empirical_matrix(
      part.true, part.label, classes
    ).tolist(),
  }
