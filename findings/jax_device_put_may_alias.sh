#!/usr/bin/env bash
# Package:  jax (device_put, several devices of one host)
# Version:  jax 0.10.2
# Expected: with may_alias=False the result shares no memory with its input,
#           on any device.
# Happens:  where the new sharding has a copy on every device, the copy on the
#           device that held the input is the input's own memory. To one device
#           or to the same sharding, it is a true copy.
# Matters:  may_alias=False is asked for before a buffer is given away. What is
#           made from the result, in place, changes the input, and two results
#           of one input are tied to each other. A copy inside a compiled
#           function is a copy on all devices.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'jax==0.10.2' \
  'jaxlib==0.10.2' \
  'numpy==2.4.6'
cd "$work"
JAX_PLATFORMS=cpu "$work/venv/bin/python" -I - <<'END'
import sys

import jax
import jax.numpy as jnp

jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.make_mesh((4,), ("data",))
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def places(x):
  return {s.data.unsafe_buffer_pointer() for s in x.addressable_shards}


given = jnp.arange(3.0)
same = jax.device_put(given, given.sharding, may_alias=False)
put = jax.device_put(given, everywhere, may_alias=False)
copied = jax.jit(jnp.copy, out_shardings=everywhere)(given)
found = {
  "device_put to its own sharding": len(places(same) & places(given)),
  "device_put to four devices": len(places(put) & places(given)),
  "jit of copy to four devices": len(places(copied) & places(given)),
}
print(f"jax {jax.__version__}: buffers shared with the input")
for name, number in found.items():
  print(f"  {name}: {number}")
if list(found.values()) != [0, 1, 0]:
  sys.exit("changed: device_put shares another number of buffers.")
print("so: may_alias=False shares the memory of one device's copy.")
END
