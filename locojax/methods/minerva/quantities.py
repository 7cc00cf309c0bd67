"""Units of answers: what they measure, and how many of the first unit they are.

A unit that is not in the table is its own words: `8 meals` is not `8 edges`.
"""

from __future__ import annotations

import re
from fractions import Fraction

Unit = tuple[str, Fraction]  # what it measures, and its size

_TABLE: dict[str, dict[str, Fraction | int | str]] = {
  "length": {
    "m meter metre": 1,
    "cm centimeter centimetre": "1/100",
    "mm millimeter millimetre": "1/1000",
    "km kilometer kilometre": 1000,
    "in inch inches": "127/5000",
    "ft foot feet": "381/1250",
    "yd yard": "1143/1250",
    "mi mile": "1609344/1000",
  },
  "time": {
    "s sec second": 1,
    "min minute": 60,
    "h hr hour": 3600,
    "day": 86400,
    "week": 604800,
  },
  "mass": {
    "kg kilogram": 1,
    "g gm gram": "1/1000",
    "mg milligram": "1/1000000",
    "lb lbs pound": "45359237/100000000",
    "oz ounce": "45359237/1600000000",
  },
  "volume": {
    "l liter litre": 1,
    "ml milliliter millilitre": "1/1000",
    "gallon": "473176473/125000000",
  },
  "money": {"$ dollar usd": 1, "cent": "1/100"},
  "degree": {"degree deg": 1},
  "": {"% percent": "1/100"},
}
_UNITS: dict[str, Unit] = {
  name: (dimension, Fraction(size))
  for dimension, sizes in _TABLE.items()
  for names, size in sizes.items()
  for name in names.split()
}
# Words that say that something is squared or cubed, or nothing at all.
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}
_ALONE = {"square": 2, "cubic": 3}
KNOWN = frozenset(_UNITS) | set(_POWERS) | {"unit", "mph", "times", "ways"}


def _one(word: str) -> Unit:
  for name in (word, word.removesuffix("s"), word.removesuffix("es")):
    if name in _UNITS:
      return _UNITS[name]
  if re.search(r"(?:x|ch|sh|ss)es$", word):
    return word[:-2], Fraction(1)
  plural = word.endswith("s") and not word.endswith("ss") and len(word) > 3
  return (word[:-1] if plural else word), Fraction(1)


def _power(unit: Unit, exponent: int) -> Unit:
  dimension, size = unit
  name = dimension if exponent == 1 else f"{dimension}^{exponent}"
  return name, size**exponent


def read(words: str, exponent: int = 1) -> Unit | None:
  """The unit that words name, such as `square inches` or `cm` with exponent 2.

  Args:
    words: as they stand, of any case, singular or plural.
    exponent: written behind them.

  Returns:
    What it measures and how many of the first unit of that kind it is; None
    for no words at all.
  """
  found = re.findall(r"[a-z$%]+|/", words.lower().replace(".", ""))
  total, size, names, sign = exponent, Fraction(1), [], 1
  for word in found:
    if word in ("per", "/"):
      sign = -1
    elif word in _POWERS:
      total *= _POWERS[word]
    elif word not in ("of", "the", "a", "an", "unit", "units"):
      name, one = _power(_one(word), total * sign if sign < 0 else total)
      names, size, sign = [*names, name], size * one, 1
      total = 1
  if not found:
    return None
  if not names:
    return _power(("unit", Fraction(1)), total)
  return " ".join(names), size
