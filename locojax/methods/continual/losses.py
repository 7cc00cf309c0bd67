"""Losses that the baselines share, and what a model must be for them.

A model is an `ApplyFn`:

    apply_fn(params, model_state, batch, key) -> (outputs [n, k], model_state)

The outputs are logits of all C classes, or embeddings where a method says so.
A linen module whose images are the entry `image` becomes one by

    def apply_fn(params, model_state, batch, key):
      return model.apply({"params": params}, batch["image"]), model_state

and one with batch statistics updates its state there (and couples the examples
of a batch: mark the loss by `steps.couples_examples`).

A batch has `label` `[n]` integers, `mask` `[n]` (zero at padding; ones if
absent), and, where the softmax is to see some classes only, `class_mask`
`[n, C]` bool (all if absent).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import arrays, checks, metrics, types
from locojax.methods.continual import masks

LABEL, MASK = "label", "mask"
ApplyFn = Callable[
  [types.PyTree, types.PyTree, types.Batch, jax.Array],
  tuple[jax.Array, types.PyTree],
]


def live_rows(batch: types.Batch, num: int) -> jax.Array:
  """`[n]` float32: which examples count."""
  if MASK not in batch:
    return jnp.ones(num, jnp.float32)
  mask = jnp.asarray(batch[MASK]).astype(jnp.float32)
  checks.same_shape(MASK, mask.shape, "the examples", (num,))
  return mask


def clean(batch: types.Batch) -> types.Batch:
  """The batch with zeros where its `mask` removes an example's floats.

  So that what stands there reaches neither a value nor a gradient.
  """
  if MASK not in batch:
    return batch

  def one(x):
    x = jnp.asarray(x)
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    return arrays.kept(x, batch[MASK]) if floats else x

  return {k: v if k == MASK else one(v) for k, v in batch.items()}


def of_logits(
  logits: jax.Array, batch: types.Batch, classes: ArrayLike | None = None
) -> tuple[jax.Array, dict[str, metrics.Mean]]:
  """Masked cross-entropy of a batch; `classes` instead of its own mask."""
  if classes is None:
    classes = batch.get(masks.CLASS_MASK)
  return masks.masked_cross_entropy(
    logits, batch[LABEL], classes, mask=live_rows(batch, len(logits))
  )


def cross_entropy(apply_fn: ApplyFn) -> types.LossFn:
  """Cross-entropy of the labels, over the classes of the batch's mask.

    loss = mean over examples of -log softmax_{c in mask}(z)_label

  On a task alone it is sequential fine-tuning; on the union of all tasks the
  upper bound (`joint`); on the contents of a balanced buffer the last stage of
  GDumb. With `params` that are a head only, the backbone is frozen.

  Args:
    apply_fn: logits `[n, C]`, see the head of this file.

  Returns:
    A `LossFn` with the metrics of `masks.masked_cross_entropy`.
  """

  def loss_fn(params, model_state, batch, key):
    batch = clean(batch)
    logits, model_state = apply_fn(params, model_state, batch, key)
    loss, found = of_logits(logits, batch)
    return loss, (found, model_state)

  return loss_fn


def add_term(
  loss: jax.Array,
  found: types.Metrics,
  name: str,
  term: jax.Array,
  factor: float,
) -> tuple[jax.Array, dict[str, Any]]:
  """`loss + factor * term`, and the metrics with `name` and a new `loss`."""
  total, own = loss + factor * term, dict(found)
  inner = own.get("loss")
  weight = inner.weight if isinstance(inner, metrics.Mean) else 1.0
  weight = jnp.asarray(weight, jnp.float32)
  own["loss"] = metrics.Mean(total * weight, weight)
  own[name] = metrics.Mean(term * weight, weight)
  return total, own


def distillation(
  logits: ArrayLike,
  teacher_logits: ArrayLike,
  *,
  classes: ArrayLike | None = None,
  temperature: float = 2.0,
) -> jax.Array:
  """KL(p || q) of softened distributions over some classes.

    p = softmax(teacher / T), q = softmax(z / T), over the classes given

  It is the knowledge distillation loss of Li and Hoiem (2016, arXiv 1606.09282,
  equations 2 and 3) less the entropy of the teacher, a constant: 0 if both
  agree, and the gradient on z is (q - p) / T. There is no factor T^2.

  Args:
    logits, teacher_logits: `[n, C]`; computed in float32. No gradient flows
      into the teacher.
    classes: `[C]` bool; None for all. None of them set gives 0.
    temperature: T, above 0.

  Returns:
    `[n]` float32, 0 or more.

  Raises:
    ValueError: shapes that differ, a bad temperature.
  """
  checks.positive("temperature", temperature)
  logits, teacher_logits = jnp.asarray(logits), jnp.asarray(teacher_logits)
  checks.same_shape(
    "teacher_logits", teacher_logits.shape, "logits", logits.shape
  )
  allowed = jnp.ones(logits.shape[-1], bool)
  allowed = allowed if classes is None else jnp.asarray(classes)
  # With no class at all the softmax sees them all, and nothing is summed.
  visible = allowed | ~jnp.any(allowed)

  def log_softmax(z):
    z = z.astype(jnp.float32) / temperature
    log_p = jax.nn.log_softmax(jnp.where(visible, z, -jnp.inf), axis=-1)
    return jnp.where(allowed, log_p, 0.0)

  log_q = log_softmax(logits)
  log_p = jax.lax.stop_gradient(log_softmax(teacher_logits))
  terms = jnp.where(allowed, jnp.exp(log_p) * (log_p - log_q), 0.0)
  return jnp.sum(terms, axis=-1)


def take(model_state: types.PyTree, name: str, maker: str):
  """The collection `name` of a model state, and the other ones.

  Raises:
    ValueError: it is not there; `maker` makes it.
  """
  if not isinstance(model_state, Mapping) or name not in model_state:
    names = sorted(model_state) if isinstance(model_state, Mapping) else None
    raise ValueError(
      f"model_state has the names {names}: {name!r} is missing, which "
      f"`{maker}` puts there."
    )
  rest = {k: v for k, v in model_state.items() if k != name}
  return model_state[name], rest


def copied(tree: types.PyTree) -> types.PyTree:
  """Copies of the arrays: a step may give its own ones away."""
  return jax.tree.map(jnp.array, tree)
