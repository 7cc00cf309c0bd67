"""Tree search: exhaustive with budget enough, and what a budget leaves."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import decode
from tests.decode import toy

close = np.testing.assert_allclose
same = np.testing.assert_array_equal
PROMPTS = [[1, 2], [3, 4]]
STOPS = (0, 4)
# A text of 3 tokens of which 4 go on: 1 + 4 + 16 texts are extended.
SETTINGS = dict(
  num_results=110, node_budget=24, max_new_tokens=3, width=4, stop_tokens=STOPS
)


@functools.lru_cache
def _program(**settings):
  def run(prompts, extra):
    cache, logits = toy.prefill(prompts)
    return decode.tree_search(toy.step, cache, logits, **settings, **extra)

  return jax.jit(run)


def _run(prompts=PROMPTS, extra=None, **settings):
  return _program(**{**SETTINGS, **settings})(jnp.asarray(prompts), extra or {})


@functools.lru_cache
def _beams():
  cache, logits = toy.prefill(PROMPTS)
  return jax.jit(
    lambda: decode.beam_search(
      toy.step,
      cache,
      logits,
      beam_size=110,
      max_new_tokens=3,
      stop_tokens=STOPS,
    )
  )()


def test_with_budget_enough_it_is_beam_search_over_all_texts():
  out, want = _run(), _beams()
  assert np.all(np.sum(out.valid, axis=1) == 106)
  close(out.scores, want.scores, rtol=1e-4)
  for name in ("tokens", "lengths", "finished"):
    same(getattr(out, name)[:, :20], getattr(want, name)[:, :20])
  close(out.log_probs[:, :20], want.log_probs[:, :20], rtol=1e-4, atol=1e-6)
  assert not np.any(out.tokens[:, 106:]) and not np.any(out.lengths[:, 106:])


def test_a_small_budget_finds_true_texts_and_the_best_ones():
  out, want = _run(num_results=3, node_budget=4), _beams()
  assert int(out.num_steps) == 1
  assert np.all(np.diff(out.scores, axis=1) <= 0)
  for row in range(2):
    known = {
      tuple(t): s for t, s in zip(want.tokens[row].tolist(), want.scores[row])
    }
    for k in range(3):
      if bool(out.valid[row, k]):
        text = tuple(out.tokens[row, k].tolist())
        close(out.scores[row, k], known[text], rtol=1e-4)
  enough = _run(num_results=3)
  close(enough.scores, want.scores[:, :3], rtol=1e-4)
  assert int(enough.num_steps) < 6  # it ends once nothing better can come


def test_rows_constraints_and_few_children():
  only = jnp.array([True, False])
  rule = decode.never([0, 1], toy.VOCAB)
  out = _run(
    extra={"rows": only, "constraint": rule}, num_results=5, num_children=2
  )
  assert not np.any(out.valid[1]) and not np.any(out.tokens[1])
  found = np.asarray(out.tokens[0])[np.asarray(out.valid[0])]
  lengths = np.asarray(out.lengths[0])[np.asarray(out.valid[0])]
  assert len(found)
  for text, length in zip(found, lengths):
    assert not {0, 1} & set(text[:length].tolist())


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match="node_budget=0"):
    _run(node_budget=0)
  with pytest.raises(ValueError, match="width=9"):
    _run(node_budget=4, width=9)
  with pytest.raises(ValueError, match="num_children=7"):
    _run(num_children=7)
