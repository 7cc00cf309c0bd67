#!/usr/bin/env bash
# Package:  libtpu (compiled ahead of time through jax, without a TPU)
# Version:  libtpu 0.0.42.1, jax 0.10.2
# Expected: a function compiled for a mesh of two slices of four devices is a
#           program of eight partitions, whose sum over all devices is a
#           collective with the group {{0,1,2,3,4,5,6,7}}.
# Happens:  the text is a program of four partitions, those of one slice. Its
#           collectives have the group {{0,1,2,3}} with global ids, whichever
#           slice they run on; the part of the sum between the slices is no
#           collective but a host send and receive, whose attributes say so.
# Matters:  who holds the groups against the mesh of eight finds no axis for
#           them, takes half of the devices for idle, and counts the traffic of
#           the slowest link as nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'jax==0.10.2' \
  'jaxlib==0.10.2' \
  'libtpu==0.0.42.1' \
  'numpy==2.4.6'
cd "$work"
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost \
  "$work/venv/bin/python" -I - <<'END'
import os
import re
import sys

import libtpu

os.environ["TPU_LIBRARY_PATH"] = libtpu.get_library_path()
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

found = topologies.get_topology_desc(
  platform="tpu", topology_name="v5e:2x2", num_slices=2
)
devices = np.array(found.devices).reshape(2, 4)
mesh = jax.sharding.Mesh(devices, ("slice", "chip"))


def array(shape, *spec):
  return jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(*spec))
  )


def step(w, x):
  return w - jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)


w, x = array((512, 512)), array((4096, 512), ("slice", "chip"))
text = (
  jax.jit(step, out_shardings=w.sharding)
  .trace(w, x)
  .lower(lowering_platforms=("tpu",))
  .compile()
  .as_text()
)
collective = re.compile(r" (all-reduce|reduce-scatter|all-gather)\(.*")
lines = [m[0] for m in map(collective.search, text.splitlines()) if m]
groups = {re.search(r"replica_groups=(\{\{.*?\}\}|\S+)", x)[1] for x in lines}
world = all("use_global_device_ids=true" in line for line in lines)
parts = int(re.search(r"num_partitions=(\d+)", text)[1])
sends = re.findall(r" send\(.*?_xla_megascale_transfer_type=\"(\w+)\"", text)
print(f"libtpu {libtpu.__version__}, jax {jax.__version__}: {parts} partitions")
print(f"  groups of {len(lines)} collectives: {sorted(groups)}")
print(f"  all with global ids: {world}; sends to other slices: {sends}")
if (parts, groups, world, sends) != (4, {"{{0,1,2,3}}"}, True, ["ALL_REDUCE"]):
  sys.exit("changed: groups, ids or sends are others.")
print("so: the program is one slice's, and the sum between them a send.")
END
