"""Gauss-Seidel order: a worked chain, its limits, and what is no chain."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.methods import locoprop
from locojax.methods.locoprop import chain
from locojax.nn import mlp
from tests import programs

KEY = jax.random.key(0)
TRANSFERS = {"layer_0": "tanh", "layer_1": "sigmoid"}
MODEL = mlp.MLP((7, 4), activation=jnp.tanh)
BATCH = np.random.default_rng(0).random((9, 5), np.float32)


def loss_fn(params, model_state, batch, key):
  logits = MODEL.apply({"params": params}, batch)
  each = optax.sigmoid_binary_cross_entropy(logits, batch[:, :4])
  return jnp.mean(jnp.sum(each, axis=-1)), ({}, model_state)


@functools.cache
def _captured():
  params = programs.init(MODEL, KEY, BATCH)["params"]
  _, grads, tape = jax.jit(locoprop.capture(loss_fn))(params, {}, BATCH, KEY)
  return params, grads, tape


def _update(**settings):
  params, grads, tape = _captured()
  options = {"learning_rate": 0.05, "num_local_iters": 4, **settings}
  tx = locoprop.locoprop(transfers=TRANSFERS, **options)
  return tx.update(grads, tx.init(params), params, tape=tape)


def _f64(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def _solve(x, a, g, f, layer, variant, num=4, eta=0.05, gamma=10.0):
  """T steps of gradient descent on the local loss, targets from `a`."""
  w, b = layer["kernel"].copy(), layer["bias"].copy()
  f = f if variant == "matching" else (lambda a: a)
  target = f(a) - gamma * g
  for t in range(num):
    rate = eta * max(1 - t / num, 0.25)
    residual = f(x @ w + b) - target
    w, b = w - rate * x.T @ residual, b - rate * residual.sum(0)
  return w, b


def _exact(x, a, g, layer, eta=0.05, gamma=10.0):
  """The proximal minimiser of 1/2 ||X W - (A - gamma G)||^2."""
  ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)
  w0 = np.concatenate([layer["kernel"], layer["bias"][None]])
  rhs = ones.T @ (ones @ w0 - (a - gamma * g))
  w = w0 - np.linalg.solve(ones.T @ ones + np.eye(len(w0)) / eta, rhs)
  return w[:-1], w[-1]


@pytest.mark.parametrize("correction", [0.02, 0.1, 100.0])
@pytest.mark.parametrize("variant", ["matching", "squared", "exact"])
def test_two_layers_by_hand(variant, correction):
  params, _, tape = _captured()
  w = _f64(params)
  records = _f64(
    {k: (r.preact, r.preact_grad) for k, r in tape.records.items()}
  )
  sigmoid = lambda a: 1 / (1 + np.exp(-a))

  def solve(name, x, f):
    a, g = records[name]
    if variant == "exact":
      return _exact(x, a, g, w[name])
    return _solve(x, a, g, f, w[name], variant)

  x = _f64(BATCH)
  w0, b0 = solve("layer_0", x, np.tanh)
  hidden = np.tanh(x @ w["layer_0"]["kernel"] + w["layer_0"]["bias"])
  step = np.tanh(x @ w0 + b0) - hidden
  norm = np.linalg.norm(step, axis=-1, keepdims=True)
  step *= np.minimum(1, correction * 7**0.5 / norm)
  w1, b1 = solve("layer_1", hidden + step, sigmoid)
  settings = {"variant": variant, "inner": "sgd"}
  if variant == "exact":
    settings = {"variant": "squared", "solver": "exact"}
  updates, _ = _update(order="gauss_seidel", correction=correction, **settings)
  got = jax.tree.map(lambda p, u: p + np.asarray(u), w, updates)
  for name, kernel, bias in (("layer_0", w0, b0), ("layer_1", w1, b1)):
    np.testing.assert_allclose(got[name]["kernel"], kernel, atol=2e-6)
    np.testing.assert_allclose(got[name]["bias"], bias, atol=2e-6)


VARIANTS = {
  "rmsprop": {"learning_rate": 1e-3},
  "adam": {"inner": "adam"},
  "reset": {"learning_rate": 1e-3, "persist_inner_state": False},
  "sampled rows": {"max_rows": 3, "inner": "sgd"},
  "local mean": {"local_reduction": "mean", "reg": 0.1, "inner": "sgd"},
  "clipped": {"clip_targets": 0.1, "inner": "sgd"},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_no_correction_is_jacobi(settings):
  jacobi = _update(**settings)
  none = _update(order="gauss_seidel", correction=0, **settings)
  chex.assert_trees_all_equal(none, jacobi)
  # A correction too small to matter goes the other way to the same place.
  small = _update(order="gauss_seidel", correction=1e-9, **settings)
  chex.assert_trees_all_close(small, jacobi, atol=2e-6)
  large, state = _update(order="gauss_seidel", **settings)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, jacobi[1])
  # The first layer has its own input in either order, the second has not.
  first, second = (
    max(float(jnp.abs(large[k][v] - jacobi[0][k][v]).max()) for v in large[k])
    for k in ("layer_0", "layer_1")
  )
  assert first < 1e-6 < 5e-6 < second


def test_jit_and_the_inner_state():
  params, grads, tape = _captured()
  tx = locoprop.locoprop(1e-3, transfers=TRANSFERS, order="gauss_seidel")
  update = jax.jit(tx.update)
  state = tx.init(params)
  eager, _ = tx.update(grads, state, params, tape=tape)
  got, state = update(grads, state, params, tape=tape)
  chex.assert_trees_all_close(got, eager, atol=2e-6)
  again, _ = update(grads, state, params, tape=tape)
  assert update._cache_size() == 1
  # All moments have moved, and the next update goes on from them.
  moments = [x for x in jax.tree.leaves(state.inner) if x.ndim]
  assert len(moments) == 2 * len(jax.tree.leaves(params))
  assert all(not np.isin(np.asarray(m), (0.0, 1.0)).all() for m in moments)
  assert any(
    bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (got, again)))
  )


def test_the_move_of_an_input_is_bounded_by_row():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 6, 4)).astype(np.float32)
  moved = np.asarray(chain.towards(x, y, 0.1)) - x
  norms = np.linalg.norm(moved, axis=-1)
  np.testing.assert_allclose(norms, 0.1 * 2.0, rtol=1e-5)
  cosine = (moved * (y - x)).sum(-1) / norms / np.linalg.norm(y - x, axis=-1)
  np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)
  np.testing.assert_allclose(chain.towards(x, y, 1e3), y, atol=1e-6)
  np.testing.assert_array_equal(chain.towards(x, x, 0.1), x)


def test_what_is_no_chain():
  params, grads, tape = _captured()
  make = functools.partial(
    locoprop.locoprop, 0.1, transfers=TRANSFERS, order="gauss_seidel"
  )

  def run(tape, tx):
    tx.update(grads, tx.init(params), params, tape=tape)

  other = {**tape.records}
  x = other["layer_1"].inputs[0]
  other["layer_1"] = dataclasses.replace(other["layer_1"], inputs=(x + 0.1,))
  shifted = locoprop.Tape(other, tape.order)
  message = "'layer_1': its input is not 'tanh' of the output of 'layer_0'"
  with pytest.raises(ValueError, match=message):
    run(shifted, make())
  with pytest.raises(ValueError, match=message):
    locoprop.verify_chain(shifted, TRANSFERS)
  locoprop.verify_chain(tape, TRANSFERS)
  with pytest.raises(ValueError, match="no pattern hits a layer"):
    locoprop.verify_chain(tape, {"conv": "tanh"})
  other["layer_1"] = dataclasses.replace(other["layer_1"], inputs=(x[:, :3],))
  with pytest.raises(ValueError, match=r"'layer_1'.*shape \(9, 3\).*\(9, 7\)"):
    run(locoprop.Tape(other, tape.order), make())
  with pytest.raises(ValueError, match=r"tape.order=\(\)"):
    run(locoprop.Tape(tape.records), make())
  twice = {**tape.records, "layer_1#1": tape.records["layer_1"]}
  with pytest.raises(ValueError, match="'layer_1': it is called 2 times"):
    run(locoprop.Tape(twice, (*tape.order, "layer_1#1")), make())
  silent = locoprop.locoprop(0.1, order="gauss_seidel")
  with pytest.raises(ValueError, match="transfers=None"):
    run(tape, silent)


def test_a_layer_left_out_of_the_chain():
  model = mlp.MLP((4, 4, 4), activation=jnp.tanh)
  x = np.ones((3, 4), np.float32)
  params = programs.init(model, KEY, x)["params"]

  def loss(params, model_state, batch, key):
    out = model.apply({"params": params}, batch)
    return jnp.mean(out**2), ({}, model_state)

  _, grads, tape = jax.jit(locoprop.capture(loss))(params, {}, x, KEY)
  tx = locoprop.locoprop(
    0.1,
    layers=("layer_0", "layer_2"),
    transfers={".*": "tanh"},
    fallback=optax.sgd(0.1),
    order="gauss_seidel",
  )
  with pytest.raises(ValueError, match="'layer_1': it stands in the chain"):
    tx.update(grads, tx.init(params), params, tape=tape)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"order": "seidel"}, "order='seidel'.*'jacobi', 'gauss_seidel'"),
    ({"correction": -0.1}, "correction=-0.1"),
    (
      {"order": "gauss_seidel", "stack_equal_shapes": True},
      "stack_equal_shapes=True.*order='gauss_seidel'",
    ),
  ],
)
def test_bad_arguments_of_the_order(settings, message):
  with pytest.raises(ValueError, match=message):
    locoprop.locoprop(0.1, transfers=TRANSFERS, **settings)
