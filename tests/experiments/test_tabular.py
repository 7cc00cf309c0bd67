"""Tabular sets by name."""

from __future__ import annotations

import csv
import gzip
import io

import jax
import numpy as np
import pytest

from experiments.common import tabular
from locojax.methods.smelu import recommender

NUM_RATINGS = 200


def _movielens_tables(seed=0):
  rng = np.random.default_rng(seed)
  users, items = np.array([3, 1, 9, 4]), np.array([10, 7, 30])
  # User 9 comes only in the last tenth.
  user = np.concatenate([rng.choice([3, 1, 4], 180), np.full(20, 9)])
  ratings = {
    "user": user,
    "item": rng.choice(items, NUM_RATINGS),
    "rating": rng.integers(1, 6, NUM_RATINGS),
    "timestamp": 3600 * (4 + np.arange(NUM_RATINGS)),
  }
  genres = np.zeros((3, 19), np.uint8)
  genres[0, [2, 5, 18]] = genres[2, 0] = 1
  order = rng.permutation(NUM_RATINGS)
  return {
    "ratings": {k: v[order] for k, v in ratings.items()},
    "items": {
      "item": items,
      "title": np.array(["a", "b", "c"]),
      "year": np.array([1990, 0, 1996]),
      "genres": genres,
    },
    "users": {
      "user": users,
      "age": np.array([17, 18, 56, 30]),
      "gender": np.array(["M", "F", "F", "M"]),
      "occupation": np.array(["writer", "other", "writer", "none"]),
      "zip": np.array(["85711", "85799", "E2A4H", "10000"]),
    },
  }


def _write_movielens(root, tables):
  folder = root / "movielens" / "100k"
  folder.mkdir(parents=True)
  for name, arrays in tables.items():
    np.savez(folder / f"{name}.npz", **arrays)


@pytest.fixture
def movielens(tmp_path):
  tables = _movielens_tables()
  _write_movielens(tmp_path, tables)
  return tabular.load("movielens", data_dir=tmp_path), tables


def _column(data, split, name):
  """Slots of a field, `[n, width]`."""
  place = data.fields.index(name)
  start = sum(data.widths[:place])
  ids = getattr(data, split)["categorical"]
  return ids[:, start : start + data.widths[place]]


def _all(data, name):
  both = (_column(data, split, name) for split in ("train", "test"))
  return np.concatenate(list(both)).squeeze(1)


def test_movielens_is_split_by_time(movielens):
  data, tables = movielens
  ratings = tables["ratings"]
  order = np.argsort(ratings["timestamp"])
  label = np.concatenate([data.train["label"], data.test["label"]])
  np.testing.assert_array_equal(label, ratings["rating"][order] >= 4)
  query = np.concatenate([data.train["query"], data.test["query"]])
  np.testing.assert_array_equal(query, ratings["user"][order])
  assert len(data.train["label"]) == 180 and len(data.test["label"]) == 20


