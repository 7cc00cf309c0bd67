"""Words and sentences: cutting text, a vocabulary, sentences as numbers.

Numbers 0 to 3 are padding, unknown word, beginning and end of a sentence; the
words follow, the most frequent first. For a private model the vocabulary must
come from public text, not from the clients whose data it shall protect.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from locojax.core import checks, files

PAD, OOV, BOS, EOS = range(4)
SPECIAL = ("<pad>", "<oov>", "<bos>", "<eos>")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]")
_END = re.compile(r"(?<=[.!?;])\s+")


def split_words(text: str) -> list[str]:
  """Words in lower case, and punctuation by itself.

  >>> split_words("I'll go, Tom!")
  ["i'll", 'go', ',', 'tom', '!']
  """
  return _WORD.findall(text.lower())


def split_sentences(text: str) -> list[str]:
  """Pieces that end in `.`, `!`, `?` or `;`, or at a blank line.

  >>> split_sentences("Go! To\\nthe wall.")
  ['Go!', 'To the wall.']
  """
  paragraphs = re.split(r"\n\s*\n", text)
  joined = (" ".join(p.split()) for p in paragraphs)
  return [s for p in joined for s in _END.split(p) if s]


class Vocabulary:
  """Words by number and back.

  Attributes:
    words: all of them, the special tokens first.
  """

  def __init__(self, words: Sequence[str]):
    """Takes the words but the special tokens, in order.

    Raises:
      ValueError: no words, or one that comes twice or is a special token.
    """
    self.words = (*SPECIAL, *words)
    self._numbers = {w: i for i, w in enumerate(self.words)}
    if not words or len(self._numbers) < len(self.words):
      counts = collections.Counter(self.words)
      raise ValueError(
        "words must be distinct, none of them special, and at least one; "
        f"these come twice: {[w for w, n in counts.items() if n > 1][:5]}."
      )

  def __len__(self) -> int:
    return len(self.words)

  def __eq__(self, other) -> bool:
    return isinstance(other, Vocabulary) and self.words == other.words

  def __hash__(self) -> int:
    return hash(self.words)

  def encode(self, sentence: str, *, length: int) -> np.ndarray:
    """`[bos, words, eos, pad, ...]`, `[length + 1]` int32.

    As inputs and labels are this row without its last and its first token, a
    model sees `length` tokens. A sentence of more than `length - 1` words is
    cut, and then has no eos.

    >>> Vocabulary(["go"]).encode("Go home", length=4).tolist()
    [2, 4, 1, 3, 0]
    """
    checks.positive_int("length", length)
    numbers = [self._numbers.get(w, OOV) for w in split_words(sentence)]
    numbers = [BOS, *numbers, EOS][: length + 1]
    out = np.full((length + 1,), PAD, np.int32)
    out[: len(numbers)] = numbers
    return out

  def decode(self, numbers: Iterable[int]) -> str:
    """The words, without padding, bos and eos; unknown ones as `<oov>`."""
    skip = (PAD, BOS, EOS)
    return " ".join(self.words[int(i)] for i in numbers if int(i) not in skip)

  def save(self, path: str | os.PathLike) -> None:
    """Writes the words but the special tokens, one a line."""
    lines = "\n".join(self.words[len(SPECIAL) :]) + "\n"
    files.write_text(path, lines)


def load_vocabulary(path: str | os.PathLike) -> Vocabulary:
  """A vocabulary from a file with a word a line.

  Raises:
    FileNotFoundError: no such file.
    ValueError: as `Vocabulary`.
  """
  text = pathlib.Path(path).read_text(encoding="utf-8-sig")
  return Vocabulary([w for w in text.split("\n") if w])


def build_vocabulary(texts: Iterable[str], *, size: int) -> Vocabulary:
  """The most frequent words of some (public) texts.

  Args:
    texts: any pieces of text.
    size: words at most, without the special tokens. Of words that are as
      frequent, the first in the alphabet.

  Returns:
    The vocabulary, `min(size, distinct words) + 4` long.

  Raises:
    ValueError: a bad size, or no words.

  >>> build_vocabulary(["a rose is a rose"], size=2).words[4:]
  ('a', 'rose')
  """
  checks.positive_int("size", size)
  counts = collections.Counter()
  for text in texts:
    counts.update(split_words(text))
  order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  return Vocabulary([word for word, _ in order[:size]])
