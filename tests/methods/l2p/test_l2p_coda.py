"""CODA-Prompt: attention over components, against NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods import l2p
from locojax.methods.l2p import coda
from locojax.nn import vit

KEY = jax.random.key(0)
QUERY = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
CONFIG = coda.CodaConfig(num_components=4, length=6, num_layers=2)
MODULE = coda.CodaPrompts(CONFIG, 8, 2)
IMAGES = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))


def _params(config=CONFIG):
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(
    coda.CodaPrompts(config, 8, 2).init, KEY, jnp.zeros((3, 8))
  )["params"]
  return {
    name: rng.normal(size=(2, 9, *shapes[name].shape[2:]))[
      :, : config.num_components
    ].astype(np.float32)
    for name in sorted(shapes)
  }


PARAMS = _params()


@jax.jit
def _prefix(params, start, stop):
  return MODULE.apply(
    {"params": params}, jnp.asarray(QUERY), components=(start, stop)
  )


def _reference(params, stop):
  """[Y, B, P, E] in float64."""
  prompt, key, attention = (
    np.asarray(params[n], np.float64) for n in ("prompt", "key", "attention")
  )
  out = np.zeros((2, 3, 6, 8))
  for y in range(2):
    for b in range(3):
      for m in range(stop):
        a = QUERY[b] * attention[y, m]
        k = key[y, m]
        alpha = a @ k / np.linalg.norm(a) / np.linalg.norm(k)
        out[y, b] += alpha * prompt[y, m]
  return out


@pytest.mark.parametrize("stop", [2, 4])
def test_against_numpy(stop):
  keys, values = _prefix(PARAMS, 0, stop)
  expected = _reference(PARAMS, stop).reshape(2, 3, 6, 2, 4)
  np.testing.assert_allclose(keys, expected[:, :, :3], atol=1e-5)
  np.testing.assert_allclose(values, expected[:, :, 3:], atol=1e-5)


def test_old_components_are_frozen_and_later_ones_do_not_exist():
  def loss(params):
    keys, values = _prefix(params, 1, 3)
    return jnp.sum(keys * values)

  grads = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, PARAMS))
  for name, g in grads.items():
    moved = (np.asarray(g) != 0).any(axis=(0, *range(2, g.ndim)))
    assert moved.tolist() == [False, True, True, False], name


def test_room_for_more_tasks_changes_nothing():
  wide = dataclasses.replace(CONFIG, num_components=9)
  params = _params(wide)
  assert (params["key"][:, :4] == PARAMS["key"]).all()
  out = coda.CodaPrompts(wide, 8, 2).apply(
    {"params": params}, QUERY, components=(0, 4)
  )
  for a, b in zip(out, _prefix(PARAMS, 0, 4)):
    np.testing.assert_allclose(a, b, atol=1e-5)
  found = coda.orthogonality(params, (0, 4))
  expected = coda.orthogonality(PARAMS)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_penalty():
  expected = 0.0
  for x in PARAMS.values():
    for rows in x.reshape(2, 4, -1)[:, :3]:
      expected += ((rows @ rows.T - np.eye(3)) ** 2).mean()
  found = coda.orthogonality(PARAMS, (1, 3))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  grads = jax.grad(coda.orthogonality)(
    jax.tree.map(jnp.asarray, PARAMS), (1, 3)
  )
  for g in grads.values():
    moved = (np.asarray(g) != 0).any(axis=(0, *range(2, g.ndim)))
    assert moved.tolist() == [False, True, True, False]


def test_new_components_by_gram_schmidt():
  tree = {"prompt_pool": PARAMS, "head": {}}
  new = coda.start_components(tree, (2, 4), KEY)["prompt_pool"]
  for name, x in new.items():
    old = PARAMS[name].reshape(2, 4, -1)
    rows = np.asarray(x).reshape(2, 4, -1)
    assert (rows[:, :2] == old[:, :2]).all()
    for layer in rows:
      gram = layer[2:] @ layer[2:].T
      np.testing.assert_allclose(gram, np.eye(2), atol=1e-5)
      np.testing.assert_allclose(layer[2:] @ layer[:2].T, 0, atol=1e-5)
    assert (np.abs(rows[0, 2:] - rows[1, 2:]) > 1e-3).any()
  first = coda.start_components(tree, (0, 2), KEY)["prompt_pool"]
  penalty = coda.orthogonality(first, (0, 2))
  assert float(penalty) < 1e-8
  again = coda.start_components(tree, (0, 2), KEY)["prompt_pool"]
  assert all((again[n] == first[n]).all() for n in first)


def test_in_the_model_and_the_loss():
  model = l2p.PromptedViT(
    vit.ViT(4, 8, 2, 2, 12), 4, CONFIG, layers=(0, 1), head="token"
  )
  params = jax.jit(model.init)(KEY, IMAGES)["params"]
  params = l2p.start_components(params, (2, 4), KEY)
  trained, frozen = l2p.freeze(params, model.trainable)
  trained["head"]["kernel"] += 0.1 * jnp.arange(4)
  loss_fn = l2p.make_loss_fn(model, components_per_task=2, orthogonality=0.3)
  state = {"frozen": frozen, **l2p.init_pool_state(model, task_id=1)}
  batch = {"image": IMAGES, "label": np.array([0, 1, 2])}
  grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  (loss, (found, _)), grads = grad_fn(trained, state, batch, KEY)
  for g in grads["prompt_pool"].values():
    moved = (np.asarray(g) != 0).any(axis=(0, *range(2, g.ndim)))
    assert moved.tolist() == [False, False, True, True]
  out = jax.jit(model.apply)(
    {"params": l2p.merge(trained, frozen)}, IMAGES, components=(2, 4)
  )
  assert out["selection"] is None and "reduce_sim" not in found
  losses, _ = l2p.masked_cross_entropy(out["logits"], batch["label"])
  penalty = coda.orthogonality(trained["prompt_pool"], (2, 4))
  np.testing.assert_allclose(loss, losses.mean() + 0.3 * penalty, rtol=1e-5)


def test_bad_settings():
  with pytest.raises(ValueError, match="length=5"):
    coda.CodaConfig(length=5)
  with pytest.raises(ValueError, match="num_components=0"):
    coda.CodaConfig(num_components=0)
  with pytest.raises(ValueError, match="init='sphere'"):
    coda.CodaConfig(init="sphere")
  for components, words in (
    ((0, 5), "stop of components=5"),
    ((2, 2), "start of components=2"),
    ((-1, 2), "start of components=-1"),
  ):
    with pytest.raises(ValueError, match=words):
      MODULE.apply({"params": PARAMS}, QUERY, components=components)
  with pytest.raises(ValueError, match="query has shape"):
    MODULE.apply({"params": PARAMS}, QUERY[:, :7])
  with pytest.raises(ValueError, match="num_heads=3"):
    coda.CodaPrompts(CONFIG, 8, 3).apply({"params": PARAMS}, QUERY)
  with pytest.raises(ValueError, match="CODA-Prompt"):
    coda.start_components({"prompt_pool": {"key": 0}}, (0, 2), KEY)
  wide = {
    n: np.zeros((2, 9, *x.shape[2:]), np.float32) for n, x in PARAMS.items()
  }
  with pytest.raises(ValueError, match="stop of components=9"):
    coda.start_components({"prompt_pool": wide}, (0, 9), KEY)
