"""EWC: the Fisher diagonal by hand, summed and online penalties, the loss."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.methods import continual
from locojax.train import steps

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)}
BATCH = {
  "x": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32),
  "label": jnp.array([0, 1, 1, 3, 2]),
}


def _apply(params, model_state, batch, key):
  del key
  return batch["x"] @ params["w"], model_state


@functools.partial(jax.jit, static_argnames=("labels", "chunk"))
def _fisher(params, batch, key=KEY, labels="given", chunk=2):
  return continual.diagonal_fisher(
    _apply, params, {}, batch, key, labels=labels, chunk=chunk
  )


def _by_hand(batch, mask, classes):
  """mean_i (x_i (p_i - e_y))^2 over the examples that count."""
  total = np.zeros((3, 4))
  for i in np.flatnonzero(mask):
    x, y = np.float64(batch["x"][i]), int(batch["label"][i])
    z = np.where(classes, x @ np.float64(PARAMS["w"]), -np.inf)
    p = np.exp(z - z.max())
    p = p / p.sum()
    total += np.square(np.outer(x, p - np.eye(4)[y]))
  return total / np.sum(mask)


def test_the_fisher_diagonal_is_the_mean_of_squared_gradients():
  found = _fisher(PARAMS, BATCH)
  assert float(found.weight) == 5
  want = _by_hand(BATCH, np.ones(5), np.ones(4, bool))
  np.testing.assert_allclose(found.value()["w"], want, rtol=1e-5)


def test_masked_examples_and_classes_stay_out_of_the_fisher_diagonal():
  mask, classes = (
    np.array([1, 1, 0, 0, 1.0]),
    np.array([True, True, False, True]),
  )
  rows = jnp.broadcast_to(classes, (5, 4))
  batch = {**BATCH, "mask": jnp.asarray(mask), "class_mask": rows}
  found = _fisher(PARAMS, batch)
  # The label of the last example is outside the class mask.
  assert float(found.weight) == 2
  want = _by_hand(BATCH, [1, 1, 0, 0, 0], classes)
  np.testing.assert_allclose(found.value()["w"], want, rtol=1e-5)
  np.testing.assert_array_equal(np.asarray(found.value()["w"])[:, 2], 0)


def test_fishers_of_batches_merge():
  pieces = [{k: v[s] for k, v in BATCH.items()} for s in (np.s_[:2], np.s_[2:])]
  merged = _fisher(PARAMS, pieces[0]).merge(_fisher(PARAMS, pieces[1]))
  want = _fisher(PARAMS, BATCH).value()["w"]
  np.testing.assert_allclose(merged.value()["w"], want, rtol=1e-5)


def test_sampled_labels_give_the_expected_information():
  """E_y (p - e_y)_k^2 = p_k (1 - p_k)."""
  x = jnp.tile(BATCH["x"][:1], (3000, 1))
  batch = {"x": x, "label": jnp.zeros(3000, jnp.int32)}
  found = _fisher(PARAMS, batch, labels="sampled", chunk=500).value()["w"]
  p = jax.nn.softmax(x[0] @ PARAMS["w"])
  want = np.outer(np.square(x[0]), p * (1 - p))
  np.testing.assert_allclose(found, want, rtol=0.15)


def _tasks(num=3):
  rng = np.random.default_rng(1)
  draw = lambda: {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
  return [(draw(), jax.tree.map(jnp.square, draw())) for _ in range(num)]


def test_the_summed_penalty_is_the_sum_of_the_tasks_penalties():
  state, tasks = continual.ewc_state(PARAMS), _tasks()
  for params, fisher in tasks:
    state = jax.jit(continual.ewc_summed)(state, params, fisher)
  at = jax.tree.map(lambda p: p + 0.3, PARAMS)

  def plain(theta):
    each = [jnp.sum(f["w"] * (theta["w"] - p["w"]) ** 2) for p, f in tasks]
    return sum(each)

  both = [plain, functools.partial(continual.ewc_penalty, state)]
  want, got = [jax.jit(jax.value_and_grad(f))(at) for f in both]
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  np.testing.assert_allclose(got[1]["w"], want[1]["w"], rtol=1e-4, atol=1e-5)


def test_a_parameter_without_information_is_free():
  state = continual.ewc_summed(
    continual.ewc_state(PARAMS), PARAMS, {"w": jnp.zeros((3, 4))}
  )
  far = jax.tree.map(lambda p: p + 10, PARAMS)
  assert float(continual.ewc_penalty(state, far)) == 0
  assert np.isfinite(state["anchor"]["w"]).all()


def test_the_online_penalty_decays_and_follows_the_parameters():
  state = continual.ewc_state(PARAMS)
  (a, f), (b, g), _ = _tasks()
  state = continual.ewc_online(state, a, f, decay=0.5)
  state = continual.ewc_online(state, b, g, decay=0.5, rate=2.0)
  want = 0.5 * f["w"] + 2 * g["w"]
  np.testing.assert_allclose(state["fisher"]["w"], want, rtol=1e-6)
  assert float(continual.ewc_penalty(state, b)) == 0
  one = jax.tree.map(lambda p: p + 1, b)
  np.testing.assert_allclose(
    continual.ewc_penalty(state, one), want.sum(), rtol=1e-5
  )


def test_the_loss_has_half_the_weighted_penalty():
  loss_fn = continual.cross_entropy(_apply)
  (anchor, fisher), *_ = _tasks()
  state = continual.ewc_summed(continual.ewc_state(PARAMS), anchor, fisher)
  model_state = {"ewc": state, "other": jnp.ones(2)}
  held = jax.jit(continual.ewc(loss_fn, weight=3.0))
  loss, (found, after) = held(PARAMS, model_state, BATCH, KEY)
  plain, _ = loss_fn(PARAMS, {}, BATCH, KEY)
  penalty = np.sum(fisher["w"] * np.square(PARAMS["w"] - anchor["w"]))
  np.testing.assert_allclose(loss, plain + 1.5 * penalty, rtol=1e-5)
  np.testing.assert_allclose(found["loss"].value(), loss, rtol=1e-6)
  np.testing.assert_allclose(found["ewc_penalty"].value(), penalty, rtol=1e-5)
  assert float(found["loss"].weight) == 5
  jax.tree.map(np.testing.assert_array_equal, after, model_state)


def test_microbatches_give_the_gradient_of_the_whole():
  held = continual.ewc(continual.cross_entropy(_apply), weight=3.0)
  batch = jax.tree.map(lambda x: x[:4], BATCH)
  batch["mask"] = jnp.array([1.0, 1, 1, 0])
  (anchor, fisher), *_ = _tasks()
  state = continual.ewc_summed(continual.ewc_state(PARAMS), anchor, fisher)
  found = [
    steps.value_and_grad(held, num_microbatches=n)(
      PARAMS, {"ewc": state}, batch, KEY
    )
    for n in (1, 2)
  ]
  for whole, pieces in zip(*(x[0::3] for x in found), strict=True):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5), whole, pieces
    )


def test_the_state_shares_no_array_with_the_parameters():
  """A step that gives its buffers away must not give one away twice."""
  tx = optax.sgd(0.1)
  held = continual.ewc(continual.cross_entropy(_apply), weight=1.0)
  params = jax.tree.map(jnp.array, PARAMS)
  state = steps.init_state(
    params, tx, key=KEY, model_state=continual.with_ewc(None, params)
  )
  step = jax.jit(steps.from_loss(held, tx), donate_argnums=0)
  state, _ = step(state, BATCH)
  ewc = continual.ewc_online(
    state.model_state["ewc"], state.params, state.model_state["ewc"]["fisher"]
  )
  _, found = step(state.replace(model_state={"ewc": ewc}), BATCH)
  assert np.isfinite(found["loss"].value())


def test_bad_arguments_are_refused():
  loss_fn = continual.cross_entropy(_apply)
  with pytest.raises(ValueError, match="weight=-1"):
    continual.ewc(loss_fn, weight=-1)
  with pytest.raises(ValueError, match=r"\['a'\].*'ewc' is missing.*with_ewc"):
    continual.ewc(loss_fn, weight=1)(PARAMS, {"a": 1}, BATCH, KEY)
  state = continual.ewc_state(PARAMS)
  with pytest.raises(ValueError, match="fisher has other names"):
    continual.ewc_summed(state, PARAMS, {"v": PARAMS["w"]})
  with pytest.raises(ValueError, match="decay=2"):
    continual.ewc_online(state, PARAMS, PARAMS, decay=2)
  with pytest.raises(ValueError, match="labels='true'"):
    continual.diagonal_fisher(_apply, PARAMS, {}, BATCH, KEY, labels="true")
  with pytest.raises(ValueError, match="chunk=0"):
    continual.diagonal_fisher(_apply, PARAMS, {}, BATCH, KEY, chunk=0)