def test_movielens_features_are_those_of_user_film_and_time(movielens):
  data, tables = movielens
  order = np.argsort(tables["ratings"]["timestamp"])
  user = tables["ratings"]["user"][order]
  item = tables["ratings"]["item"][order]
  expect = lambda name, ids: np.testing.assert_array_equal(
    _all(data, name), ids
  )
  look = lambda table, keys: np.array([table[k] for k in keys])
  expect("user", look({1: 0, 3: 1, 4: 2, 9: -1}, user))
  expect("item", look({7: 0, 10: 1, 30: 2}, item))
  expect("age", look({3: 0, 1: 1, 9: 6, 4: 2}, user))
  expect("gender", look({3: 1, 1: 0, 9: 0, 4: 1}, user))
  expect("occupation", look({3: 2, 1: 1, 9: 2, 4: 0}, user))
  expect("hour", (4 + np.arange(NUM_RATINGS)) % 24)
  expect("weekday", (3 + (4 + np.arange(NUM_RATINGS)) // 24) % 7)
  zips = _all(data, "zip")
  same = zips[:, None] == zips[None]
  regions = look({3: 0, 1: 0, 9: 1, 4: 2}, user)
  np.testing.assert_array_equal(same, regions[:, None] == regions[None])
  genres = {10: [2, 5, 18], 7: [-1, -1, -1], 30: [0, -1, -1]}
  np.testing.assert_array_equal(
    _column(data, "train", "genres"), look(genres, item[:180])
  )


def test_movielens_has_no_leak_from_the_test(tmp_path, movielens):
  data, tables = movielens
  late = np.argsort(tables["ratings"]["timestamp"])[180:]
  tables["ratings"]["rating"][late] = 1
  tables["ratings"]["item"][late] = 30
  tables["ratings"]["user"][late] = 1
  _write_movielens(tmp_path / "other", tables)
  other = tabular.load("movielens", data_dir=tmp_path / "other")
  for name, column in data.train.items():
    np.testing.assert_array_equal(column, other.train[name])
  assert data.vocab_sizes == other.vocab_sizes
  np.testing.assert_allclose(data.train["numeric"].mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(data.train["numeric"].std(0), 1, rtol=1e-5)


def test_share_of_the_test_is_an_option(tmp_path):
  _write_movielens(tmp_path, _movielens_tables())
  data = tabular.load("movielens", data_dir=tmp_path, test_share=0.25)
  assert len(data.test["label"]) == 50
  with pytest.raises(ValueError, match="test_share=1.0"):
    tabular.load("movielens", data_dir=tmp_path, test_share=1.0)


def _adult_rows(num=30):
  rng = np.random.default_rng(0)
  rows = []
  for i in range(num):
    work = "Never-seen" if i == 0 else str(rng.choice(["Private", "?"]))
    rows.append(
      [20 + i, work, 1000 + i, "HS-grad", i % 9, "Married", "Sales", "Husband"]
      + ["White", "Male", 99 * i, 0, 40, "Cuba", ">50K" if i % 4 else "<=50K"]
    )
  return rows


def _write_adult(path, rows, header=tabular.ADULT_COLUMNS):
  path.parent.mkdir(parents=True, exist_ok=True)
  text = io.StringIO()
  csv.writer(text).writerows([header, *rows])
  path.write_bytes(gzip.compress(text.getvalue().encode()))


@pytest.mark.parametrize("place", ["adult.csv.gz", "adult/adult.csv.gz"])
def test_adult_features_and_split(place, tmp_path):
  rows = _adult_rows()
  _write_adult(tmp_path / place, rows)
  data = tabular.load("adult", data_dir=tmp_path)
  assert len(data.test["label"]) == 10 and len(data.train["label"]) == 20
  label = [row[-1] == ">50K" for row in rows]
  np.testing.assert_array_equal(data.test["label"], label[:10])
  np.testing.assert_array_equal(data.train["label"], label[10:])
  assert data.fields[0] == "workclass" and len(data.fields) == 8
  assert "fnlwgt" not in (*data.fields, *data.numeric)
  work = _all(data, "workclass")
  code = {"?": 0, "Private": 1, "Never-seen": -1}
  expected = [code[row[1]] for row in rows[10:] + rows[:10]]
  np.testing.assert_array_equal(work, expected)
  gain = np.log1p([99.0 * i for i in range(30)])
  gain = (gain - gain[10:].mean()) / gain[10:].std()
  found = data.test["numeric"][:, data.numeric.index("capital-gain")]
  np.testing.assert_allclose(found, gain[:10], rtol=1e-5)
  # A constant column stays finite.
  assert np.isfinite(data.train["numeric"]).all()


def test_damaged_files_are_named(tmp_path):
  path = tmp_path / "adult.csv.gz"
  for content in (b"", gzip.compress(b""), gzip.compress(b"a" * 99)[:-9]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"adult\.csv\.gz"):
      tabular.load("adult", data_dir=tmp_path)
  _write_adult(path, _adult_rows(), header=["age"])
  with pytest.raises(ValueError, match="15 columns of Adult"):
    tabular.load("adult", data_dir=tmp_path)
  _write_movielens(tmp_path, _movielens_tables())
  (tmp_path / "movielens" / "100k" / "users.npz").write_bytes(b"PK nothing")
  with pytest.raises(ValueError, match=r"users\.npz is damaged"):
    tabular.load("movielens", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["movielens", "adult"])
def test_absent_data(name, tmp_path):
  words = rf"scripts\.prepare_data {name} --data_dir DIR"
  with pytest.raises(FileNotFoundError, match=words):
    tabular.load(name, data_dir=tmp_path)


def test_a_miss_lists_the_names():
  with pytest.raises(ValueError, match="'movielens', 'adult'.*did you mean"):
    tabular.load("movielen")


def test_synthetic_data_are_fixed_by_the_seed():
  options = dict(num_train=300, num_test=200, vocab_size=50)
  data, same, other = (
    tabular.load("synthetic_ctr", seed=s, **options) for s in (1, 1, 2)
  )
  assert data.train["label"].shape == (300,)
  assert data.test["categorical"].shape == (200, 8)
  assert data.vocab_sizes == (50,) * 8 and data.numeric == ()
  for name in data.train:
    np.testing.assert_array_equal(data.train[name], same.train[name])
  assert (data.train["probability"] != other.train["probability"]).any()
  head = data.train["categorical"][:200]
  assert (head != data.test["categorical"]).any()


def _first_loss(model, batch):
  key = jax.random.key(0)
  num_numeric = batch["numeric"].shape[1]
  state = recommender.init(model, key=key, num_numeric=num_numeric)
  return recommender.make_loss(model)(*state, batch, key)[0]


def test_every_set_feeds_the_model(tmp_path):
  _write_movielens(tmp_path, _movielens_tables())
  _write_adult(tmp_path / "adult.csv.gz", _adult_rows())
  for name in tabular.DATASETS:
    small = {"num_train": 20, "num_test": 9} if name == "synthetic_ctr" else {}
    data = tabular.load(name, data_dir=tmp_path, **small)
    model = recommender.CTRModel(
      data.vocab_sizes, widths=data.widths, dim=4, hidden=(8,)
    )
    loss = jax.jit(_first_loss, static_argnums=0)(model, data.train)
    assert 0 < float(loss) < 5
    for place, size in enumerate(data.vocab_sizes):
      assert _column(data, "train", data.fields[place]).max() < size


@pytest.mark.real_data
def test_real_adult(data_dir):
  data = tabular.load("adult", data_dir=data_dir / "tabular")
  assert len(data.train["label"]) == 32561 and len(data.test["label"]) == 16281
  # UCI's own shares: 24.08 % of the training part, 23.62 % of the test part.
  assert data.train["label"].sum() == 7841 and data.test["label"].sum() == 3846
  assert data.vocab_sizes == (9, 16, 7, 15, 6, 5, 2, 42)
  assert (data.test["categorical"] >= 0).mean() > 0.9999
