"""`import locojax` needs none of the heavy extras."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
HEAVY = ("orbax", "grain", "tensorflow_datasets", "tensorflow", "matplotlib")

BLOCKER = f"""
import sys

class Blocker:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {HEAVY!r}:
      raise ImportError("blocked: " + name)
    return None

sys.meta_path.insert(0, Blocker())
"""


def _run(code: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-c", BLOCKER + code],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def _modules(*rooms: str) -> list[str]:
  """Every module of these rooms, by its dotted name."""
  files = (f for room in rooms for f in (ROOT / "locojax" / room).rglob("*.py"))
  names = (f.relative_to(ROOT).with_suffix("").parts for f in files)
  return sorted(".".join(n).removesuffix(".__init__") for n in names)


@pytest.mark.parametrize("name", HEAVY)
def test_the_blocker_blocks(name):
  found = _run(f"import {name}")
  assert found.returncode == 1
  assert f"blocked: {name}" in found.stderr


def test_locojax_and_its_public_names_import():
  found = _run(
    "import locojax\n"
    "for name in getattr(locojax, '__all__', dir(locojax)):\n"
    "  getattr(locojax, name)\n"
    "print(locojax.__version__)"
  )
  assert found.returncode == 0, found.stderr
  assert found.stdout.strip()


def test_the_library_rooms_import():
  rooms = ("core", "nn", "decode", "methods", "data", "report", "engines")
  names = _modules(*rooms)
  assert "locojax.core.trees" in names
  found = _run(
    "import importlib\n"
    + "\n".join(f"importlib.import_module({name!r})" for name in names)
  )
  assert found.returncode == 0, found.stderr


def test_only_the_checkpoint_file_and_its_users_need_orbax():
  names = set(_modules("train"))
  names -= {"locojax.train.checkpoints", "locojax.train.loop"}
  found = _run(
    "import importlib\n"
    + "\n".join(f"importlib.import_module({name!r})" for name in sorted(names))
  )
  assert found.returncode == 0, found.stderr
