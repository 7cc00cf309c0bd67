"""Class weights: worked numbers, optimality conditions, label recovery."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from locojax.methods.ciw import classes

LOSSES = np.array([[1.2, 0.4, 2.0]])
SOFT = np.array([[0.6, 0.0, 0.4]])
GAMMAS = {"tv": 0.15, "l1": 0.3, "l2": 0.12, "kl": 0.2}


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def _problem(n=6, k=5, seed=0, soft=False):
  rng = np.random.default_rng(seed)
  losses = rng.gamma(1.0, 1.0, (n, k))
  if not soft:
    return losses, rng.integers(0, k, n)
  labels = rng.dirichlet(np.ones(k), n)
  labels[:, 0] = 0
  labels[: n // 2, 2] = 0
  return losses, labels / labels.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
  "divergence, labels, gamma, weights, loss",
  [
    ("tv", [0], 0.1, (0.9, 0.1, 0), 1.12),
    ("l1", [0], 0.2, (0.9, 0.1, 0), 1.12),
    ("kl", [0], 0.1, (np.exp(-0.1), -np.expm1(-0.1), 0), 1.1238699344),
    ("l2", [0], 0.1, (0.7763932023, 0.2236067977, 0), 1.0211145618),
    ("kl", SOFT, 0.02, (0.6943912526, 0, 0.3056087474), 1.4444869980),
    (
      "kl",
      SOFT,
      0.2,
      (0.6481930233, 0.1357426356, 0.2160643411),
      1.2642573644,
    ),
    ("tv", SOFT, 0.5, (0.5, 0.5, 0), 0.8),
  ],
)
def test_worked_numbers(x64, divergence, labels, gamma, weights, loss):
  got = classes.class_weights(
    LOSSES, labels, divergence=divergence, gamma=gamma
  )
  np.testing.assert_allclose(got[0], weights, atol=1e-10)
  np.testing.assert_allclose((got * LOSSES).sum(), loss, atol=1e-9)


def test_the_threshold_of_a_new_class(x64):
  weigh = functools.partial(
    classes.class_weights, LOSSES, SOFT, divergence="kl"
  )
  assert float(weigh(gamma=0.0541153209 - 1e-6)[0, 1]) == 0
  assert float(weigh(gamma=0.0541153209 + 1e-6)[0, 1]) > 0


def _distance(v, y, divergence):
  if divergence in ("tv", "l1"):
    return np.abs(v - y).sum() / (2 if divergence == "tv" else 1)
  if divergence == "l2":
    return ((v - y) ** 2).sum()
  held = y > 0
  return (y[held] * np.log(y[held] / v[held])).sum()


def _optimum(losses, y, divergence, gamma):
  """Least loss in the ball by a general solver."""
  k = len(y)
  if divergence in ("tv", "l1"):
    bound = gamma * (2 if divergence == "tv" else 1)
    eye, zero = np.eye(k), np.zeros(k)
    return optimize.linprog(
      np.concatenate([losses, zero]),
      A_ub=np.block([[eye, -eye], [-eye, -eye], [zero, np.ones(k)]]),
      b_ub=np.concatenate([y, -y, [bound]]),
      A_eq=np.concatenate([np.ones(k), zero])[None],
      b_eq=[1.0],
    ).fun
  start = 0.98 * y + 0.02 / k
  return optimize.minimize(
    lambda v: v @ losses,
    start,
    jac=lambda v: losses,
    bounds=[(1e-13 if y[i] else 0, 1) for i in range(k)],
    constraints=[
      {"type": "eq", "fun": lambda v: v.sum() - 1},
      {"type": "ineq", "fun": lambda v: gamma - _distance(v, y, divergence)},
    ],
    method="SLSQP",
    options={"ftol": 1e-14, "maxiter": 500},
  ).fun


@pytest.mark.parametrize("divergence", classes.DIVERGENCES)
@pytest.mark.parametrize("soft", [False, True])
def test_optimal_in_the_ball(x64, divergence, soft):
  losses, labels = _problem(soft=soft)
  hard = None if soft else np.eye(5)[labels]
  for gamma in (0.02, GAMMAS[divergence], 0.9):
    weights = np.asarray(
      classes.class_weights(losses, labels, divergence=divergence, gamma=gamma)
    )
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    assert weights.min() >= 0
    for i, v in enumerate(weights):
      y = labels[i] if soft else hard[i]
      assert _distance(v, y, divergence) <= gamma + 1e-9
      best = _optimum(losses[i], y, divergence, gamma)
      assert abs(v @ losses[i] - best) < 1e-6


@pytest.mark.parametrize("divergence", ["tv", "l1", "kl"])
def test_row_path_agrees_with_the_closed_form(x64, divergence):
  losses, labels = _problem(20, 7, seed=3)
  gamma = GAMMAS[divergence]
  soft = np.eye(7)[labels]
  np.testing.assert_allclose(
    classes.class_weights(losses, soft, divergence=divergence, gamma=gamma),
    classes.class_weights(losses, labels, divergence=divergence, gamma=gamma),
    atol=1e-12,
  )


def test_l2_stationarity(x64):
  """v - y + l / mu is one number on the active classes, not less elsewhere."""
  losses, labels = _problem(30, 6, seed=5)
  y = np.eye(6)[labels]
  weights = np.asarray(
    classes.class_weights(losses, labels, divergence="l2", gamma=0.3)
  )
  checked = 0
  for v, y_i, l in zip(weights, y, losses):
    active = v > 0
    if active.sum() < 2:
      continue
    a, b = np.flatnonzero(active)[:2]
    tau = -((v - y_i)[a] - (v - y_i)[b]) / (l[a] - l[b])
    slope = v - y_i + tau * l
    assert tau > 0 and np.ptp(slope[active]) < 1e-9
    assert np.all(slope[~active] >= slope[a] - 1e-9)
    checked += 1
  assert checked > 10


@pytest.mark.parametrize("divergence", classes.DIVERGENCES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e30])
def test_sound_in_float32(divergence, scale):
  losses, labels = _problem(50, 10, seed=7)
  gamma = GAMMAS[divergence]
  weigh = functools.partial(
    classes.class_weights, divergence=divergence, gamma=gamma
  )
  with jax.enable_x64(True):
    exact = np.asarray(weigh(losses, labels))
  weights = weigh((losses * scale).astype(np.float32), labels)
  assert weights.dtype == jnp.float32
  np.testing.assert_allclose(weights, exact, atol=2e-5)


@pytest.mark.parametrize("divergence", classes.DIVERGENCES)
@pytest.mark.parametrize("soft", [False, True])
def test_label_of_least_loss_stays(divergence, soft):
  losses = np.float32([[0.1, 3.0, 2.0], [1.0, 1.0, 1.0], [2.0, 2.0, 5.0]])
  labels = np.array([0, 2, 1])
  y = np.eye(3, dtype=np.float32)[labels]
  weights = classes.class_weights(
    losses, y if soft else labels, divergence=divergence, gamma=0.3
  )
  np.testing.assert_allclose(weights, y, atol=1e-6)


@pytest.mark.parametrize("divergence", classes.DIVERGENCES)
@pytest.mark.parametrize("soft", [False, True])
def test_edges_of_gamma(divergence, soft):
  losses, labels = _problem(soft=soft)
  y = labels if soft else np.eye(5)[labels]
  weigh = functools.partial(
    classes.class_weights, losses, labels, divergence=divergence
  )
  np.testing.assert_array_equal(weigh(gamma=0.0), np.float32(y))
  large = {"tv": 1.0, "l1": 2.0, "l2": 2.0, "kl": 50.0}[divergence]
  best = np.eye(5)[losses.argmin(axis=1)]
  np.testing.assert_allclose(weigh(gamma=large), best, atol=1e-5)


@pytest.mark.parametrize("divergence", classes.DIVERGENCES)
def test_infinite_losses_are_masked_classes(divergence):
  losses, labels = _problem(6, 4)
  padded = np.concatenate([losses, np.full((6, 1), np.inf)], axis=1)
  weigh = functools.partial(
    classes.class_weights, divergence=divergence, gamma=GAMMAS[divergence]
  )
  weights = weigh(padded, labels)
  assert not np.any(weights[:, -1])
  np.testing.assert_allclose(weights[:, :-1], weigh(losses, labels), atol=1e-5)


@pytest.mark.parametrize("divergence", classes.DIVERGENCES)
def test_logits_serve_and_no_gradient_flows(divergence):
  losses, labels = _problem(seed=9)
  logits = jnp.asarray(-losses + 3.0, jnp.float32)
  weigh = functools.partial(
    classes.class_weights,
    labels=labels,
    divergence=divergence,
    gamma=GAMMAS[divergence],
  )
  from_losses = weigh(-jax.nn.log_softmax(logits))
  np.testing.assert_allclose(weigh(-logits), from_losses, atol=1e-5)
  np.testing.assert_allclose(
    jax.jit(weigh)(-logits), weigh(-logits), rtol=1e-5, atol=1e-6
  )
  grad = jax.grad(lambda x: (weigh(x) * jnp.arange(5.0)).sum())(logits)
  assert not np.any(grad)


def test_tv_is_static_hard_bootstrapping(x64):
  """Reed et al. 2014: cross-entropy to (1 - q) y + q onehot(prediction)."""
  logits = jnp.asarray(np.random.default_rng(1).normal(size=(20, 6)))
  labels = jnp.arange(20) % 6
  target = 0.8 * jax.nn.one_hot(labels, 6) + 0.2 * jax.nn.one_hot(
    jnp.argmax(logits, axis=1), 6
  )
  expected = optax.softmax_cross_entropy(logits, target)
  got = classes.inner_losses(logits, labels, gamma=0.2)
  np.testing.assert_allclose(got, expected, atol=1e-12)


def test_label_smoothing_is_tv_with_an_unknown_best_class(x64):
  """If every class is the best one equally often, the mean of v is smoothed."""
  labels, k, gamma = jnp.arange(6), 6, 0.15
  favour = lambda j: jnp.broadcast_to(1.0 - jnp.eye(k)[j], (6, k))
  weights = [
    classes.class_weights(favour(j), labels, gamma=gamma) for j in range(k)
  ]
  expected = optax.smooth_labels(jnp.eye(k), gamma)
  np.testing.assert_allclose(sum(weights) / k, expected, atol=1e-12)


@pytest.mark.parametrize("divergence", ["tv", "l1", "kl"])
def test_inner_losses_need_no_weights(x64, divergence):
  logits = jnp.asarray(np.random.default_rng(2).normal(size=(9, 5)))
  logits = logits.at[0, :2].set(4.0)  # A tie that holds the label.
  labels = jnp.arange(9) % 5
  gamma = GAMMAS[divergence]
  weights = classes.class_weights(
    -logits, labels, divergence=divergence, gamma=gamma
  )
  inner = lambda z: classes.inner_losses(
    z, labels, divergence=divergence, gamma=gamma
  )
  expected = optax.softmax_cross_entropy(logits, weights)
  np.testing.assert_allclose(inner(logits), expected, atol=1e-12)
  grad = jax.grad(lambda z: inner(z).sum())(logits)
  np.testing.assert_allclose(grad, jax.nn.softmax(logits) - weights, atol=1e-12)


def test_inner_losses_make_no_large_array():
  n, k = 64, 4096
  compiled = (
    jax.jit(lambda z, y: classes.inner_losses(z, y, gamma=0.1))
    .lower(
      jax.ShapeDtypeStruct((n, k), jnp.float32),
      jax.ShapeDtypeStruct((n,), jnp.int32),
    )
    .compile()
  )
  assert compiled.memory_analysis().temp_size_in_bytes < n * k


@pytest.mark.parametrize(
  "labels, kwargs, words",
  [
    ([0], {"gamma": 1.5}, "gamma=1.5"),
    ([0], {"gamma": 2.5, "divergence": "l1"}, "gamma=2.5"),
    ([0], {"gamma": -0.1, "divergence": "kl"}, "gamma=-0.1"),
    ([0], {"gamma": 0.1, "divergence": "tvd"}, "did you mean 'tv'"),
    ([3], {"gamma": 0.1}, r"\[0, 2\]"),
    ([-1], {"gamma": 0.1}, r"\[0, 2\]"),
    ([0, 1], {"gamma": 0.1}, "labels has shape"),
    ([0.5], {"gamma": 0.1}, "labels has shape"),
    ([[0.5, 0.1, 0.1]], {"gamma": 0.1}, "sum to 1"),
    ([[1.5, -0.5, 0.0]], {"gamma": 0.1}, "sum to 1"),
    ([[0.5, 0.5]], {"gamma": 0.1}, "labels has shape"),
  ],
)
def test_refusals(labels, kwargs, words):
  with pytest.raises(ValueError, match=words):
    classes.class_weights(LOSSES, np.array(labels), **kwargs)


def test_inner_losses_refuse_what_needs_the_weights():
  with pytest.raises(ValueError, match="labels"):
    classes.inner_losses(LOSSES, SOFT, gamma=0.1)
  with pytest.raises(ValueError, match="'l2'"):
    classes.inner_losses(LOSSES, [0], divergence="l2", gamma=0.1)
