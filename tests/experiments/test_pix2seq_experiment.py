"""Detection end to end: a tiny study, resume, meshes, restored runs."""

from __future__ import annotations

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny_runs

from experiments.common import launch, stages
from experiments.pix2seq import (
  asking,
  conditions,
  detectors,
  experiment,
  networks,
  predict,
  report,
  scoring,
  sets,
)
from experiments.pix2seq.configs import detection
from locojax.core import trees, types
from locojax.data import coco_json
from locojax.report import results
from locojax.train import sharding

_config = functools.partial(tiny_runs.config, detection.get_config)


@pytest.fixture(scope="module", autouse=True)
def _one_device():
  # The mesh of a study is one device of the eight virtual ones.
  make = stages.sharding.make_mesh

  def one(axes, devices=None):
    if devices is None:
      return make({"data": 1}, jax.devices()[:1])
    return make(axes, devices)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stages.sharding, "make_mesh", one)
    yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pix2seq")
  config = _config(
    methods=("augmented", "detr_scratch"), results=str(folder / "result.json")
  )
  return config, folder / "run", experiment.run(config, str(folder / "run"))


def test_the_study_ends_in_tables_and_figures(finished):
  config, folder, out = finished
  assert [r["method"] for r in out["rows"]] == list(config.methods)
  assert all(0 <= r["AP"][0] <= 1 for r in out["rows"])
  assert results.load(config.results)["rows"] == out["rows"]
  # Another top-p, and the best token beside it.
  assert [(r["method"], r["value"]) for r in out["sweeps"]] == [
    ("augmented", 0.0),
    ("augmented", 0.4),
  ]
  beside = [
    folder.parent / f"result_{n}"
    for n in (report.PICTURES, report.CURVES, report.SWEEPS)
  ]
  for path in (out["figure"], out["pictures"], *beside):
    with open(path, "rb") as f:
      assert f.read(4) == b"\x89PNG"
  assert (folder / "pretrain" / "augmented" / "result.json").exists()
  assert not (folder / "pretrain" / "detr_scratch").exists()
  # What follows may take more steps without another pre-training.
  longer = _config(num_steps=6, learning_rate=1.0)
  same = [experiment.pretraining(c).to_json() for c in (_config(), longer)]
  assert same[0] == same[1]


def test_detections_are_those_that_were_scored(finished):
  config, folder, out = finished
  truth = sets.load(config.data.to_dict()).truth
  for row in out["rows"]:
    where = report.folder(folder, row["method"], 0)
    found = coco_json.read_coco_results(where / asking.DETECTIONS)
    assert scoring.score(truth, found)["AP"] == pytest.approx(row["AP"][0])
    said = asking.read(where)
    assert len(said["shown"]) == config.num_pictures
    assert set(said["curves"]) == {"50", "75"}
  tokens = said["shown"][0]["tokens"]
  assert tokens == []  # of set prediction, the last one


def test_a_finished_study_is_asked_more_and_trains_nothing(finished):
  config, folder, _ = finished
  where = report.folder(folder, "augmented", 0)
  before = json.loads((where / "result.json").read_text())
  more = _config(
    methods=("augmented",), sweeps__top_p=(0.4, 0.9), num_pictures=1
  )
  out = experiment.run(more, str(folder))
  assert [r["value"] for r in out["sweeps"]] == [0.0, 0.4, 0.9]
  assert json.loads((where / "result.json").read_text()) == before
  with pytest.raises(ValueError, match="learning_rate"):
    experiment.fit(
      _config(learning_rate=1.0), report.folder(folder, "augmented", 0)
    )


def test_a_run_finds_objects_in_other_images(finished, tmp_path):
  config, folder, _ = finished
  images = tmp_path / "images"
  images.mkdir()
  for i, size in enumerate(((30, 50), (32, 32), (20, 10))):
    pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(images / f"{i}.png")
  out = tmp_path / "out" / "found.json"
  run = report.folder(folder, "augmented", 0)
  line = ["detect", "--run", str(run), "--images", str(images), "--out"]
  predict.main([*line, str(out), "--batch_size", "8"])
  found = coco_json.read_coco_results(out)
  assert set(found["image_id"].tolist()) <= {1, 2, 3}
  assert set(found["category_id"].tolist()) <= {1, 2, 3, 4}
  assert np.all(found["bbox"][:, :2] + found["bbox"][:, 2:] <= 50.001)
  told = json.loads((out.parent / "found.images.json").read_text())
  assert [t["file_name"] for t in told] == ["0.png", "1.png", "2.png"]
  with pytest.raises(ValueError, match="classes.json"):
    predict.main(["detect", "--run", str(tmp_path), *line[3:], str(out)])
  with pytest.raises(ValueError, match="--images"):
    predict.detect(str(run), str(tmp_path / "absent"))


def test_a_run_is_scored_from_its_folder(finished):
  config, folder, out = finished
  run = report.folder(folder, "augmented", 0)
  numbers, rows = predict.score(run / "truth.json", run / "detections.json")
  result = json.loads((run / "result.json").read_text())
  assert numbers["AP"] == pytest.approx(result["values"]["test/AP"], abs=1e-6)
  assert [r["class"] for r in rows] == list(experiment.load(config).classes)


