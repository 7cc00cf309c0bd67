"""Streams of tasks end to end: every method, resuming, what is promised."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.common import stages
from experiments.l2p import (
  backbone,
  experiment,
  learners,
  measure,
  networks,
  report,
  sets,
  tasks,
)
from experiments.l2p.configs import streams
from locojax.core import trees
from locojax.methods import l2p
from locojax.nn import vit_weights
from locojax.train import loop

# One of each kind; the others are slow.
QUICK = ("l2p", "ewc", "er", "nearest_mean")


def _tiny(**changes):
  return stages.changed(streams.get_config("tiny"), **changes)


def _with(config, key: str, value):
  """A copy with a dotted key changed."""
  config = config.copy_and_resolve_references()
  *outer, last = key.split(".")
  with config.unlocked():
    place = config
    for name in outer:
      place = place[name]
    place[last] = value
  return config


def _bits(state) -> dict[str, bytes]:
  plain = jax.tree.map(
    lambda x: jax.random.key_data(x) if _is_key(x) else x, state
  )
  return {p: np.asarray(x).tobytes() for p, x in trees.flatten(plain).items()}


def _is_key(x) -> bool:
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """A whole study at tiny size: config, folder, what `run` gave."""
  folder = tmp_path_factory.mktemp("l2p")
  config = _tiny(methods=QUICK)
  return config, folder, experiment.run(config, str(folder))


def _measured(folder) -> dict[str, str]:
  """What was measured, by place."""
  return {
    p.relative_to(folder).as_posix(): p.read_text()
    for p in sorted(folder.rglob(report.MEASURED))
  }


def test_a_study_has_a_row_for_each_method_and_its_figures(study):
  config, folder, out = study
  assert [r["method"] for r in out["rows"]] == list(QUICK)
  for row in out["rows"]:
    assert 0 <= row["accuracy"][0] <= 100
    assert row["forgetting"][0] >= 0
  first = out["rows"][0]
  assert first["alive"][0] <= config.pool.pool_size
  gap = first["accuracy_batchwise"][0] - first["accuracy"][0]
  assert first["leak"][0] == pytest.approx(gap, abs=2e-3)
  for name in ("table.md", "figure.png", report.HISTOGRAMS):
    assert (folder / name).stat().st_size > 100
  with Image.open(folder / "figure.png") as picture:
    assert picture.size[0] > 300


def test_a_finished_study_trains_nothing_and_says_the_same(study):
  config, folder, out = study
  before = _measured(folder)
  again = experiment.run(config, str(folder))
  assert again["rows"] == out["rows"] and _measured(folder) == before
  rows = experiment.evaluate(config, str(folder))["rows"]
  assert rows == out["rows"]


def test_the_matrix_is_that_of_the_measurements(study):
  config, folder, out = study
  stream = tasks.load(config)
  found = report.measured(folder, "er", 0, stream)
  a = np.array([f["all"] for f in found]).T  # [task, time]
  a[np.tril_indices(3, -1)] = 0
  row = next(r for r in out["rows"] if r["method"] == "er")
  assert row["accuracy"][0] == pytest.approx(100 * a[:, -1].mean(), abs=1e-3)
  best = a.max(axis=1)[:-1] - a[:-1, -1]
  assert row["forgetting"][0] == pytest.approx(100 * best.mean(), abs=1e-3)


def test_the_backbone_keeps_its_bits(study):
  config, folder, _ = study
  base = vit_weights.load_vit(folder / backbone.FILE, image_size=8)
  stream = tasks.load(config)
  net = networks.backbone(config)
  learner = learners.LEARNERS["l2p"](experiment._setup(config, net, stream))
  held = backbone.Backbone(net, base.params)
  queried = experiment.Queried(stream, held, config.eval_batch_size)
  stage = experiment.Data(config, queried).stage(learner, 2)
  one = stages.changed(config, method="l2p", task=2, seed=0)
  made = experiment.stage_experiment(one, learner, stage)
  where = report.folder(folder, "l2p", 0, 2)
  state = stages.fit(made, one, where, may_differ=("methods", "seeds"))
  frozen = trees.flatten(state.model_state["frozen"]["backbone"])
  for path, array in trees.flatten(base.params).items():
    np.testing.assert_array_equal(np.asarray(frozen[path]), array)
  assert int(state.step) == stage.num_steps > 0
  # And predictions do not depend on who else is in the batch.
  predictor = measure.Predictor(learner, 16)
  test = queried.tests[0]
  whole = predictor.logits(state, test)
  order = np.random.default_rng(0).permutation(len(whole))[:5]
  few = {k: v[order] for k, v in test.items()}
  alone = measure.Predictor(learner, 3).logits(state, few)
  np.testing.assert_allclose(alone, whole[order], atol=1e-5)


class _Stop(Exception):
  """Ends a study from the outside."""


@pytest.mark.parametrize(
  "place",
  [
    "inside",
    pytest.param("backbone", marks=pytest.mark.slow),
    pytest.param("between", marks=pytest.mark.slow),
  ],
)
def test_a_study_that_was_stopped_ends_in_the_same_bits(
  study, tmp_path, place, monkeypatch
):
  config, folder, _ = study
  config = _tiny(methods=("er",), save_every=2)
  count = {"backbone": 3, "inside": 8 + 10 + 5, "between": 8 + 10}[place]
  taken = [0]
  original = loop.fit

  def fit(made, *args, **settings):
    def batches(start):
      for batch in made.batches(start):
        if taken[0] == count:
          raise _Stop
        taken[0] += 1
        yield batch

    return original(
      dataclasses.replace(made, batches=batches), *args, **settings
    )

  monkeypatch.setattr(loop, "fit", fit)
  with pytest.raises(_Stop):
    experiment.run(config, str(tmp_path))
  monkeypatch.setattr(loop, "fit", original)
  experiment.run(config, str(tmp_path))
  found = _measured(tmp_path)
  assert len(found) == 3
  whole = {k: v for k, v in _measured(folder).items() if k.startswith("er/")}
  assert found == whole


def test_a_stream_without_boundaries_needs_no_task(tmp_path):
  config = _tiny(methods=("l2p", "ewc", "er"), ewc_every=3)
  config = _with(config, "data.kind", "gaussian")
  for key, value in {"num_episodes": 4, "steps_per_episode": 2}.items():
    config = _with(config, f"gaussian.{key}", value)
  out = experiment.run(config, str(tmp_path))
  assert all("forgetting" not in r for r in out["rows"])
  stream = tasks.load(config)
  assert not stream.boundaries and len(stream.trains) == 1
  assert stream.trains[0]["class_mask"].any(axis=1).all()
  assert len(list(tmp_path.rglob(report.MEASURED))) == 3
  assert (tmp_path / "figure.png").stat().st_size > 100


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(learners.LEARNERS) - set(QUICK)))
def test_every_other_method_runs(method, study, tmp_path):
  _, folder, _ = study
  shutil.copytree(folder / "backbone", tmp_path / "backbone")
  config = _tiny(methods=(method,))
  out = experiment.run(config, str(tmp_path))
  assert 0 <= out["rows"][0]["accuracy"][0] <= 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["several", "rotated", "folder"])
def test_every_kind_of_stream_runs(kind, tmp_path):
  config = _tiny(methods=("l2p", "er"))
  if kind == "several":
    config = _with(config, "data.names", ("digits/4-6", "digits/7-9"))
  if kind == "folder":
    _write_folder(tmp_path / "own")
    config = _with(config, "data.names", ("folder",))
    config = _with(config, "data.path", str(tmp_path / "own"))
  config = _with(config, "data.kind", kind)
  out = experiment.run(config, str(tmp_path / "run"))
  assert len(out["rows"]) == 2


def _write_folder(root) -> None:
  """Two tasks of two classes of ten images."""
  rng = np.random.default_rng(0)
  for task in "ab":
    for name in ("x", "y"):
      where = root / task / f"{task}{name}"
      where.mkdir(parents=True)
      for i in range(10):
        pixels = rng.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(where / f"{i}.png")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("pool.key_init", "kmeans"),
    ("pool.selection", "batch"),
    ("pool.selection", "forced"),
    ("pool.head", "token+prompt"),
    ("clip_scope", "all"),
    ("cache_queries", False),
  ],
)
def test_every_option_of_the_pool_runs(key, value, study, tmp_path):
  _, folder, _ = study
  config = _with(_tiny(methods=("l2p",)), key, value)
  del folder
  out = experiment.run(config, str(tmp_path))
  assert 0 <= out["rows"][0]["accuracy"][0] <= 100


def test_a_checkpoint_takes_the_place_of_the_pre_training(study, tmp_path):
  config, folder, _ = study
  config = _tiny(methods=("nearest_mean",))
  config = _with(config, "data.checkpoint", str(folder / backbone.FILE))
  out = experiment.run(config, str(tmp_path))
  assert not (tmp_path / "backbone").exists()
  whole = {
    k: v for k, v in _measured(folder).items() if k.startswith("nearest")
  }
  found = _measured(tmp_path)
  for name, text in whole.items():
    assert json.loads(found[name]) == json.loads(text)
  assert len(out["rows"]) == 1


def test_names_of_sets():
  assert sets.parse("n", "cifar10/5-9") == ("cifar10", 5, 10)
  assert sets.num_classes("omniglot/0-116") == 117
  rows = sets.few(np.array([0, 0, 1, 1, 1]), 2, seed=0)
  assert len(rows) == 4 and (np.diff(rows) > 0).all()
  data = {"data_dir": "", "image_size": 8, "channels": 1, "seed": 0}
  found = sets.load("digits/4-9", data, train=5, test=0)
  assert np.bincount(found["train"]["label"]).tolist() == [5] * 6
  scenes = sets.load("scenes", {**data, "image_size": 16}, train=2, test=1)
  assert scenes["train"]["image"].shape == (60, 16, 16, 1)


@pytest.mark.parametrize("variant", ["tiny", "paper"])
def test_the_optimiser_holds_what_is_trained(variant):
  config = streams.get_config(variant)
  made = experiment.build(stages.changed(config, needs_data=False))
  state = jax.eval_shape(made.init, jax.random.key(0))
  sizes = {
    part: sum(
      x.size for x in jax.tree.leaves(getattr(state, part)) if x.ndim > 0
    )
    for part in ("params", "opt_state")
  }
  assert set(state.params) == {"prompt_pool", "head"}
  assert sizes["opt_state"] == 2 * sizes["params"]
  if variant == "paper":
    pool = sum(x.size for x in jax.tree.leaves(state.params["prompt_pool"]))
    assert pool == 46_080
    frozen = jax.tree.leaves(state.model_state["frozen"])
    assert sum(x.size for x in frozen) == 85_798_656


def test_a_learner_of_each_name_makes_a_loss():
  config = _tiny()
  stream = tasks.load(config)
  net = networks.backbone(config)
  setup = experiment._setup(config, net, stream)
  for name, kind in learners.LEARNERS.items():
    learner = kind(setup)
    assert callable(learner.loss()), name
    assert isinstance(learner.model, l2p.PromptedViT)
  assert functools.reduce(
    lambda a, b: a | b, (set(ids) for ids in stream.class_ids)
  ) == set(range(6))
