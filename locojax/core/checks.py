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

import jax.numpy as jnp
import numpy as np


def refuse(name: str, value: Any, allowed: str):
  """Raises the `ValueError` of all checks.

  Args:
    name: of the argument, as its caller wrote it.
    value: what was given.
    allowed: what it must be, such as 'an integer, 1 or more'.
  """
  raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}.")


def _is_real(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, _BOOLEANS)


def _is_integer(value: Any) -> bool:
  whole = isinstance(value, numbers.Integral)
  return whole and not isinstance(value, _BOOLEANS)


_BOOLEANS = (bool, np.bool_)


def positive(name: str, value: float) -> float:
  """A finite number above zero."""
  if not _is_real(value) or not 0 < value < math.inf:
    refuse(name, value, "a finite number above 0")
  return value


def nonnegative(name: str, value: float) -> float:
  """A finite number that is zero or more."""
  if not _is_real(value) or not 0 <= value < math.inf:
    refuse(name, value, "a finite number, 0 or more")
  return value


def positive_int(name: str, value: int) -> int:
  """An integer, one or more."""
  if not _is_integer(value) or value < 1:
    refuse(name, value, "an integer, 1 or more")
  return value


def nonnegative_int(name: str, value: int) -> int:
  """An integer, zero or more."""
  if not _is_integer(value) or value < 0:
    refuse(name, value, "an integer, 0 or more")
  return value


def int_in_range(name: str, value: int, low: int, high: int) -> int:
  """An integer in the closed interval [low, high]."""
  if not _is_integer(value) or not low <= value <= high:
    refuse(name, value, f"an integer in [{low}, {high}]")
  return value


def in_range(name: str, value: float, low: float, high: float) -> float:
  """A number in the closed interval [low, high]."""
  if not _is_real(value) or not low <= value <= high:
    refuse(name, value, f"a number in [{low}, {high}]")
  return value


def below(name: str, value: float, low: float, high: float) -> float:
  """A number in [low, high), such as a decay that must not be 1."""
  if not _is_real(value) or not low <= value < high:
    refuse(name, value, f"a number in [{low}, {high})")
  return value


def between(name: str, value: float, low: float, high: float) -> float:
  """A number in (low, high), neither of its ends."""
  if not _is_real(value) or not low < value < high:
    refuse(name, value, f"a number in ({low}, {high})")
  return value


def boolean(name: str, value: bool) -> bool:
  """True or False; not a number or a text that looks like one."""
  if not isinstance(value, _BOOLEANS):
    refuse(name, value, "True or False")
  return value


def text(name: str, value: str) -> str:
  """A text, which may be empty."""
  if not isinstance(value, str):
    refuse(name, value, "a text")
  return value


def sizes(name: str, values: Iterable[int]) -> tuple[int, ...]:
  """A list of integers, each 1 or more; it may be empty."""
  if isinstance(values, str) or not isinstance(values, Iterable):
    refuse(name, values, "a list of integers, each 1 or more")
  values = tuple(values)
  if not all(_is_integer(v) and v > 0 for v in values):
    refuse(name, values, "a list of integers, each 1 or more")
  return values


def float_dtype(name: str, value: Any) -> Any:
  """A floating dtype or the name of one; None stands for the input's."""
  allowed = "a floating dtype, such as 'float32' or 'bfloat16'"
  try:
    known = value is None or jnp.issubdtype(jnp.dtype(value), jnp.floating)
  except TypeError:
    known = False
  if not known:
    refuse(name, value, allowed)
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
    refuse(name, value, f"one of {listed}{hint}")
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
  """`value` is a multiple of `by`, which is an integer, 1 or more."""
  positive_int(by_name, by)
  if not _is_integer(value) or value % by:
    refuse(name, value, f"a multiple of {by_name}={by}")
  return value
