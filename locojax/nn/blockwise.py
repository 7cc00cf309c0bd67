"""Attention that never holds its weights: blocks of queries by blocks of keys.

The softmax is taken as it goes (Milakov and Gimelshein 2018, arXiv 1805.02867):
the running maximum and sum of a query are kept, and the backward pass computes
the weights of a block again (Rabe and Staats 2021, arXiv 2112.05682; Dao et al.
2022, arXiv 2205.14135). Memory grows with T D instead of T S.

Letters: B batch, T queries, S keys, H heads, G heads of keys and values,
R = H / G, D size of a head, M and N sizes of a block of queries and of keys.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from locojax.core import checks
from locojax.nn import non_finite

_LEAST = float(jnp.finfo(jnp.float32).min)


class _Sizes(NamedTuple):
  """Of blocks, and whether a query sees no later key."""

  queries: int
  keys: int
  causal: bool
  offset: int  # place of the first query among the keys
  num_keys: int  # without padding


def _cut(x, axis: int, size: int, index):
  """Block `index` along an axis, or all of it where it is broadcast."""
  if x is None or x.shape[axis] == 1:
    return x
  return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _padded(x, axis: int, size: int):
  """Zeros behind, up to a multiple of `size`; broadcast axes stay."""
  short = -x.shape[axis] % size
  if x.shape[axis] == 1 or not short:
    return x
  widths = [(0, 0)] * x.ndim
  widths[axis % x.ndim] = (0, short)
  return jnp.pad(x, widths)


def _zeros(x: jax.Array) -> jax.Array:
  """float32 zeros, cut over devices as `x` is."""
  return jnp.where(False, x.astype(jnp.float32), 0.0)


def _seen(masks, sizes: _Sizes, i, j) -> jax.Array:
  """What a block of queries sees of a block of keys, `[B, G, R, M, N]`."""
  keys = j * sizes.keys + jnp.arange(sizes.keys)
  seen = (keys < sizes.num_keys)[None, :]
  if sizes.causal:
    queries = i * sizes.queries + jnp.arange(sizes.queries)
    seen = seen & (keys[None, :] <= queries[:, None] + sizes.offset)
  seen = seen[None, None, None]
  for mask in masks:
    part = _cut(_cut(mask, -2, sizes.queries, i), -1, sizes.keys, j)
    seen = seen & part
  return seen


def _block_scores(query, key, bias, sizes, i, j):
  """Scores of a block with its bias, `[B, G, R, M, N]` float32."""
  scores = jnp.einsum(
    "bgrtd,bgsd->bgrts", query, key, preferred_element_type=jnp.float32
  )
  scores = scores * query.shape[-1] ** -0.5
  if bias is not None:
    part = _cut(_cut(bias, -2, sizes.queries, i), -1, sizes.keys, j)
    scores = scores + part.astype(jnp.float32)
  return scores


def _queries_forward(query, key, value, bias, masks, sizes, i):
  """`(out, log-sum-exp)` of a block of queries."""

  def step(carry, j):
    top, total, out = carry
    k, v = (_cut(x, 2, sizes.keys, j) for x in (key, value))
    seen = _seen(masks, sizes, i, j)
    scores = _block_scores(query, k, bias, sizes, i, j)
    scores = jnp.where(seen, scores, _LEAST)
    new = jnp.maximum(top, scores.max(-1))
    weights = jnp.where(seen, jnp.exp(scores - new[..., None]), 0.0)
    shrink = jnp.exp(top - new)
    more = jnp.einsum(
      "bgrts,bgsd->bgrtd",
      weights.astype(v.dtype),
      v,
      preferred_element_type=jnp.float32,
    )
    total = total * shrink + weights.sum(-1)
    return (new, total, out * shrink[..., None] + more), None

  out = _zeros(query)
  carry = out[..., 0] + _LEAST, out[..., 0], out
  num = key.shape[2] // sizes.keys
  (top, total, out), _ = jax.lax.scan(step, carry, jnp.arange(num))
  safe = jnp.where(total > 0, total, 1.0)
  return out / safe[..., None], top + jnp.log(safe)


def _forward(query, key, value, bias, masks, sizes: _Sizes):
  """`(out, log-sum-exp)`, `[B, G, R, T, D]` and `[B, G, R, T]` float32."""
  num = query.shape[3] // sizes.queries

  def block(i):
    part = _cut(query, 3, sizes.queries, i)
    return _queries_forward(part, key, value, bias, masks, sizes, i)

  if num == 1:
    return block(0)
  out, log_sum = jax.lax.map(block, jnp.arange(num))
  join = lambda x: jnp.moveaxis(x, 0, 3).reshape(
    *x.shape[1:4], -1, *x.shape[5:]
  )
  return join(out), join(log_sum)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(query, key, value, bias, masks, sizes):
  return _forward(query, key, value, bias, masks, sizes)[0].astype(value.dtype)


def _attend_fwd(query, key, value, bias, masks, sizes):
  out, log_sum = _forward(query, key, value, bias, masks, sizes)
  out = out.astype(value.dtype)
  return out, (query, key, value, bias, masks, out, log_sum)


def _add_block(total, part, axes):
  """Adds a block; `axes` are `(axis, size, index)`, reduced if broadcast."""
  starts = [0] * total.ndim
  for axis in range(total.ndim):
    if total.shape[axis] == 1 and part.shape[axis] > 1:
      part = part.sum(axis, keepdims=True)
  for axis, size, index in axes:
    if total.shape[axis] > 1:
      starts[axis] = index * size
  old = jax.lax.dynamic_slice(total, starts, part.shape)
  return jax.lax.dynamic_update_slice(total, old + part, starts)


def _attend_bwd(sizes, kept, grad):
  query, key, value, bias, masks, out, log_sum = kept
  wide = grad.astype(jnp.float32)
  inner = jnp.sum(wide * out.astype(jnp.float32), axis=-1)
  scale = query.shape[-1] ** -0.5
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

  def pair(carry, i, j):
    d_key, d_value, d_bias, d_query = carry
    rows = lambda x: _cut(x, 3, sizes.queries, i)
    q, g, base, shift = (rows(x) for x in (query, grad, log_sum, inner))
    k, v = (_cut(x, 2, sizes.keys, j) for x in (key, value))
    scores = _block_scores(q, k, bias, sizes, i, j)
    seen = _seen(masks, sizes, i, j)
    weights = jnp.where(seen, jnp.exp(scores - base[..., None]), 0.0)
    d_weights = product("bgrtd,bgsd->bgrts", g, v)
    d_scores = weights * (d_weights - shift[..., None])
    narrow = (d_scores * scale).astype(q.dtype)
    keys = [(2, sizes.keys, j)]
    more = product("bgrts,bgrtd->bgsd", weights.astype(g.dtype), g)
    d_value = _add_block(d_value, more, keys)
    d_key = _add_block(d_key, product("bgrts,bgrtd->bgsd", narrow, q), keys)
    d_query = d_query + product("bgrts,bgsd->bgrtd", narrow, k)
    if bias is not None:
      places = [(3, sizes.queries, i), (4, sizes.keys, j)]
      d_bias = _add_block(d_bias, d_scores, places)
    return d_key, d_value, d_bias, d_query

  def queries(carry, i):
    start = _zeros(_cut(query, 3, sizes.queries, i))
    num = key.shape[2] // sizes.keys
    body = lambda c, j: (pair(c, i, j), None)
    (*carry, d_query), _ = jax.lax.scan(body, (*carry, start), jnp.arange(num))
    return tuple(carry), d_query

  num = query.shape[3] // sizes.queries
  carry = tuple(x if x is None else _zeros(x) for x in (key, value, bias))
  (d_key, d_value, d_bias), d_query = jax.lax.scan(
    queries, carry, jnp.arange(num)
  )
  d_query = jnp.moveaxis(d_query, 0, 3).reshape(query.shape)
  d_bias = None if bias is None else d_bias.astype(bias.dtype)
  none = tuple(None for _ in masks)
  return (
    *(d_query.astype(query.dtype), d_key.astype(key.dtype)),
    *(d_value.astype(value.dtype), d_bias, none),
  )


_attend.defvjp(_attend_fwd, _attend_bwd)


def _spoilt(bad, own, masks, sizes: _Sizes) -> jax.Array:
  """Queries that see what is not finite, or are not and see something.

  Args:
    bad: `[B, G, 1, 1, S]`, of the keys.
    own: `[B, G, R, T]`, of the queries.
    masks, sizes: of `_attend`.
  """

  def block(i):
    mine = _cut(own, 3, sizes.queries, i)

    def step(found, j):
      seen = _seen(masks, sizes, i, j)
      theirs = _cut(bad, 4, sizes.keys, j) | mine[..., None]
      return found | jnp.any(seen & theirs, axis=-1), None

    num = bad.shape[4] // sizes.keys
    return jax.lax.scan(step, mine & False, jnp.arange(num))[0]

  found = jax.lax.map(block, jnp.arange(own.shape[3] // sizes.queries))
  return jnp.moveaxis(found, 0, 3).reshape(own.shape)


def _grouped(x, groups: int, heads: int):
  """`[B or 1, H or 1, T or 1, S or 1]` as `[., G or 1, R or 1, ., .]`."""
  x = jnp.asarray(x)
  x = x.reshape((1,) * (4 - x.ndim) + x.shape)
  if x.shape[1] == 1:
    return x[:, :, None]
  return x.reshape(x.shape[0], groups, heads // groups, *x.shape[2:])


def _block_size(name: str, size: int, num: int) -> int:
  """Of a block, no longer than all there is."""
  return min(checks.positive_int(name, size), num)


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | tuple[jax.Array, ...] | None = None,
  bias: jax.Array | None = None,
  bad: jax.Array | None = None,
  *,
  causal: bool = False,
  query_block: int = 512,
  key_block: int = 512,
) -> jax.Array:
  """`attention.attend`, its weights a block at a time.

  The same values and gradients up to rounding.

  Args:
    query: `[B, T, H, D]`.
    key, value: `[B, S, G, D]`, where G divides H.
    mask: bool, broadcast to `[B, H, T, S]`, or several, all of which must be
      true: given apart, they stay as small as they are.
    bias: added to the scores, broadcast to `[B, H, T, S]`.
    bad: `[B, S, G]` bool, as for `attention.attend`.
    causal: whether a query sees no later key; with more keys than queries the
      queries are the last ones.
    query_block, key_block: M and N.

  Returns:
    `[B, T, H, D]` in the dtype of `value`.

  Raises:
    ValueError: G does not divide H; blocks that are not positive.
  """
  masks = mask if isinstance(mask, tuple) else (mask,)
  masks = tuple(m for m in masks if m is not None)
  heads, groups = query.shape[2], key.shape[2]
  checks.divisible("num_heads", heads, "num_kv_heads", groups)
  num_queries, num_keys = query.shape[1], key.shape[1]
  sizes = _Sizes(
    _block_size("query_block", query_block, num_queries),
    _block_size("key_block", key_block, num_keys),
    bool(causal),
    num_keys - num_queries,
    num_keys,
  )
  if (masks or causal) and bad is None:
    key, value, bad = non_finite.cleaned_pairs(key, value)
  own = None
  if bad is not None:
    query, own = non_finite.cleaned(query)

  def pad(x):
    x = _grouped(x, groups, heads)
    return _padded(_padded(x, 3, sizes.queries), 4, sizes.keys)

  split = query.reshape(*query.shape[:2], groups, -1, query.shape[3])
  split = _padded(jnp.moveaxis(split, 1, 3), 3, sizes.queries)
  key, value = (
    _padded(jnp.swapaxes(x, 1, 2), 2, sizes.keys) for x in (key, value)
  )
  masks = tuple(pad(m) for m in masks)
  wide = None if bias is None else pad(bias)
  out = _attend(split, key, value, wide, masks, sizes)
  if own is not None:
    own = own.reshape(*own.shape[:2], groups, -1)
    own = _padded(jnp.moveaxis(own, 1, 3), 3, sizes.queries)
    flags = jnp.swapaxes(bad, 1, 2)[:, :, None, None]
    flags = _padded(flags, 4, sizes.keys)
    spoilt = _spoilt(flags, own, masks, sizes)
    out = jnp.where(spoilt[..., None], jnp.nan, out)
  out = jnp.moveaxis(out, 3, 1)[:, :num_queries]
  return out.reshape(*out.shape[:2], heads, -1)
