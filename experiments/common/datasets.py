"""Image classification sets by name, whole splits as arrays in memory.

Decoding tens of thousands of PNG files takes many seconds, so decoded splits
are kept as .npz files in a cache folder: `$LOCOJAX_CACHE`, or
`~/.cache/locojax`.
"""

from __future__ import annotations

import logging
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from locojax.core import checks, files
from locojax.data import digests, sources, tfds_dirs

Split = dict[str, np.ndarray]
SPLITS = ("train", "test")
_ID = re.compile(rb"[a-z]+_(\d+)")
_log = logging.getLogger(__name__)


def load(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  splits: Sequence[str] = SPLITS,
  cache_dir: str | os.PathLike | None = None,
) -> dict[str, Split]:
  """Whole splits of a data set, in memory and in a fixed order.

  Args:
    name: a key of `DATASETS`.
    data_dir: where tfds keeps its data sets; None means `$TFDS_DATA_DIR`, or
      `~/tensorflow_datasets`. `digits` needs none.
    splits: `train`, `test`.
    cache_dir: of decoded splits; None means `$LOCOJAX_CACHE`, or
      `~/.cache/locojax`.

  Returns:
    Split name -> `image` uint8 `[n, height, width, channels]` in 0..255 and
    `label` int32 `[n]`. Where tfds gives each example an `id` (`cifar10`), also
    `index` int32 `[n]`: its place in the published order, which tfds shuffles.
    `cifar10_n` has the labels of its human annotators too.

  Raises:
    ValueError: an unknown name or split (the known ones are listed), or a set
      prepared without one of these features.
    FileNotFoundError: the data set is not there; says how to get it.
  """
  reader = checks.lookup("name", name, DATASETS)
  for split in splits:
    checks.one_of("split", split, SPLITS)
  return {s: reader(s, data_dir, _cache_dir(cache_dir)) for s in splits}


def _digits(split: str, data_dir, cache_dir) -> Split:
  """1797 digits of 8x8 pixels that scikit-learn ships: 1442 train, 355 test.

  Each fifth image of every class is for the test, so the classes have equal
  shares. Grey values 0..16 become `round(255 v / 16)`.
  """
  del data_dir, cache_dir  # Ships inside a package; small.
  try:
    from sklearn import datasets
  except ImportError as e:
    raise ImportError(
      "the data set 'digits' needs scikit-learn: "
      "pip install 'locojax[experiments]'"
    ) from e
  raw = datasets.load_digits()
  test = np.zeros(len(raw.target), bool)
  for label in np.unique(raw.target):
    test[np.flatnonzero(raw.target == label)[4::5]] = True
  rows = test if split == "test" else ~test
  images = np.round(raw.images[rows] * (255 / 16)).astype(np.uint8)
  return {"image": images[..., None], "label": raw.target[rows].astype("int32")}


def _tfds(name: str, *more: str) -> Callable[..., Split]:
  """A reader of `image`, `label`, and `more`: `index` or other integers."""
  names = ("image", "label", *more)

  def read(split, data_dir, cache_dir):
    directory = tfds_dirs.find(name, data_dir=data_dir)

    def decode():
      arrays = sources.as_arrays(sources.TfdsSource(directory, split))
      return {n: _column(arrays, n, directory) for n in names}

    path = _cache_path(cache_dir, name, split, directory)
    return _cached(path, decode, names)

  return read


def _column(arrays: Split, name: str, directory: pathlib.Path) -> np.ndarray:
  key = "id" if name == "index" else name
  if key not in arrays:
    raise ValueError(
      f"the data set in {directory} has no feature {key!r}, only "
      f"{', '.join(map(repr, arrays))}. Prepare a newer version of it."
    )
  if key == "id":
    return _index(arrays["id"], directory)
  if name == "image":
    return arrays[name]
  return checks.integers(f"{name} in {directory}", arrays[name])


def _index(ids: np.ndarray, directory: pathlib.Path) -> np.ndarray:
  """`train_00042` -> 42, int32."""
  found = [_ID.fullmatch(i) for i in ids]
  if not all(found):
    bad = ids[found.index(None)]
    raise ValueError(
      f"the data set in {directory} has the id {bad!r}; an id must be as "
      "b'train_00042'."
    )
  return np.array([int(m[1]) for m in found], np.int32)


# As tfds names them.
CIFAR10_N_LABELS = (
  "aggre_label",
  "worse_label",
  "random_label1",
  "random_label2",
  "random_label3",
)
DATASETS: dict[str, Callable[..., Split]] = {
  "digits": _digits,
  "mnist": _tfds("mnist"),
  "fashion_mnist": _tfds("fashion_mnist"),
  "cifar10": _tfds("cifar10", "index"),
  "cifar100": _tfds("cifar100", "index"),
  "cifar10_n": _tfds("cifar10_n", "index", *CIFAR10_N_LABELS),
}


def _cache_dir(cache_dir) -> pathlib.Path:
  cache_dir = cache_dir or os.environ.get("LOCOJAX_CACHE")
  return pathlib.Path(cache_dir or "~/.cache/locojax").expanduser()


def _cache_path(cache_dir, name, split, directory) -> pathlib.Path:
  """Keyed by name, split, version and content of the source."""
  digest = digests.of_files(directory)[:12]
  return cache_dir / f"{name}-{directory.name}-{split}-{digest}.npz"


def _cached(
  path: pathlib.Path, decode: Callable[[], Split], names: Sequence[str]
) -> Split:
  found = _read_cache(path, names)
  if found is not None:
    return found
  arrays = decode()
  try:
    _write_cache(path, arrays)
  except OSError as e:
    _log.warning("decoded data are not kept in %s: %s", path, e)
  return arrays


def _read_cache(path: pathlib.Path, names: Sequence[str]) -> Split | None:
  if not path.is_file():
    return None
  try:
    with np.load(path, allow_pickle=False) as f:
      return {name: f[name] for name in names}
  except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as e:
    _log.warning("the cache file %s cannot be used (%s): made anew", path, e)
    return None


def _write_cache(path: pathlib.Path, arrays: Split) -> None:
  files.write_arrays(path, **arrays)
