"""Images with noisy labels: training, noisy validation, clean test.

The noise is drawn from a seed in the order in which the images were loaded,
before any shuffling; the last part of the noisy set is for validation. So the
noise is the same for all methods of a seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import datasets, noisy_labels, trained_on
from locojax.core import checks
from locojax.data import label_noise

# Height, width, channels; number of classes.
SHAPES: dict[str, tuple[tuple[int, int, int], int]] = {
  "digits": ((8, 8, 1), 10),
  "mnist": ((28, 28, 1), 10),
  "fashion_mnist": ((28, 28, 1), 10),
  "cifar10": ((32, 32, 3), 10),
  "cifar100": ((32, 32, 3), 100),
}


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


def image_shape(data: Mapping[str, Any]) -> tuple[int, int, int]:
  """Height, width and channels of the images, after pooling."""
  shape, _ = checks.lookup("data.name", data["name"], SHAPES)
  for name, size in zip(("height", "width"), shape):
    checks.divisible(name, size, "data.pool", data["pool"])
  return shape[0] // data["pool"], shape[1] // data["pool"], shape[2]


def num_classes(data: Mapping[str, Any]) -> int:
  """Number of classes."""
  return checks.lookup("data.name", data["name"], SHAPES)[1]


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


@trained_on.cached(dict)
def _loaded(items: tuple) -> dict[str, datasets.Split]:
  """The first rows of both splits, clean."""
  data = dict(items)
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
      `validation` (its share), `pool` and `exact` of the config.
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
