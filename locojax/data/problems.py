"""School mathematics drawn from a seed: a question, its solution in steps.

    found = problems.draw(rng, "equation", size=9)
    found.question, found.steps, found.answer

Four kinds: linear equations, sums of fractions, products of brackets, powers.
Mathematics is written in LaTeX. `strip_notation` is what the usual cleaning of
web pages does to it: symbols, commands and braces go, words and digits stay.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

from locojax.core import checks


@dataclasses.dataclass(frozen=True)
class Problem:
  """A question with its solution.

  Attributes:
    kind: one of `KINDS`.
    question: what is asked, without a number of its own.
    steps: the solution, one line.
    answer: its end, in LaTeX, reduced.
  """

  kind: str
  question: str
  steps: str
  answer: str


def _signed(value: int) -> str:
  """With its sign, as it follows something: `+3`, `-3`."""
  return f"+{value}" if value >= 0 else str(value)


def _between(rng: np.random.Generator, low: int, high: int) -> int:
  return int(rng.integers(low, high + 1))


def _nonzero(rng: np.random.Generator, size: int) -> int:
  value = _between(rng, 1, size)
  return value if rng.random() < 0.5 else -value


def fraction(above: int, below: int) -> str:
  """A reduced fraction in LaTeX, a whole number as such."""
  sign = -1 if below < 0 else 1
  common = math.gcd(above, below) * sign
  above, below = above // common, below // common
  if below == 1:
    return str(above)
  return f"{'-' if above < 0 else ''}\\frac{{{abs(above)}}}{{{below}}}"


def _equation(rng: np.random.Generator, size: int) -> Problem:
  """a x + b = c."""
  a, b = _between(rng, 2, size), _nonzero(rng, 2 * size)
  x = _nonzero(rng, size)
  c = a * x + b
  steps = f"${a}x={c}{_signed(-b)}={c - b}$, $x=\\frac{{{c - b}}}{{{a}}}={x}$"
  return Problem("equation", f"Solve ${a}x{_signed(b)}={c}$.", steps, str(x))


def _fractions(rng: np.random.Generator, size: int) -> Problem:
  """a / b + c / d."""
  a, b = _between(rng, 1, size), _between(rng, 2, size)
  c, d = _between(rng, 1, size), _between(rng, 2, size)
  sign, word = (1, "+") if rng.random() < 0.5 else (-1, "-")
  one, two, below = a * d, b * c, b * d
  above = one + sign * two
  answer = fraction(above, below)
  steps = (
    f"$\\frac{{{one}{word}{two}}}{{{below}}}=\\frac{{{above}}}{{{below}}}="
    f"{answer}$"
  )
  asked = f"Find $\\frac{{{a}}}{{{b}}}{word}\\frac{{{c}}}{{{d}}}$."
  return Problem("fractions", asked, steps, answer)


def _brackets(rng: np.random.Generator, size: int) -> Problem:
  """a (b + c) + d."""
  a, b = _between(rng, 2, size), _between(rng, 1, 2 * size)
  c, d = _nonzero(rng, 2 * size), _nonzero(rng, 2 * size)
  inner = b + c
  total = a * inner + d
  steps = f"${a}({inner}){_signed(d)}={a * inner}{_signed(d)}={total}$"
  asked = f"Find ${a}({b}{_signed(c)}){_signed(d)}$."
  return Problem("brackets", asked, steps, str(total))


def _powers(rng: np.random.Generator, size: int) -> Problem:
  """a^2 + b c."""
  a, b, c = (_between(rng, 2, size) for _ in range(3))
  sign, word = (1, "+") if rng.random() < 0.5 else (-1, "-")
  total = a * a + sign * b * c
  steps = f"${a * a}{word}{b * c}={total}$"
  asked = f"Find ${a}^{{2}}{word}{b}\\cdot {c}$."
  return Problem("powers", asked, steps, str(total))


KINDS: dict[str, Callable[[np.random.Generator, int], Problem]] = {
  "equation": _equation,
  "fractions": _fractions,
  "brackets": _brackets,
  "powers": _powers,
}


def draw(
  rng: np.random.Generator, kind: str | None = None, *, size: int = 9
) -> Problem:
  """One problem.

  Args:
    rng: draws it.
    kind: one of `KINDS`; None draws that too.
    size: of the numbers in it, 2 or more.

  Raises:
    ValueError: an unknown kind or a bad size.
  """
  checks.int_in_range("size", size, 2, 10_000)
  names = list(KINDS)
  kind = names[int(rng.integers(len(names)))] if kind is None else kind
  return checks.lookup("kind", kind, KINDS)(rng, size)


_COMMAND = re.compile(r"\\[a-zA-Z]+")
_SYMBOL = re.compile(r"[^\w\s.,:;?!'\"-]|(?<!\w)-|-(?!\w)|(?<=\w)-(?=\d)|_")


def strip_notation(text: str) -> str:
  """Text as the usual cleaning of web pages leaves it: without its notation.

  Commands of TeX, operators, signs, braces and dollars become blanks, so
  `$\\frac{7}{12}-3^{2}$` is `7 12 3 2`. Lines stay, blanks are collapsed.

  >>> strip_notation("Find $\\\\frac{7}{12}-3^{2}$.")
  'Find 7 12 3 2 .'
  """
  text = _SYMBOL.sub(" ", _COMMAND.sub(" ", checks.text("text", text)))
  lines = (" ".join(line.split()) for line in text.split("\n"))
  return "\n".join(lines)
