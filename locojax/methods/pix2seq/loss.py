"""The loss of a token sequence and what is reported beside it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks

KINDS = ("xent", "focal", "logistic")
SHIFTS = ("length", "vocabulary", "none")
_TINY = 1e-9


def token_losses(
  logits: Any,
  targets: Any,
  *,
  kind: str = "xent",
  label_smoothing: float = 0.0,
  focal_gamma: float | None = None,
  logistic_shift: str = "length",
) -> jax.Array:
  """The loss of each token, `[..., T]` float32.

    xent      -sum_v y_v log p_v, with y = (1 - s) onehot + s / V
    focal     -(1 - p_t)^gamma log(p_t + 1e-8), p_t that of the target
    logistic  sum over the vocabulary of binary cross-entropies at the logits
              minus a shift; smoothing turns 0 and 1 to s and 1 - s

  Args:
    logits: `[..., T, V]`.
    targets: `[..., T]` integers in [0, V).
    kind: one of `KINDS`.
    label_smoothing: s in [0, 1); not with focal.
    focal_gamma: of focal, 0 or more, and of no other.
    logistic_shift: `length`: log T, as in the official code; `vocabulary`: log
      V, which it probably means; or `none`.

  Raises:
    ValueError: bad settings, shapes or targets (traced ones are not looked at).
  """
  _check(kind, label_smoothing, focal_gamma, logistic_shift)
  logits = checks.array("logits", logits).astype(jnp.float32)
  checked = _targets(targets, logits.shape)
  if kind == "logistic":
    return _logistic(logits, checked, label_smoothing, logistic_shift)
  logp = jax.nn.log_softmax(logits)
  own = jnp.take_along_axis(logp, checked[..., None], axis=-1)[..., 0]
  if kind == "focal":
    p = jnp.exp(own)
    return -((1 - p) ** focal_gamma) * jnp.log(p + 1e-8)
  if not label_smoothing:
    return -own
  return -(1 - label_smoothing) * own - label_smoothing * logp.mean(-1)


def _check(kind, label_smoothing, focal_gamma, logistic_shift) -> None:
  checks.one_of("kind", kind, KINDS)
  checks.below("label_smoothing", label_smoothing, 0, 1)
  checks.one_of("logistic_shift", logistic_shift, SHIFTS)
  if kind == "focal":
    if focal_gamma is None:
      checks.refuse("focal_gamma", None, "a number, 0 or more, with 'focal'")
    checks.nonnegative("focal_gamma", focal_gamma)
    if label_smoothing:
      checks.refuse("label_smoothing", label_smoothing, "0 with 'focal'")
  elif focal_gamma is not None:
    checks.refuse("focal_gamma", focal_gamma, f"None with kind={kind!r}")


def _targets(targets: Any, shape: tuple[int, ...]) -> jax.Array:
  if len(shape) < 2:
    raise ValueError(
      f"logits of shape {shape} are not allowed: they must be [..., T, V]."
    )
  if not isinstance(targets, jax.core.Tracer):
    found = np.asarray(targets)
    bad = found[(found < 0) | (found >= shape[-1])]
    if bad.size:
      checks.refuse("targets", bad.ravel()[0].item(), f"in [0, {shape[-1]})")
  targets = checks.index_array("targets", targets)
  checks.same_shape("targets", targets.shape, "logits[..., 0]", shape[:-1])
  return targets


def _logistic(logits, targets, smoothing: float, shift: str) -> jax.Array:
  length, size = logits.shape[-2:]
  by = {"length": math.log(length), "vocabulary": math.log(size), "none": 0.0}
  logits = logits - by[shift]
  y = jax.nn.one_hot(targets, size)
  y = y * (1 - smoothing) + (1 - y) * smoothing
  return jnp.sum(jnp.logaddexp(0.0, logits) - y * logits, axis=-1)


def _total(value: jax.Array, axis_name: Any) -> jax.Array:
  value = value.sum()
  return value if axis_name is None else jax.lax.psum(value, axis_name)


def _mean(values: Any, weights: Any, axis_name: Any) -> jax.Array:
  """The ratio of the sums over everything, all devices included."""
  weights = checks.array("weights", weights).astype(jnp.float32)
  checks.same_shape("weights", weights.shape, "targets", values.shape)
  weighted = jnp.where(weights > 0, values * weights, 0.0)
  top, bottom = _total(weighted, axis_name), _total(weights, axis_name)
  return top / (bottom + _TINY)


def token_loss(
  logits: Any,
  targets: Any,
  weights: Any,
  *,
  kind: str = "xent",
  label_smoothing: float = 0.0,
  focal_gamma: float | None = None,
  logistic_shift: str = "length",
  axis_name: Any = None,
) -> jax.Array:
  """The weighted mean of `token_losses`, `sum w l / (sum w + 1e-9)`.

  The sums go over everything, so that under jit with a sharded batch, or by
  `axis_name` inside `shard_map` or `pmap`, the ratio is that of the global
  batch. (The official code takes the mean over devices of their own ratios.)
  With all weights 0 it is 0, and its gradient too.

  Args:
    logits: `[..., T, V]`.
    targets: `[..., T]` integers in [0, V).
    weights: `[..., T]`, 0 or more.
    kind, label_smoothing, focal_gamma, logistic_shift: see `token_losses`.
    axis_name: mesh axes that the sums also go over, or None.

  Returns:
    A float32 scalar.

  Raises:
    ValueError: bad settings, shapes or targets.
  """
  values = token_losses(
    logits,
    targets,
    kind=kind,
    label_smoothing=label_smoothing,
    focal_gamma=focal_gamma,
    logistic_shift=logistic_shift,
  )
  return _mean(values, weights, axis_name)


def token_metrics(
  logits: Any,
  targets: Any,
  weights: Any,
  *,
  pad: int = 0,
  axis_name: Any = None,
) -> dict[str, jax.Array]:
  """Cross-entropy and accuracy over tokens that count and are no padding.

  Args:
    logits: `[..., T, V]`.
    targets: `[..., T]` integers.
    weights: `[..., T]`; tokens of weight 0 are left out, the others count once.
    pad: the target that is left out.
    axis_name: see `token_loss`.

  Returns:
    `loss_notpad` and `accuracy_notpad`, float32 scalars.
  """
  values, counts = token_scores(logits, targets, weights, pad=pad)
  return {k: _mean(v, counts, axis_name) for k, v in values.items()}


def token_scores(
  logits: Any, targets: Any, weights: Any, *, pad: int = 0
) -> tuple[dict[str, jax.Array], jax.Array]:
  """What `token_metrics` are means of: values by name, and which count.

  Both `[..., T]` float32; arguments as there.
  """
  values = token_losses(logits, targets)
  targets = checks.index_array("targets", targets)
  counts = (targets != pad) & (checks.array("weights", weights) > 0)
  right = jnp.argmax(checks.array("logits", logits), axis=-1) == targets
  found = {"loss_notpad": values, "accuracy_notpad": right.astype(jnp.float32)}
  return found, counts.astype(jnp.float32)
