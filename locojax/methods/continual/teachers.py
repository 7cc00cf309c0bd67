"""The model as it was after the last task, and distillation from it.

`with_teacher` puts a copy of the parameters in the model state, in the entry
`teacher`, and `remember` renews it between tasks, so that one compiled step
serves all tasks: before the first `remember` no class is old, and the terms
below are 0.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import checks, metrics, types
from locojax.methods.continual import losses, masks

STATE = "teacher"
# Entries of a model state that belong to methods, and that no teacher needs.
OWN = ("teacher", "ewc", "replay", "bic")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Teacher:
  """A model of the past.

  Attributes:
    params: its parameters.
    model_state: its own variables, without entries of methods.
    classes: `[C]` bool, the classes that it learned.
  """

  params: types.PyTree
  model_state: types.PyTree
  classes: jax.Array

  def outputs(
    self, apply_fn: losses.ApplyFn, batch: types.Batch, key: jax.Array
  ) -> jax.Array:
    """What it says of a batch; no gradient flows."""
    found, _ = apply_fn(self.params, self.model_state, batch, key)
    return jax.lax.stop_gradient(found)


def _plain(model_state: types.PyTree) -> types.PyTree:
  return {k: v for k, v in (model_state or {}).items() if k not in OWN}


def with_teacher(
  model_state: types.PyTree, params: types.PyTree, *, num_classes: int
) -> types.PyTree:
  """The model state with a teacher that knows no class yet.

  Args:
    model_state: variables of the model; None stands for `{}`.
    params: parameters at the start.
    num_classes: C.
  """
  checks.positive_int("num_classes", num_classes)
  teacher = Teacher(
    losses.copied(params),
    losses.copied(_plain(model_state)),
    jnp.zeros(num_classes, bool),
  )
  return {**(model_state or {}), STATE: teacher}


def remember(
  model_state: types.PyTree, params: types.PyTree, classes: ArrayLike
) -> types.PyTree:
  """The model state whose teacher is the model as it is now.

  Args:
    model_state: made by `with_teacher`.
    params: parameters after a task.
    classes: of that task: numbers `[k]` or a mask `[C]`; they are added to the
      teacher's.

  Raises:
    ValueError: no teacher, or classes as in `masks.class_mask`.
  """
  teacher, rest = losses.take(model_state, STATE, "with_teacher")
  classes = masks.class_mask(classes, teacher.classes.shape[0])
  new = Teacher(
    losses.copied(params),
    losses.copied(_plain(model_state)),
    teacher.classes | classes,
  )
  return {**rest, STATE: new}


def lwf(
  apply_fn: losses.ApplyFn,
  *,
  weight: float = 1.0,
  temperature: float = 2.0,
  teacher_fn: losses.ApplyFn | None = None,
) -> types.LossFn:
  """Learning without forgetting: labels of new classes, old logits of old ones.

    loss = CE(label) + weight * mean KL(softmax_old(z_old / T) ||
                                        softmax_old(z / T))

  Li and Hoiem 2016, arXiv 1606.09282, with T = 2; see `losses.distillation`.
  With a class mask in the batch the cross-entropy is over the new classes, as
  in the paper. The model state is made by `with_teacher`; call `remember`
  between tasks. For replay, wrap it by `er`.

  Args:
    apply_fn: logits `[n, C]`.
    weight: of the distillation, 0 or more.
    temperature: T, above 0.
    teacher_fn: what the teacher is applied by, if not by `apply_fn` (with the
      running statistics of batch norm, say). Its state is not kept.

  Returns:
    A `LossFn` with the metrics of `losses.cross_entropy` and `distillation`.

  Raises:
    ValueError: a bad number; a model state without a teacher.
  """
  checks.nonnegative("weight", weight)
  checks.positive("temperature", temperature)
  teacher_fn = teacher_fn or apply_fn

  def loss_fn(params, model_state, batch, key):
    batch = losses.clean(batch)
    teacher, rest = losses.take(model_state, STATE, "with_teacher")
    logits, rest = apply_fn(params, rest, batch, key)
    loss, found = losses.of_logits(logits, batch)
    term = losses.distillation(
      logits,
      teacher.outputs(teacher_fn, batch, key),
      classes=teacher.classes,
      temperature=temperature,
    )
    live = losses.live_rows(batch, len(logits))
    term = masks.mean_or_zero(metrics.mean(term, live))
    loss, found = losses.add_term(loss, found, "distillation", term, weight)
    return loss, (found, {**rest, STATE: teacher})

  return loss_fn
