import importlib.util
import json

import pytest

from locojax.data import sources, tfds_dirs


def _fake(root, name, version, file_format="array_record", image=False):
  folder = root / name / version
  folder.mkdir(parents=True)
  splits = [{"name": "train"}, {"name": "test"}]
  (folder / "dataset_info.json").write_text(
    json.dumps({"fileFormat": file_format, "splits": splits})
  )
  kind = "tensorflow_datasets.core.features.image_feature.Image"
  (folder / "features.json").write_text(kind if image else "{}")
  return folder


def test_absent_says_where_and_how(tmp_path):
  _fake(tmp_path, "other", "1.0.0")
  with pytest.raises(FileNotFoundError) as e:
    sources.from_tfds("mnist", split="train", data_dir=tmp_path)
  text = str(e.value)
  assert f"{tmp_path / 'mnist'}/<version>" in text
  assert "holds only: other" in text
  assert "python -m scripts.prepare_data mnist --data_dir DIR" in text
  assert "file_format='array_record'" in text and "TFDS_DATA_DIR" in text


def test_no_data_folder_and_no_version(tmp_path):
  with pytest.raises(FileNotFoundError, match="there is no such folder"):
    tfds_dirs.find("mnist", data_dir=tmp_path / "x")
  _fake(tmp_path, "mnist", "3.0.1")
  with pytest.raises(FileNotFoundError, match="holds only: 3.0.1"):
    tfds_dirs.find("mnist:2.0.0", data_dir=tmp_path)


def test_environment_names_the_folder(tmp_path, monkeypatch):
  folder = _fake(tmp_path, "mnist", "3.0.1")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert tfds_dirs.find("mnist") == folder


def test_highest_version_by_number(tmp_path):
  _fake(tmp_path, "a/b", "9.0.0")
  high = _fake(tmp_path, "a/b", "10.0.0")
  assert tfds_dirs.find("a/b", data_dir=tmp_path) == high
  assert tfds_dirs.find("a/b:9.0.0", data_dir=tmp_path).name == "9.0.0"


def test_tfrecord_is_refused_with_the_way_out(tmp_path):
  _fake(tmp_path, "mnist", "3.0.1", file_format="tfrecord")
  with pytest.raises(ValueError, match="tfrecord.*\n.*array_record"):
    tfds_dirs.find("mnist", data_dir=tmp_path)


def test_damaged_info_is_named(tmp_path):
  folder = _fake(tmp_path, "mnist", "3.0.1")
  (folder / "dataset_info.json").write_text("{")
  with pytest.raises(ValueError, match="dataset_info.json is damaged"):
    tfds_dirs.find("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["", "mn ist", ":3.0.1", "/etc", None])
def test_bad_names(name, tmp_path):
  with pytest.raises(ValueError, match="name="):
    tfds_dirs.find(name, data_dir=tmp_path)


def test_bad_split_lists_the_splits(tmp_path):
  folder = _fake(tmp_path, "mnist", "3.0.1")
  with pytest.raises(ValueError, match="'train', 'test' or a slice"):
    tfds_dirs.open_split(folder, "tset")


def test_missing_decoder_names_the_extra(tmp_path, monkeypatch):
  folder = _fake(tmp_path, "mnist", "3.0.1", image=True)
  found = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *a: None if name in ("PIL", "cv2") else found(name, *a),
  )
  with pytest.raises(ImportError, match=r"Pillow.*locojax\[experiments\]"):
    tfds_dirs.open_split(folder, "train")
