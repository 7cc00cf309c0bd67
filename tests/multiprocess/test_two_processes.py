"""Two real processes under `jax.distributed`, by the ordinary entry point."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from locojax.train import distributed

_ROOT = pathlib.Path(__file__).parents[2]


def _port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


_TOY = "tests/train/toy_config.py"


def _start(folder, count, *args, variant="tiny", config=_TOY):
  """The same command `count` times."""
  address = f"127.0.0.1:{_port()}"
  processes = []
  for i in range(count):
    env = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": str(2 // count),
      "PYTHONUNBUFFERED": "1",
    }
    if count > 1:
      env[distributed.COORDINATOR] = address
      env[distributed.NUM_PROCESSES] = str(count)
      env[distributed.PROCESS_ID] = str(i)
    processes.append(
      subprocess.Popen(
        [
          *(sys.executable, "-m", "experiments.run"),
          *("--config", f"{config}:{variant}"),
          *("--workdir", str(folder), *args),
        ],
        cwd=_ROOT,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return processes


def _finish(processes, seconds=120):
  end = time.monotonic() + seconds
  try:
    return [p.communicate(timeout=end - time.monotonic())[1] for p in processes]
  finally:
    for p in processes:
      p.kill()


def _run(folder, count, *args, seconds=120, **settings):
  processes = _start(folder, count, *args, **settings)
  said = _finish(processes, seconds)
  assert [p.returncode for p in processes] == [0] * count, "\n".join(said)
  return said


def _rows(folder):
  path = folder / "stage_0" / "metrics.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


def _close(rows, others, rel=1e-5):
  assert len(rows) == len(others)
  for row, other in zip(rows, others, strict=True):
    assert row == pytest.approx(other, rel=rel)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  """Rows of one process with two devices."""
  folder = tmp_path_factory.mktemp("one")
  _run(folder, 1)
  return _rows(folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """Folder of two processes with one device each."""
  folder = tmp_path_factory.mktemp("two")
  return folder, _run(folder, 2)


def test_two_processes_are_one_run(one, two):
  folder, said = two
  _close(_rows(folder), one)
  result = json.loads((folder / "stage_0" / "result.json").read_text())
  assert result["num_processes"] == 2 and result["num_devices"] == 2
  assert "20/20" in said[0] and "20/20" not in said[1]


def test_a_finished_run_of_two_returns_at_once(two):
  folder, _ = two
  assert "already finished" in _run(folder, 2)[0]


def test_a_checkpoint_of_two_serves_one(one, two, tmp_path):
  folder, _ = two
  rows = _rows(folder)
  _run(folder, 1, "--config.num_steps=24")
  assert _rows(folder)[: len(rows)] == rows
  assert _rows(folder)[-1]["step"] == 24


@pytest.mark.slow
def test_experts_over_two_processes_are_those_of_one(tmp_path):
  parts = {}
  for count in (1, 2):
    folder = tmp_path / str(count)
    _run(folder, count, config="tests/experiments/limoe_config.py")
    read = lambda name, folder=folder: (
      folder / "limoe" / "seed_0" / name
    ).read_text()
    rows = [json.loads(line) for line in read("metrics.jsonl").splitlines()]
    for row in rows:
      row.pop("seconds")
    parts[count] = rows, read("params.txt")
    assert "P('expert'" in parts[count][1]
  _close(parts[2][0], parts[1][0], rel=1e-3)


@pytest.mark.slow
def test_rounds_noise_and_server_of_two_are_those_of_one(tmp_path):
  where = "tree_honaker/rho_1/seed_0"
  parts = {}
  for count in (1, 2):
    folder = tmp_path / str(count)
    _run(folder, count, config="tests/experiments/dp_ftrl_config.py")
    read = lambda name, folder=folder: (folder / where / name).read_text()
    rows = [json.loads(line) for line in read("metrics.jsonl").splitlines()]
    for row in rows:
      row.pop("seconds")
    parts[count] = rows, read("params.txt"), read("ledger.jsonl")
  _close(parts[2][0], parts[1][0])
  assert parts[1][2] == parts[2][2]
  sums = [
    [float(x) for x in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", parts[n][1])]
    for n in (1, 2)
  ]
  assert sums[0] and sums[1] == pytest.approx(sums[0], rel=1e-4)


def _in_training(folder, processes):
  path = folder / "stage_0" / "metrics.jsonl"
  end = time.monotonic() + 60
  while time.monotonic() < end:
    if path.exists() and "train/loss" in path.read_text():
      return
    assert all(p.poll() is None for p in processes)
    time.sleep(0.01)
  raise AssertionError("no progress")


@pytest.mark.parametrize("who", [0, 1])
def test_sigterm_to_one_stops_both_at_one_step(one, two, tmp_path, who):
  args = ("--config.save_every=1000", "--config.num_steps=60")
  processes = _start(tmp_path, 2, *args, variant="slow")
  _in_training(tmp_path, processes)
  processes[who].send_signal(signal.SIGTERM)
  said = _finish(processes)
  assert [p.returncode for p in processes] == [0, 0], "\n".join(said)
  steps = {re.search(r"stopped at step (\d+)", s)[1] for s in said}
  assert len(steps) == 1
  step = int(steps.pop())
  assert 5 <= step < 60
  assert (tmp_path / "stage_0" / "ckpt" / str(step)).is_dir()


def test_kill_both_and_resume(two, tmp_path):
  processes = _start(tmp_path, 2, variant="slow")
  _in_training(tmp_path, processes)
  for p in processes:
    p.kill()
  _finish(processes)
  assert not (tmp_path / "stage_0" / "result.json").exists()
  said = _run(tmp_path, 2)
  assert "resumed at step" in said[0]
  assert _rows(tmp_path) == _rows(two[0])[: len(_rows(tmp_path))]


def test_all_three_variables_are_needed():
  env = {distributed.COORDINATOR: "localhost:1", distributed.PROCESS_ID: "0"}
  with pytest.raises(ValueError, match=f"{distributed.NUM_PROCESSES} is not"):
    distributed.initialise(env)


@pytest.mark.parametrize(
  "count, index, name",
  [("two", "0", "NUM_PROCESSES"), ("2", "2", "PROCESS_ID")],
)
def test_wrong_variables_are_named(count, index, name):
  env = {
    distributed.COORDINATOR: "localhost:1",
    distributed.NUM_PROCESSES: count,
    distributed.PROCESS_ID: index,
  }
  with pytest.raises(ValueError, match=f"LOCOJAX_{name}="):
    distributed.initialise(env)


@pytest.mark.parametrize(
  "env",
  [
    {},
    {"SLURM_STEP_NUM_TASKS": "1"},
    {"TPU_WORKER_HOSTNAMES": "localhost"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    {"SLURM_STEP_NUM_TASKS": "8", distributed.AUTO: "0"},
    {
      distributed.COORDINATOR: "localhost:1",
      distributed.NUM_PROCESSES: "1",
      distributed.PROCESS_ID: "0",
    },
  ],
)
def test_one_process_needs_nothing(env):
  assert distributed.initialise(env) is False


@pytest.mark.parametrize(
  "env",
  [
    {"SLURM_STEP_NUM_TASKS": "8"},
    {"TPU_WORKER_HOSTNAMES": "a,b"},
    {"MEGASCALE_COORDINATOR_ADDRESS": "a"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
    {distributed.AUTO: "1"},
  ],
)
def test_clusters_are_left_to_jax(env, monkeypatch):
  seen = []
  monkeypatch.setattr(
    distributed.jax.distributed, "initialize", lambda **kw: seen.append(kw)
  )
  distributed.initialise(env)
  assert seen == [{}]


@pytest.mark.slow
def test_detection_over_two_processes_is_that_of_one(tmp_path):
  parts = {}
  for count in (1, 2):
    folder = tmp_path / str(count)
    _run(folder, count, config="tests/experiments/pix2seq_config.py")
    where = folder / "augmented" / "seed_0"
    rows = [
      json.loads(line)
      for line in (where / "metrics.jsonl").read_text().splitlines()
    ]
    for row in rows:
      row.pop("seconds")
    found = json.loads((where / "detections.json").read_text())
    parts[count] = rows, found
    assert (folder / "detections.png").exists()
  _close(parts[2][0], parts[1][0], rel=1e-3)
  told = lambda found: sorted(
    (d["image_id"], d["category_id"], *d["bbox"]) for d in found
  )
  assert told(parts[2][1]) == told(parts[1][1])


@pytest.mark.slow
def test_labels_and_students_of_two_processes_are_those_of_one(tmp_path):
  parts = {}
  for count in (1, 2):
    folder = tmp_path / str(count)
    config = "tests/experiments/spl_config.py"
    _run(folder, count, config=config, seconds=400)
    line = folder / "seed_0"
    spaces = [p.read_text() for p in sorted(line.rglob("label_space.json"))]
    rows = []
    for path in sorted(line.rglob("metrics.jsonl")):
      rows += [json.loads(text) for text in path.read_text().splitlines()]
    for row in rows:
      row.pop("seconds")
    parts[count] = spaces, rows
  assert len(parts[1][0]) == 2 and parts[2][0] == parts[1][0]
  _close(parts[2][1], parts[1][1], rel=1e-3)
