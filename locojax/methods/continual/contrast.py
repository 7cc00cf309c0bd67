"""Contrastive continual learning: embeddings now, a linear head later.

Cha, Lee and Shin 2021 (Co2L), arXiv 2106.14413. With unit embeddings z of a
batch, some rows of the current task (anchors S) and some of a buffer,

  p_i(t) = softmax over k != i of z_i z_k / t
  asymmetric supervised contrast (equation 3), P_i the other rows of i's label:
    mean over i in S of -1 / |P_i| sum_{j in P_i} log p_ij(t)
  instance relation distillation (equation 7):
    mean over i of sum_k -p_ik^past(T*) log p_ik(T)

Rows of the buffer are never anchors of the first, only positives and negatives.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import arrays, checks, metrics, types
from locojax.methods.continual import losses, masks, replay, teachers

_TINY = 1e-12


def unit(embeddings: jax.Array) -> jax.Array:
  """`[n, d]` float32 of length 1; 0 stays 0."""
  z = embeddings.astype(jnp.float32)
  return z * jax.lax.rsqrt(
    jnp.maximum(jnp.sum(jnp.square(z), axis=-1, keepdims=True), _TINY)
  )


def _log_relations(z, live, temperature):
  """log softmax over the other live rows, `[n, n]`; 0 where not a relation."""
  others = live[None] & ~jnp.eye(len(z), dtype=bool)
  # A row without others sees all, and counts nowhere.
  visible = others | ~jnp.any(others, axis=1, keepdims=True)
  scores = jnp.where(visible, z @ z.T / temperature, -jnp.inf)
  log_p = jax.nn.log_softmax(scores, axis=1)
  return jnp.where(others, log_p, 0.0), others


def _live(mask, num) -> jax.Array:
  return jnp.ones(num, bool) if mask is None else jnp.asarray(mask) != 0


def asymmetric_contrast(
  embeddings: ArrayLike,
  labels: ArrayLike,
  *,
  anchors: ArrayLike,
  mask: ArrayLike | None = None,
  temperature: float = 0.5,
) -> metrics.Mean:
  """The asymmetric supervised contrastive loss; the head has the equation.

  Args:
    embeddings: `[n, d]`; made unit in float32.
    labels: `[n]` integers.
    anchors: `[n]`, zero at rows of a buffer.
    mask: `[n]`, zero at rows that count as removed.
    temperature: t, above 0.

  Returns:
    The mean over anchors that have a positive; weight 0 if none has.

  Raises:
    ValueError: shapes that differ, a bad temperature.
  """
  checks.positive("temperature", temperature)
  z = unit(arrays.kept(embeddings, mask))
  labels = checks.index_array("labels", labels)
  live = _live(mask, len(z))
  anchors = jnp.asarray(anchors) != 0
  checks.same_shape("labels", labels.shape, "embeddings[:, 0]", z.shape[:1])
  checks.same_shape("anchors", anchors.shape, "labels", labels.shape)
  log_p, others = _log_relations(z, live, temperature)
  positive = others & (labels[:, None] == labels[None])
  num = jnp.sum(positive, axis=1)
  each = -jnp.sum(jnp.where(positive, log_p, 0.0), axis=1) / jnp.maximum(num, 1)
  return metrics.mean(each, live & anchors & (num > 0))


def relation_distillation(
  embeddings: ArrayLike,
  past_embeddings: ArrayLike,
  *,
  mask: ArrayLike | None = None,
  temperature: float = 0.2,
  past_temperature: float = 0.01,
) -> metrics.Mean:
  """Instance relation distillation; the head of this file has the equation.

  Args:
    embeddings: `[n, d]`; made unit in float32.
    past_embeddings: `[n, e]` of the past model; no gradient flows into them.
    mask: `[n]`, zero at rows that count as removed.
    temperature: T, above 0.
    past_temperature: T*, above 0: the smaller, the sharper the past.

  Returns:
    The mean over rows that have others; weight 0 if none has.

  Raises:
    ValueError: shapes that differ, a bad temperature.
  """
  checks.positive("temperature", temperature)
  checks.positive("past_temperature", past_temperature)
  rows = (arrays.kept(x, mask) for x in (embeddings, past_embeddings))
  now, past = (unit(x) for x in rows)
  checks.same_shape(
    "past_embeddings[:, 0]", past.shape[:1], "embeddings[:, 0]", now.shape[:1]
  )
  live = _live(mask, len(now))
  log_p, others = _log_relations(now, live, temperature)
  log_past, _ = _log_relations(past, live, past_temperature)
  p_past = jax.lax.stop_gradient(jnp.where(others, jnp.exp(log_past), 0.0))
  each = -jnp.sum(p_past * log_p, axis=1)
  return metrics.mean(each, live & jnp.any(others, axis=1))


def co2l(
  embed_fn: losses.ApplyFn,
  *,
  distill_weight: float = 1.0,
  temperature: float = 0.5,
  current_temperature: float = 0.2,
  past_temperature: float = 0.01,
  teacher_fn: losses.ApplyFn | None = None,
) -> types.LossFn:
  """Asymmetric contrast plus relation distillation from the last task's model.

  The head of this file has the equations. `er(co2l(embed_fn))` replays: rows
  with `is_replay` are no anchors. Augmented views of an example are rows like
  others, with its label. The model state is made by `with_teacher`; call
  `remember` between tasks (before the first there is no distillation). At the
  end fit a head by `linear_probe` on embeddings of the buffer and of the last
  task.

  Args:
    embed_fn: embeddings `[n, d]`, before they are made unit.
    distill_weight: of the distillation, 0 or more.
    temperature: of the contrast.
    current_temperature: of the relations of the model.
    past_temperature: of those of the past model.
    teacher_fn: what the teacher is applied by, if not by `embed_fn`.

  Returns:
    A `LossFn` that says that it couples the examples of the batch, with `loss`,
    `contrast` and `distillation`.

  Raises:
    ValueError: a bad number; a model state without a teacher.
  """
  checks.nonnegative("distill_weight", distill_weight)
  checks.positive("temperature", temperature)
  checks.positive("current_temperature", current_temperature)
  checks.positive("past_temperature", past_temperature)
  teacher_fn = teacher_fn or embed_fn

  def loss_fn(params, model_state, batch, key):
    batch = losses.clean(batch)
    teacher, rest = losses.take(model_state, teachers.STATE, "with_teacher")
    z, rest = embed_fn(params, rest, batch, key)
    live = losses.live_rows(batch, len(z))
    is_replay = batch.get(replay.IS_REPLAY, jnp.zeros(len(z), bool))
    contrast = asymmetric_contrast(
      z,
      batch[losses.LABEL],
      anchors=~is_replay,
      mask=live,
      temperature=temperature,
    )
    relations = relation_distillation(
      z,
      teacher.outputs(teacher_fn, batch, key),
      mask=live,
      temperature=current_temperature,
      past_temperature=past_temperature,
    )
    active = jnp.any(teacher.classes)
    term = jnp.where(active, masks.mean_or_zero(relations), 0.0)
    loss = masks.mean_or_zero(contrast)
    loss, found = losses.add_term(
      loss, {"contrast": contrast}, "distillation", term, distill_weight
    )
    return loss, (found, {**rest, teachers.STATE: teacher})

  loss_fn.couples_examples = True
  return loss_fn
