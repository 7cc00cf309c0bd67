"""The loss of prompt learning, and what training changes and leaves alone."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.core import metrics, trees
from locojax.methods import l2p
from locojax.methods.l2p import selection
from locojax.nn import vit
from locojax.train import sharding, steps

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
BATCH = {
  "image": 5 * RNG.normal(size=(8, 8, 8, 1)).astype(np.float32),
  "label": np.array([0, 1, 0, 1, 1, 0, 1, 0]),
}
POOL = l2p.PromptPoolConfig(
  pool_size=6,
  length=2,
  top_k=2,
  prompt_init="uniform",
  key_init="uniform",
  key_loss_weight=0.7,
)
MODEL = l2p.PromptedViT(vit.ViT(4, 8, 1, 2, 12), 4, POOL)
VOTER = dataclasses.replace(
  MODEL, pool=dataclasses.replace(POOL, selection="batch")
)
FORCED = dataclasses.replace(
  MODEL, pool=dataclasses.replace(POOL, selection="forced")
)
PAPER = dataclasses.replace(
  MODEL, pool=dataclasses.replace(POOL, frequency_penalty="paper")
)
TABLE = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)


@functools.cache
def _parts():
  """What is trained and what is frozen, the same for all models here."""
  shapes = jax.eval_shape(MODEL.init, KEY, BATCH["image"])["params"]
  rng = np.random.default_rng(2)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.7), x.dtype), shapes
  )
  return l2p.freeze(params, MODEL.trainable)


def _state(model=MODEL, task_id=None):
  return {"frozen": _parts()[1], **l2p.init_pool_state(model, task_id=task_id)}


@functools.cache
def _grad_fn(model, **settings):
  loss_fn = l2p.make_loss_fn(model, **settings)
  return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


@functools.cache
def _apply(model, **settings):
  return jax.jit(functools.partial(model.apply, **settings))


def _call(model, batch, *, task_id=None, **settings):
  """`(loss, metrics, model_state, grads)`."""
  fn = _grad_fn(model, **settings)
  state = _state(model, task_id)
  (loss, (found, new)), grads = fn(_parts()[0], state, batch, KEY)
  return float(loss), metrics.values(found), new, grads


def _reference(batch, ids, classes=(0, 1, 2, 3)):
  """Mean CE among `classes` - weight * reduce_sim, in float64."""
  params = l2p.merge(*_parts())
  forced = dict(train=True, selection_mode="forced")
  out = _apply(MODEL, **forced)(
    {"params": params}, batch["image"], forced_ids=jnp.asarray(ids)
  )
  logits = np.asarray(out["logits"], np.float64)[:, list(classes)]
  picked = [list(classes).index(y) for y in batch["label"]]
  log_z = np.log(np.exp(logits).sum(axis=-1))
  ce = log_z - logits[np.arange(len(logits)), picked]
  cosines = np.asarray(out["selection"].similarity, np.float64)
  chosen = np.take_along_axis(cosines, np.asarray(ids), -1).sum(axis=-1)
  hits = np.argmax(logits, axis=-1) == picked
  return ce.mean() - 0.7 * chosen.mean(), chosen.mean(), hits.mean()


def _own_ids():
  params = l2p.merge(*_parts())
  out = _apply(MODEL)({"params": params}, BATCH["image"])
  return out["selection"].ids


def test_against_numpy():
  ids = _own_ids()
  for settings, classes in (({}, (0, 1, 2, 3)), ({"classes": (0, 1)}, (0, 1))):
    loss, found, new, _ = _call(MODEL, BATCH, **settings)
    expected = _reference(BATCH, ids, classes)
    assert loss == pytest.approx(expected[0], abs=1e-5)
    assert found["loss"] == pytest.approx(loss, abs=1e-6)
    assert found["reduce_sim"] == pytest.approx(expected[1], abs=1e-5)
    assert found["accuracy"] == expected[2]
    assert found["label_outside"] == 0
    counts = np.bincount(np.ravel(ids), minlength=6)
    assert new["l2p"]["counts"].tolist() == counts.tolist()
    assert found["pool_alive"] == (counts > 0).sum() >= 3
    share = counts[counts > 0] / counts.sum()
    entropy = -(share * np.log(share)).sum()
    assert found["pool_entropy"] == pytest.approx(entropy, abs=1e-5)


def test_a_vote_of_the_batch():
  query = _apply(MODEL)({"params": l2p.merge(*_parts())}, BATCH["image"])
  own = np.asarray(query["selection"].ids)
  counts = np.bincount(own.ravel(), minlength=6)
  voted = np.lexsort((np.arange(6), -counts))[:2]
  loss, *_ = _call(VOTER, BATCH)
  expected, *_ = _reference(BATCH, np.tile(voted, (8, 1)))
  assert loss == pytest.approx(expected, abs=1e-5)
  assert steps.is_coupled(l2p.make_loss_fn(VOTER))
  assert not steps.is_coupled(l2p.make_loss_fn(MODEL))
  with pytest.raises(ValueError, match="num_microbatches=2"):
    steps.from_loss(l2p.make_loss_fn(VOTER), optax.sgd(0.1), num_microbatches=2)


def test_masked_examples_are_removed_ones():
  mask = np.array([1, 1, 0, 1, 0, 1, 1, 1], np.float32)
  image = BATCH["image"] * np.where(mask, 1, 9).reshape(-1, 1, 1, 1)
  label = np.where(mask, BATCH["label"], 99)
  padded = {"image": image, "label": label, "mask": mask}
  kept = {name: x[mask == 1] for name, x in BATCH.items()}
  for model in (MODEL, VOTER):
    loss, found, new, grads = _call(model, padded, classes=(0, 1))
    loss_, found_, new_, grads_ = _call(model, kept, classes=(0, 1))
    assert loss == pytest.approx(loss_, abs=1e-6)
    assert found == pytest.approx(found_, abs=1e-6)
    assert (new["l2p"]["counts"] == new_["l2p"]["counts"]).all()
    for path, g in trees.flatten(grads).items():
      np.testing.assert_allclose(g, trees.flatten(grads_)[path], atol=1e-5)
  nothing = {**padded, "mask": np.zeros(8, np.float32)}
  loss, _, _, grads = _call(MODEL, nothing, classes=(0, 1))
  assert loss == 0 and all((g == 0).all() for g in jax.tree.leaves(grads))


def test_given_queries_are_the_computed_ones():
  frozen = _parts()[1]["backbone"]
  query = MODEL.backbone.apply({"params": frozen}, BATCH["image"])[:, 0]
  loss, *_ = _call(MODEL, BATCH)
  cached, *_ = _call(MODEL, {**BATCH, "query": query})
  assert cached == pytest.approx(loss, abs=1e-6)


def test_tasks_are_asked_for_by_their_options_alone():
  values = [_call(MODEL, BATCH, task_id=t) for t in (None, 0, 7)]
  assert {v[0] for v in values} == {values[0][0]}
  for other in values[1:]:
    same = jax.tree.map(lambda a, b: (a == b).all(), other[3], values[0][3])
    assert all(jax.tree.leaves(same))
  for model, settings, words in (
    (FORCED, {}, "selection='forced'"),
    (PAPER, {}, "frequency_penalty='paper'"),
    (MODEL, {"task_classes": TABLE.tolist()}, "task_classes"),
  ):
    loss_fn = l2p.make_loss_fn(
      model, **{k: np.array(v) for k, v in settings.items()}
    )
    with pytest.raises(ValueError, match=f"{words}.*boundaries are unknown"):
      jax.eval_shape(loss_fn, _parts()[0], _state(model), BATCH, KEY)


def test_classes_of_a_task():
  loss_fn = jax.jit(l2p.make_loss_fn(MODEL, task_classes=TABLE))
  loss = lambda task, batch: loss_fn(
    _parts()[0], _state(task_id=task), batch, KEY
  )
  expected, *_ = _reference(BATCH, _own_ids(), (0, 1))
  assert float(loss(0, BATCH)[0]) == pytest.approx(expected, abs=1e-5)
  later = {**BATCH, "label": BATCH["label"] + 2}
  expected, *_ = _reference(later, _own_ids(), (2, 3))
  assert float(loss(1, later)[0]) == pytest.approx(expected, abs=1e-5)
  assert loss_fn._cache_size() == 1
  # Labels of another task: counted, and no infinity.
  value, (found, _) = loss(1, BATCH)
  assert metrics.values(found)["label_outside"] == 1
  assert float(value) == pytest.approx(
    -0.7 * metrics.values(found)["reduce_sim"], abs=1e-5
  )
  # A mask of the batch's own, with rows that see all (replayed examples).
  rows = np.repeat(TABLE[:1], 8, axis=0)
  rows[5:] = True
  own, *_ = _call(MODEL, {**BATCH, "class_mask": rows})
  parts = [_call(MODEL, BATCH, classes=(0, 1)), _call(MODEL, BATCH)]
  assert min(p[0] for p in parts) < own < max(p[0] for p in parts)


def test_forced_prompts_of_a_task():
  for task, ids in ((0, (0, 1)), (2, (4, 5))):
    loss, *_ = _call(FORCED, BATCH, task_id=task)
    expected, *_ = _reference(BATCH, np.tile(ids, (8, 1)))
    assert loss == pytest.approx(expected, abs=1e-5)
  loss, *_ = _call(FORCED, BATCH, task_id=3)  # no slot left: as usual
  expected, *_ = _reference(BATCH, _own_ids())
  assert loss == pytest.approx(expected, abs=1e-5)
  own = np.array([0, 1, 2, 0, 1, 2, 0, 1])
  loss, *_ = _call(FORCED, {**BATCH, "task_id": own})
  ids = 2 * own[:, None] + np.arange(2)
  expected, *_ = _reference(BATCH, ids)
  assert loss == pytest.approx(expected, abs=1e-5)


def test_the_penalty_on_what_earlier_tasks_used():
  first, _, state, _ = _call(PAPER, BATCH, task_id=0)
  expected, *_ = _reference(BATCH, _own_ids())
  assert first == pytest.approx(expected, abs=1e-5)  # eq. (4) is eq. (3)
  assert (state["l2p"]["past"] == 0).all()
  state = l2p.start_task(state, 1)
  used = state["l2p"]["past"]
  assert (used == state["l2p"]["counts"]).all() and used.sum() == 16
  assert int(state["l2p"]["task"]) == 1
  fn = _grad_fn(PAPER)
  (_, (_, new)), _ = fn(_parts()[0], state, BATCH, KEY)
  h = selection.normalize_frequency(used)
  params = l2p.merge(*_parts())
  cosines = _apply(MODEL)({"params": params}, BATCH["image"])["selection"]
  scores = (1 - np.asarray(cosines.similarity)) * np.asarray(h)
  ids = np.argsort(scores, axis=-1, kind="stable")[:, :2]
  counts = np.asarray(used) + np.bincount(ids.ravel(), minlength=6)
  assert new["l2p"]["counts"].tolist() == counts.tolist()
  assert (new["l2p"]["past"] == used).all()
  with pytest.raises(ValueError, match="starts with init_pool_state"):
    l2p.start_task(_state(), 1)
  with pytest.raises(ValueError, match="task_id=-1"):
    l2p.start_task(state, -1)


def test_pushing_keys_apart():
  loss, *_ = _call(MODEL, BATCH)
  pushed = l2p.make_loss_fn(MODEL, key_repulsion=0.4)
  value, _ = jax.jit(pushed)(_parts()[0], _state(), BATCH, KEY)
  penalty = selection.orthogonality_penalty(
    _parts()[0]["prompt_pool"]["key"], normalize=True
  )
  assert float(value) == pytest.approx(loss + 0.4 * float(penalty), abs=1e-5)


def test_what_was_never_chosen_stays_and_what_was_once_keeps_moving():
  tx = optax.adam(0.01)
  loss_fn = l2p.make_loss_fn(FORCED, task_classes=TABLE)
  step = jax.jit(steps.from_loss(loss_fn, tx))
  state = steps.init_state(
    _parts()[0], tx, key=KEY, model_state=_state(FORCED, task_id=0)
  )
  before = state.params
  for _ in range(2):
    state, _ = step(state, BATCH)

  def moved(old, new):
    pool = [old["prompt_pool"], new["prompt_pool"]]
    prompts = (pool[0]["prompt"] != pool[1]["prompt"]).any(axis=(0, 2, 3))
    keys = (pool[0]["key"] != pool[1]["key"]).any(axis=-1)
    assert (prompts == keys).all()
    return prompts.tolist()

  assert moved(before, state.params) == [True] * 2 + [False] * 4
  head = [before["head"], state.params["head"]]
  assert (head[0]["kernel"][:, 2:] == head[1]["kernel"][:, 2:]).all()
  assert (head[0]["bias"][2:] == head[1]["bias"][2:]).all()
  assert (head[0]["kernel"][:, :2] != head[1]["kernel"][:, :2]).all()
  # A new task without a reset: momentum moves the prompts of the old one.
  later = {**BATCH, "label": BATCH["label"] + 2}
  second = state.replace(model_state=l2p.start_task(state.model_state, 1))
  kept, _ = step(second, later)
  assert moved(state.params, kept.params) == [True] * 4 + [False] * 2
  # With a reset they stay, to the bit.
  fresh = second.replace(opt_state=trees.strong_types(tx.init(second.params)))
  reset, _ = step(fresh, later)
  assert moved(state.params, reset.params) == (
    [False] * 2 + [True] * 2 + [False] * 2
  )
  assert step._cache_size() == 1
  # All that a run is, is in its state: taken up from a copy, the same bits.
  saved = jax.tree.map(np.array, (fresh.params, fresh.model_state))
  copy = fresh.replace(params=saved[0], model_state=saved[1])
  again, _ = step(copy, later)
  same = jax.tree.map(
    lambda a, b: bool((a == b).all()), again.params, reset.params
  )
  assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("num", [1, 2, 8])
def test_sharded_is_unsharded(num):
  mesh = sharding.make_mesh({"data": num}, jax.devices()[:num])
  put = lambda tree, spec: jax.device_put(
    tree, jax.sharding.NamedSharding(mesh, spec)
  )
  batch, params = put(BATCH, jax.P("data")), put(_parts()[0], jax.P())
  shards = {"vote_groups": num}
  with jax.set_mesh(mesh):
    for settings in ({}, shards) if num > 1 else ({},):
      loss_fn = l2p.make_loss_fn(VOTER, **settings)
      state = put(_state(VOTER), jax.P())
      loss, (_, new) = jax.jit(loss_fn)(params, state, batch, KEY)
      expected, _, state, _ = _call(VOTER, BATCH, **settings)
      assert float(loss) == pytest.approx(expected, abs=1e-5)
      counts = new["l2p"]["counts"]
      assert counts.tolist() == state["l2p"]["counts"].tolist()


def test_a_vote_in_each_shard_is_another_one():
  whole, *_ = _call(VOTER, BATCH)
  apart, *_ = _call(VOTER, BATCH, vote_groups=8)
  alone, *_ = _call(MODEL, BATCH)  # one example a shard votes for itself
  assert apart == pytest.approx(alone, abs=1e-5)
  assert abs(whole - apart) > 1e-3


def test_losses_of_examples():
  losses_fn = l2p.make_losses_fn(MODEL)
  losses, (found, _) = jax.jit(losses_fn)(_parts()[0], _state(), BATCH, KEY)
  assert losses.shape == (8,) and losses.dtype == jnp.float32
  loss, *_ = _call(MODEL, BATCH)
  assert float(losses.mean()) == pytest.approx(loss, abs=1e-6)
  assert "loss" not in found


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    (dict(classes=[0, 4]), r"ids \[4\]"),
    (dict(classes=[]), "names no class"),
    (dict(classes=[0], task_classes=TABLE), "not allowed together"),
    (dict(task_classes=TABLE[:, :3]), r"must be \[..., 4\]"),
    (dict(task_classes=TABLE[0]), r"must be \[tasks, classes\]"),
    (dict(task_classes=[[0, 1]]), r"must be \[tasks, classes\]"),
    (dict(task_classes=TABLE & False), "names no class"),
    (dict(components_per_task=2), "CODA-Prompt"),
    (dict(orthogonality=1.0), "CODA-Prompt"),
    (dict(orthogonality=-1.0), "orthogonality=-1"),
    (dict(key_repulsion=-1.0), "key_repulsion=-1"),
  ],
)
def test_bad_settings(settings, words):
  with pytest.raises(ValueError, match=words):
    l2p.make_loss_fn(MODEL, **settings)


def test_bad_models_and_labels():
  keyless = dataclasses.replace(POOL, prompt_key=False)
  model = dataclasses.replace(MODEL, pool=keyless)
  with pytest.raises(ValueError, match="key_repulsion=0.1"):
    l2p.make_loss_fn(model, key_repulsion=0.1)
  one_hot = {**BATCH, "label": np.eye(4)[BATCH["label"]]}
  loss_fn = l2p.make_loss_fn(MODEL, classes=[0, 1])
  with pytest.raises(ValueError, match="one-hot"):
    jax.eval_shape(loss_fn, _parts()[0], _state(), one_hot, KEY)
  outside = {**BATCH, "label": BATCH["label"] + 1}
  with pytest.raises(ValueError, match=r"labels has \[2\]"):
    loss_fn(_parts()[0], _state(), outside, KEY)
  with pytest.raises(ValueError, match="vote_groups=3"):
    loss_fn = l2p.make_loss_fn(VOTER, vote_groups=3)
    jax.eval_shape(loss_fn, _parts()[0], _state(), BATCH, KEY)


def test_forgotten_frozen_weights_and_queries_of_another_size():
  loss_fn = l2p.make_loss_fn(MODEL)
  with pytest.raises(ValueError, match=r'model_state\["frozen"\]'):
    jax.eval_shape(loss_fn, _parts()[0], l2p.init_pool_state(MODEL), BATCH, KEY)
  other = {**BATCH, "query": np.zeros((8, 5), np.float32)}
  with pytest.raises(ValueError, match="query"):
    jax.eval_shape(loss_fn, _parts()[0], _state(), other, KEY)
