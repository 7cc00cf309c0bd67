"""A hundred kills: no run is lost, and all end in the same bits."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import test_signals as signals

from locojax.train import folder as run_folder

_ROOT = pathlib.Path(__file__).parents[2]
NUM_KILLS = int(os.environ.get("LOCOJAX_KILLS", "100"))
_KINDS = {  # signal -> exit codes that are right; of a killed one the signal
  signal.SIGKILL: (-signal.SIGKILL,),
  signal.SIGTERM: (0,),
  signal.SIGINT: (130,),
}
_STUDY = "experiments/locoprop/configs/autoencoder.py:tiny"
_LOSSES = ("method", "train_equal_epochs", "test_equal_epochs")


def _alive_until(process, folder, seconds):
  """Waits until a run works in its folder, then as long as is said."""
  lock = folder / "run.lock"
  before = lock.stat().st_mtime_ns if lock.exists() else 0
  signals._wait_for(
    lambda: lock.exists() and lock.stat().st_mtime_ns != before, process
  )
  time.sleep(seconds)


def _whole(folder):
  """Every JSON file of a folder is whole, at any moment."""
  for path in folder.rglob("*.json"):
    if "ckpt" not in path.parts and not path.name.startswith("."):
      json.loads(path.read_text())


@pytest.mark.slow
def test_a_hundred_kills_end_in_the_same_bits(tmp_path):
  whole = tmp_path / "whole"
  process = signals._start(whole)
  assert "20/20" in signals._finish(process)
  wanted = signals._final(whole / "stage_0")
  rng = random.Random(0)
  counts = dict.fromkeys(_KINDS, 0)
  finished, number = 0, 0
  while sum(counts.values()) < NUM_KILLS:
    place = tmp_path / f"run_{finished}"
    kind = rng.choice([*_KINDS, signal.SIGKILL, signal.SIGKILL])
    process = signals._start(place, "--config.save_every=1")
    _alive_until(process, place / "stage_0", rng.uniform(0.0, 3.0))
    hit = process.poll() is None
    process.send_signal(kind)
    said = signals._finish(process)
    number += 1
    if hit and process.returncode in _KINDS[kind]:
      counts[kind] += 1
    assert process.returncode in (0, *_KINDS[kind]), said
    assert "Traceback" not in said, said
    _whole(place)
    if (place / "stage_0" / run_folder.RESULT).exists():
      assert signals._final(place / "stage_0") == wanted
      finished += 1
  place = tmp_path / f"run_{finished}"
  process = signals._start(place, "--config.save_every=1")
  signals._finish(process)
  assert process.returncode == 0
  assert signals._final(place / "stage_0") == wanted
  said = {k.name: n for k, n in counts.items()}
  print(f"{said}, {number} starts, {finished + 1} runs ended in the same bits")


def _study(place):
  command = (sys.executable, "-m", "experiments.run", "--config", _STUDY)
  return subprocess.Popen(
    [*command, "--workdir", str(place), "--config.equal_seconds=false"],
    cwd=_ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _losses(place):
  """Final values of all runs of a study, by folder."""
  out = {}
  for path in sorted(place.rglob(run_folder.RESULT)):
    values = json.loads(path.read_text())["values"]
    out[path.relative_to(place).as_posix()] = values
  return out


@pytest.mark.slow
def test_a_killed_study_ends_as_one_that_was_not(tmp_path):
  assert _study(tmp_path / "whole").wait(300) == 0
  wanted = _losses(tmp_path / "whole")
  rng, place, kills = random.Random(1), tmp_path / "killed", 0
  for _ in range(12):
    process = _study(place)
    _alive_until(process, place, rng.uniform(0.0, 6.0))
    kind = rng.choice([*_KINDS])
    process.send_signal(kind)
    said = signals._finish(process)
    kills += process.returncode in _KINDS[kind]
    assert process.returncode in (0, *_KINDS[kind]), said
    assert "Traceback" not in said, said
    if place.exists():
      _whole(place)
  assert kills >= 6
  assert _study(place).wait(300) == 0
  assert _losses(place) == wanted and (place / "table.md").exists()
  print(f"{kills} kills of a study")
