"""Norms by name; batch norm of batches of which a mask may leave nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import checks

KINDS = ("layer", "rms")
_STATISTICS = "batch_stats"


def make(
  kind: str, *, eps: float, dtype: Any, use_bias: bool, name: str
) -> nn.Module:
  """A norm over the last axis.

  Args:
    kind: 'layer' takes the mean away and divides by the standard deviation; for
      'rms' the mean counts as 0 (Zhang and Sennrich 2019, arXiv 1910.07467).
    eps: added to the variance.
    dtype: of the computation; statistics are in float32 or wider.
    use_bias: whether 'layer' has one; 'rms' has none.
    name: of the layer.

  Raises:
    ValueError: an unknown kind.
  """
  checks.one_of("norm", kind, KINDS)
  if kind == "rms":
    return nn.RMSNorm(eps, dtype=dtype, name=name)
  return nn.LayerNorm(eps, dtype=dtype, use_bias=use_bias, name=name)


def batch_norm(
  norm: nn.BatchNorm, x: jax.Array, mask: jax.Array | None, *, train: bool
) -> jax.Array:
  """`norm` of the examples that the mask keeps; no NaN if it keeps none.

  Of no examples flax makes NaN, and so are the running means from then on.

  Args:
    norm: bound, as made inside a compact method.
    x: `[..., features]`, zeros where the mask is zero.
    mask: broadcasts to `x`, zero at what stays out of the statistics.
    train: whether the statistics are those of the batch.

  Returns:
    As `x`. Without an example the running means stay as they are.
  """
  if mask is None or not train:
    return norm(x, use_running_average=not train)
  some = jnp.any(mask != 0)
  names = [n for n in ("mean", "var") if norm.has_variable(_STATISTICS, n)]
  before = {n: norm.get_variable(_STATISTICS, n) for n in names}
  y = norm(x, use_running_average=False, mask=(mask != 0) | ~some)
  if norm.is_mutable_collection(_STATISTICS):
    for name, old in before.items():
      new = norm.get_variable(_STATISTICS, name)
      norm.put_variable(_STATISTICS, name, jnp.where(some, new, old))
  return y
