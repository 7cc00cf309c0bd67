"""What blocks drop in training: units of a layer, and whole additions."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import trees
from locojax.nn import lm, transformer

ROWS, KEY = 64, jax.random.key(3)


@functools.cache
def _x():
  """64 equal examples of three tokens."""
  x = np.random.default_rng(0).normal(size=(1, 3, 8))
  return jnp.float32(np.repeat(x, ROWS, axis=0))


def _drawn(module, *inputs):
  """Parameters from NumPy, feed-forward layers that add nothing."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  rng = np.random.default_rng(1)

  def fill(path, leaf):
    if path.endswith("scale"):
      return jnp.ones(leaf.shape)
    scale = 0.0 if "/down/" in f"/{path}" else 0.5
    return jnp.float32(rng.normal(0, scale, leaf.shape))

  return trees.map_with_path(fill, shapes)


def _run(module, params, train, key=KEY):
  run = functools.partial(module.apply, train=train)
  return np.asarray(
    jax.jit(run)({"params": params}, _x(), rngs={"dropout": key})
  )


def test_units_are_dropped_between_the_layers():
  module = transformer.FeedForward(8, activation=lambda x: x, dropout=0.25)
  one = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
  out = _run(module, {"up": one, "down": one}, True)
  x = np.asarray(_x())
  dropped = out == 0
  np.testing.assert_allclose(out[~dropped], (x / 0.75)[~dropped], rtol=1e-5)
  assert abs(dropped.mean() - 0.25) < 0.04
  still = _run(module, {"up": one, "down": one}, False)
  np.testing.assert_allclose(still, x, rtol=1e-5)


def test_an_addition_is_dropped_for_a_whole_example():
  module = transformer.Block(2, 16, drop_path=0.5)
  params = _drawn(module, _x())
  x = np.asarray(_x())
  added = _run(module, params, False) - x
  out = _run(module, params, True)
  none = np.abs(out - x).max(axis=(1, 2)) < 1e-5
  assert 16 < none.sum() < 48
  np.testing.assert_allclose(
    out[~none], (x + 2 * added)[~none], rtol=1e-4, atol=1e-5
  )
  without = transformer.Block(2, 16)
  np.testing.assert_array_equal(
    _run(without, params, True), _run(module, params, False)
  )


@pytest.mark.parametrize("scan", [False, True])
def test_every_layer_draws_by_itself_and_again_in_the_backward_pass(scan):
  make = functools.partial(transformer.Stack, 2, 2, 16, drop_path=0.5)
  params = _drawn(make(scan=scan), _x())
  out = _run(make(scan=scan), params, True)
  assert len(np.unique(out.reshape(ROWS, -1).round(4), axis=0)) == 4
  other = _run(make(scan=scan), params, True, jax.random.key(4))
  assert np.abs(out - other).max() > 0.1

  def loss(params, remat):
    y = make(scan=scan, remat=remat).apply(
      {"params": params}, _x(), train=True, rngs={"dropout": KEY}
    )
    return jnp.sum(jnp.sin(y))

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    grad(params, "block"),
    grad(params, "none"),
  )


def test_a_decoder_drops_in_training_alone():
  module = lm.DecoderLM(7, 4, 1, 2, 8, dropout=0.5, drop_path=0.5)
  tokens = jnp.array([[1, 2, 3, 4]])
  params = _drawn(module, tokens)
  run = jax.jit(module.apply, static_argnames="train")
  plain = run({"params": params}, tokens)
  found = [
    run({"params": params}, tokens, train=True, rngs={"dropout": k})
    for k in jax.random.split(KEY, 8)
  ]
  assert len({float(x[0, -1, 0]) for x in found}) > 1
  without = module.clone(dropout=0.0, drop_path=0.0)
  np.testing.assert_allclose(
    jax.jit(without.apply)({"params": params}, tokens), plain, rtol=1e-6
  )


def test_bad_rates_are_named():
  for make, text in (
    (lambda: transformer.FeedForward(8, dropout=1.0), "dropout=1.0"),
    (lambda: transformer.Block(2, 8, drop_path=-0.5), "drop_path=-0.5"),
    (lambda: transformer.Stack(1, 2, 8, dropout=2), "dropout=2"),
  ):
    with pytest.raises(ValueError, match=text):
      jax.eval_shape(make().init, jax.random.key(0), _x())
