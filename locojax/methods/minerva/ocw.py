"""Grading of OCWCourses: numbers, equations and expressions.

Lewkowycz et al., arXiv 2206.14858, appendix: a number is right within a
tolerance, an equation if it is the same equation, an expression as in MATH.
Public graders take `0.01 * (a + b) / 2` for the tolerance of small numbers,
so that -10 is not -10, and evaluate what a model wrote as Python; here a number
is read by `latex_scalars` and within `rtol` of the larger one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from locojax.core import checks
from locojax.methods.minerva import (
  equivalence,
  exact,
  latex_reader,
  latex_tokens,
  numeric,
)
from locojax.methods.minerva.verdicts import Verdict

KINDS = ("numeric", "equation", "expression")
_INVALID = re.compile(r"\s*(?:\[invalidanswer\])?\s*")


def _number(text: str) -> float | None:
  """A real number, with a unit or after an equals sign if need be."""
  try:
    found = latex_reader.read_answer(text)
  except latex_tokens.Unreadable:
    return None
  if found.kind != "scalar":
    return None
  unit = found.unit
  percent = unit is not None and not unit[0]
  value = numeric.real(found.value)
  return value if value is None or not percent else value * float(unit[1])


def kind(target: str) -> str:
  """`numeric`, `equation` or `expression`: how an answer is graded.

  188 of the 272 published answers are numbers as Python writes them, 12 have
  an equals sign, and 72 are expressions.
  """
  checks.text("target", target)
  try:
    float(target)
    return "numeric"
  except ValueError:
    return "equation" if "=" in target else "expression"


def close(a: float, b: float, *, rtol: float) -> bool:
  """|a - b| <= rtol * max(|a|, |b|)."""
  return abs(a - b) <= rtol * max(abs(a), abs(b))


def _equation(text: str) -> exact.Expr | None:
  """left - right of an equation; None if it is none."""
  sides = text.split("=")
  if len(sides) != 2:
    return None
  try:
    values = [latex_reader.read_answer(side) for side in sides]
  except latex_tokens.Unreadable:
    return None
  if any(v.kind != "scalar" for v in values):
    return None
  return values[0].value - values[1].value


def _same_equation(a: str, b: str) -> bool:
  """Whether two equations are the same up to sides and a constant factor."""
  one, two = _equation(a), _equation(b)
  if one is None or two is None or one.is_zero or two.is_zero:
    return one is not None and one == two
  ratio = one / two
  return not ratio.variables() and numeric.approximate(ratio) is not None


def grade_ocw(
  prediction: str | None,
  target: str,
  *,
  rtol: float = 1e-2,
  equal: Callable[[str, str], bool | Verdict] | None = None,
) -> bool:
  """Whether an answer to a problem of OCWCourses is right.

  Args:
    prediction: the answer; None or `[invalidanswer]` is wrong.
    target: the published one, whose form says how it is graded (`kind`).
    rtol: of numbers, in [0, 1): 1e-2 as the paper has it, 1e-5 for what public
      graders mostly do.
    equal: decides on expressions; None is `equivalence.compare` with optional
      units.

  Raises:
    ValueError: a bad argument.
  """
  checks.below("rtol", rtol, 0.0, 1.0)
  how = kind(target)
  if prediction is None or _INVALID.fullmatch(prediction):
    return False
  if how == "numeric":
    found = _number(prediction)
    return found is not None and close(found, float(target), rtol=rtol)
  if prediction.strip() == target.strip():
    return True
  if how == "equation" and _same_equation(prediction, target):
    return True
  if equal is None:
    return equivalence.is_equivalent(prediction, target, units="optional")
  found = equal(prediction, target)
  return found.equal if isinstance(found, Verdict) else bool(found)
