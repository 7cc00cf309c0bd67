"""The ledger of federated runs: the way it goes along with checkpoints.

A run that is resumed makes the same rounds; one that is not the same is
refused, and what it states is never less than what was spent.
"""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

from experiments.common import stages
from experiments.dp_ftrl import experiment, mechanisms
from experiments.dp_ftrl.configs import classification
from locojax.methods import dp_ftrl


def _one(**changes):
  """The tiny classification; `data__seed=1` changes `data.seed`."""
  config = classification.get_config("tiny").copy_and_resolve_references()
  settings = {"method": "tree_honaker", "server_rate": 0.3, **changes}
  with config.unlocked():
    for name, value in settings.items():
      *nodes, last = name.split("__")
      node = config
      for n in nodes:
        node = node[n]
      node[last] = value
  return config


def _records(config, folder, num_rounds=None):
  """The ledger of a run's rounds, which are not made: norms stay."""
  made = experiment.build(config, folder)
  state = made.init(jax.random.key(0))
  for k in range(num_rounds or config.num_rounds):
    made.journal.before_step(k, state)
  return dp_ftrl.PrivacyLedger(folder / experiment.LEDGER)


@pytest.mark.parametrize(
  "changes",
  [
    {"method": "tree_honaker"},
    {"method": "tree_honaker_restart"},
    {"method": "tree_honaker_restart", "period": 11},  # longer than an epoch
    {"method": "tree_honaker_restart", "period": 5},
    {"method": "tree_honaker_adaptive"},
    {"method": "tree_honaker_adaptive", "warmup": 3},
  ],
)
def test_the_ledger_charges_what_the_config_says(tmp_path, changes):
  """Epochs of 8 rounds: each client comes back after 8, at most 4 times."""
  settings = dict(changes)
  restart = {n: settings.pop(n, 0) for n in ("period", "warmup")}
  config = _one(num_rounds=29, rho=2.0, restart=restart, **settings)
  with config.unlocked():
    config.clip.count_stddev = 40.0
  found = _records(config, tmp_path).statement("run", delta=1e-5)
  assert found["rho"] == pytest.approx(2.0, abs=1e-9)
  place = experiment.setting(config, 64)
  assert place.max_participations == 4 and place.min_sep == 8
  made = mechanisms.make(config.method, place, config.rho)
  assert found["squared_sensitivity"] == made.squared_sensitivity
  if config.method != "tree_honaker":
    lengths = place.restart.lengths(29)
    assert found["num_trees"] == len(lengths)
    if max(lengths) <= 8:
      squared = dp_ftrl.restart_squared_sensitivity(lengths)
      assert found["squared_sensitivity"] == squared


def test_devices_that_check_in_keep_to_what_is_declared(tmp_path):
  sampler = {"name": "min_sep", "min_sep": 4, "max_participations": 3}
  config = _one(num_rounds=24, rho=2.0, method="blt", sampler=sampler)
  place = experiment.setting(config, 64)
  assert (place.max_participations, place.min_sep) == (3, 4)
  found = _records(config, tmp_path).releases[-1]
  assert 1 < found["max_participations"] <= 3 and found["min_sep"] >= 4
  wanted = _one(num_rounds=24, sampler={**sampler, "min_sep": 0})
  assert experiment.setting(wanted, 64).min_sep == 8
  with pytest.raises(ValueError, match="sampler.name"):
    experiment.setting(_one(sampler={**sampler, "name": "epoch"}), 64)


ADAPTIVE = {
  "method": "tree_honaker_adaptive",
  "restart": {"period": 2, "warmup": 1},
  "rho": 50.0,
}


def _adaptive(**changes):
  config = _one(**ADAPTIVE, **changes)
  with config.unlocked():
    config.clip.count_stddev = 1.0
  return config


