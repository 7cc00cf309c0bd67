"""Stacks: scan, remat and padding change nothing they should not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import trees
from locojax.nn import transformer
from locojax.train import flops
from tests import programs

close = np.testing.assert_allclose


def _stack(**kwargs):
  return transformer.Stack(2, 2, 16, **kwargs)


@pytest.fixture(scope="module")
def x():
  return jax.random.normal(jax.random.key(1), (2, 5, 8))


@pytest.fixture(scope="module")
def params(x):
  return jax.jit(_stack().init)(jax.random.key(0), x)["params"]


def _apply(model, params, x, **kwargs):
  run = jax.jit(lambda p, x, kw: model.apply({"params": p}, x, **kw))
  return run(params, x, kwargs)


def _value_and_grad(model, x):
  def loss(params):
    out = model.apply({"params": params}, x)
    return jnp.sum(jnp.sin(out)), out

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_names_of_the_layers(params):
  assert set(params) == {"block_0", "block_1", "norm"}
  kernels = [p for p in trees.flatten(params["block_0"]) if "kernel" in p]
  assert sorted(kernels) == [
    "attention/key/kernel",
    "attention/out/kernel",
    "attention/query/kernel",
    "attention/value/kernel",
    "feed_forward/down/kernel",
    "feed_forward/up/kernel",
  ]


def test_block_is_its_formula(x):
  block = transformer.Block(2, 16, activation=jnp.tanh)
  params = programs.init(block, jax.random.key(0), x)["params"]
  out, seen = block.apply(
    {"params": params}, x, capture_intermediates=True, mutable="intermediates"
  )
  seen = seen["intermediates"]
  attended = seen["attention"]["__call__"][0]
  up = seen["feed_forward"]["up"]["__call__"][0]
  down = params["feed_forward"]["down"]
  want = x + attended + jnp.tanh(up) @ down["kernel"] + down["bias"]
  close(out, want, rtol=1e-5, atol=1e-5)
  normed = seen["feed_forward_norm"]["__call__"][0]
  mean, std = jnp.mean(normed, -1), jnp.std(normed, -1)
  close(mean, jnp.zeros_like(mean), atol=1e-5)
  close(std, jnp.ones_like(std), rtol=1e-3)


def test_a_gated_block_with_rms_norms_is_its_formula(x):
  block = transformer.Block(
    2, 16, activation=jnp.tanh, gated=True, norm="rms", use_bias=False
  )
  params = block.init(jax.random.key(0), x)["params"]
  assert sorted(params["feed_forward"]) == ["down", "gate", "up"]
  assert all("bias" not in path for path in trees.flatten(params))
  out, seen = block.apply(
    {"params": params}, x, capture_intermediates=True, mutable="intermediates"
  )
  seen = seen["intermediates"]
  middle = x + seen["attention"]["__call__"][0]
  normed = middle / jnp.sqrt(jnp.mean(middle**2, -1, keepdims=True) + 1e-6)
  gate, up, down = (
    params["feed_forward"][name]["kernel"] for name in ("gate", "up", "down")
  )
  want = middle + (jnp.tanh(normed @ gate) * (normed @ up)) @ down
  close(out, want, rtol=1e-5, atol=1e-5)


def test_an_unknown_norm_is_refused(x):
  with pytest.raises(ValueError, match="norm='rmsnorm'.*'rms'"):
    jax.eval_shape(_stack(norm="rmsnorm").init, jax.random.key(0), x)


@pytest.fixture(scope="module")
def unrolled(x, params):
  (_, out), grads = _value_and_grad(_stack(causal=True), x)(params)
  return out, grads


@pytest.mark.parametrize("remat", transformer.REMATS)
@pytest.mark.parametrize("scan", [False, True])
def test_scan_and_remat_are_the_unrolled_stack(
  x, params, unrolled, scan, remat
):
  model = _stack(causal=True, scan=scan, remat=remat)
  given = transformer.stack_blocks(params) if scan else params
  (_, got), grads = _value_and_grad(model, x)(given)
  close(got, unrolled[0], rtol=1e-5, atol=1e-5)
  grads = transformer.unstack_blocks(grads) if scan else grads
  jax.tree.map(
    lambda a, b: close(a, b, rtol=1e-4, atol=1e-5), grads, unrolled[1]
  )


def test_remat_is_in_the_program(x, params):
  def count(remat):
    model = _stack(remat=remat)
    loss = lambda p: jnp.sum(model.apply({"params": p}, x))
    return flops.count_flops(jax.grad(loss), params)

  assert count("none") == count("dots") < count("attention") < count("block")


def test_remat_keeps_less_for_the_backward_pass(x, params):
  def kept(remat):
    run = lambda x: _stack(remat=remat).apply({"params": params}, x)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.vjp(run, x)[1]))

  found = [kept(remat) for remat in ("block", "dots", "none")]
  assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_some_rows_are_rows_of_all(x, params, remat):
  valid = jnp.array([[True, True, False, True, False]] * 2)

  def loss(x, rows, cut):
    model = _stack(remat=remat)
    out = model.apply({"params": params}, x, valid=valid, num_rows=rows)
    return jnp.sum(jnp.sin(out[:, :cut])), out

  both = jax.jit(
    lambda x: [
      jax.grad(loss, has_aux=True)(x, rows, 2) for rows in (2, None, 9)
    ]
  )
  (some, out), (every, full), (_, large) = both(x)
  assert out.shape == (2, 2, 8) and large.shape == full.shape
  close(out, full[:, :2], rtol=1e-5, atol=1e-5)
  close(some, every, rtol=1e-4, atol=1e-5)


def test_some_rows_cost_less(x, params):
  run = lambda rows: flops.count_flops(
    lambda x: _stack().apply({"params": params}, x, num_rows=rows), x
  )
  # Queries, their weights, what they see, `out` and the feed-forward layer.
  each = 2 * 2 * (2 * 8 * 8 + 2 * 5 * 8 + 2 * 8 * 16)
  assert run(None) - run(2) == 3 * each


def test_some_rows_of_a_scan_are_cut_off(x, params):
  stacked = transformer.stack_blocks(params)
  got = _stack(scan=True).apply({"params": stacked}, x, num_rows=2)
  want = _stack().apply({"params": params}, x, num_rows=2)
  close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["causal", "use_rotary", "decode"])
def test_some_rows_are_refused_where_places_count(x, params, name):
  with pytest.raises(ValueError, match="num_rows=2 is not allowed"):
    _stack(**{name: True}).apply({"params": params}, x, num_rows=2)
  with pytest.raises(ValueError, match="num_rows=0"):
    _stack().apply({"params": params}, x, num_rows=0)


def test_scan_draws_other_parameters_for_each_layer(x):
  init = jax.jit(_stack(scan=True).init)
  params = init(jax.random.key(0), x)["params"]
  kernel = params["blocks"]["attention"]["query"]["kernel"]
  assert kernel.shape == (2, 8, 8)
  assert float(jnp.max(jnp.abs(kernel[0] - kernel[1]))) > 0.1


def test_stack_and_unstack_are_inverse_in_any_order(params):
  shuffled = {k: params[k] for k in ("norm", "block_1", "block_0")}
  back = transformer.unstack_blocks(transformer.stack_blocks(shuffled))
  jax.tree.map(np.testing.assert_array_equal, back, dict(params))
  with pytest.raises(ValueError, match="block_0, block_1"):
    transformer.stack_blocks({"block_1": 0, "norm": 0})
  with pytest.raises(ValueError, match="'blocks'"):
    transformer.unstack_blocks(params)


def test_masked_tokens_are_removed_tokens(x, params):
  valid = jnp.array([[True, True, False, True, False]] * 2)
  got = _apply(_stack(), params, x, valid=valid)[:, valid[0]]
  want = _apply(_stack(), params, x[:, valid[0]])
  close(got, want, rtol=1e-5, atol=1e-5)


def test_mask_separates_packed_sequences(x, params):
  segment = jnp.array([0, 0, 1, 1, 1])
  mask = (segment[:, None] == segment[None])[None, None]
  got = _apply(_stack(), params, x, mask=mask)
  parts = [_apply(_stack(), params, y) for y in (x[:, :2], x[:, 2:])]
  close(got, jnp.concatenate(parts, axis=1), rtol=1e-5, atol=1e-5)


def test_mistakes_are_named(x):
  with pytest.raises(ValueError, match="remat='all'"):
    _stack(remat="all").init(jax.random.key(0), x)
  with pytest.raises(ValueError, match="num_layers=0"):
    transformer.Stack(0, 2, 16).init(jax.random.key(0), x)
