"""Shingles, signatures and bands against what they estimate."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from locojax.data import near_duplicates as near


def _text(rng, num=400, words=5000):
  return " ".join(f"w{i}" for i in rng.integers(0, words, num))


def _changed(rng, text, share):
  words = text.split()
  for i in np.flatnonzero(rng.random(len(words)) < share):
    words[i] = f"new{rng.integers(1000)}"
  return " ".join(words)


def test_signatures_estimate_the_similarity():
  """Within four standard errors of the share that sets of words give."""
  rng = np.random.default_rng(0)
  for share in (0.0, 0.01, 0.05, 0.2):
    text = _text(rng)
    other = _changed(rng, text, share)
    runs = [
      set(zip(*(near.words_of(t)[i:] for i in range(5)))) for t in (text, other)
    ]
    exact = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
    found = [near.shingles(t) for t in (text, other)]
    assert near.jaccard(*found) == exact
    made = [near.signature(f, permutations=1024, seed=1) for f in found]
    error = np.sqrt(exact * (1 - exact) / 1024)
    assert abs(near.similarity(*made) - exact) <= 4 * error + 1e-12


def test_texts_meet_as_often_as_they_should():
  assert near.chance_of_meeting(0.8, permutations=128, bands=16) > 0.94
  rng, met = np.random.default_rng(2), []
  text = _text(rng, 200)
  other = _changed(rng, text, 0.05)
  found = [near.shingles(t) for t in (text, other)]
  for seed in range(60):
    made = [near.signature(f, permutations=32, seed=seed) for f in found]
    keys = [set(near.band_keys(m, 8)) for m in made]
    met.append(bool(keys[0] & keys[1]))
  chance = near.chance_of_meeting(
    near.jaccard(*found), permutations=32, bands=8
  )
  assert abs(np.mean(met) - chance) < 4 * np.sqrt(chance * (1 - chance) / 60)


def test_the_earliest_stays_in_any_order():
  rng = np.random.default_rng(1)
  first, lone = _text(rng), _text(rng)
  texts = {"a": first, "b": lone, "c": first + " end", "d": first, "e": ""}
  found = near.near_duplicates(texts)
  assert {n: other for n, (other, _) in found.items()} == {"c": "a", "d": "a"}
  assert found["d"][1] == 1.0 and found["c"][1] > 0.9
  for order in itertools.islice(itertools.permutations(texts), 0, 120, 17):
    assert near.near_duplicates({n: texts[n] for n in order}) == found


def test_formulas_count():
  texts = {"a": r"so $x = \frac{1}{2}$", "b": r"so $x = \frac{1}{3}$"}
  assert near.near_duplicates(texts) == {}
  assert near.jaccard(near.shingles(""), near.shingles("!  ?")) == 0
  assert near.shingles("").size == 0 and near.shingles("one two").size == 1


def test_hashes_are_those_of_every_process():
  code = (
    "from locojax.data import near_duplicates as n;"
    "s = n.shingles('a b c d e f g');"
    "print(s.tolist(), n.signature(s, permutations=4).tolist())"
  )
  told = set()
  for seed in ("1", "2"):
    env = {**os.environ, "PYTHONHASHSEED": seed}
    told.add(subprocess.check_output([sys.executable, "-c", code], env=env))
  assert len(told) == 1


def test_bad_values_are_refused():
  some = near.shingles("a b c")
  for call, words in (
    (lambda: near.shingles("a b", n=0), "n=0"),
    (lambda: near.signature(some[:0]), "found is empty"),
    (lambda: near.signature(some, permutations=0), "permutations=0"),
    (lambda: near.band_keys(near.signature(some), 3), "bands"),
    (lambda: near.pairs_in([], threshold=1.5), "threshold=1.5"),
  ):
    with pytest.raises(ValueError, match=words):
      call()
