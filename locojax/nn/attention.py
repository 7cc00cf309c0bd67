"""Multi-head attention with masks, rotary positions and a key-value cache.

Letters: B batch, T queries, S keys, N keys of a prefix, H heads, G heads of
keys and values, D size of a head, E model size.
A mask is True where a query may look at a key.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import arrays, checks
from locojax.nn import blockwise, fused, non_finite

ROTARY_STYLES = ("half", "interleaved")
KERNELS = ("full", "blockwise", "fused")


def causal_mask(num_queries: int, num_keys: int | None = None) -> jax.Array:
  """Each query sees the keys up to its own place, `[1, 1, T, S]` bool.

  With more keys than queries the queries are the last ones.
  """
  checks.positive_int("num_queries", num_queries)
  num_keys = num_queries if num_keys is None else num_keys
  checks.in_range("num_keys", num_keys, num_queries, float("inf"))
  last = jnp.arange(num_queries) + num_keys - num_queries
  return (jnp.arange(num_keys) <= last[:, None])[None, None]


def padding_mask(valid: jax.Array) -> jax.Array:
  """`[B, S]`, true at real keys, to `[B, 1, 1, S]` bool."""
  return valid.astype(bool)[:, None, None, :]


def combine_masks(*masks: jax.Array | None) -> jax.Array | None:
  """True where all masks are; None stands for a mask that hides nothing."""
  given = [m for m in masks if m is not None]
  if not given:
    return None
  out = given[0]
  for mask in given[1:]:
    out = jnp.logical_and(out, mask)
  return out


def valid_positions(
  valid: jax.Array, segment_ids: jax.Array | None = None
) -> jax.Array:
  """The place of each token among the real ones of its row, or segment.

  So padding, wherever it stands, moves nothing.

  Args:
    valid: `[B, T]`, true at real tokens.
    segment_ids: `[B, T]` integers; a change begins a segment, where places
      count from 0 again.

  Returns:
    `[B, T]` int32; padding has the place of the real token before it, or 0.
  """
  valid = valid.astype(jnp.int32)
  count = jnp.cumsum(valid, axis=-1)
  if segment_ids is None:
    return jnp.maximum(count - 1, 0)
  first = segment_ids[:, 1:] != segment_ids[:, :-1]
  first = jnp.pad(first, ((0, 0), (1, 0)), constant_values=True)
  before = jax.lax.cummax(jnp.where(first, count - valid, 0), axis=1)
  return jnp.maximum(count - before - 1, 0)


def segment_mask(segment_ids: jax.Array) -> jax.Array:
  """Tokens see those of their own segment, `[B, T]` to `[B, 1, T, T]` bool."""
  return (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]


def rotary(
  x: jax.Array,
  positions: jax.Array,
  *,
  max_period: float = 10_000.0,
  style: str = "half",
) -> jax.Array:
  """Rotary position embedding (Su et al. 2021, arXiv 2104.09864, eq. 34).

  A pair of numbers turns by positions * max_period^(-2i/D), so that the
  product of a query and a key depends on the difference of their positions.

  Args:
    x: `[B, T, H, D]`, D even.
    positions: `[B, T]` or `[1, T]` integers.
    max_period: the longest period, over 2 pi.
    style: what pair i is: 'half' (i, i + D/2), as most models since have it;
      'interleaved' (2i, 2i + 1), as in the paper. The same up to the order of
      the numbers of a head: weights of one do not serve the other.

  Returns:
    As `x`, dtype kept; the angles are in float32.
  """
  checks.divisible("size of a head", x.shape[-1], "rotary", 2)
  checks.one_of("rotary_style", style, ROTARY_STYLES)
  half = x.shape[-1] // 2
  rate = max_period ** -(jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions.astype(jnp.float32)[:, :, None, None] * rate
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  wide = x.astype(jnp.float32)
  if style == "half":
    a, b = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
  else:
    a, b = wide[..., 0::2], wide[..., 1::2]
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
  return turned.reshape(x.shape).astype(x.dtype)


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | None = None,
  bias: jax.Array | None = None,
  bad: jax.Array | None = None,
  *,
  heads_first: bool = False,
) -> jax.Array:
  """softmax(Q K^T / sqrt(D) + bias) V, with the softmax in float32.

  Args:
    query: `[B, T, H, D]`.
    key, value: `[B, S, G, D]`, where G divides H: each of their heads serves
      H / G heads of queries in turn (multi-query attention, Shazeer 2019,
      arXiv 1911.02150, is G = 1).
    mask: bool, broadcast to `[B, H, T, S]`.
    bias: added to the scores, broadcast to `[B, H, T, S]`; None adds nothing.
    bad: `[B, S, G]` bool, the keys and values that stand in for some that were
      not finite (see `non_finite`); None looks for them if there is a mask.
    heads_first: whether `key` and `value` are `[B, G, S, D]` and `bad`
      `[B, G, S]`, as a cache has them: products read them where they lie.

  Returns:
    `[B, T, H, D]` in the dtype of `value`. Masked keys count for nothing,
    whatever they and their values hold; a query that sees no key gives 0. With
    a mask, a query that is not finite, or sees a key or value that is not,
    gives NaN, and no gradient.
  """
  spoilt = None
  if mask is not None and bad is None:
    key, value, bad = non_finite.cleaned_pairs(key, value)
  if bad is not None:
    by_head = bad if heads_first else jnp.swapaxes(bad, 1, 2)
    query, spoilt = _spoilt(query, by_head, mask)
  stored = "gs" if heads_first else "sg"
  scores = _scores(query, key, stored) * query.shape[-1] ** -0.5
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1)
  if mask is not None:
    weights = jnp.where(mask, weights, 0.0)
  out = _weighted(weights.astype(value.dtype), value, stored)
  return out if spoilt is None else jnp.where(spoilt, jnp.nan, out)


def _scores(query, key, stored: str) -> jax.Array:
  """Products of queries and keys, `[B, H, T, S]` float32.

  Args:
    query: `[B, T, H, D]`.
    key: `[B, S, G, D]` if stored is 'sg', `[B, G, S, D]` if it is 'gs'.
    stored: see there.
  """
  heads, groups = query.shape[2], key.shape[1 + stored.index("g")]
  checks.divisible("num_heads", heads, "num_kv_heads", groups)
  wide = {"preferred_element_type": jnp.float32}
  if groups == heads:
    return jnp.einsum(f"btgd,b{stored}d->bgts", query, key, **wide)
  query = query.reshape(*query.shape[:2], groups, -1, query.shape[3])
  scores = jnp.einsum(f"btghd,b{stored}d->bghts", query, key, **wide)
  return scores.reshape(scores.shape[0], heads, *scores.shape[3:])


def _weighted(weights, value, stored: str) -> jax.Array:
  """Sums of values, `[B, T, H, D]`; `stored` as of `_scores`."""
  heads, groups = weights.shape[1], value.shape[1 + stored.index("g")]
  if groups == heads:
    return jnp.einsum(f"bgts,b{stored}d->btgd", weights, value)
  weights = weights.reshape(-1, groups, heads // groups, *weights.shape[2:])
  out = jnp.einsum(f"bghts,b{stored}d->btghd", weights, value)
  return out.reshape(*out.shape[:2], heads, -1)


def _spoilt(query, bad, mask):
  """Finite queries, and those `[B, T, H, 1]` that are not or see what is not.

  Args:
    query: `[B, T, H, D]`.
    bad: `[B, G, S]`, see `attend`.
    mask: of `attend`.
  """
  query, own = non_finite.cleaned(query)
  keys = jnp.repeat(bad, query.shape[2] // bad.shape[1], axis=1)
  seen = keys[:, :, None] | jnp.swapaxes(own, 1, 2)[..., None]
  seen = seen if mask is None else mask & seen
  found = jnp.swapaxes(jnp.any(seen, axis=-1), 1, 2)[..., None]
  return query, found


def with_prefix(
  prefix: tuple[jax.Array, jax.Array],
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Keys and values of a prefix in front, which every query sees.

  Prefix tuning (Li and Liang 2021, arXiv 2101.00190), after the projections.

  Args:
    prefix: keys and values, both `[B, N, H, D]` or `[1, N, H, D]`; N may be 0.
    key, value: `[B, S, H, D]`.
    mask: bool, broadcast to `[B, H, T, S]`.

  Returns:
    `(key, value, mask)` with N + S keys, in the dtypes of `key` and `value`.

  Raises:
    ValueError: no pair, or sizes that do not fit.
  """
  if not isinstance(prefix, tuple | list) or len(prefix) != 2:
    raise ValueError(
      f"prefix is a {type(prefix).__name__}: it must be a pair, keys and "
      "values."
    )
  checks.same_shape(
    "keys of the prefix", prefix[0].shape, "values", prefix[1].shape
  )
  shape = prefix[0].shape
  batch, num_keys, *rest = key.shape
  if len(shape) != 4 or shape[0] not in (1, batch) or [*shape[2:]] != rest:
    raise ValueError(
      f"prefix has shape {tuple(shape)}: it must be ({batch} or 1, N, "
      f"{rest[0]}, {rest[1]}), B or 1, N, heads, size of a head."
    )
  if mask is not None:
    mask = jnp.broadcast_to(mask, (*mask.shape[:-1], num_keys))
    before = [(0, 0)] * (mask.ndim - 1) + [(shape[1], 0)]
    mask = jnp.pad(mask, before, constant_values=True)
  wide = [jnp.broadcast_to(p, (batch, *shape[1:])) for p in prefix]
  key, value = (
    jnp.concatenate([p.astype(x.dtype), x], axis=1)
    for p, x in zip(wide, (key, value))
  )
  return key, value, mask


