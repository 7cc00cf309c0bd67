"""Matching losses: the Bregman divergence of a layer's own transfer function.

A nondecreasing transfer function f has a convex potential F with F' = f. Its
matching loss between pre-activations is the Bregman divergence (LocoProp, Amid
et al. 2022, section 3; Auer et al. 1996)

  D_F(a_hat, a) = F(a_hat) - F(a) - <f(a), a_hat - a>  >=  0,

convex in `a_hat`, with gradient f(a_hat) - f(a): no derivative of f appears.
Training needs f alone; F and its conjugate F* serve diagnostics and tests.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy import special

from locojax.core import checks

Fn = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class MatchingLoss:
  """A transfer function with what is known of its potential.

  Attributes:
    name: the name it is registered under.
    transfer: f, any shape to the same shape.
    potential: F with F' = f; elementwise, or for a vector function over the
      last axis. None where f has no convex potential.
    conjugate: F*(y) = sup_a <y, a> - F(a), on the range of f.
    inverse: f^-1 on the open range of f, or None where f is not invertible.
    low, high: bounds of the range of f.
    vector: whether f couples the entries of the last axis (softmax).

  >>> tanh = get("tanh")
  >>> round(float(tanh.inverse(tanh.transfer(jnp.array(0.5)))), 4)
  0.5
  >>> tanh.low, tanh.high
  (-1.0, 1.0)
  """

  name: str
  transfer: Fn
  potential: Fn | None = None
  conjugate: Fn | None = None
  inverse: Fn | None = None
  low: float = -math.inf
  high: float = math.inf
  vector: bool = False

  @property
  def convex(self) -> bool:
    """Whether f is nondecreasing, so that the matching loss is convex."""
    return self.potential is not None

  def divergence(self, a_hat: jax.Array, a: jax.Array) -> jax.Array:
    """D_F(a_hat, a) between two pre-activations.

    Args:
      a_hat: `[...]` the estimate; the divergence is convex in it.
      a: `[...]` the reference.

    Returns:
      `[...]` elementwise; `[...]` less the last axis for a vector function.

    >>> round(float(get("tanh").divergence(0.8, -0.3)), 6)
    0.566857
    """
    a_hat, a = jnp.asarray(a_hat), jnp.asarray(a)
    inner = self._inner(self.transfer(a), a_hat - a)
    return self._potential(a_hat) - self._potential(a) - inner

  def divergence_from_target(self, a_hat: jax.Array, y: jax.Array) -> jax.Array:
    """The same from a post-activation target: F(a_hat) + F*(y) - <y, a_hat>.

    Args:
      a_hat: `[...]` pre-activation.
      y: `[...]` target in the range of f. Outside the range the divergence has
        no minimum and the value returned is NaN or infinite.

    Returns:
      As `divergence`; zero where y = f(a_hat).
    """
    a_hat, y = jnp.asarray(a_hat), jnp.asarray(y)
    self._potential(a_hat)
    conjugate = self.conjugate(y)
    return self._potential(a_hat) + conjugate - self._inner(y, a_hat)

  def _potential(self, a: jax.Array) -> jax.Array:
    if self.potential is None:
      raise ValueError(
        f"transfer={self.name!r} is not allowed here: it is not monotone, so "
        "it has no convex potential."
      )
    return self.potential(a)

  def _inner(self, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(x * y, axis=-1) if self.vector else x * y


def _xlogx(y):
  return special.xlogy(y, y)


def _tanh_conjugate(y):
  return 0.5 * (_xlogx(1 + y) + _xlogx(1 - y))


def _log_cosh(a):
  return jnp.abs(a) + jnp.log1p(jnp.exp(-2 * jnp.abs(a))) - math.log(2)


def _dilog_of_minus_exp(a):
  """Li2(-e^a) for a <= 0, where it does not overflow."""
  return special.spence(1 + jnp.exp(jnp.minimum(a, 0)))


@jax.custom_jvp
def _softplus_potential(a):
  """-Li2(-e^a); its derivative is known, so the dilogarithm's is not needed."""
  positive = math.pi**2 / 6 + a**2 / 2 + _dilog_of_minus_exp(-a)
  return jnp.where(a > 0, positive, -_dilog_of_minus_exp(a))


_softplus_potential.defjvps(lambda t, _, a: t * jax.nn.softplus(a))


def _softplus_inverse(y):
  return y + jnp.log(-jnp.expm1(-y))


def _softplus_conjugate(y):
  a = _softplus_inverse(y)
  return y * a - _softplus_potential(a)


def _half_square(a):
  return jnp.square(a) / 2


def leaky_relu(slope: float = 0.01) -> MatchingLoss:
  """Leaky ReLU with a slope in (0, 1] below zero; strictly convex."""
  checks.positive("slope", slope)

  def scaled(x, s):
    return jnp.where(x >= 0, 1.0, s)

  return MatchingLoss(
    "leaky_relu",
    lambda a: scaled(a, slope) * a,
    lambda a: scaled(a, slope) * _half_square(a),
    lambda y: scaled(y, 1 / slope) * _half_square(y),
    lambda y: scaled(y, 1 / slope) * y,
  )


