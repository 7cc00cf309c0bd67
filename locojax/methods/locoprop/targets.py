"""How a local problem is posed: variants, targets, the residual at W0.

Letters: A pre-activation, f the transfer function, G = dL/dA, gamma the
activation learning rate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from locojax.methods.locoprop import matching, rows, taps

TARGETS = ("md", "gd", "post_gd")
VARIANTS = ("matching", "squared")


@dataclasses.dataclass(frozen=True)
class LocalOptions:
  """How the local problem of a layer is posed (see `transform.locoprop`)."""

  variant: str = "matching"
  target: str = "md"
  gamma: float | jax.Array = 10.0
  clip_targets: float | None = None
  max_rows: int | None = None
  rotate_rows: bool = True
  gather_rows: bool = False
  num_iters: int | None = None
  gram: bool | None = None
  axis_name: str | None = None


def residual_at_start(
  record: taps.LayerRecord,
  transfer: matching.MatchingLoss,
  options: LocalOptions,
) -> jax.Array:
  """The local residual at W0, so that the residual is `response - Y*` later.

  With variant 'matching' it is f(A) - Y*, with 'squared' it is A - A*:

    matching, md       Y* = f(A) - gamma G              (LocoProp-M)
    matching, gd       Y* = f(A - gamma G)
    matching, post_gd  Y* = f(A) - gamma dL/dY,  dL/dY = G / f'(A)
    squared,  gd       A* = A - gamma G                 (LocoProp-S)
    squared,  md       A* = f^-1(f(A) - gamma G)

  `post_gd` is zero where f' is zero, for the gradient is lost there; its first
  step is not BackProp's. `clip_targets` keeps Y* that margin inside the range
  of f; the inverse of f always does, by 1e-4 if no margin is given.

  Returns:
    `[..., O]`, float32 or, where the record is, float64; no gradient flows
    through it.
  """
  a = rows.cast(record.preact)
  step = options.gamma * record.preact_grad.astype(a.dtype)
  f = transfer.transfer
  if options.variant == "squared":
    if options.target == "gd":
      return step
    y = _clip(f(a) - step, transfer, options.clip_targets or 1e-4)
    return a - transfer.inverse(y)
  if options.target == "gd":
    return f(a) - f(a - step)
  if options.target == "post_gd":
    step = _undo_slope(step, a, f)
  if options.clip_targets is None:
    return step
  return f(a) - _clip(f(a) - step, transfer, options.clip_targets)


def _undo_slope(step, a, f):
  slope = jax.jvp(f, (a,), (jnp.ones_like(a),))[1]
  return jnp.where(slope > 0, step / jnp.where(slope > 0, slope, 1.0), 0.0)


def _clip(y, transfer, margin):
  low = transfer.low + margin if math.isfinite(transfer.low) else None
  high = transfer.high - margin if math.isfinite(transfer.high) else None
  return jnp.clip(y, min=low, max=high)


def target_outside(
  record: taps.LayerRecord, transfer: str, gamma: float
) -> jax.Array:
  """Share of mirror-descent targets outside the range of f.

  There the local loss has no minimum, and only the small number of local
  iterations keeps the step finite.

  >>> import jax.numpy as jnp
  >>> from locojax.methods.locoprop import capture, tap
  >>> affine = lambda layer, x: x @ layer["kernel"]
  >>> params = {"h": {"kernel": jnp.ones((2, 3))}}
  >>> def loss_fn(params, model_state, x, key):
  ...   a = tap("h", affine, params["h"], x)
  ...   return jnp.tanh(a).mean(), ({}, model_state)
  ...
  >>> (loss, _), grads, tape = capture(loss_fn)(
  ...   params, {}, jnp.ones((4, 2)), None
  ... )
  >>> float(target_outside(tape.records["h"], "tanh", 10.0))
  0.0
  """
  loss = matching.get(transfer)
  record = rows.in_dtype(record, rows.dtype_of(record.preact))
  y = loss.transfer(record.preact) - gamma * record.preact_grad
  outside = rows.masked((y < loss.low) | (y > loss.high), record.row_mask)
  num = rows.kept(record) * (outside.size // rows.count(record))
  return jnp.sum(outside) / jnp.maximum(num, 1)


def plain(options: LocalOptions) -> bool:
  """Whether the residual at W0 is gamma G, so that its gradient is gamma dW."""
  usual = "md" if options.variant == "matching" else "gd"
  return options.target == usual and options.clip_targets is None


def response(
  transfer: matching.MatchingLoss, options: LocalOptions
) -> Callable[[jax.Array], jax.Array]:
  """What the local residual compares: f, or with 'squared' the identity."""
  return _identity if options.variant == "squared" else transfer.transfer


def _identity(a):
  return a
