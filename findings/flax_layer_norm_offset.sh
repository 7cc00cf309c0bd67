#!/usr/bin/env bash
# Package:  flax (linen.LayerNorm; GroupNorm and BatchNorm alike)
# Version:  flax 0.12.8 with jax 0.10.2
# Expected: rows with standard deviation 1 after LayerNorm, as for any float32
#           input whose digits hold it: 1e4 + N(0, 1) is exact to 0.0005.
# Happens:  the variance is E[x^2] - E[x]^2 in float32, here a difference of
#           two numbers near 1e8 that are known to about 8; where it comes out
#           as 0, the row is divided by sqrt(epsilon): values of a thousand and
#           more, no warning, no NaN.
# Matters:  a residual stream with a large common offset, or raw features such
#           as years or prices, turns into noise of any size. Subtract the mean
#           before, or pass use_fast_variance=False.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'jax==0.10.2' \
  'jaxlib==0.10.2' \
  'flax==0.12.8' \
  'numpy==2.4.6'
cd "$work"
JAX_PLATFORMS=cpu "$work/venv/bin/python" -I - <<'END'
import sys

import flax
import flax.linen as nn
import jax
import numpy as np

x = 1e4 + jax.random.normal(jax.random.key(0), (64, 256))
x64 = np.asarray(x, np.float64)
right = (x64 - x64.mean(-1, keepdims=True)) / x64.std(-1, keepdims=True)


def spread(**settings):
  y = np.asarray(nn.LayerNorm(**settings).apply({"params": PARAMS}, x))
  return float(y.std()), float(np.abs(y - right).max())


PARAMS = nn.LayerNorm().init(jax.random.key(1), x)["params"]
std, error = spread()
slow_std, slow_error = spread(use_fast_variance=False)
print(f"flax {flax.__version__}, jax {jax.__version__}")
print("rows of 1e4 + N(0, 1) in float32")
print(f"LayerNorm: std {std:.3f}, largest error {error:.1f}")
print(f"use_fast_variance=False: std {slow_std:.3f}, error {slow_error:.4f}")
if not (std > 100 and abs(slow_std - 1) < 1e-3 and slow_error < 0.01):
  sys.exit("changed: LayerNorm bears an offset now.")
print("so: the variance is a difference of two large numbers, cut at 0.")
END
