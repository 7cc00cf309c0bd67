"""Rounds: equal to a loop over clients, however they are cut and laid out."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from locojax.core import metrics
from locojax.methods import ciw
from locojax.methods.dp_ftrl import clipping, noise, rounds, tree
from locojax.methods.smelu import activations
from locojax.nn import mlp
from locojax.train import sharding, steps
from tests import programs

KEY = jax.random.key(3)
CLIENTS, STEPS, BATCH, FEATURES, CLASSES = 16, 3, 4, 5, 8
CLIP = clipping.Clip(0.3)
CLIENT = optax.sgd(0.5, momentum=0.9)
SERVER = rounds.server_sgd(1.0, num_clients=10, momentum=0.9)
CLIP_UPDATE = jax.jit(clipping.clip_update)
MODEL = mlp.MLP((8, CLASSES), activation=jnp.tanh)


def loss_fn(params, model_state, batch, key):
  """Masked cross-entropy under noise on the inputs."""
  noise = 0.1 * jax.random.normal(key, batch["x"].shape)
  logits = MODEL.apply({"params": params}, batch["x"] + noise)
  each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
  loss = metrics.mean(each, batch["mask"])
  right = metrics.accuracy(logits, batch["y"], batch["mask"])
  return loss.value(), ({"loss": loss, "accuracy": right}, model_state)


def cohort(seed=0, clients=CLIENTS):
  """Ragged clients; the last one is padding, full of NaN."""
  rng = np.random.default_rng(seed)
  shape = (clients, STEPS, BATCH)
  mask = np.ones(shape, np.float32)
  mask[1, 2:] = 0
  mask[2, 1, 2:] = 0
  mask[3, 0] = 0
  x = rng.normal(size=(*shape, FEATURES)).astype(np.float32)
  x[-1] = np.nan
  present = np.ones(clients, np.float32)
  present[-1] = 0
  y = rng.integers(0, CLASSES, shape)
  return {"x": x, "y": y, "mask": mask, "client_mask": present}


@functools.cache
def params():
  """Parameters of the small network."""
  return programs.init(MODEL, KEY, np.zeros((1, FEATURES)))["params"]


def state(tx=SERVER, clip=CLIP):
  """A state at round 0."""
  return rounds.init_state(params(), tx, clip=clip, key=KEY)


def step_of(tx=SERVER, **changes):
  """A step with the settings of this file."""
  settings = dict(client_tx=CLIENT, clip=CLIP, clients_per_chunk=4)
  return rounds.make_step(loss_fn, tx, **{**settings, **changes})


@jax.jit
def local_step(w, opt_state, here, key):
  """One step of a client."""
  grads, _ = jax.grad(loss_fn, has_aux=True)(w, {}, here, key)
  updates, opt_state = CLIENT.update(grads, opt_state, w)
  return optax.apply_updates(w, updates), opt_state


def delta(state, batch, index):
  """A client's update before clipping, by a plain loop."""
  key = jax.random.fold_in(state.step_key(), rounds._CLIENT_STREAM)
  key = jax.random.fold_in(key, index)
  w, opt_state = state.params, CLIENT.init(state.params)
  for s in range(STEPS):
    here = {n: v[index, s] for n, v in batch.items() if n != "client_mask"}
    if here["mask"].any():
      w, opt_state = local_step(w, opt_state, here, jax.random.fold_in(key, s))
  return jax.tree.map(jnp.subtract, w, state.params)


def by_hand(state, batch):
  """The sum that the server should see, minus the clipped updates."""
  total = jax.tree.map(jnp.zeros_like, state.params)
  for i in np.flatnonzero(batch["client_mask"]):
    clipped, _, _ = CLIP_UPDATE(delta(state, batch, int(i)), CLIP.norm)
    total = jax.tree.map(jnp.subtract, total, clipped)
  return total


def close(a, b, **tolerances):
  """All leaves close."""
  chex.assert_trees_all_close(
    a, b, **{"rtol": 1e-5, "atol": 1e-6, **tolerances}
  )


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_a_round_is_a_loop_over_clients(chunk):
  before, batch = state(), cohort()
  after, found = jax.jit(step_of(clients_per_chunk=chunk))(before, batch)
  updates, opt_state = SERVER.update(
    by_hand(before, batch), before.opt_state, before.params
  )
  close(after.params, optax.apply_updates(before.params, updates))
  close(after.opt_state, opt_state)
  assert int(after.step) == 1
  found = metrics.values(found)
  assert found[rounds.NOT_PRIVATE + "num_clients"] == CLIENTS - 1
  assert found[rounds.NOT_PRIVATE + "num_finite"] == CLIENTS - 1
  norms = [
    float(clipping.update_norm(delta(before, batch, i)))
    for i in range(CLIENTS - 1)
  ]
  name = rounds.NOT_PRIVATE + "update_norm"
  np.testing.assert_allclose(found[name], np.mean(norms), rtol=1e-5)
  assert 0 < found[rounds.NOT_PRIVATE + "fraction_clipped"] <= 1
  assert np.isfinite(found["loss"])


