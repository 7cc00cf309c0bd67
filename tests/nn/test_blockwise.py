"""Attention in blocks is attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.nn import attention, blockwise

_B, _T, _H, _G, _D = 2, 13, 4, 2, 8


def _draw(seed=0, num_keys=_T, groups=_G):
  keys = jax.random.split(jax.random.key(seed), 3)
  shapes = [(_B, _T, _H, _D), *2 * [(_B, num_keys, groups, _D)]]
  return [jax.random.normal(k, s) for k, s in zip(keys, shapes)]


def _masks(num_keys=_T):
  rng = np.random.default_rng(0)
  valid = np.arange(num_keys)[None] < np.array([[num_keys], [5]])
  drawn = rng.random((1, _H, _T, num_keys)) < 0.7
  drawn[:, 1, 4] = False  # sees nothing
  return jnp.asarray(valid)[:, None, None], jnp.asarray(drawn)


def _both(ours, theirs, args):
  """Values and gradients of a weighted sum, of both."""
  weights = jax.random.normal(jax.random.key(9), (_B, _T, _H, _D))

  def told(fn):
    total = lambda *a: jnp.sum(jnp.nan_to_num(fn(*a), nan=0.0) * weights)
    return fn(*args), jax.grad(total, argnums=tuple(range(len(args))))(*args)

  return jax.jit(told, static_argnums=0)(ours), jax.jit(told, static_argnums=0)(
    theirs
  )


def _same(found, wanted, tol=2e-6):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


@pytest.mark.parametrize("blocks", [(4, 5), (64, 64), (13, 1)])
def test_values_and_gradients_with_masks_and_bias(blocks):
  query, key, value = _draw()
  bias = jax.random.normal(jax.random.key(3), (1, _H, _T, _T))
  valid, drawn = _masks()
  sizes = dict(query_block=blocks[0], key_block=blocks[1])
  ours = lambda q, k, v, b: blockwise.attend(
    q, k, v, (valid, drawn), b, causal=True, **sizes
  )
  mask = attention.combine_masks(valid, drawn, attention.causal_mask(_T))
  theirs = lambda q, k, v, b: attention.attend(q, k, v, mask, b)
  _same(*_both(ours, theirs, (query, key, value, bias)))


def test_plain_and_more_keys_than_queries():
  query, key, value = _draw(num_keys=21, groups=_H)
  bias = jax.random.normal(jax.random.key(3), (_B, 1, 1, 21))
  ours = lambda *a: blockwise.attend(
    *a[:3], None, a[3], query_block=4, key_block=8
  )
  theirs = lambda *a: attention.attend(*a[:3], None, a[3])
  _same(*_both(ours, theirs, (query, key, value, bias)))
  late = lambda q, k, v: blockwise.attend(
    q, k, v, causal=True, query_block=4, key_block=8
  )
  mask = attention.causal_mask(_T, 21)
  full = lambda q, k, v: attention.attend(q, k, v, mask)
  _same(*_both(late, full, (query, key, value)))


def test_what_is_not_finite_is_nan_where_it_is_seen():
  query, key, value = _draw()
  query = query.at[0, 3, 1].set(jnp.inf)
  key = key.at[0, 7, 0, 2].set(jnp.nan)
  value = value.at[1, 12, 1].set(jnp.inf)  # under the mask
  valid, _ = _masks()
  ours = lambda q, k, v: blockwise.attend(
    q, k, v, valid, causal=True, query_block=4, key_block=5
  )
  mask = attention.combine_masks(valid, attention.causal_mask(_T))
  theirs = lambda q, k, v: attention.attend(q, k, v, mask)
  found, wanted = _both(ours, theirs, (query, key, value))
  assert np.isnan(np.asarray(wanted[0])).any()
  _same(found, wanted)


def test_half_precision_is_near():
  args = [x.astype(jnp.bfloat16) for x in _draw()]
  ours = lambda *a: blockwise.attend(*a, query_block=4, key_block=5)
  found, wanted = _both(ours, attention.attend, args)
  assert found[0].dtype == jnp.bfloat16
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(
      np.asarray(a, np.float32), np.asarray(b, np.float32), atol=0.05
    )


def test_no_array_of_all_weights():
  long = [jnp.zeros((1, 256, 2, 8))] * 3
  step = jax.grad(
    lambda *a: blockwise.attend(
      *a, causal=True, query_block=32, key_block=32
    ).sum(),
    argnums=(0, 1, 2),
  )
  full = jax.grad(
    lambda *a: attention.attend(*a, attention.causal_mask(256)).sum(),
    argnums=(0, 1, 2),
  )
  size = lambda fn: (
    jax.jit(fn).lower(*long).compile().memory_analysis().temp_size_in_bytes
  )
  assert size(step) < 0.4 * size(full)


def test_bad_blocks_are_named():
  args = _draw()
  with pytest.raises(ValueError, match="key_block=0"):
    blockwise.attend(*args, key_block=0)
  with pytest.raises(ValueError, match="num_kv_heads"):
    blockwise.attend(args[0], args[1][:, :, :1].repeat(3, 2), args[2])
