"""Constraints: what they allow is what their words say, by brute force."""

from __future__ import annotations

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import decode

VOCAB = 4


def _walk_all(constraint, texts, vocab_size=VOCAB):
  """Allowed and ending tokens before each token of each text, `[N, T, V]`."""
  texts = jnp.asarray(texts)
  wide = lambda x: jnp.broadcast_to(x, (len(texts), vocab_size))

  def step(state, at):
    position, tokens = at
    seen = constraint.allowed(state, position), constraint.ending(state)
    return constraint.advance(state, tokens), tuple(map(wide, seen))

  steps = jnp.arange(texts.shape[1]), texts.T
  _, seen = jax.lax.scan(step, constraint.start(len(texts)), steps)
  return [np.moveaxis(np.asarray(x), 0, 1) for x in seen]


def _walk(constraint, tokens):
  """The same of one text, `[T, V]`."""
  return [x[0] for x in _walk_all(constraint, [tokens])]


def test_by_position():
  table = np.array([[1, 0, 0, 0], [0, 1, 1, 0]])
  once, _ = _walk(decode.by_position(table), [0, 1, 3])
  np.testing.assert_array_equal(once, [*table, np.ones(4)])
  again, _ = _walk(decode.by_position(table, periodic=True), [0, 1, 0])
  np.testing.assert_array_equal(again, [*table, table[0]])
  never, _ = _walk(decode.never([2, 3], VOCAB), [0, 0])
  np.testing.assert_array_equal(never, [[1, 1, 0, 0]] * 2)
  first, _ = _walk(decode.not_first([2], VOCAB), [0, 0])
  np.testing.assert_array_equal(first, [[1, 1, 0, 1], [1, 1, 1, 1]])


def test_a_trie_allows_its_sequences_and_nothing_else():
  words = [(0, 1), (0, 2, 3), (2,), (0, 1, 3)]
  trie = decode.trie(words, VOCAB, num_nodes=9, fanout=3)
  texts = list(itertools.product(range(VOCAB), repeat=3))
  allowed, _ = _walk_all(trie, texts)
  for text, masks in zip(texts, allowed):
    for length in (1, 2, 3):
      got = all(m[t] for m, t in zip(masks, text[:length]))
      assert got == any(w[:length] == text[:length] for w in words), text


def test_after_a_sequence_a_trie_may_be_free():
  trie = decode.trie([(0, 1), (0, 1, 2), (3,)], VOCAB, then_free=True)
  allowed, _ = _walk(trie, [0, 1, 3, 0])
  np.testing.assert_array_equal(
    allowed, [[1, 0, 0, 1], [0, 1, 0, 0], [1] * 4, [1] * 4]
  )


def test_stop_sequences_are_found_wherever_they_begin():
  stops = [(0, 1, 0, 2), (1, 0), (3, 3), (0, 2)]
  rule = decode.stop_sequences(stops, VOCAB)
  texts = list(itertools.product(range(VOCAB), repeat=4))
  allowed, ending = _walk_all(rule, texts)
  assert allowed.all()
  for text, ends in zip(texts, ending):
    for i, token in itertools.product(range(4), range(VOCAB)):
      seen = (*text[:i], token)
      want = any(seen[-len(s) :] == s for s in stops)
      assert ends[i, token] == want, seen


def test_an_automaton_has_a_state_for_each_row():
  rule = decode.automaton([[1, -1], [-1, 0]], starts=[0, 1])
  state = rule.start(4)  # two samples of each row
  np.testing.assert_array_equal(state, [0, 0, 1, 1])
  np.testing.assert_array_equal(
    rule.allowed(state, 0), [[1, 0], [1, 0], [0, 1], [0, 1]]
  )
  state = rule.advance(state, jnp.array([0, 1, 0, 1]))
  np.testing.assert_array_equal(state, [1, 0, 1, 0])


PIECES = ["", "a", "ab", "b", "bc", "c", "é", b"\xc3", b"\xa9", "abcé"]


