"""Questions found in texts, against a search word by word."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from locojax.data import contamination


def _slow(text, question, n):
  """Share of the question's distinct n-grams that the text has."""
  runs = lambda words: {
    tuple(words[i : i + n]) for i in range(len(words) - n + 1)
  }
  mine = runs(contamination.words_of(question))
  found = mine & runs(contamination.words_of(text))
  return len(found) / len(mine) if mine else 0.0


def test_the_same_as_word_by_word():
  rng = np.random.default_rng(0)
  draw = lambda num: " ".join(f"w{i}" for i in rng.integers(0, 4, num))
  questions = {f"q{i}": draw(9) for i in range(20)}
  index = contamination.Index(questions, n=5, shortest=5)
  for _ in range(20):
    text = draw(60)
    wanted = {n: _slow(text, q, 5) for n, q in questions.items()}
    found = dict(pickle.loads(pickle.dumps(index)).overlaps(text))
    assert found == {n: s for n, s in wanted.items() if s}


def test_blanks_signs_and_case_do_not_count():
  question = "Find the value of $x + 1$ if x is two and y is three or four."
  text = (
    "...\nfind THE value of\n\\(x+1\\), if x is two and y is  three or four!"
  )
  assert contamination.ngram_overlap([text], {"q": question}) == {"q": 1.0}
  assert contamination.ngram_overlap(["value of x"], {"q": question}) == {}


def test_short_questions_are_looked_for_whole_or_counted():
  questions = {
    "short": "what is one and one",
    "whole": "What is the sum of one and two now?",
    "long": "a b c d e f g h i j k l m n",
  }
  index = contamination.Index(questions)
  assert index.unchecked == ["short"]
  found = {
    o.name: o.share
    for o in index.overlaps("so what is the sum of one and two now")
  }
  assert found == {"whole": 1.0}
  sets = {"short": "s", "whole": "s", "long": "t"}
  rows = contamination.table(index, found, sets)
  assert rows == [
    {
      "set": "s",
      "questions": 2,
      "checked": 1,
      "found": 1,
      "whole": 1,
      "share": 1.0,
    },
    {
      "set": "t",
      "questions": 1,
      "checked": 1,
      "found": 0,
      "whole": 0,
      "share": 0.0,
    },
  ]


def test_no_questions_and_bad_lengths():
  assert contamination.Index({}).overlaps("a b") == []
  for settings in ({"n": 0}, {"n": 4, "shortest": 5}):
    with pytest.raises(ValueError, match=next(reversed(settings))):
      contamination.Index({}, **settings)
