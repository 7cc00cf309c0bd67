"""The Two Moons experiment: its data, weights, tiny run, figures and check."""

from __future__ import annotations

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from experiments.ciw import moons_report, two_moons
from experiments.ciw.configs import two_moons as configs
from experiments.common import stages
from locojax.report import results, runs
from locojax.train import check, sharding, steps

EPOCHS = 60


def _config(variant="tiny", **changes):
  config = configs.get_config(variant).copy_and_resolve_references()
  with config.unlocked():
    config.update({"mesh": {"data": 1}, **changes})
  return config


def _short(**changes):
  """Half a minute of `tiny` in a second, with burn-in over early."""
  settings = dict(
    data={"num_train": 100, "num_test": 50},
    hidden=(16,),
    num_epochs=EPOCHS,
    burnin_epochs=5,
    anneal_epochs=5,
    num_frames=2,
    burnin_sweep=(5, 10),
  )
  return _config(**{**settings, **changes})


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
  make = sharding.make_mesh
  monkeypatch.setattr(
    stages.sharding, "make_mesh", lambda axes: make(axes, jax.devices()[:1])
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("moons")
  config = _short(results=str(folder / "results.json"))
  with pytest.MonkeyPatch.context() as patch:
    make = sharding.make_mesh
    one = lambda axes: make(axes, jax.devices()[:1])
    patch.setattr(stages.sharding, "make_mesh", one)
    return config, folder, two_moons.run(config, str(folder))


def test_the_run_ends_in_a_table_and_figures(finished):
  config, folder, out = finished
  names = [row["run"] for row in out["rows"]]
  assert names == ["ce", "ciw_kl", "burnin_10"]
  for row in out["rows"]:
    assert len(row["accuracy_last"]) == config.num_replicas
    best = np.asarray(row["accuracy_best"])
    assert np.all(best >= row["accuracy_last"]) and np.all(best > 60)
    assert all(0 <= auc <= 1 for auc in row["detection_auc"])
  ce, ciw, _ = out["rows"]
  np.testing.assert_allclose(ce["flipped_weight"], 30.0, rtol=1e-5)
  assert max(ciw["flipped_weight"]) < 25.0
  assert ce["burnin_epochs"] is None and ciw["burnin_epochs"] == 5
  assert "ciw_kl" in pathlib.Path(out["table"]).read_text()
  for name in ("figure", "curves"):
    assert pathlib.Path(out[name]).read_bytes()[:4] == b"\x89PNG"
  assert results.load(config.results)["rows"] == out["rows"]


def test_the_animation_has_a_frame_for_each_kept_epoch(finished):
  config, folder, out = finished
  kept = sorted(p.stem for p in (folder / "ce" / "frames").iterdir())
  assert kept == [f"{e:06d}" for e in (0, 30, 60)]
  with Image.open(out["animation"]) as gif:
    assert gif.n_frames == len(kept)
  assert not (folder / "burnin_10" / "frames").exists()


def test_run_twice_trains_nothing(finished, monkeypatch):
  config, folder, out = finished
  before = (folder / "ce" / "metrics.jsonl").read_text()
  again = two_moons.run(config, str(folder))
  assert again["markdown"] == out["markdown"]
  assert (folder / "ce" / "metrics.jsonl").read_text() == before


def test_an_interrupted_run_ends_in_the_same_bits(finished, tmp_path):
  config, folder, _ = finished
  one = two_moons.plan(config)["ciw_kl"]
  half = _short(method="ciw_kl", num_epochs=EPOCHS // 2, num_frames=0)
  two_moons.fit(half, tmp_path)
  state = two_moons.fit(one, tmp_path)
  whole = two_moons.fit(one, folder / "ciw_kl")
  jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)


def test_until_the_end_of_burn_in_ciw_is_plain_training(finished):
  _, folder, _ = finished
  ce, ciw = (runs.load(folder / name) for name in ("ce", "ciw_kl"))
  key = "eval/replica_0/detection_auc"
  (x, a), (_, b) = (runs.series(run, key) for run in (ce, ciw))
  assert list(x[:2]) == [0, 10] and a[0] == b[0] and not np.array_equal(a, b)
  late = runs.load(folder / "burnin_10")
  np.testing.assert_array_equal(runs.series(late, key)[1][:2], a[:2])


def test_replicas_have_their_own_data_with_exact_noise():
  config = configs.get_config("cpu")
  sets = [two_moons.dataset(config, r) for r in range(2)]
  assert not np.array_equal(sets[0]["x"], sets[1]["x"])
  for found in sets:
    assert found["x"].shape == (400, 2) and found["test_x"].shape == (2000, 2)
    assert np.mean(found["label"] != found["true"]) == 0.3
    assert np.mean(found["test_label"]) == 0.5
  again = two_moons.dataset(configs.get_config("paper"), 1)
  np.testing.assert_array_equal(sets[1]["label"], again["label"])


def test_an_epoch_visits_every_example_once():
  made = two_moons.build(_short(num_replicas=2))
  batch = next(made.batches(3))
  assert batch["x"].shape == (2, 2, 50, 2)
  for r in range(2):
    own = two_moons.dataset(_short(), r)["x"]
    seen = batch["x"][r].reshape(-1, 2)
    np.testing.assert_array_equal(
      seen[np.lexsort(seen.T)], own[np.lexsort(own.T)]
    )


@pytest.mark.parametrize("name", sorted(configs.get_config("paper").table))
def test_every_method_has_weights_that_sum_to_one(name):
  options = configs.get_config("paper").table.to_dict()[name]
  weigh = two_moons.weights(options, burnin=10, anneal_steps=10)
  losses = jnp.array([0.1, 0.5, 1.0, 3.0])
  np.testing.assert_allclose(weigh(losses, jnp.int32(10)), 0.25, rtol=1e-6)
  for step in (11, 100):
    w = weigh(losses, jnp.int32(step))
    np.testing.assert_allclose(w.sum(), 1.0, rtol=1e-6)
    assert np.all(np.diff(w) <= 0)
    assert ("instance" in options) == (float(w[0]) > float(w[-1]))


def test_class_weights_start_after_burn_in():
  options = configs.get_config("paper").table.to_dict()["cicw_kl_tv"]
  each = jax.jit(two_moons.per_example(options))
  logits, labels = jnp.array([[2.0, 0.0], [2.0, 0.0]]), jnp.array([0, 1])
  plain = -jax.nn.log_softmax(logits)[jnp.arange(2), labels]
  np.testing.assert_allclose(each(logits, labels, False), plain, rtol=1e-6)
  # The label of least loss stays; of the other, gamma = 0.1 goes to class 0.
  moved = [plain[0], 0.9 * plain[1] + 0.1 * plain[0]]
  np.testing.assert_allclose(each(logits, labels, True), moved, rtol=1e-6)


def test_many_updates_in_a_step_are_the_updates_one_by_one():
  config = _short(num_replicas=1)
  made = two_moons.method(config)
  params = made.model.init(jax.random.key(0), jnp.zeros((1, 2)))["params"]
  batch = next(two_moons.epochs(config, 3)(0))
  tx = optax.sgd(0.1, momentum=0.9)
  step = jax.jit(steps.from_loss(two_moons.loss_fn(made), tx))
  state = steps.init_state(params, tx, key=jax.random.key(1))
  several = steps.scanned(steps.with_update(step), 2)
  many, found = jax.jit(several)(state.replace(step=jnp.int32(4)), batch)
  one, total = state.replace(step=jnp.int32(8)), 0.0
  for i in range(2):
    row = jax.tree.map(lambda x, i=i: x[i], batch)
    one, metrics = step(one, {**row, "update": one.step})
    total += metrics["loss"].value() / 2
  assert int(many.step) == 5
  np.testing.assert_allclose(found["loss"].value(), total, rtol=1e-6)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
    many.params,
    one.params,
  )


