"""Replay buffers as pure state: arrays in, arrays out, nothing random inside.

  reservoir       algorithm R (Vitter 1985): after n examples each of them is
                  in the buffer with probability capacity / n
  per_class_ring  the latest m examples of every class
  balanced        the greedy balancing sampler of GDumb (Prabhu et al., ECCV
                  2020): a class with fewer than capacity / classes seen takes
                  the place of a random example of the largest class

A buffer is a tree of arrays: it goes into the model state of a run, is saved
with it, and a resumed run has the same one. The random number of an insertion
is `fold_in(key, how many were offered before)`, so with one key for a stream
the buffer does not depend on how the stream is cut into batches, and masked
examples are as good as absent.

Letters in shapes: S slots (the capacity), n examples, C classes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks, trees, types

KINDS = ("reservoir", "ring", "balanced")
_EMPTY = -1
_LAST = np.iinfo(np.int32).max - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplayBuffer:
  """Examples kept of a stream; made by the functions of this file.

  Attributes:
    examples: tree of `[S, ...]`.
    classes: `[S]` int32: the class of each slot (0 in a reservoir), -1 where
      it is empty.
    counts: `[C]` int32: how many were offered of each class (`[1]` in a
      reservoir, of all); it stays at the largest int32 once it is there.
    kind: one of `KINDS`.
  """

  examples: types.PyTree
  classes: jax.Array
  counts: jax.Array
  kind: str = dataclasses.field(metadata={"static": True})

  @property
  def capacity(self) -> int:
    """S, the number of slots."""
    return self.classes.shape[0]

  @property
  def num_filled(self) -> jax.Array:
    """How many slots hold an example, `[]` int32."""
    return jnp.sum(self.classes >= 0)

  @property
  def num_seen(self) -> jax.Array:
    """How many examples were offered, `[]` int32."""
    total = jnp.zeros((), jnp.int32)
    add = lambda i, t: t + jnp.minimum(self.counts[i], _LAST - t)
    return jax.lax.fori_loop(0, self.counts.shape[0], add, total)

  def class_counts(self, num_classes: int) -> jax.Array:
    """How many slots each class has, `[num_classes]` int32."""
    return (
      jnp.zeros(num_classes, jnp.int32)
      .at[self.classes]
      .add(self.classes >= 0, mode="drop")
    )


def _empty(example: types.PyTree, slots: int, classes: int, kind: str):
  def room(path, x):
    x = checks.array(f"example/{path}", x)
    return jnp.zeros((slots, *x.shape), x.dtype)

  if not jax.tree.leaves(example):
    raise ValueError("example has no arrays: a buffer must hold something.")
  return ReplayBuffer(
    examples=trees.map_with_path(room, example),
    classes=jnp.full(slots, _EMPTY, jnp.int32),
    counts=jnp.zeros(classes, jnp.int32),
    kind=kind,
  )


def reservoir(example: types.PyTree, *, capacity: int) -> ReplayBuffer:
  """An empty buffer that will be a uniform sample of all it was offered.

  Args:
    example: one example, a tree of arrays; only shapes and dtypes matter.
    capacity: number of examples kept, 1 or more.

  Raises:
    ValueError: a bad capacity, no arrays, integers that JAX would not hold.
  """
  checks.positive_int("capacity", capacity)
  return _empty(example, capacity, 1, "reservoir")


def per_class_ring(
  example: types.PyTree, *, per_class: int, num_classes: int
) -> ReplayBuffer:
  """An empty buffer that will hold the latest examples of each class.

  Args:
    example: one example, a tree of arrays; only shapes and dtypes matter.
    per_class: slots of each class, 1 or more.
    num_classes: C.

  Raises:
    ValueError: a bad number, no arrays, integers that JAX would not hold.
  """
  checks.positive_int("per_class", per_class)
  checks.positive_int("num_classes", num_classes)
  return _empty(example, per_class * num_classes, num_classes, "ring")


def balanced(
  example: types.PyTree, *, capacity: int, num_classes: int
) -> ReplayBuffer:
  """An empty buffer that will hold the same number of each class seen.

  Args:
    example: one example, a tree of arrays; only shapes and dtypes matter.
    capacity: number of examples kept, at least C.
    num_classes: C.

  Raises:
    ValueError: a bad number, no arrays, integers that JAX would not hold.
  """
  checks.positive_int("num_classes", num_classes)
  checks.positive_int("capacity", capacity)
  checks.int_in_range("capacity", capacity, num_classes, _LAST)
  return _empty(example, capacity, num_classes, "balanced")


def _offer(key, position, bound):
  """A number in [0, bound), the draw of the example at a position."""
  return jax.random.randint(jax.random.fold_in(key, position), (), 0, bound)


def _reservoir_slots(buffer, key, live):
  """The slots that examples go to, S for none; algorithm R, all at once."""
  seen = buffer.counts[0]
  before = jnp.cumsum(live) - live
  position = seen + jnp.minimum(before, _LAST - seen)
  draws = jax.vmap(_offer, (None, 0, 0))(key, position, position + 1)
  slots = jnp.where(position < buffer.capacity, position, draws)
  slots = jnp.where(live & (slots < buffer.capacity), slots, buffer.capacity)
  return slots.astype(jnp.int32), jnp.zeros_like(slots, jnp.int32)


def _ring_slots(buffer, labels, live):
  """Slot `class * m + (number of the class before) mod m`; S for none."""
  num_classes = buffer.counts.shape[0]
  per_class = buffer.capacity // num_classes
  of_class = live[:, None] & (labels[:, None] == jnp.arange(num_classes))
  before = jnp.cumsum(of_class, axis=0) - of_class
  before = jnp.take_along_axis(before, labels[:, None], axis=1)[:, 0]
  place = (buffer.counts[labels] + before) % per_class
  slots = jnp.where(live, labels * per_class + place, buffer.capacity)
  return slots.astype(jnp.int32), labels


def _balanced_slots(buffer, key, labels, live):
  """One example after the other: who comes depends on who is there."""
  capacity, num_classes = buffer.capacity, buffer.counts.shape[0]

  def body(carry, inputs):
    classes, offered, position = carry
    label, is_live = inputs
    counts = jnp.zeros(num_classes, jnp.int32)
    counts = counts.at[classes].add(classes >= 0, mode="drop")
    known = (offered > 0).at[label].set(True)
    # count < S / classes seen, in integers.
    room = counts[label] * jnp.sum(known) < capacity
    largest = classes == jnp.argmax(counts)
    draw = _offer(key, position, jnp.maximum(jnp.sum(largest), 1))
    victim = jnp.argmax(jnp.cumsum(largest) == draw + 1)
    free = jnp.argmax(classes < 0)
    slot = jnp.where(jnp.any(classes < 0), free, victim)
    slot = jnp.where(is_live & room, slot, capacity).astype(jnp.int32)
    classes = classes.at[slot].set(label, mode="drop")
    offered = offered.at[label].add(is_live)
    position = position + (is_live & (position < _LAST))
    return (classes, offered, position), slot

  carry = (buffer.classes, buffer.counts, buffer.num_seen)
  _, slots = jax.lax.scan(body, carry, (labels, live))
  return slots, labels


def _written_last(slots, capacity):
  """The slots, with S where a later example goes to the same one."""
  order = jnp.arange(slots.shape[0])
  last = jnp.full(capacity + 1, -1).at[slots].max(order)
  return jnp.where(last[slots] == order, slots, capacity)


def insert(
  buffer: ReplayBuffer,
  examples: types.PyTree,
  *,
  key: jax.Array | None = None,
  labels: ArrayLike | None = None,
  mask: ArrayLike | None = None,
) -> ReplayBuffer:
  """The buffer after a batch was offered to it, in order; jittable.

  Args:
    buffer: of any kind.
    examples: tree of `[n, ...]`, with the names and dtypes of the buffer.
    key: typed PRNG key of the stream; the ring needs none.
    labels: `[n]` integers in [0, C), for all but the reservoir.
    mask: `[n]`, zero at examples that are not offered (padding).

  Returns:
    A new buffer. Examples with a label outside [0, C) are not offered.

  Raises:
    ValueError: other names, shapes or dtypes; key or labels missing; unless
      traced, a label out of range.
  """
  num = _check_examples(buffer, examples)
  live = jnp.ones(num, bool) if mask is None else jnp.asarray(mask) != 0
  checks.same_shape("mask", live.shape, "the batch", (num,))
  if key is None and buffer.kind != "ring":
    raise ValueError(
      f"key=None is not allowed: a {buffer.kind} buffer needs it."
    )
  if buffer.kind == "reservoir":
    slots, classes = _reservoir_slots(buffer, key, live)
  else:
    classes, live = _check_labels(buffer, labels, live)
    if buffer.kind == "ring":
      slots, _ = _ring_slots(buffer, classes, live)
    else:
      slots, _ = _balanced_slots(buffer, key, classes, live)
  offered = jnp.zeros_like(buffer.counts).at[classes].add(live)
  slots = _written_last(slots, buffer.capacity)
  put = lambda old, new: old.at[slots].set(jnp.asarray(new), mode="drop")
  return dataclasses.replace(
    buffer,
    examples=jax.tree.map(put, buffer.examples, examples),
    classes=put(buffer.classes, classes),
    counts=buffer.counts + jnp.minimum(offered, _LAST - buffer.counts),
  )


def _check_examples(buffer, examples) -> int:
  """Names, shapes and dtypes go with the buffer's; the number of examples."""
  wanted, found = trees.flatten(buffer.examples), trees.flatten(examples)
  if wanted.keys() != found.keys():
    raise ValueError(
      f"examples has the names {sorted(found)} and the buffer "
      f"{sorted(wanted)}: they must be equal."
    )
  sizes = {np.shape(x)[:1] for x in found.values()}
  if len(sizes) != 1 or sizes == {()}:
    raise ValueError(
      f"examples has leading sizes {sorted(sizes)}: they must all be the same."
    )
  for name, x in found.items():
    room, x = wanted[name], checks.array(f"examples/{name}", x)
    checks.same_shape(
      f"examples/{name}[0]", x.shape[1:], "that of the buffer", room.shape[1:]
    )
    if x.dtype != room.dtype:
      raise ValueError(
        f"examples/{name} has dtype {x.dtype}, which is not allowed: the "
        f"buffer holds {room.dtype}."
      )
  return sizes.pop()[0]


