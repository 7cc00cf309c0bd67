"""Attention by the kernels of the device, where its weights are never held.

On TPU the splash kernel of jax (Pallas), inside `shard_map` on a mesh, which
otherwise would gather its inputs; on GPU that of cuDNN for half precision
without padding; otherwise, and for dtypes that the kernels refuse, `blockwise`.
All give the values and gradients of `attention.attend` up to rounding.

Letters: B batch, T tokens, H heads, G heads of keys and values, D size of a
head.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from locojax.core import checks
from locojax.nn import blockwise, non_finite

_LANES = 128  # lengths are multiples of it on TPU
_BLOCKS = (512, 384, 256, _LANES)
_HEADS_AXIS = "model"
_HALF = (jnp.bfloat16, jnp.float16)


def _block(length: int) -> int:
  """The largest block that divides a multiple of `_LANES`."""
  return next(size for size in _BLOCKS if length % size == 0)


def _splash_kernel(num_heads: int, length: int, causal: bool, interpret: bool):
  """The kernel for one example; its masks are made once for each shape."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  one = splash.CausalMask if causal else splash.FullMask
  mask = splash.MultiHeadMask([one((length, length))] * num_heads)
  size = _block(length)
  names = (
    *("block_q", "block_kv", "block_kv_compute", "block_q_dkv"),
    *("block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"),
  )
  return splash.make_splash_mha(
    mask=mask,
    block_sizes=splash.BlockSizes(**dict.fromkeys(names, size)),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )


def _splash_local(query, key, value, valid, *, causal, interpret):
  """What one device has, `[B, T, H, D]`, all finite."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  num, short = query.shape[1], -query.shape[1] % _LANES
  pad = lambda x: jnp.pad(x, ((0, 0), (0, short), *((0, 0),) * (x.ndim - 2)))
  query = query * query.shape[-1] ** -0.5
  heads_first = lambda x: jnp.swapaxes(pad(x), 1, 2)
  kernel = _splash_kernel(query.shape[2], num + short, causal, interpret)
  keys = pad(valid).astype(jnp.int32)
  out = jax.vmap(
    lambda q, k, v, kinds: kernel(
      *(q, k, v), splash.SegmentIds(jnp.ones_like(kinds), kinds)
    )
  )(*(heads_first(x) for x in (query, key, value)), keys)
  return jnp.swapaxes(out, 1, 2)[:, :num].astype(value.dtype)


def _axes(mesh, batch: int, heads: int, groups: int):
  """Mesh axes over which examples and heads are cut, as far as they divide."""
  rows, ways = [], 1
  for name, size in mesh.shape.items():
    if name != _HEADS_AXIS and size > 1 and batch % (ways * size) == 0:
      rows.append(name)
      ways *= size
  cut = mesh.shape.get(_HEADS_AXIS, 1)
  whole = cut == 1 or heads % cut or groups % cut
  return tuple(rows), None if whole else _HEADS_AXIS


def _splash(query, key, value, valid, *, causal, interpret=False):
  run = functools.partial(_splash_local, causal=causal, interpret=interpret)
  mesh = jax.sharding.get_abstract_mesh()
  cut = not mesh.empty and math.prod(mesh.shape.values()) > 1
  if not cut or mesh.manual_axes:
    return run(query, key, value, valid)
  rows, heads = _axes(mesh, len(query), query.shape[2], key.shape[2])
  spec = jax.P(rows or None, None, heads)
  return jax.shard_map(
    run,
    in_specs=(spec, spec, spec, jax.P(rows or None)),
    out_specs=spec,
    check_vma=False,
  )(query, key, value, valid)


def _cudnn(query, key, value, valid, *, causal, padded):
  """cuDNN would hold a bias for the padding, so that it is left out there.

  Its form is refused in tracing where there is no GPU.
  """
  fits = query.dtype in _HALF and query.shape[-1] % 8 == 0
  if padded or not fits or jax.default_backend() != "gpu":
    return _blocks(query, key, value, valid, causal=causal)
  return jax.nn.dot_product_attention(
    query, key, value, is_causal=causal, implementation="cudnn"
  )


def _blocks(query, key, value, valid, *, causal):
  mask = valid[:, None, None]
  bad = jnp.zeros(key.shape[:3], bool)
  return blockwise.attend(query, key, value, mask, bad=bad, causal=causal)


def _any_so_far(flags: jax.Array, causal: bool) -> jax.Array:
  """`[B, T, ...]` bool: whether a query sees one that is true."""
  if causal:
    return jax.lax.cummax(flags.astype(jnp.int8), axis=1) > 0
  return jnp.broadcast_to(flags.any(axis=1, keepdims=True), flags.shape)


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array | None = None,
  *,
  causal: bool = False,
) -> jax.Array:
  """Self-attention by the device's kernel.

  Args:
    query: `[B, T, H, D]`.
    key, value: `[B, T, G, D]`, where G divides H.
    valid: `[B, T]` bool, the keys that are no padding.
    causal: whether a query sees no later key.

  Returns:
    `[B, T, H, D]` in the dtype of `value`; what is not finite as in
    `attention.attend`, without a mask too.

  Raises:
    ValueError: G does not divide H; keys and queries differ in number.
  """
  heads, groups = query.shape[2], key.shape[2]
  checks.divisible("num_heads", heads, "num_kv_heads", groups)
  if query.shape[1] != key.shape[1]:
    raise ValueError(
      f"query has {query.shape[1]} tokens and key {key.shape[1]}: they must be "
      "the same."
    )
  padded = valid is not None
  kept = valid if padded else jnp.ones(query.shape[:2], bool)
  key, value, bad = non_finite.cleaned_pairs(key, value)
  query, own = non_finite.cleaned(query)
  out = jax.lax.platform_dependent(
    *(query, key, value, kept.astype(bool)),
    tpu=functools.partial(_splash, causal=causal),
    cuda=functools.partial(_cudnn, causal=causal, padded=padded),
    default=functools.partial(_blocks, causal=causal),
  )
  sees = _any_so_far(kept.astype(bool), causal)[..., None]
  theirs = _any_so_far(bad & kept.astype(bool)[..., None], causal)
  theirs = jnp.repeat(theirs, heads // groups, axis=2)
  out = jnp.where(sees[..., None], out, 0)
  return jnp.where((theirs | (own & sees))[..., None], jnp.nan, out)
