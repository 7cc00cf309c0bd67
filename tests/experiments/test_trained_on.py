"""A folder answers for the data it was trained on, and for no others."""

import json

import ml_collections
import numpy as np
import pytest

from experiments.common import stages, study, tabular, trained_on
from experiments.dp_ftrl import tasks as dp_tasks
from experiments.limoe import pairs
from experiments.locoprop import corpus
from locojax.train import folder as run_folder


def _text(root):
  root.mkdir()
  path = root / "a.txt"
  path.write_text("one two. three four. " * 40)
  return {"name": "folder", "path": str(root)}, path


def _roles(root):
  root.mkdir()
  path = root / "roles.jsonl"
  path.write_text('{"play": "p", "role": "r", "speeches": ["one two."]}\n')
  return {"name": "roles", "path": str(path)}, path


def _images(root):
  root.mkdir()
  path = root / "a.txt"
  path.write_text("a caption")
  return {"names": ("scenes", "folder"), "path": str(root)}, path


def _tokens(root):
  root.mkdir()
  path = root / "tokens.npy"
  np.save(path, np.zeros(500, np.uint8))
  return {"name": "file", "path": str(path)}, path


def _tokenizer(root):
  data, path = _tokens(root)
  return {"names": ("scenes",), "tokenizer": data["path"]}, path


def _tfds(root):
  folder = root / "mnist" / "3.0.1"
  folder.mkdir(parents=True)
  (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
  path = folder / "mnist-train.array_record-00000-of-00001"
  path.write_bytes(b"records")
  return {"name": "mnist", "data_dir": str(root)}, path


def _movielens(root):
  folder = tabular.folder_of("movielens", root)
  folder.mkdir(parents=True)
  for name in ("ratings", "items", "users"):
    (folder / f"{name}.npz").write_bytes(b"numbers")
  return {"name": "movielens", "data_dir": str(root)}, folder / "items.npz"


def _adult(root):
  root.mkdir()
  (root / "adult.csv.gz").write_bytes(b"rows")
  data = {"name": "adult", "data_dir": str(root)}
  return data, root / "adult.csv.gz"


KINDS = [
  *(_text, _roles, _images, _tokens, _tokenizer),
  *(_tfds, _movielens, _adult),
]


def _config(data, **more):
  return ml_collections.ConfigDict({"data": data, "seed": 0, **more})


def _other(path):
  """The same size with other content."""
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize("make", KINDS)
def test_a_finished_folder_refuses_other_data(tmp_path, make):
  data, path = make(tmp_path / "data")
  config, folder = _config(data), tmp_path / "run"
  run_folder.write_config(folder, trained_on.marked(config))
  (folder / "result.json").write_text('{"step": 1}')
  assert stages.finished(config, folder) == {"step": 1}
  trained_on.check(config, folder)
  before = path.read_bytes()
  _other(path)
  with pytest.raises(ValueError, match=r"a run on other data: data_digest\."):
    stages.finished(config, folder)
  with pytest.raises(ValueError, match="a run on other data"):
    trained_on.check(config, folder)
  path.write_bytes(before)
  assert stages.finished(config, folder) == {"step": 1}
  (folder / "config.json").write_text(json.dumps(config.to_dict()))
  with pytest.raises(ValueError, match=r"\(not there\)"):  # an old folder
    stages.finished(config, folder)


def test_a_study_refuses_other_data(tmp_path):
  data, path = _tokens(tmp_path / "data")
  config = _config(data, results="")
  with study.opened(config, tmp_path / "study", num_cells=1):
    pass
  _other(path)
  again = study.opened(config, tmp_path / "study", num_cells=1)
  with pytest.raises(ValueError, match="on other data"), again:
    pass
  with pytest.raises(ValueError, match="on other data"):
    trained_on.check(config, tmp_path / "study")  # as `--mode=eval` does


def test_human_labels_are_data_of_their_own(tmp_path):
  data, _ = _tfds(tmp_path / "data")
  config = _config(data, noises=("symmetric:0.4",), noise=("human_worst",))
  before = trained_on.of_config(config)
  path = tmp_path / "data" / "cifar10_human_labels.npz"
  path.write_bytes(b"labels")
  found = trained_on.of_config(config)
  assert set(found) - set(before) == {"human_labels"}
  config.noise = ("symmetric:0.2",)
  assert trained_on.of_config(config) == before


def test_what_is_drawn_has_no_digest():
  for name in ("digits", "curves", "grammar", "synthetic_ctr", "criteo"):
    assert "data_digest" not in trained_on.marked(_config({"name": name}))
  nothing = _config({"name": "python"}, needs_data=False)
  assert "data_digest" not in trained_on.marked(nothing)
  assert set(trained_on.of_config(_config({"name": "python"}))) == {"python"}


def test_a_process_reads_changed_files_again(tmp_path):
  """What is kept in memory is of the files as they are."""
  data, path = _tokens(tmp_path / "data")
  settings = {"length": 4, "vocab_size": 9, "path": data["path"]}
  first = corpus.load("file", **settings)
  assert corpus.load("file", **settings) is first
  np.save(path, np.ones(500, np.uint8))
  assert corpus.load("file", **settings)["train"].max() == 1
  np.save(path, np.full(500, -1, np.int8))
  with pytest.raises(ValueError, match="token -1"):
    corpus.load("file", **settings)
  for module, name in ((pairs, "_load"), (dp_tasks, "_next_word_data")):
    assert hasattr(getattr(module, name), "cache_clear")
