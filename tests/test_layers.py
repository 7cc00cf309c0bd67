"""The rooms of the house: who may import whom, and how long things may be.

The imports of every file under `locojax/` and `experiments/` are parsed, and
held against the table in CONTRIBUTING. `ROOMS` is that table.
"""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80

_BASE = frozenset({"jax", "numpy", "chex"})
_PLAIN = _BASE | {"flax", "optax"}


@dataclasses.dataclass(frozen=True)
class Room:
  """What the files of a room may import.

  Attributes:
    anywhere: third parties at any place.
    inside: third parties inside functions only; None allows any.
    locojax: rooms of locojax besides the own one.
  """

  anywhere: frozenset[str]
  inside: frozenset[str] | None
  locojax: frozenset[str]


_LIBRARY = frozenset({"core", "nn", "decode"})
ROOMS = {
  "core": Room(_BASE, frozenset(), frozenset()),
  "nn": Room(_BASE | {"flax"}, frozenset(), frozenset({"core"})),
  "decode": Room(_BASE | {"flax"}, frozenset(), frozenset({"core"})),
  "methods": Room(
    _PLAIN,
    frozenset(
      {"jedi", "sympy", "math_verify", "pycocotools", "dp_accounting", "scipy"}
    ),
    _LIBRARY,
  ),
  "data": Room(
    frozenset({"numpy"}),
    frozenset(
      {
        "grain",
        "tensorflow_datasets",
        "absl",
        "PIL",
        "sentencepiece",
        "array_record",
        "av",
        "yaml",
      }
    ),
    frozenset({"core"}),
  ),
  "engines": Room(
    frozenset(), frozenset({"jedi", "tree_sitter"}), frozenset({"core"})
  ),
  "train": Room(_PLAIN, frozenset({"libtpu"}), frozenset({"core"})),
  "report": Room(
    frozenset({"numpy"}), frozenset({"matplotlib"}), frozenset({"core"})
  ),
}
# One file beyond its room, and why: orbax has one wrapper.
FILES = {"locojax/train/checkpoints.py": frozenset({"orbax"})}


@dataclasses.dataclass(frozen=True)
class Import:
  """One imported module, by its full dotted name."""

  name: str
  line: int
  lazy: bool


def _absolute(node: ast.ImportFrom, path: str) -> str:
  """The module that a from-import names, with dots in front resolved."""
  if not node.level:
    return node.module or ""
  package = path.removesuffix(".py").split("/")[: -node.level]
  return ".".join([*package, *([node.module] if node.module else [])])


