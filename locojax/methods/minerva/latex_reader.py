"""Answers in LaTeX as values: numbers, sets, intervals, matrices, units, words.

    read_answer(r"3\\frac{1}{2}")      a number, 7/2
    read_answer(r"(-\\infty, 2]")      an interval
    read_answer(r"x \\le 2")           the same one
    read_answer(r"1 \\pm \\sqrt{19}")   two numbers, in no order
    read_answer(r"15\\mbox{ cm}^2")    a number of a unit
    read_answer(r"2215_6")            digits to a base

The text is taken apart into words (`latex_tokens`) and these into formulas
(`latex_scalars`); it is never evaluated as code, and everything is bounded.
What is not understood raises `Unreadable`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from locojax.methods.minerva import exact, latex_scalars, numeric, quantities
from locojax.methods.minerva.latex_tokens import Token, Unreadable, tokens

MAX_PARTS = 100  # of a list, set, tuple or union
_MAX_DEPTH = 12
_OPENING = ("(", "[", "{", "langle", "lfloor", "lceil")
_CLOSING = (")", "]", "}", "rangle", "rfloor", "rceil")
_RELATIONS = ("=", "<", ">", "le", "ge", "ne", "in", "approx")
_ORDERS = {"<": (1, False), "le": (1, True), ">": (-1, False), "ge": (-1, True)}
_POWERS = {"2": 2, "3": 3}


@dataclasses.dataclass(frozen=True)
class Answer:
  """What an answer says.

  Attributes:
    kind: `scalar` (value: an `exact.Expr`), `matrix` (rows of them),
      `collection` (values in no order: lists and sets), `tuple` (brackets and
      values in order: points and intervals), `union` and `difference` (of
      sets), `text` (words), `based` (digits and their base), `clock`, `ratio`,
      `equation` and `inequality` (an expression that is 0, or above it),
      `chain` (expressions, each below the next),
      `named` (a variable and its value, one of several).
    value: as the kind says.
    unit: of a scalar: what it measures and the size of the unit.
  """

  kind: str
  value: Any
  unit: quantities.Unit | None = None


def _is(token: Token, *values: str) -> bool:
  return token.kind in ("symbol", "command") and token.value in values


def _split(parts: Sequence[Token], *separators: str) -> list[tuple]:
  """Parts between separators that stand in no brackets."""
  out, depth = [[]], 0
  for token in parts:
    depth += token.kind == "begin" or _is(token, *_OPENING)
    depth -= token.kind == "end" or _is(token, *_CLOSING)
    said = token.value.lower().strip(" ,.;")
    joining = token.kind == "text" and said in separators
    if depth == 0 and (_is(token, *separators) or joining):
      out.append([])
    else:
      out[-1].append(token)
  if len(out) > MAX_PARTS:
    raise Unreadable(f"more than {MAX_PARTS} parts")
  return [tuple(part) for part in out]


def _enclosed(words: tuple[Token, ...]) -> bool:
  """Whether the first bracket closes with the last word."""
  if len(words) < 2 or not _is(words[0], *_OPENING):
    return False
  depth = 0
  for at, token in enumerate(words):
    depth += token.kind == "begin" or _is(token, *_OPENING)
    depth -= token.kind == "end" or _is(token, *_CLOSING)
    if depth == 0:
      return at == len(words) - 1
  return False


def _symbols(words: Sequence[Token]) -> str:
  """What the words say, in one string without white space."""
  return "".join(t.value for t in words)


# Words.


_NUMBERS = (
  *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight"),
  *("nine", "ten", "eleven", "twelve"),
)


def _worded(text: str) -> Answer:
  """Words as an answer of their own: case, stops and articles do not count."""
  parts = [part for part in text.split(",") if part.strip()]
  if len(parts) > 1:
    return collection([_worded(part) for part in parts])
  if text.strip().lower() in _NUMBERS:
    value = _NUMBERS.index(text.strip().lower())
    return Answer("scalar", exact.number(value))
  words = re.sub(r"[^\w\s]+", " ", text).split()
  while len(words) > 1 and words[0].lower() in ("the", "a", "an"):
    words = words[1:]
  if len(words) == 1 and (words[0].isupper() or len(words[0]) == 1):
    return Answer("scalar", exact.variable(words[0]))
  return Answer("text", " ".join(words).lower())


_NAMES = re.compile(r"\(?[A-Za-z]\)?(?:\s*(?:,|and)\s*\(?[A-Za-z]\)?)*")


def _text_answer(words: tuple[Token, ...]) -> Answer | None:
  """An answer that is words alone, or one written inside of `\\text{}`."""
  if any(t.kind == "text" for t in words) and len(words) == 1:
    text = words[0].value
    if not text:
      raise Unreadable("nothing is there")
    if re.search(r"[\d\\:=]", text) or _NAMES.fullmatch(text):
      return _answer(tokens(text), 1)
    return _worded(text)
  if words and all(t.kind in ("letter", "text") for t in words):
    spaced = "".join(" " * t.spaced + t.value for t in words).strip()
    run = max(map(len, spaced.split()))
    upper = len(words) > 1 and spaced.isupper() and " " not in spaced
    if run >= 4 or upper or any(t.kind == "text" for t in words):
      return _worded(spaced)
  return None


# Clock times, ratios, bases.


def _coloned(words: tuple[Token, ...]) -> Answer | None:
  """`1:03 PM` and `3:5`: a time where two digits follow the colon."""
  plain = _symbols(words).lower().replace(".", "")
  match = re.fullmatch(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(am|pm)?", plain)
  if match and int(match[1]) < 25:
    numbers = tuple(int(part or 0) for part in match.groups()[:3])
    return Answer("clock", (*numbers, match[4] or ""))
  parts = _split(words, ":")
  if len(parts) < 2:
    return None
  values = [_scalar(part) for part in parts]
  if values[0].is_zero:
    raise Unreadable("a ratio that begins with zero")
  return Answer("ratio", tuple(v / values[0] for v in values))


def _based(words: tuple[Token, ...]) -> Answer | None:
  """`2215_6`: digits to a base."""
  plain = _symbols(words)
  match = re.fullmatch(r"(-?)([\dA-F.]+)_\{?(\d{1,2})\.?\}?", plain)
  if match is None or match[2].isalpha() and len(match[2]) < 2:
    return None
  sign, digits, base = match[1], match[2], int(match[3])
  if not 2 <= base <= 36 or len(digits) > 1_000 or digits.count(".") > 1:
    raise Unreadable(f"no number to the base {base}")
  if max(int(c, 36) for c in digits.replace(".", "0")) >= base:
    raise Unreadable(f"a digit that base {base} has not")
  whole, _, rest = digits.partition(".")
  return Answer(
    "based", (sign, whole.lstrip("0") or "0", rest.rstrip("0"), base)
  )


# Units.


def _exponent(words: tuple[Token, ...]) -> tuple[tuple[Token, ...], int]:
  """A power of 2 or 3 taken off the end."""
  for length in (2, 4):
    tail = words[-length:]
    plain = _symbols(tail).replace("{", "").replace("}", "")
    if len(tail) == length and _is(tail[0], "^") and plain[1:] in _POWERS:
      return words[:-length], _POWERS[plain[1:]]
  return words, 1


def _bare_unit(words: tuple[Token, ...]) -> int:
  """Where a unit without `\\text` begins behind a number; else the end."""
  at = len(words)
  while at and words[at - 1].kind == "letter":
    at -= 1
  spaced = "".join(" " * t.spaced + t.value for t in words[at:])
  known = [
    w in quantities.KNOWN or w.removesuffix("s") in quantities.KNOWN
    for w in spaced.lower().split()
  ]
  long = all(len(w) >= 4 for w in spaced.split())
  two = all(len(w) >= 2 for w in spaced.split())
  if at and known and spaced[0] == " " and (long or (all(known) and two)):
    return at
  return len(words)


def _without_unit(
  words: tuple[Token, ...],
) -> tuple[tuple[Token, ...], quantities.Unit | None]:
  """A number and its unit, written before it or behind it."""
  if len(words) > 1 and _is(words[0], "dollar"):
    return words[1:], quantities.read("$")
  if len(words) > 2 and _is(words[0], "-") and _is(words[1], "dollar"):
    return (words[0], *words[2:]), quantities.read("$")
  if len(words) > 1 and _is(words[-1], "percent"):
    return words[:-1], quantities.read("%")
  applied = any(_is(t, *latex_scalars.FUNCTIONS) for t in words)
  for count, ending in ((2, "^circ"), (4, "^{circ}")):
    if len(words) > count and _symbols(words[-count:]) == ending:
      if applied:
        return words, None
      return words[:-count], quantities.read("degree")
  rest, exponent = _exponent(words)
  end = len(rest)
  while end and rest[end - 1].kind == "text":
    end -= 1
  if end == len(rest):
    end = _bare_unit(rest)
  if end in (0, len(rest)):
    return words, None
  written = "".join(" " * t.spaced + t.value for t in rest[end:])
  if exponent == 1 and not written.strip(" ."):
    return rest[:end], None
  return rest[:end], quantities.read(written, exponent)


# Numbers, points, sets.


def _scalar(words: tuple[Token, ...]) -> exact.Expr:
  (value, *others) = latex_scalars.read(words)
  if others or isinstance(value, tuple):
    raise Unreadable("a number was expected")
  return value


def _formula(words: tuple[Token, ...]) -> Answer:
  rest, unit = _without_unit(words)
  if unit is not None or rest != words:
    inner = _text_answer(rest)
    values = [] if inner else latex_scalars.read(rest)
    if inner:
      raise Unreadable("words with a unit")
  else:
    values = latex_scalars.read(rest)
  kinds = ["matrix" if isinstance(v, tuple) else "scalar" for v in values]
  found = [
    Answer(kind, value, unit if kind == "scalar" else None)
    for kind, value in zip(kinds, values, strict=True)
  ]
  return found[0] if len(found) == 1 else collection(found)


def collection(parts: Sequence[Answer]) -> Answer:
  """Values in no order, each once."""
  return Answer("collection", tuple(dict.fromkeys(parts)))


def _listed(parts: list[tuple], depth: int) -> Answer:
  """A list with commas: values in no order, those of a variable by name."""
  parts = [p for p in parts if p]
  names = [_definition(p) for p in parts]
  several = len({n for n in names if n}) > 1
  found = [
    Answer("named", (name, _answer(part, depth + 1)))
    if several and name
    else _answer(part, depth + 1)
    for name, part in zip(names, parts, strict=True)
  ]
  return found[0] if len(found) == 1 else collection(found)


def _definition(words: tuple[Token, ...]) -> str | None:
  """The name before an equals sign, if nothing else stands there."""
  sides = _split(words, "=")
  if len(sides) < 2:
    return None
  return _lone_name(sides[0])


def _lone_name(words: tuple[Token, ...]) -> str | None:
  """A variable, `f(x)` or words, as one side of an equation."""
  if not words:
    return None
  if all(t.kind == "text" for t in words):
    return _symbols(words)
  plain = _symbols(words)
  inner = r"(?:_\{?\w+\}?)?'*(?:\([a-zA-Z](?:,[a-zA-Z])*\))?"
  if re.fullmatch(rf"[a-zA-Z]{inner}|[A-Z]+", plain):
    return plain
  single = len(words) == 1 and words[0].kind == "command"
  return plain if single and words[0].value in latex_scalars.GREEK else None


def _bracketed(words: tuple[Token, ...], depth: int) -> Answer | None:
  """A point, interval or set in its brackets."""
  if not _enclosed(words):
    return None
  opening, closing, inside = words[0], words[-1], words[1:-1]
  if opening.kind == "command" and opening.value == "{":
    return _set(inside, depth)
  if opening.value == "{":
    return _answer(inside, depth + 1)
  parts = _split(inside, ",", ";")
  if len(parts) == 1:
    if opening.value in ("(", "[") and inside and inside[-1].kind == "text":
      return _answer(inside, depth + 1)
    return None
  values = tuple(_answer(part, depth + 1) for part in parts)
  brackets = opening.value + closing.value
  if len(values) > 2 or brackets not in ("()", "[]", "(]", "[)"):
    brackets = "()"
  return Answer("tuple", (brackets, values))


def _set(inside: tuple[Token, ...], depth: int) -> Answer:
  rule = _split(inside, "|", ":")
  if len(rule) == 2:
    return _answer(rule[1], depth + 1)
  if not inside:
    return collection(())
  found = _listed(_split(inside, ",", ";"), depth)
  if found.kind == "collection":
    return found
  return collection((found,))


_REALS = Answer(
  "tuple",
  (
    "()",
    (
      Answer("scalar", -exact.atom(exact.OO)),
      Answer("scalar", exact.atom(exact.OO)),
    ),
  ),
)


def _sets(words: tuple[Token, ...], depth: int) -> Answer | None:
  """Unions and differences of sets, the reals, the empty set."""
  plain = _symbols(words)
  if plain in ("emptyset", "mathbb{R}", "mathbbR"):
    return collection(()) if plain == "emptyset" else _REALS
  parts = _split(words, "cup")
  if len(parts) > 1:
    return _union([_answer(part, depth + 1) for part in parts])
  parts = _split(words, "setminus", "backslash")
  if len(parts) == 2:
    return _without(*(_answer(part, depth + 1) for part in parts))
  return None


def _without(whole: Answer, part: Answer) -> Answer:
  """A set without another; an interval without points is a union."""
  if whole.kind == "tuple" and part.kind == "collection":
    (brackets, (low, high)), ends = whole.value, _ends(whole)
    points = [(numeric.real(p.value), p) for p in part.value]
    inside = ends is not None and all(
      x is not None and ends[0] < x < ends[1] for x, _ in points
    )
    if inside and points:
      stops = [p for _, p in sorted(points, key=lambda pair: pair[0])]
      pairs = zip([low, *stops], [*stops, high], strict=True)
      parts = [["()", pair] for pair in pairs]
      parts[0][0], parts[-1][0] = brackets[0] + ")", "(" + brackets[1]
      return _union([Answer("tuple", tuple(each)) for each in parts])
  return Answer("difference", (whole, part))


def _union(parts: list[Answer]) -> Answer:
  """The union of intervals and sets, those that touch put together."""
  points = [v for p in parts if p.kind == "collection" for v in p.value]
  intervals = [p for p in parts if p.kind == "tuple" and len(p.value[1]) == 2]
  if len(intervals) + sum(p.kind == "collection" for p in parts) < len(parts):
    raise Unreadable("a union of what are no sets")
  if not intervals:
    return collection(points)
  singles = [Answer("tuple", ("[]", (p, p))) for p in points]
  ordered = [(_ends(p), p) for p in (*intervals, *singles)]
  if any(ends is None for ends, _ in ordered):
    return Answer("union", tuple(dict.fromkeys(intervals + singles)))
  return _merged(sorted(ordered, key=lambda pair: pair[0]))


def _ends(interval: Answer) -> tuple[float, float] | None:
  """Both ends as floats, infinities included; None for formulas."""
  out = []
  for end in interval.value[1]:
    if end.kind != "scalar":
      return None
    infinite = end.value == exact.atom(exact.OO)
    negative = end.value == -exact.atom(exact.OO)
    size = float("inf") if infinite else numeric.real(end.value)
    out.append(float("-inf") if negative else size)
  return None if None in out else (out[0], out[1])


def _merged(ordered: list[tuple[tuple[float, float], Answer]]) -> Answer:
  """A union of intervals in order, none of which touches the next."""
  out: list[tuple[tuple[float, float], Answer]] = []
  for (low, high), part in ordered:
    if out:
      (first, last), before = out[-1]
      brackets, (start, end) = before.value
      closed = brackets[1] == "]" or part.value[0][0] == "["
      if low < last or (low == last and closed):
        longer = high > last or (high == last and part.value[0][1] == "]")
        if longer:
          brackets, end = brackets[0] + part.value[0][1], part.value[1][1]
        joined = Answer("tuple", (brackets, (start, end)))
        out[-1] = ((first, max(high, last)), joined)
        continue
    out.append(((low, high), part))
  parts = tuple(part for _, part in out)
  return parts[0] if len(parts) == 1 else Answer("union", parts)


# Equations and inequalities.


def _related(words: tuple[Token, ...], depth: int) -> Answer | None:
  """Equations, inequalities and memberships."""
  signs = [t.value for t in _outside(words) if _is(t, *_RELATIONS)]
  if not signs:
    return None
  sides = _split(words, *_RELATIONS)
  if any(not side for side in sides[1:]) or (
    not sides[0] and signs[0] not in ("=", "approx")
  ):
    raise Unreadable("a relation without a side")
  if set(signs) <= {"=", "approx"}:
    return _equated(signs, sides, depth)
  if signs == ["in"]:
    return _answer(sides[1], depth + 1)
  if signs == ["ne"]:
    return _without(_REALS, _solved(sides))
  if len(sides) > 3 or not set(signs) <= set(_ORDERS):
    raise Unreadable("relations of several kinds")
  return _ordered(signs, [_scalar(side) for side in sides])


def _outside(words: tuple[Token, ...]) -> list[Token]:
  """The words that stand in no brackets."""
  out, depth = [], 0
  for token in words:
    depth -= token.kind == "end" or _is(token, *_CLOSING)
    if depth == 0:
      out.append(token)
    depth += token.kind == "begin" or _is(token, *_OPENING)
  return out


def _equated(signs: list[str], sides: list[tuple], depth: int) -> Answer:
  """The last side, what is only about the same left out; or an equation."""
  if "approx" in signs:
    sides = [s for s in sides[: signs.index("approx") + 1] if s] or sides[1:]
  if len(sides) != 2 or not sides[0] or _lone_name(sides[0]) is not None:
    return _answer(sides[-1], depth + 1)
  variables = [_scalar(_without_unit(side)[0]).variables() for side in sides]
  if not any(variables):
    return _answer(sides[-1], depth + 1)
  return _equation(sides)


def _equation(sides: list[tuple]) -> Answer:
  """left - right, up to a factor."""
  found = _scalar(sides[0]) - _scalar(sides[1])
  if found.is_zero:
    return Answer("equation", found)
  lead = min(found.num, key=lambda term: repr(term[0]))[1]
  return Answer("equation", found / exact.number(lead))


def _solved(sides: list[tuple]) -> Answer:
  left, right = (_scalar(side) for side in sides)
  if len(left.variables()) == 1 and left == exact.variable(*left.variables()):
    return collection([Answer("scalar", right)])
  raise Unreadable("an inequation that is not solved")


def _linear(value: exact.Expr) -> tuple[Fraction, exact.Expr] | None:
  """a and b / a of a * x + b, for one variable x and rational a."""
  names = value.variables()
  if len(names) != 1:
    return None
  x = exact.variable(*names)
  (power,) = x.num[0][:1]
  found = dict(value.num).get(power)
  rest = None if found is None else value - x * exact.number(found)
  if rest is None or rest.variables():
    return None
  return found, rest / exact.number(found)


def _ordered(signs: list[str], values: list[exact.Expr]) -> Answer:
  """An inequality as an interval of its variable, where there is one."""
  if len(values) == 2:
    direction, closed = _ORDERS[signs[0]]
    above = (values[1] - values[0]) * exact.number(direction)
    solved = _linear(above)
    if solved is None:
      return _inequality(above, closed)
    return _half_line(solved[0] > 0, -solved[1], closed)
  ways = [_ORDERS[sign] for sign in signs]
  middle = values[1].variables()
  if ways[0][0] != ways[1][0]:
    raise Unreadable("a chain of inequalities in both directions")
  if ways[0][0] < 0:
    values, ways = values[::-1], ways[::-1]
  ends, closed = [values[0], values[2]], [way[1] for way in ways]
  lone = len(middle) == 1 and values[1] == exact.variable(*middle)
  if not lone or any(end.variables() for end in ends):
    return Answer("chain", (tuple(closed), tuple(values)))
  brackets = ("[" if closed[0] else "(") + ("]" if closed[1] else ")")
  return Answer(
    "tuple", (brackets, tuple(Answer("scalar", end) for end in ends))
  )


def _half_line(upwards: bool, end: exact.Expr, closed: bool) -> Answer:
  bound = Answer("scalar", end)
  low, high = _REALS.value[1]
  if upwards:
    return Answer("tuple", ("[)" if closed else "()", (bound, high)))
  return Answer("tuple", ("(]" if closed else "()", (low, bound)))


def _inequality(above: exact.Expr, closed: bool) -> Answer:
  """Something that is above 0, or at it, up to a positive factor."""
  if above.is_zero:
    return Answer("inequality", (above, closed))
  lead = min(above.num, key=lambda term: repr(term[0]))[1]
  return Answer("inequality", (above / exact.number(abs(lead)), closed))


def _answer(words: tuple[Token, ...], depth: int) -> Answer:
  """The value of some words, by the first form that fits them."""
  if depth > _MAX_DEPTH:
    raise Unreadable(f"nested deeper than {_MAX_DEPTH}")
  if not words:
    raise Unreadable("nothing is there")
  found = _text_answer(words)
  if found is not None:
    return found
  parts = _split(words, ",", ";", "or", "and")
  if len(parts) > 1:
    return _listed(parts, depth)
  for form in (_related, _sets, _bracketed):
    found = form(words, depth)
    if found is not None:
      return found
  return _coloned(words) or _based(words) or _formula(words)


def read_answer(text: str) -> Answer:
  """The value of an answer.

  Args:
    text: LaTeX with or without dollar signs around it, or plain text.

  Returns:
    The value, by kind; see `Answer`. Lists in no brackets and in braces are
    collections in no order; `(1, 2)` is a point and an interval at once; a
    name before an equals sign is left out.

  Raises:
    Unreadable: not understood, or beyond the bounds in length or depth.
  """
  try:
    with exact.limited():
      return _answer(tokens(text), 0)
  except RecursionError as error:
    raise Unreadable("nested too deep") from error
  except (ValueError, ArithmeticError) as error:
    if isinstance(error, Unreadable):
      raise
    raise Unreadable(str(error)) from error
