import json
import struct

import numpy as np
import pytest

from experiments.common import datasets
from scripts import prepare_data


def test_digits_are_fixed_and_stratified():
  data = datasets.load("digits")
  again = datasets.load("digits", splits=["test"])["test"]
  np.testing.assert_array_equal(data["test"]["image"], again["image"])
  assert data["train"]["image"].shape == (1442, 8, 8, 1)
  assert data["test"]["image"].shape == (355, 8, 8, 1)
  assert data["train"]["image"].dtype == np.uint8
  assert data["train"]["image"].max() == 255
  assert data["train"]["label"].dtype == np.int32
  shares = [np.bincount(d["label"]) / len(d["label"]) for d in data.values()]
  np.testing.assert_allclose(*shares, atol=0.005)
  images = np.concatenate([d["image"] for d in data.values()])
  assert len(images) == 1797
  assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797


def test_a_miss_lists_the_names():
  with pytest.raises(ValueError, match="'digits', 'mnist'.*did you mean"):
    datasets.load("mnits")
  with pytest.raises(ValueError, match="split='valid'"):
    datasets.load("digits", splits=["valid"])


def test_absent_data(tmp_path):
  with pytest.raises(FileNotFoundError, match="scripts.prepare_data"):
    datasets.load("mnist", data_dir=tmp_path, cache_dir=tmp_path)


@pytest.fixture
def tiny(tmp_path):
  """A data folder with a made-up `mnist` of a few images."""
  rng = np.random.default_rng(0)
  folder = tmp_path / "idx"
  folder.mkdir()
  for stem, n in (("train", 6), ("t10k", 3)):
    images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    head = bytes([0, 0, 8, 3]) + struct.pack(">3I", n, 28, 28)
    (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    head = bytes([0, 0, 8, 1]) + struct.pack(">I", n)
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(head + bytes(range(n)))
  prepare_data.prepare("mnist", data_dir=tmp_path / "tfds", idx_dir=folder)
  return tmp_path / "tfds"


def _load(tiny, cache):
  return datasets.load("mnist", data_dir=tiny, cache_dir=cache)


def test_cache_is_used_rebuilt_and_keyed(tiny, tmp_path, monkeypatch):
  cache = tmp_path / "cache"
  first = _load(tiny, cache)
  files = sorted(cache.iterdir())
  assert len(files) == 2 and all("mnist-3.0.1-" in f.name for f in files)
  assert sorted(first["train"]["label"].tolist()) == list(range(6))

  def no_decoding(*args, **kwargs):
    raise AssertionError("decoded again")

  with monkeypatch.context() as m:
    m.setattr(datasets.sources, "as_arrays", no_decoding)
    again = _load(tiny, cache)
  np.testing.assert_array_equal(
    first["train"]["image"], again["train"]["image"]
  )
  for damage in (b"", b"PK\x03\x04 nothing", files[0].read_bytes()[:-900]):
    files[0].write_bytes(damage)
    again = _load(tiny, cache)
    np.testing.assert_array_equal(
      first["test"]["image"], again["test"]["image"]
    )
  assert sorted(cache.iterdir()) == files
  info = tiny / "mnist" / "3.0.1" / "dataset_info.json"
  info.write_text(
    json.dumps({**json.loads(info.read_text()), "description": "new"})
  )
  _load(tiny, cache)
  assert len(list(cache.iterdir())) == 4


def test_cache_folder_from_the_environment(tiny, tmp_path, monkeypatch):
  monkeypatch.setenv("LOCOJAX_CACHE", str(tmp_path / "c"))
  datasets.load("mnist", data_dir=tiny, splits=["test"])
  assert len(list((tmp_path / "c").iterdir())) == 1


def test_unwritable_cache_is_no_failure(tiny, tmp_path, caplog):
  (tmp_path / "file").write_text("")
  out = _load(tiny, tmp_path / "file" / "cache")
  assert len(out["train"]["label"]) == 6
  assert "are not kept" in caplog.text


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_sets(name, data_dir, tmp_path):
  out = datasets.load(
    name, data_dir=data_dir / "tfds", splits=["test"], cache_dir=tmp_path
  )["test"]
  assert out["image"].shape == (10000, 28, 28, 1)
  expected = [1000] * 10
  if name == "mnist":
    expected = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
  assert np.bincount(out["label"]).tolist() == expected
