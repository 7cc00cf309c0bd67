"""Arrays and checks that the files of this folder share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import arrays, checks


def number(name: str, value: ArrayLike, check=checks.positive, *bounds):
  """A scalar setting, checked unless traced.

  Args:
    name: of the argument.
    value: a number, or a `[]` array (traced or not).
    check: a function of `checks` that takes the name, the value and `bounds`.
    *bounds: further arguments of `check`.

  Returns:
    The value.

  Raises:
    ValueError: no scalar, or the check fails.
  """
  if jnp.shape(value):
    raise ValueError(
      f"{name} has shape {jnp.shape(value)}: it must be a single number."
    )
  if arrays.is_concrete(value):
    check(name, value.item() if hasattr(value, "item") else value, *bounds)
  return value


def live_examples(mask: ArrayLike | None, num: int) -> jax.Array:
  """`[n]` bool: which examples count.

  Args:
    mask: `[n]`, zero at examples that count as removed; None keeps all.
    num: n.

  Raises:
    ValueError: another shape, or, unless traced, a mask of zeros.
  """
  if mask is None:
    return jnp.ones(num, bool)
  live = jnp.asarray(mask) != 0
  checks.same_shape("mask", live.shape, "the batch", (num,))
  if arrays.is_concrete(live) and not bool(live.any()):
    raise ValueError(f"mask is zero at all {num} examples: one must be left.")
  return live
