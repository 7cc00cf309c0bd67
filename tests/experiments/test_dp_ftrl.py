"""Federated experiments: tiny runs, resume with noise, ledger, statement."""

from __future__ import annotations

import dataclasses
import functools
import types

import jax
import numpy as np
import optax
import pytest

from experiments.common import stages
from experiments.dp_ftrl import (
  bench,
  experiment,
  mechanisms,
  statement,
  trajectory,
)
from experiments.dp_ftrl.configs import classification, next_word
from locojax.methods import dp_ftrl
from locojax.report import results
from locojax.train import check


def _config(module, variant="tiny", **changes):
  config = module.get_config(variant).copy_and_resolve_references()
  with config.unlocked():
    for name, value in changes.items():
      config[name] = value
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("dp")
  config = _config(
    classification,
    methods=("none", "tree_honaker"),
    seeds=(0,),
    server_rates=(0.3,),
    results=str(folder / "result.json"),
  )
  return config, folder / "run", experiment.run(config, str(folder / "run"))


def test_the_run_ends_in_a_table_and_a_figure(finished):
  config, _, out = finished
  assert [r["method"] for r in out["rows"]] == ["none", "tree_honaker"]
  tree = out["rows"][1]
  assert tree["squared_sensitivity"] == dp_ftrl.tree_squared_sensitivity(
    6, 1, 6
  )
  assert dp_ftrl.zcdp(
    tree["squared_sensitivity"], tree["noise_multiplier"]
  ) == pytest.approx(1.0)
  assert results.load(config.results)["rows"] == out["rows"]
  with open(out["figure"], "rb") as f:
    assert f.read(4) == b"\x89PNG"


def test_run_again_trains_nothing(finished, monkeypatch):
  config, folder, out = finished
  monkeypatch.setattr(experiment, "build", None)  # to call it would fail
  assert experiment.run(config, str(folder))["rows"] == out["rows"]


def test_the_ledger_states_what_the_table_says(finished, capsys):
  _, folder, out = finished
  path = folder / "tree_honaker" / "rho_1" / "seed_0" / experiment.LEDGER
  book = dp_ftrl.PrivacyLedger(path)
  found = book.statement("run", delta=1e-5)
  assert found["num_rounds"] == 6
  assert found["rho"] == pytest.approx(1.0)
  assert found["eps_exact"] == pytest.approx(out["rows"][1]["eps"])
  statement.main(["--ledger", str(path), "--delta", "1e-5"])
  assert f"{found['eps_exact']:.6g}" in capsys.readouterr().out


def _one(**changes):
  settings = {"method": "tree_honaker", "server_rate": 0.3, **changes}
  return _config(classification, **settings)


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path):
  config = _one()
  settings = dict(log_every=3, save_every=3, keep=1)

  def fit(folder, num_steps=6):
    made = experiment.build(config, folder)
    made = dataclasses.replace(made, num_steps=num_steps)
    return stages.fit(made, config, folder, **settings)

  fit(tmp_path / "cut", 3)
  state, whole = fit(tmp_path / "cut"), fit(tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)
  noise = lambda s: jax.tree.leaves(s.opt_state[0].buffers)
  jax.tree.map(np.testing.assert_array_equal, noise(state), noise(whole))
  books = [
    dp_ftrl.PrivacyLedger(tmp_path / name / experiment.LEDGER).records
    for name in ("cut", "whole")
  ]
  assert books[0] == books[1]


def test_resume_with_another_cohort_is_refused(tmp_path):
  settings = dict(log_every=3, save_every=3, keep=1)
  made = experiment.build(_one(), tmp_path)
  state = made.init(jax.random.key(0))
  for k in range(5):  # released up to round 5, nothing saved
    made.before_step(k, state)
  other = _one()
  with other.unlocked():
    other.data.num_clients = 72  # other cohorts, the same noise
  made = experiment.build(other, tmp_path)
  with pytest.raises(dp_ftrl.LedgerError, match="another cohort"):
    stages.fit(made, other, tmp_path, **settings)
  branch = _one(client_rate=0.1)  # the same cohorts, other updates
  made = experiment.build(branch, tmp_path)
  with pytest.raises(dp_ftrl.LedgerError, match="another cohort or setting"):
    stages.fit(made, branch, tmp_path, **settings)


