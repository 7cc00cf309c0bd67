"""Examples in docstrings give what they say, and public functions have one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pathlib

import pytest

import locojax

METHODS = pathlib.Path(locojax.__file__).parent / "methods"
SYSTEMS = ("limoe", "locoprop", "spl")
MODULES = [
  f"locojax.methods.{system}.{path.stem}"
  for system in SYSTEMS
  for path in sorted((METHODS / system).glob("*.py"))
  if ">>> " in path.read_text("utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
  found = doctest.testmod(importlib.import_module(name))
  assert found.attempted and not found.failed


@pytest.mark.parametrize("system", SYSTEMS)
def test_public_functions_have_an_example(system):
  module = getattr(locojax, system)
  names = [n for n in module.__all__ if inspect.isfunction(getattr(module, n))]
  own = [n for n in names if f".{system}." in getattr(module, n).__module__]
  texts = {n: inspect.getdoc(getattr(module, n)) for n in own}
  assert [n for n, text in texts.items() if ">>> " not in text] == []
