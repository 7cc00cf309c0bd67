"""Checks of arguments, with one voice: name, value, what is allowed.

Every function returns the value it checked, so that a check can stand in an
assignment. Each raises `ValueError`.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


def _fail(name: str, value: Any, allowed: str):
  raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}.")


def _is_real(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def positive(name: str, value: float) -> float:
  """A finite number above zero."""
  if not _is_real(value) or not 0 < value < math.inf:
    _fail(name, value, "a finite number above 0")
  return value


def nonnegative(name: str, value: float) -> float:
  """A finite number that is zero or more."""
  if not _is_real(value) or not 0 <= value < math.inf:
    _fail(name, value, "a finite number, 0 or more")
  return value


def positive_int(name: str, value: int) -> int:
  """An integer, one or more."""
  if (
    not isinstance(value, numbers.Integral)
    or isinstance(value, bool)
    or value < 1
  ):
    _fail(name, value, "an integer, 1 or more")
  return value


def in_range(name: str, value: float, low: float, high: float) -> float:
  """A number in the closed interval [low, high]."""
  if not _is_real(value) or not low <= value <= high:
    _fail(name, value, f"a number in [{low}, {high}]")
  return value


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> Any:
  """A member of `allowed`; a near miss is suggested."""
  allowed = list(allowed)
  if value not in allowed:
    listed = ", ".join(repr(a) for a in allowed)
    close = difflib.get_close_matches(
      str(value), [str(a) for a in allowed], n=1
    )
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    _fail(name, value, f"one of {listed}{hint}")
  return value


def lookup(name: str, key: str, table: dict[str, Any]) -> Any:
  """`table[key]`, or an error that lists the keys."""
  return table[one_of(name, key, table)]


def same_shape(name: str, shape, other_name: str, other_shape) -> None:
  """Two shapes are equal."""
  if tuple(shape) != tuple(other_shape):
    raise ValueError(
      f"{name} has shape {tuple(shape)} and {other_name} has shape "
      f"{tuple(other_shape)}: they must be equal."
    )


def divisible(name: str, value: int, by_name: str, by: int) -> int:
  """`value` is a multiple of `by`."""
  if value % by:
    raise ValueError(
      f"{name}={value} is not allowed: it must be a multiple of {by_name}={by}."
    )
  return value
