"""Per-example losses by name.

loss = losses.make("nce_rce", alpha=1.0, beta=1.0)
loss(logits, labels)   # [n, classes], [n] or [n, classes] -> [n]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from experiments.ciw.baselines import bitempered, targets
from locojax.core import checks

PerExampleLoss = Callable[[ArrayLike, ArrayLike], jax.Array]


def _both(logits, labels) -> tuple[jax.Array, jax.Array]:
  return targets.distributions(logits, labels), targets.log_probabilities(
    logits
  )


def cross_entropy() -> PerExampleLoss:
  """`-sum_k y_k log p_k`."""

  def loss(logits, labels):
    y, log_p = _both(logits, labels)
    return -jnp.sum(y * log_p, axis=-1)

  return loss


def label_smoothing(*, smoothing: float) -> PerExampleLoss:
  """Cross-entropy with `(1 - s) y + s / K` in place of y (Szegedy et al. 2016).

  Args:
    smoothing: s in [0, 1].
  """
  checks.in_range("smoothing", smoothing, 0.0, 1.0)

  def loss(logits, labels):
    y, log_p = _both(logits, labels)
    y = (1 - smoothing) * y + smoothing / y.shape[-1]
    return -jnp.sum(y * log_p, axis=-1)

  return loss


def generalized_ce(*, q: float) -> PerExampleLoss:
  """`sum_k y_k (1 - p_k^q) / q` (Zhang and Sabuncu 2018).

  Args:
    q: in (0, 1]; near 0 it is cross-entropy, 1 is half the absolute error.
  """
  checks.positive("q", checks.in_range("q", q, 0.0, 1.0))

  def loss(logits, labels):
    y, log_p = _both(logits, labels)
    return -jnp.sum(y * jnp.expm1(q * log_p), axis=-1) / q

  return loss


def _normalised(y, log_p) -> jax.Array:
  """Cross-entropy over its sum over all labels, in [0, 1]."""
  return jnp.sum(y * log_p, axis=-1) / jnp.sum(log_p, axis=-1)


def _reverse(y, log_p, log_zero) -> jax.Array:
  """`-sum_k p_k log y_k`, with `log 0` read as `log_zero`."""
  log_y = jnp.log(jnp.maximum(y, jnp.exp(log_zero)))
  return -jnp.sum(jnp.exp(log_p) * log_y, axis=-1)


def nce_rce(
  *, alpha: float, beta: float, log_zero: float = -4.0
) -> PerExampleLoss:
  """`alpha NCE + beta RCE`, active + passive (Ma et al. 2020).

  NCE is cross-entropy over its sum over all labels; RCE is the reverse
  cross-entropy, `-log_zero (1 - p_c)` for a hard label c.

  Args:
    alpha, beta: 0 or more.
    log_zero: what `log 0` counts in RCE, below 0.
  """
  checks.nonnegative("alpha", alpha)
  checks.nonnegative("beta", beta)
  checks.positive("-log_zero", -log_zero)

  def loss(logits, labels):
    y, log_p = _both(logits, labels)
    reverse = _reverse(y, log_p, log_zero)
    return alpha * _normalised(y, log_p) + beta * reverse

  return loss


def nce_mae(*, alpha: float, beta: float) -> PerExampleLoss:
  """`alpha NCE + beta MAE`, with MAE = `sum_k |p_k - y_k|` (Ma et al. 2020).

  Args:
    alpha, beta: 0 or more.
  """
  checks.nonnegative("alpha", alpha)
  checks.nonnegative("beta", beta)

  def loss(logits, labels):
    y, log_p = _both(logits, labels)
    absolute = jnp.sum(jnp.abs(jnp.exp(log_p) - y), axis=-1)
    return alpha * _normalised(y, log_p) + beta * absolute

  return loss


def bootstrap_soft(*, share: float) -> PerExampleLoss:
  """Cross-entropy to `(1 - share) y + share p` (Reed et al. 2015).

  The gradient runs through both p, so the second part is an entropy.

  Args:
    share: of the prediction in the target, in [0, 1].
  """
  checks.in_range("share", share, 0.0, 1.0)

  def loss(logits, labels):
    y, log_p = _both(logits, labels)
    target = (1 - share) * y + share * jnp.exp(log_p)
    return -jnp.sum(target * log_p, axis=-1)

  return loss


def bootstrap_hard(*, share: float) -> PerExampleLoss:
  """Cross-entropy to `(1 - share) y + share onehot(argmax p)` (Reed et al.).

  Args:
    share: of the predicted class in the target, in [0, 1].
  """
  checks.in_range("share", share, 0.0, 1.0)

  def loss(logits, labels):
    y, log_p = _both(logits, labels)
    own = -jnp.sum(y * log_p, axis=-1)
    return (1 - share) * own - share * jnp.max(log_p, axis=-1)

  return loss


LOSSES: dict[str, Callable[..., PerExampleLoss]] = {
  "cross_entropy": cross_entropy,
  "label_smoothing": label_smoothing,
  "bi_tempered": bitempered.bi_tempered,
  "generalized_ce": generalized_ce,
  "nce_rce": nce_rce,
  "nce_mae": nce_mae,
  "bootstrap_soft": bootstrap_soft,
  "bootstrap_hard": bootstrap_hard,
}


def make(name: str, **options: Any) -> PerExampleLoss:
  """A loss by name.

  Args:
    name: a key of `LOSSES`.
    **options: settings of that loss.

  Returns:
    `(logits [n, classes], labels) -> [n]` float32 or wider; labels are `[n]`
    indices or `[n, classes]` soft.

  Raises:
    ValueError: an unknown name (the known ones are listed), or a setting out
      of range.
    TypeError: a setting that the loss does not have, or lacks.

  >>> float(make("generalized_ce", q=1.0)(jnp.zeros((1, 2)), jnp.array([0]))[0])
  0.5
  """
  return checks.lookup("name", name, LOSSES)(**options)
