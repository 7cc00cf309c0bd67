"""Schedules and chains from keywords, against optax."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.core import trees
from locojax.train import optimizers

STEPS = np.arange(0, 120)


def _params():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {
    "body": {"kernel": draw(6, 4), "bias": draw(4)},
    "head": {"kernel": draw(4, 3), "bias": draw(3)},
  }


def _grads(seed):
  rng = np.random.default_rng(seed + 1)
  return jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), _params()
  )


def _train(tx, num_steps=4, params=None):
  params = _params() if params is None else params
  state = tx.init(params)
  for i in range(num_steps):
    updates, state = tx.update(_grads(i), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


@pytest.mark.parametrize(
  ("mine", "theirs"),
  [
    (
      {"name": "constant"},
      optax.constant_schedule(0.3),
    ),
    (
      {"name": "constant", "warmup_steps": 20},
      optax.warmup_constant_schedule(0.0, 0.3, 20),
    ),
    (
      {"name": "linear", "final": 0.25},
      optax.linear_schedule(0.3, 0.075, 100),
    ),
    (
      {"name": "cosine", "warmup_steps": 10, "final": 0.1},
      optax.warmup_cosine_decay_schedule(0.0, 0.3, 10, 100, 0.03),
    ),
  ],
)
def test_schedules_equal_those_of_optax(mine, theirs):
  rate = optimizers.schedule(**mine, learning_rate=0.3, num_steps=100)
  expected = [float(theirs(k)) for k in STEPS]
  found = jax.jit(jax.vmap(rate))(STEPS)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
  assert found.dtype == jnp.float32


def test_rsqrt_and_cooldown_worked():
  rate = optimizers.schedule(
    "rsqrt",
    learning_rate=1.0,
    num_steps=100,
    warmup_steps=10,
    cooldown_steps=20,
    timescale=30,
  )
  found = [float(rate(k)) for k in (0, 5, 10, 40, 90, 100, 200)]
  expected = [0, 0.5, 1, 0.5**0.5, 0.5 * (30 / 110) ** 0.5, 0, 0]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"name": "cosin"}, "did you mean 'cosine'"),
    ({"learning_rate": -1}, "learning_rate=-1"),
    ({"num_steps": 0}, "num_steps=0"),
    ({"warmup_steps": 101}, "warmup_steps=101"),
    ({"warmup_steps": 60, "cooldown_steps": 60}, "cooldown_steps=60"),
    ({"final": 2.0}, "final=2.0"),
    ({"timescale": 0}, "timescale=0"),
  ],
)
def test_bad_schedules_are_refused(change, words):
  good = {"name": "cosine", "learning_rate": 1.0, "num_steps": 100}
  with pytest.raises(ValueError, match=words):
    optimizers.schedule(**{**good, **change})


OPTAX = {
  "sgd": (optax.sgd(0.1), {}),
  "momentum": (optax.sgd(0.1, momentum=0.8), {"momentum": 0.8}),
  "nesterov": (optax.sgd(0.1, momentum=0.9, nesterov=True), {}),
  "adagrad": (optax.adagrad(0.1, eps=1e-5), {"eps": 1e-5}),
  "rmsprop": (
    optax.rmsprop(0.1, decay=0.8, momentum=0.9, initial_scale=1.0),
    {"decay": 0.8, "momentum": 0.9, "initial_scale": 1.0},
  ),
  "adam": (optax.adam(0.1, b1=0.8), {"b1": 0.8}),
  "adamw": (optax.adamw(0.1, weight_decay=0.2), {"weight_decay": 0.2}),
  "nadam": (optax.nadam(0.1), {}),
  "amsgrad": (optax.amsgrad(0.1), {}),
  "adabelief": (optax.adabelief(0.1), {}),
  "radam": (optax.radam(0.1), {}),
  "lion": (optax.lion(0.1, weight_decay=0.1), {"weight_decay": 0.1}),
  "adafactor": (
    optax.adafactor(
      0.1,
      min_dim_size_to_factor=2,
      multiply_by_parameter_scale=False,
      momentum=0.9,
    ),
    {
      "min_dim_size_to_factor": 2,
      "clipping_threshold": 1.0,
      "momentum_dtype": "float32",
      "decay_cap": 1.0,
    },
  ),
  "muon": (optax.contrib.muon(0.1, ns_steps=3), {"ns_steps": 3}),
}


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_optimizers_equal_those_of_optax(name):
  theirs, options = OPTAX[name]
  mine = optimizers.make(name, learning_rate=0.1, **options)
  expected, _ = _train(theirs)
  found, _ = _train(mine)
  chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_a_schedule_counts_updates(name):
  rate = optimizers.schedule("linear", learning_rate=0.1, num_steps=2)
  options = {"weight_decay": 0.1}
  tx = optimizers.make(name, learning_rate=rate, **options)
  params, _ = _train(tx, 2)
  more, _ = _train(tx, 4)
  chex.assert_trees_all_equal(params, more)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_stacked_layers_are_updated_as_layers_one_by_one(name):
  """Also where the axis of layers is a large one, and for several lengths.

  In float64: a batched product sums in another order, and five steps of
  Newton-Schulz magnify the last bit of a small singular value 3.4^5 times.
  """
  options = {}
  if name == "adafactor":
    options = {"min_dim_size_to_factor": 4, "clipping_threshold": 1.0}
  shapes = {"a": (6, 4, 5), "b": (6, 4), "c": (5, 2, 4)}
  rng = np.random.default_rng(0)
  draw = lambda: {n: rng.normal(size=shape) for n, shape in shapes.items()}
  cut = lambda tree: {n: x if n == "b" else list(x) for n, x in tree.items()}
  whole = optimizers.make(
    name, learning_rate=0.1, stacked_paths=("^a$", "^c$"), **options
  )
  single = optimizers.make(name, learning_rate=0.1, **options)

  @jax.jit
  def step(grads, params, one, many):
    found, one = whole.update(grads, one, params)
    expected, many = single.update(cut(grads), many, cut(params))
    return cut(found), expected, one, many

  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, draw())
    state, many = whole.init(params), single.init(cut(params))
    for _ in range(2):
      found, expected, state, many = step(draw(), params, state, many)
      chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-12)
      assert found["b"].dtype == jnp.float64 and np.all(found["b"] != 0)
  if name == "adafactor":
    moments = trees.flatten(state)
    rows = next(x for n, x in moments.items() if n.endswith("v_row/a"))
    assert rows.shape == (6, 4)
  with pytest.raises(ValueError, match="stacked_paths='nothing'"):
    optimizers.make(name, learning_rate=0.1, stacked_paths="nothing").init(
      params
    )


def test_adafactor_caps_its_decay_and_keeps_a_small_momentum():
  tx = optimizers.make(
    "adafactor", learning_rate=1.0, decay_rate=2.0, decay_cap=0.5, momentum=0.9
  )
  params = {"w": jnp.zeros(1)}
  state = tx.init(params)
  assert {x.dtype for x in jax.tree.leaves(state) if x.ndim} == {
    jnp.dtype("float32"),
    jnp.dtype("bfloat16"),
  }
  v = m = 0.0
  for k, g in enumerate((1.0, 2.0, 3.0), 1):
    updates, state = tx.update({"w": jnp.full(1, g)}, state, params)
    decay = min(1 - k**-2.0, 0.5)
    v = decay * v + (1 - decay) * g * g
    m = float(jnp.bfloat16(0.9 * m + 0.1 * g / v**0.5))
    assert float(updates["w"][0]) == pytest.approx(-m, rel=1e-2)


def test_clip_decay_mask_and_multipliers_worked():
  params, grads = _params(), _grads(0)
  tx = optimizers.make(
    "sgd",
    learning_rate=0.5,
    clip_norm=1.0,
    weight_decay=0.1,
    decay_paths="kernel$",
    multipliers=(("^head/kernel", 2.0), ("^head", 3.0)),
  )
  updates, _ = tx.update(grads, tx.init(params), params)
  norm = optax.tree.norm(grads)
  assert norm > 1

  def expected(path, p, g):
    decay = 0.1 * p if path.endswith("kernel") else 0.0
    factor = {"head/kernel": 2.0, "head/bias": 3.0}.get(path, 1.0)
    return -0.5 * factor * (g / norm + decay)

  wanted = trees.map_with_path(expected, params, grads)
  chex.assert_trees_all_close(updates, wanted, rtol=1e-5, atol=1e-7)


def test_frozen_parameters_stay_and_have_no_state():
  tx = optimizers.make(
    "adam", learning_rate=0.1, freeze_paths=("^body/", "bias"), clip_norm=1e-3
  )
  params, state = _train(tx)
  chex.assert_trees_all_equal(params["body"], _params()["body"])
  assert np.any(params["head"]["kernel"] != _params()["head"]["kernel"])
  kept = [p for p in trees.flatten(state) if "mu" in p or "nu" in p]
  assert len(kept) == 2 and all(p.endswith("head/kernel") for p in kept)


def test_accumulation_takes_the_mean():
  tx = optimizers.make("adam", learning_rate=0.1, accumulate=2)
  found, _ = _train(tx, 2)
  plain = optimizers.make("adam", learning_rate=0.1)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, _grads(0), _grads(1))
  updates, _ = plain.update(mean, plain.init(_params()), _params())
  expected = optax.apply_updates(_params(), updates)
  chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_everything_together_compiles_once_and_keeps_dtypes(name):
  tx = optimizers.make(
    name,
    learning_rate=optimizers.schedule(
      "cosine", learning_rate=0.1, num_steps=9, warmup_steps=2
    ),
    weight_decay=0.1,
    decay_paths="kernel",
    clip_norm=1.0,
    freeze_paths="body/bias",
    multipliers=(("head", 0.5),),
    accumulate=2,
  )
  chex.clear_trace_counter()
  update = jax.jit(chex.assert_max_traces(tx.update, n=1))
  params = _params()
  state = jax.jit(tx.init)(params)
  for i in range(3):
    updates, new = update(_grads(i), state, params, value=jnp.float32(1.0))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    state = new


@pytest.mark.parametrize(
  ("kwargs", "words"),
  [
    ({"name": "adm"}, "one of 'sgd', 'momentum'.*did you mean 'adam'"),
    ({"name": "adam", "beta1": 0.9}, "option of adam='beta1'.*'b1', 'b2'"),
    ({"name": "nadam", "nesterov": False}, "option of nadam='nesterov'"),
    ({"name": "muon", "adam_weight_decay": 1.0}, "option of muon"),
    ({"name": "adam", "b1": 1.5}, "b1=1.5"),
    ({"name": "adam", "eps": -1.0}, "eps=-1.0"),
    ({"name": "adamw"}, "weight_decay=0.0 is not allowed for adamw"),
    ({"name": "sgd", "weight_decay": -1.0}, "weight_decay=-1.0"),
    ({"name": "sgd", "clip_norm": 0.0}, "clip_norm=0.0"),
    ({"name": "sgd", "accumulate": 0}, "accumulate=0"),
    ({"name": "sgd", "learning_rate": -0.1}, "learning_rate=-0.1"),
    ({"name": "sgd", "multipliers": (("a", -1.0),)}, "multipliers"),
  ],
)
def test_bad_settings_are_refused(kwargs, words):
  with pytest.raises(ValueError, match=words):
    optimizers.make(**{"learning_rate": 0.1, **kwargs})


@pytest.mark.parametrize(
  "kwargs",
  [
    {"freeze_paths": "boddy"},
    {"multipliers": (("boddy", 2.0),)},
    {"weight_decay": 0.1, "decay_paths": ("kernel", "boddy")},
  ],
)
def test_patterns_that_hit_nothing_are_refused(kwargs):
  tx = optimizers.make("sgd", learning_rate=0.1, **kwargs)
  with pytest.raises(ValueError, match="'boddy' hits no parameter.*body/bias"):
    tx.init(_params())


def _halves(dtype):
  return jax.tree.map(lambda p: (1 + 0 * p).astype(dtype), _params())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_thousand_small_steps_move_parameters_of_16_bits(dtype):
  """Steps of 1e-4 at 1, where bfloat16 steps by 2^-7: none must be lost."""
  tx = optimizers.make(
    "sgd", learning_rate=1e-4, accumulate=2, freeze_paths="head/bias"
  )
  params = _halves(dtype)
  grads = jax.tree.map(jnp.ones_like, params)

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(grads, state, params)
    chex.assert_trees_all_equal_dtypes(updates, params)
    return (optax.apply_updates(params, updates), state), None

  run = jax.jit(lambda c: jax.lax.scan(step, c, length=2000)[0])
  new, state = run((params, tx.init(params)))
  assert (new["head"]["bias"] == 1).all()
  eps = float(jnp.finfo(dtype).eps)
  for leaf in (new["body"]["kernel"], new["body"]["bias"]):
    np.testing.assert_allclose(np.float32(leaf), 0.9, atol=eps / 2)
  held = trees.flatten(state)
  assert not any(p.endswith("rest/head/bias") for p in held)
  assert held[next(p for p in held if "rest" in p)].dtype == jnp.float32


def test_averages_of_16_bit_gradients_move():
  """With b2 = 0.999 a second moment in bfloat16 would never fall again."""
  tx = optimizers.make("adam", learning_rate=1e-3)
  low, high = _halves("bfloat16"), _halves("float32")

  def run(params):
    def step(carry, i):
      params, state = carry
      size = jnp.where(i < 10, 8.0, 0.125)
      grads = jax.tree.map(lambda p: (size + 0 * p).astype(p.dtype), params)
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    start = (params, tx.init(params))
    return jax.lax.scan(step, start, jnp.arange(1000))[0]

  (few, state), (many, _) = jax.jit(run)(low), jax.jit(run)(high)
  kept = {p: x for p, x in trees.flatten(state).items() if "nu" in p}
  assert {x.dtype for x in kept.values()} == {jnp.dtype("float32")}
  np.testing.assert_allclose(
    np.float32(few["body"]["kernel"]), many["body"]["kernel"], atol=2**-9
  )
  assert np.abs(many["body"]["kernel"] - 1).min() > 2**-6


@pytest.mark.parametrize("params_dtype", ["bfloat16", "float32"])
def test_the_norm_of_16_bit_gradients_is_theirs(params_dtype):
  """400 arrays of one 1: summed in bfloat16 their squares stop at 256."""
  grads = {f"layer_{i}": jnp.ones((1,), "bfloat16") for i in range(400)}
  params = {n: jnp.zeros((1,), params_dtype) for n in grads}
  tx = optimizers.make("sgd", learning_rate=1.0, clip_norm=1.0)
  updates, _ = tx.update(grads, tx.init(params), params)
  found = np.concatenate([np.float64(u) for u in updates.values()])
  assert np.linalg.norm(found) == pytest.approx(1.0, rel=4e-3)
  assert updates["layer_0"].dtype == params["layer_0"].dtype


def test_float64_gradients_are_added_up_in_float64():
  tx = optimizers.make("sgd", learning_rate=1.0, accumulate=2)
  with jax.enable_x64(True):
    params = {"w": jnp.zeros(2)}
    state = tx.init(params)
    for value in (1.0, 1.0 + 1e-12):
      updates, state = tx.update({"w": jnp.full(2, value)}, state, params)
    np.testing.assert_allclose(updates["w"], -(1 + 5e-13), rtol=1e-15)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_is_its_float32_self_on_16_bits(name):
  """Parameters that bfloat16 holds: the first update, rounded once."""
  tx = optimizers.make(
    name, learning_rate=0.125, clip_norm=100.0, weight_decay=0.1
  )
  high = jax.tree.map(
    lambda p: p.astype("bfloat16").astype("float32"), _params()
  )
  grads = jax.tree.map(
    lambda g: g.astype("bfloat16").astype("float32"), _grads(0)
  )
  low, low_grads = (
    jax.tree.map(lambda x: x.astype("bfloat16"), t) for t in (high, grads)
  )
  found, state = tx.update(low_grads, tx.init(low), low)
  wanted, _ = tx.update(grads, tx.init(high), high)
  chex.assert_trees_all_equal_dtypes(found, low)
  for (path, u), r in zip(
    trees.flatten(found).items(), jax.tree.leaves(state.rest), strict=True
  ):
    p, w = trees.flatten(high)[path], trees.flatten(wanted)[path]
    moved = np.float32(p.astype("bfloat16") + u) - p
    np.testing.assert_allclose(moved + r, w, rtol=1e-5, atol=1e-6)


def test_any_transformation_can_be_made_right_for_16_bits():
  tx = optimizers.in_float32(optax.ema(0.999, debias=False))
  params = {"w": jnp.ones(3, jnp.bfloat16)}
  state = tx.init(params)
  update = jax.jit(tx.update)
  for _ in range(200):
    _, state = update(params, state, {"w": params["w"] * 0})
  found = state.inner.ema["w"]
  np.testing.assert_allclose(found, 1 - 0.999**200, rtol=1e-4)