def _records(config, folder, num_rounds=None):
  """The ledger of a run's rounds, which are not made: norms stay."""
  made = experiment.build(config, folder)
  state = made.init(jax.random.key(0))
  for k in range(num_rounds or config.num_rounds):
    made.before_step(k, state)
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


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
  """What an uninterrupted run showed before each round, its end and ledger."""
  folder, config, seen = tmp_path_factory.mktemp("adaptive"), _adaptive(), []
  made = experiment.build(config, folder)

  def before_step(k, state):
    made.before_step(k, state)
    seen.append((k, *_inner(state)))

  watched = dataclasses.replace(made, before_step=before_step)
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
  assert [r["tree_id"] for r in book.records] == [0, 1, 1, 2, 2, 3]
  after = [inner for _, *inner in seen[1:]] + [_inner(state)]
  estimates = [inner[2] for _, *inner in seen]
  norms = []
  for record, (tree_id, norm, _, std, count_std) in zip(book.records, after):
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
    made.before_step(k, state)
    if k == at:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    cut = dataclasses.replace(made, before_step=killed)
    stages.fit(cut, config, tmp_path, **settings)
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

  def state(k):
    norm = 1.0 + restart.tree_of(max(k - 1, 0))[1]
    clip = types.SimpleNamespace(estimate=1.0 + k, norm=norm)
    return types.SimpleNamespace(opt_state=types.SimpleNamespace(clip=clip))

  def records(name, cut):
    for start, end in ((0, cut), (max(cut - 2, 0), 9)):
      made = experiment.build(config, tmp_path / name)
      for k in range(start, end):
        made.before_step(k, state(k))
    return dp_ftrl.PrivacyLedger(tmp_path / name / experiment.LEDGER).records

  whole = records("whole", 0)
  firsts = [restart.tree_of(k)[1] for k in range(9)]
  assert [r["clip_norm"] for r in whole] == [1.0 + first for first in firsts]
  for cut in range(1, 9):
    assert records(f"cut_{cut}", cut) == whole


def test_several_norms_are_rows_and_a_figure(tmp_path):
  config = _config(
    classification,
    methods=("none", "tree_honaker_adaptive"),
    rhos=(50.0,),
    seeds=(0,),
    server_rates=(0.3,),
    clip_norms=(0.1, 1.0),
    num_rounds=3,
  )
  with config.unlocked():
    config.clip.count_stddev, config.restart.period = 1.0, 2
  out = experiment.run(config, str(tmp_path))
  found = [(r["method"], r["clip_norm"]) for r in out["rows"]]
  both = ("none", "tree_honaker_adaptive")
  assert found == [(m, norm) for m in both for norm in (0.1, 1.0)]
  plain, moved = out["rows"][0], out["rows"][2]
  assert plain["last_norm"] == [0.1] and moved["last_norm"] != [0.1]
  total = moved["total_multiplier"]
  assert dp_ftrl.zcdp(moved["squared_sensitivity"], total) == pytest.approx(50)
  assert total < moved["noise_multiplier"]
  with open(out["figure"], "rb") as f:
    assert f.read(4) == b"\x89PNG"


def test_every_mechanism_has_the_wanted_privacy():
  place = mechanisms.Participation(
    20, 2, 10, 0.1, 1e-5, num_clients=100, count_stddev=4.0
  )
  for name in mechanisms.METHODS[1:]:
    made = mechanisms.make(name, place, 2.0)
    if name == "amplified":
      eps = dp_ftrl.poisson_eps(made.noise_multiplier, 0.1, 20, 1e-5)
      wanted = dp_ftrl.zcdp_to_eps(2.0, 1e-5)
      assert wanted * 0.99 <= eps <= wanted
    else:
      rho = dp_ftrl.zcdp(made.squared_sensitivity, made.total_multiplier)
      assert rho == pytest.approx(2.0)
  with pytest.raises(ValueError, match="method='trees'"):
    mechanisms.make("trees", place, 1.0)


def test_poisson_cohorts_train(monkeypatch):
  fixed = lambda *args: 2.0  # the search for it is tested above
  monkeypatch.setattr(dp_ftrl, "poisson_noise_multiplier", fixed)
  config = _one(method="amplified", num_rounds=2)
  made = experiment.build(config)
  batch = next(made.batches(0))
  assert batch["client_mask"].shape[0] > config.cohort_size
  state = made.init(jax.random.key(0))
  after, found = jax.jit(made.step)(state, batch)
  assert np.isfinite(float(found["loss"].value()))
  moved = jax.tree.map(
    lambda a, b: bool((a != b).all()), after.params, state.params
  )
  assert all(jax.tree.leaves(moved))


