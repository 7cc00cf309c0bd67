"""AdamW and the schedules of Pix2Seq's released code."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import optax

from locojax.core import checks, narrow, trees

DECAYS = ("linear", "cosine", "cosine@r", "exp@r", "none")
# Which parameters decay: those named kernel, as the older optimiser of the
# released code has it, or all, as the present one has it.
DECAY_MASKS = {"kernels": r"(^|/)kernel$", "all": r".*"}


def _split(decay: str) -> tuple[str, float | None]:
  """`cosine@0.5` to its name and number.

  Raises:
    ValueError: what is not one of `DECAYS`.
  """
  name, at, rate = str(decay).partition("@")
  if f"{name}@r" in DECAYS and at:
    try:
      value = float(rate)
    except ValueError:
      value = -1.0
    if not 0 < value <= 1:
      checks.refuse("decay", decay, f"{name}@r with a number r in (0, 1]")
    return name, value
  checks.one_of("decay", decay, DECAYS[:2] + DECAYS[-1:])
  return name, None


def pix2seq_schedule(
  lr: float,
  total_steps: int,
  warmup_steps: int = 0,
  *,
  decay: str = "linear",
  end: float = 0.01,
) -> optax.Schedule:
  """Linear warm-up from 0, then a decay.

  With k updates done, W of warm-up, T in all and p = (k - W) / (T - W):

    linear     1 - (1 - end) p
    cosine     end + (1 - end) (1 + cos(pi p)) / 2
    cosine@r   the same with r p in place of p: the first r of the curve
    exp@r      r^p
    none       1

  times `lr`; before W it is `lr` k / W. It stays as it is after T.

  Args:
    lr: the peak.
    total_steps: T, 1 or more.
    warmup_steps: W, at most T.
    decay: one of the above, r in (0, 1].
    end: last value as a share of the peak, in [0, 1]; of linear and cosine.

  Raises:
    ValueError: a bad setting.

  >>> rate = pix2seq_schedule(3e-5, 110, 10)
  >>> [f"{float(rate(k)):.4g}" for k in (5, 10, 60, 110)]
  ['1.5e-05', '3e-05', '1.515e-05', '3e-07']
  """
  checks.nonnegative("lr", lr)
  checks.positive_int("total_steps", total_steps)
  checks.int_in_range("warmup_steps", warmup_steps, 0, total_steps)
  checks.in_range("end", end, 0, 1)
  name, rate = _split(decay)

  def value(p):
    if name == "linear":
      return end + (1 - end) * (1 - p)
    if name == "cosine":
      cosine = jnp.cos(jnp.pi * p * (1.0 if rate is None else rate))
      return end + (1 - end) * 0.5 * (1 + cosine)
    return jnp.ones_like(p) if name == "none" else rate**p

  def schedule(count):
    count = jnp.minimum(jnp.asarray(count, jnp.float32), total_steps)
    p = jnp.maximum(count - warmup_steps, 0) / max(
      total_steps - warmup_steps, 1
    )
    warm = count / max(warmup_steps, 1)
    return lr * jnp.where(count < warmup_steps, warm, value(p))

  return schedule


def pix2seq_adamw(
  lr: float,
  total_steps: int,
  warmup_steps: int = 0,
  decay_mask: str = "all",
  *,
  decay: str = "linear",
  end: float = 0.01,
  weight_decay: float = 0.05,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  clip_norm: float | None = None,
) -> optax.GradientTransformationExtraArgs:
  """AdamW with warm-up and decay, as the released code trains.

  An update is -rate (m / (sqrt(v) + eps) + weight_decay param). On parameters
  of 16 bits all is computed, and kept, in float32.

  Args:
    lr, total_steps, warmup_steps, decay, end: as of `pix2seq_schedule`.
    decay_mask: what `weight_decay` acts on: 'kernels', the matrices of dense
      and convolution layers (the older optimiser of the code, and its
      fine-tuning recipe's); 'all' parameters (the present default).
    weight_decay: 0 or more; of a parameter, times the rate.
    b1, b2: decays of the averages, in [0, 1).
    eps: added to the root.
    clip_norm: largest global norm of the gradient; None does not clip.

  Raises:
    ValueError: a bad setting.
  """
  pattern = checks.lookup("decay_mask", decay_mask, DECAY_MASKS)
  schedule = pix2seq_schedule(
    lr, total_steps, warmup_steps, decay=decay, end=end
  )
  checks.nonnegative("weight_decay", weight_decay)
  checks.below("b1", b1, 0, 1)
  checks.below("b2", b2, 0, 1)
  checks.positive("eps", eps)
  parts: list[Any] = []
  if clip_norm is not None:
    checks.positive("clip_norm", clip_norm)
    parts.append(optax.clip_by_global_norm(clip_norm))
  mask = functools.partial(trees.mask, patterns=pattern)
  tx = optax.chain(
    *parts,
    optax.scale_by_adam(b1, b2, eps),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(schedule),
  )
  tx = optax.with_extra_args_support(tx)
  return optax.GradientTransformationExtraArgs(
    *narrow.carried(tx.init, tx.update)
  )