def run(step, first, num=3, put=lambda x: x):
  """Some rounds, on other cohorts."""
  out = first
  for k in range(num):
    out, found = step(out, put(cohort(seed=k)))
  return out, metrics.values(found)


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 4, "model": 2}])
@pytest.mark.parametrize("adaptive", [False, True])
def test_sharded_is_unsharded(axes, adaptive):
  clip = quantile() if adaptive else CLIP
  before, step = state(clip=clip), step_of(clip=clip, clients_per_chunk=2)
  plain, plain_found = run(jax.jit(step), before)
  mesh = sharding.make_mesh(axes)
  rules = (("layer_.*/kernel", P(None, "model")), ("layer_.*/bias", P("model")))
  shardings = sharding.state_shardings(before, mesh, rules)

  def put(batch):
    return jax.device_put(
      batch, sharding.batch_shardings(batch, mesh, P("data"))
    )

  with jax.set_mesh(mesh):
    laid_out = jax.jit(step, out_shardings=(shardings, None))
    after, found = run(laid_out, jax.device_put(before, shardings), put=put)
  kernel = after.params["layer_0"]["kernel"]
  assert kernel.sharding.spec == P(None, "model")
  close(jax.device_get(after.params), jax.device_get(plain.params), atol=3e-6)
  close(found, plain_found, rtol=1e-4)


def compiled(clients, axes=None):
  """A round of so many clients, 2 at a time, compiled."""
  mesh = sharding.make_mesh(axes or {}, None if axes else jax.devices()[:1])
  batch, before = cohort(clients=clients), state()
  spec = sharding.batch_shardings(batch, mesh, P("data"))
  with jax.set_mesh(mesh):
    return (
      jax.jit(step_of(clients_per_chunk=2, report="loss"))
      .lower(before, jax.device_put(batch, spec))
      .compile()
    )


def test_devices_talk_once_a_round():
  found = programs.talks(compiled(64, {"data": 8}))
  assert [kind for _, kind in found] == ["all-reduce"]


def test_memory_does_not_grow_with_the_clients():
  few, many = (compiled(n).memory_analysis() for n in (4, 256))
  slack = 4 * 256 * STEPS * BATCH * (FEATURES + 3) + 4096
  assert many.temp_size_in_bytes <= few.temp_size_in_bytes + slack
  updates = 4 * 256 * sum(x.size for x in jax.tree.leaves(params()))
  assert slack < updates


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("how", ["masked", "nan"])
def test_a_masked_or_broken_client_is_a_removed_one(how, adaptive):
  clip = quantile() if adaptive else CLIP
  before, batch = state(clip=clip), cohort()
  step = jax.jit(step_of(clip=clip, clients_per_chunk=1))
  gone = 14
  removed = {n: v[:gone] for n, v in batch.items()}
  other = {n: v[: gone + 1].copy() for n, v in batch.items()}
  if how == "masked":
    other["client_mask"][gone] = 0
  else:
    other["x"][gone, 1, 0, 0] = np.nan
  a, found_a = step(before, removed)
  b, found_b = step(before, other)
  chex.assert_trees_all_equal(
    *jax.tree.map(jax.random.key_data, (a.key, b.key))
  )
  chex.assert_trees_all_equal(a.replace(key=0), b.replace(key=0))
  assert metrics.values(found_a)["loss"] == metrics.values(found_b)["loss"]
  values = metrics.values(found_b)
  assert values[rounds.NOT_PRIVATE + "num_finite"] == gone
  assert values[rounds.NOT_PRIVATE + "num_clients"] == gone + (how == "nan")


@pytest.mark.parametrize("bound", [1e9, None])
def test_one_client_and_one_local_step_is_plain_sgd(bound):
  batch = {n: v[:1, :1] for n, v in cohort().items() if n != "client_mask"}
  clip = clipping.Clip(bound)
  step = step_of(
    rounds.server_sgd(0.2, num_clients=1),
    client_tx=optax.sgd(1.0),
    clip=clip,
    clients_per_chunk=1,
  )
  before = state(rounds.server_sgd(0.2, num_clients=1), clip)
  after, _ = jax.jit(step)(before, batch)
  key = jax.random.fold_in(before.step_key(), rounds._CLIENT_STREAM)
  key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
  here = {n: v[0, 0] for n, v in batch.items()}
  grad_fn = jax.jit(jax.grad(loss_fn, has_aux=True))
  grads, _ = grad_fn(before.params, {}, here, key)
  plain = jax.tree.map(lambda p, g: p - 0.2 * g, before.params, grads)
  close(after.params, plain)


