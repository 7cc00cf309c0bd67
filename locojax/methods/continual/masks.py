"""Class masks: which logits a softmax may see.

A mask puts the logits of other classes to -inf before the softmax, so their
probability and their gradient are exactly 0, and the columns of a last layer
that belong to classes not yet seen stay as they were initialised. That needs
labels that are integers: with one-hot labels, 0 times -inf is NaN.

Letters in shapes: n examples, C classes. In a batch the mask is an entry
`class_mask` `[n, C]` bool, a row for each example, so that it is cut and
sharded as the examples are.

Source: the code of L2P (Wang et al. 2022, arXiv 2112.08654): `train_mask`,
`replay_no_mask`, `replay_reverse_mask`, `eval_task_inc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks, class_masks, metrics, types

CLASS_MASK = "class_mask"
EVAL_CLASSES = ("all", "seen", "task")


class_mask = class_masks.class_mask
mask_logits = class_masks.mask_logits


class Losses(NamedTuple):
  """Cross-entropy of single examples.

  Attributes:
    values: `[n]` float32; 0 where the label is outside, NaN where it is no
      class (the rule of `core/labels.py`).
    outside: `[n]` bool, the label is a class outside the mask.
  """

  values: jax.Array
  outside: jax.Array


def masked_losses(
  logits: ArrayLike,
  labels: ArrayLike,
  classes: ArrayLike | None = None,
  *,
  mask: ArrayLike | None = None,
) -> Losses:
  """-log p(label) with the softmax over the classes of the mask.

  Args:
    logits: `[n, C]`; computed in float32.
    labels: `[n]` integers.
    classes: as in `mask_logits`; None allows all.
    mask: `[n]`, zero at padding, whose labels are not looked at.

  Returns:
    `Losses`. A label outside the mask has an infinite loss; where that cannot
    be seen before the step (traced), its loss is 0 and it is `outside`, to be
    left out of the mean and counted. So is a row without any class.

  Raises:
    ValueError: one-hot labels or other shapes; unless traced, a label outside;
      as `class_mask`.
  """
  logits = jnp.asarray(logits)
  values, _ = class_masks.masked_cross_entropy(
    logits, labels, classes, mask=mask
  )
  num_classes = logits.shape[-1]
  known = class_masks.labels_inside(labels, None, num_classes)
  inside = class_masks.labels_inside(labels, classes, num_classes)
  return Losses(values, known & ~inside)


def masked_cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  classes: ArrayLike | None = None,
  *,
  mask: ArrayLike | None = None,
) -> tuple[jax.Array, dict[str, metrics.Mean]]:
  """Mean cross-entropy over the classes of a mask.

  Args:
    logits, labels, classes, mask: as in `masked_losses`.

  Returns:
    `(loss [], metrics)`: `loss`; `accuracy`, within the mask; and
    `labels_outside`, the share of examples whose label was outside, which are
    left out of the other two (its `total` is their number).

  Raises:
    ValueError: as `masked_losses`.

  >>> loss, _ = masked_cross_entropy([[1.0, 2.0, 3.0, 0.5]], [1], [0, 1])
  >>> round(float(loss), 4)
  0.3133
  """
  found = masked_losses(logits, labels, classes, mask=mask)
  live = jnp.ones(found.values.shape) if mask is None else jnp.asarray(mask)
  live = live.astype(jnp.float32)
  counted = jnp.where(found.outside, 0.0, live)
  loss = metrics.mean(found.values, counted)
  if classes is not None:
    logits = mask_logits(logits, classes)
  hits = metrics.accuracy(logits, labels, counted)
  outside = metrics.mean(found.outside, live)
  own = {"loss": loss, "accuracy": hits, "labels_outside": outside}
  return mean_or_zero(loss), own


def mean_or_zero(mean: metrics.Mean) -> jax.Array:
  """The value of a mean, 0 where nothing was counted."""
  counted = mean.weight > 0
  return jnp.where(counted, mean.total / jnp.where(counted, mean.weight, 1), 0)


def with_class_mask(
  batch: types.Batch, classes: ArrayLike, num_classes: int, *, rows: int
) -> dict[str, Any]:
  """The batch with the entry `class_mask`, the same in all rows.

  Args:
    batch: without that entry.
    classes: as in `class_mask`.
    num_classes: C.
    rows: n, the number of examples of the batch.
  """
  mask = class_mask(classes, num_classes)
  return {**batch, CLASS_MASK: jnp.broadcast_to(mask, (rows, num_classes))}


def seen_in(
  labels: ArrayLike,
  num_classes: int,
  *,
  seen: ArrayLike | None = None,
  mask: ArrayLike | None = None,
) -> jax.Array:
  """The classes of a batch, and those seen before: no task is needed.

  Args:
    labels: `[n]` integers; what is outside [0, C) is no class.
    num_classes: C.
    seen: `[C]` bool, classes seen before; None for none.
    mask: `[n]`, zero at padding.

  Returns:
    `[C]` bool. Of one batch alone it is the mask of a boundary-free stream.
  """
  labels = checks.index_array("labels", labels)
  hits = labels[:, None] == jnp.arange(num_classes)
  if mask is not None:
    hits = hits & (jnp.asarray(mask) != 0)[:, None]
  found = jnp.any(hits, axis=0)
  return found if seen is None else found | jnp.asarray(seen)


def classes_seen(
  class_ids: Sequence[ArrayLike], t: int, num_classes: int
) -> jax.Array:
  """The classes of the tasks 0 to t.

  Args:
    class_ids: for each task its classes, as in `class_mask`.
    t: the last task trained.
    num_classes: C.

  Returns:
    `[C]` bool.

  Raises:
    ValueError: no such task, or as `class_mask`.

  >>> classes_seen([[0, 1], [2], [3]], 1, 4).tolist()
  [True, True, True, False]
  """
  checks.int_in_range("t", t, 0, len(class_ids) - 1)
  rows = [class_mask(ids, num_classes) for ids in class_ids[: t + 1]]
  return jnp.any(jnp.stack(rows), axis=0)


def eval_mask(
  eval_classes: str,
  class_ids: Sequence[ArrayLike],
  t: int,
  num_classes: int,
  *,
  task: int | None = None,
) -> jax.Array:
  """The classes that an evaluation chooses among, after task t.

  Args:
    eval_classes: `all` C classes: one that no task had yet can win, for its
      logit is 0 in a head that starts at zeros and others are negative.
      `seen`: those of the tasks 0 to t. `task`: those of the task evaluated,
      whose identity is thus given away (task-incremental).
    class_ids: for each task its classes.
    t: the last task trained.
    num_classes: C.
    task: the task evaluated, for `task`.

  Returns:
    `[C]` bool, for `mask_logits`.

  Raises:
    ValueError: an unknown name, no such task.
  """
  checks.one_of("eval_classes", eval_classes, EVAL_CLASSES)
  if eval_classes == "all":
    return jnp.ones(num_classes, bool)
  if eval_classes == "seen":
    return classes_seen(class_ids, t, num_classes)
  if task is None:
    raise ValueError("task=None is not allowed: eval_classes='task' needs it.")
  checks.int_in_range("task", task, 0, len(class_ids) - 1)
  return class_mask(class_ids[task], num_classes)


def replay_no_mask(mask: ArrayLike, is_replay: ArrayLike) -> jax.Array:
  """Masks only what comes from the current task.

  Args:
    mask: `[C]` or `[n, C]` bool, the classes of the current task.
    is_replay: `[n]` bool, the rows that come from a buffer.

  Returns:
    `[n, C]` bool, all classes in the rows of the buffer.
  """
  return jnp.asarray(is_replay)[:, None] | jnp.asarray(mask)


def replay_reverse_mask(mask: ArrayLike, is_replay: ArrayLike) -> jax.Array:
  """As `replay_no_mask`, and current classes are masked in the buffer's rows.

  Args:
    mask: `[C]` bool, the classes of the current task.
    is_replay: `[n]` bool, the rows that come from a buffer.

  Returns:
    `[n, C]` bool.

  Raises:
    ValueError: unless traced, all classes are current ones, which would leave
      none for the rows of the buffer.
  """
  mask, is_replay = jnp.asarray(mask), jnp.asarray(is_replay)
  out = jnp.where(is_replay[:, None], ~mask, mask)
  if arrays.is_concrete(out) and not np.asarray(out).any(axis=-1).all():
    raise ValueError(
      "mask leaves no class in some rows: with a reverse mask there must be "
      "classes beside the current ones."
    )
  return out