def _with_prefix_bias(
  bias: jax.Array | None, num_prefix: int, num_keys: int
) -> jax.Array | None:
  """A bias of the scores with zeros at the keys of a prefix."""
  if bias is None:
    return None
  bias = jnp.broadcast_to(bias, (*bias.shape[:-1], num_keys))
  return jnp.pad(bias, [(0, 0)] * (bias.ndim - 1) + [(num_prefix, 0)])


def _with_prefix_bad(num: int, key, value, bad):
  """Keys, values and `bad` where only those behind the first were looked at."""
  *first, own = non_finite.cleaned_pairs(key[:, :num], value[:, :num])
  key, value = (
    jnp.concatenate([new, x[:, num:]], axis=1)
    for new, x in zip(first, (key, value))
  )
  return key, value, jnp.concatenate([own, bad], axis=1)


def _swapped(*arrays_of_heads: jax.Array) -> tuple[jax.Array, ...]:
  """From heads in front of places to heads behind them, and back."""
  return tuple(jnp.swapaxes(x, 1, 2) for x in arrays_of_heads)


def _attend_in_groups(core, query, key, value, valid, bad) -> jax.Array:
  """Attention to a context whose rows serve one or more rows of queries.

  Samples and beams of one prompt have one copy of its context.
  """
  rows = key.shape[0]
  checks.divisible("rows of the input", query.shape[0], "rows of context", rows)
  mask = None if valid is None else padding_mask(valid)
  grouped = query.reshape(rows, -1, *query.shape[2:])
  return core(grouped, key, value, mask, bad=bad).reshape(query.shape)