def test_next_word_runs(tmp_path):
  config = _config(next_word, methods=("tree_honaker",))
  out = experiment.run(config, str(tmp_path))
  assert np.isfinite(out["rows"][0]["loss"]).all()


def test_production_size_is_described_without_data():
  config = _config(next_word, "paper")
  made = experiment.build(config)
  report = check.run(made, axes={"data": 16}, topology=None)
  assert "1,412,250" in report.text


def test_trajectory_is_as_the_theory_says(tmp_path, capsys):
  trajectory.main(
    ["--workdir", str(tmp_path), "--steps", "16", "--seeds", "600"]
  )
  assert (tmp_path / "trajectory.png").read_bytes()[:4] == b"\x89PNG"
  found = trajectory.measure(16, 600, 1)
  for row in trajectory.rows(found):
    assert row["step_mse"] == pytest.approx(row["step_theory"], rel=0.05)
    assert row["prefix_mse"] == pytest.approx(row["prefix_theory"], rel=0.15)


def test_theory_at_64_steps():
  mean = lambda m, i: trajectory.theory(m, 64)[i].mean()
  assert mean("tree_honaker", 0) == pytest.approx(8.439, abs=1e-3)
  assert mean("tree_basic", 0) == pytest.approx(13.891, abs=1e-3)
  assert mean("independent", 1) == 32.5
  assert mean("tree_basic", 1) == pytest.approx(21.109, abs=1e-3)
  assert mean("tree_honaker", 1) == pytest.approx(13.339, abs=1e-3)
  final = lambda m: trajectory.theory(m, 64)[1][-1]
  assert final("independent") == 64 and final("tree_basic") == 7
  assert final("tree_honaker") == pytest.approx(3.528, abs=1e-3)


def test_the_production_statement(capsys):
  statement.main([])
  out = capsys.readouterr().out
  for words in ("79", "0.806122", "8.52609", "8.89861", "87", "2.63"):
    assert words in out
  statement.main(["--lengths", "8", "8", "5", "-z", "2"])
  assert "11" in capsys.readouterr().out


def test_the_references_of_the_benchmark_are_a_round():
  model, params = bench._params("cifg_tiny")
  loss_fn, client_tx = dp_ftrl.next_word_loss(model), optax.sgd(0.5)
  tokens = jax.random.randint(
    jax.random.key(1), (4, 2, 3, 9), 4, model.vocab_size
  )
  batches = {"tokens": tokens, "mask": jax.numpy.ones((4, 2, 3))}
  programs, sizes = bench._references(loss_fn, client_tx, 0.1, params, batches)
  clip, tx = dp_ftrl.Clip(0.1), optax.sgd(1.0)
  step = dp_ftrl.make_step(
    loss_fn, tx, client_tx=client_tx, clip=clip, clients_per_chunk=2
  )
  state = dp_ftrl.init_state(params, tx, clip=clip, key=jax.random.key(0))
  after, _ = jax.jit(step)(state, batches)
  moved = jax.tree.map(lambda a, b: a - b, after.params, params)
  close = functools.partial(np.testing.assert_allclose, atol=2e-6)
  for run in programs.values():
    jax.tree.map(close, run(), moved)
  # All updates of the cohort are held at once.
  updates = 4 * sum(x.nbytes for x in jax.tree.leaves(params)) / 2**20
  assert sizes["one vmap"] >= updates


@pytest.mark.slow
def test_the_benchmark_has_a_row_for_each_setting(tmp_path):
  path = str(tmp_path / "bench.json")
  argv = ["--preset", "cifg_tiny", "--client-preset", "cifg_tiny"]
  bench.main([*argv, "--num-clients", "16", "--rounds", "1", "--results", path])
  rows = results.load(path)["rows"]
  assert [r["ratio"] for r in rows if r["setting"] == "no noise"] == [1.0]
  sizes = {r["setting"]: r["mib"] for r in rows}
  assert sizes["tree, Honaker"] == pytest.approx(
    12 * sizes["no noise"], rel=0.1
  )