def _check_labels(buffer, labels, live):
  """Labels that index the classes, and who counts."""
  if labels is None:
    raise ValueError(
      f"labels=None is not allowed: a {buffer.kind} buffer needs them."
    )
  num_classes = buffer.counts.shape[0]
  labels = checks.index_array("labels", labels)
  checks.same_shape("labels", labels.shape, "the batch", live.shape)
  there = (labels >= 0) & (labels < num_classes)
  wrong = live & ~there
  if arrays.is_concrete(wrong) and np.asarray(wrong).any():
    found = sorted(set(np.asarray(labels)[np.asarray(wrong)].tolist()))
    raise ValueError(
      f"labels holds {found}, which is not allowed: they must be in "
      f"[0, {num_classes - 1}]."
    )
  return jnp.where(there, labels, 0), live & there


def sample(
  buffer: ReplayBuffer, key: jax.Array, num: int
) -> tuple[types.PyTree, jax.Array]:
  """Examples drawn from the buffer; jittable.

  Uniform over the slots that are filled, without replacement. Where fewer than
  `num` are filled, all are drawn in a random order, again and again.

  Args:
    buffer: of any kind.
    key: typed PRNG key.
    num: examples wanted, 1 or more.

  Returns:
    `(examples, mask)`: tree of `[num, ...]`, and `[num]` float32, zeros if the
    buffer is empty and else ones.

  Raises:
    ValueError: a bad number.
  """
  checks.positive_int("num", num)
  draws = jax.random.uniform(key, (buffer.capacity,))
  order = jnp.argsort(jnp.where(buffer.classes >= 0, draws, 2.0))
  filled = buffer.num_filled
  rows = order[jnp.arange(num) % jnp.maximum(filled, 1)]
  mask = jnp.full(num, filled > 0).astype(jnp.float32)
  return jax.tree.map(lambda x: x[rows], buffer.examples), mask


def contents(buffer: ReplayBuffer) -> types.PyTree:
  """What the filled slots hold, tree of NumPy `[filled, ...]`.

  On the host: for a stage that trains on the buffer alone, or a linear probe.

  Raises:
    ValueError: the buffer is empty.
  """
  filled = np.asarray(buffer.classes) >= 0
  if not filled.any():
    raise ValueError("buffer is empty: it holds no example.")
  return jax.tree.map(lambda x: np.asarray(x)[filled], buffer.examples)
