#!/usr/bin/env bash
# Package:  orbax-checkpoint (CheckpointManager.restore)
# Version:  orbax-checkpoint 0.12.8 with jax 0.10.2
# Expected: an abstract target that does not fit the checkpoint is refused, as
#           it is when a shape differs.
# Happens:  another dtype is cast without a word, even where this destroys the
#           values: 0.25 restored as int32 is 0, as bool is True, and 70000 as
#           float16 is infinite.
# Matters:  a config that changed param_dtype resumes with rounded weights, and
#           a state whose fields were mixed up may restore. Compare dtypes with
#           the checkpoint's own metadata first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'jax==0.10.2' \
  'jaxlib==0.10.2' \
  'orbax-checkpoint==0.12.8' \
  'numpy==2.4.6'
cd "$work"
JAX_PLATFORMS=cpu "$work/venv/bin/python" -I - <<'END'
import logging
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.WARNING)
saved = jnp.array([70000.0, -5.5, 0.25])
print(f"orbax-checkpoint {ocp.__version__}, jax {jax.__version__}")
print(f"saved as float32: {saved}")


def restore(manager, shape, dtype):
  target = {"x": jax.ShapeDtypeStruct(shape, dtype)}
  return manager.restore(0, args=ocp.args.StandardRestore(target))["x"]


with ocp.CheckpointManager(pathlib.Path.cwd() / "ckpt") as manager:
  manager.save(0, args=ocp.args.StandardSave({"x": saved}))
  manager.wait_until_finished()
  found = {
    dtype: np.asarray(restore(manager, (3,), dtype)).tolist()
    for dtype in ("int32", "bool", "float16")
  }
  try:
    restore(manager, (2,), "float32")
    shape = "restored"
  except ValueError:
    shape = "refused"
for dtype, value in found.items():
  print(f"restored as {dtype}: {value}")
print(f"restored with another shape: {shape}")
cast = {
  "int32": [70000, -5, 0],
  "bool": [True, True, True],
  "float16": [float("inf"), -5.5, 0.25],
}
if found != cast or shape != "refused":
  sys.exit("changed: a wrong dtype is no longer cast in silence.")
print("so: the shape of the target is checked, its dtype is a cast.")
END
