"""What exact values leave open, put to a program in processes of its own.

    program = symbolic.PROGRAM
    with workers.WorkerPool(program, options={"engine": "sympy"}) as pool:
      checker = equivalence.EquivalenceChecker(symbolic.Symbolic(pool))

Two values that may be equal go as trees of our own reading, so that mixed
numbers, degrees and lists are what they are here; a text that is not
understood goes to the program's own parser, unless it has words in it, which
SymPy takes for products of letters.
"""

from __future__ import annotations

import pathlib
from fractions import Fraction
from typing import Any, Protocol

from locojax.core import checks
from locojax.methods.minerva import exact, latex_tokens
from locojax.methods.minerva.verdicts import TIMED_OUT, UNKNOWN, Verdict

PROGRAM = pathlib.Path(__file__).with_name("symbolic_program.py")
ENGINES = ("sympy", "math_verify")
# What SymPy's parser reads without complaint as something else.
_MISREAD = ("circ", "degree", "pm", "mp", "in", ":", "percent", "dollar")


class Pool(Protocol):
  """What takes requests, such as `locojax.train.workers.WorkerPool`."""

  def submit(self, request: Any) -> Any:
    """A future of an outcome with `status`, `value` and `reason`."""


def _term(monomial: tuple, coefficient: Fraction) -> list:
  factors = [["number", str(coefficient)]]
  for a, exponent in monomial:
    factors.append(["power", [_atom(a), ["number", str(exponent)]]])
  return ["product", factors]


def _atom(a: exact.Atom) -> list:
  kind = a[0]
  if kind == "var":
    return ["variable", a[1]]
  if kind == "prime":
    return ["number", str(a[1])]
  if kind in ("i", "oo"):
    return ["constant", kind]
  if kind == "const":
    return ["constant", a[1]]
  if kind == "root":
    return ["power", [tree(a[2]), ["number", f"1/{a[1]}"]]]
  if kind == "pow":
    return ["power", [tree(a[1]), _term(a[2], Fraction(1))]]
  return ["function", a[1], [tree(arg) for arg in a[2]]]


def _polynomial(poly: tuple) -> list:
  return ["sum", [_term(monomial, c) for monomial, c in poly]]


def tree(value: exact.Expr) -> list:
  """An expression as nested lists that JSON can hold."""
  above, below = _polynomial(value.num), _polynomial(value.den)
  return ["product", [above, ["power", [below, ["number", "-1"]]]]]


def misread(text: str) -> str | None:
  """Why a text must not go to SymPy's parser; None if it may."""
  try:
    words = latex_tokens.tokens(text)
  except latex_tokens.Unreadable as error:
    return str(error)
  if any(t.kind == "text" for t in words):
    return "it has words in it"
  for token in words:
    if token.kind in ("command", "symbol") and token.value in _MISREAD:
      return f"SymPy takes {token.value!r} for something else"
  return None


class Symbolic:
  """Asks the processes of a pool that runs `PROGRAM`.

  Args:
    pool: takes requests; its engine must be `engine`.
    engine: one of `ENGINES`.
  """

  def __init__(self, pool: Pool, engine: str = "sympy"):
    self._pool = pool
    self.engine = checks.one_of("engine", engine, ENGINES)

  def _asked(self, **request: Any) -> Verdict:
    found = self._pool.submit({"engine": self.engine, **request}).result()
    if found.status == "done":
      return Verdict(found.value, self.engine)
    outcome = TIMED_OUT if found.status == "timed out" else UNKNOWN
    return Verdict(outcome, self.engine, found.reason)

  def expressions(self, a: exact.Expr, b: exact.Expr) -> Verdict:
    """Whether two expressions are equal; only SymPy is asked."""
    if self.engine != "sympy":
      return Verdict(UNKNOWN, self.engine, "it takes texts alone")
    return self._asked(trees=[tree(a), tree(b)])

  def texts(self, a: str, b: str) -> Verdict:
    """Whether two answers are equal, read by the program itself."""
    if self.engine == "sympy":
      for text in (a, b):
        reason = misread(text)
        if reason is not None:
          return Verdict(UNKNOWN, self.engine, reason)
    return self._asked(texts=[a, b])
