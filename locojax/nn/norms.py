"""Norms by name; batch norm of batches of which a mask may leave nothing.

And batch norm in groups of the batch, as devices have it that do not share
their statistics.
"""

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


def _moments(x: jax.Array, keep: jax.Array, axes) -> tuple[jax.Array, ...]:
  """Mean, variance and number of what is kept, over axes."""
  keep = jnp.broadcast_to(keep, x.shape)
  count = jnp.sum(keep, axis=axes, keepdims=True, dtype=x.dtype)
  safe = jnp.maximum(count, 1)
  mean = jnp.sum(jnp.where(keep, x, 0), axis=axes, keepdims=True) / safe
  gap = jnp.where(keep, x - mean, 0)
  var = jnp.sum(jnp.square(gap), axis=axes, keepdims=True) / safe
  return mean, var, count


class GroupBatchNorm(nn.Module):
  """Batch norm in which the examples of a group share statistics.

  Examples [0, g), [g, 2 g), ... of a batch are groups: batch norm of devices
  that hold g examples each and do not exchange statistics, whatever the mesh
  (Hoffer et al. 2017, arXiv 1705.08741, call it ghost batch norm). Running
  statistics are the means of those of the groups. Parameters, statistics and
  their names are those of `nn.BatchNorm`, which a group of the whole batch
  equals.

  Attributes:
    group_size: g, which divides the batch.
    momentum: of the running means.
    epsilon: added to the variances.
    dtype: of the result; None follows the input. Statistics are float32.
    scale_init: of the scale.
  """

  group_size: int
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = None
  scale_init: Any = nn.initializers.ones

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    use_running_average: bool,
    *,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """`[B, ..., C]` as it is called on `nn.BatchNorm`.

    Args:
      x: examples along the first axis.
      use_running_average: whether the statistics are the running ones.
      mask: broadcasts to `x`, false at what stays out of the statistics. A
        group of which nothing is left counts in no running mean.

    Raises:
      ValueError: a group that does not divide the batch.
    """
    features = x.shape[-1]
    scale = self.param("scale", self.scale_init, (features,), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
    running = [
      self.variable(_STATISTICS, name, init, (features,), jnp.float32)
      for name, init in (("mean", jnp.zeros), ("var", jnp.ones))
    ]
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if use_running_average:
      mean, var = (r.value for r in running)
    else:
      checks.divisible("batch", x.shape[0], "group_size", self.group_size)
      mean, var = self._of_groups(y, mask, running)
    y = (y - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
    return y.astype(self.dtype or x.dtype)

  def _of_groups(self, y, mask, running) -> tuple[jax.Array, jax.Array]:
    """Statistics that broadcast to `y`; moves the running ones."""
    keep = jnp.ones((1,) * y.ndim, bool) if mask is None else mask != 0
    keep = jnp.broadcast_to(keep, (*y.shape[:-1], keep.shape[-1]))
    grouped = lambda a: a.reshape(-1, self.group_size, *a.shape[1:])
    axes = tuple(range(1, y.ndim))
    mean, var, count = _moments(grouped(y), grouped(keep), axes)
    if self.is_mutable_collection(_STATISTICS) and not self.is_initializing():
      for r, found in zip(running, (mean, var)):
        r.value = self._moved(r.value, found, count)
    each = lambda a: jnp.repeat(a[:, 0], self.group_size, axis=0)
    return each(mean), each(var)

  def _moved(self, old, found, count) -> jax.Array:
    """The running statistic after groups of which some may be empty."""
    found, some = (a.reshape(-1, old.shape[0]) for a in (found, count > 0))
    num = jnp.sum(some, axis=0)
    mean = jnp.sum(jnp.where(some, found, 0), axis=0) / jnp.maximum(num, 1)
    new = self.momentum * old + (1 - self.momentum) * mean
    return jnp.where(num > 0, new, old)


def batch_norm(
  norm: nn.BatchNorm | GroupBatchNorm,
  x: jax.Array,
  mask: jax.Array | None,
  *,
  train: bool,
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
