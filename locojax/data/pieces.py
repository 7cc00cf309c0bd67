"""Tokenizers: SentencePiece, trained or loaded, or bytes; rows of fixed length.

SentencePiece needs the package `sentencepiece` (extra `limoe` or `minerva`).
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from locojax.core import checks, files

EOS = 1
_EXACT = {
  "normalization_rule_name": "identity",
  "add_dummy_prefix": False,
  "remove_extra_whitespaces": False,
  "allow_whitespace_only_pieces": True,
  "split_digits": True,
  "byte_fallback": True,
}


def _library() -> Any:
  try:
    import sentencepiece
  except ImportError as error:
    raise ImportError(
      "SentencePiece is missing: install locojax[limoe]."
    ) from error
  return sentencepiece


def fixed_length(
  ids: Sequence[int],
  length: int,
  *,
  eos: int = EOS,
  pad: int = EOS,
  sticky: bool = True,
) -> np.ndarray:
  """Tokens, an end token, and padding, `[length]` int32.

  Args:
    ids: of a text, without an end token.
    length: of the result.
    eos, pad: numbers of the end token and of padding.
    sticky: whether a text that is too long still ends in `eos`.

  Raises:
    ValueError: a length below 1.

  >>> [fixed_length([2] * n, 3).tolist() for n in (1, 2, 3)]
  [[2, 1, 1], [2, 2, 1], [2, 2, 1]]
  """
  checks.positive_int("length", length)
  row = [*ids, eos][:length]
  if sticky and len(row) == length:
    row[-1] = eos
  return np.array(row + [pad] * (length - len(row)), np.int32)


class Pieces:
  """A SentencePiece model: texts to rows of tokens and back.

  Attributes:
    vocab_size: number of pieces.
  """

  def __init__(self, model: bytes, *, lower_case: bool = True):
    """Takes a serialised model (see `train`, `load`)."""
    self.model, self.lower_case = bytes(model), lower_case
    self._processor = _library().SentencePieceProcessor(model_proto=self.model)
    self.vocab_size = self._processor.vocab_size()

  def encode(
    self, texts: Iterable[str], length: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """`(tokens, mask)` `[texts, length]`; the mask counts the first end token.

    Raises:
      ValueError: a bad length.
    """
    texts = [t.lower() if self.lower_case else t for t in texts]
    rows = [self._processor.encode(t) for t in texts]
    tokens = np.stack([fixed_length(r, length) for r in rows])
    used = np.array([min(len(r) + 1, length) for r in rows])
    return tokens, (np.arange(length) < used[:, None]).astype(np.int32)

  @property
  def eod(self) -> int:
    """The token between two texts."""
    return EOS

  def ids(self, text: str) -> list[int]:
    """The tokens of a text, as many as it has."""
    text = text.lower() if self.lower_case else text
    return self._processor.encode(text)

  def decode(self, tokens: Sequence[int]) -> str:
    """The text up to the end token."""
    tokens = [int(t) for t in tokens]
    if EOS in tokens:
      tokens = tokens[: tokens.index(EOS)]
    return self._processor.decode(tokens)

  def piece(self, token: int) -> str:
    """The piece of a token, for figures."""
    return self._processor.id_to_piece(int(token))

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the model for `load` (and for any SentencePiece program)."""
    files.write(path, lambda file: file.write(self.model))


class Bytes:
  """A token for each byte of a text in UTF-8, and one between two texts.

  Attributes:
    vocab_size: 257.
    eod: 256.
  """

  vocab_size, eod = 257, 256

  def ids(self, text: str) -> list[int]:
    """The tokens of a text."""
    return list(text.encode())

  def decode(self, tokens: Sequence[int]) -> str:
    """The text up to the end token; bytes that are no text become `\ufffd`."""
    tokens = [int(t) for t in tokens]
    if self.eod in tokens:
      tokens = tokens[: tokens.index(self.eod)]
    return bytes(tokens).decode(errors="replace")


def train(
  texts: Iterable[str],
  *,
  vocab_size: int,
  lower_case: bool = True,
  exact: bool = False,
) -> Pieces:
  """A unigram model of the texts, with pad 0, end 1 and unknown 2.

  Args:
    texts: enough of them for `vocab_size` pieces.
    vocab_size: number of pieces, the three above among them.
    lower_case: whether texts are lower-cased, now and later.
    exact: whether decoding gives back any text, blanks and line breaks included
      (all but U+2581): digits are single pieces, and what is no piece is spelt
      in bytes, which takes 256 of the vocabulary.

  Raises:
    ValueError: no texts, or too few for the vocabulary.
  """
  checks.positive_int("vocab_size", vocab_size)
  texts = [t.lower() if lower_case else t for t in texts]
  if not any(map(str.strip, texts)):
    raise ValueError("texts are empty: there is nothing to train on.")
  out = io.BytesIO()
  try:
    _library().SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=out,
      vocab_size=vocab_size,
      pad_id=0,
      eos_id=EOS,
      unk_id=2,
      bos_id=-1,
      character_coverage=1.0,
      hard_vocab_limit=False,
      num_threads=1,
      minloglevel=2,
      **(_EXACT if exact else {}),
    )
  except RuntimeError as error:
    raise ValueError(
      f"vocab_size={vocab_size} is not allowed for these {len(texts)} texts: "
      f"{error}"
    ) from error
  return Pieces(out.getvalue(), lower_case=lower_case)


def load(path: str | pathlib.Path, *, lower_case: bool = True) -> Pieces:
  """A model from a file.

  Raises:
    FileNotFoundError: there is none.
  """
  return Pieces(pathlib.Path(path).read_bytes(), lower_case=lower_case)
