"""The prompted ViT: where prompts go, what the head sees, who chooses."""

from __future__ import annotations

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods import l2p
from locojax.methods.l2p import model as model_lib
from locojax.methods.l2p import selection
from locojax.nn import vit

KEY = jax.random.key(0)
IMAGES = 5 * jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
BACKBONE = vit.ViT(4, 8, 2, 2, 12)
POOL = l2p.PromptPoolConfig(
  pool_size=5, length=2, top_k=2, prompt_init="uniform", key_init="uniform"
)
MODEL = l2p.PromptedViT(BACKBONE, 3, POOL)


@functools.cache
def _params(model):
  """All of a size that tells things apart, the head too."""
  shapes = jax.eval_shape(model.init, KEY, IMAGES)["params"]
  rng = np.random.default_rng(2)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.5), x.dtype), shapes
  )
  # What all queries share, so that examples choose different prompts.
  params["backbone"]["encoder"]["norm"]["bias"] *= 0
  return params


@functools.partial(jax.jit, static_argnames=("model", "train", "mode"))
def _run(model, params, images, *, train=False, mode=None, **call):
  call = dict(train=train, selection_mode=mode, **call)
  return model.apply({"params": params}, images, **call)


@jax.jit
def _backbone(params, **call):
  return BACKBONE.apply({"params": params["backbone"]}, IMAGES, **call)


def _head(params, rows):
  head = params["head"]
  return rows.mean(axis=1) @ head["kernel"] + head["bias"]


def _close(a, b, atol=2e-5):
  np.testing.assert_allclose(a, b, atol=atol)


def test_prompts_stand_in_front_and_their_rows_are_classified():
  params = _params(MODEL)
  out = _run(MODEL, params, IMAGES)
  query = _backbone(params)[:, 0]
  chosen = selection.select_prompts(query, params["prompt_pool"]["key"], 2)
  assert (out["selection"].ids == chosen.ids).all()
  prompts = params["prompt_pool"]["prompt"][0][chosen.ids].reshape(6, 4, 8)
  x = _backbone(params, extra_tokens={0: prompts})
  assert x.shape == (6, 4 + 1 + 4, 8)
  _close(out["pre_logits"], x[:, :4].mean(axis=1))
  _close(out["logits"], _head(params, x[:, :4]))
  rows = {
    "token": x[:, 4:5],
    "token+prompt": x[:, :5],
    "gap": x,
  }
  for head, seen in rows.items():
    module = model_lib.Head(3, head)
    logits, _ = module.apply({"params": params["head"]}, x, 4)
    _close(logits, _head(params, seen))


def test_the_head_starts_at_zero():
  params = jax.jit(MODEL.init)(KEY, IMAGES[:1])["params"]
  assert set(params) == {"backbone", "prompt_pool", "head"}
  assert MODEL.trainable == ("prompt_pool", "head")
  assert all((x == 0).all() for x in jax.tree.leaves(params["head"]))


def test_options_of_the_head():
  params = _params(MODEL)["head"]
  x = jax.random.normal(KEY, (6, 9, 8))
  mean = x[:, :4].mean(axis=1)

  def run(params, **settings):
    module = model_lib.Head(3, **settings)
    return module.apply({"params": params}, x, 4)

  logits, pooled = run(params, normalize=True, temperature=0.5)
  unit = mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
  _close(logits, (unit @ params["kernel"] + params["bias"]) / 0.5)
  _close(pooled, mean)
  weigh = lambda w: run({**params, "reweight": w}, reweight_prompt=True)[1]
  _close(weigh(jnp.zeros(4)), mean)
  _close(weigh(jnp.array([50.0, 0, 0, 0])), x[:, 0])
  model = dataclasses.replace(MODEL, reweight_prompt=True, temperature=0.5)
  shapes = jax.eval_shape(model.init, KEY, IMAGES)["params"]["head"]
  assert shapes["reweight"].shape == (4,)


def test_prompts_of_several_layers():
  pool = dataclasses.replace(POOL, num_layers=2)
  model = l2p.PromptedViT(BACKBONE, 3, pool, layers=(0, 1))
  params = _params(model)
  out = _run(model, params, IMAGES)
  ids = out["selection"].ids
  prompts = params["prompt_pool"]["prompt"][:, ids].reshape(2, 6, 4, 8)
  x = _backbone(params, extra_tokens={0: prompts[0], 1: prompts[1]})
  assert x.shape[1] == 8 + 1 + 4
  _close(out["logits"], _head(params, x[:, :8]))


def test_prefixes_do_not_lengthen_the_sequence():
  pool = dataclasses.replace(POOL, style="prefix")
  model = l2p.PromptedViT(BACKBONE, 3, pool, layers=(1,), head="token")
  params = _params(model)
  out = _run(model, params, IMAGES)
  rows = params["prompt_pool"]["prompt"][0][out["selection"].ids]
  keys, values = (rows[:, :, i].reshape(6, 4, 2, 4) for i in range(2))
  x = _backbone(params, extra_key_values={1: (keys, values)})
  assert x.shape[1] == 5
  _close(out["logits"], _head(params, x[:, :1]))


