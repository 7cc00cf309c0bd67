"""When two answers are the same: as written, by value, or by a computer algebra.

    equivalence.compare(r"\\frac{1}{\\sqrt{2}}", "sqrt(2)/2").outcome   # "equal"

Three levels, each asked only if the one before cannot tell: the texts without
their layout; the exact values of `latex_reader`; and a function that asks a
program in a process of its own (`locojax.train.workers`), if one is given.

By the first two levels this is an equivalence, unlike what comparing the
differences of parsed texts gives: a text equals itself, the order of the two
does not matter, and with `units` strict or ignored, what equals the same is
equal (see `UNITS`).
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from fractions import Fraction
from typing import Any

from locojax.core import checks
from locojax.methods.minerva import exact, latex_reader, latex_tokens
from locojax.methods.minerva.latex_reader import Answer
from locojax.methods.minerva.latex_tokens import Unreadable

EQUAL, UNEQUAL, UNKNOWN, TIMED_OUT = "equal", "unequal", "unknown", "timed out"
OUTCOMES = (EQUAL, UNEQUAL, UNKNOWN, TIMED_OUT)
# What a unit counts. "strict": 5 cm is 0.05 m, neither 5 m nor 5; 10 % is 0.1.
# "optional": as strict, and a unit that only one side has is left out; that is
# what grading wants, but no equivalence. "ignored": units are left out.
UNITS = ("strict", "optional", "ignored")


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Whether two answers are equal, and who said so.

  Attributes:
    outcome: one of `OUTCOMES`.
    level: `text`, `exact`, or the name of the program that was asked.
    reason: why it is not known, if so.
  """

  outcome: str
  level: str
  reason: str = ""

  @property
  def equal(self) -> bool:
    """Whether they are known to be equal."""
    return self.outcome == EQUAL


@functools.lru_cache(32768)
def _read(text: str) -> Answer | str:
  try:
    return latex_reader.read_answer(text)
  except Unreadable as error:
    return str(error)


@functools.lru_cache(32768)
def _tidy(text: str) -> str:
  try:
    return latex_tokens.tidy(text)
  except Unreadable:
    return " ".join(text.split())


def _all(found: Iterable[bool | None]) -> bool | None:
  """True if all are, False if any is, else None; in one pass."""
  unknown = False
  for one in found:
    if one is False:
      return False
    unknown |= one is None
  return None if unknown else True


def _any(found: Iterable[bool | None]) -> bool | None:
  turned = _all(None if one is None else not one for one in found)
  return None if turned is None else not turned


def _expressions(a: exact.Expr, b: exact.Expr) -> bool | None:
  try:
    return exact.equal(a, b)
  except exact.TooLarge:
    return None


def _sized(value: exact.Expr, size: Fraction) -> exact.Expr:
  return value if size == 1 else value * exact.number(size)


def _scalars(a: Answer, b: Answer, units: str) -> bool | None:
  one, two = a.unit, b.unit
  missing = (one is None) != (two is None)
  if units == "ignored" or (units == "optional" and missing) or one == two:
    return _expressions(a.value, b.value)
  one, two = one or ("", Fraction(1)), two or ("", Fraction(1))
  if one[0] != two[0]:
    return False
  return _expressions(_sized(a.value, one[1]), _sized(b.value, two[1]))


def _collections(a: Sequence, b: Sequence, units: str) -> bool | None:
  """Whether each has an equal in the other."""
  return _all(
    _any(_values(x, y, units) for y in others)
    for ours, others in ((a, b), (b, a))
    for x in ours
  )


def _in_order(a: Sequence, b: Sequence, units: str) -> bool | None:
  if len(a) != len(b):
    return False
  return _all(_values(x, y, units) for x, y in zip(a, b, strict=True))


def _values(a: Any, b: Any, units: str) -> bool | None:
  """Whether two values are equal; None where that is not known."""
  if a == b:
    return True
  if isinstance(a, exact.Expr) and isinstance(b, exact.Expr):
    return _expressions(a, b)
  if isinstance(a, tuple) and isinstance(b, tuple):
    return _in_order(a, b, units)
  if not (isinstance(a, Answer) and isinstance(b, Answer)):
    return a == b
  if a.kind != b.kind:
    return False
  if a.kind == "scalar":
    return _scalars(a, b, units)
  if a.kind in ("collection", "union"):
    return _collections(a.value, b.value, units)
  if a.kind == "equation":
    return _any(_expressions(a.value, sign) for sign in (b.value, -b.value))
  return _values(a.value, b.value, units)


