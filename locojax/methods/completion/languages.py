"""What the languages call an identifier, and where one begins."""

from __future__ import annotations

import functools
import re

from locojax.core import checks

_PLAIN = r"[^\W\d]\w*"
_DOLLAR = r"(?:[^\W\d]|\$)(?:\w|\$)*"
IDENTIFIERS: dict[str, str] = {
  **dict.fromkeys(("python", "go", "cpp", "kotlin"), _PLAIN),
  **dict.fromkeys(("java", "dart"), _DOLLAR),
  "typescript": rf"#?{_DOLLAR}",
  "proto": rf"\.?{_PLAIN}(?:\.{_PLAIN})*",
}
LANGUAGES = tuple(IDENTIFIERS)
# After these comes a member of something.
MEMBERS = re.compile(r"\.|::|->")
_LONGEST = 200  # characters of an identifier that are looked at
_WORD_START = re.compile(r"(?<!\w)[^\W\d]")


@functools.cache
def identifier(language: str) -> re.Pattern[str]:
  """The pattern of an identifier.

  Raises:
    ValueError: an unknown language.
  """
  return re.compile(checks.lookup("language", language, IDENTIFIERS))


@functools.cache
def _at_end(language: str) -> re.Pattern[str]:
  return re.compile(rf"(?:{identifier(language).pattern})\Z")


def typed(prefix: str, language: str) -> str:
  """The identifier that the prefix ends in, half-typed or not; '' if none.

  >>> typed("x = self.ap", "python"), typed("f(", "python")
  ('ap', '')
  """
  line = prefix[max(prefix.rfind("\n"), prefix.rfind("\r")) + 1 :]
  found = _at_end(language).search(line[-_LONGEST:])
  if found is None:
    return ""
  before = line[-_LONGEST:][: found.start()]
  # What begins inside a longer word or number is no identifier.
  return "" if re.search(r"\w\Z", before) else found[0]


def first_token(
  typed_prefix: str, continuation: str, language: str
) -> str | None:
  """The identifier that a continuation completes.

  Args:
    typed_prefix: what of it is typed already, such as by `typed`.
    continuation: the text that is suggested behind it.
    language: one of `LANGUAGES`.

  Returns:
    The whole identifier, `typed_prefix` included; None where there is none, or
    where it ends inside what is typed.

  Raises:
    ValueError: an unknown language.

  >>> first_token("app", "end(x)", "python")
  'append'
  """
  match = identifier(language).match(typed_prefix + continuation)
  if match is None or match.end() < len(typed_prefix):
    return None
  return match[0]


def word_starts(text: str) -> list[int]:
  """Offsets at which identifiers and words begin."""
  return [m.start() for m in _WORD_START.finditer(text)]


def member_starts(text: str) -> list[int]:
  """Offsets behind `.`, `::` and `->` at which a word begins."""
  ends = (m.end() for m in MEMBERS.finditer(text))
  return [e for e in ends if e < len(text) and (text[e].isidentifier())]
