"""Bad settings are refused before anything is written, in plain words.

Every config file has a module of rows in `bad_values/`, named after it. A new
experiment joins by adding its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import pathlib

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from experiments.common import launch, settings
from locojax.core import checks

ROOT = pathlib.Path(__file__).parents[2]
ROWS_AT = pathlib.Path(__file__).parent / "bad_values"
CONFIGS = {
  f"{path.parts[-3]}_{path.stem}": path.relative_to(ROOT)
  for path in sorted((ROOT / "experiments").glob("*/configs/*.py"))
}
PREPARED = (
  *("mnist", "fashion_mnist", "cifar10", "emoji_pairs"),
  *("bccd", "coco128"),
)


def _rows(name: str):
  """The module of rows of a config file."""
  spec = importlib.util.spec_from_file_location(name, ROWS_AT / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


ROWS = {
  name: _rows(name) for name in CONFIGS if (ROWS_AT / f"{name}.py").is_file()
}


def _module(name: str):
  return importlib.import_module(".".join(CONFIGS[name].with_suffix("").parts))


def _config(name: str, variant: str):
  return _module(name).get_config(variant)


def _set(config, key: str, value) -> None:
  """Sets a key, whatever its type, as a script of a user might."""
  *folders, last = key.split(".")
  for folder in folders:
    config = config[folder]
  with config.unlocked(), config.ignore_type():
    config[last] = value


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
  """No data, and a working directory in which nothing may appear."""
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_data"))
  yield
  assert not list((tmp_path / "here").iterdir())


@pytest.fixture
def prepared(tmp_path, monkeypatch):
  """Folders as of prepared data sets, and of a user's own."""
  data = tmp_path / "data"
  for name in PREPARED:
    (data / name / "1.0.0").mkdir(parents=True)
    info = json.dumps({"fileFormat": "array_record"})
    (data / name / "1.0.0" / "dataset_info.json").write_text(info)
  for name in ("movielens/100k", "adult", "own"):
    (data / name).mkdir(parents=True)
  omniglot = data / "omniglot" / "small"
  omniglot.mkdir(parents=True)
  (omniglot / "drawings.npz").write_bytes(b"")
  (data / "text").mkdir()
  for split in ("train", "test"):
    (data / "text" / f"gsm8k_{split}.jsonl.gz").write_bytes(b"")
  (data / "own" / "rows.jsonl").write_text("")
  for name in ("left", "right"):
    (data / "own" / name).mkdir()
    for i in range(40):
      (data / "own" / name / f"{i}.png").write_bytes(b"")
  monkeypatch.setenv("TFDS_DATA_DIR", str(data))
  monkeypatch.setenv("LOCOJAX_DATA_DIR", str(data))
  return data


def test_every_config_file_has_rows():
  assert set(ROWS) == set(CONFIGS)
  assert all(module.ROWS and module.FLAGS for module in ROWS.values())
  assert sum(len(m.ROWS) + len(m.FLAGS) for m in ROWS.values()) >= 250


def _id(row) -> str:
  return ",".join(f"{k}={v}" for k, v in row[1].items())[:60]


@pytest.mark.parametrize(
  ("name", "row"),
  [
    pytest.param(name, row, id=f"{name}:{row[0]}:{_id(row)}")
    for name, module in ROWS.items()
    for row in module.ROWS
  ],
)
def test_a_bad_value_is_refused(name, row):
  variant, changes, key, allowed = row
  config = _config(name, variant)
  for changed, value in changes.items():
    _set(config, changed, value)
  with pytest.raises(ValueError) as error:
    launch.check_settings(config)
  message = str(error.value)
  assert key in message and allowed in message, message
  if key in changes:
    assert f"{key}={changes[key]!r}" in message


def _parsed(name: str, args):
  """The config that a command line gives, with the types that flags give."""
  line = ["run", f"--config={ROOT / CONFIGS[name]}:tiny", *args]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=line)
  values(line)
  return values.config


@pytest.mark.parametrize(
  ("name", "row"),
  [
    pytest.param(name, row, id=f"{name}:{row[0][0]}")
    for name, module in ROWS.items()
    for row in module.FLAGS
  ],
)
def test_a_bad_flag_is_refused(name, row):
  args, key, value, allowed = row
  with pytest.raises((ValueError, TypeError, AttributeError, flags.Error)) as e:
    launch.check_settings(_parsed(name, args))
  message = str(e.value)
  assert all(word in message for word in (key, value, allowed)), message


def _variants():
  return [(n, v) for n in CONFIGS for v in _module(n).VARIANTS]


