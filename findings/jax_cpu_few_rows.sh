#!/usr/bin/env bash
# Package:  jax (XLA for CPUs)
# Version:  jax 0.10.2
# Expected: multiplying 4 rows with a large matrix takes about as long as one
#           row: both wait for the matrix, which is read once. It makes no odds
#           which of two equal ways of writing the product is taken.
# Happens:  4 rows take three times as long as one and more. About half of it is
#           of the library (YNNPACK) that XLA hands products to: with its
#           fusions turned off they take half as long. With the library, and the
#           matrix transposed and on the left (matrix^T rows^T), a third.
# Matters:  a step of generation for a few sequences, or of a beam search, is
#           little else than such products. In a loop that transposes each
#           matrix before it, its dense layers take a third of the time.
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
import subprocess
import sys

import jax

ASKED = """
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

# 24 matrices of 4 MiB each: more than caches keep.
draw = np.random.default_rng(0).standard_normal
matrices = [jnp.asarray(draw((2048, 512), np.float32)) for _ in range(24)]
turned = [jnp.asarray(np.ascontiguousarray(m.T)) for m in matrices]
rows = jnp.asarray(draw((4, 2048), np.float32))
last = (((1,), (1,)), ((), ()))

@jax.jit
def plain(rows, matrices):
  return [rows @ m for m in matrices]

@jax.jit
def swapped(rows, turned):
  return [jax.lax.dot_general(t, rows, last) for t in turned]

ways = {
  "one row": lambda: plain(rows[:1], matrices),
  "4 rows": lambda: plain(rows, matrices),
  "4 rows, swapped": lambda: swapped(rows, turned),
}
for y, z in zip(ways["4 rows"](), ways["4 rows, swapped"](), strict=True):
  np.testing.assert_allclose(y, z.T, atol=1e-2)
seconds = {name: [] for name in ways}
for _ in range(30):
  for name, way in ways.items():
    start = time.perf_counter()
    jax.block_until_ready(way())
    seconds[name].append(time.perf_counter() - start)
for name, took in seconds.items():
  print(name, 1e3 * statistics.median(took), sep=" = ")
"""


def measured(flags):
  """Milliseconds of each way, in a process of its own."""
  plain = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  text = subprocess.run(
    [sys.executable, "-I", "-c", ASKED],
    env={**plain, "XLA_FLAGS": flags},
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  return {n: float(ms) for n, ms in (x.split(" = ") for x in text.splitlines())}


print(f"jax {jax.__version__}")
found = measured("")
without = measured("--xla_cpu_experimental_ynn_fusion_type=")
for name, ms in found.items():
  print(f"{name}: {ms:.1f} ms; without YNNPACK {without[name]:.1f} ms")
one, four, swapped = found.values()
if four < 2 * one or swapped > 0.7 * four or without["4 rows"] > 0.8 * four:
  sys.exit("changed: a few rows take another share of the time now.")
print("so: a few rows are multiplied far below the speed of memory.")
END
