"""Filters of logits: worked numbers, ties, minus infinity, frequencies."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import decode

close = np.testing.assert_allclose
LOGITS = jnp.array([1.2, 0.9, 0.1, -0.5, -2.0])
INF = float("inf")


def _kept(logits):
  return np.flatnonzero(np.isfinite(np.asarray(logits))).tolist()


@pytest.mark.parametrize(
  ("p", "official", "nucleus"),
  [(0.4, 1, 1), (0.5, 1, 2), (0.8, 2, 3), (1.0, 5, 5)],
)
def test_top_p_of_the_two_rules(p, official, nucleus):
  probs = [0.43532487, 0.32249659, 0.14490706, 0.07952668, 0.01774480]
  close(jnp.exp(decode.log_softmax(LOGITS)), probs, rtol=1e-6)
  for rule, num in (("official", official), ("nucleus", nucleus)):
    got = decode.keep_top_p(LOGITS, p, rule=rule)
    assert _kept(got) == list(range(num)), rule
    close(got[:num], LOGITS[:num])
    traced = jax.jit(lambda x, p, r=rule: decode.keep_top_p(x, p, rule=r))
    np.testing.assert_array_equal(got, traced(LOGITS, p))


def test_temperature_and_top_p_of_minerva():
  logits = jnp.array([2, 1, 0.5, 0, -1])
  cool = decode.scale(logits, 0.6)
  want = [0.761398588875, 0.143809617473, 0.06249940212, 0.027162128194]
  close(jnp.exp(decode.log_softmax(cool))[:4], want, rtol=1e-6)
  sampler = decode.Sampler(temperature=0.6, top_p=0.95)
  got = jnp.exp(decode.log_softmax(sampler.filter(logits)))
  want = [0.786806450845, 0.14860854272, 0.064585006435, 0, 0]
  close(got, want, rtol=1e-6)


def _nucleus(logits, p):
  """The fewest best tokens, of equals the lower, that sum to p or more."""
  probs = np.exp(logits - np.log(np.sum(np.exp(logits))))
  order, total, kept = np.argsort(-logits, kind="stable"), 0.0, []
  for token in order:
    if total >= p:
      break
    kept.append(int(token))
    total += probs[token]
  return sorted(kept)


def test_nucleus_is_its_definition_in_any_order_and_with_ties():
  rng = np.random.default_rng(0)
  logits = np.round(rng.normal(size=(40, 9)) * 2, 1)
  logits[::3, 4] = logits[::3, 2]
  for p in (0.13, 0.41, 0.77):
    got = decode.keep_top_p(jnp.asarray(logits, jnp.float32), p)
    assert [_kept(g) for g in got] == [_nucleus(row, p) for row in logits]


def test_ties_go_to_the_lower_token():
  tied = jnp.array([1.0, 3.0, 3.0, 3.0, 0.0])
  assert _kept(decode.keep_top_k(tied, 2)) == [1, 2]
  assert _kept(decode.keep_top_p(tied, 0.5)) == [1, 2]
  assert _kept(decode.scale(tied, 0.0)) == [1]
  assert int(decode.greedy(tied)) == 1
  assert _kept(decode.keep_top_p(tied, 0.1, rule="official")) == [1, 2, 3]


def test_top_k_and_min_p():
  assert _kept(decode.keep_top_k(LOGITS[::-1], 2)) == [3, 4]
  for k in (0, 5, 9):
    close(decode.keep_top_k(LOGITS, k), LOGITS)
  assert _kept(decode.keep_min_p(LOGITS, 0.3)) == [0, 1, 2]
  assert _kept(decode.keep_min_p(LOGITS, 0.0)) == [0, 1, 2, 3, 4]
  assert _kept(decode.keep_min_p(LOGITS, 1.0)) == [0]


ALL = decode.Sampler(0.7, top_k=3, top_p=0.9, min_p=0.05)


@pytest.mark.parametrize("rule", decode.TOP_P_RULES)
def test_minus_infinity_is_never_nan_and_never_drawn(rule):
  logits = jnp.array([[-INF, 1.0, -INF, 0.5], [-INF] * 4, [0, 0, -INF, -INF]])
  keys = jax.random.split(jax.random.key(0), 3)
  for sampler in (
    decode.Sampler(0.7, top_k=3, top_p=0.9, top_p_rule=rule, min_p=0.05),
    decode.Sampler(top_p=0.999, top_p_rule=rule),
    decode.GREEDY,
  ):
    assert not np.any(np.isnan(sampler.filter(logits)))
    choice = decode.choose(keys, logits, sampler)
    assert not np.any(np.isnan(choice.log_probs))
    assert int(choice.tokens[0]) in (1, 3) and int(choice.tokens[2]) in (0, 1)
    assert float(choice.filtered_log_probs[1]) == -INF


def test_log_probs_before_and_after():
  logits = jnp.stack([LOGITS, LOGITS[::-1]])
  allowed = jnp.array([False, True, True, True, True])
  choice = decode.choose(None, logits, decode.GREEDY, allowed)
  np.testing.assert_array_equal(choice.tokens, [1, 4])
  close(choice.log_probs, np.log([0.32249659, 0.43532487]), rtol=1e-6)
  np.testing.assert_array_equal(choice.filtered_log_probs, [0, 0])
  keys = jax.random.split(jax.random.key(1), 2)
  choice = decode.choose(keys, logits, ALL, allowed)
  after = decode.log_softmax(ALL.filter(jnp.where(allowed, logits, -INF)))
  rows = jnp.arange(2)
  close(choice.filtered_log_probs, after[rows, choice.tokens], rtol=1e-6)


def test_draws_have_the_filtered_frequencies():
  num = 20_000
  sampler = decode.Sampler(0.8, top_p=0.95)
  draw = jax.jit(
    lambda k: (
      decode.choose(
        jax.random.split(k, num), jnp.tile(LOGITS, (num, 1)), sampler
      ).tokens
    )
  )
  seen = np.bincount(draw(jax.random.key(3)), minlength=5)
  want = np.exp(decode.log_softmax(sampler.filter(LOGITS))) * num
  assert seen[want == 0].sum() == 0 and (want > 0).sum() == 4
  kept = want > 0
  chi_square = np.sum((seen - want)[kept] ** 2 / want[kept])
  assert chi_square < 16.3  # 3 degrees of freedom, 0.1 %


def test_cold_is_greedy_and_a_traced_setting_compiles_once():
  logits = jax.random.normal(jax.random.key(2), (50, 5))
  keys = jax.random.split(jax.random.key(0), 50)
  draw = jax.jit(
    chex.assert_max_traces(n=1)(lambda s: decode.choose(keys, logits, s).tokens)
  )
  best = decode.greedy(logits)
  for temperature in (0.0, 1e-30, 1e-6):
    np.testing.assert_array_equal(draw(decode.Sampler(temperature)), best)
  for sampler in (decode.Sampler(1.3, top_p=0.6), decode.Sampler(2.0)):
    eager = decode.choose(keys, logits, sampler).tokens
    np.testing.assert_array_equal(draw(sampler), eager)
  assert decode.Sampler(top_k=1).is_greedy and decode.GREEDY.is_greedy
  np.testing.assert_array_equal(
    decode.choose(None, logits, decode.Sampler(top_k=1)).tokens, best
  )


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    (dict(temperature=-0.1), "temperature=-0.1"),
    (dict(temperature=float("nan")), "temperature=nan"),
    (dict(top_k=-1), "top_k=-1"),
    (dict(top_k=1.5), "top_k=1.5"),
    (dict(top_p=0.0), r"top_p=0.0.*\(0, 1\]"),
    (dict(top_p=1.1), "top_p=1.1"),
    (dict(top_p="half"), "top_p='half'"),
    (dict(top_p_rule="offical"), "did you mean 'official'"),
    (dict(min_p=2.0), "min_p=2.0"),
  ],
)
def test_bad_settings_are_named(settings, words):
  with pytest.raises(ValueError, match=words):
    decode.Sampler(**settings)


def test_bad_arguments_of_filters_are_named():
  for call, words in (
    (lambda: decode.keep_top_p(LOGITS, -1), "top_p=-1"),
    (lambda: decode.keep_top_p(LOGITS, 0.5, rule="x"), "top_p_rule='x'"),
    (lambda: decode.keep_top_k(LOGITS, -2), "top_k=-2"),
    (lambda: decode.keep_min_p(LOGITS, 1.5), "min_p=1.5"),
    (lambda: decode.scale(LOGITS, -1.0), "temperature=-1.0"),
    (lambda: decode.choose(None, LOGITS[None], ALL), "key=None"),
  ):
    with pytest.raises(ValueError, match=words):
      call()
