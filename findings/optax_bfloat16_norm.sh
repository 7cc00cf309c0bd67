#!/usr/bin/env bash
# Package:  optax (global_norm, clip_by_global_norm)
# Version:  optax 0.2.8 with jax 0.10.2
# Expected: the norm of bfloat16 gradients up to the rounding of the result,
#           below 1 %.
# Happens:  each leaf's sum of squares is rounded to bfloat16 and these are
#           added one by one in bfloat16, where 256 + 1 is 256: 1000 leaves of
#           norm 1 have norm 16 and not 31.6. Clipped to norm 1, they have norm
#           1.98.
# Matters:  the more layers a model has, the more its gradients exceed the
#           bound they are clipped to, and the logged norm is too small. Cast
#           to float32 before clipping.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'jax==0.10.2' \
  'jaxlib==0.10.2' \
  'optax==0.2.8' \
  'numpy==2.4.6'
cd "$work"
JAX_PLATFORMS=cpu "$work/venv/bin/python" -I - <<'END'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax


def true_norm(tree):
  leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
  return float(np.sqrt(sum((x**2).sum() for x in leaves)))


grads = {f"layer_{i}": jnp.ones((1,), jnp.bfloat16) for i in range(1000)}
found = float(optax.global_norm(grads))
clip = optax.clip_by_global_norm(1.0)
clipped, _ = clip.update(grads, clip.init(grads))
print(f"optax {optax.__version__}, jax {jax.__version__}")
print(f"1000 leaves of one 1: norm {true_norm(grads):.3f}, found {found}")
print(f"clipped to norm 1.0: the norm is {true_norm(clipped):.3f}")
if found != 16.0 or not 1.9 < true_norm(clipped) < 2.0:
  sys.exit("changed: the sum over leaves no longer stops at 256.")
print("so: the sum over leaves is in bfloat16, where 256 + 1 is 256.")
END
