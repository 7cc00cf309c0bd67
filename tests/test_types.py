"""A type checker sees what a user writes against the project, and mistakes."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import pytest

import locojax

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """\
import jax.numpy as jnp
import locojax
from locojax import ciw, dp_ftrl, smelu

x = jnp.zeros(3)
y = smelu.smelu(x, 0.5)  # fine
z = locojax.smelu.smelu(x, beta=1.0)  # fine
space = dp_ftrl.zcdp(1.0, 1e-6)
smelu.smelu(x, width=0.5)
locojax.smelu.smellu(x)
ciw.ciw_los(x)
ciw.lambda_for_radius("0.5")
dp_ftrl.zcdp(1.0, noise="little")
locojax.locopropp
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
  """What ty says of the program, by line."""
  program = shutil.which("ty", path=str(pathlib.Path(sys.executable).parent))
  if program is None:
    pytest.skip("needs ty: pip install 'locojax[completion]'")
  folder = tmp_path_factory.mktemp("user")
  (folder / "user.py").write_text(PROGRAM)
  command = [program, "check", "--output-format=concise", "user.py"]
  command += ["--python", sys.prefix, "--extra-search-path", str(ROOT)]
  run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  found: dict[int, list[str]] = {}
  for line in run.stdout.splitlines():
    if line.startswith("user.py:"):
      found.setdefault(int(line.split(":")[1]), []).append(line)
  return found


def _line(text: str) -> int:
  return 1 + [text in line for line in PROGRAM.splitlines()].index(True)


@pytest.mark.parametrize(
  "text",
  [
    *("width=0.5", "smellu(x)", "ciw_los(x)", 'radius("0.5")', "little"),
    "locopropp",
  ],
)
def test_a_planted_mistake_is_found(checked, text):
  assert _line(text) in checked, checked


@pytest.mark.parametrize("text", ["0.5)  # fine", "beta=1.0", "import ciw"])
def test_right_lines_are_left_alone(checked, text):
  assert _line(text) not in checked, checked


def test_the_package_says_that_it_is_typed():
  assert (pathlib.Path(locojax.__file__).parent / "py.typed").is_file()


def test_all_methods_are_named_for_type_checkers():
  source = pathlib.Path(locojax.__file__).read_text()
  names = source.partition("import (")[2].partition(")")[0]
  given = {name.strip() for name in names.split(",")} - {""}
  assert given == set(locojax.METHODS + locojax.TOOLS)
