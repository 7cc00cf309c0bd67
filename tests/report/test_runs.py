import json

import numpy as np
import pytest

from locojax.report import runs


def _run(folder, lines, config=None, result=None, tail=""):
  folder.mkdir(parents=True)
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text + tail)
  if config is not None:
    (folder / "config.json").write_text(json.dumps(config))
  if result is not None:
    (folder / "result.json").write_text(json.dumps(result))
  return folder


LINES = [
  {"step": 0, "seconds": 0.0, "test/loss": 9.0},
  {"step": 10, "seconds": 1.0, "train/loss": 5.0},
  {"step": 10, "seconds": 1.2, "test/loss": 6.0},
  {"step": 20, "seconds": 2.0, "train/loss": 4.0},
]


def test_load_and_series(tmp_path):
  run = runs.load(_run(tmp_path / "a", LINES, {"seed": 0}, {"step": 20}))
  assert run.finished and run.config == {"seed": 0}
  x, y = runs.series(run, "train/loss")
  assert x.tolist() == [10, 20] and y.tolist() == [5, 4]
  x, _ = runs.series(run, "train/loss", x="seconds")
  assert x.tolist() == [1, 2]
  x, _ = runs.series(run, "test/loss", x="epoch", steps_per_epoch=5)
  assert x.tolist() == [0, 2]
  assert runs.final(run, "test/loss") == 6
  assert runs.best(run, "train/loss") == 4
  assert runs.best(run, "train/loss", "max") == 5
  assert runs.at(run, "test/loss", "seconds", 1.0) == 9
  with pytest.raises(ValueError, match="first logged at step=10"):
    runs.at(run, "train/loss", "step", 9)


@pytest.mark.parametrize(
  "tail", ['{"step": 30, "tr', '{"step', "3", "\x00\x00"]
)
def test_half_written_last_line_is_left_out(tail, tmp_path):
  run = runs.load(_run(tmp_path / "a", LINES, tail=tail))
  assert len(run.metrics) == 4 and not run.finished and run.config == {}


def test_damage_elsewhere_is_named(tmp_path):
  folder = _run(tmp_path / "a", LINES, tail='{"step"\n{"step": 40}\n')
  with pytest.raises(ValueError, match="metrics.jsonl, line 5"):
    runs.load(folder)
  (folder / "metrics.jsonl").write_text("")
  (folder / "result.json").write_text("{")
  with pytest.raises(ValueError, match="result.json is damaged"):
    runs.load(folder)


def test_a_step_logged_twice_counts_once_and_nan_reads(tmp_path):
  again = [*LINES, {"step": 10, "seconds": 3.0, "train/loss": float("nan")}]
  x, y = runs.series(runs.load(_run(tmp_path / "a", again)), "train/loss")
  assert x.tolist() == [10, 20]
  np.testing.assert_array_equal(y, [np.nan, 4.0])


def test_misses_list_what_there_is(tmp_path):
  run = runs.load(_run(tmp_path / "a", LINES))
  with pytest.raises(ValueError, match="did you mean 'train/loss'"):
    runs.series(run, "train/los")
  with pytest.raises(ValueError, match="steps_per_epoch"):
    runs.series(run, "train/loss", x="epoch")
  with pytest.raises(FileNotFoundError, match="not a run folder"):
    runs.load(tmp_path)
  with pytest.raises(FileNotFoundError, match="no run folder"):
    runs.load_all(tmp_path / "a" / "b")


def test_load_all_and_group_seeds(tmp_path):
  for name in ("adam", "sgd"):
    for seed in (1, 0):
      config = {"optimizer": {"name": name}, "seed": seed, "w": [1, 2]}
      _run(tmp_path / name / f"seed_{seed}", LINES, config)
  found = runs.load_all(tmp_path)
  assert [r.path.name for r in found] == ["seed_0", "seed_1"] * 2
  assert runs.load_all([tmp_path / "adam", tmp_path])[0].path == found[0].path
  groups = runs.group(found, "optimizer.name")
  assert {k: len(v) for k, v in groups.items()} == {"adam": 2, "sgd": 2}
  assert [len(v) for v in runs.group(found).values()] == [2, 2]
  assert list(runs.group(found, ["seed", "w"])) == [
    (0, "[1, 2]"),
    (1, "[1, 2]"),
  ]
  with pytest.raises(ValueError, match="by='optimiser.name'"):
    runs.group(found, "optimiser.name")
