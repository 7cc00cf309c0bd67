"""Pools of prompts: sizes, gathering, keys, initialisers, usage."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import trees
from locojax.methods import l2p
from locojax.methods.l2p import pool, selection, usage
from tests import programs

KEY = jax.random.key(0)
QUERY = jax.random.normal(jax.random.key(1), (4, 8))


def _pool(size=8, num_heads=2, **settings):
  settings = {"pool_size": 6, "length": 3, "top_k": 2, **settings}
  return pool.PromptPool(pool.PromptPoolConfig(**settings), size, num_heads)


def _applied(module, query=QUERY, **call):
  params = programs.init(module, KEY, query)["params"]
  return params, *module.apply({"params": params}, query, **call)


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    (l2p.preset("paper"), 46_080),
    (l2p.preset("paper", pool_size=20), 92_160),
    (l2p.preset("official"), 84_480),
    (l2p.preset("pytorch"), 46_080),
  ],
)
def test_numbers_of_parameters(settings, expected):
  module = pool.PromptPool(settings, 768)
  shapes = jax.eval_shape(module.init, KEY, jnp.zeros((2, 768)))
  assert trees.num_params(shapes["params"]) == expected


def test_presets_are_those_of_the_papers_table():
  told = {
    name: (c.pool_size, c.top_k, c.length, c.key_loss_weight, c.selection)
    for name, c in l2p.PRESETS.items()
  }
  assert told == {
    "official": (10, 4, 10, 1.0, "batch"),
    "paper": (10, 5, 5, 0.5, "instance"),
    "pytorch": (10, 5, 5, 0.1, "batch"),
  }
  with pytest.raises(ValueError, match="did you mean 'official'"):
    l2p.preset("oficial")


def test_prompts_are_gathered_in_the_order_of_similarity():
  params, prompts, chosen = _applied(_pool(num_layers=2))
  assert prompts.shape == (2, 4, 6, 8)
  expected = np.asarray(params["prompt"])[:, np.asarray(chosen.ids)]
  assert (prompts == expected.reshape(2, 4, 6, 8)).all()
  again = selection.select_prompts(QUERY, params["key"], 2)
  assert (again.ids == chosen.ids).all()


def test_a_prefix_is_keys_and_values():
  params, (keys, values), chosen = _applied(_pool(num_layers=3, style="prefix"))
  assert params["prompt"].shape == (3, 6, 2, 3, 2, 4)
  assert keys.shape == values.shape == (3, 4, 6, 2, 4)
  rows = np.asarray(params["prompt"])[:, np.asarray(chosen.ids)]
  assert (keys == rows[:, :, :, 0].reshape(keys.shape)).all()
  assert (values == rows[:, :, :, 1].reshape(values.shape)).all()


def test_what_is_not_chosen_has_no_gradient():
  module = _pool()
  params, _, chosen = _applied(module)

  def loss(params):
    prompts, chosen = module.apply({"params": params}, QUERY)
    return jnp.sum(prompts**2), l2p.key_surrogate_loss(chosen)

  of_prompts = jax.grad(lambda p: loss(p)[0])(params)
  of_keys = jax.grad(lambda p: loss(p)[1])(params)
  used = np.zeros(6, bool)
  used[np.asarray(chosen.ids)] = True
  assert 0 < used.sum() < 6
  moved = lambda g: (np.asarray(g) != 0).any(axis=tuple(range(1, g.ndim)))
  assert (moved(of_prompts["prompt"][0]) == used).all()
  assert (of_prompts["key"] == 0).all()  # the choice has no gradient
  assert (moved(of_keys["key"]) == used).all()
  assert (of_keys["prompt"] == 0).all()


@pytest.mark.parametrize("style", pool.STYLES)
def test_without_keys_a_prompt_is_its_own(style):
  module = _pool(style=style, prompt_key=False, num_layers=2)
  params, _, chosen = _applied(module)
  assert set(params) == {"prompt"}
  rows = np.asarray(params["prompt"])
  if style == "prefix":
    rows = rows.reshape(2, 6, 2, 3, 8)
  means = np.moveaxis(rows, 1, 0).reshape(6, -1, 8).mean(axis=1)
  expected = selection.select_prompts(QUERY, means, 2)
  assert (chosen.ids == expected.ids).all()
  grad = jax.grad(
    lambda p: l2p.key_surrogate_loss(module.apply({"params": p}, QUERY)[1])
  )(params)
  assert (grad["prompt"] != 0).any()


def test_keys_may_be_fixed_and_of_another_size():
  module = _pool(learn_keys=False, key_dim=5)
  query = QUERY[:, :5]
  params, _, _ = _applied(module, query)
  assert params["key"].shape == (6, 5)
  grad = jax.grad(
    lambda p: l2p.key_surrogate_loss(module.apply({"params": p}, query)[1])
  )(params)
  assert (grad["key"] == 0).all()
  with pytest.raises(ValueError, match="query has size 8 and keys have size 5"):
    module.init(KEY, QUERY)


def test_ids_outside_give_nan_in_traced_code():
  module = _pool()
  params = programs.init(module, KEY, QUERY)["params"]

  @jax.jit
  def run(ids):
    call = dict(selection_mode="forced", forced_ids=ids)
    return module.apply({"params": params}, QUERY, **call)[0]

  assert bool(jnp.isfinite(run(jnp.array([0, 5]))).all())
  wrong = run(jnp.array([0, 6]))
  assert (
    jnp.isnan(wrong[:, :, 3:]).all() and jnp.isfinite(wrong[:, :, :3]).all()
  )


def test_initialisers():
  draw = lambda name, shape=(50, 40): np.asarray(
    pool.initializer("key_init", name)(KEY, shape, jnp.float32)
  )
  small, wide = draw("uniform_small"), draw("uniform")
  assert small.min() >= 0 and 0.009 < small.max() < 0.01
  assert -1 <= wide.min() < -0.9 and 0.9 < wide.max() < 1
  assert draw("normal").std() == pytest.approx(0.02, rel=0.1)
  rows = draw("orthogonal", (5, 40))
  np.testing.assert_allclose(rows @ rows.T, np.eye(5), atol=1e-5)
  assert (draw("zeros") == 0).all()
  given = np.arange(48.0).reshape(6, 8)
  params, *_ = _applied(_pool(key_init=lambda *_: jnp.asarray(given)))
  assert (params["key"] == given).all()


def test_keys_by_kmeans():
  rng = np.random.default_rng(0)
  centres = np.linalg.qr(rng.normal(size=(6, 6)))[0][:3]
  label = np.arange(60) % 3
  points = centres[label] + 0.05 * rng.normal(size=(60, 6))
  points *= rng.uniform(0.5, 4, (60, 1))  # directions count, not lengths
  padded = np.concatenate([points, 100 * rng.normal(size=(9, 6))])
  mask = np.arange(69) < 60
  for seed in range(3):
    keys = l2p.kmeans_keys(padded, 3, jax.random.key(seed), mask=mask)
    norms = np.linalg.norm(keys, axis=-1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)
    # Every centre is a unit mean of the points that are nearest to it.
    unit = points / np.linalg.norm(points, axis=-1, keepdims=True)
    nearest = np.argmax(unit @ np.asarray(keys).T, axis=-1)
    for j in set(nearest.tolist()):
      mean = unit[nearest == j].sum(axis=0)
      np.testing.assert_allclose(
        keys[j], mean / np.linalg.norm(mean), atol=1e-5
      )
  again = l2p.kmeans_keys(padded, 3, jax.random.key(2), mask=mask)
  assert (again == keys).all()
  with pytest.raises(ValueError, match="pool_size=70"):
    l2p.kmeans_keys(padded, 70, KEY)
  with pytest.raises(ValueError, match="queries has shape"):
    l2p.kmeans_keys(padded[0], 3, KEY)


def test_slots_are_shared():
  params, *_ = _applied(_pool(num_layers=2))
  tree = {"prompt_pool": params, "head": {}}
  new = l2p.share_prompts(tree, 0, 2, slot_size=2)["prompt_pool"]
  old = params["prompt"]
  assert (new["prompt"][:, 4:] == old[:, :2]).all()
  assert (new["prompt"][:, :4] == old[:, :4]).all()
  assert (new["key"] == params["key"]).all()
  only = dict(slot_size=2, prompts=False, keys=True)
  new = l2p.share_prompts(tree, 1, 0, **only)["prompt_pool"]
  assert (new["key"][:2] == params["key"][2:4]).all()
  assert (new["key"][2:] == params["key"][2:]).all()
  assert (new["prompt"] == old).all()
  with pytest.raises(ValueError, match="to_slot=3"):
    l2p.share_prompts(tree, 0, 3, slot_size=2)
  with pytest.raises(ValueError, match="prompt_pool"):
    l2p.share_prompts({"head": {}}, 0, 1, slot_size=2)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(top_k=7), "top_k=7.*pool_size=6"),
    (dict(top_k=0), "top_k=0"),
    (dict(length=0), "length=0"),
    (dict(pool_size=0), "pool_size=0"),
    (dict(num_layers=0), "num_layers=0"),
    (dict(key_dim=0), "key_dim=0"),
    (dict(style="suffix"), "style='suffix'"),
    (dict(prompt_init="unifrom"), "did you mean 'uniform'"),
    (dict(key_init=3), "key_init=3"),
    (dict(selection="votes"), "selection='votes'"),
    (dict(frequency_penalty="eq4"), "frequency_penalty='eq4'"),
    (dict(key_loss_weight=-1), "key_loss_weight=-1"),
    (dict(learn_keys=1), "learn_keys=1"),
    (dict(prompt_key="no"), "prompt_key='no'"),
  ],
)
def test_bad_configs(changes, words):
  with pytest.raises(ValueError, match=words):
    _pool(**changes)


def test_heads_must_divide():
  with pytest.raises(ValueError, match="num_heads=3"):
    _applied(_pool(style="prefix", num_heads=3))
  with pytest.raises(ValueError, match="num_heads=None"):
    _applied(_pool(style="prefix", num_heads=None))


def test_usage():
  ids, tasks = np.array([[0, 1], [0, 2], [0, 1], [3, 1]]), [0, 0, 1, 5]
  mask = np.array([1, 1, 1, 0])
  assert usage.prompt_histogram(ids, 5, mask=mask).tolist() == [3, 2, 1, 0, 0]
  by_task = usage.task_histograms(
    ids, np.array(tasks), pool_size=5, num_tasks=2, mask=mask
  )
  assert by_task.tolist() == [[2, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
  found = l2p.pool_usage(by_task)
  assert found["alive"].tolist() == [3, 2]
  expected = [1.5 * math.log(2), math.log(2)]
  np.testing.assert_allclose(found["entropy"], expected, rtol=1e-6)
  np.testing.assert_allclose(found["effective"], np.exp(expected), rtol=1e-6)
  assert float(usage.usage_entropy(np.zeros(4))) == 0
  assert float(usage.usage_entropy(np.ones(4))) == pytest.approx(math.log(4))
  shares = np.array([97, 2, 1, 0])
  assert int(usage.num_alive(shares)) == 3
  assert int(usage.num_alive(shares, min_share=0.015)) == 2
  with pytest.raises(ValueError, match="min_share=1"):
    usage.num_alive(shares, min_share=1)
