"""Engines that know a language: what may stand here, what is wrong.

Language servers over LSP, and some in this process, behind one protocol. Usable
without any model.

    from locojax import engines

    with engines.start("ty", root="my_project") as engine:
      uri = engines.uri("my_project/main.py")
      engine.open(uri, "import math\\nmath.sq")
      names = engine.complete(uri, engines.Position(1, 7)).names
      report = engine.diagnostics(uri)

Programs are installed by `./scripts/install_engines`; one that is absent raises
`EngineAbsent`, which names its package. What an engine is told is read, never
run.
"""

import importlib.util
import pathlib

from locojax.core import checks
from locojax.engines import presets, programs, syntax
from locojax.engines.documents import path, uri
from locojax.engines.jedi_engine import JediEngine
from locojax.engines.local import LocalEngine, StaticEngine
from locojax.engines.lsp import LspEngine
from locojax.engines.positions import Lines
from locojax.engines.settings import Settings
from locojax.engines.syntax import SyntaxEngine
from locojax.engines.types import (
  KINDS,
  SEMANTIC,
  SEVERITIES,
  CompletionList,
  Diagnostic,
  Edit,
  Engine,
  EngineAbsent,
  EngineDied,
  EngineError,
  EngineTimeout,
  Item,
  Position,
  Range,
  Report,
  Signature,
  Stale,
)

_LOCAL = {
  "jedi": JediEngine,
  "tree-sitter-kotlin": lambda root: SyntaxEngine(root, language="kotlin"),
  "tree-sitter-dart": lambda root: SyntaxEngine(root, language="dart"),
}
NAMES = (*presets.SERVERS, *_LOCAL)
# The engine of a language while somebody types.
BY_LANGUAGE = {
  "python": "ty",
  "typescript": "tsc",
  "go": "gopls",
  "cpp": "clangd",
  "proto": "buf",
  "java": "javac",
  "kotlin": "tree-sitter-kotlin",
  "dart": "tree-sitter-dart",
}


def start(name: str, *, root: str | pathlib.Path) -> Engine:
  """Starts an engine.

  Args:
    name: one of `NAMES`; `BY_LANGUAGE` has the best for each language.
    root: the workspace folder, in which all documents lie.

  Returns:
    The engine, a context manager too; to be ended by `shutdown`.

  Raises:
    EngineAbsent: its program or package is not installed.
    EngineDied: it does not start.
    ValueError: an unknown name, or a folder that it cannot work in.
  """
  checks.one_of("name", name, NAMES)
  if name in _LOCAL:
    return _LOCAL[name](root)
  return LspEngine(presets.SERVERS[name], root)


def is_installed(name: str) -> bool:
  """Whether an engine's program or package is there."""
  checks.one_of("name", name, NAMES)
  if name == "jedi":
    return importlib.util.find_spec("jedi") is not None
  if name in _LOCAL:
    return syntax.is_installed(name.removeprefix("tree-sitter-"))
  return programs.is_installed(presets.SERVERS[name].program)


__all__ = [
  "BY_LANGUAGE",
  "CompletionList",
  "Diagnostic",
  "Edit",
  "Engine",
  "EngineAbsent",
  "EngineDied",
  "EngineError",
  "EngineTimeout",
  "Item",
  "JediEngine",
  "KINDS",
  "Lines",
  "LocalEngine",
  "LspEngine",
  "NAMES",
  "Position",
  "Range",
  "Report",
  "SEMANTIC",
  "SEVERITIES",
  "Settings",
  "Signature",
  "Stale",
  "StaticEngine",
  "SyntaxEngine",
  "is_installed",
  "path",
  "start",
  "uri",
]
