#!/usr/bin/env bash
# Package:  jax (jax.random.normal)
# Version:  jax 0.10.2, jaxlib 0.10.2
# Expected: float32 draws that follow the normal law as far as one can sample,
#           alike on both sides.
# Happens:  a draw is the inverse error function of one of 2**23 equally spaced
#           numbers in (-1, 1), so none ever lies outside [-5.42, 5.23]; half a
#           billion draws should hold dozens that do. The two ends differ, as
#           -1 is approached more closely than +1.
# Matters:  noise for differential privacy, rare-event sampling and quantiles
#           lack their tails whatever the number of draws. float64 draws reach
#           8.2.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'jax==0.10.2' \
  'jaxlib==0.10.2' \
  'numpy==2.4.6' \
  'scipy==1.17.1'
cd "$work"
JAX_PLATFORMS=cpu "$work/venv/bin/python" -I - <<'END'
import sys

import jax
import numpy as np
from scipy import stats

CHUNK, NUM_CHUNKS = 1 << 24, 32


@jax.jit
def extremes(key):
  x = jax.random.normal(key, (CHUNK,))
  return x.min(), x.max()


ends = np.array([extremes(jax.random.key(i)) for i in range(NUM_CHUNKS)])
low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
draws = CHUNK * NUM_CHUNKS
print(f"jax {jax.__version__}: {draws:,} draws of jax.random.normal, float32")
print(f"smallest {low:.4f}, largest {high:.4f}")
for bound in (5.25, 5.45):
  expected = draws * stats.norm.sf(bound)
  print(f"a normal law has {expected:.1f} beyond {bound} on either side")
# 40 draws above 5.25 and 13 below -5.45 are expected of a normal law.
if not (5.1 < high < 5.25 and -5.45 < low < -5.3):
  sys.exit("changed: the tails are no longer cut at -5.42 and +5.22.")
print("so: the tails are cut, and not at the same distance on both sides.")
END
