"""The loss of prompt learning as a `LossFn`, and what it keeps.

    loss = cross-entropy among the task's classes
           - weight * 1/B sum_b sum_n cos(q_b, k_bn)            (eq. 5)

    model = l2p.PromptedViT(vit, 10, l2p.preset("paper"))
    trained, frozen = l2p.freeze(params, model.trainable)
    state = steps.init_state(trained, tx, key=key, model_state={
      "frozen": frozen, **l2p.init_pool_state(model, task_id=0)})
    step = steps.from_loss(l2p.make_loss_fn(model, task_classes=table), tx)

The model state has the frozen weights and, in the collection `l2p`, the number
of the task, the uses of each prompt, and those of earlier tasks. A stream
without boundaries has no number (`task_id=None`), and nothing here asks for it
unless an option of tasks is on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks, class_masks, metrics, types
from locojax.methods.l2p import coda, freezing, usage
from locojax.methods.l2p import model as model_lib
from locojax.methods.l2p import pool as pool_lib
from locojax.methods.l2p import selection as selection_lib

STATE = "l2p"


def _pool(model: model_lib.PromptedViT) -> pool_lib.PromptPoolConfig | None:
  """The pool of prompts with keys, if the model has one."""
  found = isinstance(model.pool, pool_lib.PromptPoolConfig)
  return model.pool if found else None


def init_pool_state(
  model: model_lib.PromptedViT, *, task_id: int | None = None
) -> dict[str, Any]:
  """`{"l2p": {...}}` for the model state of a run.

  Args:
    model: whose pool is counted.
    task_id: of the first task; None for a stream without boundaries.

  Returns:
    `counts` and `past` `[M]` int32, the uses of each prompt so far and at the
    last boundary, where there is a pool; `task` `[]` int32 unless None.
  """
  state: dict[str, Any] = {}
  if _pool(model) is not None:
    zeros = np.zeros(model.pool.pool_size, np.int32)
    state = {"counts": jnp.array(zeros), "past": jnp.array(zeros)}
  if task_id is not None:
    checks.nonnegative_int("task_id", task_id)
    state["task"] = checks.index_array("task_id", task_id)
  return {STATE: state}


def start_task(model_state: types.PyTree, task_id: int) -> types.PyTree:
  """The model state at a boundary: the new task, and what came before it.

  Raises:
    ValueError: no `init_pool_state` in it, or one without boundaries.
  """
  checks.nonnegative_int("task_id", task_id)
  inner = dict(model_state.get(STATE, {}))
  if "task" not in inner:
    raise ValueError(
      f"model_state has {sorted(inner)} for {STATE!r}: a stream with "
      "boundaries starts with init_pool_state(model, task_id=...)."
    )
  inner["task"] = checks.index_array("task_id", task_id)
  if "counts" in inner:
    inner["past"] = inner["counts"]
  return {**model_state, STATE: inner}


def _need_task(task, option: str):
  if task is None:
    raise ValueError(
      f"{option} is not allowed where task boundaries are unknown: start with "
      "init_pool_state(model, task_id=...), or give the batch a task_id."
    )
  return task


def _task_options(model, state, task, components_per_task) -> dict[str, Any]:
  """What the model is told of the task, as arguments of its call."""
  pool, options = _pool(model), {}
  if components_per_task is not None:
    newest = jnp.max(_need_task(task, "components_per_task"))
    start = newest * components_per_task
    options["components"] = (start, start + components_per_task)
  if pool is None:
    return options
  if pool.selection == "forced":
    options["forced_ids"] = selection_lib.task_prompt_ids(
      _need_task(task, "selection='forced'"),
      top_k=pool.top_k,
      pool_size=pool.pool_size,
    )
  if pool.frequency_penalty == "paper":
    _need_task(state.get("task"), "frequency_penalty='paper'")
    past = selection_lib.normalize_frequency(state["past"])
    options["frequency"] = past
  return options


def _classes_of(batch, classes, table, task):
  """The classes that count, for `class_masks`; None for all."""
  if "class_mask" in batch:
    return batch["class_mask"]
  if table is None:
    return classes
  task = _need_task(task, "task_classes")
  return table.at[task].get(mode="fill", fill_value=False)


def _checked_table(table, num_classes: int):
  """`[T, C]` bool."""
  if table is None:
    return None
  table = np.asarray(table)
  if table.ndim != 2 or table.dtype != bool:
    raise ValueError(
      f"task_classes has shape {table.shape} and dtype {table.dtype}: it must "
      "be [tasks, classes] bool."
    )
  return class_masks.class_mask(table, num_classes)


def _penalties(params, options, orthogonality, key_repulsion):
  """Terms that do not depend on examples, `[]`."""
  total = jnp.float32(0)
  if orthogonality:
    inner = params["prompt_pool"]
    total += orthogonality * coda.orthogonality(
      inner, options.get("components")
    )
  if key_repulsion:
    keys = params["prompt_pool"]["key"]
    total += key_repulsion * selection_lib.orthogonality_penalty(
      keys, normalize=True
    )
  return total


def _pool_metrics(model, chosen, mask) -> dict[str, Any]:
  """How the batch used the pool."""
  hits = usage.prompt_histogram(chosen.ids, model.pool.pool_size, mask=mask)
  found = usage.pool_usage(hits)
  similarity = selection_lib.reduced_similarity(chosen)
  return {
    "reduce_sim": metrics.mean(similarity, mask),
    "pool_entropy": metrics.mean(found["entropy"]),
    "pool_alive": metrics.mean(found["alive"]),
  }


def _counted(model_state, chosen, mask, axis_name):
  """The model state with the uses of a batch."""
  inner = model_state.get(STATE, {}) if model_state else {}
  if chosen is None or "counts" not in inner:
    return model_state
  counts = selection_lib.update_frequency(
    inner["counts"], chosen.ids, mask, axis_name=axis_name
  )
  return {**model_state, STATE: {**inner, "counts": counts}}


def _check_terms(model, classes, table, components, orthogonality, repulsion):
  """Settings of `make_losses_fn` that do not fit the model."""
  is_coda = isinstance(model.pool, coda.CodaConfig)
  if classes is not None and table is not None:
    raise ValueError("classes and task_classes are not allowed together.")
  if classes is not None:
    class_masks.class_mask(classes, model.num_classes)
  checks.nonnegative("orthogonality", orthogonality)
  checks.nonnegative("key_repulsion", repulsion)
  if components is not None:
    checks.positive_int("components_per_task", components)
  if not is_coda and (components is not None or orthogonality):
    raise ValueError(
      "components_per_task and orthogonality are of CODA-Prompt: the model's "
      f"pool is {model.pool!r}."
    )
  pool = _pool(model)
  if repulsion and (pool is None or not pool.prompt_key):
    checks.refuse("key_repulsion", repulsion, "0 for a model without keys")


def make_losses_fn(
  model: model_lib.PromptedViT,
  *,
  classes: ArrayLike | None = None,
  task_classes: ArrayLike | None = None,
  components_per_task: int | None = None,
  orthogonality: float = 0.0,
  key_repulsion: float = 0.0,
  vote_groups: int = 1,
  axis_name: str | tuple[str, ...] | None = None,
) -> Callable[..., Any]:
  """The loss of each example, for whatever weighs examples.

  The batch has `image` `[B, height, width, channels]` and `label` `[B]`
  integers; and may have

    * `mask` `[B]`: zero at padding;
    * `query` `[B, C]`: queries computed before, else they are computed;
    * `class_mask` `[C]` or `[B, C]` bool: in place of `classes`, such as rows
      of ones for replayed examples;
    * `task_id` `[B]`: of each example, in place of the state's.

  Args:
    model: what is trained.
    classes: ids or `[C]` bool, the classes that count; None counts all.
    task_classes: `[T, C]` bool, those of each task; needs task ids.
    components_per_task: of CODA-Prompt: task t trains components
      [tn, (t + 1) n); needs task ids.
    orthogonality: weight of CODA-Prompt's penalty.
    key_repulsion: weight of mean((K K' - I)^2) for unit keys, which pushes
      keys apart; 0 in the paper.
    vote_groups, axis_name: of a vote, as in `select_prompts`.

  Returns:
    `(params, model_state, batch, key) -> (losses, (metrics, model_state))`.
    Losses `[B]` are float32, 0 at padding. `params` are what is trained, or all
    of them; the frozen ones are then in `model_state["frozen"]`. Metrics:
    `accuracy` (among the classes that count), `reduce_sim`, `pool_entropy`,
    `pool_alive`, and `label_outside`, the share of examples whose label is no
    class that counts: their cross-entropy would be infinite and counts as 0. A
    label that is no class of the model at all gives NaN.

  Raises:
    ValueError: settings that do not fit the model, and, when called, options of
      tasks where the task is unknown, or what `PromptedViT` refuses.
  """
  _check_terms(
    model,
    classes,
    task_classes,
    components_per_task,
    orthogonality,
    key_repulsion,
  )
  table = _checked_table(task_classes, model.num_classes)
  pool = _pool(model)
  weight = 0.0 if pool is None else pool.key_loss_weight

  def losses_fn(params, model_state, batch, key):
    state = model_state.get(STATE, {}) if model_state else {}
    task = batch.get("task_id", state.get("task"))
    options = _task_options(model, state, task, components_per_task)
    mask = batch.get("mask")
    images, query = _kept(batch, mask)
    out = model.apply(
      {"params": _whole(params, model_state)},
      images,
      train=True,
      query=query,
      mask=mask,
      vote_groups=vote_groups,
      axis_name=axis_name,
      rngs={"dropout": key},
      **options,
    )
    chosen = out["selection"]
    allowed = _classes_of(batch, classes, table, task)
    losses, found = _cross_entropy(out["logits"], batch, allowed)
    if chosen is not None:
      similarity = selection_lib.reduced_similarity(chosen)
      losses = losses - weight * similarity.astype(losses.dtype)
      found |= _pool_metrics(model, chosen, mask)
    losses += _penalties(params, options, orthogonality, key_repulsion)
    if mask is not None:
      losses = jnp.where(mask != 0, losses, 0)
    return losses, (found, _counted(model_state, chosen, mask, axis_name))

  losses_fn.couples_examples = pool is not None and pool.selection == "batch"
  return losses_fn


def _whole(params, model_state):
  """Trained and frozen weights."""
  found = freezing.merged(params, model_state)
  if "backbone" not in found:
    raise ValueError(
      f"params has {sorted(params)} and model_state has no frozen weights: of "
      "`trained, frozen = l2p.freeze(...)` the second belongs in "
      'model_state["frozen"].'
    )
  return found


def _kept(batch, mask):
  """Images and queries, zeros where there is padding."""
  query = batch.get("query")
  query = query if query is None else arrays.kept(query, mask)
  return arrays.kept(batch["image"], mask), query


def _cross_entropy(logits, batch, allowed):
  """Losses `[B]`, and metrics."""
  mask, labels = batch.get("mask"), batch["label"]
  losses, counts = class_masks.masked_cross_entropy(
    logits, labels, allowed, mask=mask
  )
  if allowed is not None:
    logits = class_masks.mask_logits(logits, allowed)
  return losses, {
    "accuracy": metrics.accuracy(logits, labels, mask),
    "label_outside": metrics.mean(~counts, mask),
  }


def make_loss_fn(model: model_lib.PromptedViT, **settings: Any) -> types.LossFn:
  """The mean of `make_losses_fn` over the examples that count.

  Args:
    model: what is trained.
    **settings: as in `make_losses_fn`.

  Returns:
    A `LossFn`; 0, not NaN, for a batch of padding. With a vote of the batch it
    says that it couples examples.
  """
  losses_fn = make_losses_fn(model, **settings)

  @functools.wraps(losses_fn)
  def loss_fn(params, model_state, batch, key):
    losses, (found, new) = losses_fn(params, model_state, batch, key)
    mean = metrics.mean(losses, batch.get("mask"))
    loss = mean.total / jnp.where(mean.weight > 0, mean.weight, 1)
    return loss, ({"loss": mean, **found}, new)

  return loss_fn
