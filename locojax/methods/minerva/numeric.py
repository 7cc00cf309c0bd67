"""Numbers of exact expressions, and whether two of them are equal.

An empty difference proves that two expressions are equal, and numbers at a
sample point that they are not; what neither proves is not known.
"""

from __future__ import annotations

import cmath
import hashlib
import math
from collections.abc import Callable
from fractions import Fraction

from locojax.methods.minerva import exact

FUNCTIONS: dict[str, Callable[..., complex]] = {
  "sin": cmath.sin,
  "cos": cmath.cos,
  "tan": cmath.tan,
  "sec": lambda z: 1 / cmath.cos(z),
  "csc": lambda z: 1 / cmath.sin(z),
  "cot": lambda z: 1 / cmath.tan(z),
  "arcsin": cmath.asin,
  "arccos": cmath.acos,
  "arctan": cmath.atan,
  "sinh": cmath.sinh,
  "cosh": cmath.cosh,
  "tanh": cmath.tanh,
  "ln": cmath.log,
  "log": lambda base, z: cmath.log(z) / cmath.log(base),
  "abs": abs,
  "power": lambda base, exponent: base**exponent,
}


def _at(name: str, sample: int) -> float:
  """Where a variable is put: positive in sample 0, of any sign in others."""
  digest = hashlib.sha256(f"{sample}/{name}".encode()).digest()
  value = 0.35 + int.from_bytes(digest[:6], "big") / 2**48
  return value if sample == 0 or digest[7] % 2 else -value


def _atom_value(a: exact.Atom, sample: int) -> complex:
  kind = a[0]
  if kind == "var":
    return _at(a[1], sample)
  if kind == "prime":
    return a[1]
  if kind == "i":
    return 1j
  if kind == "const":
    return math.pi if a == exact.PI else math.e
  if kind == "oo":
    raise ArithmeticError("no value of infinity")
  if kind == "root":
    return complex(_value(a[2], sample)) ** (1 / a[1])
  if kind == "pow":
    inner = exact.Expr(((a[2], Fraction(1)),))
    return complex(_value(a[1], sample)) ** _value(inner, sample)
  if a[1] not in FUNCTIONS:
    raise ArithmeticError(f"no value of {a[1]}")
  return FUNCTIONS[a[1]](*(_value(arg, sample) for arg in a[2]))


def _poly_value(poly: tuple, sample: int) -> tuple[complex, float]:
  """The value, and the sum of the sizes of its terms."""
  total, size = 0j, 0.0
  for monomial, coefficient in poly:
    term = complex(float(coefficient))
    for a, exponent in monomial:
      whole = exponent.denominator == 1
      power_ = int(exponent) if whole else float(exponent)
      term *= complex(_atom_value(a, sample)) ** power_
    total, size = total + term, size + abs(term)
  return total, size


def _value(value: exact.Expr, sample: int) -> complex:
  return _poly_value(value.num, sample)[0] / _poly_value(value.den, sample)[0]


def approximate(value: exact.Expr, sample: int = 0) -> complex | None:
  """Its value in floating point; None where there is none.

  Args:
    value: the expression.
    sample: which values its variables have; all are positive in sample 0.
  """
  try:
    found = complex(_value(value, sample))
  except (ArithmeticError, ValueError, TypeError):
    return None
  return found if cmath.isfinite(found) else None


def real(value: exact.Expr) -> float | None:
  """The value of a real number; None for others and for formulas."""
  if value.variables():
    return None
  found = approximate(value)
  if found is None or abs(found.imag) > 1e-9 * max(1.0, abs(found)):
    return None
  return found.real


def _size(value: exact.Expr) -> float | None:
  """The logarithm of the size of one term; None for what has several."""
  if len(value.num) != 1 or len(value.den) != 1:
    return None
  ((monomial, coefficient),) = value.num
  top, bottom = abs(coefficient.numerator), coefficient.denominator
  total = math.log(top) - math.log(bottom)
  for a, exponent in monomial:
    if a[:2] == ("fn", "power"):
      base, high = (approximate(arg) for arg in a[2])
      if not base or high is None or high.imag:
        return None
      total += high.real * math.log(abs(base)) * float(exponent)
    else:
      found = approximate(exact.atom(a))
      if not found:
        return None
      total += math.log(abs(found)) * float(exponent)
  return total


def _surely_different(a: exact.Expr, b: exact.Expr) -> bool:
  one, two = approximate(a), approximate(b)
  if one is None or two is None:
    sizes = _size(a), _size(b)
    if None in sizes:
      return False
    return abs(sizes[0] - sizes[1]) > 1e-6 * max(1.0, *map(abs, sizes))
  try:
    size = sum(
      _poly_value(v.num, 0)[1] / abs(_poly_value(v.den, 0)[0]) for v in (a, b)
    )
  except ArithmeticError:
    return False
  return abs(one - two) > 1e-6 * max(size, 1e-12)


def equal(a: exact.Expr, b: exact.Expr) -> bool | None:
  """Whether two expressions are equal; None where this module cannot tell.

  Raises:
    exact.TooLarge: the difference grows beyond the bounds.
  """
  with exact.limited():
    if a == b or (a - b).is_zero:
      return True
  if exact.certain(a, b) or _surely_different(a, b):
    return False
  return None