def test_examples_as_clients_are_clipped_one_by_one():
  """DP-SGD for examples: the sum of clipped gradients of single examples."""
  rng = np.random.default_rng(1)
  batch = {
    "x": rng.normal(size=(6, 1, 1, FEATURES)).astype(np.float32),
    "y": rng.integers(0, CLASSES, (6, 1, 1)),
  }

  def plain_loss(params, model_state, batch, key):
    logits = MODEL.apply({"params": params}, batch["x"])
    each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return each.mean(), ({}, model_state)

  tx = rounds.server_sgd(0.1, num_clients=6)
  step = rounds.make_step(
    plain_loss,
    tx,
    client_tx=optax.sgd(1.0),
    clip=CLIP,
    clients_per_chunk=3,
  )
  before = state(tx)
  after, found = jax.jit(step)(before, batch)
  one = lambda b: jax.grad(lambda p: plain_loss(p, {}, b, KEY)[0])(
    before.params
  )
  grads = jax.jit(jax.vmap(one))({n: v[:, 0] for n, v in batch.items()})
  dpsgd = optax.contrib.differentially_private_aggregate(CLIP.norm, 0.0, KEY)
  mean, _ = dpsgd.update(grads, dpsgd.init(before.params), before.params)
  plain = jax.tree.map(lambda p, g: p - 0.1 * g, before.params, mean)
  close(after.params, plain)
  assert metrics.values(found)["loss"] > 0


def quantile(**changes):
  """Adaptive clipping with a visible stand-in for the noise."""
  settings = dict(
    initial=0.3,
    count_tx=optax.trace(decay=0.5),
    num_clients=10,
    starts_tree=tree.RestartPolicy(2).starts_tree,
  )
  return clipping.QuantileClip(**{**settings, **changes})


def test_adaptive_clipping_changes_the_norm_only_where_a_tree_starts():
  clip = quantile()
  before, step = state(clip=clip), jax.jit(step_of(clip=clip))
  norms, estimates = [], []
  for k in range(5):
    before, found = step(before, cohort(seed=k))
    found = metrics.values(found)
    norms.append(found["clip_norm"])
    estimates.append(found["clip_estimate"])
  assert len(set(estimates)) == 5
  assert norms[0] == norms[1] == np.float32(0.3)
  assert norms[2] == norms[3] == estimates[2] and norms[4] == estimates[4]


def recorder():
  """A transformation that keeps what it was told."""

  def init(params):
    return {"norm": jnp.float32(0), "sum": jax.tree.map(jnp.zeros_like, params)}

  def update(updates, state, params=None, *, clip_norm=-1.0, **extra):
    assert not extra
    return updates, {"norm": jnp.float32(clip_norm), "sum": updates}

  return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_server_gets_the_sum_and_the_norm_and_no_more(adaptive):
  clip = quantile() if adaptive else CLIP
  before, batch = state(recorder(), clip), cohort()
  after, _ = jax.jit(step_of(recorder(), clip=clip))(before, batch)
  told = after.opt_state.server if adaptive else after.opt_state
  assert float(told["norm"]) == np.float32(0.3)
  close(told["sum"], by_hand(before, batch))


def test_resuming_from_the_state_alone_is_exact():
  """Adaptive clipping, its noise and the server are all in the state."""
  noise = optax.add_noise(0.1, 0.5, 7)
  clip = quantile(count_tx=noise)
  tx = rounds.server_sgd(0.5, num_clients=10, noise=noise, momentum=0.9)
  step = jax.jit(step_of(tx, clip=clip))
  whole, _ = run(step, state(tx, clip), 4)
  half = state(tx, clip)
  for k in range(4):
    leaves, structure = jax.tree.flatten(half)
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    saved = [
      np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in leaves
    ]
    leaves = [
      jax.random.wrap_key_data(s) if is_key(x) else jnp.asarray(s)
      for s, x in zip(saved, leaves)
    ]
    half = jax.tree.unflatten(structure, leaves)
    half, _ = step(half, cohort(seed=k))
  chex.assert_trees_all_equal(whole.params, half.params)
  chex.assert_trees_all_equal(
    whole.opt_state.clip.estimate, half.opt_state.clip.estimate
  )


def test_one_compilation_serves_all_rounds():
  clip = quantile()
  step = chex.assert_max_traces(step_of(clip=clip), n=1)
  run(jax.jit(step), state(clip=clip))


def test_a_state_of_steps_serves_a_fixed_norm():
  other = steps.init_state(params(), SERVER, key=KEY)
  chex.assert_trees_all_equal_shapes_and_dtypes(
    other.opt_state, state().opt_state
  )


