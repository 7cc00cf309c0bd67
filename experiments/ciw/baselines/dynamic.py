"""Baselines that remember the loss of every example (Arazo et al., ICML 2019).

At the end of each epoch a mixture of two Beta distributions is fitted to the
losses of the data set (`beta_mixture.py`); its posterior says how probably each
label is wrong. Then, in the next epoch,

  dynamic bootstrapping  y_i <- (1 - q_i) y_i + q_i z_i, z_i the prediction,
  dynamic mixup          x_i and x_j are mixed in the ratio of 1-q_i to 1-q_j,

with q the posterior. The memory is a pytree of fixed shapes, so it can be part
of the model state of a run, and all of this may run inside a jitted step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from experiments.ciw.baselines import beta_mixture, targets
from locojax.core import checks
from locojax.methods.ciw import mixup

PREDICTIONS = ("hard", "soft")


class Memory(NamedTuple):
  """What is known of each training example.

  Attributes:
    losses: `[examples]` float32, the last loss seen.
    noisy: `[examples]` float32, the probability that the label is wrong; 0
      before the first fit.
  """

  losses: jax.Array
  noisy: jax.Array


def init_memory(num_examples: int) -> Memory:
  """A memory of nothing: all labels count as right.

  >>> init_memory(2).noisy.tolist()
  [0.0, 0.0]
  """
  checks.positive_int("num_examples", num_examples)
  zeros = jnp.zeros((num_examples,), jnp.float32)
  return Memory(zeros, jnp.zeros_like(zeros))


def remember(memory: Memory, index: ArrayLike, losses: ArrayLike) -> Memory:
  """Keeps the losses of a batch.

  Args:
    memory: the memory.
    index: `[n]` integers, the places of the examples in the data set.
    losses: `[n]` plain cross-entropies with the given labels.
  """
  losses = jax.lax.stop_gradient(jnp.asarray(losses, memory.losses.dtype))
  return memory._replace(losses=memory.losses.at[index].set(losses))


def refit(memory: Memory, due: ArrayLike = True) -> Memory:
  """Fits the mixture to the losses, and keeps its posterior.

  Args:
    memory: the memory, after an epoch.
    due: `[]` bool, may be traced; False leaves the memory as it is.
  """

  def fitted(memory):
    mixture = beta_mixture.fit(memory.losses)
    noisy = beta_mixture.noisy_probability(mixture, memory.losses)
    return memory._replace(noisy=noisy.astype(memory.noisy.dtype))

  return jax.lax.cond(jnp.asarray(due), fitted, lambda m: m, memory)


def bootstrapped(
  logits: ArrayLike,
  labels: ArrayLike,
  noisy: ArrayLike,
  *,
  prediction: str,
) -> jax.Array:
  """`(1 - q_i) y_i + q_i z_i`, gradient stopped, `[n, classes]`.

  Args:
    logits: `[n, classes]`.
    labels: `[n]` indices or `[n, classes]` soft.
    noisy: `[n]` posterior q.
    prediction: `hard`: z is one-hot at the greatest logit; `soft`: softmax.

  Raises:
    ValueError: an unknown prediction, or shapes that do not fit.
  """
  checks.one_of("prediction", prediction, PREDICTIONS)
  logits = jax.lax.stop_gradient(jnp.asarray(logits))
  y = targets.distributions(logits, labels)
  if prediction == "hard":
    z = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[1], dtype=y.dtype)
  else:
    z = jnp.exp(targets.log_probabilities(logits))
  q = jax.lax.stop_gradient(jnp.asarray(noisy, y.dtype))
  checks.same_shape("noisy", q.shape, "labels", y.shape[:1])
  return (1 - q[:, None]) * y + q[:, None] * z


def dynamic_bootstrapping(
  logits: ArrayLike, labels: ArrayLike, noisy: ArrayLike, *, prediction: str
) -> jax.Array:
  """Cross-entropy `[n]` to the bootstrapped labels; see `bootstrapped`."""
  y = bootstrapped(logits, labels, noisy, prediction=prediction)
  return -jnp.sum(y * targets.log_probabilities(logits), axis=-1)


def dynamic_mixup(
  key: jax.Array,
  inputs,
  labels: ArrayLike,
  noisy: ArrayLike,
  *,
  num_classes: int | None = None,
) -> mixup.Mixed:
  """Mixup in the ratio of the probabilities of being clean.

  A random partner j; `x'_i = r x_i + (1 - r) x_j` and the labels alike, with
  `r = (1 - q_i) / ((1 - q_i) + (1 - q_j))`, 1/2 where both are surely wrong.

  Args:
    key: typed PRNG key.
    inputs: any tree of `[n, ...]` floating point arrays.
    labels: `[n]` integers (with `num_classes`), or `[n, classes]` soft, as
      from `bootstrapped` (mixup with dynamic bootstrapping).
    noisy: `[n]` posterior q.
    num_classes: for integer labels.

  Returns:
    A mixed batch.
  """
  clean = 1 - jnp.asarray(noisy)
  return mixup.ciw_mixup(
    key, inputs, labels, clean, mode="weight", num_classes=num_classes
  )
