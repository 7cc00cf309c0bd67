"""When two answers are the same: as written, by value, or by another program.

    equivalence.compare(r"\\frac{1}{\\sqrt{2}}", "sqrt(2)/2").outcome  # "equal"

Three levels, each asked only if the one before cannot tell: the texts without
their layout; the exact values of `latex_reader`; and a function that asks a
program in a process of its own (`locojax.train.workers`), if one is given.

By the first two levels this is an equivalence, unlike what comparing the
differences of parsed texts gives: a text equals itself, the order of the two
does not matter, and with `units` strict or ignored, what equals the same is
equal (see `UNITS`).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent import futures
from fractions import Fraction
from typing import Any, Protocol

from locojax.core import checks
from locojax.methods.minerva import exact, latex_reader, latex_tokens, numeric
from locojax.methods.minerva.latex_reader import Answer
from locojax.methods.minerva.latex_tokens import Unreadable
from locojax.methods.minerva.verdicts import (
  EQUAL,
  TIMED_OUT,
  UNEQUAL,
  UNKNOWN,
  Verdict,
)

# What a unit counts. "strict": 5 cm is 0.05 m, neither 5 m nor 5; 10 % is 0.1.
# "optional": as strict, and a unit that only one side has may be left out (10 %
# is 0.1 and 10); that is what grading wants, but no equivalence. "ignored":
# units are left out.
UNITS = ("strict", "optional", "ignored")


class Engine(Protocol):
  """What is asked where exact values cannot tell: `symbolic.Symbolic`."""

  def expressions(self, a: exact.Expr, b: exact.Expr) -> Verdict:
    """Whether two expressions are equal."""

  def texts(self, a: str, b: str) -> Verdict:
    """Whether two answers are equal."""


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


class _Comparison:
  """The exact comparison of two answers, and whom it asked on the way."""

  def __init__(self, units: str, engine: Engine | None):
    self._units = units
    self._engine = engine
    self.asked: list[Verdict] = []

  def expressions(self, a: exact.Expr, b: exact.Expr) -> bool | None:
    """Whether two expressions are equal; None where nobody can tell."""
    try:
      found = numeric.equal(a, b)
    except exact.TooLarge:
      return None
    if found is not None or self._engine is None:
      return found
    told = self._engine.expressions(*sorted((a, b), key=repr))
    self.asked.append(told)
    return {EQUAL: True, UNEQUAL: False}.get(told.outcome)

  def scalars(self, a: Answer, b: Answer) -> bool | None:
    """Two numbers or formulas with their units."""
    one, two = a.unit, b.unit
    missing = (one is None) != (two is None)
    left_out = self._units == "optional" and missing
    if self._units == "ignored" or one == two:
      return self.expressions(a.value, b.value)
    if left_out and (one or two)[0]:
      return self.expressions(a.value, b.value)
    one, two = one or ("", Fraction(1)), two or ("", Fraction(1))
    if one[0] != two[0]:
      return False
    found = self.expressions(_sized(a.value, one[1]), _sized(b.value, two[1]))
    if found is False and left_out:  # percents, as a number or without it
      return self.expressions(a.value, b.value)
    return found

  def collections(self, a: Sequence, b: Sequence) -> bool | None:
    """Whether each value has an equal among the others."""
    return _all(
      _any(self.values(x, y) for y in others)
      for ours, others in ((a, b), (b, a))
      for x in ours
    )

  def in_order(self, a: Sequence, b: Sequence) -> bool | None:
    """Whether two sequences are equal, one by one."""
    if len(a) != len(b):
      return False
    return _all(self.values(x, y) for x, y in zip(a, b, strict=True))

  def values(self, a: Any, b: Any) -> bool | None:
    """Whether two values are equal; None where that is not known."""
    if a == b:
      return True
    if isinstance(a, exact.Expr) and isinstance(b, exact.Expr):
      return self.expressions(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
      return self.in_order(a, b)
    if not (isinstance(a, Answer) and isinstance(b, Answer)):
      return False
    if a.kind != b.kind:
      return False
    if a.kind == "scalar":
      return self.scalars(a, b)
    if a.kind in ("collection", "union"):
      return self.collections(a.value, b.value)
    if a.kind == "equation":
      return _any(self.expressions(a.value, v) for v in (b.value, -b.value))
    return self.values(a.value, b.value)


def _sized(value: exact.Expr, size: Fraction) -> exact.Expr:
  return value if size == 1 else value * exact.number(size)


def _exactly(a: str, b: str, units: str, engine: Engine | None) -> Verdict:
  one, two = _read(a), _read(b)
  for text in (one, two):
    if isinstance(text, str):
      return Verdict(UNKNOWN, "exact", text)
  comparison = _Comparison(units, engine)
  found = comparison.values(one, two)
  asked = comparison.asked
  if found is None:
    late = [v for v in asked if v.outcome == TIMED_OUT]
    unknown = Verdict(UNKNOWN, "exact", "the values may be equal")
    return (late or asked[-1:] or [unknown])[0]
  level = asked[-1].level if asked else "exact"
  return Verdict(EQUAL if found else UNEQUAL, level)


def compare(
  a: str, b: str, *, units: str = "strict", engine: Engine | None = None
) -> Verdict:
  """Whether two answers are equal, by the first level that can tell.

  Args:
    a, b: LaTeX or plain text; the order does not matter.
    units: one of `UNITS`.
    engine: asked for what the exact values leave open, always in one order of
      the two; None leaves it open.

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
  found = _exactly(a, b, units, engine)
  if found.outcome != UNKNOWN or engine is None:
    return found
  return engine.texts(*sorted((a, b)))


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


