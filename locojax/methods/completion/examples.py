"""Examples of completion: what is before, what is asked for, what is after.

The blog of the system says that the rest of a line and some lines after it are
masked; how is our choice (see `make_example`, `sample_example`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from locojax.core import checks
from locojax.methods.completion import languages

MASKINGS = ("line", "whole_lines", "identifier", "span")
ORDERS = ("psm", "spm")
_LINE_END = re.compile(r"\r\n|\n|\r")
_MEAN_SPAN, _MAX_SPAN = 24, 400  # characters


class Example(NamedTuple):
  """A text in three: `prefix + target + suffix` is all of it."""

  prefix: str
  target: str
  suffix: str
  language: str


class Tokenizer(Protocol):
  """What this package needs of a tokenizer; `data.code_tokens` has one."""

  vocab_size: int
  pad: int
  eos: int
  mask: int
  pre: int
  suf: int
  mid: int
  newlines: tuple[int, ...]
  controls: tuple[int, ...]
  pieces: tuple[bytes, ...]

  def encode(self, text: str) -> list[int]:
    """The tokens of a text."""

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of tokens."""

  def language(self, name: str) -> int:
    """The token of a language."""


def line_end(text: str, offset: int, follow_lines: int = 0) -> int:
  """Where the line of an offset ends, its line end left out.

  Args:
    text: any.
    offset: in [0, len(text)].
    follow_lines: how many further lines count as well; fewer at the text's end.

  Raises:
    ValueError: an offset outside the text.
  """
  checks.int_in_range("offset", offset, 0, len(text))
  checks.nonnegative_int("follow_lines", follow_lines)
  if offset and text[offset - 1 : offset + 1] == "\r\n":
    if not follow_lines:
      return offset
    offset, follow_lines = offset + 1, follow_lines - 1
  for _ in range(follow_lines):
    match = _LINE_END.search(text, offset)
    if match is None:
      return len(text)
    offset = match.end()
  match = _LINE_END.search(text, offset)
  return len(text) if match is None else match.start()


def make_example(
  text: str, offset: int, follow_lines: int = 0, *, language: str = "python"
) -> Example:
  """The rest of the line at an offset, and some lines after it.

  Args:
    text: of a file.
    offset: in [0, len(text)], in characters.
    follow_lines: further lines that belong to the target.
    language: one of `languages.LANGUAGES`.

  Returns:
    An example; the target has no line end at its end.

  Raises:
    ValueError: an offset outside the text; an unknown language.

  >>> make_example("a = 1\\nb = 2\\n", 2).target
  '= 1'
  """
  languages.identifier(language)
  end = line_end(text, offset, follow_lines)
  return Example(text[:offset], text[offset:end], text[end:], language)


def _offset(
  text: str, rng: np.random.Generator, starts: float, low: int, high: int
) -> int:
  """A character that is no blank; or, by chance, where a word begins."""
  for _ in range(100):
    offset = int(rng.integers(low, high))
    if not text[offset].isspace():
      break
  if rng.random() >= starts:
    return offset
  # The words of some lines around it, members first every other time.
  low = text.rfind("\n", 0, max(0, offset - 200)) + 1
  around = text[low : offset + 200]
  found = languages.member_starts(around) if rng.random() < 0.5 else []
  found = found or languages.word_starts(around)
  return low + found[int(rng.integers(len(found)))] if found else offset


def sample_example(
  text: str,
  rng: np.random.Generator,
  *,
  language: str,
  masking: str = "line",
  starts: float = 0.3,
  several_lines: float = 0.3,
  max_follow: int = 10,
  low: int = 0,
  high: int | None = None,
) -> Example:
  """An example drawn from a text that is not blank.

  Args:
    text: of a file.
    rng: what draws.
    language: of the text.
    masking: what is asked for. 'line': the rest of a line from any place.
      'whole_lines': from the first character of a line that is no blank.
      'identifier': the rest of an identifier alone. 'span': some characters,
      whatever they are.
    starts: share of the places that are beginnings of identifiers; half of
      these, where there is one, come after `.`, `::` or `->`. The others are
      uniform over what is no blank.
    several_lines: share of examples with a number of further lines that is
      geometric (p = 0.5) and at most `max_follow`.
    max_follow: see there.
    low, high: offsets between which it is drawn, or nearly; None is the end.

  Raises:
    ValueError: a setting, or a text that is blank.
  """
  checks.one_of("masking", masking, MASKINGS)
  checks.in_range("starts", starts, 0.0, 1.0)
  checks.in_range("several_lines", several_lines, 0.0, 1.0)
  if not text.strip():
    raise ValueError("text is blank: there is nothing to complete.")
  if masking == "identifier":
    starts = 1.0
  high = len(text) if high is None else high
  checks.int_in_range("high", high, 1, len(text))
  checks.int_in_range("low", low, 0, high - 1)
  offset = _offset(text, rng, starts, low, high)
  if masking == "span":
    length = min(_MAX_SPAN, 1 + int(rng.geometric(1 / _MEAN_SPAN)))
    end = min(len(text), offset + length)
    return Example(text[:offset], text[offset:end], text[end:], language)
  if masking == "identifier":
    found = languages.identifier(language).match(text, offset)
    end = found.end() if found else line_end(text, offset)
    return Example(text[:offset], text[offset:end], text[end:], language)
  if masking == "whole_lines":
    start = max(text.rfind("\n", 0, offset), text.rfind("\r", 0, offset)) + 1
    line = text[start : line_end(text, start)]
    offset = start + len(line) - len(line.lstrip())
  follow = 0
  if rng.random() < several_lines:
    follow = min(max_follow, int(rng.geometric(0.5)))
  return make_example(text, offset, follow, language=language)


