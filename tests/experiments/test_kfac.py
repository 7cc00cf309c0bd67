"""K-FAC against float64 NumPy and its own invariants."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from experiments.locoprop.baselines import kfac
from locojax.core import types
from locojax.methods.locoprop import taps
from tests import programs


class Net(nn.Module):
  """Two dense layers; the second without bias, and a scale beside them."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(4, name="first", param_dtype=x.dtype)(x))
    scale = self.param("scale", nn.initializers.ones, (4,), x.dtype)
    return nn.Dense(3, use_bias=False, name="second", param_dtype=x.dtype)(
      x * scale
    )


def losses(model):
  """Sigmoid cross-entropy, on the labels and on labels of the model's own."""

  def mean(logits, labels):
    each = optax.sigmoid_binary_cross_entropy(logits, labels)
    return jnp.mean(jnp.sum(each, axis=-1))

  def loss_fn(params, model_state, batch, key):
    logits = model.apply({"params": params}, batch["x"])
    return mean(logits, batch["y"]), ({}, model_state)

  def sampled_loss_fn(params, model_state, batch, key):
    logits = model.apply({"params": params}, batch["x"])
    chance = jax.lax.stop_gradient(nn.sigmoid(logits))
    drawn = jax.random.bernoulli(key, chance).astype(logits.dtype)
    return mean(logits, drawn), ({}, model_state)

  return loss_fn, sampled_loss_fn


def problem(dtype, batch=7):
  rng = np.random.default_rng(3)
  x = jnp.asarray(rng.normal(size=(batch, 5)), dtype)
  y = jnp.asarray(rng.integers(0, 2, size=(batch, 3)), dtype)
  params = programs.init(Net(), jax.random.key(0), x)["params"]
  return params, {"x": x, "y": y}


def state_of(params, tx):
  return types.TrainState(
    step=jnp.int32(0),
    params=params,
    model_state={},
    opt_state=tx.init(params),
    key=jax.random.key(5),
  )


def np_kfac(params, batch, drawn, labels, damping):
  """Factors and directions of `Net` (scale one) from labels and drawn ones."""
  x, w1 = batch["x"], params["first"]["kernel"]
  w2 = params["second"]["kernel"]
  ones = np.ones((len(x), 1))
  hidden = np.tanh(x @ w1 + params["first"]["bias"])
  chance = 1 / (1 + np.exp(-hidden @ w2))
  out = {}
  for name, inputs in (("first", np.hstack([x, ones])), ("second", hidden)):
    pair = []
    for target in (labels, drawn):
      g = chance - target
      pair.append(g if name == "second" else (g @ w2.T) * (1 - hidden**2))
    a = inputs.T @ inputs / len(x)
    s = pair[1].T @ pair[1] / len(x)
    pi = np.sqrt(np.trace(a) / len(a) / (np.trace(s) / len(s)))
    grad = inputs.T @ pair[0] / len(x)
    left = np.linalg.inv(a + pi * np.sqrt(damping) * np.eye(len(a)))
    right = np.linalg.inv(s + np.sqrt(damping) / pi * np.eye(len(s)))
    out[name] = (a, s, left @ grad @ right)
  return out


def test_kfac_factors_and_step_equal_reference():
  with jax.enable_x64(True):
    params, batch = problem(jnp.float64)
    tx = kfac.kfac(0.5, damping=1e-2, momentum=0.0)
    step = jax.jit(kfac.make_step(*losses(Net()), tx))
    state = state_of(params, tx)
    new, metrics = step(state, batch)
    key = jax.random.fold_in(state.step_key(), 1)
    logits = Net().apply({"params": params}, batch["x"])
    drawn = jax.random.bernoulli(key, nn.sigmoid(logits))
    host = jax.tree.map(np.asarray, (params, batch, drawn))
  want = np_kfac(*host, host[1]["y"], 1e-2)
  factors = optax.tree.get(new.opt_state, "factors")
  for name, (a, s, direction) in want.items():
    np.testing.assert_allclose(factors[name].inputs, a, rtol=1e-10)
    np.testing.assert_allclose(factors[name].outputs, s, rtol=1e-10)
    moved = jax.tree.map(np.subtract, params[name], new.params[name])
    rows = moved["kernel"].shape[0]
    np.testing.assert_allclose(
      moved["kernel"], 0.5 * direction[:rows], rtol=1e-8
    )
    if "bias" in moved:
      np.testing.assert_allclose(
        moved["bias"], 0.5 * direction[rows], rtol=1e-8
      )
  assert np.isfinite(metrics["loss"])


