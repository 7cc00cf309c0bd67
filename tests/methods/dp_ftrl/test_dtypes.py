"""DP-FTRL in every dtype, with and without x64.

Updates are in the parameters' dtype, noise has its deviation, a restored state
goes on in the same bits; what would round noise away is refused.
"""

from __future__ import annotations

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.core import narrow
from locojax.methods.dp_ftrl import (
  clipping,
  cohort_sum,
  keys,
  matrix,
  noise,
  rounds,
  sums,
  tree,
)

KEY = jax.random.key(11)
ROUNDS, SIZE = 6, 3000
TABLE = [
  *(("bfloat16", x64) for x64 in (False, True)),
  *(("float16", x64) for x64 in (False, True)),
  *(("float32", x64) for x64 in (False, True)),
  ("float64", True),
]
# Every row compiles anew: the default suite takes one of each kind.
FEW = [("bfloat16", False), ("float32", True), ("float64", True)]
slow = pytest.mark.slow
in_all_dtypes = pytest.mark.parametrize(
  "dtype, x64", [r if r in FEW else pytest.param(*r, marks=slow) for r in TABLE]
)


def in_all_rows(argument, names, few):
  """Some of `names` in a few rows, all of them in the whole table if slow."""
  cases = [pytest.param(n, FEW, id=f"{n}-few") for n in few]
  cases += [pytest.param(n, TABLE, id=f"{n}-all", marks=slow) for n in names]
  return pytest.mark.parametrize(f"{argument}, rows", cases)


SHARED = {"key": KEY, "max_rounds": ROUNDS}
NOISES = {
  "basic": lambda: noise.add_tree_noise(2, 0.5, estimator="basic", **SHARED),
  "honaker": lambda: noise.add_tree_noise(2, 0.5, **SHARED),
  "restarts": lambda: noise.add_tree_noise(
    2, 0.5, restart=tree.RestartPolicy(4, completion=True), **SHARED
  ),
  "secure": lambda: noise.add_tree_noise(
    2, 0.5, estimator="basic", secure=True, grid=2.0**-6, **SHARED
  ),
  "banded": lambda: noise.add_matrix_noise(
    matrix.banded([1.0, 0.5]), 2, 0.5, **SHARED
  ),
  "blt": lambda: noise.add_matrix_noise(
    matrix.blt([0.9, 0.5], [0.3, 0.1]), 2, 0.5, **SHARED
  ),
}


def _width(x64: bool):
  return jax.enable_x64(True) if x64 else contextlib.nullcontext()


def _noises(tx, params, num):
  """`[num, SIZE]`: what is added to sums of zero, and the last state."""
  zeros = {"w": jnp.zeros(SIZE, narrow.wide_dtype(params["w"].dtype))}

  def step(state, _):
    out, new = tx.update(zeros, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    assert out["w"].dtype == zeros["w"].dtype
    return new, out["w"]

  run = jax.jit(lambda s: jax.lax.scan(step, s, length=num))
  state, out = run(tx.init(params))
  return np.asarray(out, np.float64), state


@in_all_rows("name", NOISES, ("basic", "secure", "blt"))
def test_noise_is_the_same_in_all_dtypes(name, rows):
  """And its prefix sums have the deviation of the tree's nodes."""
  found = {}
  for dtype, x64 in [("float32", False), *rows]:
    with _width(x64):
      params = {"w": jnp.zeros(SIZE, dtype)}
      found[dtype, x64], _ = _noises(NOISES[name](), params, ROUNDS)
  first = found["float32", False]
  assert first[0].std() == pytest.approx(1.0, rel=0.05)
  assert np.abs(first).min() < 0.02
  for rows in found.values():
    np.testing.assert_allclose(rows, first, rtol=1e-5, atol=1e-5)
  if name == "basic":
    deviations = np.cumsum(first, axis=0).std(axis=1)
    nodes = [t.bit_count() for t in range(1, ROUNDS + 1)]
    np.testing.assert_allclose(deviations, np.sqrt(nodes), rtol=0.05)


def _server(mechanism="tree", **changes):
  settings = {
    "noise_multiplier": 2.0,
    "clip_norm": 0.5,
    "num_clients": 10,
    "momentum": 0.9,
    "mechanism": mechanism,
    **SHARED,
    **changes,
  }
  return noise.dp_ftrl(0.1, **settings)


def _run(tx, params, num, state=None):
  """The parameters after each of `num` rounds of one sum."""
  given = jax.tree.map(
    lambda p: jnp.full(p.shape, 0.25, narrow.wide_dtype(p.dtype)), params
  )

  def step(carry, _):
    params, state = carry
    updates, new = tx.update(given, state, params)
    chex.assert_trees_all_equal_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    params = optax.apply_updates(params, updates)
    return (params, new), params

  run = jax.jit(lambda c: jax.lax.scan(step, c, length=num))
  return run((params, tx.init(params) if state is None else state))


@in_all_rows(
  "mechanism", ("honaker", "basic", "blt", "reset"), ("honaker", "reset")
)
def test_a_run_is_that_of_float32_rounded_once(mechanism, rows):
  """From parameters of 1, on which bfloat16 updates alone would be coarse."""
  changes = {"estimator": "basic"} if mechanism == "basic" else {}
  if mechanism == "blt":
    changes = {"mechanism": matrix.blt([0.9, 0.5], [0.3, 0.1])}
  if mechanism == "reset":
    policy = tree.RestartPolicy(3, behaviour="reset")
    changes = {"restart": policy}
  reference = None
  for dtype, x64 in [("float32", False), *rows]:
    with _width(x64):
      tx, params = _server(**changes), {"w": jnp.ones(SIZE, dtype)}
      _, path = _run(tx, params, ROUNDS)
      path = np.asarray(path["w"], np.float64)
    reference = path if reference is None else reference
    eps = max(float(jnp.finfo(dtype).eps), 1e-5)
    np.testing.assert_allclose(path, reference, atol=eps)


@in_all_dtypes
def test_a_restored_state_goes_on_in_the_same_bits(dtype, x64):
  with _width(x64):
    tx, params = _server(), {"w": jnp.ones(64, dtype), "b": jnp.ones((), dtype)}
    whole, _ = _run(tx, params, 4)
    (half, state), _ = _run(tx, params, 2)
    state = jax.tree.map(lambda x: x + 0 if x.ndim else x, state)
    again, _ = _run(tx, half, 2, state)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again)):
      same = a == b if a.dtype != KEY.dtype else True
      assert np.all(same)


