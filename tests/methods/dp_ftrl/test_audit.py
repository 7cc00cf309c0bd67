"""Audits: bounds that hold, and faults that are found."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from experiments.dp_ftrl import audit as audit_experiment
from locojax.methods import dp_ftrl
from locojax.methods.dp_ftrl import audit

KEY = jax.random.key(4)


def test_all_right_is_a_power_of_the_odds():
  eps = math.log(0.05 ** (1 / 100) / (1 - 0.05 ** (1 / 100)))
  p = dp_ftrl.one_run_p_value(100, 100, 100, eps, 0.0)
  assert p == pytest.approx(0.05, rel=1e-9)
  scores, included = np.arange(100.0), np.arange(100) >= 50
  found = dp_ftrl.one_run_eps(scores, included, num_guesses=100, delta=0.0)
  assert found == pytest.approx(eps, abs=1e-6)


def test_delta_costs_what_the_theorem_says():
  m, r, v, eps, delta = 60, 40, 30, 0.7, 1e-4
  q = math.exp(eps) / (1 + math.exp(eps))
  tail = lambda k: sum(stats.binom.pmf(j, r, q) for j in range(k, r + 1))
  worst = max((tail(v - i) - tail(v)) / i for i in range(1, v + 1))
  expected = tail(v) + 2 * m * delta * worst
  assert dp_ftrl.one_run_p_value(m, r, v, eps, delta) == pytest.approx(
    expected, rel=1e-9
  )


def test_the_bound_holds_for_randomised_response():
  eps, rng, above = 1.0, np.random.default_rng(0), 0
  for _ in range(300):
    coins = rng.random(200) < 0.5
    told = coins ^ (rng.random(200) > math.exp(eps) / (1 + math.exp(eps)))
    scores = told + 0.1 * rng.random(200)
    bound = dp_ftrl.one_run_eps(scores, coins, num_guesses=100, delta=0.0)
    above += bound > eps
  assert above <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_the_estimate_finds_the_eps_of_gaussians():
  rng = np.random.default_rng(1)
  included = rng.random(40_000) < 0.5
  scores = 1.5 * included + rng.normal(size=40_000)
  exact = dp_ftrl.zcdp_to_eps(1.5**2 / 2, 1e-5)
  found = dp_ftrl.gaussian_eps(scores, included, delta=1e-5)
  assert found == pytest.approx(exact, rel=0.02)


def test_matched_filter_is_unbiased_and_the_best():
  rng = np.random.default_rng(2)
  root = rng.normal(size=(6, 6))
  covariance, comes = root @ root.T + np.eye(6), np.eye(6)[[0]] + np.eye(6)[3]
  weights = dp_ftrl.matched_filter(covariance, comes)
  assert (weights * comes).sum() == pytest.approx(1)
  variance = lambda w: (w @ covariance @ w.T).item()
  for _ in range(20):
    other = weights + 0.1 * rng.normal(size=weights.shape)
    other /= (other * comes).sum()
    assert variance(other) >= variance(weights)


def _loss(params, model_state, batch, key):
  del key
  each = jnp.square(batch["x"] @ params["w"]) * batch["mask"]
  return each.sum(), ({}, model_state)


def test_a_canary_sends_its_direction_and_others_send_what_they_did():
  params = {"w": jnp.ones((7,))}
  rng = np.random.default_rng(3)
  x = rng.normal(size=(2, 1, 3, 7)).astype(np.float32)
  mask = np.ones((2, 1, 3), np.float32)
  mask[1, 0, 1:] = 0
  canary = np.zeros((2, 1, 3), np.int32)
  canary[1, 0, 0] = 5
  clip = dp_ftrl.Clip(0.25)
  tx = optax.sgd(1.0)
  settings = dict(client_tx=optax.sgd(0.1), clip=clip, clients_per_chunk=1)
  first = dp_ftrl.init_state(params, tx, clip=clip, key=KEY)
  loss = dp_ftrl.canary_loss(_loss, key=KEY)
  batch = {"x": x, "mask": mask, "canary": canary}
  moved = dp_ftrl.make_step(loss, tx, **settings)(first, batch)[0].params
  only = {"x": x, "mask": mask, "client_mask": np.array([1.0, 0.0])}
  plain = dp_ftrl.make_step(_loss, tx, **settings)(first, only)[0].params
  direction = dp_ftrl.canary_direction(KEY, 4, params)["w"]
  np.testing.assert_allclose(
    moved["w"] - plain["w"], 0.25 * direction, atol=1e-6
  )
  assert float(jnp.linalg.norm(direction)) == pytest.approx(1, abs=1e-6)


def test_a_sound_run_stays_below_and_a_broken_one_is_found():
  sound = audit_experiment.audit(
    "tree_honaker", 0.5, 1.0, num_canaries=128, seed=0
  )
  assert sound["bound"] < dp_ftrl.zcdp_to_eps(0.5, audit_experiment.DELTA)
  broken = audit_experiment.audit("none", 0.01, 1.0, num_canaries=128, seed=0)
  stated = dp_ftrl.zcdp_to_eps(0.01, audit_experiment.DELTA)
  assert broken["bound"] > stated and broken["accuracy"] == 100


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(num_guesses=3), "num_guesses=3"),
    (dict(num_guesses=12), "num_guesses=12"),
    (dict(confidence=2), "confidence=2"),
    (dict(scores=np.full(10, np.nan)), "finite"),
    (dict(included=np.ones(3)), "included"),
  ],
)
def test_bad_settings_are_named(changes, words):
  settings = dict(
    scores=np.arange(10.0), included=np.ones(10), num_guesses=4, delta=0.0
  )
  settings.update(changes)
  scores, included = settings.pop("scores"), settings.pop("included")
  with pytest.raises(ValueError, match=words):
    audit.one_run_eps(scores, included, **settings)
