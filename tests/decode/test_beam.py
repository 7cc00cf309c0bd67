"""Beam search: exhaustive when it can be, and an exit that loses nothing."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import decode
from tests.decode import toy

close = np.testing.assert_allclose
PROMPTS = [[1, 2], [3, 4]]
STOPS = (0, 4)


@functools.lru_cache
def _program(size, num, stops, penalty, early_exit):
  def run(prompts, extra):
    cache, logits = toy.prefill(prompts)
    return decode.beam_search(
      toy.step,
      cache,
      logits,
      beam_size=size,
      max_new_tokens=num,
      stop_tokens=stops,
      penalty=penalty,
      early_exit=early_exit,
      **extra,
    )

  return jax.jit(run)


def _run(size, num=3, penalty="gnmt", stops=STOPS, early_exit=True, **kwargs):
  prompts = jnp.asarray(kwargs.pop("prompts", PROMPTS))
  return _program(size, num, stops, penalty, early_exit)(prompts, kwargs)


def _divisor(length, penalty):
  table = {"gnmt": ((5 + length) / 6) ** 0.6, "mean": length, "none": 1.0}
  return table[penalty]


def _all_texts(prompt, num, penalty, ends):
  """Every text that ends by `ends`, or has `num` tokens, with its score."""
  found = []

  def go_on(text, total):
    for token, p in enumerate(toy.log_probs(prompt + text)):
      longer, sum_ = [*text, token], total + p
      if ends(longer) or len(longer) == num:
        score = sum_ / _divisor(len(longer), penalty)
        found.append((score, longer, ends(longer)))
      else:
        go_on(longer, sum_)

  go_on([], 0.0)
  return sorted(found, reverse=True)


def _texts(out, row):
  return [
    out.tokens[row, k, : int(out.lengths[row, k])].tolist()
    for k in range(out.tokens.shape[1])
    if bool(out.valid[row, k])
  ]


@pytest.mark.parametrize("penalty", decode.PENALTIES)
def test_with_beams_enough_the_search_is_exhaustive(penalty):
  out = _run(120, penalty=penalty)  # 2 + 4 (2 + 4 * 6) = 106 texts
  assert np.all(np.diff(out.scores[:, :106]) <= 0)
  ends = lambda text: text[-1] in STOPS
  for row, prompt in enumerate(PROMPTS):
    want = _all_texts(prompt, 3, penalty, ends)
    assert len(want) == int(np.sum(out.valid[row])) == 106
    close(out.scores[row, :106], [s for s, _, _ in want], rtol=1e-4)
    assert _texts(out, row)[:20] == [text for _, text, _ in want[:20]]
    got = out.finished[row, :20].tolist()
    assert got == [ended for _, _, ended in want[:20]]
  assert np.all(np.isneginf(out.scores[:, 106:]))
  assert not np.any(out.tokens[:, 106:]) and not np.any(out.lengths[:, 106:])
  sums = np.sum(out.log_probs, axis=-1)[:, :106]
  divisors = _divisor(np.asarray(out.lengths[:, :106], float), penalty)
  close(sums / divisors, out.scores[:, :106], rtol=1e-4)


def test_sequences_that_stop_end_beams_as_tokens_do():
  rule = decode.all_of(decode.stop_sequences([(1,), (2, 3)], toy.VOCAB))
  out = _run(160, stops=(), constraint=rule)
  ends = lambda text: text[-1] == 1 or text[-2:] == [2, 3]
  want = _all_texts(PROMPTS[0], 3, "gnmt", ends)
  num = len(want)
  assert num == int(np.sum(out.valid[0])) < 160
  close(out.scores[0, :num], [s for s, _, _ in want], rtol=1e-4)
  assert _texts(out, 0)[:20] == [text for _, text, _ in want[:20]]


def test_one_beam_without_a_penalty_is_greedy():
  prompts = [list(p) for p in itertools.product((1, 2, 3, 5), repeat=2)]
  out = _run(1, num=6, penalty="none", prompts=prompts)
  cache, logits = toy.prefill(prompts)
  want = jax.jit(
    lambda: decode.generate(
      toy.step, cache, logits, max_new_tokens=6, stop_tokens=STOPS
    )
  )()
  np.testing.assert_array_equal(out.tokens, want.tokens)
  np.testing.assert_array_equal(out.lengths, want.lengths)
  np.testing.assert_array_equal(out.finished, want.finished)
  close(out.scores, np.sum(want.log_probs, axis=-1), rtol=1e-5)
  assert np.ptp(want.lengths) > 0


@pytest.mark.parametrize("penalty", ["gnmt", "mean"])
def test_early_exit_loses_nothing(penalty):
  short, full = (
    _run(2, 12, penalty, (1, 2, 3), early_exit=e) for e in (True, False)
  )
  assert int(short.num_steps) < int(full.num_steps) == 11
  close(short.scores, full.scores, rtol=1e-6)
  for name in ("tokens", "lengths", "finished", "valid"):
    np.testing.assert_array_equal(getattr(short, name), getattr(full, name))


def test_a_row_depends_on_no_other_row():
  both = _run(3, num=12)
  for row, prompt in enumerate(PROMPTS):
    alone = _run(3, num=12, prompts=[prompt])
    np.testing.assert_array_equal(alone.tokens[0], both.tokens[row])
    close(alone.scores[0], both.scores[row], rtol=1e-6)
  some = _run(3, num=12, rows=jnp.array([True, False]))
  np.testing.assert_array_equal(some.tokens[0], both.tokens[0])
  assert not np.any(some.valid[1]) and not np.any(some.tokens[1])
  none = _run(3, num=12, rows=jnp.array([False, False]))
  assert int(none.num_steps) == 0 and not np.any(none.valid)


def test_a_constraint_limits_the_texts():
  words = [(2, 1, 0), (2, 3, 0), (5, 0)]
  out = _run(4, num=5, stops=(0,), constraint=decode.trie(words, toy.VOCAB))
  np.testing.assert_array_equal(out.valid, [[1, 1, 1, 0]] * 2)
  for row, prompt in enumerate(PROMPTS):
    assert {tuple(t) for t in _texts(out, row)} == set(words)
    best = _texts(out, row)[0]
    total = sum(
      toy.log_probs(prompt + best[:t])[best[t]] for t in range(len(best))
    )
    close(out.scores[row, 0], total / _divisor(len(best), "gnmt"), rtol=1e-4)
  assert np.all(out.finished[:, :3])


def test_worked_numbers_of_the_penalty():
  got = decode.length_penalty(jnp.array([1, 5, 10, 20]))
  close(got, [1, 1.3586551827, 1.7328621079, 2.3543620837], rtol=1e-6)
  close(decode.length_penalty(7, "mean"), 7)
  close(decode.length_penalty(7, "none"), 1)


def _search(**kwargs):
  settings = dict(beam_size=2, max_new_tokens=2)
  return decode.beam_search(
    toy.step, toy.cache(2), jnp.zeros((2, 6)), **{**settings, **kwargs}
  )


@pytest.mark.parametrize(
  ("kwargs", "words"),
  [
    (dict(beam_size=0), "beam_size=0"),
    (dict(max_new_tokens=-1), "max_new_tokens=-1"),
    (dict(stop_tokens=[7]), "stop_tokens=7"),
    (dict(pad_token=-1), "pad_token=-1"),
    (dict(penalty="gmnt"), "did you mean 'gnmt'"),
    (dict(alpha=-0.5), "alpha=-0.5"),
    (dict(rows=jnp.ones((1,))), "rows has shape"),
    (dict(early_exit=None), "early_exit=None"),
    (dict(axes=0), "'blocks'"),
  ],
)
def test_mistakes_are_named(kwargs, words):
  with pytest.raises(ValueError, match=words):
    _search(**kwargs)