def _loss(params, model_state, batch, key):
  del key
  each = jnp.square(batch["x"].astype(params["w"].dtype) @ params["w"] - 1)
  return jnp.mean(each.astype(jnp.float32)), ({}, model_state)


def _cohort(clients=4):
  rng = np.random.default_rng(5)
  return {"x": rng.normal(size=(clients, 2, 3, 8)).astype(np.float32)}


SERVERS = {
  "honaker": (_server, clipping.Clip(0.5)),
  "sgd": (
    lambda: rounds.server_sgd(
      0.1, num_clients=10, momentum=0.9, noise=NOISES["basic"]()
    ),
    clipping.Clip(0.5),
  ),
  "plain chain": (
    lambda: optax.chain(
      NOISES["honaker"](), optax.scale(0.1), optax.sgd(0.1, momentum=0.9)
    ),
    clipping.Clip(0.5),
  ),
  "secure": (
    lambda: rounds.server_sgd(0.1, num_clients=10, noise=NOISES["secure"]()),
    clipping.Clip(0.25, grid=2.0**-6),
  ),
  "adaptive": (
    _server,
    clipping.QuantileClip(
      0.5,
      noise.add_tree_noise(4, clipping.COUNT_SENSITIVITY, **SHARED),
      num_clients=10,
      starts_tree=tree.never,
    ),
  ),
}


