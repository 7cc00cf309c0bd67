"""Bias correction: two numbers that put new classes beside old ones.

Wu et al. 2019 (BiC), arXiv 1905.13260. A task brings m new classes to n old
ones. Stage 1 trains on the task and the buffer, over all classes seen,

  loss = lam * KL(softmax_old(zhat / T) || softmax_old(z / T)) + (1 - lam) * CE,
  lam = n / (n + m), T = 2,

zhat being the corrected logits of the model before the task. Stage 2 fits, on
validation examples that neither stage trained on, as many of old as of new
classes, the correction of the new classes by their cross-entropy:

  q_k = z_k for old classes,  alpha z_k + beta for new ones.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import checks, metrics, types
from locojax.methods.continual import fits, losses, masks, teachers

STATE = "bic"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Correction:
  """q = alpha z + beta at some classes.

  Attributes:
    alpha: `[]` float32.
    beta: `[]` float32.
    classes: `[C]` bool, the classes that are corrected.

  >>> Correction.identity(2).apply(jnp.array([[1.0, 2.0]])).tolist()
  [[1.0, 2.0]]
  """

  alpha: jax.Array
  beta: jax.Array
  classes: jax.Array

  @classmethod
  def identity(cls, num_classes: int) -> Correction:
    """One that changes nothing."""
    one, zero = jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)
    return cls(one, zero, jnp.zeros(num_classes, bool))

  def apply(self, logits: ArrayLike) -> jax.Array:
    """Corrected logits `[..., C]` float32."""
    logits = jnp.asarray(logits).astype(jnp.float32)
    moved = self.alpha * logits + self.beta
    return jnp.where(self.classes, moved, logits)


def with_bic(
  model_state: types.PyTree, params: types.PyTree, *, num_classes: int
) -> types.PyTree:
  """The model state before the first task: a teacher, and no correction."""
  state = teachers.with_teacher(model_state, params, num_classes=num_classes)
  own = {
    "past": Correction.identity(num_classes),
    "new": jnp.zeros(num_classes, bool),
  }
  return {**state, STATE: own}


def bic_begin(model_state: types.PyTree, classes: ArrayLike) -> types.PyTree:
  """The model state at the start of a task.

  Args:
    model_state: made by `with_bic`, or given by `bic_end`.
    classes: of the task, numbers `[k]` or a mask `[C]`.
  """
  own, rest = losses.take(model_state, STATE, "with_bic")
  new = masks.class_mask(classes, own["new"].shape[0])
  return {**rest, STATE: {**own, "new": new}}


def bic_end(
  model_state: types.PyTree, params: types.PyTree, correction: Correction
) -> types.PyTree:
  """The model state after a task: the corrected model is the next teacher.

  Args:
    model_state: as `bic_begin` gave it and training left it.
    params: after stage 1.
    correction: of `bic_fit`; `Correction.identity` after the first task.
  """
  own, _ = losses.take(model_state, STATE, "with_bic")
  state = teachers.remember(model_state, params, own["new"])
  return {**state, STATE: {**own, "past": correction}}


def bic(
  apply_fn: losses.ApplyFn,
  *,
  temperature: float = 2.0,
  teacher_fn: losses.ApplyFn | None = None,
) -> types.LossFn:
  """Stage 1 of BiC, usually as `er(bic(apply_fn))`; the head has the equation.

  Between tasks: `bic_end` with the correction of `bic_fit`, then `bic_begin`.
  The softmax is over the classes seen so far, whatever `class_mask` the batch
  has.

  Args:
    apply_fn: logits `[n, C]`.
    temperature: T, above 0.
    teacher_fn: what the teacher is applied by, if not by `apply_fn`.

  Returns:
    A `LossFn` with the metrics of `losses.cross_entropy`, and `distillation`.

  Raises:
    ValueError: a bad temperature; a model state that `with_bic` did not make.
  """
  checks.positive("temperature", temperature)
  teacher_fn = teacher_fn or apply_fn

  def loss_fn(params, model_state, batch, key):
    batch = losses.clean(batch)
    own, rest = losses.take(model_state, STATE, "with_bic")
    teacher, rest = losses.take(rest, teachers.STATE, "with_bic")
    logits, rest = apply_fn(params, rest, batch, key)
    seen = teacher.classes | own["new"]
    share = jnp.sum(teacher.classes) / jnp.maximum(jnp.sum(seen), 1)
    ce, found = losses.of_logits(logits, batch, seen)
    term = losses.distillation(
      logits,
      own["past"].apply(teacher.outputs(teacher_fn, batch, key)),
      classes=teacher.classes,
      temperature=temperature,
    )
    live = losses.live_rows(batch, len(logits))
    term = masks.mean_or_zero(metrics.mean(term, live))
    # (1 - share) CE + share KL, as CE plus a difference.
    loss, found = losses.add_term(ce, found, "distillation", term, share)
    loss, found = losses.add_term(loss, found, "cross_entropy", ce, -share)
    state = {**rest, teachers.STATE: teacher, STATE: own}
    return loss, (found, state)

  return loss_fn


def bic_fit(
  logits: ArrayLike,
  labels: ArrayLike,
  new: ArrayLike,
  *,
  seen: ArrayLike | None = None,
  mask: ArrayLike | None = None,
  num_steps: int = 100,
) -> Correction:
  """Stage 2 of BiC: alpha and beta of the new classes.

    min over alpha, beta of mean CE(softmax_seen(q), label)

  It is convex. Where the validation set is separable it has no minimum, and the
  best point of `num_steps` steps is given.

  Args:
    logits: `[n, C]` of the model after stage 1, uncorrected.
    labels: `[n]` integers, of old and new classes alike.
    new: the classes to correct: numbers `[k]` or a mask `[C]`.
    seen: the classes of the softmax, likewise; None for all.
    mask: `[n]` weights, zero at padding; weigh what is not balanced.
    num_steps: most steps of L-BFGS.

  Returns:
    A `Correction`.

  Raises:
    ValueError: a bad number, labels or classes as in `masks.masked_losses`.
  """
  checks.positive_int("num_steps", num_steps)
  logits = jnp.asarray(logits).astype(jnp.float32)
  new = masks.class_mask(new, logits.shape[-1])
  start = dataclasses.replace(
    Correction.identity(logits.shape[-1]), classes=new
  )

  def cost(x):
    moved = dataclasses.replace(start, alpha=x["alpha"], beta=x["beta"])
    return masks.masked_cross_entropy(
      moved.apply(logits), labels, seen, mask=mask
    )[0]

  masks.masked_losses(logits, labels, seen, mask=mask)  # Refuses bad labels.
  found = fits.minimised(
    cost, {"alpha": start.alpha, "beta": start.beta}, num_steps=num_steps
  )
  return dataclasses.replace(start, **found)