@pytest.mark.parametrize(("name", "variant"), _variants())
def test_what_we_ship_passes(name, variant, prepared):
  config = _config(name, variant)
  own = {"folder", "roles"}
  if own & {config.data.get("name"), *config.data.get("names", ())}:
    config.data.path = str(prepared / "own")
  if config.data.get("name") == "file":
    config.data.path = str(prepared / "own" / "rows.jsonl")
  checked = variant.startswith("paper")
  launch.check_settings(config, mode="check" if checked else "run")
  if variant in ("tiny", "cpu"):  # which need nothing
    for name in ("TFDS_DATA_DIR", "LOCOJAX_DATA_DIR"):
      os.environ[name] = str(prepared / "absent")
    launch.check_settings(config)


def _leaves(config, head=""):
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _leaves(value, f"{head}{key}.")
    else:
      yield f"{head}{key}", value


def _wrong(value) -> list:
  """What can never stand in the place of a value."""
  if isinstance(value, bool):
    return ["x", 2]
  if isinstance(value, (int, float)):
    return [math.nan, math.inf, "x", -1]
  if isinstance(value, str):
    return ["no_such", 3]
  return ["x", 3, (*value, math.nan), (*value, "no such")]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_key_is_without_a_rule(name):
  """Set to what it can never be, every key of the config is refused by name."""
  config = _config(name, "tiny")
  legal = {"results": "a file to be made", "mesh.data": "-1 is what it is"}
  legal |= ROWS[name].LEGAL
  for key, value in list(_leaves(config)):
    for wrong in _wrong(value) if key not in legal else ():
      _set(config, key, wrong)
      with pytest.raises(ValueError) as error:
        launch.check_settings(config)
      assert key in str(error.value) and repr(wrong) in str(error.value)
    _set(config, key, value)
  launch.check_settings(config)


def test_a_mesh_that_the_devices_do_not_fill_is_refused():
  config = _config("locoprop_autoencoder", "tiny")
  launch.check_settings(config, num_devices=8)
  with pytest.raises(ValueError, match=r"batch_size=40 .* mesh.data.* 16"):
    launch.check_settings(config, num_devices=16)
  config.mesh.data = 4
  with pytest.raises(ValueError, match=r"mesh={'data': 4.* 6 devices"):
    launch.check_settings(config, num_devices=6)
  assert config.mesh.data == 4


def test_a_result_file_that_cannot_be_written_is_refused(tmp_path):
  config = _config("ciw_two_moons", "tiny")
  (tmp_path / "file").write_text("")
  for bad, words in (
    (str(tmp_path), "it is a folder"),
    (str(tmp_path / "file" / "x.json"), "is a file"),
    ("/proc/x/results.json", "nothing can be written in '/proc'"),
  ):
    config.results = bad
    with pytest.raises(ValueError, match="results=") as error:
      launch.check_settings(config)
    assert words in str(error.value)
  config.results = str(tmp_path / "new" / "x.json")
  launch.check_settings(config)
  assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_a_run_is_refused(tmp_path, monkeypatch):
  file = tmp_path / "file"
  file.write_text("kept")
  for bad in (file, file / "runs" / "a"):
    with pytest.raises(ValueError, match=r"--workdir='.*' is a file"):
      launch.check_workdir(str(bad))
  with pytest.raises(ValueError, match="nothing can be written in '/proc'"):
    launch.check_workdir("/proc/no/such")
  with pytest.raises(ValueError, match="the folder of a run"):
    launch.check_workdir(str(tmp_path / "absent"), mode="eval")
  before = sorted(tmp_path.rglob("*"))
  launch.check_workdir(str(tmp_path / "new" / "run"))
  launch.check_workdir(str(tmp_path))
  assert sorted(tmp_path.rglob("*")) == before and file.read_text() == "kept"
  monkeypatch.setattr(os, "access", lambda path, mode: False)
  with pytest.raises(ValueError, match=r"--workdir.*no permission"):
    launch.check_workdir(str(tmp_path / "new"))


def test_rules_of_lists_and_tables():
  pair = settings.several(checks.positive, least=2, what="rates")
  assert pair("rates", (1.0, 2.0)) == (1.0, 2.0)
  with pytest.raises(ValueError, match=r"rates\[1\]=0 .* rates=\(1.0, 0\)"):
    pair("rates", (1.0, 0))
  with pytest.raises(ValueError, match="2 or more rates"):
    pair("rates", (1.0,))
  rule = settings.group({"lam": checks.positive}, required=("lam",))
  with pytest.raises(ValueError, match="mean 'lam'"):
    rule("options", {"lam": 1.0, "lan": 1.0})
  with pytest.raises(ValueError, match="options={} .*'lam'"):
    rule("options", {})
  assert settings.either(0, checks.positive_int)("n", 0) == 0
  with pytest.raises(ValueError, match="n=False .* or 0"):
    settings.either(0, checks.positive_int)("n", False)
