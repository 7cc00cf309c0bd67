"""Exact numbers and formulas: quotients of polynomials in atoms.

An expression is num / den. Both are sums of rational multiples of monomials,
and a monomial is a product of atoms to rational powers:

    x, x_1, \\theta      a variable
    2, 3, 5, ...        a prime to a power in (0, 1): radicals of rationals
    i                   with i^2 = -1
    pi, e               the two numbers
    b^m                 a power with something in its exponent, by monomials
    f(a), (a)^(1/2)     anything else, by what it is of

Radicals of different primes are independent over the rationals
(Besicovitch, 1940), so that sums of the first five kinds are zero only if
nothing is left of them. For the last kind an empty difference still proves
equality; that two are unequal is for `numeric` to say.

Everything is bounded (`MAX_TERMS`, `MAX_BITS`): what would grow beyond is
refused as `TooLarge`, and powers beyond stay atoms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction

Atom = tuple
Monomial = tuple[tuple[Atom, Fraction], ...]
Poly = dict[Monomial, Fraction]

MAX_TERMS = 600  # of a polynomial
MAX_PRODUCTS = 60_000  # pairs of terms in one multiplication
MAX_WORK = 50_000  # of such pairs in one `limited` piece of work
MAX_BITS = 32_768  # of a numerator or denominator
MAX_POWER = 64  # of a sum, multiplied out
_TRIAL = 2_000  # primes up to here are divided out
_ONE: Monomial = ()
I: Atom = ("i",)
PI: Atom = ("const", "pi")
E: Atom = ("const", "e")
OO: Atom = ("oo",)
_CERTAIN = ("var", "prime", "i", "const", "oo")


class TooLarge(ValueError):
  """A number or formula grows beyond the bounds of this module."""


class _Work(threading.local):
  """Pairs of terms that this thread may still multiply."""

  left = float("inf")


_work = _Work()


@contextlib.contextmanager
def limited(products: int = MAX_WORK) -> Iterator[None]:
  """Bounds the work done inside: beyond, `TooLarge` is raised.

  Args:
    products: pairs of terms to multiply, those of long numbers counted more
      often. An outer bound still holds.
  """
  before = _work.left
  _work.left = min(before, products)
  try:
    yield
  finally:
    spent = min(before, products) - _work.left
    _work.left = before - spent


def _spend(a: Poly, b: Poly) -> None:
  pairs = len(a) * len(b)
  if pairs > 1:
    longest = sum(
      max(
        c.numerator.bit_length() + c.denominator.bit_length()
        for c in p.values()
      )
      for p in (a, b)
    )
    _work.left -= pairs * (1 + longest // 256)
  if pairs > MAX_PRODUCTS or _work.left < 0:
    raise TooLarge("a product of sums with too many terms")


@functools.lru_cache(65536)
def _order(atom: Atom) -> str:
  return repr(atom)


def _bounded(value: Fraction) -> Fraction:
  if max(value.numerator.bit_length(), value.denominator.bit_length()) > (
    MAX_BITS
  ):
    raise TooLarge(f"a number of more than {MAX_BITS} bits")
  return value


def _rational_power(base: int, exponent: int) -> Fraction:
  if base.bit_length() * abs(exponent) > MAX_BITS:
    raise TooLarge(f"a number of more than {MAX_BITS} bits")
  return Fraction(base) ** exponent


def _reduced(powers: dict[Atom, Fraction]) -> tuple[Monomial, Fraction]:
  """A monomial in its own form, and the number that comes out of it."""
  out, coefficient = [], Fraction(1)
  for atom, exponent in powers.items():
    if atom[0] == "prime":
      whole = math.floor(exponent)
      coefficient *= _rational_power(atom[1], whole)
      exponent -= whole
    elif atom == I and exponent.denominator == 1:
      coefficient *= -1 if exponent % 4 in (2, 3) else 1
      exponent = exponent % 2
    if exponent:
      out.append((atom, exponent))
  out.sort(key=lambda pair: _order(pair[0]))
  return tuple(out), _bounded(coefficient)


@functools.lru_cache(65536)
def _times(a: Monomial, b: Monomial) -> tuple[Monomial, Fraction]:
  if not a or not b:
    return a or b, Fraction(1)
  powers = dict(a)
  for atom, exponent in b:
    powers[atom] = powers.get(atom, Fraction(0)) + exponent
  return _reduced(powers)


def _collected(terms: Iterable[tuple[Monomial, Fraction]], start: Poly) -> Poly:
  """A polynomial and more terms, without those that vanish."""
  out = dict(start)
  for monomial, coefficient in terms:
    value = out.get(monomial, Fraction(0)) + coefficient
    if value:
      out[monomial] = _bounded(value)
    else:
      out.pop(monomial, None)
  if len(out) > MAX_TERMS:
    raise TooLarge(f"a sum of more than {MAX_TERMS} terms")
  return out


def _add(a: Poly, b: Poly, scale: int = 1) -> Poly:
  return _collected(((monomial, scale * x) for monomial, x in b.items()), a)


def _multiply(a: Poly, b: Poly) -> Poly:
  _spend(a, b)

  def terms():
    for one, x in a.items():
      for two, y in b.items():
        monomial, factor = _times(one, two)
        yield monomial, x * y * factor

  return _collected(terms(), {})


def _frozen(poly: Poly) -> tuple:
  return tuple(sorted(poly.items(), key=lambda term: repr(term[0])))


def _inverse_of_term(poly: Poly) -> Poly:
  ((monomial, coefficient),) = poly.items()
  powers = {atom: -exponent for atom, exponent in monomial}
  turned, factor = _reduced(powers)
  return {turned: factor / coefficient}


def _conjugated(poly: Poly, atom: Atom) -> Poly | None:
  """The other sign of i or of the root of a prime; None if it has others."""
  half = Fraction(1) if atom == I else Fraction(1, 2)
  out = {}
  for monomial, coefficient in poly.items():
    exponent = dict(monomial).get(atom, Fraction(0))
    if exponent not in (0, half):
      return None
    out[monomial] = -coefficient if exponent else coefficient
  return out


def _rationalised(num: Poly, den: Poly) -> tuple[Poly, Poly]:
  """Takes i and roots of primes out of a denominator, where that is short."""
  for _ in range(6):
    atoms = {a for m in den for a, _ in m if a == I or a[0] == "prime"}
    if len(den) == 1 or not atoms:
      break
    other = _conjugated(den, min(atoms, key=_order))
    if other is None:
      break
    num, den = _multiply(num, other), _multiply(den, other)
  return num, den


def _divided(num: Poly, den: Poly) -> Poly | None:
  """The quotient of polynomials that divide, by their leading terms."""
  lead = max(den, key=_degrees)
  inverse = _inverse_of_term({lead: den[lead]})
  rest, quotient = dict(num), {}
  for _ in range(100):
    if not rest:
      return quotient
    top = max(rest, key=_degrees)
    step = _multiply({top: rest[top]}, inverse)
    if any(exponent < 0 for m in step for _, exponent in m):
      return None
    quotient = _add(quotient, step)
    rest = _add(rest, _multiply(step, den), -1)
  return None


def _degrees(monomial: Monomial) -> tuple:
  """An order of monomials that products keep: total degree, then by atom."""
  return (
    sum((e for _, e in monomial), Fraction(0)),
    [(_order(atom), exponent) for atom, exponent in reversed(monomial)],
  )


@dataclasses.dataclass(frozen=True)
class Expr:
  """num / den, each a sorted tuple of (monomial, rational) pairs.

  Made by the functions of this module, which keep it in lowest terms where
  that is easy: equal keys are equal expressions, not the other way round.
  """

  num: tuple
  den: tuple = (((), Fraction(1)),)

  def __hash__(self) -> int:
    found = self.__dict__.get("_hash")
    if found is None:
      found = hash((self.num, self.den))
      object.__setattr__(self, "_hash", found)
    return found

  def __add__(self, other: Expr) -> Expr:
    return _sum(self, other, 1)

  def __sub__(self, other: Expr) -> Expr:
    return _sum(self, other, -1)

  def __neg__(self) -> Expr:
    return number(-1) * self

  def __mul__(self, other: Expr) -> Expr:
    return _quotient(
      _multiply(dict(self.num), dict(other.num)),
      _multiply(dict(self.den), dict(other.den)),
    )

  def __truediv__(self, other: Expr) -> Expr:
    if not other.num:
      raise ValueError("a division by zero")
    return _quotient(
      _multiply(dict(self.num), dict(other.den)),
      _multiply(dict(self.den), dict(other.num)),
    )

  @property
  def is_zero(self) -> bool:
    """Whether nothing is left of it."""
    return not self.num

  def rational(self) -> Fraction | None:
    """Its value, if it is a rational number."""
    if not self.num:
      return Fraction(0)
    plain = len(self.num) == 1 and self.num[0][0] == _ONE
    return self.num[0][1] if plain and self.den == ((_ONE, 1),) else None

  def integer(self) -> int | None:
    """Its value, if it is a whole number."""
    value = self.rational()
    return int(value) if value is not None and value.denominator == 1 else None

  def variables(self) -> set[str]:
    """Names of its variables, also within functions and exponents."""
    return _variables((self.num, self.den))


def _variables(thing) -> set[str]:
  if isinstance(thing, Expr):
    thing = (thing.num, thing.den)
  if not isinstance(thing, tuple):
    return set()
  if len(thing) == 2 and thing[0] == "var":
    return {thing[1]}
  return set().union(*map(_variables, thing)) if thing else set()


def _full_root(poly: Poly) -> Atom | None:
  """A root in a polynomial that stands there as often as its index."""
  for monomial in poly:
    for a, exponent in monomial:
      if a[0] == "root" and exponent >= a[1]:
        return a
  return None


def _unrooted(poly: Poly, root: Atom) -> Expr:
  """A polynomial with (b^(1/n))^n replaced by b."""
  total = number(0)
  for monomial, coefficient in poly.items():
    powers = dict(monomial)
    whole, rest = divmod(powers.pop(root, Fraction(0)), root[1])
    if rest:
      powers[root] = rest
    monomial, factor = _reduced(powers)
    term = Expr(((monomial, coefficient * factor),))
    total = total + term * _whole_power(root[2], int(whole))
  return total


def _quotient(num: Poly, den: Poly) -> Expr:
  if not den:
    raise ValueError("a division by zero")
  root = _full_root(num)
  if root is not None:
    return _unrooted(num, root) / Expr(_frozen(den))
  if not num:
    return Expr(())
  if len(den) > 1:
    num, den = _rationalised(num, den)
  if len(den) == 1:
    num, den = _multiply(num, _inverse_of_term(den)), {_ONE: Fraction(1)}
  else:
    whole = _divided(num, den)
    if whole is not None:
      num, den = whole, {_ONE: Fraction(1)}
    else:
      lead = den[max(den, key=_degrees)]
      num = {m: c / lead for m, c in num.items()}
      den = {m: c / lead for m, c in den.items()}
  return Expr(_frozen(num), _frozen(den))


def _sum(a: Expr, b: Expr, sign: int) -> Expr:
  if a.den == b.den:
    return _quotient(_add(dict(a.num), dict(b.num), sign), dict(a.den))
  left = _multiply(dict(a.num), dict(b.den))
  right = _multiply(dict(b.num), dict(a.den))
  return _quotient(_add(left, right, sign), _multiply(dict(a.den), dict(b.den)))


def number(value: int | Fraction) -> Expr:
  """A rational number."""
  value = _bounded(Fraction(value))
  return Expr(((_ONE, value),) if value else ())


def atom(what: Atom) -> Expr:
  """An atom to the power 1."""
  return Expr(((((what, Fraction(1)),), Fraction(1)),))


def variable(name: str) -> Expr:
  """A variable."""
  return atom(("var", name))


def function(name: str, *args: Expr) -> Expr:
  """A function of expressions, known by name and arguments alone."""
  return atom(("fn", name, args))


@functools.lru_cache(4096)
def factored(value: int) -> tuple[tuple[int, int], ...] | None:
  """Primes and exponents of a positive integer; None where it takes long."""
  out, rest = [], value
  for p in range(2, _TRIAL):
    if p * p > rest:
      break
    count = 0
    while rest % p == 0:
      rest, count = rest // p, count + 1
    if count:
      out.append((p, count))
  if rest == 1:
    return tuple(out)
  return (*out, (rest, 1)) if rest < _TRIAL**2 else None


def _positive_power(base: Fraction, exponent: Fraction) -> Expr | None:
  """A positive rational to a rational power; None if it is not factored."""
  powers: dict[Atom, Fraction] = {}
  for value, sign in ((base.numerator, 1), (base.denominator, -1)):
    found = factored(value)
    if found is None:
      return None
    for p, count in found:
      powers[("prime", p)] = sign * count * exponent
  monomial, coefficient = _reduced(powers)
  return Expr(((monomial, coefficient),))


def _whole_power(base: Expr, exponent: int) -> Expr:
  if exponent < 0:
    return number(1) / _whole_power(base, -exponent)
  value = base.rational()
  if value is not None:
    top = max(value.numerator.bit_length(), value.denominator.bit_length())
    if abs(value) != 1 and value and top * exponent > MAX_BITS:
      raise TooLarge(f"a number of more than {MAX_BITS} bits")
    return number(value**exponent)
  if len(base.num) == 1 and len(base.den) == 1:
    ((monomial, coefficient),) = base.num
    powers = {a: e * exponent for a, e in monomial}
    turned, factor = _reduced(powers)
    if coefficient.numerator.bit_length() * exponent > MAX_BITS:
      raise TooLarge(f"a number of more than {MAX_BITS} bits")
    return Expr(((turned, _bounded(factor * coefficient**exponent)),))
  if exponent > MAX_POWER:
    raise TooLarge(f"a sum to a power above {MAX_POWER}")
  out = number(1)
  for _ in range(exponent):
    out = out * base
  return out


def _root(base: Expr, exponent: Fraction) -> Expr:
  """A power that is not whole, of the principal branch."""
  if base.is_zero:
    if exponent < 0:
      raise ValueError("a division by zero")
    return base
  if len(base.den) == 1 and len(base.num) == 1:
    ((monomial, coefficient),) = base.num
    simple = all(
      (a[0] == "prime" or a in (PI, E)) or (a[0] == "var" and e == 1)
      for a, e in monomial
    ) and (sum(a[0] == "var" for a, _ in monomial) <= 1 or coefficient > 0)
    outer = _positive_power(abs(coefficient), exponent)
    if simple and outer is not None and (coefficient > 0 or not monomial):
      turned, factor = _reduced({a: e * exponent for a, e in monomial})
      out = outer * Expr(((turned, factor),))
      return out if coefficient > 0 else out * _root_of_minus_one(exponent)
  content = _content(base)
  outer = None if content == 1 else _positive_power(content, exponent)
  if outer is not None:
    return outer * _opaque_root(base / number(content), exponent)
  return _opaque_root(base, exponent)


def _content(base: Expr) -> Fraction:
  """The largest positive rational that divides all terms of a numerator."""
  tops = [c.numerator for _, c in base.num]
  bottoms = [c.denominator for _, c in base.num]
  return Fraction(math.gcd(*tops), math.lcm(*bottoms))


def _opaque_root(base: Expr, exponent: Fraction) -> Expr:
  inner = Fraction(1, exponent.denominator)
  made: Atom = ("root", exponent.denominator, base)
  whole = math.floor(exponent / inner)
  power, rest = divmod(whole, exponent.denominator)
  out = _whole_power(base, power)
  return out * Expr(((((made, Fraction(rest)),), Fraction(1)),))


def _root_of_minus_one(exponent: Fraction) -> Expr:
  if exponent % 2 == Fraction(1, 2):
    return atom(I)
  if exponent % 2 == Fraction(3, 2):
    return -atom(I)
  return (
    atom(("root", exponent.denominator, number(-1)))
    if (exponent.numerator == 1)
    else function("power", number(-1), number(exponent))
  )


def power(base: Expr, exponent: Expr) -> Expr:
  """base ^ exponent, multiplied out where that is short.

  A power that would grow beyond the bounds stays an atom.
  """
  value = exponent.rational()
  turn = _steps(exponent / atom(I)) if base == atom(E) else None
  if turn:
    return _sine(turn + 6) + atom(I) * _sine(turn)
  try:
    if value is not None and value.denominator == 1:
      return _whole_power(base, int(value))
    if value is not None and value.denominator <= MAX_POWER:
      return _root(base, value)
  except TooLarge:
    return function("power", base, exponent)
  if len(exponent.den) == 1 and exponent.num and not base.is_zero:
    out = number(1)
    for monomial, coefficient in exponent.num:
      if monomial == _ONE:
        out = out * power(base, number(coefficient))
      else:
        out = out * _symbolic(base, monomial, coefficient)
    return out
  return function("power", base, exponent)


def _symbolic(base: Expr, monomial: Monomial, coefficient: Fraction) -> Expr:
  """base ^ (coefficient * monomial), of primes where the base is a number."""
  value = base.rational()
  found = None
  if value is not None and value > 0 and value.denominator == 1:
    found = factored(int(value))
  if found is None:
    found = ((base, 1),)
  else:
    found = tuple((number(p), count) for p, count in found)
  powers = {("pow", of, monomial): count * coefficient for of, count in found}
  turned, factor = _reduced(powers)
  return Expr(((turned, factor),))


# Sines of multiples of 15 degrees, as (coefficient, number under the root).
_SINES = (
  (),
  ((Fraction(1, 4), 6), (Fraction(-1, 4), 2)),
  ((Fraction(1, 2), 1),),
  ((Fraction(1, 2), 2),),
  ((Fraction(1, 2), 3),),
  ((Fraction(1, 4), 6), (Fraction(1, 4), 2)),
  ((Fraction(1), 1),),
)


def _sine(steps: int) -> Expr:
  """The sine of a number of steps of 15 degrees."""
  steps %= 24
  if steps >= 12:
    return -_sine(steps - 12)
  total = number(0)
  for coefficient, root in _SINES[min(steps, 12 - steps)]:
    term = power(number(root), number(Fraction(1, 2)))
    total = total + number(coefficient) * term
  return total


def _steps(angle: Expr) -> int | None:
  """An angle in steps of 15 degrees, if it is a whole number of them."""
  return (angle * number(12) / atom(PI)).integer()


def trigonometric(name: str, angle: Expr) -> Expr:
  """sin, cos, tan, sec, csc or cot; by value at multiples of 15 degrees."""
  steps = _steps(angle)
  if steps is None:
    return function(name, angle)
  sine, cosine = _sine(steps), _sine(steps + 6)
  pairs = {
    "sin": (sine, number(1)),
    "cos": (cosine, number(1)),
    "tan": (sine, cosine),
    "cot": (cosine, sine),
    "sec": (number(1), cosine),
    "csc": (number(1), sine),
  }
  above, below = pairs[name]
  return above / below


def certain(*values: Expr) -> bool:
  """Whether an expression is zero only if nothing is left of it."""
  kinds = {
    a[0]
    for value in values
    for poly in (value.num, value.den)
    for monomial, _ in poly
    for a, _ in monomial
  }
  return kinds <= set(_CERTAIN)