def test_losses_of_other_methods_compose():
  """SmeLU, CIW's weights with their burn-in, and a scalar for all clients."""
  model = mlp.MLP((8, CLASSES), activation=activations.smelu)
  weights = ciw.InstanceConfig(lam=0.5)

  def losses(params, batch):
    logits = model.apply({"params": params}, batch["x"])
    return ciw.ciw_loss(
      logits,
      jax.nn.one_hot(batch["y"], CLASSES),
      instance=weights,
      mask=batch["mask"],
      step=batch["update"],
      burnin=1,
    )

  def weighted(params, model_state, batch, key):
    loss, _ = losses(params, batch)
    return loss, ({}, {"seen": model_state["seen"] + 1})

  step = rounds.make_step(
    weighted,
    SERVER,
    client_tx=CLIENT,
    clip=CLIP,
    clients_per_chunk=4,
    next_model_state=lambda s, k: {"seen": s["seen"] + 10},
    report="loss",
  )
  before = rounds.init_state(
    params(), SERVER, clip=CLIP, key=KEY, model_state={"seen": jnp.int32(0)}
  )
  step = jax.jit(steps.with_update(step))
  after, _ = step(before, cohort())
  after, found = step(after, cohort(seed=1))
  assert int(after.model_state["seen"]) == 20
  assert set(found) == {"loss"} and np.isfinite(float(found["loss"].value()))
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), after.params, params()
  )
  assert all(jax.tree.leaves(moved))


def test_clients_of_low_precision_are_summed_in_float32():
  low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params())
  before = rounds.init_state(low, recorder(), clip=CLIP, key=KEY)
  after, _ = jax.jit(step_of(recorder()))(before, cohort())
  chex.assert_trees_all_equal_dtypes(after.params, low)
  assert all(x.dtype == "float32" for x in jax.tree.leaves(after.opt_state))


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(clip=1.0), "clip=1.0"),
    (dict(clients_per_chunk=0), "clients_per_chunk=0"),
    (dict(report="none"), "report='none'"),
  ],
)
def test_bad_settings_are_named(changes, words):
  with pytest.raises(ValueError, match=words):
    step_of(**changes)


def test_bad_cohorts_are_named():
  with pytest.raises(ValueError, match="number of clients=16"):
    step_of(clients_per_chunk=5)(state(), cohort())
  batch = cohort()
  with pytest.raises(ValueError, match="leading axes"):
    step_of()(state(), {**batch, "y": batch["y"][:3]})
  with pytest.raises(ValueError, match="client_mask has shape"):
    step_of()(state(), {**batch, "client_mask": np.ones(3, np.float32)})
  with pytest.raises(ValueError, match="made by `init_state`"):
    step_of(clip=quantile())(state(), batch)


def test_bad_servers_are_named():
  with pytest.raises(ValueError, match="num_clients=0"):
    rounds.server_sgd(1.0, num_clients=0)
  with pytest.raises(ValueError, match="momentum=0.0"):
    rounds.server_sgd(1.0, num_clients=1, nesterov=True)


def test_secure_rounds_stay_on_the_grid_and_keep_the_mean():
  grid = 2.0**-12
  num = sum(x.size for x in jax.tree.leaves(params()))
  bound = noise.quantized_norm(CLIP.norm, grid, num)
  tx = optax.chain(
    noise.add_tree_noise(
      1.0,
      bound,
      key=KEY,
      max_rounds=8,
      estimator="basic",
      secure=True,
      grid=grid,
    ),
  )
  clip = clipping.Clip(CLIP.norm, grid=grid)
  ones = rounds.make_step(
    loss_fn, recorder(), client_tx=CLIENT, clip=clip, clients_per_chunk=4
  )
  first = rounds.init_state(params(), recorder(), clip=clip, key=KEY)
  total = jax.jit(ones)(first, cohort())[0].opt_state["sum"]
  plain = jax.jit(step_of(recorder()))(state(recorder()), cohort())[0]
  sums = plain.opt_state["sum"]
  for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(sums)):
    cells = np.asarray(a, np.float64) / grid
    np.testing.assert_array_equal(cells, np.round(cells))
    assert np.abs(np.asarray(a - b)).max() < grid * CLIENTS
  secure = rounds.make_step(
    loss_fn, tx, client_tx=CLIENT, clip=clip, clients_per_chunk=4
  )
  begin = rounds.init_state(
    jax.tree.map(jnp.zeros_like, params()), tx, clip=clip, key=KEY
  )
  out = jax.jit(secure)(begin, cohort())[0].params
  for x in jax.tree.leaves(out):
    cells = np.asarray(x, np.float64) / grid
    np.testing.assert_array_equal(cells, np.round(cells))
