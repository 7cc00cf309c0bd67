"""The tape: X^T G is the parameter gradient, for every kind of layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from locojax.methods import locoprop
from locojax.methods.locoprop import taps

KEY = jax.random.key(0)


class Zoo(nn.Module):
  """All stock layers that are affine in their parameters, one twice."""

  @nn.compact
  def __call__(self, tokens, image):
    e = nn.Embed(11, 6, name="embed")(tokens)
    e = jnp.tanh(nn.LayerNorm(name="norm")(e))
    e = jnp.tanh(nn.DenseGeneral((2, 3), name="general")(e))
    e = jnp.tanh(nn.Einsum((2, 3, 4), "btij,ijk->btk", name="einsum")(e))
    x = jnp.tanh(nn.Conv(3, (3, 3), name="conv")(image))
    x = jnp.tanh(nn.ConvTranspose(2, (2, 2), (2, 2), name="up")(x))
    x = nn.Dense(4, name="flat")(x.reshape(x.shape[0], -1))
    shared = nn.Dense(4, name="shared")
    x = jnp.tanh(shared(jnp.tanh(shared(x))))
    x = locoprop.LocoDense(4, transfer="tanh", name="loco")(x)
    return x + e.mean(1)


def _zoo():
  rng = np.random.default_rng(0)
  batch = {
    "tokens": jnp.asarray(rng.integers(0, 11, (5, 3))),
    "image": jnp.asarray(rng.normal(size=(5, 4, 4, 1)), jnp.float32),
  }
  model = Zoo()
  params = model.init(KEY, **batch)["params"]

  def loss_fn(params, model_state, batch, key):
    out = model.apply({"params": params}, **batch)
    return jnp.mean(jnp.square(out - 0.3)), ({}, model_state)

  return loss_fn, params, batch


def test_tape_holds_the_gradient_of_every_kind_of_layer():
  loss_fn, params, batch = _zoo()
  captured = jax.jit(locoprop.capture(loss_fn))
  (loss, _), grads, tape = captured(params, {}, batch, KEY)
  plain, plain_grads = jax.value_and_grad(
    lambda p: loss_fn(p, {}, batch, KEY)[0]
  )(params)
  np.testing.assert_allclose(loss, plain, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
    grads,
    plain_grads,
  )
  layers = tape.by_layer()
  assert set(layers) == set(params) - {"norm"}
  assert len(layers["shared"]) == 2
  assert layers["loco"][0].transfer == "tanh"
  for path, records in layers.items():
    total = None
    for r in records:
      _, vjp = jax.vjp(lambda p, r=r: r.affine(p, *r.inputs), params[path])
      (part,) = vjp(r.preact_grad)
      total = part if total is None else jax.tree.map(jnp.add, total, part)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      total,
      grads[path],
    )


def test_layer_paths_in_forward_order_and_filter():
  loss_fn, params, batch = _zoo()
  paths = locoprop.layer_paths(loss_fn, params, {}, batch, KEY)
  assert paths[:3] == ("embed", "general", "einsum")
  only = locoprop.layer_paths(
    loss_fn, params, {}, batch, KEY, filter=lambda p: p == "conv"
  )
  assert only == ("conv",)


def _linear(params, x):
  return x @ params["w"] + params["b"]


def test_tap_in_a_plain_function():
  rng = np.random.default_rng(1)
  params = {
    "one": {"w": jnp.asarray(rng.normal(size=(3, 4))), "b": jnp.zeros(4)},
    "two": {"w": jnp.asarray(rng.normal(size=(4, 2))), "b": jnp.ones(2)},
  }
  x = jnp.asarray(rng.normal(size=(7, 3)))

  def model(params, x):
    x = jnp.tanh(locoprop.tap("one", _linear, params["one"], x))
    return locoprop.tap("two", _linear, params["two"], x)

  def loss_fn(params, model_state, batch, key):
    return jnp.mean(jnp.square(model(params, batch))), ({}, model_state)

  _, grads, tape = locoprop.capture(loss_fn)(params, {}, x, KEY)
  record = tape.records["one"]
  np.testing.assert_allclose(
    record.inputs[0].T @ record.preact_grad, grads["one"]["w"], atol=1e-6
  )
  np.testing.assert_array_equal(record.preact, _linear(params["one"], x))


def test_one_trace_for_equal_layers():
  loss_fn, params, batch = _zoo()
  count = 0

  def consume(tape):
    nonlocal count
    count += 1
    return sum(r.preact.sum() for r in tape.records.values())

  consume = jax.jit(consume)
  captured = locoprop.capture(loss_fn)
  for _ in range(2):
    consume(captured(params, {}, batch, KEY)[2])
  assert count == 1


@pytest.mark.parametrize("wrap", ["remat", "scan"])
def test_layers_inside_a_transformation_are_refused(wrap):
  class Inner(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
      return jnp.tanh(nn.Dense(3)(x)), None

  if wrap == "remat":
    model = nn.remat(Inner)()
  else:
    model = nn.scan(
      Inner, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    )()
  x = jnp.ones((2, 3))
  params = model.init(KEY, x)["params"]

  def loss_fn(params, model_state, batch, key):
    out = model.apply({"params": params}, batch)[0]
    return jnp.mean(out), ({}, model_state)

  with pytest.raises(ValueError, match="nn.scan, nn.remat.*Unroll"):
    locoprop.capture(loss_fn)(params, {}, x, KEY)
  with pytest.raises(ValueError, match="captured no layer"):
    locoprop.capture(loss_fn, filter=lambda p: False)(params, {}, x, KEY)


def test_subtree_error_lists_paths():
  with pytest.raises(ValueError, match=r"'b'.*\['a/kernel'\]"):
    taps.subtree({"a": {"kernel": 1}}, "b")