@in_all_rows("name", SERVERS, ("plain chain",))
def test_rounds_keep_dtypes_and_agree(name, rows):
  """A whole round: local steps, clipping, noise, server."""
  make, clip = SERVERS[name]
  reference = None
  for dtype, x64 in [("float32", False), *rows]:
    with _width(x64):
      tx = make()
      params = {"w": jnp.asarray(np.linspace(0.5, 1.5, 8), dtype)}
      step = rounds.make_step(
        _loss,
        tx,
        client_tx=optax.sgd(0.05, momentum=0.5),
        clip=clip,
        clients_per_chunk=2,
      )
      state = rounds.init_state(params, tx, clip=clip, key=KEY)
      step, seen = jax.jit(step), []
      for _ in range(3):
        new, found = step(state, _cohort())
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        state = new
        seen.append(np.asarray(state.params["w"], np.float64))
      assert step._cache_size() == 1
      assert np.isfinite(found["loss"].value())
    reference = seen if reference is None else reference
    # Rounded parameters change what clients do, though not by much.
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(seen, reference, atol=max(6 * eps, 2e-5))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_local_steps_are_not_lost(dtype):
  """200 steps of 1e-4 at 1 make 0.02, not nothing."""

  def linear(params, model_state, batch, key):
    return jnp.sum(params["w"] * batch["x"][0]), ({}, model_state)

  plan = cohort_sum.Plan(
    linear, optax.with_extra_args_support(optax.sgd(1e-4)), 1, "m", "c", "data"
  )
  params = {"w": jnp.ones((), dtype)}
  cohort = {"x": jnp.ones((1, 200, 1))}
  state = rounds.init_state(
    params, optax.identity(), clip=clipping.Clip(1.0), key=KEY
  )
  found = cohort_sum.sum_clients(plan, state, cohort, (None, None), KEY)
  assert found.update["w"].dtype == jnp.float32
  np.testing.assert_allclose(found.update["w"], 0.02, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_clipped_updates_are_no_longer_than_the_norm(dtype):
  """Rounded to the nearest, half of such updates would be longer than C."""
  rng = np.random.default_rng(3)
  clip = jax.jit(clipping.clip_update)
  for _ in range(20):
    update = {"a": jnp.asarray(rng.normal(size=40) * 9, dtype)}
    clipped, norm, finite = clip(update, jnp.float32(0.7))
    assert finite and clipped["a"].dtype == jnp.dtype(dtype)
    found = np.linalg.norm(np.asarray(clipped["a"], np.float64))
    eps = float(jnp.finfo(dtype).eps)
    assert 0.7 * (1 - max(eps, 1e-6)) <= found <= 0.7 * (1 + 2e-7)


@in_all_dtypes
def test_the_estimate_of_a_quantile_is_float32(dtype, x64):
  with _width(x64):
    clip = SERVERS["adaptive"][1]
    state = clipping.quantile_clip_init(clip)
    new = clipping.quantile_clip_update(clip, state, jnp.float32(3.0))
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    assert new.estimate.dtype == jnp.float32
    _, norm, _ = clipping.clip_update({"w": jnp.ones(4, dtype)}, new.norm)
    assert norm.dtype == jnp.float32 and norm == 2


@pytest.mark.parametrize("name", [*NOISES, "dp_ftrl", "server_sgd"])
def test_sums_of_16_bits_are_refused(name, dtype="bfloat16"):
  made = {
    **NOISES,
    "dp_ftrl": _server,
    "server_sgd": lambda: rounds.server_sgd(0.1, num_clients=10),
  }
  tx, params = made[name](), {"w": jnp.zeros(3, dtype)}
  with pytest.raises(sums.RoundedAway, match=f"sum 'w' of dtype {dtype}"):
    tx.update(params, tx.init(params), params)
  with pytest.raises(sums.RoundedAway, match="must be float32 or wider"):
    noise.quantize(params, 0.1, key=KEY)


def test_what_float32_would_round_away_is_refused():
  with pytest.raises(
    sums.RoundedAway, match="num_clients=10000000.0 .* 2.0971"
  ):
    _server(num_clients=1e7, noise_multiplier=1.0)
  _server(num_clients=6500, noise_multiplier=0.01)
  for std in (1e-30, 1e30):
    with pytest.raises(ValueError, match="their product .* float32"):
      noise.add_tree_noise(std, std, **SHARED)
  step = rounds.make_step(
    _loss,
    optax.identity(),
    client_tx=optax.sgd(0.1),
    clip=clipping.Clip(0.5, grid=2.0**-24),
    clients_per_chunk=1,
  )
  state = rounds.init_state(
    {"w": jnp.ones(8)}, optax.identity(), clip=clipping.Clip(0.5), key=KEY
  )
  with pytest.raises(sums.RoundedAway, match="3.35544e.07 cells"):
    step(state, _cohort())


def test_parameters_of_16_bits_must_be_told():
  tx = _server()
  state = tx.init({"w": jnp.ones(2, jnp.bfloat16)})
  with pytest.raises(ValueError, match="params=None"):
    tx.update({"w": jnp.ones(2)}, state)


@pytest.mark.parametrize("max_rounds", [2**31, 2.0, True])
def test_rounds_are_counted_in_int32(max_rounds):
  for make in (
    functools.partial(noise.add_tree_noise, 1.0, 1.0),
    functools.partial(noise.add_matrix_noise, matrix.identity(), 1.0, 1.0),
  ):
    with pytest.raises(ValueError, match="max_rounds=.* 2147483647"):
      make(key=KEY, max_rounds=max_rounds)
  with pytest.raises(ValueError, match="period=2147483648"):
    tree.RestartPolicy(2**31)
  with pytest.raises(ValueError, match="warmup=1.5"):
    tree.RestartPolicy(4, warmup=1.5)


def test_the_last_round_of_an_int32_is_a_round():
  tx = noise.add_tree_noise(1.0, 1.0, key=KEY, max_rounds=2**31 - 1)
  x = jnp.zeros(2)
  state = tx.init(x)._replace(
    step=jnp.int32(2**31 - 2), leaves=jnp.int32(2**31 - 2)
  )
  out, state = jax.jit(tx.update)(x, state)
  assert np.isfinite(out).all() and state.step == 2**31 - 1
  out, state = jax.jit(tx.update)(x, state)
  assert np.isnan(out).all() and state.step == ~(2**31 - 1)


def test_keys_of_nodes_do_not_depend_on_x64():
  """Or a run that is taken up with x64 would make other noise."""
  plain = keys.of_node(KEY, 1, jnp.int32(2), 3)
  with jax.enable_x64(True):
    wide = keys.of_node(KEY, jnp.int64(1), jnp.int64(2), 3)
    onto = noise.quantize({"w": jnp.full(9, 0.3, jnp.float32)}, 0.25, key=KEY)
    onto = np.asarray(onto["w"])
  assert (jax.random.key_data(plain) == jax.random.key_data(wide)).all()
  same = noise.quantize({"w": jnp.full(9, 0.3)}, 0.25, key=KEY)["w"]
  np.testing.assert_array_equal(onto, same)
