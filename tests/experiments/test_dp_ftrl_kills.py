"""Federated runs that are killed again and again, each time somewhere else."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import time

import jax
import numpy as np
import pytest

from experiments.common import stages
from experiments.dp_ftrl import experiment
from experiments.dp_ftrl.configs import classification
from locojax.core import trees
from locojax.methods import dp_ftrl

KILLS = 36
ROUNDS = 12
_PATIENCE = 120.0


def _config():
  """Trees of 1, 4, 4 and 3 rounds, adaptive clipping, saved every 2 rounds."""
  config = classification.get_config("tiny").copy_and_resolve_references()
  with config.unlocked():
    config.method, config.rho, config.server_rate = (
      "tree_honaker_adaptive",
      50,
      0.3,
    )
    config.restart = {"period": 4, "warmup": 1}
    config.clip.count_stddev, config.num_rounds = 1.0, ROUNDS
    config.mesh, config.save_every = {"data": 1}, 2
    config.model.hidden = (8,)
  return config


def _bits(state) -> str:
  out = hashlib.sha256()
  for path, x in sorted(trees.flatten(state).items()):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    out.update(path.encode() + np.asarray(x).tobytes())
  return out.hexdigest()


def _work(folder: str) -> None:
  """What is killed: trains, and at the end says the bits of the state."""
  folder, config = pathlib.Path(folder), _config()
  # Most of a start is compilation, which is not what is to be killed.
  jax.config.update("jax_compilation_cache_dir", str(folder.parent / "cache"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  made = experiment.build(config, folder)

  def batches(start):
    for batch in made.batches(start):
      time.sleep(0.02)
      yield batch

  slow = dataclasses.replace(made, batches=batches, evals={})
  settings = dict(log_every=3, save_every=config.save_every, keep=2)
  state = stages.fit(slow, config, folder, writers=[], **settings)
  folder.with_suffix(".bits").write_text(_bits(state))


@pytest.fixture(scope="module")
def processes():
  """A server of processes that have all modules and no backend yet."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(
    ["experiments.dp_ftrl.experiment", "sklearn.datasets", "scipy.optimize"]
  )
  before = os.environ.get("XLA_FLAGS")
  os.environ["XLA_FLAGS"] = ""
  yield context
  if before is not None:
    os.environ["XLA_FLAGS"] = before


def _start(processes, folder):
  process = processes.Process(target=_work, args=(str(folder),))
  process.start()
  return process


def _moment(rng, folder):
  """Name and test of a moment to kill at."""
  start, path = time.monotonic(), folder / experiment.LEDGER
  lines = lambda: path.read_bytes().count(b"\n") if path.exists() else 0
  wanted, seconds = lines() + rng.randint(1, 6), rng.uniform(0.0, 4.0)
  saving = lambda: any((folder / "ckpt").glob("*tmp*"))
  seen = lambda: rng.random() < 0.3 and saving()
  kinds = {
    "at a line": lambda: lines() >= wanted,
    "in a save": seen,
    "any time": lambda: time.monotonic() - start > seconds,
  }
  name = rng.choice([*kinds, "at a line"])
  return name, kinds[name]


def _kill(process, due, rng) -> bool:
  """Kills at a moment; false if the work was done before."""
  end = time.monotonic() + _PATIENCE
  while process.is_alive() and not due():
    assert time.monotonic() < end
    time.sleep(0.001)
  time.sleep(rng.choice([0.0, rng.uniform(0.0, 0.03)]))
  process.kill()
  process.join()
  assert process.exitcode in (0, -9)
  return process.exitcode != 0


def _finish(processes, folder) -> None:
  process = _start(processes, folder)
  process.join(_PATIENCE)
  assert process.exitcode == 0


def _end(folder):
  """Bits of the state, bytes of the ledger, its head, what it states."""
  path = folder / experiment.LEDGER
  said = dp_ftrl.PrivacyLedger(path).statement("run", delta=1e-5)
  head = json.loads((folder / "result.json").read_text())["journal"]
  bits = folder.with_suffix(".bits").read_text()
  return bits, path.read_bytes(), head, said


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bits_ledger_and_statement(
  processes, tmp_path
):
  _finish(processes, tmp_path / "whole")
  whole = _end(tmp_path / "whole")
  records = dp_ftrl.PrivacyLedger(
    tmp_path / "whole" / experiment.LEDGER
  ).records
  rng, kills, rounds = random.Random(0), collections.Counter(), []
  number, end = 0, False
  while not end:
    folder, end = tmp_path / f"run_{number}", kills.total() == KILLS
    name, due = _moment(rng, folder)
    if end:
      _finish(processes, folder)
    elif _kill(_start(processes, folder), due, rng):
      book = dp_ftrl.PrivacyLedger(folder / experiment.LEDGER)
      assert book.records == records[: len(book.records)]
      kills[name] += 1
      rounds.append(book.next_round("run"))
      continue
    assert _end(folder) == whole
    number += 1
  print(
    f"{kills.total()} kills {dict(kills)} of {number} runs; rounds in the "
    f"ledger at each: {rounds}"
  )
  assert len(set(rounds)) > 3