def _exactly(a: str, b: str, units: str) -> Verdict:
  one, two = _read(a), _read(b)
  for text in (one, two):
    if isinstance(text, str):
      return Verdict(UNKNOWN, "exact", text)
  found = _values(one, two, units)
  if found is None:
    return Verdict(UNKNOWN, "exact", "the values may be equal")
  return Verdict(EQUAL if found else UNEQUAL, "exact")


def compare(
  a: str,
  b: str,
  *,
  units: str = "strict",
  symbolic: Callable[[str, str], Verdict] | None = None,
) -> Verdict:
  """Whether two answers are equal, by the first level that can tell.

  Args:
    a, b: LaTeX or plain text; the order does not matter.
    units: one of `UNITS`.
    symbolic: asked for what the exact values leave open, with the two texts in
      an order of its own; None leaves it open.

  Returns:
    The verdict. Whatever is not `equal` counts as not equal in grading; that
    it may not be known is kept apart.

  Raises:
    ValueError: not texts, or `units` is none of its values.
  """
  checks.text("a", a)
  checks.text("b", b)
  checks.one_of("units", units, UNITS)
  if a == b or _tidy(a) == _tidy(b):
    return Verdict(EQUAL, "text")
  found = _exactly(a, b, units)
  if found.outcome != UNKNOWN or symbolic is None:
    return found
  return symbolic(*sorted((a, b)))


def is_equivalent(a: str, b: str, **options: Any) -> bool:
  """Whether two answers are known to be equal; arguments as of `compare`."""
  return compare(a, b, **options).equal


def canonical_key(text: str, *, units: str = "ignored") -> Hashable:
  """Something that equal answers mostly share, and unequal ones never do.

  For counting votes without comparing all pairs: answers of one key are equal;
  those of different keys may still be (`voting.group` compares those).

  Args:
    text: an answer.
    units: `strict` or `ignored`.
  """
  checks.one_of("units", units, ("strict", "ignored"))
  found = _read(text)
  if isinstance(found, str):
    return ("text", _tidy(text))
  return _keyed(found, units)


def _keyed(value: Any, units: str) -> Hashable:
  if isinstance(value, tuple):
    return tuple(_keyed(part, units) for part in value)
  if not isinstance(value, Answer):
    return value
  if value.kind == "scalar" and value.unit is not None:
    if units == "ignored":
      return ("scalar", value.value)
    dimension, size = value.unit
    key = _sized(value.value, size)
    return ("scalar", key) if not dimension else ("scalar", key, dimension)
  if value.kind == "collection":
    return (value.kind, frozenset(_keyed(part, units) for part in value.value))
  return (value.kind, _keyed(value.value, units))


class EquivalenceChecker:
  """`compare` with a memory, for many threads.

  Each pair that the exact values leave open is sent once, whoever asks and in
  whichever order; those who ask meanwhile wait for the one answer. Verdicts
  are remembered, but not that a program timed out.

  Args:
    symbolic: as of `compare`.
    units: one of `UNITS`.
    cache: how many verdicts to remember; 0 for none.
  """

  def __init__(
    self,
    symbolic: Callable[[str, str], Verdict] | None = None,
    *,
    units: str = "optional",
    cache: int = 100_000,
  ):
    self._symbolic = symbolic
    self._units = checks.one_of("units", units, UNITS)
    self._size = checks.nonnegative_int("cache", cache)
    self._lock = threading.Lock()
    self._known: dict[tuple[str, str], Verdict] = {}
    self._asked: dict[tuple[str, str], threading.Event] = {}

  def _ask(self, a: str, b: str) -> Verdict:
    pair = (a, b)
    while True:
      with self._lock:
        if pair in self._known:
          return self._known[pair]
        waiting = self._asked.get(pair)
        if waiting is None:
          self._asked[pair] = threading.Event()
          break
      waiting.wait()
      if not self._size:
        break
    return self._told(pair)

  def _told(self, pair: tuple[str, str]) -> Verdict:
    try:
      found = self._symbolic(*pair)
      with self._lock:
        if found.outcome != TIMED_OUT and self._size:
          while len(self._known) >= self._size:
            self._known.pop(next(iter(self._known)))
          self._known[pair] = found
      return found
    finally:
      with self._lock:
        event = self._asked.pop(pair, None)
      if event is not None:
        event.set()

  def __call__(self, a: str, b: str) -> Verdict:
    """The verdict on two answers; see `compare`."""
    ask = None if self._symbolic is None else self._ask
    return compare(a, b, units=self._units, symbolic=ask)

  def equal(self, a: str, b: str) -> bool:
    """Whether two answers are known to be equal."""
    return self(a, b).equal
