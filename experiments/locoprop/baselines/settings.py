"""Checks of settings that `optax.inject_hyperparams` may turn into arrays."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from locojax.core import checks


def check(test: Callable, name: str, value, *limits):
  """`test(name, value, *limits)`, save for arrays, whose value is not known."""
  return value if isinstance(value, jax.Array) else test(name, value, *limits)


def learning_rate(value):
  """A schedule, or a number that is zero or more."""
  if callable(value):
    return value
  return check(checks.nonnegative, "learning_rate", value)


def decay(name: str, value):
  """A decay rate in [0, 1)."""
  check(checks.in_range, name, value, 0.0, 1.0)
  if not isinstance(value, jax.Array) and value == 1:
    raise ValueError(f"{name}={value!r} is not allowed: it must be below 1.")
  return value


def max_dim(value: int | None) -> int | None:
  """None, or a static integer."""
  if isinstance(value, jax.Array):
    raise ValueError(
      f"max_dim={value!r} is not allowed: it decides shapes, so it must be an "
      "int; with optax.inject_hyperparams pass static_args='max_dim'."
    )
  return value if value is None else checks.positive_int("max_dim", value)


def weight_decay(value) -> optax.GradientTransformation:
  """Decoupled weight decay; with a plain 0, which needs no parameters, none."""
  check(checks.nonnegative, "weight_decay", value)
  if not isinstance(value, jax.Array) and value == 0:
    return optax.identity()
  return optax.add_decayed_weights(value)
