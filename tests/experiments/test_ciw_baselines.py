"""Baselines for noisy labels: definitions, limits, gradients, the mixture."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from experiments.ciw.baselines import (
  beta_mixture,
  bitempered,
  dynamic,
  losses,
)

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(0, 3, (12, 5))
LABELS = RNG.integers(0, 5, 12)
SOFT = RNG.dirichlet(np.ones(5), 12)
OPTIONS = {
  "cross_entropy": {},
  "label_smoothing": {"smoothing": 0.2},
  "bi_tempered": {"t1": 0.7, "t2": 1.4},
  "generalized_ce": {"q": 0.7},
  "nce_rce": {"alpha": 1.0, "beta": 0.5},
  "nce_mae": {"alpha": 2.0, "beta": 1.0},
  "bootstrap_soft": {"share": 0.3},
  "bootstrap_hard": {"share": 0.3},
}


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _log_p(logits):
  return logits - special.logsumexp(logits, axis=-1, keepdims=True)


def _log_t(x, t):
  return np.log(x) if t == 1 else (x ** (1 - t) - 1) / (1 - t)


def _exp_t(u, t):
  return np.exp(u) if t == 1 else (1 + (1 - t) * u) ** (1 / (1 - t))


def _tempered_softmax(row, t):
  """The normaliser by Brent's method."""
  if t == 1:
    return special.softmax(row)
  top = row.max()
  excess = lambda c: _exp_t(row - top - c, t).sum() - 1
  c = optimize.brentq(excess, 0, 1e3, xtol=1e-14, rtol=1e-14)
  return _exp_t(row - top - c, t)


def _reference(name, logits, y):
  """The definitions, in NumPy; `y` `[n, classes]`."""
  log_p = _log_p(logits)
  p, ce = np.exp(log_p), -(y * log_p).sum(1)
  nce = ce / -log_p.sum(1)
  o = OPTIONS[name]
  if name == "cross_entropy":
    return ce
  if name == "label_smoothing":
    return 0.8 * ce - 0.2 * log_p.mean(1)
  if name == "generalized_ce":
    return (y * (1 - p ** o["q"]) / o["q"]).sum(1)
  if name == "nce_rce":
    log_y = np.maximum(np.log(np.maximum(y, 1e-300)), -4)
    return nce - 0.5 * (p * log_y).sum(1)
  if name == "nce_mae":
    return 2 * nce + np.abs(p - y).sum(1)
  if name == "bootstrap_soft":
    return 0.7 * ce - 0.3 * (p * log_p).sum(1)
  if name == "bootstrap_hard":
    return 0.7 * ce - 0.3 * log_p.max(1)
  t1, t2 = o["t1"], o["t2"]
  p = np.stack([_tempered_softmax(row, t2) for row in logits])
  entropy = np.where(y > 0, y * _log_t(np.where(y > 0, y, 1), t1), 0)
  own = y * _log_t(p, t1)
  return (entropy - own - (y ** (2 - t1) - p ** (2 - t1)) / (2 - t1)).sum(1)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("soft", [False, True])
def test_a_loss_is_its_definition(name, soft):
  y = SOFT if soft else np.eye(5)[LABELS]
  found = losses.make(name, **OPTIONS[name])(LOGITS, SOFT if soft else LABELS)
  assert found.shape == (12,) and found.dtype == jnp.float64
  np.testing.assert_allclose(found, _reference(name, LOGITS, y), rtol=1e-9)


def test_every_loss_is_tested():
  assert set(OPTIONS) == set(losses.LOSSES)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_those_of_finite_differences(name):
  loss = losses.make(name, **OPTIONS[name])
  total = lambda z: jnp.sum(loss(z, LABELS))
  slope = jax.grad(total)(LOGITS)
  direction = RNG.normal(size=LOGITS.shape)
  step = 1e-5
  ends = [total(LOGITS + s * step * direction) for s in (1, -1)]
  numeric = (ends[0] - ends[1]) / (2 * step)
  np.testing.assert_allclose(np.sum(slope * direction), numeric, rtol=1e-7)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_logits_stay_finite_in_float32(name, size):
  logits = (LOGITS * size).astype(np.float32)
  loss = losses.make(name, **OPTIONS[name])
  value, slope = jax.value_and_grad(lambda z: loss(z, LABELS).sum())(logits)
  assert jnp.isfinite(value) and jnp.all(jnp.isfinite(slope))


@pytest.mark.parametrize("name", OPTIONS)
def test_half_precision_is_computed_in_float32(name):
  logits = jnp.asarray(LOGITS, jnp.bfloat16)
  loss = losses.make(name, **OPTIONS[name])
  found = loss(logits, LABELS)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, loss(logits.astype("float32"), LABELS))


@pytest.mark.parametrize(
  "name, options",
  [
    ("bi_tempered", {"t1": 1.0, "t2": 1.0}),
    ("label_smoothing", {"smoothing": 0.0}),
    ("bootstrap_soft", {"share": 0.0}),
    ("bootstrap_hard", {"share": 0.0}),
  ],
)
def test_limits_are_cross_entropy(name, options):
  found = losses.make(name, **options)(LOGITS, LABELS)
  ce = losses.cross_entropy()(LOGITS, LABELS)
  np.testing.assert_allclose(found, ce, rtol=1e-12)


