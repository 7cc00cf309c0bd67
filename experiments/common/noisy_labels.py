"""Noisy training labels by name: made ones, and those of human annotators."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import numpy as np

from experiments.common import datasets
from locojax.core import checks
from locojax.data import label_noise, tfds_dirs

# Kind -> name in tfds's `cifar10_n`. Each image has labels of three people:
# `random1` ... `random3`; `aggre` is their majority, `worst` a wrong one if
# there is any.
CIFAR10N_KINDS = dict(
  zip(
    ("aggre", "worst", "random1", "random2", "random3"),
    datasets.CIFAR10_N_LABELS,
  )
)
LABEL_FILE = "cifar10_human_labels.npz"


class HumanLabels(NamedTuple):
  """Labels of the CIFAR-10 training images in the published order.

  Attributes:
    clean: `[50000]` int32.
    noisy: `[50000]` int32, by human annotators.
  """

  clean: np.ndarray
  noisy: np.ndarray


def load_cifar10n(
  kind: str,
  *,
  data_dir: str | os.PathLike | None = None,
  cache_dir: str | os.PathLike | None = None,
) -> HumanLabels:
  """CIFAR-10N: real human labels (Wei et al. 2022, arXiv 2110.12088).

  The share of wrong labels is 9.0 % for `aggre`, 17.2, 18.1 and 17.6 % for
  `random1`, `random2` and `random3`, and 40.2 % for `worst`.

  Args:
    kind: a key of `CIFAR10N_KINDS`.
    data_dir: as for `datasets.load`. Looked for in turn: the file `LABEL_FILE`
      there, in `vision/` there, or in a `vision/` beside it; then tfds's
      `cifar10_n`, there or in `tfds/` there. The file holds integer arrays
      `clean` and one for each kind.
    cache_dir: of decoded tfds sets, as for `datasets.load`.

  Returns:
    The labels in the published order; `for_split` puts them to a split.

  Raises:
    ValueError: an unknown kind, or a file without the arrays.
    FileNotFoundError: neither is there; says where it was looked for.
  """
  checks.one_of("kind", kind, CIFAR10N_KINDS)
  found = find_cifar10n(data_dir)
  if found.is_file():
    return _from_file(found, kind)
  return _from_tfds(found.parent, kind, cache_dir)


def find_cifar10n(data_dir: str | os.PathLike | None = None) -> pathlib.Path:
  """The file or tfds folder of the human labels; see `load_cifar10n`.

  Raises:
    FileNotFoundError: neither is there; says where it was looked for.
  """
  root = tfds_dirs.resolve(data_dir)
  folders = (root, root / "vision", root.parent / "vision")
  for path in (folder / LABEL_FILE for folder in folders):
    if path.is_file():
      return path
  for folder in (root, root / "tfds"):
    if (folder / "cifar10_n").is_dir():
      return folder / "cifar10_n"
  raise FileNotFoundError(
    "the human labels of CIFAR-10 are missing: looked for "
    f"{', '.join(str(f / LABEL_FILE) for f in folders)}, and for the tfds set "
    f"'cifar10_n' in {root} and {root / 'tfds'}. Prepare `cifar10_n` with "
    "tfds as ArrayRecord (its documentation says which files of the authors it "
    "needs), and name its folder by data_dir or TFDS_DATA_DIR."
  )


def _from_file(path: pathlib.Path, kind: str) -> HumanLabels:
  with np.load(path, allow_pickle=False) as f:
    missing = [n for n in ("clean", kind) if n not in f]
    if missing:
      raise ValueError(f"{path} has no array {missing}, only {list(f)}.")
    clean, noisy = (
      checks.integers(f"{n} in {path}", f[n]) for n in ("clean", kind)
    )
  checks.same_shape(kind, noisy.shape, "clean", clean.shape)
  return HumanLabels(clean, noisy)


def _from_tfds(folder: pathlib.Path, kind: str, cache_dir) -> HumanLabels:
  train = datasets.load(
    "cifar10_n", data_dir=folder, splits=["train"], cache_dir=cache_dir
  )["train"]
  order = np.argsort(train["index"])
  if not np.array_equal(train["index"][order], np.arange(len(order))):
    raise ValueError(
      f"the set cifar10_n in {folder} is not whole: its ids are not 0 to "
      f"{len(order) - 1}."
    )
  return HumanLabels(train["label"][order], train[CIFAR10N_KINDS[kind]][order])


def for_split(split: datasets.Split, human: HumanLabels) -> np.ndarray:
  """The human labels of a training split of CIFAR-10, or of rows of it.

  Args:
    split: of `datasets.load("cifar10")`: `index` and `label`, `[n]`.
    human: of `load_cifar10n`.

  Returns:
    `[n]` int32, in the order of the split.

  Raises:
    ValueError: `index` is missing or out of range, or the labels of the split
      are not the clean ones, so the two do not belong together.
  """
  checks.one_of("index", "index", split)
  index = np.asarray(split["index"])
  if index.min() < 0 or index.max() >= len(human.clean):
    raise ValueError(
      f"index from {index.min()} to {index.max()} is not allowed: it must be "
      f"in 0..{len(human.clean) - 1}."
    )
  wrong = int(np.sum(split["label"] != human.clean[index]))
  if wrong:
    raise ValueError(
      f"{wrong} of {len(index)} labels of the split are not the clean labels "
      "at its index: is it the training split of CIFAR-10, not yet corrupted?"
    )
  return human.noisy[index]


HUMAN = "human_"
KINDS = (
  *label_noise.KINDS,
  "instance",
  *(HUMAN + kind for kind in CIFAR10N_KINDS),
)


def corrupt(
  split: datasets.Split,
  *,
  kind: str,
  rate: float | None,
  num_classes: int,
  rng: np.random.Generator,
  exact: bool = False,
  data_dir: str | os.PathLike | None = None,
) -> np.ndarray:
  """Noisy labels of a split by the name of the noise.

  Args:
    split: `image` and `label` (and `index` for human labels), in the order in
      which they were loaded: the noise follows it.
    kind: of `label_noise.KINDS`; 'instance' (`instance_probabilities`); or
      'human_aggre' and the like, of CIFAR-10N.
    rate: of the noise; None for human labels, whose rate is what it is.
    num_classes: K.
    rng: source of the noise; human labels draw nothing.
    exact: as for `label_noise.corrupt`; not for the other two.
    data_dir: as for `load_cifar10n`.

  Returns:
    `[n]` integers, dtype of the labels.

  Raises:
    ValueError: a bad kind, rate or class; `exact` where there is no such.
  """
  checks.one_of("kind", kind, KINDS)
  labels = split["label"]
  if kind in label_noise.KINDS:
    transition = label_noise.transition_matrix(kind, rate, num_classes)
    return label_noise.corrupt(labels, transition, rng=rng, exact=exact)
  checks.one_of(f"exact for kind={kind!r}", exact, [False])
  if kind == "instance":
    rows = label_noise.instance_probabilities(
      split["image"], labels, rate=rate, num_classes=num_classes, rng=rng
    )
    return label_noise.sample(rows, rng=rng).astype(labels.dtype)
  checks.one_of(f"rate for kind={kind!r}", rate, [None])
  human = load_cifar10n(kind.removeprefix(HUMAN), data_dir=data_dir)
  return for_split(split, human).astype(labels.dtype)
