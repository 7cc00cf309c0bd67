"""In which order the objects of an image are told."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locojax.core import checks
from locojax.methods.pix2seq import inputs

_WITHIN = ("random", "area", "dist2ori", "none")
# `class_...`: by class first, and within a class by the other.
ORDERS = (*_WITHIN, "class_random", "class_area", "class_dist2ori")


class Ordered(NamedTuple):
  """Objects in an order, what is not valid last and 0.

  Attributes:
    boxes: `[..., n, 4]` float32.
    labels: `[..., n]` int32.
    valid: `[..., n]` bool.
  """

  boxes: jax.Array
  labels: jax.Array
  valid: jax.Array


def _rank(within: str, boxes: jax.Array, key: jax.Array | None) -> jax.Array:
  """Numbers by which objects are sorted, ascending and stable."""
  if within == "random":
    key = inputs.key_of(key, "the order 'random'")
    return jax.random.uniform(key, boxes.shape[:-1])
  size = boxes[..., 2:] - boxes[..., :2]
  if within == "area":
    return -size[..., 0] * size[..., 1]
  if within == "dist2ori":
    return boxes[..., 0] ** 2 + boxes[..., 1] ** 2
  return jnp.zeros(boxes.shape[:-1])


def order_objects(
  boxes: Any, labels: Any, valid: Any, order: str, key: jax.Array | None = None
) -> Ordered:
  """Sorts the objects of each image; what is not valid goes to the end.

  `random`, which the method uses, is a new permutation for each key; `area` is
  descending; `dist2ori` ascends in ymin^2 + xmin^2; `none` keeps the order.
  `class_random`, `class_area` and `class_dist2ori` have the class as the first
  key. Ties keep their order. (The official code casts areas to integers and
  sorts squares of corners by axis, so that its two sorted orders are none.)

  Args:
    boxes: `[..., n, 4]`, normalised yxyx.
    labels: `[..., n]` integers, 1 or more.
    valid: `[..., n]` bool.
    order: one of `ORDERS`.
    key: for the random ones.

  Raises:
    ValueError: an unknown order, no key for a random one, or bad objects.
  """
  checks.one_of("order", order, ORDERS)
  boxes, labels, valid = inputs.objects(boxes, labels, valid)
  rank = _rank(order.removeprefix("class_"), boxes, key)
  keys = (rank, labels) if order.startswith("class_") else (rank,)
  at = jnp.lexsort((*keys, ~valid), axis=-1)
  taken = lambda a: jnp.take_along_axis(a, at, axis=-1)
  ordered = jnp.take_along_axis(boxes, at[..., None], axis=-2)
  return Ordered(ordered, taken(labels), taken(valid))