@pytest.mark.parametrize("prefix", ["abc", "cé", "", "b"])
def test_a_text_prefix_is_required_in_whatever_tokens(prefix):
  rule = decode.text_prefix(PIECES, [prefix], max_bytes=8)
  raw = [p.encode() if isinstance(p, str) else p for p in PIECES]
  wanted = prefix.encode()
  texts = list(itertools.product(range(1, len(PIECES)), repeat=3))
  allowed, _ = _walk_all(rule, texts, len(PIECES))
  for text, masks in zip(texts, allowed):
    done = b""
    for token, mask in zip(text, masks):
      for other, piece in enumerate(raw):
        left = wanted[len(done) :]
        fits = piece.startswith(left) or (left.startswith(piece) and piece)
        assert mask[other] == bool(fits), (done, piece)
      if not mask[token]:
        break
      done += raw[token]


def test_other_tables_of_the_same_shape_compile_nothing():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def first(rule):
    return rule.allowed(rule.start(2), 0)

  rule = decode.text_prefix(PIECES, ["ab", "c"], max_bytes=4)
  other = decode.with_prefixes(rule, ["c", "ab"], max_bytes=4)
  np.testing.assert_array_equal(first(rule), first(other)[::-1])
  make = lambda words: decode.trie(words, VOCAB, num_nodes=6, fanout=4)

  @jax.jit
  @chex.assert_max_traces(n=1)
  def second(rule):
    return rule.allowed(rule.start(1), 0)[0]

  np.testing.assert_array_equal(second(make([(0, 1)])), [1, 0, 0, 0])
  np.testing.assert_array_equal(second(make([(2,), (3, 1, 2)])), [0, 0, 1, 1])


def test_all_of_is_the_conjunction_and_ends_with_any():
  trie = decode.trie([(0, 1, 2), (0, 2), (3,)], VOCAB)
  rule = decode.all_of(
    trie, decode.never([3], VOCAB), decode.stop_sequences([(1,)], VOCAB)
  )
  assert rule.can_end and not decode.all_of(trie).can_end
  allowed, ending = _walk(rule, [0, 1])
  np.testing.assert_array_equal(allowed, [[1, 0, 0, 0], [0, 1, 1, 0]])
  np.testing.assert_array_equal(ending, [[0, 1, 0, 0]] * 2)


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: decode.by_position([1, 0]), r"table has shape \(2,\)"),
    (lambda: decode.by_position([[1], [0]]), "no token at position 1"),
    (lambda: decode.by_position([[1]], periodic=1), "periodic=1"),
    (lambda: decode.never([4], VOCAB), "token=4"),
    (lambda: decode.never([0], 0), "vocab_size=0"),
    (lambda: decode.automaton([0, 1]), "transitions have shape"),
    (lambda: decode.automaton([[0, 1]]), r"transitions=1.*\[-1, 1\)"),
    (lambda: decode.automaton([[0.5]]), "transitions has dtype"),
    (lambda: decode.automaton([[0]], starts=-1), "starts=-1"),
    (lambda: decode.automaton([[0]], ends=[True] * 2), "ends has shape"),
    (
      lambda: decode.automaton([[0]], starts=[0, 0]).start(3),
      "rows=3.*rows of starts=2",
    ),
    (lambda: decode.stop_sequences([], VOCAB), "sequences="),
    (lambda: decode.stop_sequences([(1,), ()], VOCAB), r"sequences\[1\]"),
    (lambda: decode.trie([(0, 9)], VOCAB), r"token of sequences\[0\]=9"),
    (lambda: decode.trie([(0, 1)], VOCAB, num_nodes=2), "num_nodes=2"),
    (lambda: decode.trie([(0,), (1,)], VOCAB, fanout=1), "fanout=1"),
    (lambda: decode.trie([(0,)], VOCAB, then_free="no"), "then_free='no'"),
    (lambda: decode.text_prefix("abc", ["a"]), "pieces='abc'"),
    (lambda: decode.text_prefix(["a"], "a"), "prefixes='a'"),
    (
      lambda: decode.text_prefix(["a"], ["aaa"], max_bytes=2),
      "prefixes=b'aaa'.*2 bytes",
    ),
    (lambda: decode.text_prefix(["a"], ["a"], max_bytes=0), "max_bytes=0"),
    (lambda: decode.all_of(), r"parts=\(\)"),
    (lambda: decode.all_of(3), "parts=3"),
  ],
)
def test_mistakes_are_named(call, words):
  with pytest.raises(ValueError, match=words):
    call()