def imports(source: str, path: str) -> list[Import]:
  """All imports of a file, those inside functions marked lazy."""
  found: list[Import] = []

  def visit(node: ast.AST, lazy: bool):
    if isinstance(node, ast.Import):
      found.extend(Import(a.name, node.lineno, lazy) for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = _absolute(node, path)
      found.extend(
        Import(f"{base}.{a.name}", node.lineno, lazy) for a in node.names
      )
    inner = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    for child in ast.iter_child_nodes(node):
      visit(child, lazy or inner)

  visit(ast.parse(source), False)
  return [i for i in found if i.name.split(".")[0] not in _STDLIB]


_STDLIB = sys.stdlib_module_names | {"__future__"}


def _locojax_trouble(parts: list[str], path: str) -> str | None:
  """Why a file of locojax may not import `parts` of locojax, or None."""
  here = path.removesuffix(".py").split("/")
  if len(parts) < 2 or parts[1] == "__version__":
    return None
  room = here[1]
  if parts[1] not in {room, *ROOMS[room].locojax}:
    return f"{room} may not import locojax.{parts[1]}"
  if room == parts[1] == "methods" and parts[2:3] != here[2:3]:
    return f"a method may not import another: {'.'.join(parts)}"
  return None


def _experiment_trouble(found: Import, path: str) -> str | None:
  """Why a file of experiments may not import something, or None.

  The commands for all of them (`experiments/run.py`) may import anything.
  """
  parts, here = found.name.split("."), path.split("/")
  if parts[0] != "experiments" or len(here) == 2 or len(parts) < 2:
    return None
  if parts[1] in ("common", here[1]):
    return None
  return f"an experiment may not import another: {found.name}"


def _third_party_trouble(found: Import, path: str) -> str | None:
  top = found.name.split(".")[0]
  room = ROOMS[path.split("/")[1]]
  if top in room.anywhere | FILES.get(path, frozenset()):
    return None
  if found.lazy and top in room.inside:
    return None
  if top in room.inside:
    return f"{top} may be imported inside functions only"
  return f"{path.split('/')[1]} may not import {top}"


def trouble(source: str, path: str) -> list[str]:
  """What is wrong with the imports of a file, one line each.

  Args:
    source: its text.
    path: where it is, from the root, such as `locojax/core/trees.py`.
  """
  here, out = path.split("/"), []
  for found in imports(source, path):
    parts = found.name.split(".")
    if here[0] == "experiments":
      problem = _experiment_trouble(found, path)
    elif parts[0] == "experiments":
      problem = "locojax may not import experiments"
    elif here[1] == "__init__.py":
      light = parts[:2] == ["locojax", "methods"] or parts[0] in _PLAIN
      problem = None if light else f"the package itself imports {found.name}"
    elif here[1] not in ROOMS:
      problem = f"there is no room {here[1]!r}: {sorted(ROOMS)}"
    elif parts[0] == "locojax":
      problem = _locojax_trouble(parts, path)
    else:
      problem = _third_party_trouble(found, path)
    if problem:
      out.append(f"{path}:{found.line}: {problem}")
  return out


def _lines(node: ast.stmt) -> int:
  return node.end_lineno - node.lineno + 1


def _own_lines(node: ast.FunctionDef) -> int:
  """Lines of a function without its docstring and the functions in it."""
  documented = ast.get_docstring(node) is not None
  inner = [n for n in node.body if isinstance(n, ast.FunctionDef)]
  docstring = _lines(node.body[0]) if documented else 0
  return _lines(node) - docstring - sum(map(_lines, inner))


def too_long(source: str, path: str) -> list[str]:
  """Files and functions above the ceilings, one line each.

  The docstring of a function does not count: it should be as long as it needs.
  Nor do functions inside it, each of which counts by itself: an optax
  transformation is a pair of closures.
  """
  out, num_lines = [], len(source.splitlines())
  if num_lines > MAX_FILE_LINES:
    out.append(f"{path}: {num_lines} lines, at most {MAX_FILE_LINES}")
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      size = _own_lines(node)
      if size > MAX_FUNCTION_LINES:
        out.append(
          f"{path}:{node.lineno}: {node.name} has {size} lines, at most "
          f"{MAX_FUNCTION_LINES}"
        )
  return out


def _files(*folders: str) -> list[str]:
  return sorted(
    str(path.relative_to(ROOT))
    for folder in folders
    for path in (ROOT / folder).rglob("*.py")
  )


def _read(path: str) -> str:
  return (ROOT / path).read_text()


def test_there_is_something_to_check():
  assert "locojax/core/trees.py" in _files("locojax")


@pytest.mark.parametrize("path", _files("locojax", "experiments"))
def test_imports_go_down_only(path):
  assert trouble(_read(path), path) == []


@pytest.mark.parametrize(
  "path", _files("locojax", "experiments", "tests", "scripts")
)
def test_files_and_functions_are_short(path):
  assert too_long(_read(path), path) == []


def test_every_folder_of_the_package_is_a_room():
  folders = {p.parent.name for p in (ROOT / "locojax").glob("*/__init__.py")}
  assert folders <= set(ROOMS)


BAD = [
  ("locojax/core/a.py", "import flax", "core may not import flax"),
  ("locojax/core/a.py", "import locojax.nn.mlp", "core may not import locojax"),
  ("locojax/core/a.py", "from ..train import loop", "locojax.train"),
  ("locojax/core/a.py", "from locojax import train", "locojax.train"),
  ("locojax/nn/a.py", "import optax", "nn may not import optax"),
  ("locojax/decode/a.py", "from locojax.nn import lm", "locojax.nn"),
  ("locojax/methods/l2p/a.py", "import jedi", "inside functions only"),
  ("locojax/methods/l2p/a.py", "import orbax", "may not import orbax"),
  (
    "locojax/methods/l2p/a.py",
    "from locojax.methods import spl",
    "another: locojax.methods.spl",
  ),
  (
    "locojax/methods/l2p/a.py",
    "from ..spl.relabel import relabel",
    "another: locojax.methods.spl",
  ),
  (
    "locojax/methods/l2p/a.py",
    "def f():\n  from locojax.train import loop",
    "locojax.train",
  ),
  ("locojax/data/a.py", "import grain", "inside functions only"),
  ("locojax/data/a.py", "import jax", "data may not import jax"),
  ("locojax/data/a.py", "def f():\n  import tensorflow", "import tensorflow"),
  ("locojax/train/loop.py", "import orbax.checkpoint", "import orbax"),
  ("locojax/train/a.py", "from locojax.data import pipeline", "locojax.data"),
  ("locojax/train/a.py", "from locojax.methods import spl", "locojax.methods"),
  ("locojax/report/a.py", "import matplotlib", "inside functions only"),
  ("locojax/report/a.py", "from locojax.train import loop", "locojax.train"),
  ("locojax/engines/a.py", "import jedi", "inside functions only"),
  ("locojax/engines/a.py", "import jax", "engines may not import jax"),
  (
    "locojax/methods/l2p/a.py",
    "from locojax import engines",
    "locojax.engines",
  ),
  ("locojax/models/a.py", "import jax", "no room 'models'"),
  ("locojax/__init__.py", "from locojax.train import loop", "package itself"),
  ("locojax/core/a.py", "import experiments.common", "import experiments"),
  (
    "experiments/l2p/experiment.py",
    "from experiments.spl import experiment",
    "another: experiments.spl",
  ),
  (
    "experiments/common/task.py",
    "import experiments.spl.experiment",
    "another: experiments.spl",
  ),
  (
    "experiments/l2p/experiment.py",
    "from ..spl import experiment",
    "another: experiments.spl",
  ),
]


@pytest.mark.parametrize(("path", "source", "words"), BAD)
def test_bad_sources_are_caught(path, source, words):
  found = trouble(source, path)
  assert len(found) == 1 and words in found[0]


GOOD = [
  ("locojax/core/a.py", "import math\nimport jax.numpy as jnp\nimport chex"),
  ("locojax/nn/a.py", "from locojax.nn import mlp\nimport flax.linen as nn"),
  ("locojax/methods/l2p/a.py", "from locojax.methods.l2p import model\n"),
  ("locojax/methods/l2p/a.py", "from . import model\nimport optax"),
  ("locojax/methods/spl/a.py", "def f():\n  import sympy"),
  ("locojax/data/a.py", "def f():\n  import grain\n  import numpy as np"),
  ("locojax/train/checkpoints.py", "import orbax.checkpoint as ocp"),
  ("locojax/report/a.py", "def f():\n  import matplotlib.pyplot as plt"),
  ("locojax/__init__.py", "from locojax.methods import locoprop"),
  ("experiments/spl/experiment.py", "from experiments.common import task"),
  ("experiments/spl/experiment.py", "from locojax.train import loop\nimport x"),
  ("experiments/run.py", "from experiments.spl import experiment"),
]


@pytest.mark.parametrize(("path", "source"), GOOD)
def test_good_sources_pass(path, source):
  assert trouble(source, path) == []


def test_long_sources_are_caught():
  body = "  x = 1\n" * MAX_FUNCTION_LINES
  assert "f has 81 lines" in too_long(f"def f():\n{body}", "a.py")[0]
  assert too_long("def f():\n" + body[:-8], "a.py") == []
  documented = 'def f():\n  """One.\n\n  Two.\n  """\n'
  assert too_long(documented + body[:-8], "a.py") == []
  assert "f has 81 lines" in too_long(documented + body, "a.py")[0]
  assert "601 lines" in too_long("x = 1\n" * 601, "a.py")[0]
  assert too_long("x = 1\n" * 600, "a.py") == []
