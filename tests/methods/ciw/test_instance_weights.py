"""Instance weights: worked numbers, optimality, stability, sharding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from locojax.methods.ciw import instance

LOSSES = (0.1, 0.5, 1.0, 3.0)
FAMILY = [
  ("kl", None),
  ("reverse_kl", None),
  ("hellinger", None),
  ("chi2", None),
  ("neyman", None),
  ("alpha", 0.1),
  ("alpha", 0.999),
  ("alpha", 1.5),
  ("alpha", 3.0),
  ("renyi", 0.5),
  ("renyi", 2.0),
]
ALL = [*FAMILY, ("tv", None)]


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def _random_losses(n=12, seed=0):
  return np.random.default_rng(seed).gamma(1.0, 1.0, n)


@pytest.mark.parametrize(
  "divergence, alpha, lam, expected",
  [
    ("kl", None, 0.5, (0.6181786279, 0.2777655625, 0.1021842399, 0.0018715696)),
    ("kl", None, 1.0, (0.4690623092, 0.3144218687, 0.1907065034, 0.0258093187)),
    (
      "reverse_kl",
      None,
      0.1,
      (0.6330445545, 0.2110148515, 0.1150990099, 0.0408415842),
    ),
    (
      "hellinger",
      None,
      0.1,
      (0.7968365386, 0.1463577316, 0.0498022837, 0.0070034461),
    ),
    (
      "alpha",
      0.1,
      0.1,
      (0.6599431425, 0.2025851154, 0.1042609392, 0.0332108029),
    ),
    ("chi2", None, 2.0, (0.4318181818, 0.3409090909, 0.2272727273, 0.0)),
    (
      "neyman",
      None,
      0.5,
      (0.3936317663, 0.2689016886, 0.2082903523, 0.1291761928),
    ),
  ],
)
def test_worked_numbers(x64, divergence, alpha, lam, expected):
  for name, a in {
    (divergence, alpha),
    ("alpha", instance.order(divergence, alpha)),
  }:
    weights = instance.instance_weights(
      LOSSES, divergence=name, alpha=a, lam=lam
    )
    assert weights.dtype == jnp.float64
    np.testing.assert_allclose(weights, expected, atol=1e-10)


def test_worked_weighted_loss_and_radius(x64):
  weights = instance.instance_weights(LOSSES, lam=0.5)
  np.testing.assert_allclose(
    weights @ jnp.array(LOSSES), 0.3084995929, atol=1e-9
  )
  weights = instance.instance_weights(LOSSES, radius=0.3)
  expected = (0.4957964963, 0.3120281174, 0.1749067530, 0.0172686332)
  np.testing.assert_allclose(weights, expected, atol=1e-10)
  lam = instance.lambda_for_radius(LOSSES, 0.3)
  np.testing.assert_allclose(lam, 0.8637960938, atol=1e-9)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_tv_by_hand(x64, n):
  losses = np.arange(n, dtype=float)
  weights = np.asarray(
    instance.instance_weights(losses, divergence="tv", radius=0.4)
  )
  expected = np.full(n, 1 / n)
  left = min(0.4, 1 - 1 / n)
  for i in reversed(range(1, n)):
    taken = min(left, 1 / n)
    expected[i] -= taken
    expected[0] += taken
    left -= taken
  np.testing.assert_allclose(weights, expected, atol=1e-12)


def test_tv_multiplier_keeps_what_is_near_the_minimum(x64):
  weights = instance.instance_weights(LOSSES, divergence="tv", lam=0.6)
  np.testing.assert_allclose(weights, [0.75, 0.25, 0.0, 0.0])


def _value(weights, divergence, alpha):
  """The divergence, written down a second time in NumPy."""
  w, n = np.asarray(weights, np.float64), len(weights)
  u = np.full(n, 1 / n)
  with np.errstate(divide="ignore", invalid="ignore"):
    if divergence == "tv":
      return np.abs(w - u).sum() / 2
    if divergence == "kl":
      return np.where(w > 0, w * np.log(w / u), 0).sum()
    if divergence == "reverse_kl":
      return (u * np.log(u / w)).sum()
    if divergence == "hellinger":
      return 1 - np.sqrt(w * u).sum()
    if divergence == "chi2":
      return ((w - u) ** 2 / u).sum()
    if divergence == "neyman":
      return ((w - u) ** 2 / w).sum()
    power = (w**alpha * u ** (1 - alpha)).sum()
    if divergence == "renyi":
      return np.log(power) / (alpha - 1)
    return (power - 1) / (alpha * (alpha - 1))


@pytest.mark.parametrize("divergence, alpha", ALL)
def test_radius_is_active_and_optimal(x64, divergence, alpha):
  losses = _random_losses()
  for radius in (0.02, 0.3):
    weights = instance.instance_weights(
      losses, divergence=divergence, alpha=alpha, radius=radius
    )
    value = _value(weights, divergence, alpha)
    np.testing.assert_allclose(value, radius, atol=1e-6)
    reported = instance.divergence_from_uniform(
      weights, divergence=divergence, alpha=alpha
    )
    np.testing.assert_allclose(reported, value, atol=1e-9)
    best = _numeric_optimum(losses, radius, divergence, alpha)
    assert abs(float(weights @ losses) - best) < 1e-6


def _numeric_optimum(losses, radius, divergence, alpha):
  """Least weighted loss in the ball, by a solver that knows no closed form."""
  n = len(losses)
  if divergence == "tv":
    # A linear programme in (w, |w - u|).
    eye, zero = np.eye(n), np.zeros(n)
    found = optimize.linprog(
      np.concatenate([losses, zero]),
      A_ub=np.block([[eye, -eye], [-eye, -eye], [zero, np.full(n, 0.5)]]),
      b_ub=np.concatenate([np.full(n, 1 / n), np.full(n, -1 / n), [radius]]),
      A_eq=np.concatenate([np.ones(n), zero])[None],
      b_eq=[1.0],
    )
    return found.fun
  found = optimize.minimize(
    lambda w: w @ losses,
    np.full(n, 1 / n) + 1e-3 * (losses.mean() - losses) / n,
    jac=lambda w: losses,
    bounds=[(1e-12, 1)] * n,
    constraints=[
      {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(n)},
      {
        "type": "ineq",
        "fun": lambda w: radius - _value(w, divergence, alpha),
      },
    ],
    method="SLSQP",
    options={"ftol": 1e-13, "maxiter": 500},
  )
  return found.fun


@pytest.mark.parametrize("divergence, alpha", ALL)
def test_multiplier_form_is_optimal_for_its_own_radius(x64, divergence, alpha):
  losses = _random_losses(8, seed=1)
  weights = instance.instance_weights(
    losses, divergence=divergence, alpha=alpha, lam=0.7
  )
  radius = _value(weights, divergence, alpha)
  best = _numeric_optimum(losses, radius, divergence, alpha)
  assert abs(float(weights @ losses) - best) < 1e-6
  again = instance.instance_weights(
    losses, divergence=divergence, alpha=alpha, radius=radius
  )
  np.testing.assert_allclose(again, weights, atol=1e-6)


@pytest.mark.parametrize("divergence, alpha", ALL)
@pytest.mark.parametrize("setting", ["lam", "radius"])
def test_invariants(divergence, alpha, setting):
  weigh = functools.partial(
    instance.instance_weights, divergence=divergence, alpha=alpha
  )
  value = {setting: 0.3}
  losses = jnp.asarray(np.append(_random_losses(15, seed=2), [0.4, 0.4]))
  weights = weigh(losses, **value)
  assert weights.dtype == jnp.float32
  np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
  assert float(weights.min()) >= 0
  assert np.all(np.diff(np.asarray(weights)[np.argsort(losses)]) <= 1e-7)
  assert float(weights @ losses) <= float(losses.mean())
  assert float(weights[-1]) == float(weights[-2])
  order = np.random.default_rng(3).permutation(17)
  np.testing.assert_allclose(
    weigh(losses[order], **value), weights[order], rtol=2e-5, atol=1e-7
  )
  jitted = jax.jit(lambda x: weigh(x, **value))(losses)
  np.testing.assert_allclose(jitted, weights, rtol=2e-5, atol=1e-7)
  equal = weigh(jnp.full(5, 2.5), **value)
  np.testing.assert_allclose(equal, 0.2, rtol=1e-6)
  grad = jax.grad(lambda x: weigh(x, **value) @ jnp.arange(17.0))(losses)
  assert not np.any(grad)


@pytest.mark.parametrize("divergence, alpha", ALL)
def test_limits(x64, divergence, alpha):
  weigh = functools.partial(
    instance.instance_weights, LOSSES, divergence=divergence, alpha=alpha
  )
  uniform = np.full(4, 0.25)
  np.testing.assert_allclose(weigh(lam=1e9), uniform, atol=1e-8)
  small = 1e-12
  np.testing.assert_allclose(weigh(radius=small), uniform, atol=1e-5)
  one_hot = np.eye(4)[0]
  if divergence != "tv":
    # Radii that hold the one-hot weights, or come close to them.
    np.testing.assert_allclose(
      weigh(radius=1e3 if (alpha or 1) < 1 or alpha is None else 60.0),
      one_hot,
      atol=2e-2 if divergence == "neyman" else 1e-6,
    )
  else:
    np.testing.assert_allclose(weigh(radius=0.75), one_hot, atol=1e-12)
  if instance.order(divergence, alpha) in (1.0, 1.5, 2.0, 3.0, None):
    np.testing.assert_allclose(weigh(lam=1e-6), one_hot, atol=1e-12)


@pytest.mark.parametrize("alpha", [1 - 1e-6, 1 + 1e-6])
def test_alpha_to_one_is_kl(x64, alpha):
  near = instance.instance_weights(
    LOSSES, divergence="alpha", alpha=alpha, lam=0.5
  )
  np.testing.assert_allclose(
    near, instance.instance_weights(LOSSES, lam=0.5), atol=1e-5
  )


@pytest.mark.parametrize("shift", [1e4, -3.0])
def test_kl_does_not_see_shifts(x64, shift):
  losses = np.array(LOSSES)
  for value in ({"lam": 0.5}, {"radius": 0.3}):
    np.testing.assert_allclose(
      instance.instance_weights(losses + shift, **value),
      instance.instance_weights(losses, **value),
      atol=1e-9,
    )


EXTREME = [
  [1e38, 1e38, 3e38],
  [0.0, 1e-38, 1e38],
  [0.0, 0.0, 0.0],
  [1e-30, 2e-30, 1.0],
  [7.0],
  [np.inf, 1.0, 2.0],
  [np.inf, np.inf],
  [1e4, 1e4 + 1, 2e4],
]


@pytest.mark.parametrize("divergence, alpha", ALL)
@pytest.mark.parametrize("setting", ["lam", "radius"])
def test_any_losses_give_sound_weights(divergence, alpha, setting):
  weigh = functools.partial(
    instance.instance_weights, divergence=divergence, alpha=alpha
  )
  for losses in EXTREME:
    n = len(losses)
    padded = np.float32([*losses, *[np.nan] * (3 - n)])
    for size in (1e-6, 0.5):
      weights = weigh(padded, mask=np.arange(3) < n, **{setting: size})
      weights = np.asarray(weights)[:n]
      assert np.all(np.isfinite(weights)) and weights.min() >= 0
      np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
      if np.isinf(losses[0]) and n == 3 and divergence != "tv":
        assert weights[0] == 0 and weights[1] >= weights[2]


def test_power_law_of_huge_losses():
  weights = instance.instance_weights(
    [1e38, 2e38], divergence="reverse_kl", lam=0.1
  )
  np.testing.assert_allclose(weights, [2 / 3, 1 / 3], rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_all_zero_weights_fall_back_to_the_least_loss(normalize):
  weigh = functools.partial(
    instance.instance_weights,
    divergence="alpha",
    alpha=3.0,
    lam=1.0,
    normalize=normalize,
  )
  # Zero beyond lam / (alpha - 1) = 0.5.
  np.testing.assert_array_equal(weigh([5.0, 0.7, 9.0]), [0, 1, 0])
  assert float(weigh([0.4, 0.7])[1]) == 0


def test_unnormalized(x64):
  losses = np.array(LOSSES)
  for divergence, expected in {
    "kl": np.exp(-losses / 2),
    "reverse_kl": 1 / (losses + 2),
    "hellinger": (losses / 2 + 2) ** -2.0,
    "chi2": np.maximum(2 - losses, 0),
    "neyman": (2 * losses + 2) ** -0.5,
  }.items():
    weights = instance.instance_weights(
      losses, divergence=divergence, lam=2.0, normalize=False
    )
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


@pytest.mark.parametrize("divergence, alpha", ALL)
@pytest.mark.parametrize("setting", ["lam", "radius"])
def test_masked_is_removed(divergence, alpha, setting):
  weigh = functools.partial(
    instance.instance_weights,
    divergence=divergence,
    alpha=alpha,
    **{setting: 0.3},
  )
  kept = _random_losses(6).astype(np.float32)
  padded = np.concatenate([[np.nan, -5.0], kept, [np.inf]]).astype(np.float32)
  mask = np.array([0, 0] + [1] * 6 + [0], np.float32)
  weights = weigh(padded, mask=mask)
  np.testing.assert_allclose(weights[2:-1], weigh(kept), rtol=1e-5, atol=1e-8)
  assert not np.any(np.asarray(weights)[mask == 0])


def test_a_nan_is_not_hidden():
  for divergence, alpha in FAMILY:
    weights = instance.instance_weights(
      [1.0, np.nan], divergence=divergence, alpha=alpha, lam=0.5
    )
    assert np.all(np.isnan(weights))


def test_traced_empty_mask_gives_zeros():
  weigh = jax.jit(lambda x, m: instance.instance_weights(x, lam=1.0, mask=m))
  assert not np.any(weigh(jnp.ones(3), jnp.zeros(3)))


def test_groups_are_separate_batches():
  losses = _random_losses(12).astype(np.float32)
  mask = np.ones(12)
  mask[[1, 5]] = 0
  weights = instance.instance_weights(losses, lam=0.4, mask=mask, groups=3)
  parts = [
    instance.instance_weights(losses[s], lam=0.4, mask=mask[s])
    * mask[s].sum()
    / 10
    for s in (slice(0, 4), slice(4, 8), slice(8, 12))
  ]
  np.testing.assert_allclose(weights, np.concatenate(parts), rtol=1e-5)
  np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


def _mesh(*names_sizes):
  names, sizes = zip(*names_sizes)
  types = (jax.sharding.AxisType.Auto,) * len(names)
  return jax.make_mesh(sizes, names, axis_types=types)


@pytest.mark.parametrize(
  "settings",
  [
    {"lam": 0.4},
    {"radius": 0.3},
    {"divergence": "tv", "radius": 0.3},
    {"divergence": "chi2", "lam": 1.0},
    {"lam": 0.4, "groups": 8},
  ],
)
def test_sharded_is_unsharded(settings):
  losses = jnp.asarray(_random_losses(32), jnp.float32)
  mask = jnp.arange(32) % 5 > 0
  weigh = functools.partial(instance.instance_weights, **settings)
  expected = weigh(losses, mask=mask)
  mesh = _mesh(("data", 8))
  rows = jax.NamedSharding(mesh, jax.P("data"))
  under_jit = jax.jit(lambda x, m: weigh(x, mask=m), out_shardings=rows)
  args = jax.device_put((losses, mask), rows)
  np.testing.assert_allclose(under_jit(*args), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("settings", [{"lam": 0.4}, {"radius": 0.3}])
@pytest.mark.parametrize("axes", ["data", ("data", "model")])
def test_axis_name_inside_shard_map(settings, axes):
  losses = jnp.asarray(_random_losses(32), jnp.float32)
  mask = jnp.arange(32) > 3  # All of the first shard is masked.
  weigh = functools.partial(instance.instance_weights, **settings)
  mesh = _mesh(("data", 4), ("model", 2))
  spec = jax.P(axes)
  mapped = jax.shard_map(
    lambda x, m: (
      weigh(x, mask=m, axis_name=axes),
      instance.uniform_weights(x, mask=m, axis_name=axes),
    ),
    mesh=mesh,
    in_specs=(spec, spec),
    out_specs=(spec, spec),
  )
  weights, uniform = jax.jit(mapped)(losses, mask)
  np.testing.assert_allclose(
    weights, weigh(losses, mask=mask), rtol=1e-5, atol=1e-8
  )
  np.testing.assert_allclose(uniform, mask / 28, rtol=1e-6)


@pytest.mark.parametrize(
  "kwargs, words",
  [
    ({"lam": 0.0}, "lam=0.0"),
    ({"lam": jnp.float32(-1)}, "lam=-1.0"),
    ({"lam": jnp.ones(2)}, "single number"),
    ({"radius": -1.0}, "radius=-1.0"),
    ({}, "exactly one"),
    ({"lam": 1.0, "radius": 1.0}, "exactly one"),
    ({"divergence": "kll", "lam": 1.0}, "did you mean 'kl'"),
    ({"divergence": "alpha", "lam": 1.0}, "alpha=None"),
    ({"alpha": 0.5, "lam": 1.0}, "alpha=0.5"),
    ({"divergence": "renyi", "alpha": -1.0, "lam": 1.0}, "alpha=-1.0"),
    ({"divergence": "tv", "radius": 1.5}, "radius=1.5"),
    ({"radius": 1.0, "normalize": False}, "normalize=False"),
    ({"lam": 1.0, "mask": [0, 0, 0]}, "mask is zero"),
    ({"lam": 1.0, "mask": [1, 0]}, "mask has shape"),
    ({"lam": 1.0, "groups": 2}, "multiple of groups=2"),
    ({"lam": 1.0, "groups": 3, "axis_name": "data"}, "groups=3"),
  ],
)
def test_refusals(kwargs, words):
  with pytest.raises(ValueError, match=words):
    instance.instance_weights([1.0, 2.0, 3.0], **kwargs)


def test_refused_losses():
  with pytest.raises(ValueError, match="shape"):
    instance.instance_weights([[1.0]], lam=1.0)
  with pytest.raises(ValueError, match="least value -1"):
    instance.instance_weights([-1.0], divergence="reverse_kl", lam=1.0)
  with pytest.raises(ValueError, match="'tv' is not allowed"):
    instance.lambda_for_radius([1.0], 0.1, divergence="tv")
