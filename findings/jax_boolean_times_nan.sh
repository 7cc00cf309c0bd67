#!/usr/bin/env bash
# Package:  jax (jit on CPU; the simplifier of XLA)
# Version:  jax 0.10.2
# Expected: 0 times NaN is NaN, under jit as without it.
# Happens:  `mask.astype(float32) * x`, or `mask * x`, of a boolean mask becomes
#           a choice between x and 0 under jit: NaN and infinity under the mask
#           give 0 there, and NaN without jit.
# Matters:  a NaN that is multiplied in to mark an entry is lost, and a mask by
#           multiplication seems sound under jit alone. Use `jnp.where`.
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
import numpy as np

mask, x = np.array([False, False, True]), np.float32([np.nan, np.inf, 2.0])
masked = lambda mask, x: mask.astype(jnp.float32) * x
plain = np.asarray(masked(jnp.asarray(mask), jnp.asarray(x)))
jitted = np.asarray(jax.jit(masked)(mask, x))
print(f"jax {jax.__version__}: {x.tolist()} times {mask.tolist()}")
print(f"without jit {plain.tolist()}, under jit {jitted.tolist()}")
if not np.isnan(plain[:2]).all() or jitted.tolist() != [0.0, 0.0, 2.0]:
  sys.exit("changed: jit no longer makes 0 of 0 times NaN.")
print("so: under jit the product with a boolean is a choice, 0 or x.")
END
