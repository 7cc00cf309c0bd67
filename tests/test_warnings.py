"""Deprecations that our own calls bring about are errors, others are not."""

from __future__ import annotations

import warnings

import pytest

OURS = (
  "locojax.train.loop",
  "experiments.run",
  "experiments.smelu.plane",
  "scripts.prepare_data",
  "toy",
  "__main__",  # a block of a README
  __name__,
)


def _call_from(module: str, category: type[Warning]) -> None:
  """A library's function that is going away, called by code of a module."""

  def old():
    warnings.warn("`old` is going away", category, stacklevel=2)

  exec("old()", {"__name__": module, "old": old})


@pytest.mark.parametrize("module", OURS)
@pytest.mark.parametrize(
  "category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning]
)
def test_a_deprecated_call_of_ours_is_an_error(module, category):
  with pytest.raises(category, match="going away"):
    _call_from(module, category)


def test_one_that_jax_lays_at_its_own_door_is_an_error():
  with pytest.raises(DeprecationWarning, match="going away"):
    _call_from("jax._src.lax.linalg", DeprecationWarning)


@pytest.mark.parametrize("module", ["orbax.checkpoint", "toyplot", "testsuite"])
def test_those_of_others_are_not(module):
  with pytest.warns(DeprecationWarning, match="going away"):
    _call_from(module, DeprecationWarning)
