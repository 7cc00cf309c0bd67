"""The exact solver on redundant inputs, against float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods.locoprop import exact
from locojax.train import sharding

ROWS, INPUTS = 96, 24
ETAS = (1e-2, 1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6)


def _inputs():
  """Layers by name: `[ROWS, INPUTS + 1]`, the last column ones."""
  base = np.random.default_rng(0).normal(size=(ROWS, INPUTS))
  half, eighth = base[:, : INPUTS // 2], base[:, : INPUTS // 8]
  constant, scaled = base.copy(), base.copy()
  constant[:, 3] = 0.7
  scaled[:, 0] *= 1e3
  scaled[:, -3:] = scaled[:, 1:4]
  layers = {
    "full rank": base,
    "doubled": np.concatenate([half, half], axis=1),
    "8 copies": np.tile(eighth, (1, 8)),
    "a constant column": constant,
    "all constant": np.full_like(base, 0.7),
    "of unequal size": scaled,
    "large mean": np.abs(np.concatenate([half, half], axis=1)) + 10,
    "dead units": base * (np.arange(INPUTS) % 3 > 0),
    "zero": 0 * base,
  }
  ones = np.ones((ROWS, 1))
  return {
    name: np.concatenate([x, ones], axis=1).astype(np.float32)
    for name, x in layers.items()
  }


def _reference(x, rhs, eta):
  """1/(s^2 + 1/eta) in the directions that some row sees, in float64."""
  _, s, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
  factor = np.where(s > 1e-11 * s[0], 1 / (s**2 + 1 / eta), 0)
  return v.T @ (factor[:, None] * (v @ rhs))


_solve = jax.jit(lambda x, rhs, eta: exact.solve([x], rhs, eta))


@functools.cache
def _gradient():
  return np.random.default_rng(1).normal(size=(ROWS, 5)).astype(np.float32)


@pytest.mark.parametrize("name", _inputs())
def test_redundant_inputs(name):
  x, g = _inputs()[name], _gradient()
  rhs = jnp.asarray(x).T @ g
  for eta in ETAS:
    expected = _reference(x, x.astype(np.float64).T @ g, eta)
    got = _solve(x, rhs, jnp.float32(eta))
    off = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert off < exact.TOLERANCE, (eta, off)
  # Only what Cholesky still solves may be that far off.
  assert off < 1e-3, off


def test_nothing_changes_in_directions_that_no_row_sees():
  x = _inputs()["doubled"]
  rhs = np.random.default_rng(2).normal(size=(INPUTS + 1, 5))
  got = _solve(x, rhs.astype(np.float32), jnp.float32(1e5))
  half = INPUTS // 2
  np.testing.assert_allclose(got[:half], got[half:-1], atol=1e-5)
  expected = _reference(x, rhs, 1e5)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_full_rank_is_the_solution_of_the_normal_equations():
  x, g = _inputs()["full rank"], _gradient()
  for eta in (0.1, 10.0):
    x64 = x.astype(np.float64)
    matrix = x64.T @ x64 + np.eye(INPUTS + 1) / eta
    expected = np.linalg.solve(matrix, x64.T @ g)
    got = _solve(x, jnp.asarray(x).T @ g, jnp.float32(eta))
    np.testing.assert_allclose(got, expected, atol=2e-7)


def test_no_rate_no_change_and_not_a_number():
  x, g = _inputs()["doubled"], _gradient()
  rhs = jnp.asarray(x).T @ g
  assert not _solve(x, rhs, jnp.float32(0)).any()
  assert np.isnan(_solve(x, rhs * jnp.nan, jnp.float32(10.0))).all()


def test_float64_is_solved_in_float64():
  with jax.enable_x64(True):
    x = _inputs()["doubled"].astype(np.float64)
    rhs = x.T @ _gradient().astype(np.float64)
    for eta in (1e3, 1e14):
      got = _solve(x, rhs, jnp.float64(eta))
      expected = _reference(x, rhs, eta)
      off = np.linalg.norm(got - expected) / np.linalg.norm(expected)
      assert got.dtype == np.float64 and off < 1e-9


@pytest.mark.parametrize("check_vma", [True, False])
def test_rows_on_several_devices(check_vma):
  x, g = _inputs()["doubled"], _gradient()
  rhs = jnp.asarray(x).T @ g
  mesh = sharding.make_mesh({"data": 4}, jax.devices()[:4])

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(jax.P("data"), jax.P(), jax.P()),
    out_specs=jax.P(),
    check_vma=check_vma,
  )
  def solve(x, rhs, eta):
    return exact.solve([x], rhs, eta, "data")

  for eta in (1e-2, 1e4):
    got = solve(x, rhs, jnp.float32(eta))
    expected = _reference(x, x.astype(np.float64).T @ g, eta)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)
