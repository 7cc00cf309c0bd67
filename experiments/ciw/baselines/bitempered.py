"""Bi-tempered logistic loss (Amid et al., NeurIPS 2019).

With `log_t(x) = (x^(1-t) - 1) / (1-t)` and its inverse `exp_t`, the tempered
softmax is `p_k = exp_t2(a_k - c)` with c such that p sums to one. The loss is

  sum_k y_k (log_t1 y_k - log_t1 p_k) - (y_k^(2-t1) - p_k^(2-t1)) / (2-t1)

t1 < 1 bounds the loss of an example, t2 > 1 makes the tail of p heavy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from experiments.ciw.baselines import targets
from locojax.core import checks

# Halvings of the bracket of the normaliser, before the step of Newton.
_HALVINGS = 40


def _check_t2(t2: float) -> None:
  if checks.positive("t2", t2) < 1:
    raise ValueError(f"t2={t2!r} is not allowed: it must be 1 or more.")


def _log_exp(u: jax.Array, t: float) -> jax.Array:
  """`log(exp_t(u))` for u <= 0 and t > 1."""
  return jnp.log1p((t - 1) * -u) / (1 - t)


def _log_t(log_x: jax.Array, t: float) -> jax.Array:
  """`log_t(x)` from `log x`."""
  return log_x if t == 1 else jnp.expm1((1 - t) * log_x) / (1 - t)


def _normaliser(logits: jax.Array, t: float) -> jax.Array:
  """c with `sum_k exp_t(a_k - c) = 1` for a maximum of 0, `[..., 1]`.

  Bisection in the bracket [0, -log_t(1/K)], then one step of Newton, which
  also carries the gradient `dc/da = p^t / sum p^t`.
  """
  fixed = jax.lax.stop_gradient(logits)
  low = jnp.zeros_like(fixed[..., :1])
  high = low - _log_t(-jnp.log(float(logits.shape[-1])), t)

  def halve(_, bracket):
    low, high = bracket
    middle = (low + high) / 2
    total = jnp.sum(jnp.exp(_log_exp(fixed - middle, t)), -1, keepdims=True)
    above = total > 1
    return jnp.where(above, middle, low), jnp.where(above, high, middle)

  low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))
  start = (low + high) / 2
  log_p = _log_exp(logits - start, t)
  slope = jnp.sum(jnp.exp(t * jax.lax.stop_gradient(log_p)), -1, keepdims=True)
  return start + (jnp.sum(jnp.exp(log_p), -1, keepdims=True) - 1) / slope


def log_tempered_softmax(logits: ArrayLike, t2: float) -> jax.Array:
  """Log of the tempered softmax, over the last axis.

  Args:
    logits: `[..., classes]`.
    t2: 1 (the softmax) or more (heavier tails).

  Returns:
    `[..., classes]` float32 or wider, differentiable once.

  Raises:
    ValueError: a t2 below 1.
  """
  _check_t2(t2)
  if t2 == 1:
    return targets.log_probabilities(logits)
  logits = jnp.asarray(logits)
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  top = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
  centred = logits - top
  return _log_exp(centred - _normaliser(centred, t2), t2)


def _entropy_terms(y: jax.Array, t1: float) -> jax.Array:
  """`sum_k y_k log_t1(y_k) - y_k^(2-t1) / (2-t1)`, 0 at y_k = 0."""
  safe = jnp.where(y > 0, y, 1.0)
  terms = y * _log_t(jnp.log(safe), t1) - safe ** (2 - t1) / (2 - t1)
  return jnp.sum(jnp.where(y > 0, terms, 0.0), axis=-1)


def bi_tempered(*, t1: float, t2: float):
  """The bi-tempered logistic loss; see the head of this file.

  t1 = t2 = 1 gives KL(y || p), which is cross-entropy for hard labels.

  Args:
    t1: in [0, 1]; below 1 the loss is at most `1/(1-t1)`, roughly.
    t2: 1 or more.

  Returns:
    `(logits [n, classes], labels) -> [n]`; labels are indices or soft.

  Raises:
    ValueError: a temperature out of range.
  """
  checks.in_range("t1", t1, 0.0, 1.0)
  _check_t2(t2)

  def loss(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    y = targets.distributions(logits, labels)
    log_p = log_tempered_softmax(logits, t2)
    own = jnp.sum(y * _log_t(log_p, t1), axis=-1)
    mass = jnp.sum(jnp.exp((2 - t1) * log_p), axis=-1) / (2 - t1)
    return _entropy_terms(y, t1) - own + mass

  return loss
