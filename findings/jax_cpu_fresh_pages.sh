#!/usr/bin/env bash
# Package:  jax (XLA for CPUs) on Linux, whose C library is glibc
# Version:  jax 0.10.2
# Expected: a compiled function that is called again and again uses the memory
#           that it had at the last call. If not, `MALLOC_MMAP_MAX_=0` (no piece
#           of memory of its own for a large array) and a high
#           `MALLOC_TRIM_THRESHOLD_` (nothing goes back) make it so.
# Happens:  every call takes all pages of its temporaries anew from the system,
#           which fills them with zeros first: 100 MiB a call for one array of
#           100 MiB. The two settings change nothing: XLA computes on a thread
#           whose pool of memory ends at 64 MiB, and what exceeds it is mapped
#           whatever `MALLOC_MMAP_MAX_` says. Only with `MALLOC_ARENA_MAX=1`
#           beside them, one pool for all threads, no page is taken.
# Matters:  it is a third and more of the processor's time in small training
#           loops, and shows up as time of the system, in no profile of JAX.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'jax==0.10.2' \
  'jaxlib==0.10.2'
cd "$work"
JAX_PLATFORMS=cpu "$work/venv/bin/python" -I - <<'END'
import os
import platform
import subprocess
import sys

import jax

SIDE, CALLS = 5120, 5  # one array of SIDE x SIDE floats, 100 MiB
UNMAPPED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
ONE_POOL = {**UNMAPPED, "MALLOC_ARENA_MAX": "1"}
ASKED = """
@jax.jit
def f(x):
  return jnp.sum(jnp.tanh(x @ x.T) @ x)

def taken():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

x = jnp.ones((SIDE, 8))
for _ in range(3):
  f(x).block_until_ready()
before = taken()
for _ in range(CALLS):
  f(x).block_until_ready()
pages = (taken() - before) // CALLS
print(pages * resource.getpagesize() // 2**20)
"""


def fresh(settings):
  """MiB of new pages a call, in a process whose C library has settings."""
  lines = ["import resource", "import jax", "import jax.numpy as jnp"]
  program = "\n".join([*lines, f"SIDE, CALLS = {SIDE}, {CALLS}", ASKED])
  plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
  done = subprocess.run(
    [sys.executable, "-I", "-c", program],
    env={**plain, **settings},
    check=True,
    capture_output=True,
    text=True,
  )
  return int(done.stdout)


print(f"jax {jax.__version__}, {' '.join(platform.libc_ver())}")
plain, unmapped, one_pool = map(fresh, ({}, UNMAPPED, ONE_POOL))
print(f"MiB of new pages a call: {plain}")
print(f"with nothing mapped and nothing given back: {unmapped}")
print(f"and with one pool for all threads: {one_pool}")
if plain < 90 or unmapped < 90 or one_pool > 10:
  sys.exit("changed: memory of calls is kept, or is not, otherwise now.")
print("so: temporaries are new memory at every call, unless there is one pool.")
END