def test_kfac_factors_are_averaged_with_a_warm_start():
  rng = np.random.default_rng(0)
  params = {"kernel": jnp.zeros((3, 2))}
  tx = kfac.scale_by_kfac(decay=0.6, damping=1.0)
  state = tx.init(params)
  want = None
  for k in range(1, 6):
    a = rng.normal(size=(3, 3))
    pair = (jnp.asarray(a @ a.T, jnp.float32), jnp.eye(2))
    keep = min(1 - 1 / k, 0.6)
    want = pair[0] if want is None else keep * want + (1 - keep) * pair[0]
    _, state = tx.update(params, state, factors={"": pair})
    stale = {"": (jnp.full((3, 3), jnp.nan), jnp.eye(2))}
    _, state = tx.update(params, state, factors=stale, fresh=False)
  np.testing.assert_allclose(state.factors[""].inputs, want, rtol=1e-5)
  assert int(state.num_stats) == 5 and int(state.count) == 10


def test_kfac_lands_at_least_squares():
  # One linear layer, squared loss: the Gauss-Newton matrix is A (x) I, and a
  # step with learning rate 1 solves the problem whatever labels are drawn to
  # measure S, here exactly I.
  class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2, name="out")(x)

  rng = np.random.default_rng(1)
  x = rng.normal(size=(40, 3)).astype(np.float32)
  y = rng.normal(size=(40, 2)).astype(np.float32)
  noise = np.linalg.qr(rng.normal(size=(40, 2)))[0] * np.sqrt(40)

  def loss(params, state, batch, drawn):
    out = Linear().apply({"params": params}, batch["x"])
    target = batch["y"]
    if drawn:
      target = jax.lax.stop_gradient(out) + noise
    each = 0.5 * jnp.sum(jnp.square(out - target), axis=-1)
    return jnp.mean(each), ({}, state)

  params = Linear().init(jax.random.key(0), x)["params"]
  tx = kfac.kfac(1.0, damping=1e-9, momentum=0.0)
  step = kfac.make_step(
    lambda p, s, b, k: loss(p, s, b, False),
    lambda p, s, b, k: loss(p, s, b, True),
    tx,
  )
  new, _ = jax.jit(step)(state_of(params, tx), {"x": x, "y": y})
  full = np.hstack([x, np.ones((40, 1))])
  want = np.linalg.lstsq(full, y, rcond=None)[0]
  np.testing.assert_allclose(new.params["out"]["kernel"], want[:3], atol=2e-4)
  np.testing.assert_allclose(new.params["out"]["bias"], want[3], atol=2e-4)


def test_sampled_output_factor_is_an_unbiased_fisher():
  params, batch = problem(jnp.float32)
  _, sampled_loss_fn = losses(Net())
  captured = taps.capture(sampled_loss_fn)

  def one(key):
    return kfac.output_factors(captured(params, {}, batch, key)[2])

  keys = jax.random.split(jax.random.key(9), 20_000)
  drawn = jax.jit(lambda k: jax.lax.map(one, k, batch_size=2000))(keys)
  mean = jax.tree.map(lambda x: np.mean(x, axis=0), drawn)
  hidden = np.tanh(
    batch["x"] @ params["first"]["kernel"] + params["first"]["bias"]
  )
  chance = nn.sigmoid(hidden @ params["second"]["kernel"])
  # Independent labels: E[g g^T] = diag(p (1 - p)), pulled back to each layer.
  fisher = [np.diag(p * (1 - p)) for p in chance]
  back = [(params["second"]["kernel"] * (1 - h[:, None] ** 2)) for h in hidden]
  first = np.mean([j @ f @ j.T for j, f in zip(back, fisher)], axis=0)
  np.testing.assert_allclose(mean["second"], np.mean(fisher, 0), atol=3e-3)
  np.testing.assert_allclose(mean["first"], first, atol=3e-3)


def test_kfac_is_invariant_to_a_linear_change_of_inputs():
  # With next to no damping: inputs x M, kernel M^-1 W give the same outputs,
  # before and after the step.
  with jax.enable_x64(True):
    params, batch = problem(jnp.float64, batch=50)
    mix = np.random.default_rng(8).normal(size=(5, 5))
    other = {**params, "first": dict(params["first"])}
    other["first"]["kernel"] = np.linalg.solve(mix, params["first"]["kernel"])
    outs = []
    for p, x in ((params, batch["x"]), (other, batch["x"] @ mix)):
      tx = kfac.kfac(0.1, damping=1e-14, momentum=0.0)
      step = jax.jit(kfac.make_step(*losses(Net()), tx))
      new, _ = step(state_of(p, tx), {**batch, "x": x})
      outs.append(Net().apply({"params": new.params}, x))
  np.testing.assert_allclose(outs[0], outs[1], rtol=1e-4, atol=1e-6)


