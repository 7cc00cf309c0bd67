"""The contract of an optax transformation, errors, steps, shardings."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from locojax.core import trees
from locojax.methods import locoprop
from locojax.nn import mlp
from locojax.train import sharding, steps
from tests import programs

KEY = jax.random.key(0)
TRANSFERS = {"^code$": "linear", "output": "sigmoid", ".*": "tanh"}
MODEL = mlp.Autoencoder(12, (16, 8), 4)
BATCH = {"image": np.random.default_rng(0).random((32, 12), np.float32)}


def loss_fn(params, model_state, batch, key):
  logits = MODEL.apply({"params": params}, batch["image"])
  each = optax.sigmoid_binary_cross_entropy(logits, batch["image"])
  return jnp.mean(jnp.sum(each, axis=-1)), ({}, model_state)


@functools.cache
def _start():
  return programs.init(MODEL, KEY, BATCH["image"])["params"]


@functools.cache
def _captured():
  capture = jax.jit(locoprop.capture(loss_fn))
  _, grads, tape = capture(_start(), {}, BATCH, KEY)
  return grads, tape


VARIANTS = {
  "matching": {},
  "squared": {"variant": "squared"},
  "squared, no gram": {"variant": "squared", "gram": False},
  "exact": {"variant": "squared", "solver": "exact"},
  "sampled rows": {"max_rows": 8},
  "reset": {"persist_inner_state": False},
}


def _tx(learning_rate=1e-2, **settings):
  return locoprop.locoprop(
    learning_rate, transfers=TRANSFERS, num_local_iters=3, **settings
  )


def _close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_contract(settings):
  params, (grads, tape) = _start(), _captured()
  tx = _tx(**settings)
  state = tx.init(params)
  update = jax.jit(tx.update)
  jitted, new_state = update(grads, state, params, tape=tape)
  again, _ = update(grads, new_state, params, tape=tape)
  chex.assert_trees_all_equal_shapes_and_dtypes(jitted, params, again)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
  assert update._cache_size() == 1
  eager, _ = tx.update(grads, state, params, tape=tape)
  _close(jitted, eager, rtol=2e-4, atol=1e-6)
  assert int(new_state.count) == 1
  # Unknown extra arguments are ignored, as optax asks.
  tx.update(grads, state, params, tape=tape, value=1.0, unknown=2)


def test_map_params_reaches_every_statistic():
  params, tx = _start(), _tx()
  state = tx.init(params)
  marked = optax.tree.map_params(tx, lambda x: jnp.full_like(x, 7), state)
  seen = [x for x in jax.tree.leaves(marked) if x.ndim and float(x.max()) == 7]
  assert len(seen) == 2 * len(jax.tree.leaves(params))


@pytest.mark.parametrize("persist", [True, False])
def test_inject_hyperparams(persist):
  params, (grads, tape) = _start(), _captured()
  static = ("inner", "num_local_iters", "persist_inner_state", "max_rows")
  make = optax.inject_hyperparams(locoprop.locoprop, static_args=static)
  tx = make(
    learning_rate=1e-2,
    inner=locoprop.notebook_rmsprop,
    transfers=TRANSFERS,
    num_local_iters=3,
    persist_inner_state=persist,
  )
  state = tx.init(params)
  got, _ = jax.jit(tx.update)(grads, state, params, tape=tape)
  plain = _tx(persist_inner_state=persist)
  expected, _ = plain.update(grads, plain.init(params), params, tape=tape)
  _close(got, expected, rtol=1e-4, atol=1e-7)
  state.hyperparams["learning_rate"] = jnp.float32(0.0)
  still, _ = tx.update(grads, state, params, tape=tape)
  assert all(not x.any() for x in jax.tree.leaves(still))


def test_chain_after_and_before():
  params, (grads, tape) = _start(), _captured()
  tx = _tx()
  plain, _ = tx.update(grads, tx.init(params), params, tape=tape)
  chain = optax.chain(optax.scale(1.0), tx, optax.scale(0.5))
  half, _ = chain.update(grads, chain.init(params), params, tape=tape)
  _close(half, jax.tree.map(lambda x: x / 2, plain), rtol=1e-6)
  # Clipping before acts on the gradient at W0 alone.
  zero = optax.chain(optax.scale(0.0), tx)
  still, _ = zero.update(grads, zero.init(params), params, tape=tape)
  assert all(not x.any() for x in jax.tree.leaves(still))


def test_partition_and_fallback():
  params, (grads, tape) = _start(), _captured()
  covered = ("encoder_0", "output")
  tx = locoprop.locoprop(
    1e-2, transfers=TRANSFERS, layers=covered, fallback=optax.sgd(0.1)
  )
  updates, state = tx.update(grads, tx.init(params), params, tape=tape)
  for path, g in trees.flatten(grads).items():
    u = trees.flatten(updates)[path]
    same = bool(jnp.allclose(u, -0.1 * g, atol=1e-8))
    assert same == (path.split("/")[0] not in covered), path
  # The inner state holds the covered layers alone.
  inner = sum(x.size for x in jax.tree.leaves(state.inner) if x.ndim)
  sizes = [trees.num_params(params[name]) for name in covered]
  assert inner == 2 * sum(sizes)


def test_schedules_of_learning_rate_and_gamma():
  params, (grads, tape) = _start(), _captured()
  tx = _tx(lambda count: jnp.where(count == 0, 0.0, 1e-2))
  state = tx.init(params)
  first, state = tx.update(grads, state, params, tape=tape)
  second, _ = tx.update(grads, state, params, tape=tape)
  assert all(not x.any() for x in jax.tree.leaves(first))
  assert all(x.any() for x in jax.tree.leaves(second))
  a, b = _tx(gamma=lambda count: 5.0), _tx(gamma={".*": 5.0})
  got, _ = a.update(grads, a.init(params), params, tape=tape)
  expected, _ = b.update(grads, b.init(params), params, tape=tape)
  _close(got, expected, rtol=1e-6)


def test_layer_order_does_not_matter():
  params, (grads, tape) = _start(), _captured()
  reversed_tape = locoprop.Tape(tape.records, tuple(reversed(tape.order)))
  tx = _tx()
  a, _ = tx.update(grads, tx.init(params), params, tape=tape)
  b, _ = tx.update(grads, tx.init(params), params, tape=reversed_tape)
  chex.assert_trees_all_equal(a, b)


def test_shared_layer_sums_over_its_calls():
  dense = nn.Dense(3, use_bias=False)

  def shared(params, model_state, batch, key):
    apply = lambda x: dense.apply({"params": params}, x)
    return jnp.mean(jnp.tanh(apply(jnp.tanh(apply(batch)))) ** 2), (
      {},
      model_state,
    )

  x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  params = programs.init(dense, KEY, x)["params"]
  _, grads, tape = jax.jit(locoprop.capture(shared))(params, {}, x, KEY)
  tx = locoprop.locoprop(
    0.1,
    "sgd",
    gamma=2.0,
    transfers={"": "tanh"},
    num_local_iters=2,
    local_schedule=locoprop.constant_local(),
  )
  updates, _ = tx.update(grads, tx.init(params), params, tape=tape)
  w = np.asarray(params["kernel"])
  w1 = w - 0.2 * np.asarray(grads["kernel"])
  second = 0.0
  for r in tape.by_layer()[""]:
    inputs, a, g = (
      np.asarray(v) for v in (r.inputs[0], r.preact, r.preact_grad)
    )
    second += inputs.T @ (np.tanh(inputs @ w1) - np.tanh(a) + 2.0 * g)
  np.testing.assert_allclose(
    w + updates["kernel"], w1 - 0.1 * second, atol=1e-6
  )


class Everything(nn.Module):
  @nn.compact
  def __call__(self, tokens, image):
    e = nn.LayerNorm(name="norm")(nn.Embed(7, 4, name="embed")(tokens))
    e = jnp.tanh(nn.DenseGeneral((2, 3), name="general")(e)).sum((1, 2))
    x = jnp.tanh(nn.Conv(2, (2, 2), name="conv")(image))
    x = jnp.tanh(nn.ConvTranspose(2, (2, 2), name="up")(x))
    x = nn.Dense(3, name="dense")(x.reshape(len(x), -1))
    return nn.Einsum((3, 3), "bi,ij->bj", name="einsum")(jnp.tanh(x)) + e


def test_every_stock_layer_takes_local_steps():
  rng = np.random.default_rng(0)
  batch = {
    "tokens": rng.integers(0, 7, (6, 2)),
    "image": rng.normal(size=(6, 3, 3, 1)).astype(np.float32),
  }
  model = Everything()
  params = programs.init(model, KEY, batch["tokens"], batch["image"])["params"]

  def loss(params, model_state, batch, key):
    out = model.apply({"params": params}, **batch)
    return jnp.mean(jnp.sum((out - 1.0) ** 2, -1)), ({}, model_state)

  tx = locoprop.locoprop(
    3e-3,
    "sgd",
    transfers={"embed|einsum": "linear", ".*": "tanh"},
    fallback=optax.sgd(1e-2),
  )
  step = jax.jit(locoprop.make_step(loss, tx))
  state = steps.init_state(params, tx, key=KEY)
  losses = []
  for _ in range(15):
    state, measured = step(state, batch)
    losses.append(float(measured["loss"].value()))
  assert losses[-1] < 0.5 * losses[0]
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, params)
  assert all(jax.tree.leaves(moved))


def test_bfloat16_model_keeps_float32_parameters():
  model = mlp.MLP((8, 3), activation=jnp.tanh, dtype=jnp.bfloat16)
  x = np.ones((4, 5), np.float32)
  params = programs.init(model, KEY, x)["params"]

  def loss(params, model_state, batch, key):
    out = model.apply({"params": params}, batch).astype(jnp.float32)
    return jnp.mean(out**2), ({}, model_state)

  tx = locoprop.locoprop(1e-3, transfers={"layer_0": "tanh", ".*": "linear"})
  step = jax.jit(locoprop.make_step(loss, tx))
  state, _ = step(steps.init_state(params, tx, key=KEY), x)
  chex.assert_trees_all_equal_shapes_and_dtypes(state.params, params)
  assert all(np.isfinite(p).all() for p in jax.tree.leaves(state.params))


def test_step_runs_any_transformation():
  params = _start()
  for tx in (optax.adam(1e-3), optax.chain(optax.clip(1.0), _tx())):
    mine = locoprop.make_step(loss_fn, tx)
    state, measured = mine(steps.init_state(params, tx, key=KEY), BATCH)
    assert int(state.step) == 1 and np.isfinite(measured["loss"].value())
  tx = optax.adam(1e-3)
  start = steps.init_state(params, tx, key=KEY)
  a, _ = locoprop.make_step(loss_fn, tx)(start, BATCH)
  b, _ = steps.from_loss(loss_fn, tx)(start, BATCH)
  _close(a.params, b.params, atol=1e-7)


@pytest.mark.parametrize("name", ["matching", "exact", "sampled rows"])
@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 4, "model": 2}])
def test_sharded_equals_unsharded(name, axes):
  params, tx = _start(), _tx(**VARIANTS[name])
  state = steps.init_state(params, tx, key=KEY)
  step = locoprop.make_step(loss_fn, tx)
  expected, _ = jax.jit(step)(state, BATCH)
  mesh = sharding.make_mesh(axes)
  rules = (("(encoder|decoder)_.*kernel", jax.P(None, "model")),)
  rules = rules if "model" in axes else ()
  placed = sharding.state_shardings(state, mesh, rules)
  rows = sharding.batch_shardings(
    jax.eval_shape(lambda: BATCH), mesh, jax.P("data")
  )
  with jax.set_mesh(mesh):
    got, _ = jax.jit(step, out_shardings=(placed, None))(
      jax.device_put(state, placed), jax.device_put(BATCH, rows)
    )
  _close(got.params, expected.params, rtol=1e-4, atol=2e-6)
  if "model" in axes:
    # The rule for the kernels holds for their statistics too.
    paths = trees.flatten(got)
    for path in (p for p in paths if p.endswith("encoder_0/kernel")):
      assert paths[path].sharding.spec == jax.P(None, "model"), path


def _shard_mapped(tx, params):
  """One update inside shard_map over rows, gradients averaged over `data`."""
  mesh = sharding.make_mesh({"data": 4}, jax.devices()[:4])
  capture = locoprop.capture(loss_fn)

  def local(params, batch):
    _, grads, tape = capture(params, {}, batch, KEY)
    grads = jax.lax.pmean(grads, "data")
    # The loss is a mean over the local rows; the tape's over all of them.
    records = {
      name: jax.tree.map(lambda x: x, r) for name, r in tape.records.items()
    }
    records = {
      name: locoprop.LayerRecord(
        r.inputs, r.preact, r.preact_grad / 4, r.path, r.affine, r.kind
      )
      for name, r in records.items()
    }
    tape = locoprop.Tape(records, tape.order)
    updates, _ = tx.update(grads, tx.init(params), params, tape=tape)
    return updates

  spec = jax.P("data")
  return jax.jit(
    jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(jax.P(), spec),
      out_specs=jax.P(),
      check_vma=False,
    )
  )(params, BATCH)


def test_axis_name_inside_shard_map():
  params, (grads, tape) = _start(), _captured()
  plain = _tx()
  expected, _ = plain.update(grads, plain.init(params), params, tape=tape)
  got = _shard_mapped(_tx(axis_name="data"), params)
  _close(got, expected, rtol=1e-4, atol=2e-6)
  # Averaging local iterates is another, close, update.
  average = _shard_mapped(_tx(axis_name="data", comm="average"), params)
  a, b = (
    np.concatenate([x.ravel() for x in jax.tree.leaves(t)])
    for t in (average, expected)
  )
  cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  assert 0.9 < cosine < 1 - 1e-7


def test_gather_equals_all_reduce():
  params, (grads, tape) = _start(), _captured()
  mesh = sharding.make_mesh({"data": 4}, jax.devices()[:4])
  out = []
  for comm in ("all_reduce", "gather"):
    tx = _tx(max_rows=8, comm=comm)
    with jax.set_mesh(mesh):
      updates, _ = jax.jit(tx.update)(grads, tx.init(params), params, tape=tape)
    out.append(jax.device_get(updates))
  _close(*out, rtol=1e-5, atol=1e-7)


ERRORS = [
  ({"learning_rate": -1.0}, "learning_rate=-1.0"),
  ({"gamma": 0.0}, "gamma=0.0"),
  ({"gamma": {".*": -1.0}}, "gamma=-1.0"),
  ({"num_local_iters": 0}, "num_local_iters=0"),
  ({"variant": "sqared"}, "variant='sqared'.*did you mean 'squared'"),
  ({"target": "up"}, "target='up'.*'md', 'gd', 'post_gd'"),
  ({"solver": "exact"}, "solver='exact'.*variant='matching'"),
  (
    {"solver": "exact", "variant": "squared", "clip_targets": 0.1},
    "needs target='gd'",
  ),
  ({"inner": "adamm"}, "inner='adamm'.*did you mean 'adam'"),
  ({"reg": -0.5}, "reg=-0.5"),
  ({"max_rows": 0}, "max_rows=0"),
  ({"clip_targets": 0}, "clip_targets=0"),
  ({"local_reduction": "max"}, "local_reduction='max'"),
  ({"comm": "gather"}, "needs max_rows"),
  ({"comm": "average"}, "needs axis_name"),
  ({"transfers": {".*": "tahn"}}, "did you mean 'tanh'"),
  (
    {"variant": "squared", "target": "md", "transfers": {".*": "relu"}},
    "relu.*no inverse",
  ),
]


@pytest.mark.parametrize("settings, message", ERRORS)
def test_bad_arguments(settings, message):
  with pytest.raises(ValueError, match=message):
    locoprop.locoprop(**{"learning_rate": 0.1, **settings})


def test_errors_of_a_call():
  params, (grads, tape) = _start(), _captured()
  tx = _tx()
  state = tx.init(params)
  with pytest.raises(ValueError, match="tape=None.*locoprop.capture"):
    tx.update(grads, state, params)
  with pytest.raises(ValueError, match="params=None"):
    tx.update(grads, state, tape=tape)
  few = locoprop.Tape({"code": tape.records["code"]})
  with pytest.raises(ValueError, match=r"\['decoder_0'.*not on the tape"):
    tx.update(grads, state, params, tape=few)
  only = locoprop.locoprop(0.1, transfers={"^code$": "linear"})
  with pytest.raises(ValueError, match="fallback=None.*encoder_0/kernel"):
    only.update(grads, only.init(params), params, tape=tape)
  absent = locoprop.locoprop(0.1, layers=("cod",), transfers=TRANSFERS)
  with pytest.raises(ValueError, match="'cod' is not in the parameters"):
    absent.init(params)
  nothing = locoprop.locoprop(0.1, layers=("code",), transfers={"x": "tanh"})
  with pytest.raises(ValueError, match="'code' has no entry in transfers"):
    nothing.update(grads, nothing.init(params), params, tape=tape)
  wide = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], 20)), params)
  with pytest.raises(
    ValueError, match=r"encoder_0.*kernel.*\(12, 20\).*\(32, 12\)"
  ):
    locoprop.locoprop(
      0.1,
      layers=("encoder_0",),
      transfers=TRANSFERS,
      fallback=optax.sgd(0.1),
    ).update(wide, state, wide, tape=tape)


def test_a_layer_that_tells_its_own_transfer():
  layer = locoprop.LocoDense(1, transfer="tanh")
  x = np.ones((3, 2), np.float32)
  params = programs.init(layer, KEY, x)["params"]

  def loss(params, model_state, batch, key):
    return jnp.mean(layer.apply({"params": params}, batch)), ({}, model_state)

  _, grads, tape = jax.jit(locoprop.capture(loss))(params, {}, x, KEY)
  own = locoprop.locoprop(0.1)
  rule = locoprop.locoprop(0.1, transfers={"": "tanh"})
  a, _ = own.update(grads, own.init(params), params, tape=tape)
  b, _ = rule.update(grads, rule.init(params), params, tape=tape)
  chex.assert_trees_all_equal(a, b)
  with pytest.raises(ValueError, match="'relu'.*transfer='tanh'"):
    bad = locoprop.locoprop(0.1, transfers={"": "relu"})
    bad.update(grads, bad.init(params), params, tape=tape)


def test_softmax_needs_two_outputs():
  dense = nn.Dense(1)
  x = np.ones((3, 2), np.float32)
  params = programs.init(dense, KEY, x)["params"]

  def loss(params, model_state, batch, key):
    return jnp.mean(dense.apply({"params": params}, batch)), ({}, model_state)

  _, grads, tape = jax.jit(locoprop.capture(loss))(params, {}, x, KEY)
  tx = locoprop.locoprop(0.1, transfers={"": "softmax"})
  with pytest.raises(ValueError, match="softmax.*2 or more"):
    tx.update(grads, tx.init(params), params, tape=tape)


def test_not_a_number_passes_through():
  params, (grads, tape) = _start(), _captured()
  bad = jax.tree.map(lambda g: g.at[...].set(jnp.nan), grads)
  tx = _tx()
  updates, _ = tx.update(bad, tx.init(params), params, tape=tape)
  assert all(np.isnan(u).all() for u in jax.tree.leaves(updates))


def test_describe_and_verify():
  params, (_, tape) = _start(), _captured()
  text = locoprop.describe(tape, params, transfers={"^code$": "linear"})
  assert "code" in text.splitlines()[1]
  assert "left to the fallback:" in text and "encoder_0/kernel" in text
  locoprop.verify_transfers(tape, TRANSFERS)
  with pytest.raises(
    ValueError, match="'relu' for the layer 'encoder_0'.*tanh"
  ):
    locoprop.verify_transfers(tape, {"encoder_0": "relu", **TRANSFERS})


def test_diagnose():
  params, (grads, tape) = _start(), _captured()
  tx = _tx(1e-3, inner="sgd")
  updates, _ = tx.update(grads, tx.init(params), params, tape=tape)
  found = locoprop.diagnose(tape, params, grads, updates, transfers=TRANSFERS)
  assert set(found) == set(params)
  for layer in found.values():
    assert layer["loss_after"] < layer["loss_before"]
    assert 0 < layer["cosine"] <= 1.0001
    assert layer["update_norm"] > 0 and 0 <= layer["outside"] <= 1


def test_linear_warmup_decay():
  schedule = locoprop.linear_warmup_decay(2.0, warmup_steps=5, num_steps=25)
  got = [float(schedule(k)) for k in (0, 1, 5, 15, 25)]
  np.testing.assert_allclose(got, [0, 0.4, 2.0, 1.0, 0.0], atol=1e-6)
  with pytest.raises(ValueError, match="warmup_steps=30"):
    locoprop.linear_warmup_decay(1.0, warmup_steps=30, num_steps=25)
