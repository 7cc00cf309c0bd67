"""Federated experiments: tiny runs, resume with noise, ledger, statement."""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax
import pytest

from experiments.dp_ftrl import (
  bench,
  experiment,
  mechanisms,
  settings,
  statement,
  trajectory,
)
from experiments.dp_ftrl.configs import classification, next_word
from locojax.methods import dp_ftrl
from locojax.methods.dp_ftrl import participation
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


def test_noise_is_told_and_warned_about_before_training(capsys):
  config = functools.partial(_config, classification, method="tree_honaker")
  experiment._tell_noise(config(rho=1e4), "tree")
  said = capsys.readouterr().out
  assert "clients a round; noise over the largest update" in said
  assert "warning" not in said
  experiment._tell_noise(config(rho=1e-5), "tree")
  assert "warning: tree: the noise is longer" in capsys.readouterr().out


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


def test_few_clients_have_room_for_a_poisson_sample():
  """64 clients in cohorts of 24: 7 deviations would be 66 places."""
  changes = {"methods": ("amplified",), "method": "amplified"}
  config = _config(classification, cohort_size=24, **changes)
  experiment.check(config)
  assert settings.room(config, True, 64, num_devices=1) == 64
  assert settings.room(config, True, 280, num_devices=8) == 72
  with pytest.raises(ValueError, match="cohort_size=24 .*in .1, 23"):
    experiment.setting(config, 23)


@pytest.mark.parametrize("num_clients, cohort", [(64, 8), (65, 8), (10, 4)])
def test_what_is_declared_bounds_what_is_realised(num_clients, cohort):
  config = _config(classification, cohort_size=cohort, num_rounds=37)
  place = experiment.setting(config, num_clients)
  sampler = dp_ftrl.ShuffledEpochs(num_clients, cohort, seed=3)
  log = participation.logged(sampler, 37)
  k, b = place.max_participations, place.min_sep
  log.check(max_participations=k, min_sep=b)
  asked = {i for t in range(-(-num_clients // cohort)) for i in sampler(t)[0]}
  assert len(asked) == num_clients
  assert log.tree_sensitivity(37) <= dp_ftrl.tree_squared_sensitivity(37, k, b)


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
