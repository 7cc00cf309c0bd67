"""Sub-pseudo labels on clips and images: labels, data, whole studies."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from experiments.spl import experiment, measure, methods, phases, report, sets
from experiments.spl.configs import weak as config_file
from locojax.core import files
from locojax.data import video_made, video_made_files
from locojax.methods import spl
from tests.experiments import tiny_runs

WEAK = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3])
TEACHER = np.array([0, 0, 1, 3, 1, 1, 2, 2, 2, 0, 2, 1])


def _config(variant="tiny", **changes):
  return tiny_runs.config(config_file.get_config, variant, **changes)


def _predictions():
  probs = np.full((12, 4), 0.1, np.float32)
  probs[np.arange(12), TEACHER] = 0.7
  return methods.Predictions(
    probs, TEACHER.astype(np.int32), np.eye(4, dtype=np.float32)
  )


def _labels(name, **settings):
  found = _predictions()
  method, _ = methods.parse(name)
  weak, teacher = methods.given(method, WEAK, found, 0)
  settings = {"k": 4, "min_count": 2, "fallback": "drop", **settings}
  space = methods.build_space(method, weak, teacher, found, settings)
  return methods.make_labels(method, space, weak, teacher, found)


@pytest.mark.parametrize(
  ("name", "outputs", "labels"),
  [
    ("weak", 4, WEAK),
    ("teacher", 4, TEACHER),
    ("agreement", 4, [0, 0, 1, 1, 2, 2, 2]),
    ("distillation", 4, TEACHER),
    ("two_heads", 8, WEAK),
    ("data_parameters", 4, WEAK),
    ("weak_ciw", 4, WEAK),
    ("spl_raw", 16, [0, 0, 1, 3, 5, 5, 6, 10, 10, 8, 10, 13]),
    ("spl_b", 8, [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 4, 7]),
    ("spl_top_k", 4, [0, 0, 1, 2, 2, 3, 3, 3]),
    ("spl_min_count", 3, [0, 0, 1, 1, 2, 2, 2]),
  ],
)
def test_labels_of_the_methods(name, outputs, labels):
  found = _labels(name)
  train = found.train()
  assert found.num_outputs == outputs
  assert train["label"].tolist() == list(labels)
  assert train["index"].tolist() == list(range(len(labels)))
  columns = methods.COLUMNS[methods.METHODS[name].loss]
  assert set(columns) <= set(train)
  assert all(len(train[c]) == len(labels) for c in columns)


def test_random_pairs_are_as_many_and_as_large():
  for name, control in (
    ("spl_raw", "random_pairs"),
    ("spl_top_k", "random_top_k"),
  ):
    one, two = _labels(name), _labels(control)
    assert one.space == two.space
    assert sorted(one.train()["label"]) == sorted(two.train()["label"])
  two = _labels("random_pairs").columns["label"]
  assert (two != _labels("spl_raw").columns["label"]).any()


def test_unsure_predictions_are_no_pairs():
  found = dataclasses.replace(
    _predictions(), label=np.where(np.arange(12) == 0, -1, TEACHER)
  )
  method, _ = methods.parse("spl_b")
  weak, teacher = methods.given(method, WEAK, found, 0)
  space = methods.build_space(
    method, weak, teacher, found, {"fallback": "drop"}
  )
  made = methods.make_labels(method, space, weak, teacher, found)
  assert made.rows.tolist() == list(range(1, 12))
  assert space.confusion.sum() == 11
  # The weak label alone needs no teacher.
  method, _ = methods.parse("weak")
  assert (methods.given(method, WEAK, found, 0)[1] >= 0).all()


def test_updates_are_equal_or_epochs_are():
  config = _config(batch_size=2)
  settings = {"num_epochs": 3}
  assert phases.num_steps(config, settings, 12) == 18
  assert phases.num_steps(config, settings, 7) == 9
  assert methods.parse("agreement@epochs")[1]
  assert not methods.parse("agreement")[1]


def test_made_videos_in_memory():
  config = _config()
  found = sets.load(config)
  assert found.weak.clips.shape == (16, 8, 16, 16, 3)
  assert found.weak.video.tolist() == np.repeat(np.arange(8), 2).tolist()
  assert found.weak.truth.min() >= -1 and found.weak.truth.max() < 3
  assert found.classes == ["left", "right", "up"]
  assert len(found.train) == 18 and len(found.valid) == 6
  rows = [p.clips.reshape(len(p), -1) for p in (found.train, found.valid)]
  assert not (rows[0][:, None] == rows[1]).all(axis=-1).any()
  assert sets.load(config, 4).weak.clips.shape[0] == 32
  assert sets.load(config) is found  # drawn once


def test_images_have_clean_and_noisy_labels():
  found = sets.load(_config("tiny_images"))
  assert found.weak.clips.shape == (300, 8, 8, 1)
  rate = np.mean(found.weak.label != found.weak.truth)
  assert 0.3 < rate < 0.5
  wrong = found.weak.label != found.weak.truth
  np.testing.assert_array_equal(
    found.weak.label[wrong], (found.weak.truth[wrong] + 1) % 10
  )
  assert len(found.train) + len(found.valid) == 120
  counts = np.bincount(found.train.label, minlength=10)
  np.testing.assert_allclose(
    counts / (counts + np.bincount(found.valid.label)), 0.75, atol=0.1
  )


def test_own_folders_are_read_lazily(tmp_path):
  """Written as files and read back through the codec, with their truth."""
  pytest.importorskip("av")
  recipe = video_made.Recipe(num_classes=2, size=32, span=8, num_companions=1)
  numbers = video_made_files.Numbers(videos=4, train=4, test=2)
  root = video_made_files.write_sets(
    tmp_path / "own", recipe, numbers, seed=0, endings=(".mp4",)
  )
  own = {
    "data__name": "folder",
    "data__path": str(root),
    "data__in_memory": False,
    "data__size": 16,
    "data__short_side": 24,
    "data__num_classes": 0,
  }
  config = _config(**own, batch_size=2, clips_per_video=(3,))
  assert sets.num_classes(config.data.to_dict()) == 2
  found = sets.load(config)
  assert not found.weak.in_memory and len(found.weak) == 12
  assert found.weak.clips[0]["clip"].shape == (8, 24, 24, 3)
  assert found.weak.truth.shape == (12,)
  columns = {"label": np.arange(12, dtype=np.int32)}
  for crop in (False, True):
    changed = _config(**own, batch_size=2, augment__resized_crop=crop)
    batch = next(phases.batches_of(changed, found.weak, columns)(1))
    again = next(phases.batches_of(changed, found.weak, columns)(1))
    assert batch["clip"].shape == (2, 8, 16, 16, 3)
    np.testing.assert_array_equal(batch["clip"], again["clip"])
  padded = list(phases.ordered(config, found.valid))
  assert padded[0]["clip"].shape[1:] == (8, 16, 16, 3)
  # Without `test` a share of `train` serves; without `weak` it is refused.
  shutil.rmtree(root / "test")
  small = sets.load(_config(**own, data__validation=0.3))
  assert [len(p) for p in (small.train, small.valid, small.test)] == [4, 2, 2]
  shutil.rmtree(root / "weak")
  with pytest.raises(ValueError, match="folders `weak` and `train`"):
    sets.load(_config(**own, data__validation=0.4))


def test_one_crop_serves_all_frames():
  rng = np.random.default_rng(0)
  still = np.repeat(
    rng.integers(0, 256, (3, 1, 8, 8, 3), dtype=np.uint8), 5, axis=1
  )
  settings = {"crop_pad": 2, "flip": True, "resized_crop": False}
  augment = phases.Augment(settings, 8, clips=True)
  out = augment({"clip": still, "label": 1}, np.random.default_rng(1))
  assert out["label"] == 1 and out["clip"].shape == still.shape
  assert (out["clip"] == out["clip"][:, :1]).all()
  assert (out["clip"] != still).any()
  images = phases.Augment(settings, 8, clips=False)
  moved = images({"clip": still[:, 0]}, np.random.default_rng(1))["clip"]
  np.testing.assert_array_equal(moved, out["clip"][:, 0])


def test_clips_of_a_video_vote():
  part = sets.Part(None, np.array([0, 0, 1]), np.array([4, 4, 9]))
  logits = np.log([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6]])
  probs, labels = measure.by_video(logits, part)
  np.testing.assert_allclose(probs, [[0.6, 0.4], [0.4, 0.6]])
  assert labels.tolist() == [0, 1]
  found = measure.scores(logits, part)
  assert found["accuracy"] == 1.0 and found["top5"] == 1.0
  np.testing.assert_allclose(found["loss"], -np.log(0.6), rtol=1e-6)


def test_a_linear_probe_finds_what_is_linear():
  rng = np.random.default_rng(0)
  labels = np.arange(60) % 3
  x = np.eye(3)[labels] + 0.1 * rng.normal(size=(60, 3))
  part = sets.Part(None, labels[40:], np.arange(20))
  assert measure.linear_probe(x[:40], labels[:40], x[40:], part) == 1.0
  noise = rng.normal(size=(60, 3))
  assert measure.linear_probe(noise[:40], labels[:40], noise[40:], part) < 0.8


class _Cut(Exception):
  """Ends a study in the middle."""


def _cut_in(monkeypatch, method: str, step: int) -> None:
  """A study ends when the student of `method` asks for batch `step`."""
  whole = phases.batches_of

  def batches_of(config, part, columns):
    every = whole(config, part, columns)

    def cut(start):
      for k, batch in enumerate(every(start), start):
        if config.stage == "pretrain" and config.method == method and k == step:
          raise _Cut
        yield batch

    return cut

  monkeypatch.setattr(phases, "batches_of", batches_of)


def _bits(workdir: pathlib.Path) -> dict[str, str]:
  """What was made: spaces, and all numbers of all runs but times."""
  out = {}
  for path in sorted(workdir.rglob("*")):
    name = str(path.relative_to(workdir))
    if path.name in (report.SPACE, report.MEASURED):
      out[name] = path.read_text()
    if path.name == "metrics.jsonl":
      rows = [json.loads(line) for line in path.read_text().splitlines()]
      timed = ("seconds", "examples/s", "_per_second")
      out[name] = [
        {k: v for k, v in r.items() if not any(t in k for t in timed)}
        for r in rows
      ]
  return out


def test_a_study_of_images(tmp_path):
  names = ("scratch", "spl_top_k")
  config = _config("tiny_images", methods=names)
  out = experiment.run(config, str(tmp_path))
  rows = {r["method"]: r for r in out["rows"]}
  assert list(rows) == list(names)
  assert rows["spl_top_k"]["classes"] == [3]
  assert rows["spl_top_k"]["updates"] == [18]
  assert rows["spl_top_k"]["kept"][0] < 100
  assert all(0 <= r["accuracy"][0] <= 100 for r in out["rows"])
  assert pathlib.Path(out["label_spaces"]).stat().st_size > 0
  assert [pathlib.Path(p).name for p in out["pictures"]] == ["grad_cam.png"]
  # Nothing is trained again, and a folder answers for its own labels alone.
  assert experiment.evaluate(config, str(tmp_path))["rows"] == out["rows"]
  path = tmp_path / "seed_0/clips_1/predictions.npz"
  kept = files.read_arrays(path)
  kept["label"][::2] = (kept["label"][::2] + 1) % 10
  files.write_arrays(path, **kept)
  with pytest.raises(ValueError, match="labels"):
    experiment.run(config, str(tmp_path))


@pytest.mark.slow
def test_a_study_resumes_in_the_same_bits(tmp_path, monkeypatch):
  """Within a stage: the student that was cut; between: all that was before."""
  names = ("scratch", "two_heads", "spl_top_k")
  config = _config("tiny_images", methods=names, save_every=5, pictures=0)
  out = experiment.run(config, str(tmp_path / "whole"))
  with monkeypatch.context() as patched:
    _cut_in(patched, "spl_top_k", 8)
    with pytest.raises(_Cut):
      experiment.run(config, str(tmp_path / "cut"))
  name = f"seed_0/clips_1/spl_top_k/{report.SPACE}"
  before = (tmp_path / "cut" / name).read_text()
  again = experiment.run(config, str(tmp_path / "cut"))
  assert again["rows"] == out["rows"]
  found = _bits(tmp_path / "cut")
  assert found == _bits(tmp_path / "whole") and found[name] == before
  assert spl.LabelSpace.from_json(before).confusion.sum() == 300


@pytest.mark.slow
def test_a_study_of_clips(tmp_path):
  names = ("images", "weak_ciw", "data_parameters", "distillation")
  names = (*names, "spl_raw", "agreement@epochs")
  config = _config(methods=names, clips_per_video=(1, 2))
  out = experiment.run(config, str(tmp_path))
  assert len(out["rows"]) == 1 + 2 * 5
  assert [r["clips"] for r in out["rows"][:3]] == [None, 1, 2]
  last = out["rows"][-1]  # as many passes over fewer clips, 2 at least
  assert last["updates"][0] <= out["rows"][-3]["updates"][0]
  names = {pathlib.Path(p).name for p in out["pictures"]}
  assert names == {"grad_cam.png", "grad_cam_0.gif", "grad_cam_1.gif"}


def test_the_shapes_of_the_paper():
  config = config_file.get_config("paper")
  made = experiment.build(config)
  assert made.batch_shapes["clip"].shape == (256, 64, 224, 224, 3)
  found = experiment.checked(config)["fine-tuning"]
  assert found.batch_shapes["label"].shape == (256,)