def test_a_single_prompt_asks_nothing():
  def never(images):
    raise AssertionError("the query was asked for")

  general = l2p.GeneralPromptConfig(length=4, layers=(0,))
  model = l2p.PromptedViT(BACKBONE, 3, general=general, query_fn=never)
  params = _params(model)
  assert model.trainable == ("general_prompt", "head")
  out = _run(model, params, IMAGES)
  x = _backbone(
    params, extra_tokens={0: params["general_prompt"]["prompt"][0][None]}
  )
  _close(out["logits"], _head(params, x[:, :4]))
  assert out["selection"] is None


def test_dual_prompt():
  model = l2p.dual_prompt(
    BACKBONE,
    num_classes=3,
    num_tasks=4,
    general_length=3,
    general_layers=(0, 1),
    task_length=2,
    task_layers=(1, 0),
  )
  assert model.pool.key_loss_weight == 1.0
  params = _params(model)
  general = params["general_prompt"]["prompt"]
  own = params["prompt_pool"]["prompt"]
  assert general.shape == (2, 2, 3, 2, 4) and own.shape == (2, 4, 2, 2, 2, 4)
  trained = _run(model, params, IMAGES, train=True, forced_ids=jnp.array([2]))
  tested = _run(model, params, IMAGES)
  keys = params["prompt_pool"]["key"]
  expected = selection.select_prompts(_backbone(params)[:, 0], keys, 1).ids
  assert (tested["selection"].ids == expected).all()
  assert (trained["selection"].ids == 2).all()

  def joined(i, j, rows):
    """Keys and values of block i, whose E-prompt is the j-th."""
    return tuple(
      jnp.concatenate(
        [jnp.broadcast_to(general[i, n], (6, 3, 2, 4)), rows[j, :, n]], axis=1
      )
      for n in range(2)
    )

  for out in (trained, tested):
    rows = own[:, out["selection"].ids[:, 0]]
    prefixes = {
      0: joined(0, 1, rows),
      1: joined(1, 0, rows),
    }
    x = _backbone(params, extra_key_values=prefixes)
    _close(out["logits"], _head(params, x[:, :1]))


def test_queries():
  params = _params(MODEL)
  keys = params["prompt_pool"]["key"]
  patches = BACKBONE.apply(
    {"params": params["backbone"]}, IMAGES, method="embed"
  )[:, 1:]
  mean, largest = patches.mean(axis=1), patches.max(axis=1)
  short = dataclasses.replace(BACKBONE, num_layers=1)
  first = short.apply({"params": params["backbone"]}, IMAGES)[:, 0]
  given = jax.random.normal(KEY, (6, 8))
  cases = [
    (dict(embedding_key="mean"), mean),
    (dict(embedding_key="max"), largest),
    (dict(embedding_key="mean_max"), largest + 2 * mean),
    (dict(query="first_layers"), first),
    (dict(query_fn=lambda images: given), given),
  ]
  for changes, query in cases:
    model = dataclasses.replace(MODEL, **changes)
    found = jax.jit(
      lambda p, model=model: model.apply({"params": p}, IMAGES)["selection"]
    )(params)
    expected = selection.select_prompts(query, keys, 2)
    _close(found.similarity, expected.similarity)
    cached = _run(MODEL, params, IMAGES, query=query)["selection"]
    assert (cached.ids == found.ids).all()
  model = dataclasses.replace(MODEL, query="first_layers")
  shapes = jax.eval_shape(model.init, KEY, IMAGES)["params"]
  assert jax.tree.structure(shapes) == jax.tree.structure(params)


def test_the_query_has_no_gradient():
  params = _params(MODEL)

  def loss(params, query=None):
    out = MODEL.apply({"params": params}, IMAGES, query=query)
    return l2p.key_surrogate_loss(out["selection"])

  grads = jax.jit(jax.grad(loss))(params)
  assert all((g == 0).all() for g in jax.tree.leaves(grads["backbone"]))
  assert (grads["prompt_pool"]["key"] != 0).any()
  query = _backbone(params)[:, 0]
  assert (jax.jit(jax.grad(loss, 1))(params, query) == 0).all()


VOTER = dataclasses.replace(
  MODEL, pool=dataclasses.replace(POOL, selection="batch")
)


def test_predictions_do_not_depend_on_the_batch():
  params = _params(MODEL)
  order = np.array([3, 0, 5, 1, 4, 2])
  for model in (MODEL, VOTER):
    whole = _run(model, params, IMAGES)
    moved = _run(model, params, IMAGES[order])
    halves = [_run(model, params, IMAGES[i : i + 3]) for i in (0, 3)]
    for name in ("logits", "pre_logits"):
      _close(moved[name], whole[name][order])
      _close(jnp.concatenate([h[name] for h in halves]), whole[name])
    ids = whole["selection"].ids
    assert (moved["selection"].ids == ids[order]).all()
    assert len({tuple(r) for r in ids.tolist()}) > 1