class Remembering:
  """An engine that asks another one, each pair once.

  Whoever asks the same while it is asked waits for the one answer. That a
  program timed out is not remembered.

  Args:
    engine: the one to ask.
    size: how many verdicts to remember, the latest; 1 or more.
  """

  def __init__(self, engine: Engine, *, size: int = 100_000):
    self._engine = engine
    self._size = checks.positive_int("size", size)
    self._lock = threading.Lock()
    self._known: dict[Hashable, futures.Future] = {}

  def _once(self, question: Callable, a: Any, b: Any) -> Verdict:
    key = (question.__name__, a, b)
    with self._lock:
      future = self._known.get(key)
      mine = future is None
      if mine:
        future = self._known[key] = futures.Future()
        if len(self._known) > self._size:
          self._known.pop(next(iter(self._known)))
    if mine:
      self._settle(key, future, lambda: question(a, b))
    return future.result()

  def _settle(self, key: Hashable, future: futures.Future, ask: Callable):
    """Asks; what has no verdict is forgotten again."""
    kept = False
    try:
      found = ask()
      kept = found.outcome != TIMED_OUT
      future.set_result(found)
    except BaseException as error:
      future.set_exception(error)
      raise
    finally:
      if not kept:
        with self._lock:
          self._known.pop(key, None)

  def expressions(self, a: exact.Expr, b: exact.Expr) -> Verdict:
    """Whether two expressions are equal."""
    return self._once(self._engine.expressions, a, b)

  def texts(self, a: str, b: str) -> Verdict:
    """Whether two answers are equal."""
    return self._once(self._engine.texts, a, b)


class EquivalenceChecker:
  """`compare` with its settings and a memory, for many threads.

  Args:
    engine: as of `compare`; asked once for each pair.
    units: one of `UNITS`; `optional` is what grading wants.
    cache: how many verdicts of the engine to remember, 1 or more.
  """

  def __init__(
    self,
    engine: Engine | None = None,
    *,
    units: str = "optional",
    cache: int = 100_000,
  ):
    self._units = checks.one_of("units", units, UNITS)
    checks.positive_int("cache", cache)
    known = None if engine is None else Remembering(engine, size=cache)
    self._engine = known

  def __call__(self, a: str, b: str) -> Verdict:
    """The verdict on two answers; see `compare`."""
    return compare(a, b, units=self._units, engine=self._engine)

  def equal(self, a: str, b: str) -> bool:
    """Whether two answers are known to be equal."""
    return self(a, b).equal
