"""The device's attention is attention; on a CPU by Pallas' interpreter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.nn import attention, fused, transformer

_B, _T, _H, _G, _D = 2, 100, 2, 1, 16


def _draw(groups=_G):
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = [(_B, _T, _H, _D), *2 * [(_B, _T, groups, _D)]]
  return [jax.random.normal(k, s) for k, s in zip(keys, shapes)]


def _told(fn, args):
  weights = jax.random.normal(jax.random.key(9), (_B, _T, _H, _D))
  total = lambda *a: jnp.sum(jnp.nan_to_num(fn(*a)) * weights)
  return jax.jit(lambda a: (fn(*a), jax.grad(total, (0, 1, 2))(*a)))(args)


def _full(valid, causal):
  mask = attention.combine_masks(
    None if valid is None else attention.padding_mask(valid),
    attention.causal_mask(_T) if causal else None,
  )
  return lambda q, k, v: attention.attend(q, k, v, mask)


def _same(found, wanted, tol):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


_VALID = np.arange(_T)[None] < np.array([[_T], [37]])


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_for_tpu_interpreted(causal):
  args, valid = _draw(), jnp.asarray(_VALID)
  kernel = functools.partial(fused._splash_local, causal=causal, interpret=True)
  ours = lambda q, k, v: kernel(q, k, v, valid)
  _same(_told(ours, args), _told(_full(valid, causal), args), 2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_and_what_is_not_finite(causal):
  query, key, value = _draw(_H)
  valid = jnp.asarray(_VALID[:, ::-1])  # the first queries may see nothing
  query = query.at[0, 3].set(jnp.nan)
  key = key.at[1, 80, 1, 2].set(jnp.inf)
  args = (query, key.at[1, 5].set(jnp.nan), value)
  ours = lambda q, k, v: fused.attend(q, k, v, valid, causal=causal)
  found, wanted = _told(ours, args), _told(_full(valid, causal), args)
  assert np.isnan(np.asarray(wanted[0])).any()
  _same(found, wanted, 2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_a_stack_is_the_same_by_any_kernel(causal):
  make = lambda kernel: transformer.Stack(
    1, 2, 16, causal=causal, use_rotary=causal, kernel=kernel
  )
  x = jax.random.normal(jax.random.key(0), (2, 9, 8))
  valid = jnp.arange(9) < jnp.array([[9], [4]])
  keys, values = jax.random.normal(jax.random.key(1), (2, 1, 3, 2, 4))
  params = jax.jit(make("full").init)(jax.random.key(2), x)

  def told(kernel):
    prefixed = dict(extra_key_values={0: (keys, values)})
    run = lambda p: tuple(
      make(kernel).apply(p, x, valid=valid, **more)[valid]
      for more in (prefixed, {})
    )
    total = lambda p: sum(jnp.sum(y**2) for y in run(p))
    return jax.jit(lambda p: (run(p), jax.grad(total)(p)))(params)

  wanted = told("full")
  for kernel in ("blockwise", "fused"):
    _same(told(kernel), wanted, 1e-4)


def test_the_first_rows_alone_by_any_kernel():
  x = jax.random.normal(jax.random.key(0), (2, 9, 8))
  make = lambda kernel: transformer.Stack(1, 2, 16, kernel=kernel)
  params = jax.jit(make("full").init)(jax.random.key(2), x)
  full, *others = (
    make(kernel).apply(params, x, num_rows=1) for kernel in attention.KERNELS
  )
  for found in others:
    np.testing.assert_allclose(found, full, atol=1e-5)


def test_half_precision_without_padding():
  args = [x.astype(jnp.bfloat16) for x in _draw()]
  found = jax.jit(fused.attend)(*args)
  wanted = attention.attend(*args)
  assert found.dtype == jnp.bfloat16
  as_wide = lambda x: np.asarray(x, np.float32)
  np.testing.assert_allclose(as_wide(found), as_wide(wanted), atol=0.02)


def test_a_mesh_cuts_examples_and_heads():
  mesh = jax.sharding.AbstractMesh((2, 4, 3), ("data", "model", "expert"))
  assert fused._axes(mesh, 12, 8, 4) == (("data", "expert"), "model")
  assert fused._axes(mesh, 2, 8, 1) == (("data",), None)


def test_bad_sizes_and_kernels_are_named():
  query, key, value = _draw()
  with pytest.raises(ValueError, match="query has 100 tokens and key 9"):
    fused.attend(query, key[:, :9], value[:, :9])
  with pytest.raises(ValueError, match="kernel='fast'"):
    attention.MultiHeadAttention(2, kernel="fast").init(
      jax.random.key(0), jnp.zeros((1, 2, 4))
    )