def test_batchwise_evaluation_has_a_name_and_a_warning():
  params = _params(MODEL)
  with pytest.warns(UserWarning, match="vote of the test batch"):
    out = VOTER.apply({"params": params}, IMAGES, eval_batchwise=True)
  query = _backbone(params)[:, 0]
  keys = params["prompt_pool"]["key"]
  voted = selection.select_prompts(query, keys, 2, mode="batch").ids
  assert (out["selection"].ids == voted).all()
  with pytest.warns(UserWarning, match="the caller at test"):
    out = MODEL.apply({"params": params}, IMAGES, eval_forced_ids=[4, 0])
  assert out["selection"].ids.tolist() == [[4, 0]] * 6
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    trained = VOTER.apply({"params": params}, IMAGES, train=True)
  assert (trained["selection"].ids == voted).all()


def test_half_precision():
  half = dataclasses.replace(BACKBONE, dtype="bfloat16")
  model = dataclasses.replace(MODEL, backbone=half)
  params = _params(MODEL)
  out, exact = (_run(m, params, IMAGES) for m in (model, MODEL))
  assert out["logits"].dtype == jnp.float32
  same = (out["selection"].ids == exact["selection"].ids).all(axis=-1)
  assert same.mean() > 0.5
  _close(out["logits"][same], exact["logits"][same], atol=0.15)


BAD_CALLS = [
  ({}, dict(frequency=np.ones(5)), "frequency is not allowed with train"),
  ({}, dict(forced_ids=[0, 1]), "forced_ids is not allowed with train"),
  ({}, dict(selection_mode="batch"), "selection_mode='batch'"),
  ({}, dict(train=True, eval_batchwise=True), "train=True"),
  ({}, dict(train=True, eval_forced_ids=[0, 1]), "train=True"),
  ({}, dict(eval_forced_ids=[0, 1], eval_batchwise=True), "eval_batchwise"),
  ({}, dict(query=jnp.ones((5, 8))), r"query has shape \(5, 8\)"),
  (
    dict(pool=dataclasses.replace(POOL, key_dim=8)),
    dict(query=jnp.ones((6, 7))),
    "query has size 7",
  ),
  (dict(layers=(2,)), {}, "layers=.*num_layers=2"),
  (dict(layers=(0, 1)), {}, "layers=.*num_layers=1"),
  (dict(layers=()), {}, "layers="),
  (dict(head="cls"), {}, "head='cls'"),
  (dict(head="token", reweight_prompt=True), {}, "reweight_prompt"),
  (dict(pool=None), {}, "head='prompt'"),
  (dict(pool=dataclasses.replace(POOL, style="prefix")), {}, "head='prompt'"),
  (dict(temperature=0.0), {}, "temperature=0"),
  (dict(query="last"), {}, "query='last'"),
  (dict(query_layers=3), {}, "query_layers=3"),
  (dict(embedding_key="min"), {}, "embedding_key='min'"),
  (dict(num_classes=0), {}, "num_classes=0"),
]


@pytest.mark.parametrize(("changes", "call", "words"), BAD_CALLS)
def test_bad_models_and_calls(changes, call, words):
  model = dataclasses.replace(MODEL, **changes)
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(
      lambda: model.init_with_output(KEY, jnp.zeros((6, 8, 8, 1)), **call)
    )


def test_backbones_that_do_not_fit():
  run = lambda model, side=8: jax.eval_shape(
    lambda: model.init(KEY, jnp.zeros((2, side, side, 1)))
  )
  no_cls = dataclasses.replace(BACKBONE, use_cls=False)
  with pytest.raises(ValueError, match="embedding_key='cls'"):
    run(dataclasses.replace(MODEL, backbone=no_cls))
  by_mean = dataclasses.replace(MODEL, backbone=no_cls, embedding_key="mean")
  run(by_mean)
  with pytest.raises(ValueError, match="head='token'"):
    run(dataclasses.replace(by_mean, head="token"))
  scanned = dataclasses.replace(BACKBONE, scan=True)
  run(dataclasses.replace(MODEL, backbone=scanned))
  with pytest.raises(ValueError, match="scan=True"):
    run(dataclasses.replace(MODEL, backbone=scanned, query="first_layers"))
  with pytest.raises(ValueError, match="patch_size=4"):
    run(MODEL, side=10)
  with pytest.raises(ValueError, match="layers of general"):
    l2p.GeneralPromptConfig(layers=(1, 1))
  with pytest.raises(ValueError, match="how='cls'"):
    model_lib.pooled_embedding(jnp.ones((1, 2, 3)), "cls")
