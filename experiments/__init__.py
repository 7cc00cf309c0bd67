"""Experiments: configs and compositions, run from a checkout."""

import os

from locojax.core import host_memory

# SciPy's BLAS, which jax calls for decompositions on CPU, spins up threads of
# its own beside those of XLA; on a small machine the two fight. It reads this
# once, when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if host_memory.only_processor():
  host_memory.keep_freed()
