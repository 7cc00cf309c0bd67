"""The public names of the package and of its methods."""

from __future__ import annotations

import importlib
import inspect
import pathlib
import subprocess
import sys
import tomllib

import pytest

import locojax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = (*locojax.METHODS, *locojax.TOOLS)


def test_every_folder_of_methods_is_public():
  folders = (ROOT / "locojax" / "methods").glob("*/__init__.py")
  assert sorted(p.parent.name for p in folders) == sorted(PACKAGES)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_method_has_two_paths(name):
  method = importlib.import_module(f"locojax.methods.{name}")
  assert getattr(locojax, name) is method
  assert name in dir(locojax) and name in locojax.__all__


@pytest.mark.parametrize("name", PACKAGES)
def test_names_of_a_method_exist_and_say_what_they_are(name):
  method = getattr(locojax, name)
  assert list(method.__all__) == sorted(set(method.__all__))
  for public in method.__all__:
    thing = getattr(method, public)
    if inspect.isfunction(thing) or inspect.isclass(thing):
      assert inspect.getdoc(thing), f"{name}.{public} has no docstring"


def test_a_wrong_name_lists_the_methods():
  with pytest.raises(AttributeError, match="locoprp.*methods are.*locoprop"):
    _ = locojax.locoprp


def test_the_version_is_that_of_the_package():
  metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
  assert locojax.__version__ == metadata["project"]["version"]


def test_the_package_alone_imports_nothing_but_itself():
  code = (
    "import sys; import locojax; "
    "assert not {'jax', 'flax', 'optax'} & set(sys.modules); "
    "locojax.locoprop; assert 'optax' in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