def _watched(made, before_step):
  """The experiment with something else done before a step."""
  own = made.journal
  journal = types.SimpleNamespace(
    before_step=before_step, head=own.head, check=own.check
  )
  return dataclasses.replace(made, journal=journal)


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
  """What an uninterrupted run showed before each round, its end and ledger."""
  folder, config, seen = tmp_path_factory.mktemp("adaptive"), _adaptive(), []
  made = experiment.build(config, folder)

  def before_step(k, state):
    made.journal.before_step(k, state)
    seen.append((k, *_inner(state)))

  watched = _watched(made, before_step)
  state = stages.fit(watched, config, folder, log_every=6, save_every=6)
  return seen, state, dp_ftrl.PrivacyLedger(folder / experiment.LEDGER)


def _inner(state):
  """Tree of the last round, its norm, the estimate, and node deviations."""
  noise, clip = state.opt_state.server[0], state.opt_state.clip
  count = clip.count
  read = lambda *x: [float(v) for v in x]
  return read(noise.tree_id, clip.norm, clip.estimate, noise.std, count.std)


def test_the_ledger_has_the_norms_and_trees_of_the_state(adaptive):
  seen, state, book = adaptive
  assert [r["tree_id"] for r in book.releases] == [0, 1, 1, 2, 2, 3]
  after = [inner for _, *inner in seen[1:]] + [_inner(state)]
  estimates = [inner[2] for _, *inner in seen]
  norms = []
  for record, (tree_id, norm, _, std, count_std) in zip(book.releases, after):
    assert (record["tree_id"], record["clip_norm"]) == (tree_id, norm)
    assert std == pytest.approx(norm * record["noise_multiplier"], rel=1e-6)
    assert count_std == pytest.approx(0.5 * record["count_multiplier"])
    norms.append(norm)
  # Constant within a tree, and at its start the estimate.
  assert norms[1] == norms[2] == estimates[1] != norms[0]
  assert norms[3] == norms[4] == estimates[3] and norms[5] == estimates[5]
  assert len(set(norms)) == 4 and len(set(estimates)) == 6
  found = book.statement("run", delta=1e-5)
  assert found["rho"] == pytest.approx(50.0, abs=1e-9)
  assert found["num_trees"] == 4


@pytest.mark.parametrize("at", [1, 2])  # a tree starts; within a tree
def test_adaptive_clipping_resumes_in_the_same_bits(adaptive, tmp_path, at):
  """Killed before round `at + 1` with the ledger one round ahead."""
  config = _adaptive()
  settings = dict(log_every=at, save_every=at, keep=1)
  made = experiment.build(config, tmp_path)

  def killed(k, state):
    made.journal.before_step(k, state)
    if k == at:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    stages.fit(_watched(made, killed), config, tmp_path, **settings)
  again = experiment.build(config, tmp_path)
  state = stages.fit(again, config, tmp_path, **settings)
  _, whole, book = adaptive
  jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)
  assert _inner(state) == _inner(whole)
  again = dp_ftrl.PrivacyLedger(tmp_path / experiment.LEDGER)
  assert again.records == book.records and again.head == book.head


def test_a_ledger_that_is_taken_up_at_any_round_is_the_same(tmp_path):
  """Of states that are stand-ins: the estimate before round k is 1 + k."""
  config = _adaptive(num_rounds=9)
  restart = dp_ftrl.RestartPolicy(2, warmup=1)

  first = experiment.build(config).init(jax.random.key(0))

  def state(k):
    norm = 1.0 + restart.tree_of(max(k - 1, 0))[1]
    clip = first.opt_state.clip._replace(estimate=1.0 + k, norm=norm)
    return first.replace(opt_state=first.opt_state._replace(clip=clip))

  def records(name, cut):
    for start, end in ((0, cut), (max(cut - 2, 0), 9)):
      made = experiment.build(config, tmp_path / name)
      for k in range(start, end):
        made.journal.before_step(k, state(k))
    return dp_ftrl.PrivacyLedger(tmp_path / name / experiment.LEDGER).releases

  whole = records("whole", 0)
  firsts = [restart.tree_of(k)[1] for k in range(9)]
  assert [r["clip_norm"] for r in whole] == [1.0 + first for first in firsts]
  for cut in range(1, 9):
    assert records(f"cut_{cut}", cut) == whole