def elu(alpha: float = 1.0) -> MatchingLoss:
  """Exponential linear unit: a above zero, alpha (e^a - 1) below."""
  checks.positive("alpha", alpha)

  def below(a):
    return jnp.minimum(a, 0)

  def potential(a):
    tail = alpha * (jnp.expm1(below(a)) - below(a))
    return jnp.where(a >= 0, _half_square(a), tail)

  def conjugate(y):
    tail = (below(y) + alpha) * jnp.log1p(below(y) / alpha) - below(y)
    return jnp.where(y >= 0, _half_square(y), tail)

  return MatchingLoss(
    "elu",
    lambda a: jnp.where(a >= 0, a, alpha * jnp.expm1(below(a))),
    potential,
    conjugate,
    lambda y: jnp.where(y >= 0, y, jnp.log1p(below(y) / alpha)),
    low=-alpha,
  )


def smelu(beta: float = 1.0) -> MatchingLoss:
  """SmeLU: 0, then (a + beta)^2 / (4 beta) on [-beta, beta], then a."""
  checks.positive("beta", beta)

  def transfer(a):
    middle = jnp.square(a + beta) / (4 * beta)
    return jnp.where(a <= -beta, 0.0, jnp.where(a >= beta, a, middle))

  def potential(a):
    middle = (a + beta) ** 3 / (12 * beta)
    above = _half_square(a) + beta**2 / 6
    return jnp.where(a <= -beta, 0.0, jnp.where(a >= beta, above, middle))

  def conjugate(y):
    middle = 4 / 3 * math.sqrt(beta) * y * jnp.sqrt(y) - beta * y
    return jnp.where(y >= beta, _half_square(y) - beta**2 / 6, middle)

  return MatchingLoss("smelu", transfer, potential, conjugate, low=0.0)


_LINEAR = MatchingLoss(
  "linear", lambda a: a, _half_square, _half_square, lambda y: y
)

_LOSSES: dict[str, MatchingLoss] = {
  "linear": _LINEAR,
  "tanh": MatchingLoss(
    "tanh", jnp.tanh, _log_cosh, _tanh_conjugate, jnp.arctanh, -1.0, 1.0
  ),
  "sigmoid": MatchingLoss(
    "sigmoid",
    jax.nn.sigmoid,
    jax.nn.softplus,
    lambda y: _xlogx(y) + _xlogx(1 - y),
    lambda y: jnp.log(y) - jnp.log1p(-y),
    0.0,
    1.0,
  ),
  "softmax": MatchingLoss(
    "softmax",
    functools.partial(jax.nn.softmax, axis=-1),
    functools.partial(jax.nn.logsumexp, axis=-1),
    lambda y: jnp.sum(_xlogx(y), axis=-1),
    None,
    0.0,
    1.0,
    vector=True,
  ),
  "relu": MatchingLoss(
    "relu",
    jax.nn.relu,
    lambda a: _half_square(jax.nn.relu(a)),
    lambda y: jnp.where(y >= 0, _half_square(y), jnp.inf),
    low=0.0,
  ),
  "leaky_relu": leaky_relu(),
  "elu": elu(),
  "softplus": MatchingLoss(
    "softplus",
    jax.nn.softplus,
    _softplus_potential,
    _softplus_conjugate,
    _softplus_inverse,
    low=0.0,
  ),
  "exp": MatchingLoss(
    "exp", jnp.exp, jnp.exp, lambda y: _xlogx(y) - y, jnp.log, low=0.0
  ),
  "smelu": smelu(),
  "squared_relu": MatchingLoss(
    "squared_relu",
    lambda a: jnp.square(jax.nn.relu(a)),
    lambda a: jax.nn.relu(a) ** 3 / 3,
    lambda y: 2 / 3 * y * jnp.sqrt(y),
    low=0.0,
  ),
  "gelu": MatchingLoss("gelu", jax.nn.gelu),
  "swish": MatchingLoss("swish", jax.nn.swish),
  "mish": MatchingLoss("mish", jax.nn.mish),
  "tanhexp": MatchingLoss("tanhexp", lambda a: a * jnp.tanh(jnp.exp(a))),
}


def names() -> tuple[str, ...]:
  """The registered transfer functions."""
  return tuple(sorted(_LOSSES))


def get(transfer: str | MatchingLoss) -> MatchingLoss:
  """The matching loss of a transfer function, by name or as given.

  Raises:
    ValueError: an unknown name; the known ones are listed.
  """
  if isinstance(transfer, MatchingLoss):
    return transfer
  return checks.lookup("transfer", transfer, _LOSSES)


def register(loss: MatchingLoss) -> MatchingLoss:
  """Makes a matching loss known by its name.

  Args:
    loss: with `potential` where `transfer` is nondecreasing; without one it is
      taken to be non-convex and refused by default.

  Raises:
    ValueError: the name is taken by another matching loss.
  """
  if _LOSSES.get(loss.name, loss) != loss:
    raise ValueError(
      f"name={loss.name!r} is not allowed: it is registered already."
    )
  _LOSSES[loss.name] = loss
  return loss
