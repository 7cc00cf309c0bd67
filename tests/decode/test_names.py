"""The public names of the room."""

from __future__ import annotations

import inspect

from locojax import decode


def test_public_names_exist_and_say_what_they_are():
  assert list(decode.__all__) == sorted(set(decode.__all__))
  for name in decode.__all__:
    thing = getattr(decode, name)
    if inspect.isfunction(thing) or inspect.isclass(thing):
      assert inspect.getdoc(thing), name
