"""Long sums: small updates add up, in 16 bits and beyond 2^24."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import narrow

DTYPES = ("bfloat16", "float16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_is_the_cast(dtype):
  rng = np.random.default_rng(0)
  size = 2.0 ** rng.integers(-30, 18, 4000)
  x = (rng.normal(size=4000) * size).astype(np.float32)
  x = np.concatenate([x, np.float32([0, -0.0, 65504, 65519.9, 65520, -1e5])])
  x = np.append(x, np.float32([np.inf, -np.inf, np.nan, 1.00390625, 2**-25]))
  expected = np.asarray(jnp.asarray(x).astype(dtype)).astype(np.float32)
  for run in (narrow.rounded, jax.jit(narrow.rounded, static_argnums=1)):
    np.testing.assert_array_equal(run(jnp.asarray(x), dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [1.0, -300.0, 0.0, 2e-5])
def test_a_thousand_small_updates_add_up(dtype, start):
  rng = np.random.default_rng(1)
  moves = rng.uniform(0.2, 1.0, (1000, 3)) * 2e-4 * max(abs(start), 1e-2)
  param = jnp.full((3,), start, dtype)
  first = np.asarray(param, np.float64)

  def step(carry, move):
    param, rest = carry
    update, rest = narrow.add(param, move, rest)
    assert update.dtype == param.dtype
    return (param + update, rest), None

  carry = (param, jnp.zeros(3))
  moves = moves.astype(np.float32)
  (param, rest), _ = jax.jit(lambda c: jax.lax.scan(step, c, moves))(carry)
  total = first + moves.sum(axis=0, dtype=np.float64)
  held = np.asarray(param, np.float64) + np.asarray(rest, np.float64)
  np.testing.assert_allclose(held, total, rtol=2e-6)
  # The parameter is the sum, rounded once.
  ulp = np.abs(total) * float(jnp.finfo(dtype).eps)
  assert (np.abs(np.asarray(param, np.float64) - total) <= ulp).all()
  plain = param * 0 + jnp.asarray(start, dtype)
  for move in moves:
    plain = plain + move.astype(dtype)
  if abs(start) >= 1:  # without the rest nothing moves
    np.testing.assert_array_equal(plain, jnp.full((3,), start, dtype))


def test_a_parameter_that_was_set_is_the_new_start():
  param = jnp.bfloat16(1.0)
  _, rest = narrow.add(param, jnp.float32(1e-3), jnp.float32(0))
  assert float(rest) == pytest.approx(1e-3, rel=1e-4)
  update, rest = narrow.add(jnp.bfloat16(64.0), jnp.float32(0.0), rest)
  assert update == 0 and float(rest) == pytest.approx(1e-3, rel=1e-4)


def test_what_is_not_finite_leaves_no_rest():
  for bad in (np.inf, np.nan):
    update, rest = narrow.add(
      jnp.bfloat16(1.0), jnp.float32(bad), jnp.float32(0)
    )
    assert not jnp.isfinite(update) and rest == 0


def test_wide_parameters_keep_their_state():
  init, update = narrow.carried(
    lambda p: {"n": jnp.zeros((), jnp.int32)},
    lambda u, s, p, **extra: (u, {"n": s["n"] + 1}),
  )
  params = {"w": jnp.ones(2)}
  state = init(params)
  assert set(state) == {"n"}
  updates, state = update(params, state)
  assert updates["w"].dtype == jnp.float32 and state["n"] == 1
  low = {"w": jnp.ones(2, jnp.bfloat16), "v": jnp.ones(1)}
  state = init(low)
  assert state.rest["v"] is None and state.rest["w"].dtype == jnp.float32
  updates, _ = update(low, state, low)
  assert {k: str(v.dtype) for k, v in updates.items()} == {
    "w": "bfloat16",
    "v": "float32",
  }
  with pytest.raises(ValueError, match="params=None .* 16 bits"):
    update(low, state)


def test_a_count_outgrows_float32():
  def many(carry, _):
    return narrow.two_sum(*carry, jnp.float32(1.0)), None

  start = (jnp.float32(2.0**24), jnp.float32(0.0))
  run = jax.jit(lambda c: jax.lax.scan(many, c, length=1001))
  (total, rest), _ = run(start)
  assert float(total) == 2.0**24  # what float32 alone would count
  assert float(total) + float(rest) == 2**24 + 1001
  total, rest = narrow.two_sum(jnp.float32(1.0), rest, jnp.float32(jnp.inf))
  assert total == jnp.inf and jnp.isfinite(rest)