def test_temperatures_near_one_are_near_cross_entropy():
  found = losses.make("bi_tempered", t1=1 - 1e-6, t2=1 + 1e-6)(LOGITS, LABELS)
  ce = losses.cross_entropy()(LOGITS, LABELS)
  np.testing.assert_allclose(found, ce, rtol=1e-4, atol=1e-6)


def test_small_q_is_cross_entropy_and_one_is_absolute_error():
  ce = losses.cross_entropy()(LOGITS, LABELS)
  small = losses.generalized_ce(q=1e-7)(LOGITS, LABELS)
  np.testing.assert_allclose(small, ce, rtol=1e-5)
  mae = losses.nce_mae(alpha=0.0, beta=0.5)(LOGITS, LABELS)
  one = losses.generalized_ce(q=1.0)(LOGITS, LABELS)
  np.testing.assert_allclose(one, mae, rtol=1e-12)


@pytest.mark.parametrize("t2", [1.0, 1.01, 1.4, 2.0, 4.0])
def test_tempered_softmax_sums_to_one(t2):
  log_p = bitempered.log_tempered_softmax(LOGITS * 10, t2)
  np.testing.assert_allclose(jnp.exp(log_p).sum(-1), 1.0, rtol=1e-10)
  for row, found in zip(LOGITS * 10, jnp.exp(log_p)):
    np.testing.assert_allclose(found, _tempered_softmax(row, t2), rtol=1e-7)


def test_bi_tempered_loss_is_bounded():
  far = np.float64([[1e6, 0.0, 0.0]])
  loss = losses.make("bi_tempered", t1=0.5, t2=2.0)(far, [1])
  assert 1.0 < float(loss[0]) <= 2.0


def test_sums_over_all_labels_make_active_passive_losses_symmetric():
  # NCE and MAE summed over all labels are constants: noise tolerance.
  each = [
    losses.nce_mae(alpha=1.0, beta=1.0)(LOGITS, np.full(12, k))
    for k in range(5)
  ]
  np.testing.assert_allclose(sum(each), 1 + 2 * (5 - 1), rtol=1e-12)


@pytest.mark.parametrize(
  "name, options, match",
  [
    ("nce_rse", {}, "nce_rce"),
    ("bi_tempered", {"t1": 1.5, "t2": 1.2}, "t1=1.5"),
    ("bi_tempered", {"t1": 0.5, "t2": 0.9}, "t2=0.9"),
    ("generalized_ce", {"q": 0.0}, "q=0.0"),
    ("label_smoothing", {"smoothing": 2}, "smoothing=2"),
    ("nce_rce", {"alpha": -1, "beta": 1}, "alpha=-1"),
    ("bootstrap_hard", {"share": 1.1}, "share=1.1"),
  ],
)
def test_bad_settings_are_named(name, options, match):
  with pytest.raises(ValueError, match=match):
    losses.make(name, **options)


@pytest.mark.parametrize(
  "logits, labels",
  [
    (LOGITS[0], LABELS),
    (LOGITS, LABELS[:-1]),
    (LOGITS, LABELS.astype(float)),
    (LOGITS, SOFT[:, :3]),
  ],
)
def test_labels_of_the_wrong_form_are_refused(logits, labels):
  with pytest.raises(ValueError, match="not allowed"):
    losses.cross_entropy()(logits, labels)


def _drawn(num_clean, num_noisy, rng):
  x = np.concatenate([rng.beta(2, 8, num_clean), rng.beta(9, 3, num_noisy)])
  return x, np.arange(len(x)) >= num_clean


def test_the_mixture_is_recovered():
  x, noisy = _drawn(7000, 3000, np.random.default_rng(0))
  # Nothing cut off, so that the unit interval is almost that of the draws.
  found = beta_mixture.fit(5.0 * x, num_iters=200, quantile=0.0)
  means = found.a / (found.a + found.b)
  span = 5.0 * (x.max() - x.min())
  np.testing.assert_allclose(
    means * span + 5.0 * x.min(), [5 * 0.2, 5 * 0.75], rtol=0.04
  )
  np.testing.assert_allclose(found.share, [0.7, 0.3], atol=0.02)
  q = beta_mixture.noisy_probability(found, 5.0 * x)
  assert np.mean((q > 0.5) == noisy) > 0.97


def test_em_does_not_lower_the_likelihood_much_below_the_truth():
  x, _ = _drawn(700, 300, np.random.default_rng(3))
  found = beta_mixture.fit(x, num_iters=100, quantile=0.0)
  unit = np.clip((x - x.min()) / np.ptp(x), 1e-3, 1 - 1e-3)

  def log_likelihood(a, b, share):
    a, b, share = map(np.asarray, (a, b, share))
    u = unit[:, None]
    log_density = (a - 1) * np.log(u) + (b - 1) * np.log1p(-u)
    log_density = log_density - special.betaln(a, b) + np.log(share)
    return special.logsumexp(log_density, axis=1).mean()

  mine = log_likelihood(found.a, found.b, found.share)
  start = log_likelihood([1.0, 2.0], [2.0, 1.0], [0.5, 0.5])
  truth = log_likelihood([2.0, 9.0], [8.0, 3.0], [0.7, 0.3])
  assert mine > start and mine > truth - 0.02


