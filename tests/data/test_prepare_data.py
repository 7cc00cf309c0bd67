import gzip
import struct

import numpy as np
import pytest

from locojax.data import sources
from scripts import prepare_data


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
