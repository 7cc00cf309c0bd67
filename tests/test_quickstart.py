"""`scripts/quickstart`: its names, their commands, and what it refuses."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import tomllib

import pytest

import locojax
from experiments.common import launch

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "quickstart"
SYSTEMS = list(locojax.METHODS)


def _run(*args: str) -> subprocess.CompletedProcess:
  env = {k: v for k, v in os.environ.items() if k[:8] != "LOCOJAX_"}
  return subprocess.run(
    ["bash", SCRIPT, *args], capture_output=True, text=True, env=env, timeout=60
  )


def _command(*args: str) -> tuple[list[str], list[str]]:
  """Extras, and the words behind `experiments.run`."""
  install, command = _run("--print", *args).stdout.splitlines()
  extras = install.removeprefix("scripts/install ").split(",")
  python, dash_m, module, *words = shlex.split(command)
  assert (python, dash_m) == (".venv/bin/python", "-m")
  assert module == "experiments.run"
  return extras, words


def _config(words: list[str]):
  file, _, variant = words[words.index("--config") + 1].partition(":")
  spec = importlib.util.spec_from_file_location("quick", ROOT / file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert variant in module.VARIANTS
  return module.get_config(variant)


def test_the_list_names_every_system_with_minutes_and_what_it_shows():
  rows = _run("--list").stdout.splitlines()[1:]
  found = [re.fullmatch(r" +(\w+) +(\d+) min  (\S.*)", row) for row in rows]
  assert sorted(m[1] for m in found) == sorted(SYSTEMS)
  assert all(0 < int(m[2]) <= 10 for m in found)


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_name_is_a_config_that_needs_no_data(name, monkeypatch, tmp_path):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  extras, words = _command(name)
  known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
  assert set(extras) <= set(known["project"]["optional-dependencies"])
  config = _config(words)
  assert config.experiment.startswith(f"experiments.{name}.")
  launch.check_settings(config)
  workdir = words[words.index("--workdir") + 1]
  assert workdir.startswith(f"runs/{name}_")


def test_without_a_name_it_is_the_autoencoder_and_settings_pass_through():
  given = ["--config.num_epochs=3", "--config.seeds=(0, 1)"]
  _, words = _command()
  assert words[1] == "experiments/locoprop/configs/autoencoder.py:cpu"
  _, words = _command("l2p", *given)
  assert words[-2:] == given


@pytest.mark.parametrize("name", ["l2", "lp2", ".*", "--lst"])
def test_an_unknown_name_is_refused_with_the_list(name):
  found = _run(name)
  assert found.returncode == 2
  assert found.stderr.startswith(f"error: there is no system '{name}'.\n")
  assert all(f"  {system} " in found.stderr for system in SYSTEMS)
  assert not found.stdout


def test_other_arguments_are_refused():
  found = _run("l2p", "--workdir=there")
  assert found.returncode == 2
  assert "'--workdir=there' is not allowed" in found.stderr
