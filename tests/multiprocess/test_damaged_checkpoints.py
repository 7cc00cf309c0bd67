"""Two processes, one of which alone meets the damage, agree on what to read."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from locojax.train import checksums, distributed

_ROOT = pathlib.Path(__file__).parents[2]
_WORKER = """
import pathlib, sys
import jax
import numpy as np
from locojax.train import checkpoints, checksums, distributed, sharding

distributed.initialise()
folder, harm = pathlib.Path(sys.argv[1]), sys.argv[2]
mesh = sharding.make_mesh({"data": 2})
split = jax.NamedSharding(mesh, jax.P("data"))
whole = jax.NamedSharding(mesh, jax.P())
values = {s: np.random.default_rng(s).normal(size=(64, 64)) for s in (1, 2)}

def state(step):
  x = values[step].astype(np.float32)
  part = jax.make_array_from_callback(x.shape, split, lambda i: x[i])
  step = jax.make_array_from_callback((), whole, lambda i: np.int32(step))
  return {"params": {"x": part}, "step": step}

with checkpoints.Checkpoints(folder) as store:
  for step in (1, 2):
    store.save(step, state(step), {"step": step})
  sums = checksums.of({"x": state(2)["params"]["x"]})
  if distributed.is_main():
    # The rows of the other process.
    path = max(
      folder.glob("2/state/ocdbt.process_1/d/*"),
      key=lambda p: p.stat().st_size,
    )
    data = bytearray(path.read_bytes())
    if harm == "flip":
      data[len(data) // 2] ^= 4
    path.write_bytes(data if harm == "flip" else data[:9])
  distributed.sync("harm done")
  got, meta = store.restore(jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state(1),
  ))
  x = got["params"]["x"].addressable_shards[0]
  right = values[1].astype(np.float32)[x.index]
  same = bool(np.all(np.asarray(x.data) == right))
  print(meta["step"], same, store.steps(), sums["x"])
"""


def _port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def _start(*args):
  """The worker twice, with one device each."""
  address = f"127.0.0.1:{_port()}"
  for i in range(2):
    env = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "1",
      distributed.COORDINATOR: address,
      distributed.NUM_PROCESSES: "2",
      distributed.PROCESS_ID: str(i),
    }
    yield subprocess.Popen(
      [sys.executable, "-c", _WORKER, *args],
      cwd=_ROOT,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_damage_that_one_process_meets(tmp_path, harm):
  processes = list(_start(str(tmp_path / "ckpt"), harm))
  try:
    said = [p.communicate(timeout=100) for p in processes]
  finally:
    for p in processes:
      p.kill()
  assert [p.returncode for p in processes] == [0, 0], said
  x = np.random.default_rng(2).normal(size=(64, 64)).astype(np.float32)
  right = f"1 True [1] {checksums.of({'x': jnp.asarray(x)})['x']}"
  assert [out.splitlines()[-1] for out, _ in said] == [right, right]
  assert all("checkpoint 2 is unreadable" in err for _, err in said)
  assert (tmp_path / "unreadable" / "2").is_dir()