def fit(
  num_prefix: int, num_suffix: int, budget: int, prefix_share: float = 0.75
) -> tuple[int, int]:
  """How many tokens of prefix and suffix are kept.

  Each gets its share, and what the other leaves.

  Args:
    num_prefix, num_suffix: tokens that there are.
    budget: tokens that may be kept.
    prefix_share: of the budget, in [0, 1].

  Returns:
    The last so many of the prefix, the first so many of the suffix.

  >>> fit(100, 100, 40), fit(5, 100, 40), fit(100, 2, 40)
  ((30, 10), (5, 35), (38, 2))
  """
  checks.nonnegative_int("budget", budget)
  checks.in_range("prefix_share", prefix_share, 0.0, 1.0)
  own = round(budget * prefix_share)
  prefix = min(num_prefix, max(own, budget - num_suffix))
  return prefix, min(num_suffix, budget - prefix)


def _nearest(
  tokenizer: Tokenizer, text: str, num: int, *, last: bool
) -> list[int]:
  """The tokens of a text next to the cursor; `num` of them if there are.

  Text far away is not looked at.
  """
  size = 6 * num + 16
  while num:
    piece = text[-size:] if last else text[:size]
    tokens = tokenizer.encode(piece)
    if len(tokens) >= num or size >= len(text):
      return tokens[-num:] if last else tokens[:num]
    size *= 2
  return []


def context_tokens(
  prefix: str,
  suffix: str,
  tokenizer: Tokenizer,
  *,
  budget: int,
  prefix_share: float = 0.75,
) -> tuple[list[int], list[int]]:
  """Tokens of prefix and suffix, cut at the ends far from the cursor.

  Args:
    prefix, suffix: texts around the cursor.
    tokenizer: of the model.
    budget: tokens of both together.
    prefix_share: see `fit`.
  """
  before = _nearest(tokenizer, prefix, budget, last=True)
  after = _nearest(tokenizer, suffix, budget, last=False)
  num, rest = fit(len(before), len(after), budget, prefix_share)
  return before[len(before) - num :], after[:rest]


def input_tokens(
  prefix: str,
  suffix: str,
  language: str,
  tokenizer: Tokenizer,
  *,
  max_tokens: int,
  prefix_share: float = 0.75,
) -> list[int]:
  """What an encoder reads: `[language] prefix <mask> suffix`.

  Args:
    prefix, suffix, language: around the cursor.
    tokenizer: of the model.
    max_tokens: of all, 3 or more.
    prefix_share: see `fit`.

  Returns:
    At most `max_tokens` tokens.
  """
  checks.int_in_range("max_tokens", max_tokens, 3, 2**30)
  before, after = context_tokens(
    prefix, suffix, tokenizer, budget=max_tokens - 2, prefix_share=prefix_share
  )
  return [tokenizer.language(language), *before, tokenizer.mask, *after]


def fim_tokens(
  prefix: str,
  suffix: str,
  language: str,
  tokenizer: Tokenizer,
  *,
  max_tokens: int,
  order: str = "psm",
  prefix_share: float = 0.75,
) -> list[int]:
  """What a decoder alone reads: `[language]` and the prompt to fill a middle.

  'psm': `<pre> prefix <suf> suffix <mid>`; 'spm': `<pre> <suf> suffix <mid>
  prefix` (Bavarian et al. 2022, arXiv 2207.14255, sections 3 and 4.3).

  Args:
    prefix, suffix, language: around the cursor.
    tokenizer: of the model.
    max_tokens: of all, 5 or more.
    order: 'psm' or 'spm'.
    prefix_share: see `fit`.
  """
  checks.int_in_range("max_tokens", max_tokens, 5, 2**30)
  checks.one_of("order", order, ORDERS)
  before, after = context_tokens(
    prefix, suffix, tokenizer, budget=max_tokens - 4, prefix_share=prefix_share
  )
  head, mid = [tokenizer.language(language), tokenizer.pre], tokenizer.mid
  if order == "psm":
    return [*head, *before, tokenizer.suf, *after, mid]
  return [*head, tokenizer.suf, *after, mid, *before]


class Fim(NamedTuple):
  """A text with its middle moved to the end.

  Attributes:
    prefix, middle, suffix: parts; of a text that was left as it is, all of it
      is the middle.
    order: 'psm', 'spm', or 'plain'.
  """

  prefix: str
  middle: str
  suffix: str
  order: str


def fim_transform(
  text: str, rng: np.random.Generator, *, rate: float, mode: str = "both"
) -> Fim:
  """Fill-in-the-middle of a chunk of text (arXiv 2207.14255, section 3).

  Two places are drawn, uniform over those between characters.

  Args:
    text: a chunk that fits the model's context.
    rng: what draws.
    rate: probability that it is changed at all; the paper has 0.5 to 0.9.
    mode: 'psm', 'spm', or 'both', half of each.

  Raises:
    ValueError: a setting.
  """
  checks.in_range("rate", rate, 0.0, 1.0)
  checks.one_of("mode", mode, (*ORDERS, "both"))
  if rng.random() >= rate:
    return Fim("", text, "", "plain")
  low, high = sorted(int(i) for i in rng.integers(0, len(text) + 1, 2))
  order = ORDERS[int(rng.integers(2))] if mode == "both" else mode
  return Fim(text[:low], text[low:high], text[high:], order)
