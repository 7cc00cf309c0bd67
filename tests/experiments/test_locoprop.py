"""The deep-autoencoder benchmark: its parts, its tiny run, its configs."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.locoprop import (
  autoencoder,
  calibrate,
  experiment,
  optimizers,
  search,
  tune,
)
from experiments.locoprop.configs import autoencoder as configs
from locojax.methods import locoprop
from locojax.report import results


def _tiny(**changes):
  config = configs.get_config("tiny").copy_and_resolve_references()
  with config.unlocked():
    config.update({"mesh": {"data": 1}, **changes})
  return config


def _lines(folder):
  text = (folder / "metrics.jsonl").read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
  # The mesh of a tiny run is one device of the eight virtual ones.
  from locojax.train import sharding

  make = sharding.make_mesh
  monkeypatch.setattr(
    experiment.sharding, "make_mesh", lambda axes: make(axes, jax.devices()[:1])
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("benchmark")
  return folder, experiment.run(configs.get_config("tiny"), str(folder))


def test_tiny_benchmark_ends_in_a_table_and_a_figure(finished):
  folder, out = finished
  rows = {r["method"]: r for r in out["rows"]}
  assert set(rows) == {"sgd", "adam", "locoprop_m", "locoprop_s_exact"}
  assert rows["adam"]["step_ratio_adam"] == 1.0
  best = min(rows[m]["train_equal_epochs"][0] for m in ("sgd", "adam"))
  for row in rows.values():
    ratio = row["train_equal_epochs"][0] / best
    np.testing.assert_allclose(row["ratio_equal_epochs"], ratio)
    assert row["memory_mib"] > 0
    assert row["epochs_in_equal_seconds"] >= 1
  assert "locoprop_m" in pathlib.Path(out["table"]).read_text()
  assert pathlib.Path(out["figure"]).read_bytes()[:4] == b"\x89PNG"


def test_run_twice_says_that_it_is_done(finished, capsys):
  folder, out = finished
  before = (folder / "table.md").read_text()
  again = experiment.run(configs.get_config("tiny"), str(folder))
  assert "done already" in capsys.readouterr().out
  assert again["markdown"] + "\n" == before


def test_results_file_is_valid(finished, tmp_path):
  folder, _ = finished
  config = _tiny(results=str(tmp_path / "r.json"))
  experiment.run(config, str(folder))
  found = results.load(tmp_path / "r.json")
  assert found["seeds"] == [0] and len(found["rows"]) == 4
  assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"


def test_divergence_is_reported_not_fatal(tmp_path):
  config = _tiny(methods=("sgd", "adam"), reference="adam")
  with config.unlocked():
    # Near the largest float32: the loss of 64 pixels after it is above that.
    config.optimizers.sgd.learning_rate = 3e38
  out = experiment.run(config, str(tmp_path))
  (found,) = tmp_path.rglob("diverged.json")
  assert "sgd" in found.parts and "not finite" in found.read_text()
  rows = {r["method"]: r for r in out["rows"]}
  assert rows["sgd"]["train_equal_epochs"] == [None]
  assert rows["adam"]["ratio_equal_epochs"] == 1.0


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  "kind",
  [
    None,
    "matching",
    pytest.param("kfac", marks=_SLOW),
    pytest.param("soap", marks=_SLOW),
  ],
)
def test_resume_is_bitwise(kind, tmp_path):
  """A run cut in the middle ends in the same lines as one that was not."""
  method = {None: "adam", "matching": "locoprop_m"}.get(kind, kind)
  whole = _tiny(methods=(), method=method, save_every=4)
  experiment.fit(whole, tmp_path / "whole")

  made = experiment.build(whole)
  calls = []

  class Cut(RuntimeError):
    pass

  def batches(start):
    for k, batch in enumerate(made.batches(start), start=start):
      calls.append(k)
      if k == 7 and start == 0:
        raise Cut
      yield batch

  original = experiment.build
  experiment.build = lambda config: _replace(made, batches)
  try:
    with pytest.raises(Cut):
      experiment.fit(whole, tmp_path / "cut")
    experiment.fit(whole, tmp_path / "cut")
  finally:
    experiment.build = original
  assert 4 in calls and calls.count(4) == 2
  assert _lines(tmp_path / "cut") == _lines(tmp_path / "whole")


def _replace(made, batches):
  import dataclasses

  return dataclasses.replace(made, batches=batches)


_QUICK = ("adam", "muon", "kfac", "locoprop_s_exact", "locoprop_m_fast")


@pytest.mark.parametrize(
  "method",
  [pytest.param(m, marks=[] if m in _QUICK else _SLOW) for m in search.SPACES],
)
def test_every_method_lowers_the_loss(method, tmp_path):
  config = _tiny(methods=(), method=method, num_epochs=4)
  result = experiment.fit(config, tmp_path)
  lines = _lines(tmp_path)
  first = next(r for r in lines if "eval/train_loss" in r)["eval/train_loss"]
  assert result["values"]["eval/train_loss"] < first


def test_declared_transfers_are_those_of_the_model():
  for activation in autoencoder.ACTIVATIONS:
    task = autoencoder.task(
      num_inputs=9, hidden=(8, 7), code_size=3, activation=activation
    )
    params = task.init(jax.random.key(0))
    x = np.random.default_rng(0).random((5, 9), np.float32)
    _, _, tape = jax.jit(locoprop.capture(task.loss))(
      params, {}, {"image": x}, jax.random.key(0)
    )
    locoprop.verify_transfers(tape, task.transfers)
    text = locoprop.describe(tape, params, transfers=task.transfers)
    assert "fallback" not in text


def test_loss_is_the_cross_entropy_summed_over_pixels():
  task = autoencoder.task(
    num_inputs=4, hidden=(3,), code_size=2, activation="tanh"
  )
  params = task.init(jax.random.key(0))
  x = np.array([[0.0, 1.0, 0.5, 0.2], [1.0, 1.0, 0.0, 0.7]], np.float32)
  loss, _ = task.loss(params, {}, {"image": x}, None)
  p = jax.nn.sigmoid(task.model.apply({"params": params}, x))
  expected = -(x * jnp.log(p) + (1 - x) * jnp.log(1 - p)).sum(1).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  run = autoencoder.evaluator(task, {"train": x, "test": x[:1]}, chunk=2)
  state = type("S", (), {"params": params})
  np.testing.assert_allclose(run(state)["train_loss"], expected, rtol=1e-5)


def test_notebook_schedule():
  """Epoch e: peak e/5 for e < 5, then 1 - (e + 1 - 5)/95 of it."""
  config = configs.get_config("notebook")
  schedule = experiment._schedule(config, 1.0, 60, 99)
  for epoch, expected in (
    (0, 0.0),
    (1, 0.2),
    (4, 0.8),
    (5, 94 / 95),
    (98, 1 / 95),
  ):
    for step in (epoch * 60, epoch * 60 + 59):
      np.testing.assert_allclose(schedule(step), expected, rtol=1e-6, atol=1e-7)


def test_data_sizes():
  arrays = autoencoder.load("curves", size=14, num_train=20, num_test=5)
  assert arrays["train"].shape == (20, 196) and arrays["test"].shape == (5, 196)
  assert arrays["train"].min() >= 0 and arrays["train"].max() <= 1
  digits = autoencoder.load("digits", size=4, num_train=30)
  assert digits["train"].shape == (30, 16)
  with pytest.raises(ValueError, match="data.size=3"):
    autoencoder.load("digits", size=3)
  with pytest.raises(ValueError, match="name='cruves'.*"):
    autoencoder.load("cruves")


@pytest.mark.real_data
def test_mnist_through_tfds(data_dir):
  arrays = autoencoder.load(
    "mnist",
    size=14,
    num_train=100,
    num_test=10,
    data_dir=str(data_dir / "tfds"),
  )
  assert arrays["train"].shape == (100, 196)
  assert 0.1 < arrays["train"].mean() < 0.2


def test_search_spaces_are_of_equal_size():
  known = configs.get_config("cpu").optimizers
  assert set(search.SPACES) == set(search.BASES) == set(known)
  for rates, changes in search.SPACES.values():
    assert len(rates) == search.NUM_RATES
    assert len(changes) == search.NUM_CHANGES


def test_tune_tries_rates_then_changes(tmp_path, monkeypatch):
  monkeypatch.setitem(
    search.SPACES, "adam", ((1e-3, 1e-2), [{"b1": 0.5}, {"b2": 0.9}])
  )
  tune.tune(_tiny(methods=()), "adam", 1, tmp_path)
  found = tune.collect(tmp_path)
  assert len(found) == 4
  losses = [r["train_loss"] for r in found]
  assert losses == sorted(losses)
  assert '"b1": 0.5' in " ".join(r["options"] for r in found)
  names = {r["setting"] for r in found}
  assert {"learning_rate=0.001", "learning_rate=0.01"} < names
  options = {"learning_rate": 1.0, "inner_options": {"decay": 0.9, "x": 1}}
  assert tune.change(options, {"inner_options.decay": 0.5}) == {
    "learning_rate": 1.0,
    "inner_options": {"decay": 0.5, "x": 1},
  }


def test_errors_name_what_is_wrong():
  with pytest.raises(ValueError, match="variant='huge'"):
    configs.get_config("huge")
  with pytest.raises(ValueError, match="method='adamm'.*did you mean 'adam'"):
    experiment.build(_tiny(method="adamm"))
  with pytest.raises(ValueError, match="kind='newton'"):
    optimizers.make(
      "newton",
      schedule=None,
      loss_fn=None,
      sampled_loss_fn=None,
      transfers={},
      options={},
    )


def test_calibration_compares_the_epochs_that_every_run_has(tmp_path, capsys):
  def write(folder, losses, seed):
    folder.mkdir()
    config = {"data": {"num_train": 60_000}, "batch_size": 1000, "seed": seed}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
      {
        "step": 60 * e,
        "seconds": 1.0,
        "eval/train_loss": v,
        "eval/test_loss": v,
      }
      for e, v in enumerate(losses)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)

  write(tmp_path / "a", [550.0, 550.0, 120.0, 81.0], 0)
  write(tmp_path / "b", [550.0, 550.0, 126.0], 1)
  out = tmp_path / "out.json"
  folders = [str(tmp_path / "a"), str(tmp_path / "b")]
  calibrate.main([*folders, "--results", str(out)])
  rows = results.load(out)["rows"]
  assert [r["epoch"] for r in rows] == [1, 2]
  assert rows[1]["train"] == [120.0, 126.0]
  assert rows[1]["train_ratio"] == pytest.approx(123.0 / 122.69)
  assert "122.7" in capsys.readouterr().out
  write(tmp_path / "c", [550.0], 2)
  with pytest.raises(ValueError, match="logged epoch"):
    calibrate.main([str(tmp_path / "c")])
