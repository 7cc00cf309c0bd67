"""Formulas of LaTeX as exact expressions, or matrices of them.

A recursive descent over tokens, bounded in depth; what it does not know is
refused as `Unreadable` and never guessed. Nothing is ever evaluated as code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from locojax.methods.minerva import exact, functions, numeric
from locojax.methods.minerva.latex_tokens import Token, Unreadable

MAX_DEPTH = 40
MAX_FACTORIAL = 500
Matrix = tuple[tuple[exact.Expr, ...], ...]
Value = exact.Expr | Matrix

_MATRICES = frozenset(
  ["matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"]
)
FUNCTIONS = frozenset(
  functions.TRIGONOMETRIC
  + ("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh")
  + ("ln", "log", "exp", "gcd", "lcm", "min", "max", "det", "arg", "deg")
  + ("Re", "Im", "lg", "sgn")
)
GREEK = frozenset(
  (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"),
    *("iota", "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau"),
    *("upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta"),
    *("Lambda", "Xi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "hbar"),
    *("ell", "partial", "nabla", "odot"),
  )
)
_ACCENTS = frozenset(
  ("dot", "ddot", "hat", "vec", "tilde", "overrightarrow", "widehat")
)


def _is(token: Token | None, *values: str) -> bool:
  return (
    token is not None
    and token.kind in ("symbol", "command")
    and token.value in values
  )


def _is_matrix(value: Value) -> bool:
  return isinstance(value, tuple)


def plus(a: Value, b: Value, sign: int = 1) -> Value:
  """a + b or a - b, by element for matrices."""
  if not _is_matrix(a) and not _is_matrix(b):
    return a + b if sign > 0 else a - b
  shapes = [(len(v), len(v[0])) if _is_matrix(v) else () for v in (a, b)]
  if shapes[0] != shapes[1]:
    raise Unreadable("a sum of matrices that differ in shape")
  return tuple(
    tuple(plus(x, y, sign) for x, y in zip(r, s, strict=True))
    for r, s in zip(a, b, strict=True)
  )


def times(a: Value, b: Value) -> Value:
  """a * b, where at most one is a matrix."""
  if _is_matrix(a) and _is_matrix(b):
    raise Unreadable("a product of matrices")
  if _is_matrix(a):
    a, b = b, a
  if _is_matrix(b):
    return tuple(tuple(a * x for x in row) for row in b)
  return a * b


def decimal(text: str) -> Fraction:
  """The value of a numeral such as `.5`, `2.` or `4.5e33`."""
  mantissa, _, exponent = text.lower().partition("e")
  if len(mantissa) > 1_000 or len(exponent) > 5:
    raise Unreadable("a numeral that is too long")
  power = int(exponent or 0)
  if abs(power) > 2_000:
    raise Unreadable("a numeral that is too large")
  return Fraction(mantissa.rstrip(".")) * Fraction(10) ** power


class Reader:
  """Reads the tokens of one formula; `whole` gives its value.

  Args:
    tokens: of the formula.
    sign: what `\\pm` stands for, 1 or -1.
  """

  def __init__(self, tokens: tuple[Token, ...], sign: int = 1):
    self._tokens = list(tokens)
    self._at = 0
    self._depth = 0
    self._sign = sign

  def whole(self) -> Value:
    """The value of all tokens.

    Raises:
      Unreadable: they are no formula that is known here.
    """
    value = self._sum()
    if self._at < len(self._tokens):
      raise Unreadable(f"{self._tokens[self._at].value!r} is not expected")
    return value

  def _peek(self, ahead: int = 0) -> Token | None:
    at = self._at + ahead
    return self._tokens[at] if at < len(self._tokens) else None

  def _next(self) -> Token:
    token = self._peek()
    if token is None:
      raise Unreadable("it ends too early")
    self._at += 1
    return token

  def _take(self, *values: str) -> bool:
    if _is(self._peek(), *values):
      self._at += 1
      return True
    return False

  def _expect(self, *values: str) -> None:
    if not self._take(*values):
      found = self._peek()
      raise Unreadable(
        f"{values[0]!r} expected, not {found.value if found else 'the end'!r}"
      )

  def _sum(self) -> Value:
    self._depth += 1
    if self._depth > MAX_DEPTH:
      raise Unreadable(f"nested deeper than {MAX_DEPTH}")
    total = None
    while True:
      sign = self._signs()
      if sign is None and total is not None:
        break
      term = self._product()
      if sign == -1:
        term = times(exact.number(-1), term)
      total = term if total is None else plus(total, term)
    self._depth -= 1
    return total

  def _signs(self) -> int | None:
    """The product of the signs that stand here, or None."""
    sign = None
    while _is(self._peek(), "+", "-", "pm", "mp"):
      value = self._next().value
      one = {"+": 1, "-": -1, "pm": self._sign, "mp": -self._sign}[value]
      sign = one * (sign or 1)
    return sign

  def _product(self) -> Value:
    value = self._factor()
    while True:
      if self._take("*"):
        value = times(value, self._signed_factor())
      elif self._take("/"):
        value = self._over(value, self._signed_factor())
      elif self._starts():
        self._refuse_two_numbers()
        value = times(value, self._factor())
      else:
        return value

  def _over(self, above: Value, below: Value) -> Value:
    if _is_matrix(below):
      raise Unreadable("a division by a matrix")
    return times(above, exact.number(1) / below)

  def _refuse_two_numbers(self) -> None:
    before, here = self._tokens[self._at - 1], self._peek()
    if before.kind == here.kind == "number":
      raise Unreadable("two numbers side by side")

  def _signed_factor(self) -> Value:
    sign = self._signs()
    value = self._factor()
    return times(exact.number(-1), value) if sign == -1 else value

  def _starts(self) -> bool:
    """Whether a factor begins here."""
    token = self._peek()
    if token is None or token.kind in ("text", "end", "row"):
      return False
    if token.kind in ("number", "letter", "begin"):
      return True
    if token.kind == "symbol":
      return token.value in ("(", "[", "{")
    known = FUNCTIONS | GREEK | _ACCENTS | {"overline", "triangle", "angle"}
    return token.value in known or token.value in self._commands()

  def _commands(self) -> dict[str, Callable[[], Value]]:
    return {
      "frac": self._fraction,
      "sqrt": self._square_root,
      "binom": self._binomial,
      "pi": lambda: exact.atom(exact.PI),
      "infty": lambda: exact.atom(exact.OO),
      "lfloor": lambda: self._rounded("rfloor", math.floor),
      "lceil": lambda: self._rounded("rceil", math.ceil),
    }

  def _factor(self) -> Value:
    value = self._base()
    while True:
      if self._take("^"):
        value = self._raised(value)
      elif self._take("!"):
        value = self._factorial(value)
      elif self._take("percent"):
        value = times(exact.number(Fraction(1, 100)), value)
      else:
        return value

  def _raised(self, base: Value) -> Value:
    if self._take("circ") or self._braced_degree():
      return times(exact.atom(exact.PI) / exact.number(180), base)
    exponent = self._argument(whole=True)
    if _is_matrix(base) or _is_matrix(exponent):
      raise Unreadable("a power of a matrix")
    return exact.power(base, exponent)

  def _braced_degree(self) -> bool:
    inner = [self._peek(k) for k in range(3)]
    found = _is(inner[0], "{") and _is(inner[1], "circ") and _is(inner[2], "}")
    self._at += 3 if found else 0
    return found

  def _factorial(self, value: Value) -> exact.Expr:
    n = None if _is_matrix(value) else value.integer()
    if n is None or n < 0:
      raise Unreadable("a factorial of what is no whole number")
    if n > MAX_FACTORIAL:
      return exact.function("factorial", value)
    return exact.number(math.factorial(n))

  def _argument(self, *, whole: bool = False) -> Value:
    """What a command or a power takes: a group, or one token.

    Args:
      whole: whether a numeral without braces is taken whole, as in `2^10`.
    """
    token = self._peek()
    if _is(token, "-", "+") and whole:
      self._at += 1
      value = self._argument(whole=True)
      return times(exact.number(-1 if token.value == "-" else 1), value)
    if token is not None and token.kind == "number" and not whole:
      return exact.number(int(self._digit()))
    if _is(token, "{"):
      return self._group("{", "}")
    if _is(token, "frac", "sqrt"):
      self._at += 1
      return self._commands()[token.value]()
    return self._base(bare=True)

  def _digit(self) -> str:
    """The first digit of a numeral; the rest stays."""
    token = self._next()
    if not token.value[0].isdigit():
      raise Unreadable("a decimal without braces")
    if len(token.value) > 1:
      self._at -= 1
      self._tokens[self._at] = Token("number", token.value[1:])
    return token.value[0]

  def _group(self, opening: str, closing: str) -> Value:
    self._expect(opening)
    value = self._sum()
    self._expect(closing)
    return value

  def _base(self, *, bare: bool = False) -> Value:
    token = self._next()
    if token.kind == "number":
      return self._number(token)
    if token.kind == "letter":
      return self._letter(token.value, bare=bare)
    if token.kind == "begin":
      return self._matrix(token.value)
    for opening, closing in ("()", "[]", "{}", "||"):
      if _is(token, opening) and token.kind == "symbol":
        value = self._sum()
        self._expect(closing)
        return self._absolute(value) if opening == "|" else value
    if token.kind == "command":
      return self._command(token.value, bare=bare)
    raise Unreadable(f"{token.value!r} is not expected")

  def _absolute(self, value: Value) -> exact.Expr:
    if _is_matrix(value):
      raise Unreadable("bars around a matrix")
    known = numeric.real(value)
    if known is not None and abs(known) > 1e-9:
      return value if known > 0 else -value
    return value if value.is_zero else exact.function("abs", value)

  def _command(self, name: str, *, bare: bool) -> Value:
    commands = self._commands()
    if name in commands:
      return commands[name]()
    if name in FUNCTIONS:
      return self._applied(name)
    if name == "overline" or name in ("triangle", "angle"):
      return exact.variable(f"{name} {self._capitals()}")
    if name in _ACCENTS:
      return self._named(f"{name} {self._written()}", bare=bare)
    if name in GREEK:
      return self._named(name, bare=bare)
    raise Unreadable(f"\\{name} is not known")

  def _number(self, token: Token) -> exact.Expr:
    if self._take("overline"):
      return self._repeating(token.value)
    value = decimal(token.value)
    part = self._mixed_part() if value.denominator == 1 else None
    return exact.number(value + (part or 0))

  def _repeating(self, head: str) -> exact.Expr:
    period = "".join(t.value for t in self._braces())
    if "." not in head or not period.isdigit() or len(period) > 200:
      raise Unreadable("a line over what is no period of decimals")
    places = len(head.partition(".")[2])
    part = Fraction(int(period), 10 ** len(period) - 1)
    return exact.number(decimal(head) + part / 10**places)

  def _mixed_part(self) -> Fraction | None:
    """The proper fraction of whole numbers after a whole number: 3\\frac12."""
    start, kept = self._at, list(self._tokens)
    parts = self._slashed() or self._stacked()
    if parts is not None and 0 < parts[0] < parts[1]:
      return Fraction(*parts)
    self._at, self._tokens = start, kept
    return None

  def _slashed(self) -> tuple[int, int] | None:
    """Numerator and denominator of `3 1/2` after the 3."""
    top, slash, bottom = (self._peek(k) for k in range(3))
    if (
      top is None
      or bottom is None
      or top.kind != "number"
      or bottom.kind != "number"
      or slash.value != "/"
      or not (top.value.isdigit() and bottom.value.isdigit())
    ):
      return None
    self._at += 3
    return int(top.value), int(bottom.value)

  def _stacked(self) -> tuple[int, int] | None:
    if not self._take("frac"):
      return None
    parts = []
    for _ in range(2):
      here = self._peek()
      if here is not None and here.kind == "number":
        written = self._digit()
      elif _is(here, "{"):
        written = "".join(t.value for t in self._braces())
      else:
        return None
      if not written.isdigit() or len(written) > 1_000:
        return None
      parts.append(int(written))
    return parts[0], parts[1]

  def _braces(self) -> list[Token]:
    """The tokens of a group, or the one that stands without braces."""
    if not self._take("{"):
      return [self._next()]
    out, depth = [], 1
    while True:
      token = self._next()
      depth += _is(token, "{") - _is(token, "}")
      if depth == 0:
        return out
      out.append(token)

  def _capitals(self) -> str:
    """Letters that name points, in a group or not."""
    if _is(self._peek(), "{"):
      return self._written()
    out = ""
    while self._peek() is not None and self._peek().value.isupper():
      out += self._next().value
    return out

  def _written(self) -> str:
    return " ".join(t.value for t in self._braces())

  def _letter(self, name: str, *, bare: bool) -> Value:
    if name == "i" and not _is(self._peek(), "_", "("):
      return exact.atom(exact.I)
    if name == "e" and not _is(self._peek(), "_", "("):
      return exact.atom(exact.E)
    return self._named(name, bare=bare)

  def _named(self, name: str, *, bare: bool = False) -> exact.Expr:
    """A variable with its subscript and primes, or a function applied."""
    if bare:
      return exact.variable(name)
    if self._take("_"):
      name = f"{name}_{self._written()}"
    while self._primed():
      name += "'"
    if self._applies():
      self._at += 1
      value = self._sum()
      self._expect(")")
      return exact.function(name, value)
    return exact.variable(name)

  def _primed(self) -> bool:
    if self._take("'"):
      return True
    ahead = [self._peek(k) for k in range(4)]
    short = _is(ahead[0], "^") and _is(ahead[1], "prime")
    long = (
      _is(ahead[0], "^")
      and _is(ahead[1], "{")
      and _is(ahead[2], "prime")
      and _is(ahead[3], "}")
    )
    self._at += 2 if short else 4 if long else 0
    return short or long

  def _applies(self) -> bool:
    """Whether `(t)` or `(0)` stands here: one letter or number in brackets."""
    opening, inner, closing = (self._peek(k) for k in range(3))
    return (
      _is(opening, "(")
      and inner is not None
      and (inner.kind in ("letter", "number") or inner.value in GREEK)
      and _is(closing, ")")
    )

  def _fraction(self) -> Value:
    derivative = self._derivative()
    if derivative is not None:
      return derivative
    above = self._argument()
    return self._over(above, self._argument())

  def _derivative(self) -> exact.Expr | None:
    """`\\frac{d y}{d t}`, a name by how it is written."""
    start = self._at
    if _is(self._peek(), "{"):
      top = self._braces()
      if _is(self._peek(), "{") and top and top[0].value in ("d", "partial"):
        bottom = self._braces()
        if len(bottom) > 1 and bottom[0].value == top[0].value:
          words = [" ".join(t.value for t in part) for part in (top, bottom)]
          return exact.variable(" / ".join(words))
    self._at = start
    return None

  def _square_root(self) -> exact.Expr:
    index = exact.number(2)
    if self._take("["):
      index = self._sum()
      self._expect("]")
    base, n = self._argument(), index.integer()
    if _is_matrix(base) or n is None or not 1 <= n <= exact.MAX_POWER:
      raise Unreadable("a root of a kind that is not known")
    value, power = base.rational(), exact.number(Fraction(1, n))
    if n % 2 and value is not None and value < 0:
      return -exact.power(-base, power)
    return exact.power(base, power)

  def _binomial(self) -> exact.Expr:
    top, bottom = self._argument(), self._argument()
    if _is_matrix(top) or _is_matrix(bottom):
      raise Unreadable("a binomial of matrices")
    n, k = top.integer(), bottom.integer()
    if n is None or k is None or not 0 <= k <= n <= MAX_FACTORIAL:
      return exact.function("binom", top, bottom)
    return exact.number(math.comb(n, k))

  def _rounded(self, closing: str, rule: Callable) -> exact.Expr:
    value = self._sum()
    self._expect(closing)
    known = None if _is_matrix(value) else value.rational()
    if known is None:
      raise Unreadable("a rounded value of what is no rational number")
    return exact.number(rule(known))

  def _applied(self, name: str) -> exact.Expr:
    """A function, base, power and argument: `\\log_2 x`, `\\sin^2 t`."""
    base = self._argument(whole=True) if self._take("_") else None
    power = self._argument(whole=True) if self._take("^") else None
    if base is None and self._take("_"):
      base = self._argument(whole=True)
    args = self._function_arguments()
    if power is not None and power.rational() == -1:
      name, power = f"arc{name}", None
    value = functions.evaluated(name, base, args)
    return value if power is None else exact.power(value, power)

  def _function_arguments(self) -> list[exact.Expr]:
    """What stands in brackets or braces, else the factors up to a sign."""
    for opening, closing in ("()", "{}", "[]"):
      if _is(self._peek(), opening):
        self._at += 1
        args = [self._sum()]
        while self._take(","):
          args.append(self._sum())
        self._expect(closing)
        break
    else:
      args = [self._signed_factor()]
      while self._starts() and not _is(self._peek(), *FUNCTIONS, "("):
        args[0] = times(args[0], self._factor())
    if any(map(_is_matrix, args)):
      raise Unreadable("a function of a matrix")
    return args

  def _matrix(self, name: str) -> Matrix:
    if name not in _MATRICES:
      raise Unreadable(f"the environment {name!r} is not known")
    rows, row = [], []
    while True:
      row.append(self._cell())
      token = self._next()
      if _is(token, "&"):
        continue
      rows.append(tuple(row))
      row = []
      ending = self._peek()
      if token.kind == "row" and ending is not None and ending.kind == "end":
        token = self._next()
      if token.kind == "end":
        break
      if token.kind != "row":
        raise Unreadable(f"{token.value!r} in a matrix")
    if len({len(r) for r in rows}) != 1:
      raise Unreadable("a matrix with rows of different length")
    return tuple(rows)

  def _cell(self) -> exact.Expr:
    value = self._sum()
    if _is_matrix(value):
      raise Unreadable("a matrix in a matrix")
    return value


def read(tokens: tuple[Token, ...]) -> list[Value]:
  """The values of a formula: one, or two where it has `\\pm`.

  Raises:
    Unreadable: no formula that is known here.
  """
  if not tokens:
    raise Unreadable("nothing is there")
  signs = (1, -1) if any(_is(t, "pm", "mp") for t in tokens) else (1,)
  try:
    return [Reader(tokens, sign).whole() for sign in signs]
  except Unreadable:
    raise
  except (ValueError, ArithmeticError) as error:
    raise Unreadable(str(error)) from error
