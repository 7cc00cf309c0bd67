"""Loss and optimiser of PaLM and Minerva.

Chowdhery et al., arXiv 2204.02311, section 5: cross-entropy with an auxiliary
loss 1e-4 log^2 Z, Adafactor whose second moments are not factored (Adam with
steps in proportion to the parameter), an inverse square root schedule.
Lewkowycz et al., arXiv 2206.14858, go on with the same schedule.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from locojax.core import arrays, checks, labels, metrics


class LmLoss(NamedTuple):
  """A loss and what it is made of.

  Attributes:
    value: `[]`, what is minimised; 0 where no token counts.
    nll: mean negative log-likelihood of a token, in nats.
    z: mean of log^2 Z.
    accuracy: share of tokens that are the model's best.
  """

  value: jax.Array
  nll: metrics.Mean
  z: metrics.Mean
  accuracy: metrics.Mean


def lm_loss(
  logits: ArrayLike,
  targets: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  z_loss: float = 1e-4,
) -> LmLoss:
  """Mean over tokens of -log p(target) + z_loss log^2 Z.

  log Z is the natural logarithm of the sum of exp(logits); the second term
  keeps it near 0.

  Args:
    logits: `[..., V]`, any real dtype; computed in float32 at least.
    targets: `[...]` integers in [0, V).
    weights: `[...]` of the tokens, 0 at padding, prompts, other documents;
      None counts all. What weighs 0 may hold anything.
    z_loss: weight of the second term, 0 or more.

  Raises:
    ValueError: a bad target, if targets and weights are concrete; a bad weight.
  """
  checks.nonnegative("z_loss", z_loss)
  logits = arrays.kept(arrays.as_float(logits), weights)
  nll = labels.cross_entropy(logits, targets, weights)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  square = metrics.mean(jnp.square(log_z), weights)
  mean = metrics.mean(nll, weights)
  return LmLoss(
    mean.loss() + z_loss * square.loss(),
    mean,
    square,
    metrics.accuracy(logits, targets, weights),
  )


def rsqrt_schedule(
  *,
  num_steps: int,
  start_step: int = 0,
  peak: float = 1e-2,
  warm_constant: float = 10_000,
  final_drop: float = 0.1,
  final_fraction: float = 0.04,
) -> optax.Schedule:
  """peak min(1, sqrt(warm_constant / k)) at step k, and a drop at the end.

  Minerva goes on at the step where PaLM stopped and, after n steps, makes
  `final_fraction` n more at `final_drop` times the rate: 600,000 and 24,000
  of the 8B model.

  Args:
    num_steps: steps in all, the last ones included.
    start_step: what k is before the first of them.
    peak: rate up to step `warm_constant`.
    warm_constant: in steps.
    final_drop: factor of the last steps; 1 drops nothing.
    final_fraction: of the steps before them, in [0, 1).

  Returns:
    A function from the number of updates to the rate, float32.

  Raises:
    ValueError: a number out of range.
  """
  checks.positive_int("num_steps", num_steps)
  checks.nonnegative_int("start_step", start_step)
  checks.positive("peak", peak)
  checks.positive("warm_constant", warm_constant)
  checks.in_range("final_drop", final_drop, 0.0, 1.0)
  checks.below("final_fraction", final_fraction, 0.0, 1.0)
  last = round(num_steps * final_fraction / (1 + final_fraction))

  def rate(count):
    count = jnp.asarray(count)
    k = (start_step + count).astype(jnp.float32)
    value = peak * jnp.sqrt(warm_constant / jnp.maximum(k, warm_constant))
    return jnp.where(count >= num_steps - last, final_drop * value, value)

  return rate


def palm_direction(
  learning_rate: optax.Schedule | float,
  *,
  momentum: float = 0.9,
  decay_rate: float = 0.8,
  clipping_threshold: float | None = None,
  decay_exponent: float | None = 2.0,
) -> optax.GradientTransformation:
  """`palm_adafactor` without its clipping: it acts on each parameter alone.

  So layers that are stacked can be updated one by one
  (`locojax.train.optimizers.stacked`).
  """
  checks.below("momentum", momentum, 0.0, 1.0)
  checks.between("decay_rate", decay_rate, 0.0, 1.0)
  rate = learning_rate
  if not callable(rate):
    checks.positive("learning_rate", rate)
    rate = optax.constant_schedule(rate)
  decay = None
  if decay_exponent is not None:
    checks.positive("decay_exponent", decay_exponent)
    decay = lambda count: rate(count) ** decay_exponent
  return optax.adafactor(
    rate,
    factored=False,
    multiply_by_parameter_scale=True,
    momentum=momentum or None,
    clipping_threshold=clipping_threshold,
    decay_rate=decay_rate,
    weight_decay_rate=decay,
  )


def palm_adafactor(
  learning_rate: optax.Schedule | float,
  *,
  clip_norm: float | None = 1.0,
  momentum: float = 0.9,
  decay_rate: float = 0.8,
  clipping_threshold: float | None = None,
  decay_exponent: float | None = 2.0,
) -> optax.GradientTransformation:
  """Adafactor without factoring, as PaLM has it.

  With the gradient g clipped to a global norm, b(k) = 1 - k^-decay_rate:
  v = b v + (1 - b) g^2; u = rate max(rms(p), 1e-3) g / sqrt(v); m = momentum m
  + (1 - momentum) u; p = (1 - rate^decay_exponent) p - m.

  Args:
    learning_rate: `rsqrt_schedule`, or a number.
    clip_norm: largest global norm of the gradient; None does not clip.
    momentum: in [0, 1); its average is not debiased.
    decay_rate: in (0, 1).
    clipping_threshold: largest root mean square of g / sqrt(v); None does not
      clip. Whether PaLM kept the 1.0 of T5 is not known.
    decay_exponent: of the rate, for the weight decay; None decays nothing.
  """
  direction = palm_direction(
    learning_rate,
    momentum=momentum,
    decay_rate=decay_rate,
    clipping_threshold=clipping_threshold,
    decay_exponent=decay_exponent,
  )
  if clip_norm is None:
    return direction
  checks.positive("clip_norm", clip_norm)
  return optax.chain(optax.clip_by_global_norm(clip_norm), direction)
