"""A SentencePiece tokenizer of source code that loses nothing.

Needs the package `sentencepiece` (extra `completion`).
"""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from locojax.core import checks, files

PAD, EOS, UNKNOWN = 0, 1, 2
NEWLINES = ("\n", "\r")
KINDS = ("bpe", "unigram")
# Pieces that no text can bring about.
_MARKS = ("<mask>", "<pre>", "<suf>", "<mid>")
_SPACE = "\u2581"  # how SentencePiece writes a blank
# A character of the private use area; itself, and what looks like a blank, are
# written as this and a digit.
_ESCAPE = "\uf8f1"
_SHOWN = {_ESCAPE: _ESCAPE + "0", _SPACE: _ESCAPE + "1"}
_BYTE = "<0x"
_SAMPLE = 4_000  # characters of a sentence that SentencePiece trains on


def _library() -> Any:
  try:
    import sentencepiece
  except ImportError as error:
    raise ImportError(
      "SentencePiece is missing: install locojax[completion]."
    ) from error
  return sentencepiece


def _escaped(text: str) -> str:
  if text.isascii():
    return text
  for char, shown in _SHOWN.items():
    text = text.replace(char, shown)
  return text


def _unescaped(text: str) -> str:
  if text.isascii():
    return text
  for char, shown in reversed(_SHOWN.items()):
    text = text.replace(shown, char)
  return text


class CodeTokenizer:
  """Texts to tokens and back, byte for byte.

  Attributes:
    vocab_size: number of tokens.
    pad, eos: 0 and 1.
    mask, pre, suf, mid: marks of what is asked for.
    newlines: tokens that end a line; they are never part of another token.
    pieces: the bytes of each token; empty for control tokens. The rare
      characters U+2581 and U+F8F1 are escaped in them.
  """

  pad, eos = PAD, EOS

  def __init__(self, model: bytes):
    """Takes a serialised model.

    Raises:
      ValueError: a model that `train` has not made, as it lacks the marks.
    """
    self.model = bytes(model)
    self._processor = _library().SentencePieceProcessor(model_proto=self.model)
    self.vocab_size = self._processor.vocab_size()
    found = [self._processor.piece_to_id(m) for m in (*_MARKS, *NEWLINES)]
    if UNKNOWN in found:
      raise ValueError(
        "the tokenizer has no marks of code completion: it must be one that "
        "code_tokens.train made."
      )
    self.mask, self.pre, self.suf, self.mid = found[: len(_MARKS)]
    self.newlines = tuple(found[len(_MARKS) :])
    self.pieces = tuple(map(self._bytes, range(self.vocab_size)))

  def _bytes(self, token: int) -> bytes:
    processor = self._processor
    if processor.is_control(token) or processor.is_unknown(token):
      return b""
    piece = processor.id_to_piece(token)
    if processor.is_byte(token):
      return bytes([int(piece[len(_BYTE) : -1], 16)])
    return piece.replace(_SPACE, " ").encode("utf-8")

  @property
  def controls(self) -> tuple[int, ...]:
    """Tokens that are no text: padding, end, unknown and marks."""
    return tuple(i for i, piece in enumerate(self.pieces) if not piece)

  def language(self, name: str) -> int:
    """The token that says which language follows.

    Raises:
      ValueError: a language that it was not made for.
    """
    token = self._processor.piece_to_id(f"<{name}>")
    if token == UNKNOWN:
      marks = [self._processor.id_to_piece(i) for i in self.controls]
      known = [m[1:-1] for m in marks if m not in (*_MARKS, "<pad>")]
      checks.one_of("language", name, known)
    return token

  def knows(self, language: str) -> bool:
    """Whether it was made for a language, among others."""
    return self._processor.piece_to_id(f"<{language}>") != UNKNOWN

  def encode(self, text: str) -> list[int]:
    """The tokens of a text, no marks among them."""
    return self._processor.encode(_escaped(text))

  def decode(self, tokens: Iterable[int]) -> str:
    """The text of tokens; control tokens are nothing.

    Bytes that are no UTF-8, as in the middle of a character, become U+FFFD.
    """
    raw = b"".join(self.pieces[int(t)] for t in tokens)
    return _unescaped(raw.decode("utf-8", errors="replace"))

  def check(self, texts: Iterable[str]) -> None:
    """Refuses to go on with a text that does not come back.

    Raises:
      ValueError: one that does not, with its number.
    """
    for i, text in enumerate(texts):
      if self.decode(self.encode(text)) != text:
        raise ValueError(
          f"texts[{i}] does not come back from the tokenizer, which must give "
          "every text back as it was."
        )

  def save(self, path: str | os.PathLike) -> None:
    """Writes the model for `load` (and for any SentencePiece program)."""
    files.write(path, lambda file: file.write(self.model))


def train(
  texts: Sequence[str],
  *,
  vocab_size: int,
  languages: Sequence[str],
  kind: str = "bpe",
  max_bytes: int = 4_000_000,
) -> CodeTokenizer:
  """A tokenizer of some code.

  The settings lose nothing: no normalisation, blanks kept, no blank in front,
  digits one by one, bytes for what is rare; line ends are tokens of their own.

  Args:
    texts: enough of them for `vocab_size` pieces.
    vocab_size: number of pieces, 256 of them bytes.
    languages: names that `CodeTokenizer.language` shall know.
    kind: 'bpe' or 'unigram'; the latter takes ten times as long to train.
    max_bytes: what is learnt from, evenly taken from all texts.

  Raises:
    ValueError: a bad setting; too little text for the vocabulary; a sample of
      the texts does not come back.
  """
  checks.positive_int("vocab_size", vocab_size)
  checks.positive_int("max_bytes", max_bytes)
  checks.one_of("kind", kind, KINDS)
  if not any(map(str.strip, texts)):
    raise ValueError("texts are empty: there is nothing to train on.")
  if not languages:
    checks.refuse("languages", languages, "one name or more")
  out = io.BytesIO()
  try:
    _library().SentencePieceTrainer.train(
      sentence_iterator=_lines(texts, max_bytes),
      model_writer=out,
      model_type=kind,
      vocab_size=vocab_size,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      split_digits=True,
      byte_fallback=True,
      character_coverage=1.0,
      allow_whitespace_only_pieces=True,
      user_defined_symbols=[*NEWLINES, "\t"],
      control_symbols=[*_MARKS, *(f"<{name}>" for name in languages)],
      pad_id=PAD,
      eos_id=EOS,
      unk_id=UNKNOWN,
      bos_id=-1,
      hard_vocab_limit=False,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(
      f"vocab_size={vocab_size} is not allowed for these {len(texts)} texts: "
      f"{error}"
    ) from error
  made = CodeTokenizer(out.getvalue())
  made.check(texts[:: max(1, len(texts) // 16)])
  return made


def _lines(texts: Sequence[str], max_bytes: int):
  """Lines of an even sample, without their ends."""
  total = sum(map(len, texts))
  every = max(1, total // max_bytes)
  lines = (line for text in texts for line in _escaped(text).splitlines())
  for i, line in enumerate(lines):
    if i % every == 0 and line.strip():
      yield line[:_SAMPLE]


def load(path: str | os.PathLike) -> CodeTokenizer:
  """A tokenizer from a file.

  Raises:
    FileNotFoundError: there is none.
  """
  return CodeTokenizer(pathlib.Path(path).read_bytes())
