"""Coordinates as bins and back (Pix2Seq, section 2 of arXiv 2109.10852)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks

MODES = ("round", "floor")
# Up to here k / (B - 1) * (B - 1) rounds to k again in float32.
MAX_BINS = 2**20


def quantize(x: Any, num_bins: int, mode: str = "round") -> jax.Array:
  """The bin of a coordinate, `clip(round(x (B - 1)), 0, B - 1)`.

  Halves go to the even bin. Bins hit 0 and 1, and the error is at most
  1 / (2 (B - 1)). `floor`, the pseudo-code of the paper, moves every edge by
  half a bin towards the origin.

  Args:
    x: shares of the canvas `[...]`; those outside [0, 1] are clipped.
    num_bins: B, 2 or more.
    mode: `round` or `floor`.

  Returns:
    int32 of the shape of x.

  Raises:
    ValueError: a bad setting; NaN from the host (a traced one becomes bin 0).

  >>> quantize(np.array([0.0, 0.5, 1.02]), 1000).tolist()
  [0, 500, 999]
  """
  checks.int_in_range("num_bins", num_bins, 2, MAX_BINS)
  checks.one_of("mode", mode, MODES)
  if not isinstance(x, jax.Array) and np.isnan(np.asarray(x, float)).any():
    raise ValueError("x has NaN, which is not allowed: coordinates are finite.")
  x = jnp.nan_to_num(jnp.asarray(x, jnp.float32)) * (num_bins - 1)
  whole = jnp.round(x) if mode == "round" else jnp.floor(x)
  return jnp.clip(whole, 0, num_bins - 1).astype(jnp.int32)


def dequantize(q: Any, num_bins: int) -> jax.Array:
  """The coordinate of a bin, `q / (B - 1)`, float32; q is not clipped.

  Raises:
    ValueError: fewer than 2 bins, or q that is not of integers.
  """
  checks.int_in_range("num_bins", num_bins, 2, MAX_BINS)
  q = checks.index_array("q", q)
  return q.astype(jnp.float32) / jnp.float32(num_bins - 1)
