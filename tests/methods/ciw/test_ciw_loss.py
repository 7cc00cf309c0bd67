"""The reweighted loss, its wrappers and schedules."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.methods.ciw import classes, instance, loss
from locojax.train import steps

LOGITS = np.array([[2.0, 1, 0], [0, 1.5, -1]])
LABELS = np.array([2, 1])
CONFIG = loss.InstanceConfig(lam=0.5)
TV = loss.ClassConfig("tv", 0.1)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def _problem(n=16, k=4, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, k)), rng.integers(0, k, n)


def test_worked_example(x64):
  fn = lambda z: loss.ciw_loss(z, LABELS, instance=CONFIG, class_=TV)
  (value, aux), grad = jax.value_and_grad(fn, has_aux=True)(LOGITS)
  np.testing.assert_allclose(value, 0.3055497897, atol=1e-9)
  np.testing.assert_allclose(
    aux["inner_losses"], [2.2076059644, 0.2663678998], atol=1e-9
  )
  weights = [0.0201839695, 0.9798160305]
  np.testing.assert_allclose(aux["weights"], weights, atol=1e-9)
  np.testing.assert_allclose(
    grad,
    [
      [0.0114088062, 0.0049395920, -0.0163483982],
      [0.1675022745, -0.2291229176, 0.0616206431],
    ],
    atol=1e-9,
  )
  np.testing.assert_allclose(aux["ess"], 1 / np.square(weights).sum())


@pytest.mark.parametrize("divergence", classes.DIVERGENCES)
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_holds_the_weights_fixed(x64, divergence, soft):
  logits, labels = _problem()
  if soft:
    labels = 0.8 * np.eye(4)[labels] + 0.05
  fn = functools.partial(
    loss.ciw_loss,
    labels=labels,
    instance=CONFIG,
    class_=loss.ClassConfig(divergence, 0.1),
  )
  grad, aux = jax.grad(fn, has_aux=True)(jnp.asarray(logits))
  w, v = aux["weights"], aux["class_weights"]
  expected = w[:, None] * (jax.nn.softmax(logits) - v)
  np.testing.assert_allclose(grad, expected, atol=1e-10)
  fixed = lambda z: float(w @ optax.softmax_cross_entropy(z, v))
  assert abs(fixed(logits) - float(fn(logits)[0])) < 1e-9
  for i, k in [(0, 0), (3, 2), (9, 1)]:
    bump = np.zeros_like(logits)
    bump[i, k] = 1e-5
    slope = (fixed(logits + bump) - fixed(logits - bump)) / 2e-5
    assert abs(slope - float(grad[i, k])) < 1e-8


@pytest.mark.parametrize("divergence", classes.DIVERGENCES)
def test_burn_in_and_gamma_zero_are_plain(x64, divergence):
  logits, labels = _problem()
  class_ = loss.ClassConfig(divergence, 0.1)
  fn = functools.partial(
    loss.ciw_loss, labels=labels, instance=CONFIG, class_=class_, burnin=10
  )
  plain = lambda z: optax.softmax_cross_entropy_with_integer_labels(
    z, labels
  ).mean()
  value_and_grad = jax.value_and_grad(
    lambda z, step: fn(z, step=step)[0], argnums=0
  )
  expected = jax.value_and_grad(plain)(jnp.asarray(logits))
  for step in (0, 10):
    got = value_and_grad(jnp.asarray(logits), step)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(got[1], expected[1], atol=1e-12)
  after = fn(logits, step=11)[0]
  now = loss.ciw_loss(logits, labels, instance=CONFIG, class_=class_)[0]
  np.testing.assert_allclose(after, now, rtol=1e-12)
  assert float(after) < float(expected[0])
  zero = loss.ClassConfig(divergence, 0.0)
  large = loss.InstanceConfig(lam=1e12)
  same = loss.ciw_loss(logits, labels, instance=large, class_=zero)[0]
  np.testing.assert_allclose(same, expected[0], rtol=1e-9)


@pytest.mark.parametrize("soft", [False, True])
def test_masked_is_removed_and_infinities_are_harmless(soft):
  logits, labels = _problem(6)
  bad = np.array([[np.nan] * 4, [np.inf, -np.inf, 0, 0]])
  padded = np.concatenate([logits, bad]).astype(np.float32)
  padded_labels = np.concatenate([labels, [-1, 99]])
  if soft:
    labels = np.float32(np.eye(4)[labels] * 0.8 + 0.05)
    padded_labels = np.concatenate([labels, np.full((2, 4), np.nan)])
  mask = np.float32([1] * 6 + [0] * 2)
  fn = functools.partial(loss.ciw_loss, instance=CONFIG, class_=TV)
  grad = jax.grad(lambda z, y, m: fn(z, y, mask=m)[0])
  expected, aux = fn(logits.astype(np.float32), labels)
  got, padded_aux = fn(padded, padded_labels, mask=mask)
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  np.testing.assert_allclose(padded_aux["ess"], aux["ess"], rtol=1e-5)
  got = grad(padded, padded_labels, mask)
  np.testing.assert_allclose(
    got[:6], grad(logits.astype(np.float32), labels, None), atol=1e-6
  )
  assert not np.any(got[6:])


@pytest.mark.parametrize("divergence", ["tv", "l2"])
def test_masked_classes(divergence):
  logits, labels = _problem(6)
  more = np.concatenate([logits, np.full((6, 1), -np.inf)], axis=1)
  fn = lambda z: loss.ciw_loss(
    z, labels, instance=CONFIG, class_=loss.ClassConfig(divergence, 0.1)
  )[0]
  value, grad = jax.value_and_grad(fn)(more.astype(np.float32))
  np.testing.assert_allclose(value, fn(logits.astype(np.float32)), rtol=1e-5)
  assert np.all(np.isfinite(grad)) and not np.any(grad[:, -1])


def test_bfloat16_logits_are_computed_in_float32():
  logits, labels = _problem()
  low = jnp.asarray(logits, jnp.bfloat16)
  fn = lambda z: loss.ciw_loss(z, labels, instance=CONFIG, class_=TV)
  value, aux = fn(low)
  assert value.dtype == jnp.float32 and aux["weights"].dtype == jnp.float32
  assert float(value) == float(fn(low.astype(jnp.float32))[0])
  assert jax.grad(lambda z: fn(z)[0])(low).dtype == jnp.bfloat16


def test_binary_is_two_classes(x64):
  rng = np.random.default_rng(4)
  z, y = rng.normal(size=12), rng.integers(0, 2, 12)
  value, aux = loss.ciw_binary_loss(z, y, instance=CONFIG)
  losses = optax.sigmoid_binary_cross_entropy(z, y)
  expected = instance.instance_weights(losses, lam=0.5)
  np.testing.assert_allclose(aux["weights"], expected, rtol=1e-9)
  np.testing.assert_allclose(value, expected @ losses, rtol=1e-9)
  soft = loss.ciw_binary_loss(z, y.astype(float), instance=CONFIG)[0]
  np.testing.assert_allclose(soft, value, rtol=1e-9)


def test_sharded_is_unsharded():
  logits, labels = _problem(32)
  logits = jnp.asarray(logits, jnp.float32)
  fn = lambda z, y: loss.ciw_loss(z, y, instance=CONFIG, class_=TV)[0]
  value_and_grad = jax.value_and_grad(fn)
  expected = value_and_grad(logits, labels)
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.NamedSharding(mesh, jax.P("data"))
  args = jax.device_put((logits, labels), rows)
  got = jax.jit(value_and_grad)(*args)
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(got[1], expected[1], atol=1e-7)

  def share(z, y):
    fn = lambda z: loss.ciw_loss(
      z, y, instance=CONFIG, class_=TV, axis_name="data"
    )
    (own, aux), grad = jax.value_and_grad(fn, has_aux=True)(z)
    return jax.lax.psum(own, "data"), aux["ess"], grad

  mapped = jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(jax.P("data"), jax.P("data")),
    out_specs=(jax.P(), jax.P(), jax.P("data")),
  )
  value, ess, grad = jax.jit(mapped)(*args)
  np.testing.assert_allclose(value, expected[0], rtol=1e-5)
  np.testing.assert_allclose(grad, expected[1], atol=1e-7)
  aux = loss.ciw_loss(logits, labels, instance=CONFIG, class_=TV)[1]
  np.testing.assert_allclose(ess, aux["ess"], rtol=1e-5)


@pytest.mark.parametrize(
  "step, factor",
  [(0, 10), (4000, 10), (4001, 9.997), (4500, 8.5), (5500, 5.5), (7000, 1)],
)
def test_lambda_schedule(x64, step, factor):
  schedule = loss.lambda_schedule(0.1, 4000)
  np.testing.assert_allclose(schedule(step), 0.1 * factor, rtol=1e-9)
  np.testing.assert_allclose(schedule(10**6), 0.1, rtol=1e-9)
  assert loss.lambda_schedule(0.1, 4000, 0)(step) == 0.1


def _linear_logits(params, model_state, batch, key):
  del key
  return batch["x"] @ params["w"], ({}, model_state)


def _linear_losses(params, model_state, batch, key):
  logits, rest = _linear_logits(params, model_state, batch, key)
  return (
    optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]),
    rest,
  )


def _batch(n=16):
  rng = np.random.default_rng(6)
  return {
    "x": rng.normal(size=(n, 3)).astype(np.float32),
    "label": rng.integers(0, 4, n),
    "mask": np.float32(np.arange(n) < n - 2),
  }


def test_wrapped_losses_in_a_training_step():
  params = {"w": jnp.asarray(np.random.default_rng(7).normal(size=(3, 4)))}
  config = loss.InstanceConfig(lam=loss.lambda_schedule(0.2, 1, 2))
  tx = optax.sgd(0.1)
  for wrapped in (
    loss.reweight(_linear_losses, config, burnin=1),
    loss.reweight_logits(_linear_logits, config, burnin=1),
  ):
    state = steps.init_state(
      params, tx, key=jax.random.key(0), model_state=loss.with_counter()
    )
    step_fn = jax.jit(steps.from_loss(wrapped, tx))
    for step in range(4):
      logits = _linear_logits(state.params, {}, _batch(), None)[0]
      expected, aux = loss.ciw_loss(
        logits,
        _batch()["label"],
        instance=config,
        step=step,
        burnin=1,
        mask=_batch()["mask"],
      )
      state, found = step_fn(state, _batch())
      np.testing.assert_allclose(
        found["loss"].value(), expected, rtol=1e-5, err_msg=str(step)
      )
      np.testing.assert_allclose(found["ess"].value(), aux["ess"], rtol=1e-4)
      assert int(state.model_state["ciw"]["step"]) == step + 1


def test_wrapped_losses_say_that_they_couple_examples():
  wrapped = loss.reweight(_linear_losses, CONFIG)
  assert steps.is_coupled(wrapped)
  with pytest.raises(ValueError, match="couples the examples"):
    steps.from_loss(wrapped, optax.sgd(0.1), num_microbatches=2)
  # Constant settings need no counter.
  state = wrapped({"w": jnp.ones((3, 4))}, {"a": 1}, _batch(), None)[1][1]
  assert state == {"a": 1}
  with pytest.raises(ValueError, match="with_counter"):
    loss.reweight(_linear_losses, CONFIG, burnin=3)({}, {}, _batch(), None)


def test_per_example_gradients_give_the_same_update():
  batch = _batch()
  params = {"w": jnp.asarray(np.random.default_rng(8).normal(size=(3, 4)))}
  params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  wrapped = loss.reweight(_linear_losses, CONFIG)
  expected = jax.grad(lambda p: wrapped(p, {}, batch, None)[0])(params)

  def one(p, x, y):
    return _linear_losses(p, {}, {"x": x[None], "label": y[None]}, None)[0][0]

  losses, grads = jax.vmap(jax.value_and_grad(one), (None, 0, 0))(
    params, batch["x"], batch["label"]
  )
  grads = jax.tree.map(lambda g: g.at[-1].set(jnp.nan), grads)
  tx = optax.chain(
    loss.reweight_per_example_grads(CONFIG, burnin=1), optax.scale(-1.0)
  )
  state = tx.init(params)
  update = jax.jit(
    lambda g, s: tx.update(g, s, losses=losses, mask=batch["mask"], value=0.0)
  )
  plain, state = update(grads, state)
  mean = jax.tree.map(lambda g: g[:14].mean(axis=0), grads)
  np.testing.assert_allclose(plain["w"], -mean["w"], rtol=1e-5, atol=1e-6)
  _, state = update(grads, state)
  got, state = update(grads, state)
  np.testing.assert_allclose(got["w"], -expected["w"], rtol=1e-4, atol=1e-6)
  assert got["w"].dtype == jnp.float32 and int(state[0].step) == 3


def test_refusals():
  with pytest.raises(ValueError, match="exactly one"):
    loss.InstanceConfig()
  with pytest.raises(ValueError, match="gamma=2"):
    loss.ClassConfig("tv", 2)
  with pytest.raises(ValueError, match="step=None"):
    loss.ciw_loss(LOGITS, LABELS, instance=CONFIG, burnin=5)
  with pytest.raises(ValueError, match="logits has shape"):
    loss.ciw_loss(LOGITS[0], LABELS, instance=CONFIG)
  with pytest.raises(ValueError, match="burnin=-1"):
    loss.reweight(_linear_losses, CONFIG, burnin=-1)
  tx = loss.reweight_per_example_grads(CONFIG)
  with pytest.raises(ValueError, match="losses=None"):
    tx.update(jnp.ones((2, 3)), tx.init(None))
  with pytest.raises(ValueError, match="leading sizes"):
    tx.update(jnp.ones((2, 3)), tx.init(None), losses=jnp.ones(4))
