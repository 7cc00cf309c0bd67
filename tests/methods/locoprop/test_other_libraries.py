"""LocoProp on models of NNX, of Equinox, and of plain functions."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from locojax import locoprop
from locojax.core import trees
from locojax.methods.locoprop import nnx_layers

KEY = jax.random.key(0)
TRANSFERS = {"h": "tanh", "out": "softmax"}


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Embed(4, 3, name="embed")(x).reshape(len(x), 2, 2, 3)
    x = nn.Conv(2, (2, 2), name="conv")(x).reshape(len(x), -1)
    x = nn.tanh(nn.Dense(5, name="h")(x))
    return nn.Dense(3, name="out", use_bias=False)(x)


class Nnx(nnx.Module):
  def __init__(self, rngs, dtype=None):
    self.embed = nnx.Embed(4, 3, rngs=rngs)
    self.conv = nnx.Conv(3, 2, (2, 2), rngs=rngs)
    self.h = nnx.Linear(8, 5, rngs=rngs, dtype=dtype)
    self.out = nnx.Linear(5, 3, use_bias=False, rngs=rngs)

  def __call__(self, x):
    x = self.embed(x).reshape(len(x), 2, 2, 3)
    x = self.conv(x).reshape(len(x), -1)
    return self.out(nnx.tanh(self.h(x)))


def _mean(logits, y):
  each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  return each.mean()


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.integers(4, size=(6, 4)), jnp.int32)
  return {"x": x, "y": x.sum(axis=1) % 3}


@pytest.fixture(scope="module")
def linen(batch):
  """Parameters, and the loss."""

  def loss_fn(params, model_state, batch, key):
    logits = Linen().apply({"params": params}, batch["x"])
    return _mean(logits, batch["y"]), ({}, model_state)

  return jax.jit(Linen().init)(KEY, batch["x"])["params"], loss_fn


def _nnx(params=None, **settings):
  """Parameters (those given, or its own), and the loss."""
  graph, state, rest = nnx.split(Nnx(nnx.Rngs(0), **settings), nnx.Param, ...)
  if params is not None:
    leaves = trees.flatten(params)
    state = trees.map_with_path(
      lambda path, _: leaves[path.removesuffix("/value")], state
    )

  def loss_fn(params, model_state, batch, key):
    model = nnx.merge(graph, params, rest)
    return _mean(model(batch["x"]), batch["y"]), ({}, model_state)

  return state, loss_fn


def _updates(params, loss_fn, batch, **settings):
  """Updates by path of one step."""
  tx = locoprop.locoprop(1e-2, num_local_iters=3, **settings)

  @jax.jit
  def step(params, batch):
    _, grads, tape = locoprop.capture(loss_fn)(params, {}, batch, KEY)
    return tx.update(grads, tx.init(params), params, tape=tape)[0], tape

  updates, tape = step(params, batch)
  leaves = trees.flatten(updates).items()
  return {path.removesuffix("/value"): x for path, x in leaves}, tape


@pytest.mark.parametrize(
  "settings",
  [
    {"transfers": {**TRANSFERS, "conv": "linear", "embed": "linear"}},
    {"variant": "squared", "layers": ("h", "out"), "solver": "exact"},
    {"transfers": {"h": "tanh"}, "order": "jacobi", "max_rows": 3},
  ],
)
def test_nnx_is_linen(batch, linen, settings):
  settings.setdefault("fallback", optax.sgd(0.1))
  theirs, tape = _updates(*linen, batch, **settings)
  ours, nnx_tape = _updates(*_nnx(linen[0]), batch, **settings)
  assert tape.order == nnx_tape.order == ("embed", "conv", "h", "out")
  kinds = [r.kind for r in map(nnx_tape.records.get, nnx_tape.order)]
  assert kinds == ["embed", "conv", "dense", "dense"]
  assert set(ours) == set(theirs)
  for path, update in theirs.items():
    np.testing.assert_allclose(ours[path], update, rtol=1e-5, atol=1e-7)
    assert np.any(update), path


def test_nnx_layers_by_name_and_in_their_own_dtype(batch):
  params, loss_fn = _nnx(dtype=jnp.bfloat16)
  paths = functools.partial(locoprop.layer_paths, loss_fn, params, {}, batch)
  assert paths(KEY, layers=(nnx.Linear,)) == ("h", "out")
  assert paths(KEY) == ("embed", "conv", "h", "out")
  _, tape = _updates(
    params,
    loss_fn,
    batch,
    layers=("h",),
    variant="squared",
    fallback=optax.sgd(1),
  )
  assert tape.records["h"].preact.dtype == jnp.bfloat16
  affine = tape.records["h"].affine
  wide = affine.in_dtype(jnp.float32)
  layer = trees.subtree(params, "h")
  given = jnp.ones((2, 8))
  assert affine(layer, given).dtype == jnp.bfloat16
  assert wide(layer, given).dtype == jnp.float32
  assert wide == affine.in_dtype(jnp.float32) and hash(wide) == hash(wide)


def test_nnx_is_left_as_it_was(batch):
  before = nnx.Linear.__call__
  params, loss_fn = _nnx()
  with pytest.raises(ValueError, match="captured no layer.*Conv"):
    locoprop.capture(loss_fn, layers=(nn.Conv,))(params, {}, batch, KEY)
  locoprop.layer_paths(loss_fn, params, {}, batch, KEY)
  assert nnx.Linear.__call__ is before and not nnx_layers._patched


def test_a_tied_embedding_of_nnx_is_refused(batch):
  class Tied(nnx.Module):
    def __init__(self, rngs):
      self.embed = nnx.Embed(4, 3, rngs=rngs)

    def __call__(self, x):
      return self.embed.attend(self.embed(x))[:, 0]

  graph, params = nnx.split(Tied(nnx.Rngs(0)))

  def loss_fn(params, model_state, batch, key):
    logits = nnx.merge(graph, params)(batch["x"])
    return _mean(logits, batch["y"]), ({}, model_state)

  with pytest.raises(ValueError, match="'embed'.*'attend'"):
    _updates(params, loss_fn, batch, variant="squared")


class _Layer(NamedTuple):
  """Of no library, with names of its own."""

  w: jax.Array
  offset: jax.Array


def _plain_affine(layer, x):
  return x @ layer.w.T + layer.offset


def _equinox_affine(layer, x):
  return jax.vmap(layer)(x)


def _plain_model(dense):
  return {"blocks": [_Layer(dense["kernel"].T, dense["bias"])]}, _plain_affine


def _equinox_model(dense):
  eqx = pytest.importorskip("equinox")
  layer = eqx.nn.Linear(4, 3, key=KEY)
  layer = eqx.tree_at(
    lambda t: (t.weight, t.bias), layer, (dense["kernel"].T, dense["bias"])
  )
  return {"blocks": [layer]}, _equinox_affine


@pytest.mark.parametrize("make", [_plain_model, _equinox_model])
def test_any_tree_and_any_names(make, batch):
  """One layer with softmax, against linen's Dense with the same weights."""
  dense = {"kernel": jax.random.normal(KEY, (4, 3)), "bias": jnp.ones(3)}
  params, affine = make(dense)

  def tapped(params, model_state, batch, key):
    x = batch["x"].astype(jnp.float32)
    logits = locoprop.tap("blocks/0", affine, params["blocks"][0], x)
    return _mean(logits, batch["y"]), ({}, model_state)

  def plain(params, model_state, batch, key):
    logits = nn.Dense(3).apply({"params": params}, batch["x"].astype(float))
    return _mean(logits, batch["y"]), ({}, model_state)

  settings = {"variant": "squared", "layers": ("blocks/0",)}
  ours, _ = _updates(params, tapped, batch, **settings)
  theirs, _ = _updates(dense, plain, batch, variant="squared", layers=("",))
  kernel, bias = ours.values()
  np.testing.assert_allclose(kernel.T, theirs["kernel"], rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(bias, theirs["bias"], rtol=1e-4, atol=1e-7)
  found = locoprop.find_layers(params)
  assert found == (("blocks/0",) if make is _equinox_model else ())


def test_what_vmap_needs_is_said(batch):
  def loss_fn(params, model_state, batch, key):
    one = lambda x: locoprop.tap("", _one_row, params, x)
    logits = jax.vmap(one)(batch["x"].astype(jnp.float32))
    return _mean(logits, batch["y"]), ({}, model_state)

  params = {"w": jnp.ones((4, 3))}
  with pytest.raises(ValueError, match="jax.vmap.*rows first"):
    locoprop.layer_paths(loss_fn, params, {}, batch, KEY)


def _one_row(params, x):
  return x @ params["w"]
