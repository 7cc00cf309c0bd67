"""Steps: keys, microbatches, masks, wrappers, the choice of optimiser."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.core import metrics, types
from locojax.train import steps


def _params(key=3):
  k1, k2 = jax.random.split(jax.random.key(key))
  return {
    "w": jax.random.normal(k1, (5, 7)),
    "v": jax.random.normal(k2, (7, 3)),
  }


def _batch(size=12, seed=0, mask=None):
  rng = np.random.default_rng(seed)
  batch = {
    "x": rng.normal(size=(size, 5)).astype(np.float32),
    "y": rng.normal(size=(size, 3)).astype(np.float32),
  }
  if mask is not None:
    batch["mask"] = np.asarray(mask, np.float32)
  return batch


def _errors(params, batch):
  y = jnp.tanh(batch["x"] @ params["w"]) @ params["v"]
  return jnp.mean((y - batch["y"]) ** 2, axis=-1)


def _loss(params, model_state, batch, key):
  del key
  loss = jnp.mean(_errors(params, batch))
  return loss, ({}, model_state)


def _masked_loss(params, model_state, batch, key):
  del key
  errors = _errors(params, batch)
  loss = metrics.mean(errors, batch["mask"])
  hits = metrics.mean(errors < 1, batch["mask"])
  norm = jnp.sum(params["w"] ** 2)
  out = {"loss": loss, "small": hits, "norm": norm}
  return loss.value() + 1e-3 * norm, (out, model_state)


def _state(tx, model_state=None):
  return steps.init_state(
    _params(), tx, key=jax.random.key(0), model_state=model_state
  )


def test_init_state():
  state = _state(optax.sgd(0.1))
  assert state.step == 0 and state.step.dtype == jnp.int32
  assert state.model_state == {}


def test_a_step_is_the_gradient_step():
  tx = optax.sgd(0.1)
  state, out = jax.jit(steps.from_loss(_loss, tx))(_state(tx), _batch())
  loss, grads = jax.value_and_grad(lambda p: _loss(p, {}, _batch(), None)[0])(
    _params()
  )
  expected = jax.tree.map(lambda p, g: p - 0.1 * g, _params(), grads)
  chex.assert_trees_all_close(state.params, expected, rtol=1e-5, atol=1e-6)
  assert state.step == 1
  np.testing.assert_allclose(metrics.values(out)["loss"], loss, rtol=1e-6)


@pytest.mark.parametrize("num", [2, 3, 12])
def test_microbatches_equal_the_whole_batch(num):
  tx = optax.adam(1e-2)
  whole = steps.from_loss(_loss, tx)
  pieces = steps.from_loss(_loss, tx, num_microbatches=num)
  one, out_one = jax.jit(whole)(_state(tx), _batch())
  two, out_two = jax.jit(pieces)(_state(tx), _batch())
  chex.assert_trees_all_close(one.params, two.params, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    metrics.values(out_one)["loss"], metrics.values(out_two)["loss"], rtol=1e-6
  )


@pytest.mark.parametrize(
  "mask",
  [
    [1, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0],
    [1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0],
    [0.5, 2, 0, 1, 1, 1, 3, 0, 0, 1, 0, 1],
  ],
  ids=["uneven", "empty pieces", "weights"],
)
def test_masked_microbatches_equal_the_whole_batch(mask):
  batch = _batch(mask=mask)
  whole = steps.value_and_grad(_masked_loss)
  pieces = steps.value_and_grad(_masked_loss, num_microbatches=3)
  args = (_params(), {}, batch, jax.random.key(0))
  loss_one, out_one, _, grads_one = jax.jit(whole)(*args)
  loss_two, out_two, _, grads_two = jax.jit(pieces)(*args)
  np.testing.assert_allclose(loss_one, loss_two, rtol=1e-6)
  chex.assert_trees_all_close(grads_one, grads_two, rtol=1e-4, atol=1e-6)
  one, two = metrics.values(out_one), metrics.values(out_two)
  assert set(one) == {"loss", "small", "norm"}
  for name in one:
    np.testing.assert_allclose(one[name], two[name], rtol=1e-5)


def test_a_batch_without_a_counted_example_has_no_gradient():
  pieces = steps.value_and_grad(_masked_loss, num_microbatches=2)
  batch = _batch(mask=np.zeros(12))
  _, _, _, grads = pieces(_params(), {}, batch, jax.random.key(0))
  chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))


def test_padding_equals_removal():
  tx = optax.sgd(0.1)
  padded = _batch(mask=[1] * 8 + [0] * 4)
  padded["x"][8:] = 1e6
  short = {k: v[:8] for k, v in padded.items()}
  one, _ = steps.from_loss(_masked_loss, tx, num_microbatches=2)(
    _state(tx), padded
  )
  two, _ = steps.from_loss(_masked_loss, tx)(_state(tx), short)
  chex.assert_trees_all_close(one.params, two.params, rtol=1e-4, atol=1e-6)


def test_model_state_runs_through_the_pieces():
  def loss_fn(params, model_state, batch, key):
    loss, (out, _) = _loss(params, {}, batch, key)
    seen = model_state["seen"] + batch["x"].shape[0]
    return loss, (out, {"seen": seen, "last": batch["x"][-1, 0]})

  model_state = {"seen": jnp.int32(0), "last": jnp.float32(0)}
  tx = optax.sgd(0.1)
  step = steps.from_loss(loss_fn, tx, num_microbatches=4)
  state, _ = jax.jit(step)(_state(tx, model_state), _batch())
  assert state.model_state["seen"] == 12
  assert state.model_state["last"] == _batch()["x"][-1, 0]


def test_keys_differ_by_step_and_microbatch():
  def loss_fn(params, model_state, batch, key):
    loss, _ = _loss(params, {}, batch, key)
    return loss, ({"draw": jax.random.uniform(key)}, model_state)

  tx = optax.sgd(0.0)
  step = jax.jit(steps.from_loss(loss_fn, tx))
  first = _state(tx)
  second, out = step(first, _batch())
  _, again = step(first, _batch())
  _, other = step(second, _batch())
  expected = jax.random.uniform(jax.random.fold_in(jax.random.key(0), 0))
  assert out["draw"] == again["draw"] == expected
  assert out["draw"] != other["draw"]
  halves = steps.from_loss(loss_fn, tx, num_microbatches=2)
  _, out = jax.jit(halves)(first, _batch())
  key = first.step_key()
  draws = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(2)]
  np.testing.assert_allclose(out["draw"], np.mean(draws), rtol=1e-6)


def test_split_batch_deals_examples_out():
  pieces = steps.split_batch({"x": np.arange(6)}, 2)
  np.testing.assert_array_equal(pieces["x"], [[0, 2, 4], [1, 3, 5]])


@pytest.mark.parametrize(
  ("batch", "words"),
  [
    ({"x": np.zeros((6, 2))}, "batch/x=6 .*num_microbatches=4"),
    ({"x": np.zeros(8), "t": np.float32(1)}, "batch/t is a scalar"),
  ],
)
def test_batches_that_do_not_split_are_refused(batch, words):
  with pytest.raises(ValueError, match=words):
    steps.split_batch(batch, 4)


def _coupled_variants():
  marked = steps.couples_examples(_loss)

  @functools.wraps(marked)
  def wrapped(*args):
    return marked(*args)

  return [marked, functools.partial(marked), wrapped]


@pytest.mark.parametrize("which", range(3))
def test_coupled_losses_refuse_microbatches(which):
  loss_fn = _coupled_variants()[which]
  tx = optax.sgd(0.1)
  with pytest.raises(ValueError, match="num_microbatches=2 .*couples the"):
    steps.from_loss(loss_fn, tx, num_microbatches=2)
  state, _ = steps.from_loss(loss_fn, tx)(_state(tx), _batch())
  plain, _ = steps.from_loss(_loss, tx)(_state(tx), _batch())
  chex.assert_trees_all_equal(state.params, plain.params)
  assert not steps.is_coupled(_loss)


@pytest.mark.parametrize("num", [0, -1, 1.5, True])
def test_bad_number_of_microbatches(num):
  with pytest.raises(ValueError, match="num_microbatches"):
    steps.from_loss(_loss, optax.sgd(0.1), num_microbatches=num)


TRANSFORMS = {
  "sgd": lambda: optax.sgd(0.1),
  "adamw": lambda: optax.adamw(1e-2),
  "plateau": lambda: optax.chain(
    optax.sgd(0.1), optax.contrib.reduce_on_plateau()
  ),
  "linesearch": lambda: optax.chain(
    optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10)
  ),
  "injected": lambda: optax.inject_hyperparams(optax.adam)(1e-2),
  "accumulated": lambda: optax.MultiSteps(optax.sgd(0.1), 2),
  "partition": lambda: optax.partition(
    {"a": optax.sgd(0.1), "b": optax.set_to_zero()}, {"w": "a", "v": "b"}
  ),
}


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_any_transformation_compiles_once(name, num):
  tx = TRANSFORMS[name]()
  if isinstance(tx, optax.MultiSteps):
    tx = tx.gradient_transformation()
  chex.clear_trace_counter()
  plain = steps.from_loss(_loss, tx, num_microbatches=num)
  traced = jax.jit(chex.assert_max_traces(plain, n=1))
  state = jax.jit(lambda: _state(tx))()
  eager = state
  for i in range(3):
    state, out = traced(state, _batch(seed=i))
    eager, _ = plain(eager, _batch(seed=i))
  chex.assert_trees_all_close(state.params, eager.params, rtol=2e-3, atol=1e-4)
  assert np.isfinite(metrics.values(out)["loss"])
  assert state.step == 3


def test_dtypes_of_parameters_are_kept():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params())
  grads_fn = steps.value_and_grad(_loss, num_microbatches=3)
  *_, grads = grads_fn(params, {}, _batch(), jax.random.key(0))
  assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves(grads))


def test_with_batch_draws_its_own_reproducible_key():
  seen = []

  def step(state, batch):
    return state, {"loss": jnp.sum(batch["x"])}

  def transform(batch, key):
    seen.append(jax.random.key_data(key))
    return {"x": batch["x"] * 0 + jax.random.uniform(key)}

  state = _state(optax.sgd(0.1))
  batch = {"x": jnp.ones(1)}
  one = steps.with_batch(step, transform)
  two = steps.with_batch(one, transform, stream=1)
  _, a = one(state, batch)
  _, b = one(state, batch)
  _, c = one(state.replace(step=jnp.int32(1)), batch)
  assert a["loss"] == b["loss"] != c["loss"]
  seen.clear()
  two(state, batch)
  keys = [tuple(np.asarray(k)) for k in seen]
  keys.append(tuple(np.asarray(jax.random.key_data(state.step_key()))))
  assert len(set(keys)) == 3


def test_with_ema_averages_parameters():
  tx = optax.sgd(0.1)
  step = jax.jit(steps.with_ema(steps.from_loss(_loss, tx), decay=0.9))
  state = steps.init_ema(_state(tx))
  average = state.params
  for i in range(3):
    state, _ = step(state, _batch(seed=i))
    average = jax.tree.map(
      lambda a, p: 0.9 * a + 0.1 * p, average, state.params
    )
  final = steps.ema_state(state)
  assert isinstance(final, types.TrainState)
  chex.assert_trees_all_close(final.params, average, rtol=1e-6)
  assert final.model_state == {}


def test_with_ema_needs_its_state():
  tx = optax.sgd(0.1)
  step = steps.with_ema(steps.from_loss(_loss, tx), decay=0.9)
  with pytest.raises(ValueError, match="init_ema"):
    step(_state(tx), _batch())
  with pytest.raises(ValueError, match="decay=1.5"):
    steps.with_ema(step, decay=1.5)


def test_scanned_makes_the_updates_one_by_one():
  tx = optax.sgd(0.1, momentum=0.9)

  def loss(params, model_state, batch, key):
    scale = 1 + batch["update"] + jax.random.uniform(key)
    value, (out, _) = _masked_loss(params, model_state, batch, key)
    return scale * value, (out, model_state)

  step = jax.jit(steps.with_update(steps.from_loss(loss, tx)))
  rows = [_batch(seed=i, mask=[1] * (4 - i) + [0] * i) for i in range(3)]
  rows = [{k: v[:4] for k, v in row.items()} for row in rows]
  batch = jax.tree.map(lambda *x: np.stack(x), *rows)
  start = _state(tx).replace(step=jnp.int32(2))
  many, found = jax.jit(steps.scanned(step, 3))(start, batch)
  one, merged, norms = start.replace(step=jnp.int32(6)), None, []
  for row in rows:
    one, got = step(one, row)
    norms.append(got["norm"])
    merged = got["loss"] if merged is None else merged.merge(got["loss"])
  assert many.step == 3 and one.step == 9
  chex.assert_trees_all_close(many.params, one.params, rtol=1e-5)
  chex.assert_trees_all_close(found["loss"], merged, rtol=1e-5)
  np.testing.assert_allclose(found["norm"], np.mean(norms), rtol=1e-6)
  with pytest.raises(ValueError, match="num_updates=0"):
    steps.scanned(step, 0)


def test_one_update_needs_no_loop():
  tx = optax.sgd(0.1, momentum=0.9)
  step = steps.with_update(steps.from_loss(_masked_loss, tx))
  start, row = _state(tx).replace(step=jnp.int32(2)), _batch(mask=[1] * 12)
  several = jax.jit(steps.scanned(step, 1))
  batch = jax.tree.map(lambda x: x[None], row)
  found, metrics = several(start, batch)
  wanted, single = jax.jit(step)(start, row)
  assert found.step == wanted.step == 3
  chex.assert_trees_all_close(found.params, wanted.params, rtol=1e-6)
  chex.assert_trees_all_close(metrics, single, rtol=1e-6)
  assert "while" not in several.lower(start, batch).as_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_average_of_16_bit_parameters_moves(dtype):
  """A thousand steps at decay 0.999; in bfloat16 it stayed where it was."""

  def count(state, batch):
    params = jax.tree.map(lambda p: p + jnp.asarray(0.5, p.dtype), state.params)
    return state.replace(params=params, step=state.step + 1), {}

  step = steps.with_ema(count, decay=0.999)
  state = steps.init_state(
    {"w": jnp.full((2,), 1.0, dtype)}, optax.identity(), key=jax.random.key(0)
  )
  run = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(100))[0])
  state, expected = steps.init_ema(state), 1.0
  for i in range(100):
    expected = 0.999 * expected + 0.001 * (1.0 + 0.5 * (i + 1))
  final = run(state)
  assert final.model_state["ema"]["w"].dtype == jnp.float32
  np.testing.assert_allclose(final.model_state["ema"]["w"], expected, rtol=1e-5)
  seen = steps.ema_state(final).params["w"]
  assert seen.dtype == jnp.dtype(dtype)
  np.testing.assert_allclose(np.float32(seen), expected, rtol=2**-8)
  old = state.replace(model_state={"model": {}, "ema": state.params})
  with pytest.raises(ValueError, match=f"an average of dtype {dtype}"):
    step(old, jnp.int32(0))


def test_an_average_comes_to_rest_at_the_parameters():
  """float32(0.9999) and float32(1 - 0.9999) do not add to 1."""
  still = lambda state, batch: (state.replace(step=state.step + 1), {})
  step = steps.with_ema(still, decay=0.9999)
  state = steps.init_ema(
    steps.init_state(
      {"w": jnp.float32([1.0, -3.0])}, optax.identity(), key=jax.random.key(0)
    )
  )
  run = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(2000))[0])
  np.testing.assert_array_equal(run(state).model_state["ema"]["w"], [1, -3])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_microbatches_of_16_bit_gradients_are_added_in_float32(dtype):
  """512 gradients of which each is lost beside the sum of the others."""

  def loss(params, model_state, batch, key):
    return jnp.sum(params["w"] * batch["x"]), ({}, model_state)

  sizes = np.full(512, 2.0**-8, np.float32)
  sizes[0] = 4.0
  params = {"w": jnp.ones((), dtype)}
  grad_fn = jax.jit(steps.value_and_grad(loss, num_microbatches=512))
  batch = {"x": jnp.asarray(sizes, dtype)}
  value, _, _, grads = grad_fn(params, {}, batch, jax.random.key(0))
  mean = sizes.mean(dtype=np.float64)
  assert grads["w"].dtype == jnp.dtype(dtype)
  np.testing.assert_allclose(np.float32(grads["w"]), mean, rtol=2**-8)
  np.testing.assert_allclose(value, mean, rtol=1e-6)


def test_many_updates_a_step_do_not_wrap_around():
  seen = steps.scanned(lambda s, b: (s, {"at": s.step}), 1000)
  tx = optax.sgd(0.1)
  batch = {"x": jnp.zeros((1000, 1))}
  for at, first in ((3, 3000), (2_147_484, 2_147_483_000), (2**31 - 1, None)):
    state = _state(tx).replace(step=jnp.int32(at))
    after, found = seen(state, batch)
    first = 2_147_483_000 if first is None else first
    np.testing.assert_allclose(found["at"], first, rtol=1e-6)
    assert after.step == min(at + 1, 2**31 - 1)


@pytest.mark.parametrize("stream", [0.5, -1, 2**32, True])
def test_streams_are_integers_of_32_bits(stream):
  """0.5 would be stream 0 again, and 2^32 too."""
  with pytest.raises(ValueError, match=f"stream={stream} is not allowed"):
    steps.with_batch(lambda s, b: (s, {}), lambda b, k: b, stream=stream)
