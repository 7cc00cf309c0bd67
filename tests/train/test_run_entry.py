"""`python -m experiments.run`: what it runs, and how it refuses."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_CONFIG = "tests/train/toy_config.py"


def _run(*args, **env):
  return subprocess.run(
    [sys.executable, "-m", "experiments.run", *map(str, args)],
    cwd=_ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", **env},
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_run_then_eval(tmp_path):
  args = ("--config", _CONFIG, "--config.num_steps=6")
  done = _run(*args, "--workdir", tmp_path)
  assert done.returncode == 0, done.stderr
  assert "stage_0 6/6" in done.stderr
  folder = tmp_path / "stage_0"
  result = json.loads((folder / "result.json").read_text())
  assert result["step"] == 6
  assert json.loads((folder / "config.json").read_text())["num_steps"] == 6

  told = _run(*args, "--workdir", folder, "--mode", "eval")
  assert told.returncode == 0, told.stderr
  values = json.loads(told.stdout)
  assert values["step"] == 6
  assert values["weights/norm"] == result["values"]["weights/norm"]


@pytest.mark.parametrize(
  "args, said",
  [
    (("--config.num_stps=3",), 'Did you mean "num_steps"'),
    (("--config.mesh.dta=3",), 'Did you mean "data"'),
    (("--config.num_steps=abc",), "num_steps"),
    (("--worksdir=x",), "Did you mean: workdir"),
    (("--mode=chek",), "did you mean 'check'"),
    (("extra",), "extra"),
  ],
)
def test_mistakes_in_flags_are_refused(args, said, tmp_path):
  out = _run("--config", _CONFIG, "--workdir", tmp_path / "w", *args)
  assert out.returncode == 2
  assert out.stderr.count("\n") == 1
  assert out.stderr.startswith("error: ")
  assert said in out.stderr
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  "args, said",
  [
    (("--config", _CONFIG), "--workdir is missing"),
    (("--workdir", "w"), "--config is missing"),
    (("--config", "nope.py:tiny"), "no file 'nope.py'"),
    (("--config", _CONFIG + ":tony"), "variant='tony' is not allowed"),
    (
      ("--config", _CONFIG, "--workdir=w", "--config.experiment=toyy"),
      "config.experiment='toyy'",
    ),
    (
      ("--config", _CONFIG, "--workdir=w", "--config.experiment=json"),
      "no build and no run",
    ),
    (("--config", _CONFIG, "--workdir=w", "--mode=eval"), "workdir='w'"),
  ],
)
def test_mistakes_in_files_and_modules_are_refused(args, said):
  out = _run(*args)
  assert out.returncode == 2
  assert out.stderr.count("\n") == 1
  assert out.stderr.startswith("error: ")
  assert said in out.stderr


def test_debug_shows_the_traceback():
  out = _run("--config", _CONFIG, "--debug")
  assert out.returncode == 2
  assert "Traceback" in out.stderr


def test_non_finite_loss_is_one_line_and_a_code(tmp_path):
  out = _run("--config", _CONFIG, "--workdir", tmp_path, "--config.bad=2")
  assert out.returncode == 2
  assert "the loss of batch 2 (update 3) is not finite" in out.stderr
  assert "Traceback" not in out.stderr


def test_check_prints_a_report_or_the_reason():
  out = _run("--config", _CONFIG, "--mode", "check")
  assert out.returncode == 0, out.stderr
  assert "params/dense/kernel" in out.stdout
  out = _run("--config", _CONFIG, "--mode=check", "--config.mesh.data=3")
  assert out.returncode == 1
  assert "not a multiple of 3" in out.stderr