def test_standardised_images_do_not_depend_on_light_and_its_colour():
  image = np.random.default_rng(0).integers(0, 100, (2, 6, 5, 3), np.uint8)
  lit = image * np.uint8([1, 2, 2]) + np.uint8([40, 0, 7])
  seen, other = (networks.prepared(_config(), x) for x in (image, lit))
  np.testing.assert_allclose(other, seen, atol=1e-5)
  np.testing.assert_allclose(seen.mean(axis=(1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(seen.std(axis=(1, 2)), 1, atol=1e-5)
  flat = networks.prepared(_config(), np.full((1, 4, 4, 3), 7, np.uint8))
  np.testing.assert_array_equal(flat, np.zeros((1, 4, 4, 3)))


_SMALL = {"pretrain__num_steps": 0}
_fit = functools.partial(tiny_runs.fit, experiment)


def _losses(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [r["train/loss"] for r in rows if "train/loss" in r]


def test_sizes_are_those_given_or_the_presets():
  config = detection.get_config("own")
  config.model.encoder.width, config.model.preset = 32, "tiny"
  assert networks.model(config, 9).encoder.width == 32
  config.model.update(preset="resnet", sizes="preset")
  made = networks.model(config, 9)
  assert type(made.encoder).__name__ == "ResNetEncoder"
  assert (made.encoder.width, made.decoder.model_size) == (256, 256)


def test_an_interrupted_run_ends_in_the_same_bits_on_any_mesh(tmp_path):
  config = _config(**_SMALL)
  whole = _fit(config, tmp_path / "whole", data=1)
  with pytest.raises(tiny_runs.Stop):
    _fit(config, tmp_path / "cut", until=2, data=1)
  resumed = _fit(config, tmp_path / "cut", data=1)
  spread = _fit(config, tmp_path / "spread", data=8)
  for name in ("params", "opt_state"):
    flat = [trees.flatten(getattr(s, name)) for s in (whole, resumed)]
    for path, x in flat[0].items():
      np.testing.assert_array_equal(x, flat[1][path], err_msg=path)
  # Before Adam made steps of gradients that are rounding alone.
  losses = [_losses(tmp_path / name) for name in ("whole", "spread")]
  np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)
  del spread


def test_detection_over_eight_devices_is_that_of_one():
  config = _config(**_SMALL)
  detector = detectors.make(config, 4)
  params, model_state = detector.begin(jax.random.key(0))
  first = scoring.first(config, experiment.load(config).test)
  found = {}
  for num in (1, 8):
    mesh = sharding.make_mesh({"data": num}, jax.devices()[:num])
    whole = jax.NamedSharding(mesh, jax.P())
    state = types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      model_state=model_state,
      opt_state=(),
      key=jax.random.key(0),
    )
    state = jax.device_put(state, whole)
    asker = detectors.Asker(config, detector)
    with jax.set_mesh(mesh):
      found[num] = asker.on(state)(first)
      drawn = asker.on(state, detectors.Asked(1.0, 0.9))(first)
    assert np.any(drawn.tokens != found[num].tokens)
  np.testing.assert_array_equal(found[8].tokens, found[1].tokens)
  np.testing.assert_allclose(found[8].scores, found[1].scores, rtol=1e-4)


def test_the_check_looks_at_step_and_detection():
  config = _config(needs_data=False, data__num_classes=4, mesh__data=8)
  reports = {
    "step": launch.check_report(config),
    **launch.more_check_reports(config),
  }
  assert list(reports) == ["step", "detection"]
  params = [r.num_params for r in reports.values()]
  assert params[0] == params[1] > 1000
  # The decoder has no optimiser.
  sizes = [r.state_bytes["all"] for r in reports.values()]
  assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize(
  "method",
  [
    pytest.param(m, marks=() if m == "plain" else pytest.mark.slow)
    for m in conditions.CONDITIONS
  ],
)
def test_every_method_runs(method, tmp_path):
  config = _config(
    **{**_SMALL, "num_steps": 2, "num_evals": 1},
    method=method,
    methods=(method,),
    sweeps__top_p=(),
  )
  out = experiment.run(config, str(tmp_path))
  (row,) = out["rows"]
  assert row["method"] == method and np.isfinite(row["AP"][0])
  if method == "plain":
    assert [r["value"] for r in out["sweeps"]] == [0.0, 2.0]


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["bccd", "coco128"])
def test_photographs_become_batches(name, data_dir):
  variant = {"bccd": "cells"}.get(name, name)
  config = _config(
    variant, data__data_dir=str(data_dir / "tfds"), data__image_size=32
  )
  with config.unlocked():
    config.batch_size, config.sequence.max_objects = 4, 8
  found = experiment.load(config)
  counts = {"bccd": (205, 72, 3), "coco128": (128, 128, 80)}[name]
  assert (len(found.train), len(found.test), len(found.classes)) == counts
  batch = next(experiment.batches(config, 0))
  want = experiment._shapes(config)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    k: (v.shape, v.dtype) for k, v in want.items()
  }
  assert batch["valid"].any() and batch["boxes"].max() <= 1
