"""Matching losses: worked numbers, identities, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods import locoprop
from locojax.methods.locoprop import matching

CONVEX = [n for n in matching.names() if matching.get(n).convex]
ELEMENTWISE = [n for n in CONVEX if not matching.get(n).vector]


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize(
  "loss, expected",
  [
    ("linear", 0.6050000000),
    ("tanh", 0.5668566641),
    ("sigmoid", 0.1486321900),
    ("relu", 0.3200000000),
    (matching.leaky_relu(0.01), 0.3228500000),
    (matching.leaky_relu(0.2), 0.3770000000),
    ("elu", 0.5642817366),
    ("exp", 0.6698226651),
    (matching.smelu(1.0), 0.3226666667),
    (matching.smelu(0.5), 0.3383333333),
    ("squared_relu", 0.1706666667),
  ],
)
def test_worked_divergences(loss, expected):
  value = matching.get(loss).divergence(0.8, -0.3)
  np.testing.assert_allclose(value, expected, atol=1e-10)


def test_worked_softmax():
  loss = matching.get("softmax")
  a_hat, a = jnp.array([0.2, -1, 0.5]), jnp.array([1.0, 0, -0.5])
  np.testing.assert_allclose(
    loss.divergence(a_hat, a), 0.3043930326, atol=1e-10
  )
  np.testing.assert_allclose(
    jax.grad(loss.divergence)(a_hat, a),
    [-0.2513231185, -0.1176108504, 0.3689339689],
    atol=1e-10,
  )


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_divergence_is_a_bregman_divergence(name):
  loss = matching.get(name)
  grid = jnp.linspace(-3.05, 3.05, 23)
  a_hat, a = jnp.meshgrid(grid, grid)
  d = loss.divergence(a_hat, a)
  assert float(d.min()) > -1e-12
  np.testing.assert_allclose(loss.divergence(grid, grid), 0.0, atol=1e-12)
  # Its gradient is the difference of the responses: finite differences of F.
  step = 1e-5
  slope = loss.divergence(a_hat + step, a) - loss.divergence(a_hat - step, a)
  expected = loss.transfer(a_hat) - loss.transfer(a)
  np.testing.assert_allclose(slope / (2 * step), expected, atol=2e-5)
  grad = jax.vmap(jax.grad(loss.potential))(grid)
  np.testing.assert_allclose(grad, loss.transfer(grid), atol=1e-9)


@pytest.mark.parametrize("name", CONVEX)
def test_divergence_from_target_agrees(name):
  loss = matching.get(name)
  rng = np.random.default_rng(0)
  a_hat, a = jnp.asarray(rng.normal(size=(2, 5, 4)))
  np.testing.assert_allclose(
    loss.divergence_from_target(a_hat, loss.transfer(a)),
    loss.divergence(a_hat, a),
    atol=1e-12,
  )


@pytest.mark.parametrize(
  "name", [n for n in CONVEX if matching.get(n).inverse is not None]
)
def test_inverse(name):
  loss = matching.get(name)
  a = jnp.linspace(-2.5, 2.5, 11)
  np.testing.assert_allclose(loss.inverse(loss.transfer(a)), a, atol=1e-9)


@pytest.mark.parametrize("name", CONVEX)
def test_range_bounds(name):
  loss = matching.get(name)
  y = loss.transfer(jnp.linspace(-30, 30, 61))
  assert float(y.min()) >= loss.low
  assert float(y.max()) <= loss.high


@pytest.mark.parametrize("value", [-80.0, 80.0])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "elu"])
def test_potentials_are_stable_in_float32(name, value):
  potential = matching.get(name).potential(jnp.float32(value))
  assert potential.dtype == jnp.float32
  assert np.isfinite(potential)


@pytest.mark.parametrize("name", ["gelu", "swish", "mish", "tanhexp"])
def test_nonmonotone_functions_have_no_divergence(name):
  with pytest.raises(ValueError, match=f"{name}.*not monotone"):
    matching.get(name).divergence(0.1, 0.2)
  with pytest.raises(ValueError, match="not monotone.*allow_nonconvex"):
    locoprop.locoprop(0.1, transfers={".*": name})
  locoprop.locoprop(0.1, transfers={".*": name}, allow_nonconvex=True)


def test_unknown_name_lists_the_known_ones():
  with pytest.raises(ValueError, match="did you mean 'tanh'"):
    matching.get("tanhh")


def test_register():
  mine = matching.MatchingLoss("cube", lambda a: a**3, lambda a: a**4 / 4)
  matching.register(mine)
  matching.register(mine)
  assert matching.get("cube") is mine
  with pytest.raises(ValueError, match="registered already"):
    matching.register(matching.MatchingLoss("cube", lambda a: a))
  matching._LOSSES.pop("cube")
