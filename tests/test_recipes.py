"""Parts of the systems in loops of NNX, of Equinox and of plain functions.

The same network of two layers in each library; a recipe says what of the
project takes which place: activation, loss, optimiser or layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from locojax import ciw, dp_ftrl, limoe, locoprop, smelu

KEY = jax.random.key(0)
WIDTH = 12


class Model(NamedTuple):
  """A network of some library.

  Attributes:
    params: a tree of arrays.
    apply: `(params, x) -> logits`.
    layers: paths of its dense layers.
  """

  params: Any
  apply: Callable[..., jax.Array]
  layers: tuple[str, str]


def _dense(layer, x):
  return x @ layer["weight"].T + layer["bias"]


def _plain(activation) -> Model:
  keys = jax.random.split(KEY)
  params = {
    "h": {"weight": jax.random.normal(keys[0], (WIDTH, 4)) / 2},
    "out": {"weight": jax.random.normal(keys[1], (3, WIDTH)) / 4},
  }
  for layer in params.values():
    layer["bias"] = jnp.zeros(len(layer["weight"]))

  def apply(params, x):
    x = activation(locoprop.tap("h", _dense, params["h"], x))
    return locoprop.tap("out", _dense, params["out"], x)

  return Model(params, apply, ("h", "out"))


def _of_equinox(layer, x):
  return jax.vmap(layer)(x)


def _equinox(activation) -> Model:
  eqx = pytest.importorskip("equinox")
  keys = jax.random.split(KEY)
  params = {
    "h": eqx.nn.Linear(4, WIDTH, key=keys[0]),
    "out": eqx.nn.Linear(WIDTH, 3, key=keys[1]),
  }

  def apply(params, x):
    x = activation(locoprop.tap("h", _of_equinox, params["h"], x))
    return locoprop.tap("out", _of_equinox, params["out"], x)

  return Model(params, apply, ("h", "out"))


def _nnx(activation) -> Model:
  net = nnx.Sequential(
    nnx.Linear(4, WIDTH, rngs=nnx.Rngs(0)),
    activation,
    nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(1)),
  )
  graph, params = nnx.split(net)
  apply = lambda params, x: nnx.merge(graph, params)(x)
  return Model(params, apply, ("layers/0", "layers/2"))


LIBRARIES = {"plain": _plain, "equinox": _equinox, "nnx": _nnx}


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(48, 4)).astype(np.float32)
  return {"x": jnp.asarray(x), "y": jnp.asarray(np.argmax(x[:, :3], axis=1))}


def _cross_entropy(logits, y):
  each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  return each.mean()


def _loss(model, kind):
  def loss_fn(params, model_state, batch, key):
    logits = model.apply(params, batch["x"])
    if kind == "ciw":
      config = ciw.InstanceConfig(divergence="kl", lam=1.0)
      loss, _ = ciw.ciw_loss(logits, batch["y"], instance=config)
    else:
      loss = _cross_entropy(logits, batch["y"])
    return loss, ({}, model_state)

  return loss_fn


def _train(step, params, opt_state, num):
  losses = []
  step = jax.jit(step)
  for _ in range(num):
    params, opt_state, loss = step(params, opt_state)
    losses.append(float(loss))
  assert np.isfinite(losses).all() and losses[-1] < 0.75 * losses[0], losses
  return params


@pytest.mark.parametrize("library", LIBRARIES)
def test_locoprop(library, batch):
  model = LIBRARIES[library](jnp.tanh)
  transfers = dict(zip(model.layers, ("tanh", "softmax")))
  tx = locoprop.locoprop(3e-2, transfers=transfers, layers=model.layers)
  captured = locoprop.capture(_loss(model, "plain"))

  def step(params, opt_state):
    (loss, _), grads, tape = captured(params, {}, batch, KEY)
    updates, opt_state = tx.update(grads, opt_state, params, tape=tape)
    return optax.apply_updates(params, updates), opt_state, loss

  _train(step, model.params, tx.init(model.params), 20)


@pytest.mark.parametrize("library", LIBRARIES)
def test_smelu_and_ciw(library, batch):
  model = LIBRARIES[library](functools.partial(smelu.smelu, beta=0.5))
  loss_fn, tx = _loss(model, "ciw"), optax.adam(0.03)

  def step(params, opt_state):
    value = lambda params: loss_fn(params, {}, batch, KEY)[0]
    loss, grads = jax.value_and_grad(value)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  _train(step, model.params, tx.init(model.params), 30)


@pytest.mark.parametrize("library", LIBRARIES)
def test_dp_ftrl_of_single_examples(library, batch):
  """Each example four times, once in an epoch of four steps."""
  model = LIBRARIES[library](jnp.tanh)
  size, num = 12, 16
  tx = dp_ftrl.dp_ftrl(
    0.5,
    noise_multiplier=0.2,
    clip_norm=1.0,
    num_clients=size,
    key=jax.random.key(1),
    max_rounds=num,
    momentum=0.5,
  )
  cohorts = dp_ftrl.FixedOrder(len(batch["y"]), size)
  rows = jnp.stack([jnp.asarray(cohorts(k).clients) for k in range(num)])

  def one(params, example):
    return _cross_entropy(
      model.apply(params, example["x"][None]), example["y"][None]
    )

  def step(params, carry):
    k, opt_state = carry
    chosen = jax.tree.map(lambda x: x[rows[k]], batch)
    sums, _ = dp_ftrl.clipped_grad_sum(one, params, chosen, clip_norm=1.0)
    updates, opt_state = tx.update(sums, opt_state, params)
    loss = _cross_entropy(model.apply(params, batch["x"]), batch["y"])
    return optax.apply_updates(params, updates), (k + 1, opt_state), loss

  _train(step, model.params, (jnp.int32(0), tx.init(model.params)), num)
  assert cohorts.min_sep == 4
  zeta = dp_ftrl.tree_squared_sensitivity(num, 4, cohorts.min_sep)
  assert 0 < dp_ftrl.zcdp_to_eps(dp_ftrl.zcdp(zeta, 0.2), delta=1e-5) < np.inf


def test_a_limoe_layer_in_nnx(batch):
  layer = limoe.MoeMlp(num_experts=2, hidden_size=8, noise_std=0.0)
  tokens = batch["x"][None]
  bridged = nnx.bridge.ToNNX(layer, rngs=nnx.Rngs(0))
  bridged = bridged.lazy_init(tokens, train=False)
  graph, params, rest = nnx.split(bridged, nnx.Param, ...)

  def value(params):
    out, _ = nnx.merge(graph, params, rest)(tokens, train=False, rngs=KEY)
    return jnp.mean(jnp.square(out - tokens))

  tx = optax.adam(0.02)

  def step(params, opt_state):
    loss, grads = jax.value_and_grad(value)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  _train(step, params, tx.init(params), 25)
