"""Suggestions that an engine finds errors in are dropped.

The engine is an argument, anything with `text`, `change` and `diagnostics` as
`locojax.engines.Engine` has them. It checks references, calls and types of the
text as it would be with the suggestion; what is wrong without it does not
count. The text is read by the engine, never run.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from locojax.core import checks

KINDS = ("syntax", "reference", "arity", "type", "other")
DROPS = ("reference", "arity", "type", "syntax")
ON_TIMEOUT = ("keep", "drop")


@dataclasses.dataclass(frozen=True)
class _Edit:
  """Characters `start` to `end` become `text`, as `engines.Edit`."""

  start: int
  end: int
  text: str


@dataclasses.dataclass(frozen=True)
class Checked:
  """What an engine says of a suggestion.

  Attributes:
    text: the suggestion; for several lines, the part that passes.
    kept: whether it is to be shown.
    kinds: the kinds of its errors, the most frequent first.
    messages: in the engine's words.
    checked: false where the engine did not answer in time, or says that it
      does not look there: then that there is no error says nothing.
  """

  text: str
  kept: bool
  kinds: tuple[str, ...] = ()
  messages: tuple[str, ...] = ()
  checked: bool = True


def _lines_before(text: str, offset: int) -> int:
  """The number of the line of an offset, from 0."""
  head = text[:offset].replace("\r\n", "\n").replace("\r", "\n")
  return head.count("\n")


def new_errors(
  report: Any, baseline: Any, first: int, last: int, kinds: Iterable[str]
) -> list[Any]:
  """Errors in some lines that the baseline does not have in their first line.

  Args:
    report: diagnostics with the suggestion in.
    baseline: those without it.
    first, last: the lines of the suggestion, from 0.
    kinds: that count.

  Returns:
    The errors. One that the baseline has as well, in number, is old.
  """
  same = lambda d: (d.code, d.message)
  old = collections.Counter(
    same(d) for d in baseline.errors if first in d.range.lines()
  )
  kinds, out = set(kinds), []
  for error in report.errors:
    place = error.range.lines()
    if error.kind not in kinds or place[0] > last or place[-1] < first:
      continue
    if old[same(error)] > 0:
      old[same(error)] -= 1
    else:
      out.append(error)
  return out


class Checker:
  """Asks an engine about suggestions at one place of a document.

  The document is left as it was, whatever happens.

  Args:
    engine: as of `locojax.engines`, with the document open.
    uri: of the document.
    offset: of the cursor, in characters.
    replace: characters before the cursor that suggestions repeat and replace.
    drops: kinds of error for which a suggestion is dropped, of `KINDS`.
    timeout: seconds for an answer.
    on_timeout: 'keep' or 'drop' what was not answered in time.
    baseline: what the engine says of the document as it is; None asks it.

  Raises:
    ValueError: a setting; an offset outside the document.
  """

  def __init__(
    self,
    engine: Any,
    uri: str,
    offset: int,
    *,
    replace: int = 0,
    drops: Sequence[str] = DROPS,
    timeout: float = 1.0,
    on_timeout: str = "keep",
    baseline: Any = None,
  ):
    for kind in drops:
      checks.one_of("drops", kind, KINDS)
    self._text = engine.text(uri)
    checks.int_in_range("offset", offset, 0, len(self._text))
    checks.int_in_range("replace", replace, 0, offset)
    checks.positive("timeout", timeout)
    checks.one_of("on_timeout", on_timeout, ON_TIMEOUT)
    self._engine, self._uri, self._drops = engine, uri, tuple(drops)
    self._offset, self._start = offset, offset - replace
    self._timeout, self._on_timeout = timeout, on_timeout
    self._line = _lines_before(self._text, self._start)
    self._baseline = baseline

  def _report(self) -> Any:
    return self._engine.diagnostics(self._uri, timeout=self._timeout)

  def __call__(self, suggestion: str) -> Checked:
    """Whether a suggestion, behind what is replaced, brings errors in."""
    try:
      if self._baseline is None:
        self._baseline = self._report()
      report = self._with(suggestion)
    except TimeoutError:
      kept = self._on_timeout == "keep"
      return Checked(suggestion, kept, checked=False)
    last = self._line + _lines_before(suggestion, len(suggestion))
    found = new_errors(report, self._baseline, self._line, last, self._drops)
    counts = collections.Counter(e.kind for e in found)
    return Checked(
      suggestion,
      not found,
      kinds=tuple(kind for kind, _ in counts.most_common()),
      messages=tuple(e.message for e in found),
      checked=report.is_checked(self._line),
    )

  def _with(self, suggestion: str) -> Any:
    """The report with a suggestion in; the document is put back."""
    old = self._text[self._start : self._offset]
    edit = _Edit(self._start, self._offset, suggestion)
    self._engine.change(self._uri, [edit])
    try:
      return self._report()
    finally:
      end = self._start + len(suggestion)
      self._engine.change(self._uri, [_Edit(self._start, end, old)])

  def longest(self, suggestion: str) -> Checked:
    """The longest run of a suggestion's first lines that passes.

    Returns:
      `kept` is false, and the text empty, if not even one line does.
    """
    lines = suggestion.split("\n")
    for num in range(len(lines), 0, -1):
      found = self("\n".join(lines[:num]))
      if found.kept:
        return found
    return dataclasses.replace(found, text="")


def check(
  engine: Any, uri: str, offset: int, suggestion: str, **settings: Any
) -> Checked:
  """Whether one suggestion brings errors in; settings as of `Checker`."""
  return Checker(engine, uri, offset, **settings)(suggestion)
