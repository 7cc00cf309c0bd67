#!/usr/bin/env bash
# Package:  jax (XLA for CPUs, several devices)
# Version:  jax 0.10.2
# Expected: what works on each row alone needs no word between devices that hold
#           rows each: the largest of a row, a write into a row, a read from it.
# Happens:  `lax.top_k` gathers the whole array on every device, while
#           `lax.sort` and `argmax` of the same rows gather nothing. A write
#           `x.at[arange(rows)[:, None], index].set(...)` gathers its indices,
#           and a read of this form gathers and sums, though `jax.vmap` of the
#           same write, and `take_along_axis`, do without.
# Matters:  a cache of keys and values that is written in the first form talks
#           over all devices in every layer of every decoded token, and beams
#           gather logits. Nothing is wrong in the result, so that only the
#           compiled program tells.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'jax==0.10.2' \
  'jaxlib==0.10.2'
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 \
  "$work/venv/bin/python" -I - <<'END'
import re
import sys

import jax
import jax.numpy as jnp

ROWS = 8
mesh = jax.make_mesh(
  (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
)
first = jnp.arange(ROWS)[:, None]


def talks(f):
  """Kinds of words between devices in the program of `f`."""
  rows = jax.NamedSharding(mesh, jax.P("data"))
  x = jax.device_put(jnp.ones((ROWS, 22)), rows)
  index = jax.device_put(jnp.zeros((ROWS, 2), jnp.int32), rows)
  with jax.set_mesh(mesh):
    text = jax.jit(f).lower(x, index).compile().as_text()
  return re.findall(r" (all-[a-z]+|collective-permute)\(", text)


print(f"jax {jax.__version__}")
one_row = lambda x, index: x.at[index].set(1.0)
found = {
  "lax.top_k": talks(lambda x, index: jax.lax.top_k(x, 2)),
  "lax.sort": talks(lambda x, index: jax.lax.sort(x)),
  "argmax": talks(lambda x, index: jnp.argmax(x, axis=1)),
  "write by rows": talks(lambda x, index: x.at[first, index].set(1.0)),
  "write under vmap": talks(jax.vmap(one_row)),
  "read by rows": talks(lambda x, index: x[first, index]),
  "take_along_axis": talks(
    lambda x, index: jnp.take_along_axis(x, index, axis=1)
  ),
}
for name, kinds in found.items():
  print(f"{name}: {', '.join(kinds) or 'nothing'}")
alone = {name for name, kinds in found.items() if not kinds}
if alone != {"lax.sort", "argmax", "write under vmap", "take_along_axis"}:
  sys.exit("changed: other operations on rows talk now.")
print("so: rows that are written or read by number are not kept apart.")
END