def test_kl_clip_bounds_the_step():
  params, batch = problem(jnp.float32)
  loose = kfac.scale_by_kfac(damping=1e-4)
  tight = kfac.scale_by_kfac(damping=1e-4, kl_clip=1e-4, learning_rate=0.5)
  loss_fn, sampled_loss_fn = losses(Net())
  args = (params, {}, batch, jax.random.key(0))
  _, grads, tape = taps.capture(loss_fn)(*args)
  grads = {k: grads[k] for k in ("first", "second")}
  first = kfac.input_factors(tape, params)
  second = kfac.output_factors(taps.capture(sampled_loss_fn)(*args)[2])
  factors = {p: (first[p], second[p]) for p in first}
  ups = [
    tx.update(grads, tx.init(grads), factors=factors)[0]
    for tx in (loose, tight)
  ]
  sizes = [float(optax.tree.vdot(u, grads)) for u in ups]
  assert 0.25 * sizes[0] > 1e-4
  ratio = np.asarray(ups[1]["first"]["bias"] / ups[0]["first"]["bias"])
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
  np.testing.assert_allclose(0.25 * sizes[0] * ratio[0] ** 2, 1e-4, rtol=1e-4)


@pytest.mark.parametrize("stats_every, update_every", [(1, 1), (3, 2)])
def test_kfac_learns_compiles_once_and_keeps_dtypes(stats_every, update_every):
  params, batch = problem(jnp.float32)
  tx = optax.chain(
    optax.clip_by_global_norm(100.0),
    optax.inject_hyperparams(kfac.kfac)(
      learning_rate=optax.constant_schedule(0.1),
      update_every=update_every,
      damping=1e-2,
      kl_clip=1e-1,
      layers="first|second",
      fallback=optax.adam(1e-2),
    ),
  )
  step = jax.jit(kfac.make_step(*losses(Net()), tx, stats_every=stats_every))
  state = state_of(params, tx)
  seen = []
  for _ in range(30):
    new, metrics = step(state, batch)
    jax.tree.map(
      lambda a, b: a.dtype == b.dtype or pytest.fail(), state.params, new.params
    )
    state = new
    seen.append(float(metrics["loss"]))
  assert step._cache_size() == 1
  assert seen[-1] < 0.5 * seen[0]
  assert np.any(np.asarray(state.params["scale"]) != 1)


def test_layers_left_out_take_the_fallback():
  params, batch = problem(jnp.float32)
  tx = kfac.kfac(0.1, layers="first", fallback=optax.sgd(0.25))
  loss_fn, sampled_loss_fn = losses(Net())
  step = kfac.make_step(loss_fn, sampled_loss_fn, tx)
  new, _ = step(state_of(params, tx), batch)
  grads = jax.grad(lambda p: loss_fn(p, {}, batch, None)[0])(params)
  np.testing.assert_allclose(
    new.params["second"]["kernel"],
    params["second"]["kernel"] - 0.25 * grads["second"]["kernel"],
    rtol=1e-5,
  )


def test_a_layer_without_factors_is_named():
  params, batch = problem(jnp.float32)
  tx = kfac.kfac(0.1)
  only_first = lambda path: path == "first"
  step = kfac.make_step(*losses(Net()), tx, filter=only_first)
  with pytest.raises(ValueError, match="second"):
    step(state_of(params, tx), batch)


def test_rows_of_all_leading_axes_count():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(4, 6, 5)), jnp.float32)
  model = nn.Dense(3)
  params = {"params": programs.init(model, jax.random.key(0), x)["params"]}

  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name="inner")(x)

  def loss_fn(params, state, batch, key):
    out = Outer().apply({"params": params}, batch["x"])
    return jnp.mean(jnp.sum(out**2, axis=(1, 2))), ({}, state)

  params = Outer().init(jax.random.key(0), x)["params"]
  _, _, tape = taps.capture(loss_fn)(params, {}, {"x": x}, None)
  got = kfac.input_factors(tape, params)["inner"]
  full = np.concatenate([x.reshape(-1, 5), np.ones((24, 1))], axis=1)
  np.testing.assert_allclose(got, full.T @ full / 24, rtol=1e-5, atol=1e-6)
  out = 2 * Outer().apply({"params": params}, x).reshape(-1, 3)
  np.testing.assert_allclose(
    kfac.output_factors(tape)["inner"], out.T @ out / 4, rtol=1e-4
  )
