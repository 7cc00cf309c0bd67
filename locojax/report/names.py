"""Look-ups by name that fail with the names there are.

`locojax.report` imports nothing of the package, so it has its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> Any:
  """`value`, if it is a member of `allowed`; else a `ValueError`."""
  allowed = list(allowed)
  if value in allowed:
    return value
  close = difflib.get_close_matches(str(value), map(str, allowed), n=1)
  hint = f" (did you mean {close[0]!r}?)" if close else ""
  raise ValueError(
    f"{name}={value!r} is not allowed: it must be one of "
    f"{', '.join(map(repr, allowed))}{hint}."
  )


def lookup(name: str, key: Any, table: Mapping[Any, Any]) -> Any:
  """`table[key]`, or a `ValueError` that lists the keys."""
  return table[one_of(name, key, table)]
