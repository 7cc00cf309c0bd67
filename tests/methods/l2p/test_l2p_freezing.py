"""Frozen weights: no gradients, no moments, no part in the clipping."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.core import trees
from locojax.methods import l2p
from locojax.methods.l2p import freezing
from locojax.nn import vit
from locojax.train import steps

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (5, 8, 8, 1))
BATCH = {"image": IMAGES, "label": np.array([0, 1, 2, 1, 0])}
MODEL = l2p.PromptedViT(
  vit.ViT(4, 8, 2, 2, 12),
  3,
  l2p.PromptPoolConfig(
    pool_size=4,
    length=3,
    top_k=1,
    prompt_init="uniform",
    key_init="uniform",
  ),
)
LOSS = l2p.make_loss_fn(MODEL)
TREE = {
  "head": {"kernel": 1.0, "bias": 2.0},
  "overhead": {"kernel": 3.0},
  "backbone": {"head": {"kernel": 4.0}, "cls": 5.0},
}


@pytest.fixture(scope="module")
def params():
  params = jax.jit(MODEL.init)(KEY, IMAGES)["params"]
  head = params["head"]["kernel"]
  kernel = jax.random.normal(KEY, head.shape)
  return {**params, "head": {**params["head"], "kernel": kernel}}


def test_paths_are_whole_and_not_substrings():
  trained, frozen = freezing.freeze(TREE, ("head",))
  assert trained == {"head": TREE["head"]}
  assert frozen == {k: TREE[k] for k in ("overhead", "backbone")}
  assert freezing.merge(trained, frozen) == TREE
  some = ("backbone/head", lambda path: path.endswith("/bias"))
  assert freezing.trainable_paths(TREE, some) == [
    "backbone/head/kernel",
    "head/bias",
  ]
  everything, nothing = freezing.freeze(TREE, (lambda path: True,))
  assert everything == TREE and nothing == {}
  assert freezing.merge(everything, nothing) == TREE


def test_bad_paths():
  with pytest.raises(ValueError, match="'haed' hits no parameter; paths are "):
    freezing.freeze(TREE, ("haed",))
  with pytest.raises(ValueError, match="trainable='head'.*a tuple"):
    freezing.freeze(TREE, "head")
  with pytest.raises(ValueError, match=r"trainable=\(\)"):
    freezing.freeze(TREE, ())
  with pytest.raises(ValueError, match="both have head/bias"):
    freezing.merge({"head": {"bias": 1}}, {"head": {"bias": 1}})
  with pytest.raises(ValueError, match="clip_scope='both'"):
    freezing.optimizer(optax.sgd(1.0), clip_scope="both")
  with pytest.raises(ValueError, match="clip_norm=None"):
    freezing.optimizer(optax.sgd(1.0), clip_scope="all")
  with pytest.raises(ValueError, match="clip_norm=-1"):
    freezing.optimizer(optax.sgd(1.0), clip_norm=-1)
  with pytest.raises(ValueError, match="no frozen parameter"):
    freezing.optimizer(
      optax.sgd(1.0), ("head",), clip_norm=1.0, clip_scope="all"
    ).init({"head": TREE["head"]})


def _products(jaxpr):
  """Shapes of the results of all matrix products, and the number of convs."""
  shapes, convs = [], 0
  for eqn in jaxpr.eqns:
    for inner in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        more, count = _products(inner)
        shapes, convs = shapes + more, convs + count
    if eqn.primitive.name == "dot_general":
      shapes += [v.aval.shape for v in eqn.outvars]
    convs += eqn.primitive.name == "conv_general_dilated"
  return shapes, convs


def test_no_gradient_of_a_frozen_weight_is_built(params):
  trained, frozen = freezing.freeze(params, MODEL.trainable)

  def apart(trained):
    return LOSS(trained, {"frozen": frozen}, BATCH, KEY)[0]

  def together(params):
    return LOSS(params, {}, BATCH, KEY)[0]

  kernels = {(8, 12), (12, 8), (8, 8)}
  shapes, convs = _products(jax.make_jaxpr(jax.grad(apart))(trained).jaxpr)
  assert convs == 1 and not kernels & set(shapes)
  all_shapes, all_convs = _products(
    jax.make_jaxpr(jax.grad(together))(params).jaxpr
  )
  assert all_convs > 1 and len(kernels & set(all_shapes)) >= 2
  # Products: 2 forward passes, and in the backward one an activation's alone.
  assert len(all_shapes) - len(shapes) >= 2 * 6
  grads = jax.jit(jax.grad(together))(params)
  own = jax.jit(jax.grad(apart))(trained)
  for path, g in trees.flatten(own).items():
    np.testing.assert_allclose(
      g, trees.flatten(grads)[path], rtol=1e-5, atol=1e-6
    )


def test_training_leaves_the_backbone_as_it_is(params):
  trained, frozen = freezing.freeze(params, MODEL.trainable)
  before = jax.tree.map(np.array, frozen)
  tx = freezing.optimizer(optax.adam(0.1), MODEL.trainable, clip_norm=1.0)
  state = steps.init_state(trained, tx, key=KEY, model_state={"frozen": frozen})
  size = trees.num_params(frozen)
  assert trees.num_params(state.opt_state) < 3 * trees.num_params(trained)
  assert size > trees.num_params(trained)
  step = jax.jit(steps.from_loss(LOSS, tx))
  for _ in range(3):
    state, _ = step(state, BATCH)
  assert step._cache_size() == 1
  after = state.model_state["frozen"]
  same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
  assert all(jax.tree.leaves(same))
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), trained, state.params)
  assert all(jax.tree.leaves(moved))


def test_moments_at_full_size():
  backbone = vit.ViT(**vit.preset("B/16"))
  model = l2p.PromptedViT(backbone, 100, l2p.preset("paper"))
  shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 224, 224, 3)))
  params = shapes["params"]
  trained, frozen = freezing.freeze(params, model.trainable)
  assert trees.num_params(trained) == 46_080 + 76_900
  tx = freezing.optimizer(optax.adam(0.03), model.trainable, clip_norm=1.0)
  official = trees.num_bytes(jax.eval_shape(optax.adam(0.03).init, params))
  for tree in (trained, params):
    ours = trees.num_bytes(jax.eval_shape(tx.init, tree))
    assert ours <= 0.01 * official


def test_the_scope_of_clipping(params):
  grads = jax.jit(jax.grad(lambda p: LOSS(p, {}, BATCH, KEY)[0]))(params)
  trained, _ = freezing.freeze(grads, MODEL.trainable)
  norms = {
    "trained": float(optax.tree.norm(trained)),
    "all": float(optax.tree.norm(grads)),
  }
  assert norms["all"] > 1.2 * norms["trained"]
  clip_norm = 0.5 * norms["trained"]
  for scope, norm in norms.items():
    tx = freezing.optimizer(
      optax.sgd(1.0), MODEL.trainable, clip_norm=clip_norm, clip_scope=scope
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    moved, still = freezing.freeze(updates, MODEL.trainable)
    assert all((u == 0).all() for u in jax.tree.leaves(still))
    for path, u in trees.flatten(moved).items():
      expected = -trees.flatten(trained)[path] * clip_norm / norm
      np.testing.assert_allclose(u, expected, rtol=2e-4, atol=1e-8)
  # With the frozen weights elsewhere the scope `trained` is the same.
  tx = freezing.optimizer(optax.sgd(1.0), MODEL.trainable, clip_norm=clip_norm)
  updates, _ = tx.update(trained, tx.init(trained), trained)
  for path, u in trees.flatten(updates).items():
    expected = -trees.flatten(trained)[path] * clip_norm / norms["trained"]
    np.testing.assert_allclose(u, expected, rtol=2e-4, atol=1e-8)


def test_a_backbone_may_be_trained_too(params):
  # As the released CORe50 config does, by asking for it.
  names = (*MODEL.trainable, "backbone")
  trained, frozen = freezing.freeze(params, names)
  assert frozen == {} and trees.num_params(trained) == trees.num_params(params)
  tx = freezing.optimizer(optax.sgd(0.1), names, clip_norm=1.0)
  state = steps.init_state(trained, tx, key=KEY)
  state, _ = jax.jit(steps.from_loss(LOSS, tx))(state, BATCH)
  kernel = lambda p: trees.flatten(p["backbone"])["encoder/norm/scale"]
  assert (kernel(state.params) != kernel(params)).any()
  assert dataclasses.replace(MODEL).trainable == ("prompt_pool", "head")
