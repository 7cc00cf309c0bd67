"""Attention: its formula, masks, rotary positions and the cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.nn import attention
from tests import programs

close = np.testing.assert_allclose


def _qkv(num=5, heads=2, size=4, batch=2):
  keys = jax.random.split(jax.random.key(0), 3)
  return [jax.random.normal(k, (batch, num, heads, size)) for k in keys]


def _module(x, **kwargs):
  model = attention.MultiHeadAttention(2, **kwargs)
  x_or_token = x[:, :1] if kwargs.get("decode") else x
  params = programs.init(model, jax.random.key(3), x_or_token)["params"]
  return model, params


def test_attend_is_its_formula():
  q, k, v = (np.asarray(x, np.float64) for x in _qkv())
  mask = np.tril(np.ones((5, 5), bool))
  want = np.zeros_like(q)
  for b, h in np.ndindex(2, 2):
    scores = q[b, :, h] @ k[b, :, h].T / 2.0
    weights = np.where(mask, np.exp(scores), 0.0)
    weights /= weights.sum(-1, keepdims=True)
    want[b, :, h] = weights @ v[b, :, h]
  got = attention.attend(*_qkv(), attention.causal_mask(5))
  close(got, want, rtol=1e-5, atol=1e-6)


def test_attend_with_all_keys_masked_is_zero_with_finite_gradient():
  q, k, v = _qkv()
  mask = attention.padding_mask(jnp.array([[False] * 5, [True] * 5]))
  loss = lambda *x: jnp.sum(attention.attend(*x, mask) ** 2)
  assert not np.any(attention.attend(q, k, v, mask)[0])
  grads = jax.grad(loss, argnums=(0, 1, 2))(q, k, v)
  assert all(bool(jnp.all(jnp.isfinite(g))) for g in grads)
  assert not np.any(grads[2][0]) and np.any(grads[2][1])


def test_softmax_is_float32_whatever_the_inputs():
  q, k, v = (x.astype(jnp.bfloat16) for x in _qkv())
  text = str(jax.make_jaxpr(attention.attend)(q, k, v))
  lines = [line for line in text.splitlines() if " exp " in line]
  assert lines and all("f32[" in line.split(" = ")[0] for line in lines)
  assert attention.attend(q, k, v).dtype == jnp.bfloat16


def test_masks():
  causal = attention.causal_mask(2, 4)[0, 0]
  np.testing.assert_array_equal(causal, [[1, 1, 1, 0], [1, 1, 1, 1]])
  valid = jnp.array([[1, 0, 1, 1]])
  both = attention.combine_masks(None, causal, attention.padding_mask(valid))
  np.testing.assert_array_equal(both[0, 0], [[1, 0, 1, 0], [1, 0, 1, 1]])
  assert attention.combine_masks(None, None) is None
  np.testing.assert_array_equal(
    attention.valid_positions(jnp.array([[0, 1, 0, 1, 1, 0]])),
    [[0, 0, 0, 1, 2, 2]],
  )
  with pytest.raises(ValueError, match="num_keys=3"):
    attention.causal_mask(4, 3)


def test_rotary_keeps_norms_and_depends_on_differences_alone():
  q, k, _ = _qkv()
  positions = jnp.arange(5)[None]
  product = lambda shift: jnp.einsum(
    "bthd,bshd->bhts",
    attention.rotary(q, positions + shift),
    attention.rotary(k, positions + shift),
  )
  close(product(0), product(37), rtol=1e-4, atol=1e-4)
  turned = attention.rotary(q, positions)
  close(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(q, axis=-1), 1e-5)
  close(turned[:, 0], q[:, 0])
  assert float(jnp.max(jnp.abs(turned - q)[:, 1])) > 0.1
  angle = np.arctan2(turned[0, 1, 0, 2], turned[0, 1, 0, 0]) - np.arctan2(
    q[0, 1, 0, 2], q[0, 1, 0, 0]
  )
  close(np.cos(angle), np.cos(1.0), rtol=1e-5)  # the first pair turns by 1
  with pytest.raises(ValueError, match="size of a head=3"):
    attention.rotary(jnp.zeros((1, 1, 1, 3)), positions)


def test_masked_keys_are_removed_keys():
  x = jax.random.normal(jax.random.key(1), (1, 6, 8))
  model, params = _module(x)
  valid = jnp.array([[True, False, True, True, False, True]])
  got = model.apply({"params": params}, x, valid=valid)
  kept = x[:, valid[0]]
  want = model.apply({"params": params}, kept)
  close(got[:, valid[0]], want, rtol=1e-5, atol=1e-6)


def test_cross_attention_reads_the_context():
  x = jax.random.normal(jax.random.key(1), (2, 3, 8))
  context = jax.random.normal(jax.random.key(2), (2, 5, 6))
  model = attention.MultiHeadAttention(2)
  variables = programs.init(model, jax.random.key(0), x, context)
  assert variables["params"]["key"]["kernel"].shape == (6, 8)
  out = model.apply(variables, x, context)
  assert out.shape == (2, 3, 8)
  moved = model.apply(variables, x, context[:, ::-1])  # a set of keys
  close(out, moved, rtol=1e-5, atol=1e-6)


def test_a_cache_remembers_which_tokens_were_not_finite():
  """So no step looks at the whole cache, and the results are the same."""
  x = jax.random.normal(jax.random.key(1), (2, 4, 8))
  x = x.at[0, 2, 0].set(jnp.inf)
  model, params = _module(x, causal=True)
  want = jax.jit(model.apply)({"params": params}, x)
  cached = model.clone(decode=True, max_len=6)

  def one(cache, token, at):
    variables = {"params": params, "cache": cache}
    return cached.apply(variables, token, positions=at, mutable="cache")

  place = lambda i: jnp.full((2, 1), i)
  shapes = jax.eval_shape(lambda: one({}, x[:, :1], place(0))[1]["cache"])
  cache = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  run, out, caches = jax.jit(one), [], []
  for i in range(4):
    y, new = run(cache, x[:, i : i + 1], place(i))
    cache = new["cache"]
    out.append(y), caches.append(cache)
  close(jnp.concatenate(out, axis=1), want, rtol=1e-5, atol=1e-6)
  assert np.isnan(want[0, 2:]).all() and not np.isnan(want[1]).any()
  # Written over, the token is gone, and those behind it see nothing of it.
  _, new = run(caches[2], x[:, :1], place(2))
  y, _ = run(new["cache"], x[:, 3:], place(3))
  assert np.isfinite(y).all()
  text = str(jax.make_jaxpr(one)(cache, x[:, :1], place(0)))
  looked = [line for line in text.splitlines() if " is_finite " in line]
  assert looked and all("[2,1,2,4]" in line for line in looked)


def test_remat_changes_no_gradient():
  x = jax.random.normal(jax.random.key(1), (2, 4, 8))
  model, params = _module(x, causal=True, use_rotary=True)
  loss = lambda m: lambda p: jnp.sum(m.apply({"params": p}, x) ** 2)
  want = jax.grad(loss(model))(params)
  got = jax.grad(loss(model.clone(remat=True)))(params)
  jax.tree.map(lambda a, b: close(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_mistakes_are_named():
  x = jnp.zeros((1, 2, 9))
  with pytest.raises(ValueError, match="size of the input=9"):
    _module(x)
  x = jnp.zeros((1, 2, 8))
  with pytest.raises(ValueError, match="max_len=None"):
    _module(x, decode=True)
  model = attention.MultiHeadAttention(2, decode=True, max_len=1)
  with pytest.raises(ValueError, match="number of tokens=2"):
    model.init(jax.random.key(0), x)
