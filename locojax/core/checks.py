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

import jax
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


def _held(name: str, value: np.ndarray, dtype: Any) -> np.ndarray:
  """Integers of the host in a dtype that may be smaller, none wrapped."""
  limits = np.iinfo(dtype)
  if not np.can_cast(value.dtype, dtype) and value.size:
    low, high = int(value.min()), int(value.max())
    if low < limits.min or high > limits.max:
      raise ValueError(
        f"{name} has integers from {low} to {high}, which is not allowed: "
        f"they must be in [{limits.min}, {limits.max}], what {limits.dtype} "
        "holds."
      )
  return value.astype(dtype)


def integers(name: str, values: Any, dtype: Any = np.int32) -> np.ndarray:
  """Integers of the host in a dtype that holds them all; never wrapped.

  Args:
    name: of the argument.
    values: an array or nested list of integers; floats are refused, whole
      numbers too.
    dtype: an integer dtype.

  Returns:
    A NumPy array of that dtype.

  Raises:
    ValueError: not integers, or one that the dtype does not hold.
  """
  values = np.asarray(values)
  if values.dtype.kind not in "iu" and values.size:
    raise ValueError(
      f"{name} has dtype {values.dtype}, which is not allowed: it must be "
      "integers."
    )
  return _held(name, values, dtype)


def kept(name: str, values: Any, dtype: Any = None) -> np.ndarray:
  """An array of the host as JAX will hold it, integers with their values.

  Without x64, JAX keeps the low 32 bits of 64-bit integers and says nothing;
  here what does not fit is refused. Other dtypes pass as they are.

  Args:
    name: of the argument.
    values: NumPy array or nested list.
    dtype: an integer dtype to hold integers in; None is the one JAX takes.

  Raises:
    ValueError: an integer that does not fit.
  """
  values = np.asarray(values)
  if values.dtype.kind not in "iu":
    return values
  if dtype is None:
    dtype = jax.dtypes.canonicalize_dtype(values.dtype)
  return values if values.dtype == dtype else _held(name, values, dtype)


def array(name: str, values: Any) -> jax.Array:
  """A JAX array; integers from the host keep their values, see `kept`.

  Args:
    name: of the argument.
    values: anything that `jax.numpy.asarray` takes. JAX arrays, traced or not,
      pass as they are.

  Raises:
    ValueError: an integer that JAX would not hold.
  """
  if isinstance(values, jax.Array):
    return values
  return jnp.asarray(kept(name, values))


def index_array(name: str, values: Any) -> jax.Array:
  """Indices as int32, of which none becomes another one.

  What a traced or JAX array has beyond int32 becomes the last int32, so that
  it stays out of every range.

  Raises:
    ValueError: an integer from the host that int32 does not hold, or a dtype
      that is not of integers.
  """
  if not isinstance(values, jax.Array):
    return jnp.asarray(integers(name, values))
  if not jnp.issubdtype(values.dtype, jnp.integer):
    raise ValueError(
      f"{name} has dtype {values.dtype}, which is not allowed: it must be "
      "integers."
    )
  low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
  if values.dtype.itemsize >= 4 and values.dtype != jnp.int32:
    values = jnp.minimum(values, high)
    if jnp.issubdtype(values.dtype, jnp.signedinteger):
      values = jnp.maximum(values, low)
  return values.astype(jnp.int32)


def seed(name: str, value: int) -> int:
  """A seed in [0, 2^32): JAX drops the bits beyond without x64."""
  return int_in_range(name, value, 0, 2**32 - 1)
