"""Runs at combinations of settings, and runs compared."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import compare, sweep

ROOT = pathlib.Path(__file__).parents[2]
TOY = "tests/train/toy_config.py"


def _write(folder, *, last=1.0, finished=True, **config):
  """A run folder with three lines of metrics."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(config))
  lines = [
    {"step": s, "seconds": 0.5 * s, "test/loss": last + 3 - s, "train/loss": s}
    for s in (1, 2, 3)
  ]
  (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  if finished:
    (folder / "result.json").write_text("{}")


@pytest.fixture
def study(tmp_path):
  """Two rates with two seeds each; one run is not finished."""
  for rate in (0.1, 0.2):
    for seed in (0, 1):
      _write(
        tmp_path / f"r{rate}_{seed}",
        last=10 * rate + seed,
        finished=(rate, seed) != (0.2, 1),
        **{"seed": seed, "log_every": seed, "model": {"rate": rate, "w": [1]}},
      )
  return tmp_path


def test_runs_are_told_apart_by_what_differs(study):
  found = compare.runs.load_all(study)
  groups = compare.labelled(found)
  assert {k: len(v) for k, v in groups.items()} == {
    "model.rate=0.1": 2,
    "model.rate=0.2": 2,
  }
  rows = compare.rows_of(groups, compare.metrics_of(groups))
  assert [r["test/loss"] for r in rows] == [[1.0, 2.0], [2.0, 3.0]]
  assert [(r["runs"], r["finished"]) for r in rows] == [(2, 2), (2, 1)]
  assert rows[0]["steps"] == [3.0, 3.0] and rows[0]["seconds"] == [1.5, 1.5]


def test_settings_may_be_named(study):
  groups = compare.labelled(compare.runs.load_all(study), ["seed"])
  # Two runs of a seed differ in more: they are no repetitions of each other.
  assert len(groups) == 4 and all("seed=" in name for name in groups)
  with pytest.raises(ValueError, match="--by"):
    compare.labelled(compare.runs.load_all(study), ["learning_rat"])


def test_equal_runs_are_told_apart_by_their_folders(tmp_path):
  for name in ("a", "b"):
    _write(tmp_path / name, seed=0)
  groups = compare.labelled(compare.runs.load_all(tmp_path))
  assert [pathlib.Path(name).name for name in groups] == ["a", "b"]


def test_compare_writes_a_table_and_a_figure(study, capsys):
  out = study / "out"
  compare.main([str(study), "--metric", "train/loss", "--out", str(out)])
  said = capsys.readouterr().out
  assert (out / "table.md").read_text().strip() in said
  assert "test/loss" not in said and "train/loss" in said
  assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
  "argv, said",
  [
    (["nowhere"], "nowhere"),
    ([".", "--metric", "test/accurac"], "--metric"),
    ([".", "--by", "rate"], "--by"),
    ([".", "--x", "epoch", "--out", "o"], "epoch"),
  ],
)
def test_what_cannot_be_compared_is_named(study, monkeypatch, argv, said):
  monkeypatch.chdir(study)
  with pytest.raises(ValueError, match=said):
    compare.main(argv)


def test_points_are_all_combinations_and_folders_differ():
  made = sweep.points([["config.a", "1", "2"], ["b.c", "(1,)", "[1,]"]])
  assert made[1] == (("a", "1"), ("b.c", "[1,]")) and len(made) == 4
  names = sweep.folders(made)
  assert len(set(names)) == 4 and names[0] == "a=1,b.c=_1,_"
  command = sweep.command_of("F:v", pathlib.Path("w"), made[0], ["--debug"])
  assert command[-3:] == ["--debug", "--config.a=1", "--config.b.c=(1,)"]


@pytest.mark.parametrize(
  "over", [[], [["a"]], [["a", "1", "1"]], [["a", "1"], ["config.a", "2"]]]
)
def test_a_bad_list_is_refused(over):
  with pytest.raises(ValueError, match="--over"):
    sweep.points(over)
  with pytest.raises(ValueError, match="dotted name"):
    sweep.points([["a-b", "1"]])


def test_one_failure_does_not_end_the_others(tmp_path, capsys):
  made, asked = sweep.points([["a", "1", "2", "3"]]), []

  def call(command):
    asked.append(command[-1])
    return 2 if command[-1].endswith("=2") else 0

  codes = sweep.sweep("F", str(tmp_path), made, call=call)
  assert codes == {"a=1": 0, "a=2": 2, "a=3": 0} and len(asked) == 3
  said = capsys.readouterr().out
  assert "a=2 failed (2)" in said and "[3/3] a=3" in said
  with pytest.raises(KeyboardInterrupt):
    sweep.sweep("F", str(tmp_path), made, call=lambda command: 130)


def test_a_sweep_stops_with_its_run_goes_on_and_compares(tmp_path):
  command = [sys.executable, "-m", "experiments.sweep", "--config"]
  command += [f"{TOY}:slow", "--workdir", str(tmp_path)]
  command += ["--over", "num_steps", "30", "40"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  settings = {"cwd": ROOT, "env": environment, "text": True}
  first = subprocess.Popen(command, **settings, stdout=subprocess.PIPE)
  end = time.monotonic() + 120
  while not list(tmp_path.rglob("metrics.jsonl")) and time.monotonic() < end:
    time.sleep(0.1)
  first.send_signal(signal.SIGTERM)
  assert first.wait(60) == 0
  assert not (tmp_path / "num_steps=40").exists()
  run = subprocess.run(
    [*command, "--metric", "train/loss"],
    **settings,
    capture_output=True,
    timeout=240,
  )
  assert run.returncode == 0, run.stderr
  assert "num_steps=40" in (tmp_path / "table.md").read_text()
  assert (tmp_path / "curves.png").exists()
