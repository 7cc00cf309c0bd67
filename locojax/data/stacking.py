"""Values of several examples as one array, none of them changed.

The rule, wherever examples become arrays:

* numbers (and booleans) get the dtype that NumPy promotes all of theirs to, so
  an integer and 2.5 become floats, and 8 bits and 300 become 64 bits. An
  integer that this dtype does not hold (2^53 + 1 among floats) is refused;
* arrays of text get the length of the longest; single texts become objects;
* text and numbers, or `str` and `bytes`, do not mix, nor do shapes: the example
  is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_NUMBERS = "biufc"


def leaf(where: str, value: Any) -> np.ndarray:
  """One value as an array; a single text as an object.

  Args:
    where: it stands, for the message.
    value: number, text or array.

  Raises:
    ValueError: a dict, or nested lists that are no array.
  """
  if isinstance(value, Mapping):
    raise ValueError(
      f"{where} is a dict, which cannot be stacked: flatten it with "
      "sources.mapped first."
    )
  if isinstance(value, str | bytes):
    return np.array(value, dtype=object)
  if isinstance(value, list | tuple) and value:
    return array(where, value)
  found = np.asarray(value)
  if found.dtype == object and isinstance(value, int):
    raise ValueError(f"{where} is {value}, which 64 bits do not hold.")
  return found


def _kind(array: np.ndarray) -> str:
  """What an array is of: values of different kinds do not mix."""
  if array.dtype.kind in _NUMBERS:
    return "numbers"
  if array.dtype == object and array.ndim == 0:
    return type(array[()]).__name__
  return str(array.dtype) if array.dtype.kind in "OV" else array.dtype.kind


def held(where: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """The array in a dtype that its own is promoted to.

  Raises:
    ValueError: the dtype does not hold an integer of it.
  """
  out = value.astype(dtype)
  if value.dtype.kind in "iu" and dtype.kind in "fc" and value.size:
    exact = 2 ** (np.finfo(dtype).nmant + 1)  # All integers up to there are.
    pairs = ()
    if max(int(value.max()), -int(value.min())) > exact:
      pairs = zip(value.ravel().tolist(), out.real.ravel().tolist())
    for x, y in pairs:
      if x != y:
        raise ValueError(
          f"{where} has the integer {x}, which is not allowed among {dtype} "
          "values: it would be rounded."
        )
  return out


class Stack:
  """Grows an array of examples; made for the first, others may promote it.

  Args:
    name: of the values, as messages shall have it.
    first: the value of example 0, as `leaf` gives it.
    size: number of examples.

  Attributes:
    array: `[size, ...]`, in the dtype of the first until `result`.
  """

  def __init__(self, name: str, first: np.ndarray, size: int):
    self.array = np.empty((size, *first.shape), first.dtype)
    self._name, self._kind = name, _kind(first)
    self._others: dict[int, np.ndarray] = {}

  def put(self, index: int, value: Any) -> None:
    """Sets an example; different examples may come from several threads.

    Raises:
      ValueError: another shape or kind than the first.
    """
    value = leaf(f"{self._name} of example {index}", value)
    where = f"example {index} has {self._name}"
    if value.shape != self.array.shape[1:]:
      raise ValueError(
        f"{where} of shape {value.shape} and example 0 of "
        f"{self.array.shape[1:]}: they must be equal to be stacked."
      )
    if _kind(value) != self._kind:
      raise ValueError(
        f"{where} of {_kind(value)} and example 0 of {self._kind}: they must "
        "be alike to be stacked."
      )
    if value.dtype == self.array.dtype:
      self.array[index] = value[()]  # Text itself, not an array around it.
    else:
      self._others[index] = value

  def result(self) -> np.ndarray:
    """All examples, in the dtype that they promote to."""
    if not self._others:
      return self.array
    others = self._others
    dtype = np.result_type(
      self.array.dtype, *{value.dtype for value in others.values()}
    )
    own = np.ones(len(self.array), bool)
    own[list(others)] = False
    out = np.empty(self.array.shape, dtype)
    if dtype == self.array.dtype:
      out = self.array
    else:
      out[own] = held(self._name, self.array[own], dtype)
    for i, value in others.items():
      out[i] = held(f"{self._name} of example {i}", value, dtype)
    return out


def stack(name: str, values: Iterable[Any]) -> np.ndarray:
  """Values by the rule at the head of this file, `[n, ...]`.

  Raises:
    ValueError: values that do not go together; names the example.
  """
  values = list(values)
  made = Stack(name, leaf(name, values[0]), len(values))
  for i, value in enumerate(values):
    made.put(i, value)
  return made.result()


def array(name: str, values: Any) -> np.ndarray:
  """An array as it is; a list by the rule at the head of this file.

  Args:
    name: of the values, as messages shall have it.
    values: `[n, ...]`, an array or a list.

  Raises:
    ValueError: a list whose entries do not go together.
  """
  if not isinstance(values, list | tuple) or not values:
    return np.asarray(values)
  kinds = {type(v) for v in values}
  if kinds <= {str, bytes} and any(v[-1:] in ("\0", b"\0") for v in values):
    return stack(name, values)  # As objects: NumPy's texts lose a last NUL.
  if kinds in ({int}, {float}, {bool}, {str}, {bytes}):  # The same, and quick.
    out = np.array(values)
    if out.dtype.kind in "biSU" or kinds == {float}:
      return out
  out = stack(name, values)
  return np.array(values) if out.dtype == object else out
