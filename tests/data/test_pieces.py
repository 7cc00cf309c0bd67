"""SentencePiece tokenizers."""

from __future__ import annotations

import numpy as np
import pytest

from locojax.data import pieces, scenes

TEXTS = [scenes.caption(c, i % 4) for i, c in enumerate(scenes.COMBINATIONS)]


@pytest.fixture(scope="module")
def tokenizer():
  """A small model of the scenes' captions."""
  return pieces.train(TEXTS, vocab_size=120)


def test_a_text_comes_back(tokenizer):
  tokens, mask = tokenizer.encode(TEXTS[:50], 40)
  for text, row, used in zip(TEXTS, tokens, mask):
    assert tokenizer.decode(row) == text
    n = used.sum()
    assert row[n - 1] == pieces.EOS and (row[n:] == pieces.EOS).all()
    assert (row[: n - 1] != pieces.EOS).all()


def test_long_texts_still_end(tokenizer):
  tokens, mask = tokenizer.encode([" ".join(TEXTS[:5])], 8)
  assert tokens[0, -1] == pieces.EOS and mask.all()
  assert pieces.fixed_length([2, 3, 4], 2, sticky=False).tolist() == [2, 3]


def test_saved_is_loaded_and_case_is_dropped(tokenizer, tmp_path):
  tokenizer.save(tmp_path / "m.model")
  again = pieces.load(tmp_path / "m.model")
  a, b = (
    tokenizer.encode(["A Red CIRCLE"], 9),
    again.encode(["a red circle"], 9),
  )
  np.testing.assert_array_equal(a[0], b[0])
  assert again.vocab_size == tokenizer.vocab_size <= 120
  assert again.piece(pieces.EOS) == "</s>"


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="texts are empty"):
    pieces.train([" "], vocab_size=20)
  with pytest.raises(ValueError, match="length=0"):
    pieces.fixed_length([1], 0)