def test_the_posterior_never_falls_and_is_sure_at_the_ends():
  x, _ = _drawn(600, 400, np.random.default_rng(1))
  found = beta_mixture.fit(x)
  q = beta_mixture.noisy_probability(found, np.linspace(-1, 2, 500))
  assert np.all(np.diff(q) >= 0) and np.all((q >= 0) & (q <= 1))
  assert q[0] == 0.0 and q[-1] > 0.99


@pytest.mark.parametrize("losses_", [np.ones(50), np.zeros(3), np.ones(1)])
def test_equal_losses_give_finite_posteriors(losses_):
  found = beta_mixture.fit(losses_)
  q = beta_mixture.noisy_probability(found, losses_)
  assert np.all(np.isfinite(q)) and np.all((q >= 0) & (q <= 1))


def test_bad_losses_are_refused():
  with pytest.raises(ValueError, match="losses"):
    beta_mixture.fit(np.ones((2, 2)))
  with pytest.raises(ValueError, match="quantile=0.7"):
    beta_mixture.fit(np.ones(5), quantile=0.7)


def test_the_memory_keeps_losses_and_refits_when_due():
  x, noisy = _drawn(60, 40, np.random.default_rng(2))
  memory = dynamic.init_memory(100)
  order = np.random.default_rng(3).permutation(100)

  @jax.jit
  def epoch(memory, due):
    for rows in order.reshape(4, 25):
      memory = dynamic.remember(memory, rows, jnp.asarray(x)[rows])
    return dynamic.refit(memory, due)

  kept = epoch(memory, False)
  np.testing.assert_allclose(kept.losses, x, rtol=1e-6)
  assert not kept.noisy.any()
  fitted = epoch(memory, True)
  assert np.mean((fitted.noisy > 0.5) == noisy) > 0.9
  expected = beta_mixture.noisy_probability(
    beta_mixture.fit(fitted.losses), fitted.losses
  )
  np.testing.assert_allclose(fitted.noisy, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", dynamic.PREDICTIONS)
def test_dynamic_bootstrapping_with_one_q_for_all_is_static(prediction):
  noisy = np.full(12, 0.3)
  found = dynamic.dynamic_bootstrapping(
    LOGITS, LABELS, noisy, prediction=prediction
  )
  static = losses.make(f"bootstrap_{prediction}", share=0.3)(LOGITS, LABELS)
  np.testing.assert_allclose(found, static, rtol=1e-12)
  y = dynamic.bootstrapped(LOGITS, LABELS, noisy, prediction=prediction)
  slope = jax.grad(
    lambda z: dynamic.dynamic_bootstrapping(
      z, LABELS, noisy, prediction=prediction
    ).sum()
  )(LOGITS)
  np.testing.assert_allclose(slope, special.softmax(LOGITS, 1) - y, atol=1e-12)


def test_dynamic_mixup_trusts_the_cleaner_of_two():
  x = jnp.arange(12.0)[:, None]
  noisy = jnp.where(jnp.arange(12) % 2 == 0, 0.9, 0.1)
  mixed = dynamic.dynamic_mixup(
    jax.random.key(0), x, LABELS, noisy, num_classes=5
  )
  i, j = np.arange(12), np.asarray(mixed.partners)
  ratio = (1 - noisy[i]) / ((1 - noisy[i]) + (1 - noisy[j]))
  np.testing.assert_allclose(mixed.ratios, ratio, rtol=1e-12)
  y = np.eye(5)[LABELS]
  np.testing.assert_allclose(mixed.inputs[:, 0], ratio * i + (1 - ratio) * j)
  np.testing.assert_allclose(
    mixed.labels, ratio[:, None] * y + (1 - ratio)[:, None] * y[j], rtol=1e-6
  )


def test_settings_of_dynamic_baselines_are_checked():
  with pytest.raises(ValueError, match="prediction='firm'"):
    dynamic.bootstrapped(LOGITS, LABELS, np.zeros(12), prediction="firm")
  with pytest.raises(ValueError, match="noisy"):
    dynamic.bootstrapped(LOGITS, LABELS, np.zeros(3), prediction="hard")
  with pytest.raises(ValueError, match="num_examples=0"):
    dynamic.init_memory(0)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_bad_label_is_refused_or_nan(name):
  loss = losses.make(name, **OPTIONS[name])
  for wrong in (-1, LOGITS.shape[1]):
    bad = np.array(LABELS)
    bad[0] = wrong
    found = np.asarray(jax.jit(loss)(LOGITS, bad))
    assert np.isnan(found[0]) and np.isfinite(found[1:]).all()
    with pytest.raises(ValueError, match=f"labels holds {wrong}"):
      loss(LOGITS, bad)
