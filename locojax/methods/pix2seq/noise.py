"""Sequence augmentation: objects that are none, up to a fixed number.

Every image is filled with boxes moved to another place, boxes at random and
copies of real ones with jittered edges. The model learns to call them noise,
and their coordinates have no loss (Pix2Seq, arXiv 2109.10852, section 3).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locojax.core import checks
from locojax.methods.pix2seq import inputs

_RANDOM_SIZE = 0.5  # of |N(0, s)|, cut at 2 s: at most 1.


class Objects(NamedTuple):
  """Real objects first, noise behind them; all slots are full.

  Attributes:
    boxes: `[..., N, 4]` float32, normalised yxyx.
    labels: `[..., N]` int32, 0 for noise.
    is_noise: `[..., N]` bool.
    valid: `[..., N]` bool, all True.
  """

  boxes: jax.Array
  labels: jax.Array
  is_noise: jax.Array
  valid: jax.Array


def inject_noise_objects(
  key: jax.Array,
  boxes: Any,
  labels: Any,
  valid: Any,
  max_objects: int,
  *,
  jitter: float = 0.1,
  dup: str | float = "uniform",
  mix_rate: float = 0.0,
) -> Objects:
  """Fills each image with noise up to `max_objects` slots.

  With n real objects and m free slots, n_dup ~ U{0..m} (0 if n = 0) are copies
  of real ones, drawn without replacement from their tiling, whose edges move by
  at most `jitter` of the side (a normal of half that, cut at 2 sigma). The
  others are drawn among as many real ones moved to a uniform centre and as many
  boxes at random (uniform centre, sides |N(0, 0.5)| cut at 1). Noise is clipped
  to [0, 1] and shuffled. Real objects come first, in their order, untouched;
  of more than `max_objects` the first ones are kept.

  Args:
    key: a JAX key.
    boxes: `[..., n, 4]`, normalised yxyx. Images of a batch draw by themselves.
    labels: `[..., n]` integers, 1 or more.
    valid: `[..., n]` bool: which are objects.
    max_objects: N, slots of the result.
    jitter: in [0, 0.5]; see above.
    dup: `uniform`, or the share of free slots that are copies, in [0, 1].
    mix_rate: probability, image by image, that real objects are shuffled among
      those noise objects that are no copies, which then come last.

  Raises:
    ValueError: a bad setting or bad objects.
  """
  checks.positive_int("max_objects", max_objects)
  checks.in_range("jitter", jitter, 0, 0.5)
  checks.in_range("mix_rate", mix_rate, 0, 1)
  if dup != "uniform":
    if isinstance(dup, str):
      checks.refuse("dup", dup, "'uniform' or a share in [0, 1]")
    checks.in_range("dup", dup, 0, 1)
  boxes, labels, valid = inputs.objects(boxes, labels, valid)
  fill = functools.partial(
    _fill, num=int(max_objects), jitter=jitter, dup=dup, mix_rate=mix_rate
  )
  batch = boxes.shape[:-2]
  if not batch:
    return fill(key, boxes, labels, valid)
  flat = lambda a: a.reshape(-1, *a.shape[len(batch) :])
  found = jax.vmap(fill)(
    jax.random.split(key, flat(valid).shape[0]),
    *(flat(a) for a in (boxes, labels, valid)),
  )
  return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), found)


def _shuffle(key: jax.Array, among: jax.Array) -> jax.Array:
  """Positions: a random permutation of those in the mask, then the others."""
  draws = jax.random.uniform(key, among.shape)
  return jnp.argsort(jnp.where(among, draws, 2.0))


def _front(boxes, labels, valid, num: int):
  """The valid ones first, in their order, in `num` slots."""
  size = max(num, len(valid))
  at = jnp.argsort(~valid, stable=True)
  grow = lambda a: jnp.pad(
    a[at], ((0, size - len(valid)), *(((0, 0),) * (a.ndim - 1)))
  )
  return tuple(grow(a)[:num] for a in (boxes, labels, valid))


def _at(centre: jax.Array, size: jax.Array) -> jax.Array:
  """Boxes from centres and sizes `[n, 2]`, clipped."""
  corners = jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)
  return jnp.clip(corners, 0.0, 1.0)


def _bad(key, pool: jax.Array, real: jax.Array, num_bad: jax.Array):
  """`[N, 4]` of which the first `num_bad` are moved or random boxes."""
  keys = jax.random.split(key, 4)
  num = len(pool)
  wanted = jnp.arange(num) < num_bad
  centre = jax.random.uniform(keys[0], (num, 2))
  moved = _at(centre, pool[:, 2:] - pool[:, :2])
  draws = jax.random.truncated_normal(keys[1], -2.0, 2.0, (num, 2))
  centre = jax.random.uniform(keys[2], (num, 2))
  drawn = _at(centre, jnp.abs(draws) * _RANDOM_SIZE)
  among = jnp.concatenate([wanted & real, wanted])
  at = _shuffle(keys[3], among)[:num]
  return jnp.concatenate([moved, drawn])[at]


def _copies(key, pool: jax.Array, jitter: float) -> jax.Array:
  """The pool with edges moved by a share of the sides, clipped."""
  size = pool[:, 2:] - pool[:, :2]
  draws = jax.random.truncated_normal(key, -2.0, 2.0, pool.shape)
  moved = pool + jnp.tile(size, (1, 2)) * draws * (jitter / 2)
  return jnp.clip(moved, 0.0, 1.0)


def _num_copies(key, dup: str | float, n: jax.Array, m: jax.Array) -> jax.Array:
  if dup == "uniform":
    num = jax.random.randint(key, (), 0, m + 1)
  else:
    num = jnp.round(dup * m).astype(jnp.int32)
  return jnp.where(n > 0, num, 0)


def _order(key, n, num_bad, num: int, mix_rate: float) -> jax.Array:
  """Positions: real, then noise shuffled; or real and bad shuffled, copies."""
  coin, key = jax.random.split(key)
  slots = jnp.arange(num)
  draws = jax.random.uniform(key, (num,))
  behind = jnp.where(slots < n, slots - num, draws)
  mixed = jnp.where(slots < n + num_bad, draws, slots + 1)
  mix = jax.random.uniform(coin) < mix_rate
  return jnp.argsort(jnp.where(mix, mixed, behind))


def _fill(key, boxes, labels, valid, *, num, jitter, dup, mix_rate) -> Objects:
  """One image; see `inject_noise_objects`."""
  keys = jax.random.split(key, 6)
  boxes, labels, valid = _front(boxes, labels, valid, num)
  slots, n = jnp.arange(num), valid.sum()
  m = num - n
  num_dup = _num_copies(keys[0], dup, n, m)
  num_bad = m - num_dup
  some = jnp.maximum(n, 1)
  in_pool = slots < n * (m // some + 1)  # At most n + m = num of them.
  pool = boxes[slots % some]
  bad = _bad(keys[1], pool[_shuffle(keys[2], in_pool)], n > 0, num_bad)
  copies = _copies(keys[3], pool[_shuffle(keys[4], in_pool)], jitter)
  noise = jnp.where(
    (slots < n + num_bad)[:, None],
    bad[jnp.clip(slots - n, 0, num - 1)],
    copies[jnp.clip(slots - n - num_bad, 0, num - 1)],
  )
  at = _order(keys[5], n, num_bad, num, mix_rate)
  boxes = jnp.where(valid[:, None], boxes, noise)[at]
  return Objects(boxes, labels[at], ~valid[at], jnp.ones(num, bool))
