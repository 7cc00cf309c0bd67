"""A folder means one run: with any other config it is refused.

Of every experiment a finished folder is made up, each value of its config is
changed in turn, and the folder must be refused by the dotted name of the key
and both values, or the key is one of those that may differ.
"""

from __future__ import annotations

import importlib
import pathlib
import sys

import pytest
from ml_collections import config_dict

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "train"))
import toy

from experiments.common import trained_on
from locojax.core import files
from locojax.train import checkpoints, folder

# Config file, variant, function that trains one run, keys that may differ.
CASES = {
  "locoprop.autoencoder": ("experiment", "fit"),
  "locoprop.transformer": ("language_model", "fit"),
  "smelu.plane": ("experiment", "_fit"),
  "ciw.noise": ("experiment", "fit"),
  "ciw.two_moons": ("two_moons", "fit"),
  "dp_ftrl.classification": ("experiment", "fit"),
  "dp_ftrl.next_word": ("experiment", "fit"),
  "limoe.pairs": ("experiment", "fit"),
  "l2p.streams": ("experiment", "fit"),
  "pix2seq.detection": ("experiment", "fit"),
}


def _leaves(config, prefix=""):
  for name in config:
    value = config[name]
    if isinstance(value, config_dict.ConfigDict) and len(value):
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def _other(value):
  """Another value of the kind."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, int):
    return max(value, 0) + 1
  if isinstance(value, float):
    return value / 2 if value else 0.25
  if isinstance(value, str):
    return value + "x"
  if isinstance(value, tuple):
    return (*value, *value[:1]) if value else (1,)
  return {"more": 1}  # an empty dict


def _changed(config, key: str, value):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    *outer, last = key.split(".")
    place = config
    for name in outer:
      place = place[name]
    place[last] = value
  return config


def _plain(value):
  found = {"value": value}
  return config_dict.ConfigDict(found).to_dict()["value"]


class _Trains(Exception):
  """The folder was not refused: the run would go on."""


@pytest.mark.parametrize("name", CASES)
def test_any_change_is_refused_or_listed(name, tmp_path, monkeypatch):
  system, file = name.split(".")
  configs = importlib.import_module(f"experiments.{system}.configs.{file}")
  module, train = CASES[name]
  module = importlib.import_module(f"experiments.{system}.{module}")

  def trains(*_, **__):
    raise _Trains

  monkeypatch.setattr(module, "build", lambda *_, **__: toy.make())
  monkeypatch.setattr(checkpoints, "Checkpoints", trains)
  config = configs.get_config("tiny")
  kept = folder.as_json(trained_on.marked(config))
  files.write_json(tmp_path / "config.json", kept)
  files.write_json(tmp_path / "result.json", {"step": 1, "seconds": 1.0})

  def opened(wanted) -> str:
    """What is said to a config; nothing if the folder answers for it."""
    try:
      getattr(module, train)(wanted, tmp_path)
    except _Trains:
      return ""
    except ValueError as error:
      return str(error)
    return ""

  assert opened(config) == ""
  allowed, refused = [], []
  for key, value in _leaves(config):
    if key.startswith("mesh."):
      continue  # one that fits no devices is another error
    said = opened(_changed(config, key, _other(value)))
    if not said:
      allowed.append(key)
      continue
    refused.append(key)
    if "another config" in said:
      there = repr(folder.as_json(_plain(value)))
      assert key in said and f"({there} there" in said, said
    else:  # the value is bad besides
      assert key.split(".")[-1] in said, said
  lists = getattr(module, "_NOT_IN_A_RUN", getattr(module, "_LISTS", ()))
  listed = (*folder.MAY_DIFFER, *lists)
  for key in allowed:
    assert any(key == n or key.startswith(f"{n}.") for n in listed), key
  assert {"seed", "batch_size"} < set(refused) and len(refused) > 15
