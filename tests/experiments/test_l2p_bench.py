"""The benchmark of L2P: what it compares, its peers, its committed results."""

from __future__ import annotations

import pathlib
import sys

import jax
import numpy as np
import pytest

from experiments.common import peers
from experiments.l2p import bench, experiment
from experiments.l2p.configs import streams
from locojax.core import trees
from locojax.report import results

ROOT = pathlib.Path(__file__).parents[2]
STUB = """
import json, sys
told = {"torch": "1.2.3", "timm": "4.5.6", "threads": 2}
print(json.dumps({**told, "argv": sys.argv[1:]}), flush=True)
for line in sys.stdin:
  assert line == "step\\n"
  print(0.5, flush=True)
"""


@pytest.fixture
def stub(tmp_path):
  path = tmp_path / "stub.py"
  path.write_text(STUB)
  return path


def _config(**changes):
  config = streams.get_config("tiny").copy_and_resolve_references()
  with config.unlocked():
    config.needs_data = False
    config.update(changes)
  return config


def test_a_stepper_answers_until_it_is_closed(stub):
  with peers.stepper([sys.executable, str(stub), "--fused"]) as step:
    assert step.told["argv"] == ["--fused"]
    step(), step()
  assert step._process.returncode == 0


def test_a_stepper_that_dies_is_an_error(tmp_path):
  path = tmp_path / "dies.py"
  path.write_text("import sys; print('{}', flush=True); sys.exit(3)")
  with peers.stepper([sys.executable, str(path)]) as step:
    step._process.wait()
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
      step()


@pytest.mark.slow
def test_the_official_way_is_the_clip_over_all():
  """Learning rate 0 leaves the backbone alone, at another price."""
  config = _config(clip_scope="all", cache_queries=False)
  ours, official = experiment.build(config), bench.official(config)
  batch = bench.random_batch(ours.batch_shapes)
  states = [jax.jit(m.init)(jax.random.key(0)) for m in (ours, official)]
  before = trees.flatten(states[0].params)
  after = [
    trees.flatten(jax.jit(m.step)(s, batch)[0].params)
    for m, s in zip((ours, official), states)
  ]
  assert set(after[0]) == set(after[1]) == set(before)
  for path, old in before.items():
    if path.startswith("backbone"):
      np.testing.assert_array_equal(after[1][path], old)
    else:
      np.testing.assert_allclose(
        after[1][path], after[0][path], rtol=1e-4, atol=1e-5
      )
  small, large = (len(jax.tree.leaves(s.opt_state)) for s in states)
  assert large > 2 * small


@pytest.mark.slow
def test_the_step_has_no_more_operations_than_its_floor():
  """It leaves out what the last block would compute for nobody."""
  config = _config(cache_queries=False)
  step, given = bench.step_program(config)
  floor = bench.floor_programs(config, *given)
  total = sum(program.flops for program in floor.values())
  assert 0.5 * total < step.flops < total
  cached = bench.step_program(_config(cache_queries=True))[0]
  assert 0.4 * floor["query"].flops < step.flops - cached.flops


@pytest.mark.slow
def test_the_benchmark_has_a_row_for_each_pair(tmp_path, stub, monkeypatch):
  monkeypatch.setattr(bench, "_PEER", stub)
  path = str(tmp_path / "bench.json")
  argv = "--preset Ti/16 --image-size 16 --batch 2 --rounds 1 --where cpu "
  argv += f"--memory-preset Ti/16 --memory-batch 2 --peer {sys.executable}"
  bench.main([*argv.split(), "--results", path])
  found = results.load(path)
  times = [r for r in found["rows"] if r["what"] == "time"]
  memory = [r for r in found["rows"] if r["what"] == "memory"]
  assert all(row["ratio"] > 0 for row in times)
  pairs = {(row["name"], row["reference"]) for row in times}
  assert set(bench.TARGETS) <= pairs and ("step", "peer_fused") in pairs
  assert [row["name"] for row in memory] == ["official", "ours", "ours"]
  assert all(row["optimizer_ratio"] < 0.1 for row in memory[1:])
  assert "PEER/bin/python" in found["command"]
  assert sys.executable not in found["command"] and "1.2.3" in found["notes"]
