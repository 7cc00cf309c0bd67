"""Clipping: the bound holds, and the worked numbers of the quantile."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.methods.dp_ftrl import clipping


def tree(seed=0, scale=1.0):
  """An update of several shapes."""
  rng = np.random.default_rng(seed)
  shapes = {"a": (7, 3), "b": (5,), "c": ()}
  return {
    n: jnp.asarray(scale * rng.normal(size=s), jnp.float32)
    for n, s in shapes.items()
  }


def exact_norm(update):
  """The norm in float64."""
  leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(update)]
  return np.linalg.norm(np.concatenate(leaves))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0, 1e8])
@pytest.mark.parametrize("bound", [1e-3, 1.0, 30.0])
def test_the_norm_is_bounded_and_the_direction_kept(seed, scale, bound):
  update = tree(seed, scale)
  clipped, norm, finite = clipping.clip_update(update, bound)
  before, after = exact_norm(update), exact_norm(clipped)
  assert finite and after <= bound * (1 + 1e-6)
  np.testing.assert_allclose(norm, before, rtol=1e-6)
  np.testing.assert_allclose(after, min(before, bound), rtol=1e-6)
  for x, y in zip(jax.tree.leaves(update), jax.tree.leaves(clipped)):
    np.testing.assert_allclose(y, x * min(1, bound / before), rtol=1e-5)


def test_norms_of_large_arrays_are_exact_enough():
  update = {"w": jax.random.normal(jax.random.key(0), (2000, 1000))}
  clipped, norm, _ = clipping.clip_update(update, 0.5)
  np.testing.assert_allclose(norm, exact_norm(update), rtol=1e-6)
  assert exact_norm(clipped) <= 0.5 * (1 + 1e-6)


def test_a_zero_update_stays_zero():
  clipped, norm, finite = clipping.clip_update({"a": jnp.zeros((3,))}, 0.1)
  assert finite and norm == 0 and np.all(clipped["a"] == 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("bound", [1.0, None])
def test_an_update_that_is_not_finite_becomes_zeros(bad, bound):
  update = tree() | {"b": jnp.array([1.0, bad])}
  clipped, norm, finite = clipping.clip_update(update, bound)
  assert not finite and not np.isfinite(norm)
  assert all(np.all(x == 0) for x in jax.tree.leaves(clipped))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_norms_run_in_float32_whatever_the_dtype(dtype):
  update = {"w": jnp.full((4096,), 300.0, dtype)}
  clipped, norm, finite = clipping.clip_update(update, 1e4)
  assert finite and clipped["w"].dtype == dtype and norm.dtype == "float32"
  np.testing.assert_allclose(norm, 300 * 64, rtol=1e-6)


def test_without_a_bound_nothing_is_scaled():
  update = tree()
  clipped, _, _ = clipping.clip_update(update, None)
  for x, y in zip(jax.tree.leaves(update), jax.tree.leaves(clipped)):
    np.testing.assert_array_equal(x, y)


def quantile(**changes):
  """Settings of the worked numbers, without noise."""
  settings = dict(
    initial=0.1,
    count_tx=optax.identity(),
    num_clients=100,
    starts_tree=lambda step: step == 2,
  )
  return clipping.QuantileClip(**{**settings, **changes})


def estimates(clip, fractions):
  """The estimates after rounds with these shares at or below."""
  state, out = clipping.quantile_clip_init(clip), []
  for k, fraction in enumerate(fractions):
    state = clipping.quantile_clip_start(clip, state, jnp.int32(k))
    count = jnp.float32(clip.num_clients * (fraction - 0.5))
    state = clipping.quantile_clip_update(clip, state, count)
    out.append((float(state.estimate), float(state.norm)))
  return out


def test_the_geometric_update_has_the_worked_numbers():
  found = estimates(quantile(), [0, 0.25, 0.9])
  expected = [0.1105170918, 0.1161834243, 0.1072508181]
  np.testing.assert_allclose([e for e, _ in found], expected, rtol=1e-6)
  norms = [norm for _, norm in found]
  np.testing.assert_allclose(norms, [0.1, 0.1, expected[1]], rtol=1e-6)


def test_the_arithmetic_update_and_its_floor():
  clip = quantile(update="arithmetic", initial=0.2)
  found = [e for e, _ in estimates(clip, [0, 1, 1, 1, 1])]
  np.testing.assert_allclose(found[:3], [0.3, 0.2, 0.1], rtol=1e-6)
  assert found[-1] == np.float32(clipping.MIN_NORM)


def test_noise_beyond_the_ends_moves_no_further():
  noise = optax.stateless(lambda count, _: count - 1e6)
  found = estimates(quantile(count_tx=noise), [0.9])
  np.testing.assert_allclose(found[0][0], 0.1 * np.exp(0.2 * 0.5), rtol=1e-6)


def test_the_estimate_finds_the_quantile():
  """Of norms from a log-normal law, from far away."""
  norms = jnp.exp(jax.random.normal(jax.random.key(1), (400, 50)))
  clip = quantile(num_clients=50, quantile=0.8, starts_tree=lambda step: True)

  def one(state, norms):
    count = jnp.sum(clipping.below_bit(norms, state.estimate))
    state = clipping.quantile_clip_update(clip, state, count)
    return state, state.estimate

  _, found = jax.lax.scan(one, clipping.quantile_clip_init(clip), norms)
  expected = np.exp(0.8416)
  np.testing.assert_allclose(jnp.mean(found[200:]), expected, rtol=0.05)


@pytest.mark.parametrize(
  ("z", "m", "value"), [(1.0, 100, 1.0050378153), (7.0, 6500, 7.0004059525)]
)
def test_the_count_takes_its_share_of_the_noise(z, m, value):
  update, count = clipping.split_noise_multiplier(z, m)
  assert round(update, 10) == value and count == m / 10
  np.testing.assert_allclose(update**-2 + count**-2, z**-2)


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: clipping.Clip(0.0), "norm=0.0"),
    (lambda: clipping.Clip(np.inf), "norm=inf"),
    (lambda: clipping.clip_update({"a": jnp.ones(2)}, -1.0), "clip_norm=-1.0"),
    (lambda: clipping.clip_update({"a": jnp.arange(2)}, 1.0), "dtype int32"),
    (lambda: quantile(initial=-1.0), "initial=-1.0"),
    (lambda: quantile(quantile=1.5), "quantile=1.5"),
    (lambda: quantile(update="geometrics"), "did you mean"),
    (lambda: quantile(learning_rate=0.0), "learning_rate=0.0"),
    (lambda: clipping.split_noise_multiplier(10.0, 100), "below"),
    (lambda: clipping.split_noise_multiplier(0.0, 100), "noise_multiplier=0.0"),
  ],
)
def test_bad_settings_are_named(call, words):
  with pytest.raises(ValueError, match=words):
    call()
