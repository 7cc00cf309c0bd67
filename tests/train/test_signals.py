"""SIGTERM and kill -9, sent to real processes."""

from __future__ import annotations

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import toy

from locojax.train import checkpoints, writers

_ROOT = pathlib.Path(__file__).parents[2]


def _start(folder, *args):
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "experiments.run"),
      *("--config", "tests/train/toy_config.py:slow"),
      *("--workdir", str(folder), *args),
    ],
    cwd=_ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"},
    stderr=subprocess.PIPE,
    text=True,
  )


def _finish(process, seconds=90):
  try:
    return process.communicate(timeout=seconds)[1]
  finally:
    process.kill()


def _wait_for(there, process, seconds=60.0):
  """Polls fast, so that a save can be hit in its middle."""
  end = time.monotonic() + seconds
  while time.monotonic() < end and process.poll() is None:
    if there():
      return True
  return False


def _final(folder):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    jax.eval_shape(toy.init, jax.random.key(0)),
  )
  with checkpoints.Checkpoints(folder / "ckpt", read_only=True) as store:
    state, meta = store.restore(abstract)
  assert meta["step"] == 20
  return toy.bits(state), toy.rows(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """Bits and rows of an uninterrupted run in a process of its own."""
  folder = tmp_path_factory.mktemp("alone")
  process = _start(folder)
  said = _finish(process)
  assert process.returncode == 0, said
  return _final(folder / "stage_0")


def test_sigterm_saves_and_stops_all_stages(tmp_path, alone):
  stage = tmp_path / "stage_0"
  process = _start(tmp_path, "--config.stages=2", "--config.save_every=1000")
  metrics = stage / writers.METRICS
  assert _wait_for(
    lambda: metrics.exists() and "train/loss" in metrics.read_text(), process
  )
  process.send_signal(signal.SIGTERM)
  said = _finish(process)
  assert process.returncode == 0, said
  assert "SIGTERM: stopped at step" in said and "run again to resume" in said
  step = int(re.search(r"stopped at step (\d+)", said)[1])
  assert (stage / "ckpt" / str(step)).is_dir() and 5 <= step < 20
  assert not (tmp_path / "stage_1").exists()

  process = _start(tmp_path, "--config.save_every=1000")
  said = _finish(process)
  assert process.returncode == 0 and f"resumed at step {step}" in said
  assert _final(stage) == alone


def _moments(stage, rng):
  """Moments to kill at: in saves, early and late, and anywhere."""
  ckpt = stage / "ckpt"

  def any_tmp(step):
    return lambda: next(ckpt.glob(f"{step}.*tmp*"), None) is not None

  def data_tmp(step):
    return lambda: next(ckpt.glob(f"{step}.*tmp*/*/*"), None) is not None

  def at(seconds):
    start = time.monotonic()
    return lambda: time.monotonic() - start > seconds

  return [
    any_tmp(1),
    any_tmp(4),
    data_tmp(rng.choice([7, 8])),
    any_tmp(rng.choice([10, 11, 12])),
    at(rng.uniform(1.0, 4.0)),
    data_tmp(15),
  ]


def test_kill_in_saves_and_anywhere(tmp_path, alone):
  stage = tmp_path / "stage_0"
  kills, newest = 0, 0
  for moment in _moments(stage, random.Random(time.time_ns())):
    process = _start(tmp_path, "--config.save_every=1")
    if _wait_for(moment, process):
      kills += 1
    process.kill()
    _finish(process)
    names = [p.name for p in stage.glob("ckpt/*")]
    steps = [int(n) for n in names if n.isdigit()]
    assert max(steps, default=0) >= newest, "an earlier checkpoint was lost"
    newest = max(steps, default=0)
  assert kills >= 4
  process = _start(tmp_path, "--config.save_every=1")
  said = _finish(process)
  assert process.returncode == 0, said
  assert f"resumed at step {newest}" in said
  assert _final(stage) == alone
  assert not list(stage.glob("ckpt/*tmp*"))