def test_dots_have_the_area_of_their_weight():
  w = np.array([0.0, 0.25, 0.25, 0.5])
  areas = moons_report._areas(w)
  np.testing.assert_allclose(areas[1:], moons_report._DOT * 4 * w[1:])
  assert 0 < areas[0] < areas[1]


@pytest.mark.parametrize("variant", ["cpu", "paper"])
def test_the_variants_pass_the_check_without_data(variant, monkeypatch):
  config = _config(variant)
  report = check.run(two_moons.build(config), axes={"data": 1})
  sizes = 2 * 128 + 2 * 128 * 128 + 128 * 2 + 3 * 128 + 2
  assert report.num_params == config.num_replicas * sizes


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"method": "ciw_k"}, "ciw_kl"),
    ({"table": {"ciw_kl": {"instances": {}}}}, "instance"),
  ],
)
def test_unknown_methods_and_options_are_named(changes, match):
  with pytest.raises(ValueError, match=match):
    two_moons.build(_config(**changes))


def test_what_is_pictured_must_be_run(tmp_path):
  with pytest.raises(ValueError, match="pictured"):
    two_moons.run(_config(pictured=("ce", "cicw_kl_tv")), str(tmp_path))


@pytest.mark.slow
def test_weights_keep_what_plain_training_unlearns(tmp_path):
  config = _config(
    "cpu", methods=("ce", "ciw_kl"), burnin_sweep=(), num_frames=0
  )
  ce, ciw = two_moons.run(config, str(tmp_path))["rows"]
  last = [np.mean(row["accuracy_last"]) for row in (ce, ciw)]
  assert last[1] > last[0] + 2 and last[1] > 95
  assert np.mean(ciw["flipped_weight"]) < 10
