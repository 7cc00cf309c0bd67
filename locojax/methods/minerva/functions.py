"""Functions of exact expressions: by value where that is exact."""

from __future__ import annotations

from fractions import Fraction

from locojax.methods.minerva import exact

TRIGONOMETRIC = ("sin", "cos", "tan", "sec", "csc", "cot")


def evaluated(
  name: str, base: exact.Expr | None, args: list[exact.Expr]
) -> exact.Expr:
  """A function by value where that is exact, else by name."""
  if len(args) != 1 or name not in (*TRIGONOMETRIC, "exp", "ln", "log"):
    return exact.function(name, *args)
  (inner,) = args
  if name in TRIGONOMETRIC:
    return exact.trigonometric(name, inner)
  if name == "exp":
    return exact.power(exact.atom(exact.E), inner)
  if name == "log" and base is None:
    return exact.function("lg", inner)
  return _logarithm(exact.atom(exact.E) if name == "ln" else base, inner)


def _logarithm(base: exact.Expr, inner: exact.Expr) -> exact.Expr:
  whole = (base.integer(), inner.rational())
  if whole[0] is not None and whole[0] > 1 and whole[1] is not None:
    found = _exact_logarithm(whole[0], whole[1])
    if found is not None:
      return exact.number(found)
  if base == exact.atom(exact.E):
    if inner == base:
      return exact.number(1)
    if inner.rational() == 1:
      return exact.number(0)
    return exact.function("ln", inner)
  return exact.function("log", base, inner)


def _exact_logarithm(base: int, value: Fraction) -> Fraction | None:
  """log of a rational, where both have the same primes in proportion."""
  if value <= 0:
    return None
  below = exact.factored(base)
  above = exact.factored(value.numerator), exact.factored(value.denominator)
  if below is None or None in above:
    return None
  powers = {**dict(above[0]), **{p: -k for p, k in above[1]}}
  ratios = {Fraction(powers.get(p, 0), k) for p, k in below}
  same = set(powers) <= {p for p, _ in below} and len(ratios) == 1
  return ratios.pop() if same else None
