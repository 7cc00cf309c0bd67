"""Layers of equal shape in one product: the same numbers, fewer products."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from locojax.methods import locoprop
from locojax.methods.locoprop import matching, stacking, taps, targets, update
from locojax.nn import mlp
from tests import programs

KEY = jax.random.key(0)
TRANSFERS = {"^code$": "linear", "output": "sigmoid", ".*": "tanh"}
MODEL = mlp.Autoencoder(12, (8, 8, 8), 4)
BATCH = np.random.default_rng(0).random((32, 12), np.float32)


def loss_fn(params, model_state, batch, key):
  logits = MODEL.apply({"params": params}, batch)
  each = optax.sigmoid_binary_cross_entropy(logits, batch)
  return jnp.mean(jnp.sum(each, axis=-1)), ({}, model_state)


@functools.cache
def _captured():
  params = programs.init(MODEL, KEY, BATCH)["params"]
  _, grads, tape = jax.jit(locoprop.capture(loss_fn))(params, {}, BATCH, KEY)
  return params, grads, tape


def _problems(params, grads, tape, transfers, **options):
  return {
    path: update.Problem(
      records,
      taps.subtree(params, path),
      taps.subtree(grads, path),
      matching.get(transfers[path]),
      targets.LocalOptions(**options),
    )
    for path, records in tape.by_layer().items()
  }


def test_groups_of_equal_layers():
  params, grads, tape = _captured()
  names = dict.fromkeys(params, "tanh") | {"code": "linear"}
  found = stacking.groups(_problems(params, grads, tape, names))
  equal = ("encoder_1", "encoder_2", "decoder_1", "decoder_2")
  assert equal in found and len(found) == 5
  # Another transfer function is another problem.
  found = stacking.groups(
    _problems(params, grads, tape, names | {"encoder_2": "relu"})
  )
  assert ("encoder_1", "decoder_1", "decoder_2") in found
  # With the Gram matrix of 'squared' no transfer function plays a role.
  names["encoder_2"] = "relu"
  found = stacking.groups(
    _problems(params, grads, tape, names, variant="squared", target="gd")
  )
  assert equal in found


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"variant": "squared"},
    {"variant": "squared", "gram": False},
    {"max_rows": 8, "gamma": {"encoder": 5.0, ".*": 10.0}},
    {"variant": "squared", "solver": "exact"},
  ],
  ids=str,
)
def test_stacked_equals_alone(settings):
  params, grads, tape = _captured()
  tape = tape.with_row_mask((np.arange(32) < 30).astype(np.float32))
  out = []
  for stacked in (False, True):
    tx = locoprop.locoprop(
      1e-2, transfers=TRANSFERS, stack_equal_shapes=stacked, **settings
    )
    update_fn = jax.jit(tx.update)
    out.append(update_fn(grads, tx.init(params), params, tape=tape))
  chex.assert_trees_all_close(*out, rtol=1e-5, atol=1e-6)


def _products(stacked: bool) -> int:
  """Matrix products of an update, in the program as traced."""
  params, grads, tape = _captured()
  tx = locoprop.locoprop(1e-2, transfers=TRANSFERS, stack_equal_shapes=stacked)
  traced = jax.jit(tx.update).trace(grads, tx.init(params), params, tape=tape)
  return str(traced.jaxpr).count("dot_general[")


def test_stacking_leaves_fewer_products():
  # 8 layers, 4 of them equal, so 5 groups.
  assert 8 * _products(True) == 5 * _products(False)


class Convs(nn.Module):
  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = jnp.tanh(nn.Conv(2, (2, 2))(x))
    return x


def test_convolutions_stay_alone():
  model, x = Convs(), np.ones((2, 3, 3, 2), np.float32)
  params = programs.init(model, KEY, x)["params"]

  def loss(params, model_state, batch, key):
    return jnp.mean(model.apply({"params": params}, batch)), ({}, model_state)

  _, grads, tape = locoprop.capture(loss)(params, {}, x, KEY)
  names = dict.fromkeys(params, "tanh")
  found = stacking.groups(_problems(params, grads, tape, names))
  assert found == [("Conv_0",), ("Conv_1",)]


def test_stack_equal_shapes_is_a_bool():
  with pytest.raises(ValueError, match="stack_equal_shapes='yes'"):
    locoprop.locoprop(0.1, stack_equal_shapes="yes")
