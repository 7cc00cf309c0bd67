"""SmeLU and generalised SmeLU as linen modules, with parameters or without.

A parameter that must be above 0 is stored raw, as any real number theta, and
used as softplus(theta) + minimum, so that no update can make it invalid. Its
gradient by theta is that by the value times sigmoid(theta), at most 1.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import checks
from locojax.methods.smelu import activations

MINIMUM = 1e-3


def to_positive(raw: jax.Array, *, minimum: float = MINIMUM) -> jax.Array:
  """softplus(raw) + minimum: the value that a raw parameter stands for.

  Args:
    raw: `[...]` any real numbers, such as the parameter `raw_beta` of `SmeLU`.
    minimum: the lower bound, 0 or more.

  Returns:
    `[...]` above `minimum`.

  >>> round(float(to_positive(from_positive(0.5))), 6)
  0.5
  """
  return jax.nn.softplus(raw) + minimum


def from_positive(value: float, *, minimum: float = MINIMUM) -> float:
  """The inverse of `to_positive`.

  Args:
    value: above `minimum`.
    minimum: the lower bound, 0 or more.

  Raises:
    ValueError: `value` is not above `minimum`.
  """
  checks.positive("value - minimum", value - minimum)
  rest = value - minimum
  return rest + math.log(-math.expm1(-rest))


def _above(name: str, value: float) -> float:
  """A value that `from_positive` takes."""
  checks.positive(name, value)
  return checks.in_range(name, value, math.nextafter(MINIMUM, 1), math.inf)


class _Parametric(nn.Module):
  """Parameters of one entry, or of one for each entry of the last axis."""

  trainable: bool = False
  per_channel: bool = False

  def _check_channels(self):
    if self.per_channel and not self.trainable:
      raise ValueError(
        "per_channel=True is not allowed: it must be False unless "
        "trainable=True."
      )

  def _parameter(self, name: str, value: float, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1],) if self.per_channel else ()
    return self.param(name, nn.initializers.constant(value), shape, jnp.float32)

  def _positive(self, name: str, value: float, x: jax.Array) -> jax.Array:
    return to_positive(self._parameter(f"raw_{name}", from_positive(value), x))


class SmeLU(_Parametric):
  """`activations.smelu` as a module; see there.

  Attributes:
    trainable: beta is learned: the parameter `raw_beta`, float32, with
      beta = softplus(raw_beta) + 0.001.
    per_channel: one beta for each entry of the last axis of `x`, `[channels]`,
      in place of one for all, `[]`.
    beta_init: beta, or where it starts; above 0.001 if trainable.

  Raises:
    ValueError: `beta_init` is out of range; `per_channel` without `trainable`.

  >>> SmeLU(beta_init=0.5).apply({}, jnp.array([0.0, 1.0])).tolist()
  [0.125, 1.0]
  """

  beta_init: float = 1.0

  def __post_init__(self):
    check = _above if self.trainable else checks.nonnegative
    check("beta_init", self.beta_init)
    self._check_channels()
    super().__post_init__()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., channels]` to the same shape and dtype."""
    beta = self.beta_init
    if self.trainable:
      beta = self._positive("beta", beta, x)
    return activations.smelu(x, beta)


class GSmeLU(_Parametric):
  """`activations.gsmelu` as a module; see there.

  If trainable the parameters are, all float32: `raw_alpha` and `raw_beta`, with
  alpha = softplus(raw_alpha) + 0.001 and so on; `negative_slope`, free;
  `raw_slope_gap`, the difference of the slopes, stored like alpha; and
  `offset`, free, if it is a number. So the joints keep their order and the
  function stays convex. It may become decreasing on the left, where
  `negative_slope` falls below 0.

  Attributes:
    trainable: whether the parameters are learned.
    per_channel: one of each for each entry of the last axis of `x`.
    negative_slope, positive_slope, alpha, beta: their values, or where they
      start.
    offset: the value at the left joint: a number, 'origin' or 'zero'.

  Raises:
    ValueError: out of range, or `per_channel` without `trainable`. If trainable
      alpha, beta and the difference of the slopes must be above 0.001.

  >>> GSmeLU(alpha=0.5, beta=0.5).apply({}, jnp.array([0.0, 1.0])).tolist()
  [0.125, 1.0]
  """

  negative_slope: float = 0.0
  positive_slope: float = 1.0
  alpha: float = 1.0
  beta: float = 1.0
  offset: float | Literal["origin", "zero"] = 0.0

  def __post_init__(self):
    if self.trainable:
      gap = self.positive_slope - self.negative_slope
      _above("positive_slope - negative_slope", gap)
    for name in ("alpha", "beta"):
      check = _above if self.trainable else checks.positive
      check(name, getattr(self, name))
    self._check_channels()
    super().__post_init__()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., channels]` to the same shape and dtype."""
    settings = self._learned(x) if self.trainable else self._fixed()
    return activations.gsmelu(x, **settings)

  def _fixed(self):
    return dict(
      negative_slope=self.negative_slope,
      positive_slope=self.positive_slope,
      alpha=self.alpha,
      beta=self.beta,
      offset=self.offset,
    )

  def _learned(self, x: jax.Array):
    low = self._parameter("negative_slope", self.negative_slope, x)
    gap = self.positive_slope - self.negative_slope
    offset = self.offset
    if not isinstance(offset, str):
      offset = self._parameter("offset", offset, x)
    return dict(
      negative_slope=low,
      positive_slope=low + self._positive("slope_gap", gap, x),
      alpha=self._positive("alpha", self.alpha, x),
      beta=self._positive("beta", self.beta, x),
      offset=offset,
    )
