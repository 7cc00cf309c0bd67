"""Set prediction: which slot answers for which object, and the loss of that.

Carion et al., "End-to-End Object Detection with Transformers" (DETR), arXiv
2005.12872, section 3.1. The bipartite matching is optax's, which runs on the
device.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from locojax.core import arrays, checks
from locojax.core import boxes as layouts

_TINY = 1e-7


class Weights(NamedTuple):
  """Weights of the parts, in the costs and in the loss.

  Attributes:
    label: of the class.
    l1: of the distance of the boxes, centre and size.
    giou: of the generalised overlap.
    no_object: of slots without an object in the cross-entropy, 1 for others.
  """

  label: float = 1.0
  l1: float = 5.0
  giou: float = 2.0
  no_object: float = 0.1


WEIGHTS = Weights()


def _corners(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
  corners = layouts.cxcywh_to_yxyx(boxes)
  return corners[..., :2], corners[..., 2:]


def generalised_iou(boxes: jax.Array, others: jax.Array) -> jax.Array:
  """Overlap less the empty share of the common hull, in [-1, 1].

  Rezatofighi et al. 2019, arXiv 1902.09630. Leading axes are broadcast.

  Args:
    boxes, others: `[..., 4]`, centre and size.
  """
  (low, high), (low2, high2) = _corners(boxes), _corners(others)
  area = lambda a, b: jnp.prod(jnp.maximum(b - a, 0.0), axis=-1)
  both = area(jnp.maximum(low, low2), jnp.minimum(high, high2))
  either = area(low, high) + area(low2, high2) - both
  hull = area(jnp.minimum(low, low2), jnp.maximum(high, high2))
  return both / (either + _TINY) - (hull - either) / (hull + _TINY)


def costs(
  logits: jax.Array,
  boxes: jax.Array,
  labels: jax.Array,
  true_boxes: jax.Array,
  valid: jax.Array,
  *,
  weights: Weights = WEIGHTS,
) -> jax.Array:
  """What it costs that slot q answers for object n, `[Q, N]` float32.

  Minus the probability of its class, the L1 distance and minus the generalised
  overlap, weighted. What is no object costs 0 everywhere.

  Args:
    logits: `[Q, K + 1]`, class 0 is no object.
    boxes: `[Q, 4]`, centre and size as shares.
    labels: `[N]` integers from 1.
    true_boxes: `[N, 4]`, likewise.
    valid: `[N]` bool.
    weights: of the parts.
  """
  shares = jax.nn.softmax(logits.astype(jnp.float32))
  true_boxes = arrays.kept(true_boxes, valid, 0.5)
  label = -shares[:, jnp.where(valid, labels, 0)]
  distance = jnp.abs(boxes[:, None] - true_boxes).sum(-1)
  overlap = generalised_iou(boxes[:, None], true_boxes)
  total = weights.label * label + weights.l1 * distance - weights.giou * overlap
  return jnp.where(valid, total, 0.0)


def match(cost: jax.Array) -> jax.Array:
  """The slot of each object in the cheapest assignment, `[N]` int32.

  Args:
    cost: `[Q, N]` with Q at least N; columns of equal numbers bind nothing.

  Raises:
    ValueError: more objects than slots.
  """
  num_slots, num = cost.shape
  checks.int_in_range("objects", num, 0, num_slots)
  slot, of = optax.assignment.hungarian_algorithm(cost)
  return jnp.zeros(num, jnp.int32).at[of].set(slot.astype(jnp.int32))


def _loss_of_one(logits, boxes, labels, true_boxes, valid, weights: Weights):
  """Sums over the slots and objects of an image."""
  logits = logits.astype(jnp.float32)
  boxes = boxes.astype(jnp.float32)
  true_boxes = arrays.kept(true_boxes, valid, 0.5)
  cost = costs(logits, boxes, labels, true_boxes, valid, weights=weights)
  slot = jax.lax.stop_gradient(match(jax.lax.stop_gradient(cost)))
  slot = jnp.where(valid, slot, len(logits))  # Beyond the last one: nowhere.
  target = jnp.zeros(len(logits), jnp.int32)
  target = target.at[slot].set(labels.astype(jnp.int32), mode="drop")
  each = jnp.where(target > 0, 1.0, weights.no_object)
  log_shares = jax.nn.log_softmax(logits)
  own = jnp.take_along_axis(log_shares, target[:, None], axis=-1)[:, 0]
  found = boxes[jnp.where(valid, slot, 0)]
  distance = jnp.abs(found - true_boxes).sum(-1)
  lost = 1.0 - generalised_iou(found, true_boxes)
  of_valid = lambda x: jnp.where(valid, x, 0.0).sum()
  return {
    "label": -(each * own).sum(),
    "label_weight": each.sum(),
    "l1": of_valid(distance),
    "giou": of_valid(lost),
    "objects": valid.sum().astype(jnp.float32),
    "right": of_valid(
      logits[jnp.where(valid, slot, 0)].argmax(-1) == labels
    ).astype(jnp.float32),
  }


def set_loss(
  logits: jax.Array,
  boxes: jax.Array,
  labels: jax.Array,
  true_boxes: jax.Array,
  valid: jax.Array,
  *,
  weights: Weights = WEIGHTS,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of slots under the best matching (arXiv 2005.12872, eq. 2).

  The weighted mean of the cross-entropies of all slots; L1 and 1 - GIoU of the
  matched ones as means over all objects of the batch.

  Args:
    logits: `[B, Q, K + 1]`, class 0 is no object.
    boxes: `[B, Q, 4]`, centre and size as shares.
    labels: `[B, N]` integers from 1, N at most Q.
    true_boxes: `[B, N, 4]`, centre and size.
    valid: `[B, N]` bool.
    weights: of the parts.

  Returns:
    The loss, and its parts with the accuracy of the classes, all float32.
  """
  found = jax.vmap(_loss_of_one, in_axes=(0,) * 5 + (None,))(
    logits, boxes, labels, true_boxes, valid, weights
  )
  total = jax.tree.map(jnp.sum, found)
  mean = lambda name, by: arrays.ratio(total[name], total[by], 0.0)
  parts = {
    "label_loss": mean("label", "label_weight"),
    "l1": mean("l1", "objects"),
    "giou_loss": mean("giou", "objects"),
    "accuracy": mean("right", "objects"),
  }
  loss = weights.label * parts["label_loss"] + weights.l1 * parts["l1"]
  return loss + weights.giou * parts["giou_loss"], parts
