"""The study of prediction differences: settings, its tiny run, figures."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from experiments.common import stages
from experiments.smelu import experiment, pd_report, plane, surfaces, tasks
from experiments.smelu.configs import plane as configs
from locojax.core import files
from locojax.report import results
from locojax.train import replicas


def _tiny(**changes):
  config = configs.get_config("tiny").copy_and_resolve_references()
  with config.unlocked():
    config.update({"mesh": {"data": 1}, **changes})
  return config


@pytest.fixture(scope="module", autouse=True)
def _one_device():
  # The mesh of a tiny run is one device of the eight virtual ones.
  make = stages.sharding.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      stages.sharding,
      "make_mesh",
      lambda axes: make(axes, jax.devices()[:1]),
    )
    yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("plane")
  out = folder / "out.json"
  config = _tiny(results=str(out))
  return folder, experiment.run(config, str(folder)), out


def test_tiny_study_ends_in_a_table_and_a_figure(finished):
  folder, out, path = finished
  rows = {(r["condition"], r["setting"]): r for r in out["rows"]}
  assert set(rows) == set(plane.points(_tiny()))
  relu = rows["window_1000", "relu"]
  assert relu["pd_to_relu"] == 1 and relu["loss_change_percent"] == 0
  assert all(r["pairs"] == 3 for r in rows.values())
  assert all(
    r["pd_low"] <= r["pd_percent"] <= r["pd_high"] for r in out["rows"]
  )
  assert rows["window_1000", "relu*2"]["trainings"] == 2
  assert (folder / "plane.png").read_bytes().startswith(b"\x89PNG")
  assert results.load(path)["rows"][0]["data"] == "synthetic_ctr"


def test_predictions_are_what_the_report_command_reads(finished, capsys):
  folder, _, _ = finished
  pd_report.main([str(plane.folder(folder, "init_only", "relu"))])
  assert "relative PD, pairwise" in capsys.readouterr().out


def test_a_checkpoint_does_as_well_as_its_predictions(finished, tmp_path):
  folder, _, _ = finished
  source = plane.folder(folder, "init_only", "relu")
  copy = tmp_path / "run"
  shutil.copytree(source, copy)
  (copy / "predictions.npz").unlink()
  models, extras = pd_report.load_models(copy)
  with np.load(source / "predictions.npz") as f:
    np.testing.assert_array_equal(np.stack(models), f["replicas"])
    np.testing.assert_array_equal(extras["labels"], f["labels"])
  (copy / "predictions.npz").unlink()
  (copy / "result.json").unlink()
  with pytest.raises(ValueError, match="not finished"):
    pd_report.load_models(copy)


def test_ensembles_hold_all_their_members(finished):
  folder, _, _ = finished
  with np.load(
    plane.folder(folder, "window_1000", "relu*2") / "predictions.npz"
  ) as f:
    assert f["replicas"].shape == (6, 500)


def test_run_again_trains_nothing(finished):
  folder, out, _ = finished
  stamp = lambda: {
    p: p.stat().st_mtime_ns for p in folder.rglob("predictions.npz")
  }
  before = stamp()
  again = experiment.run(_tiny(), str(folder))
  assert stamp() == before and again["rows"] == out["rows"]


def test_a_warm_start_starts_from_one_model(finished):
  folder, _, _ = finished
  rate = files.read_json(folder / "learning_rates.json")["relu"]
  config = _tiny(setting="relu+warm", learning_rate=rate)
  params = experiment._warm_params(config, folder)
  made = experiment.build(config, params)
  state = made.init(jax.random.key(0))
  for r in range(config.num_replicas):
    mine = replicas.slice_state(state, r).params
    jax.tree.map(np.testing.assert_array_equal, mine, params)


def test_settings():
  assert experiment.parse_setting("relu*3") == experiment.Setting("relu", 3)
  warm = experiment.Setting("smelu:0.5", 1, True)
  assert experiment.parse_setting("smelu:0.5+warm") == warm
  for bad in ("relu*x", "relu+cold", "relu*0"):
    with pytest.raises(ValueError, match="setting|ensemble"):
      experiment.parse_setting(bad)


def test_nothing_varies_nothing_differs(tmp_path):
  config = _tiny(
    data={"num_train": 300, "num_test": 50},
    conditions={"none": {"vary": (), "window": 100}},
    condition="none",
    learning_rate=0.1,
  )
  preds = experiment._predicted(config, tmp_path)
  assert preds.shape == (3, 50)
  np.testing.assert_array_equal(preds[0], preds[1])
  np.testing.assert_array_equal(preds[0], preds[2])


@pytest.mark.parametrize("vary", [("labels",), ("order",)])
def test_classes(vary, tmp_path):
  config = _tiny(
    data={"name": "digits", "num_train": 400, "num_test": 100},
    model={"hidden": (16,), "normalization": ""},
    conditions={"one": {"vary": vary, "window": 100}},
    condition="one",
    learning_rate=0.1,
    num_epochs=5,
    batch_size=20,
  )
  preds = experiment._predicted(config, tmp_path)
  labels = np.load(tmp_path / "predictions.npz")["labels"]
  assert preds.shape == (3, 100, 10)
  # With numbers brought back to the order of the data, all do well.
  assert ((preds.argmax(-1) == labels).mean(-1) > 0.7).all()
  found = plane.measure(config, tmp_path)
  assert 0 < found["pd_percent"] < 100 and found["swap_percent"] is None


def test_validation_is_the_end_of_the_training_data():
  task = tasks.make(dict(_tiny().data), dict(_tiny().model), "relu")
  cut = tasks.validation(task, 0.1)
  assert len(cut.train["label"]) == 1800 and len(cut.test["label"]) == 200
  np.testing.assert_array_equal(
    cut.test["categorical"], task.train["categorical"][1800:]
  )


def test_rates_come_from_the_config():
  with pytest.raises(ValueError, match="learning_rate=0"):
    experiment.build(_tiny())
  with pytest.raises(ValueError, match="variant='huge'"):
    configs.get_config("huge")
  with pytest.raises(ValueError, match="data.name='mnits'"):
    experiment.build(_tiny(data={"name": "mnits"}, learning_rate=0.1))


def test_wider_transitions_have_fewer_minima(tmp_path):
  surfaces.main(["--workdir", str(tmp_path)])
  rows = json.loads((tmp_path / "surfaces.json").read_text())["rows"]
  rough = {row["activation"]: row for row in rows}
  bends = [rough[name]["second_difference"] for name in surfaces.SURFACES]
  assert bends == sorted(bends, reverse=True)
  assert rough["smelu:8"]["local_minima"] < rough["relu"]["local_minima"]


def test_roughness_of_a_bowl():
  line = np.linspace(-1, 1, 11)
  bowl = line[:, None] ** 2 + line[None] ** 2
  found = surfaces.roughness(bowl)
  assert found["local_minima"] == 1
  assert found["second_difference"] == pytest.approx(2 * 0.2**2)