class MultiHeadAttention(nn.Module):
  """Attention with dense layers `query`, `key`, `value` and `out`.

  Attributes:
    num_heads: H; without `head_size` it divides the size of the queries' input.
    causal: whether a query sees no later key; for attention to the input.
    use_rotary: whether queries and keys are turned by their positions.
    use_bias: whether the dense layers have one.
    decode: whether keys and values go to, and are read from, the cache: the
      collection `cache`, arrays `keys` and `values` of `[B, G, max_len, D]`,
      in the order in which attention reads them, and `bad` `[B, G, max_len]`,
      those that were not finite (zeros are kept in their place). There is no
      index of the cache: every call gives its `positions`. A query sees the
      places up to its own, whatever `causal` is.
    max_len: size of the cache.
    cross: whether keys and values come from `context` alone. With `decode`
      they are projected when it is given and kept in the collection `memory`,
      arrays `keys`, `values` and `bad` of `[B, G, S, D]` and `[B, G, S]`;
      later calls, without it, read them from there.
    remat: whether the backward pass computes the attention weights again.
    dtype: dtype of the computation; None follows the input.
    kernel_init: initialiser of the dense layers.
    num_kv_heads: G, heads of keys and values, which divide H; None is H. The
      cache has them alone.
    head_size: D, which H D need not make up E; None is E / H.
    rotary_style, rotary_period: of `rotary`.
    kernel: how attention to tokens is computed, equal up to rounding: 'full'
      holds all weights, `[B, H, T, S]`; 'blockwise' a block of them
      (`blockwise`); 'fused' takes the device's kernel (`fused`), and blocks
      where `mask`, `bias`, a prefix or a context is given. With `decode`, and
      for `cross` (in training too), it is always 'full'.

  No weight is dropped out. What is not finite where nobody looks changes
  nothing; where a query looks it gives NaN (see `attend`).
  """

  num_heads: int
  causal: bool = False
  use_rotary: bool = False
  use_bias: bool = True
  decode: bool = False
  max_len: int | None = None
  cross: bool = False
  remat: bool = False
  dtype: Any = None
  kernel_init: Any = nn.initializers.xavier_uniform()
  num_kv_heads: int | None = None
  head_size: int | None = None
  rotary_style: str = "half"
  rotary_period: float = 10_000.0
  kernel: str = "full"

  def _dense(self, size: int, name: str) -> nn.Dense:
    return nn.Dense(
      size,
      use_bias=self.use_bias,
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      name=name,
    )

  def _head_size(self, size: int) -> int:
    """D, for inputs of this size."""
    checks.positive_int("num_heads", self.num_heads)
    if self.num_kv_heads is not None:
      checks.positive_int("num_kv_heads", self.num_kv_heads)
      checks.divisible(
        "num_heads", self.num_heads, "num_kv_heads", self.num_kv_heads
      )
    if self.head_size is not None:
      return checks.positive_int("head_size", self.head_size)
    checks.divisible("size of the input", size, "num_heads", self.num_heads)
    return size // self.num_heads

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    *,
    valid: jax.Array | None = None,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    prefix: tuple[jax.Array, jax.Array] | None = None,
    bias: jax.Array | None = None,
  ) -> jax.Array:
    """`[B, T, E]` to `[B, T, E]`.

    Args:
      x: what asks; also what is asked, unless `context` is given.
      context: `[B, S, C]`, keys and values of cross-attention. With `cross` it
        may have B / n rows, each of which serves n rows of `x` in turn.
      valid: `[B, S]` bool, the keys that are no padding, which may hold
        anything: it is set to 0. With `decode` `[B, T]`, of the new tokens.
      mask: bool, broadcast to `[B, H, T, S]`, where S is `max_len` with
        `decode`; besides `causal` and `valid`.
      positions: `[B, T]` or `[1, T]`, places of the tokens for `use_rotary`
        and the cache; None counts from 0, in every call.
      prefix: keys and values, `[B, N, G, D]` or `[1, N, G, D]` each, that stand
        in front of those of the tokens and are seen by every query; no
        position turns them, no bias moves them, and no cache keeps them.
      bias: added to the scores, broadcast to `[B, H, T, S]`.

    Raises:
      ValueError: sizes that do not divide; a cache without `max_len`; a context
        that is missing, or one that is not for this module; a prefix that does
        not fit.
    """
    size = x.shape[-1]
    head_size = self._head_size(size)

    def project(y, name):
      heads = self.num_heads if name == "query" else self.num_kv_heads
      heads = heads or self.num_heads
      y = self._dense(heads * head_size, name)(y)
      return y.reshape(*y.shape[:-1], heads, head_size)

    if self.cross:
      query = project(x, "query")
      if context is not None:
        context = arrays.kept(context, valid)
      key, value, bad = self._remembered(context, project)
      core = self._core(heads_first=self.decode)
      out = _attend_in_groups(core, query, key, value, valid, bad)
      return self._dense(size, "out")(out.reshape(*out.shape[:2], -1))
    if context is None:
      x = source = arrays.kept(x, valid)
    else:
      source = arrays.kept(context, valid)
    if self.decode and context is not None:
      raise ValueError(
        "a context with decode=True is not allowed without cross=True."
      )
    query = project(x, "query")
    key, value = project(source, "key"), project(source, "value")
    limits = {"valid": valid, "mask": mask, "positions": positions}
    out = self._mixed(query, key, value, **limits, prefix=prefix, bias=bias)
    return self._dense(size, "out")(out.reshape(*out.shape[:2], -1))

  def _mixed(
    self, query, key, value, *, valid, mask, positions, prefix=None, bias=None
  ) -> jax.Array:
    """What is between the dense layers: turned, kept, attended to."""
    if positions is None:
      positions = jnp.arange(query.shape[1])[None]
    if self.use_rotary:
      turn = {"max_period": self.rotary_period, "style": self.rotary_style}
      query, key = (rotary(x, positions, **turn) for x in (query, key))
    bad = None
    if self.decode:
      key, value, bad, seen = self._cached(key, value, valid, positions)
      mask = combine_masks(mask, seen)
    elif checks.one_of("kernel", self.kernel, KERNELS) != "full":
      return self._in_blocks(query, key, value, valid, mask, prefix, bias)
    else:
      causal = causal_mask(query.shape[1]) if self.causal else None
      keys = None if valid is None else padding_mask(valid)
      mask = combine_masks(mask, causal, keys)
    heads_first = self.decode
    if prefix is not None:
      if heads_first:
        key, value, bad = _swapped(key, value, bad)
        heads_first = False
      num_keys, num_prefix = key.shape[1], prefix[0].shape[1]
      key, value, mask = with_prefix(prefix, key, value, mask)
      if bad is not None:
        key, value, bad = _with_prefix_bad(num_prefix, key, value, bad)
      bias = _with_prefix_bias(bias, num_prefix, num_keys)
    core = self._core(heads_first=heads_first)
    return core(query, key, value, mask, bias, bad)

  def _core(self, *, heads_first: bool):
    core = functools.partial(attend, heads_first=heads_first)
    return jax.checkpoint(core) if self.remat else core

  def _in_blocks(self, query, key, value, valid, mask, prefix, bias):
    """Without an array of all weights; masks are not combined before."""
    rest = (mask, prefix, bias)
    alone = all(x is None for x in rest) and query.shape[1] == key.shape[1]
    if self.kernel == "fused" and alone:
      return fused.attend(query, key, value, valid, causal=self.causal)
    masks = [mask, None if valid is None else padding_mask(valid)]
    if prefix is not None:
      num_keys = key.shape[1]
      masks = [
        None if m is None else with_prefix(prefix, key, value, m)[2]
        for m in masks
      ]
      key, value, _ = with_prefix(prefix, key, value)
      bias = _with_prefix_bias(bias, prefix[0].shape[1], num_keys)
    return blockwise.attend(
      query, key, value, tuple(masks), bias, causal=self.causal
    )

  def _remembered(self, context, project):
    """Keys, values and `bad` of the context: of now, or of before.

    As the cache has them with `decode`, else with the heads behind the places.
    """
    names = ("keys", "values", "bad")
    if context is not None:
      key, value = project(context, "key"), project(context, "value")
      if not self.decode:
        return key, value, None
      found = _swapped(*non_finite.cleaned_pairs(key, value))
      for name, x in zip(names, found):
        self.put_variable("memory", name, x)
      return found
    if not (self.decode and self.has_variable("memory", "keys")):
      raise ValueError(
        "context=None is not allowed with cross=True: it must be given, or "
        "have been given to a call before with decode=True, whose collection "
        "'memory' is at hand."
      )
    return tuple(self.get_variable("memory", name) for name in names)

  def _cached(self, key, value, valid, positions):
    """Writes at `positions`; the whole cache, and what is seen."""
    if self.max_len is None:
      raise ValueError("max_len=None is not allowed with decode=True.")
    batch, num = key.shape[:2]
    checks.in_range("number of tokens", num, 1, self.max_len)
    positions = jnp.broadcast_to(positions, (batch, num))
    place = positions
    if valid is not None:  # padding is written nowhere
      place = jnp.where(valid, positions, self.max_len)
    # Row by row, so that rows on several devices stay where they are.
    write = lambda to, at, x: to.at[:, at].set(x.swapaxes(0, 1), mode="drop")
    stored = []
    for name, new in zip(
      ("keys", "values", "bad"), non_finite.cleaned_pairs(key, value)
    ):
      shape = (batch, new.shape[2], self.max_len, *new.shape[3:])
      kept = self.variable("cache", name, jnp.zeros, shape, new.dtype)
      kept.value = jax.vmap(write)(kept.value, place, new)
      stored.append(kept.value)
    seen = jnp.arange(self.max_len) <= positions[:, None, :, None]
    return *stored, seen


class ProjectedAttention(MultiHeadAttention):
  """The same between its dense layers, which whoever calls it has."""

  @nn.compact
  def __call__(
    self,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    valid: jax.Array | None = None,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    bias: jax.Array | None = None,
  ) -> jax.Array:
    """`[B, T, H, D]`, with keys and values `[B, T, G, D]`, to `[B, T, H, D]`.

    Args:
      query, key, value: projected, of the same tokens.
      valid, mask, positions, bias: as of `MultiHeadAttention`; what padding
        holds must be finite.
    """
    limits = {"valid": valid, "mask": mask, "positions": positions}
    return self._mixed(query, key, value, **limits, bias=bias)
