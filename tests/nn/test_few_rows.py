"""Products of a few rows in loops."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from locojax.nn import few_rows, lm


def _kernels(key):
  a, b = jax.random.split(key)
  return jax.random.normal(a, (24, 40)), jax.random.normal(b, (40, 24))


def _loop(product, x, up, down, num=3):
  turn = lambda _, x: jnp.tanh(product(jnp.tanh(product(x, up)), down))
  return lax.fori_loop(0, num, turn, x)


def _body(text: str) -> str:
  """The compiled body of the only loop."""
  (name,) = re.findall(r"while\(.*?body=%?([\w.\-]+)", text)
  start = text.index(f"\n%{name} ")
  return text[start : text.index("\n}", start)]


@pytest.mark.parametrize("shape", [(2, 24), (3, 1, 24), (8, 24)])
def test_product_is_matmul(shape):
  up, down = _kernels(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), shape)
  ours = jax.jit(lambda *args: _loop(few_rows.product, *args))(x, up, down)
  plain = jax.jit(lambda *args: _loop(jnp.matmul, *args))(x, up, down)
  assert ours.shape == shape
  # Rounding grows with the turns.
  np.testing.assert_allclose(ours, plain, atol=1e-4)


def test_matrices_are_transposed_before_the_loop():
  up, down = _kernels(jax.random.key(0))
  x = jnp.ones((4, 24))
  made = jax.jit(lambda *args: _loop(few_rows.product, *args))
  body = _body(made.lower(x, up, down).compile().as_text())
  # The matrix is the left factor, contracted over its last axis, and nothing
  # of its size is copied.
  assert re.search(r"f32\[40,4\]\S* (dot|fusion)\(", body)
  moved = r"f32\[(24,40|40,24)\]\S* (copy|transpose)\("
  assert not re.search(moved, body)
  assert not re.search(r"dot\(.*lhs_contracting_dims=\{0\}", body)


def test_other_devices_multiply_as_ever():
  up, _ = _kernels(jax.random.key(0))
  both = [
    jax.jit(f).trace(jnp.ones((4, 24)), up).lower(lowering_platforms=("tpu",))
    for f in (few_rows.product, jnp.matmul)
  ]
  ours, plain = (text.as_text() for text in both)
  assert "optimization_barrier" not in ours and "transpose" not in ours
  assert ours.count("dot_general") == plain.count("dot_general") == 1


class _Layers(nn.Module):
  dtype: str | None = None

  @nn.compact
  def __call__(self, x):
    embed = nn.Embed(7, 5, dtype=self.dtype)
    x = nn.Dense(6, dtype=self.dtype, bias_init=nn.initializers.ones_init())(x)
    return embed.attend(nn.Dense(5, use_bias=False, dtype=self.dtype)(x))


def _products(monkeypatch) -> list[tuple[int, ...]]:
  """Shapes of the matrices that `product` is asked for."""
  asked, real = [], few_rows.product

  def product(x, kernel):
    asked.append(kernel.shape)
    return real(x, kernel)

  monkeypatch.setattr(few_rows, "product", product)
  monkeypatch.setattr(few_rows, "LEAST_SIZE", 20)
  return asked


def test_layers_take_it_for_a_few_rows_of_float32(monkeypatch):
  asked = _products(monkeypatch)
  monkeypatch.setattr(few_rows, "LEAST_SIZE", 25)
  every = [(6, 5), (5, 7)]  # the first matrix is too small
  for rows, dtype, given, taken in (
    (2, None, "float32", every),
    (few_rows.MOST_ROWS, "float32", "float32", every),
    (1, None, "float32", []),
    (few_rows.MOST_ROWS + 1, None, "float32", []),
    (2, "bfloat16", "float32", []),
    # What leaves the first layer is float32, as its matrix.
    (2, None, "bfloat16", every),
  ):
    x = jax.random.normal(jax.random.key(0), (rows, 4), given)
    model = _Layers(dtype)
    variables = model.init(jax.random.key(1), x)
    asked.clear()
    with few_rows.in_loop():
      found = model.apply(variables, x)
    assert asked == taken
    plain = model.apply(variables, x)
    assert found.dtype == plain.dtype
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5)
    assert asked == taken


def test_a_layer_with_a_product_of_its_own_keeps_it(monkeypatch):
  asked = _products(monkeypatch)
  x, key = jnp.ones((2, 6)), jax.random.key(0)
  for own in (
    {},
    {"precision": "highest"},
    {"dot_general": lambda *args, **kw: 2 * lax.dot_general(*args, **kw)},
  ):
    layer = nn.Dense(5, **own)
    variables = layer.init(key, x)
    asked.clear()
    with few_rows.in_loop():
      found = layer.apply(variables, x)
      layer.apply(variables, inputs=x)  # by name: as ever
    assert len(asked) == (not own)
    np.testing.assert_allclose(found, layer.apply(variables, x), rtol=1e-6)


@pytest.mark.parametrize(
  ("scan", "in_loop", "taken"),
  [(False, True, True), (False, False, False), (True, True, False)],
)
def test_steps_of_generation_take_it(monkeypatch, scan, in_loop, taken):
  model = lm.DecoderLM(
    vocab_size=11, max_len=8, num_layers=2, num_heads=2, model_size=8, scan=scan
  )
  prompts = jnp.arange(6).reshape(2, 3)
  params = model.init(jax.random.key(0), prompts)["params"]
  cache, kept, _ = lm.prefill(model, params, prompts)
  asked = _products(monkeypatch)
  step = lm.next_token(model, params, kept, in_loop=in_loop)
  logits = step(cache, prompts[:, :1])[1]
  assert bool(asked) is taken
  longer = jnp.concatenate([prompts, prompts[:, :1]], axis=1)
  whole = model.apply({"params": params}, longer)[:, -1]
  np.testing.assert_allclose(logits, whole, atol=1e-5)
