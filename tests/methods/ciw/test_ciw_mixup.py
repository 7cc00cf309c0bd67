"""Weighted mixup: worked numbers, partners, ratios, masks, groups."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods.ciw import instance, mixup

KEY = jax.random.key(0)


def _problem(n=8, k=3, seed=0):
  rng = np.random.default_rng(seed)
  inputs = {
    "image": jnp.asarray(rng.normal(size=(n, 2, 2, 1)), jnp.float32),
    "low": jnp.asarray(rng.normal(size=(n,)), jnp.bfloat16),
  }
  weights = jnp.asarray(rng.dirichlet(np.ones(n)), jnp.float32)
  logits = jnp.asarray(rng.normal(size=(n, k)), jnp.float32)
  return inputs, jnp.asarray(rng.integers(0, k, n)), weights, logits


def _mix(mode, n=8, key=KEY, **kwargs):
  inputs, labels, weights, logits = _problem(n)
  settings = dict(mode=mode, alpha=2.0, logits=logits, num_classes=3)
  return mixup.ciw_mixup(key, inputs, labels, weights, **(settings | kwargs))


def test_worked_numbers():
  with jax.enable_x64(True):
    weights = instance.instance_weights([0.1, 0.5, 1.0, 3.0], lam=0.5)
    mass = mixup.mixing_mass(weights)
    ratios = mixup.weight_ratio(mass, jnp.array([2, 0, 3, 1]))
    np.testing.assert_allclose(
      ratios,
      [0.8581489351, 0.3100255189, 0.9820137900, 0.0066928509],
      atol=1e-9,
    )
    np.testing.assert_allclose(
      mixup.smoothing_share(mass),
      [0.9840809611, 0.4421760789, 0.1626674888, 0.0029793590],
      atol=1e-9,
    )


@pytest.mark.parametrize("mode", mixup.MODES)
def test_a_batch_is_mixed_as_its_ratios_say(mode):
  inputs, labels, weights, logits = _problem()
  mixed = _mix(mode)
  r, j = np.asarray(mixed.ratios), np.asarray(mixed.partners)
  x = np.asarray(inputs["image"])
  r4 = r[:, None, None, None]
  np.testing.assert_allclose(
    mixed.inputs["image"], r4 * x + (1 - r4) * x[j], rtol=1e-5, atol=1e-6
  )
  assert mixed.inputs["low"].dtype == jnp.bfloat16
  y = np.eye(3)[labels]
  if mode == "label_smoothing":
    share = np.asarray(mixup.smoothing_share(mixup.mixing_mass(weights)))
    share = share[:, None]
    y = share * y + (1 - share) * np.eye(3)[logits.argmax(axis=1)]
  expected = r[:, None] * y + (1 - r[:, None]) * y[j]
  np.testing.assert_allclose(mixed.labels, expected, atol=1e-6)
  np.testing.assert_allclose(mixed.labels.sum(axis=1), 1, rtol=1e-6)
  assert r.min() >= 0 and r.max() <= 1
  if mode in ("simple", "weight", "label_smoothing"):
    assert sorted(j.tolist()) == list(range(8))
  if mode in ("weight", "sample_weight"):
    w = np.asarray(weights)
    np.testing.assert_allclose(r, w / (w + w[j]), rtol=1e-5)


@pytest.mark.parametrize("mode", mixup.MODES)
def test_jit_is_eager_and_keys_matter(mode):
  inputs, labels, weights, logits = _problem()
  fn = functools.partial(
    mixup.ciw_mixup, mode=mode, alpha=2.0, num_classes=3, logits=logits
  )
  jitted = jax.jit(fn)
  got, expected = (f(KEY, inputs, labels, weights) for f in (jitted, fn))
  np.testing.assert_array_equal(got.partners, expected.partners)
  np.testing.assert_allclose(got.labels, expected.labels, atol=1e-6)
  other = jitted(jax.random.key(1), inputs, labels, weights)
  assert not np.array_equal(other.labels, got.labels)


def test_uniform_weights_mix_by_halves():
  for mode in ("weight", "sample_weight"):
    inputs, labels, _, _ = _problem()
    mixed = mixup.ciw_mixup(
      KEY, inputs, labels, jnp.full(8, 0.125), mode=mode, num_classes=3
    )
    np.testing.assert_array_equal(mixed.ratios, 0.5)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_partners_are_drawn_by_weight(power):
  """Chi-square over many draws, 7 degrees of freedom: 24.3 is 0.1 %."""
  _, _, weights, _ = _problem()
  draw = lambda key: _mix("sample", key=key, power=power).partners
  partners = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 2000))
  counts = np.bincount(np.asarray(partners).ravel(), minlength=8)
  mass = np.asarray(weights, np.float64) ** power
  expected = 16000 * mass / mass.sum()
  assert (np.square(counts - expected) / expected).sum() < 24.3


@pytest.mark.parametrize("mode", mixup.MODES)
def test_padding_is_no_partner_and_stays(mode):
  inputs, _, _, _ = _problem()
  mask = jnp.array([1, 0, 1, 1, 0, 1, 1, 0])
  mixed = _mix(mode, mask=mask)
  live = np.asarray(mask) == 1
  assert live[np.asarray(mixed.partners)[live]].all()
  np.testing.assert_array_equal(
    mixed.inputs["image"][~live], inputs["image"][~live]
  )
  if mode in ("simple", "weight", "label_smoothing"):
    assert sorted(mixed.partners[live]) == sorted(np.flatnonzero(live))


@pytest.mark.parametrize("mode", ["weight", "sample_weight"])
def test_groups_keep_to_themselves(mode):
  _, _, weights, _ = _problem()
  mixed = _mix(mode, groups=4)
  j = np.asarray(mixed.partners)
  np.testing.assert_array_equal(j // 2, np.arange(8) // 2)
  w = np.asarray(weights)
  np.testing.assert_allclose(mixed.ratios, w / (w + w[j]), rtol=1e-5)


def test_sharded_is_unsharded():
  inputs, labels, weights, _ = _problem(16)
  fn = functools.partial(mixup.ciw_mixup, mode="sample_weight", num_classes=3)
  expected = fn(KEY, inputs, labels, weights)
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.NamedSharding(mesh, jax.P("data"))
  args = jax.device_put((inputs, labels, weights), rows)
  got = jax.jit(fn)(KEY, *args)
  np.testing.assert_array_equal(got.partners, expected.partners)
  np.testing.assert_allclose(
    got.inputs["image"], expected.inputs["image"], atol=1e-6
  )


def test_no_gradient_through_weights():
  inputs, labels, weights, _ = _problem()

  def total(w):
    mixed = mixup.ciw_mixup(
      KEY, inputs, labels, w, mode="sample_weight", num_classes=3
    )
    return (mixed.labels @ jnp.arange(3.0)).sum() + mixed.ratios[0]

  assert abs(total(weights) - total(weights[::-1])) > 0.1  # they do matter
  assert not np.any(jax.grad(total)(weights))


@pytest.mark.parametrize(
  "kwargs, words",
  [
    ({"mode": "sampel"}, "did you mean 'sample'"),
    ({"mode": "simple", "alpha": None}, "alpha=None"),
    ({"mode": "simple", "alpha": 0.0}, "alpha=0.0"),
    ({"mode": "label_smoothing", "logits": None}, "logits=None"),
    ({"mode": "weight", "num_classes": None}, "num_classes=None"),
    ({"mode": "weight", "n": 1}, "batch size 1"),
    ({"mode": "weight", "groups": 8}, "batch size 8"),
    ({"mode": "weight", "groups": 3}, "multiple of groups=3"),
    ({"mode": "weight", "power": -1.0}, "power=-1.0"),
    ({"mode": "weight", "mask": [0] * 8}, "mask is zero"),
  ],
)
def test_refusals(kwargs, words):
  with pytest.raises(ValueError, match=words):
    _mix(**kwargs)


@pytest.mark.parametrize(
  "inputs, words",
  [
    (np.ones((8, 2), np.uint8), "dtype uint8"),
    (np.ones((4, 2), np.float32), "first axis"),
  ],
)
def test_refused_inputs(inputs, words):
  _, labels, weights, _ = _problem()
  with pytest.raises(ValueError, match=words):
    mixup.ciw_mixup(
      KEY, {"x": inputs}, labels, weights, mode="weight", num_classes=3
    )
