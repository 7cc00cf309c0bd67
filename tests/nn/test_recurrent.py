"""Recurrent layers: equal to flax's LSTM, and to CIFG by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from locojax.core import trees
from locojax.nn import recurrent

KEY = jax.random.key(0)
B, T, D, U = 3, 6, 4, 5
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)


def made(**settings):
  """A layer and its parameters."""
  layer = recurrent.Recurrent(U, **settings)
  return layer, jax.jit(layer.init)(KEY, X)


def test_the_lstm_is_that_of_flax():
  layer, variables = made(unroll=2)
  params = variables["params"]
  split = lambda a: np.split(np.asarray(a), 4, axis=-1)
  kernels, biases = (
    split(params["input"]["kernel"]),
    split(params["input"]["bias"]),
  )
  hidden = split(params["cell"]["recurrent"]["kernel"])
  theirs = {}
  for name, k, b, h in zip("ifgo", kernels, biases, hidden):
    theirs["i" + name] = {"kernel": k}
    theirs["h" + name] = {"kernel": h, "bias": b}
  rnn = nn.RNN(nn.OptimizedLSTMCell(U), return_carry=True)
  (c, h), expected = rnn.apply({"params": {"cell": theirs}}, X)
  found, carry = jax.jit(layer.apply)(variables, X)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_allclose(carry.c, c, atol=1e-6)
  np.testing.assert_allclose(carry.h, h, atol=1e-6)


def by_hand(params, x, cell, valid):
  """The equations, in float64."""
  params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  sigmoid = lambda a: 1 / (1 + np.exp(-a))
  width = params["cell"]["recurrent"]["kernel"].shape[0]
  c, h, out = np.zeros((B, U)), np.zeros((B, width)), []
  for t in range(T):
    a = x[:, t] @ params["input"]["kernel"] + params["input"]["bias"]
    a = a + h @ params["cell"]["recurrent"]["kernel"]
    gates = np.split(a, len(recurrent.GATES[cell]), axis=-1)
    f, g, o = gates[-3:]
    i = sigmoid(gates[0]) if cell == "lstm" else 1 - sigmoid(f)
    new_c = sigmoid(f) * c + i * np.tanh(g)
    new_h = sigmoid(o) * np.tanh(new_c)
    if "projection" in params["cell"]:
      new_h = new_h @ params["cell"]["projection"]["kernel"]
    keep = valid[:, t, None] != 0
    c, h = np.where(keep, new_c, c), np.where(keep, new_h, h)
    out.append(h)
  return np.stack(out, axis=1)


@pytest.mark.parametrize("cell", ["lstm", "cifg"])
@pytest.mark.parametrize("projection", [None, 2])
def test_outputs_are_those_of_the_equations(cell, projection):
  layer, variables = made(cell=cell, projection=projection)
  valid = np.ones((B, T))
  valid[0, 4:] = 0
  valid[1, 2] = 0
  found, carry = jax.jit(layer.apply)(variables, X, valid=valid)
  expected = by_hand(variables["params"], X, cell, valid)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_array_equal(found[0, 3], found[0, 5])
  np.testing.assert_array_equal(carry.h, found[:, -1])


@pytest.mark.parametrize("cell", ["lstm", "cifg"])
def test_one_token_at_a_time_is_the_whole(cell):
  layer, variables = made(cell=cell, projection=3)
  whole, last = jax.jit(layer.apply)(variables, X)
  one = jax.jit(layer.apply)
  carry, out = layer.init_carry(B), []
  for t in range(T):
    y, carry = one(variables, X[:, t : t + 1], carry=carry)
    out.append(y)
  np.testing.assert_allclose(jnp.concatenate(out, axis=1), whole, atol=1e-6)
  np.testing.assert_allclose(carry.c, last.c, atol=1e-6)


def test_unrolling_changes_nothing_but_the_scan():
  layer, variables = made(cell="cifg")
  unrolled = recurrent.Recurrent(U, cell="cifg", unroll=4)
  a, b = layer.apply(variables, X)[0], unrolled.apply(variables, X)[0]
  np.testing.assert_allclose(a, b, atol=1e-6)


def test_parameters_have_the_known_sizes_and_starts():
  lstm = recurrent.Recurrent(670)
  shapes = jax.eval_shape(lstm.init, KEY, jnp.zeros((1, 2, 96)))
  assert trees.num_params(shapes) == 2_055_560
  cifg = recurrent.Recurrent(670, cell="cifg", projection=96)
  shapes = jax.eval_shape(cifg.init, KEY, jnp.zeros((1, 2, 96)))
  assert trees.num_params(shapes) == 452_250
  for cell in ("lstm", "cifg"):
    bias = made(cell=cell)[1]["params"]["input"]["bias"]
    place = recurrent.GATES[cell].index("f")
    expected = np.zeros((len(recurrent.GATES[cell]), U))
    expected[place] = 1
    np.testing.assert_array_equal(bias, expected.ravel())


def test_low_precision_keeps_parameters_and_carry_in_float32():
  layer, variables = made(dtype=jnp.bfloat16)
  y, carry = layer.apply(variables, X)
  assert y.dtype == jnp.bfloat16 and carry.c.dtype == jnp.float32
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))


@pytest.mark.parametrize(
  "settings", [{"cell": "gru"}, {"unroll": 0}, {"projection": 0}]
)
def test_bad_settings_are_named(settings):
  name = next(iter(settings))
  with pytest.raises(ValueError, match=name):
    made(**settings)
