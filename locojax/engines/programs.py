"""Where the programs of engines are, and which versions tests have seen."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from locojax.core import checks, files
from locojax.engines.types import EngineAbsent

_log = logging.getLogger(__name__)

FOLDER_VARIABLE = "LOCOJAX_ENGINES"
FOLDER = ".engines"  # of the project; made by scripts/install_engines
_VERSION = re.compile(r"\d+(?:\.\d+)+")
_VERSION_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Program:
  """A program that an engine needs.

  Attributes:
    names: what it is called, the best first; with a star, a pattern of a file
      in the folder of engines.
    package: what to install, in words for a person.
    group: the argument of `scripts/install_engines` that brings it.
    tested: the version that the tests pin.
    also: other programs that must be there.
    told_by: who knows its version: the 'server' itself, the 'debian' package
      `debian`, or the 'npm' package that it lies in.
    debian: name of its Debian package, or ''.
  """

  names: tuple[str, ...]
  package: str
  group: str
  tested: str
  also: tuple[str, ...] = ()
  told_by: str = "server"
  debian: str = ""


def home() -> pathlib.Path:
  """The folder of installed engines."""
  return pathlib.Path(os.environ.get(FOLDER_VARIABLE) or FOLDER)


def _look_for(name: str) -> str | pathlib.Path | None:
  if "*" in name:
    return next(iter(sorted(home().glob(name))), None)
  places = [
    home() / "node_modules" / ".bin",
    home() / "bin",
    pathlib.Path(sys.executable).parent,
    os.environ.get("PATH", ""),
  ]
  return shutil.which(name, path=os.pathsep.join(map(str, places)))


def find(program: Program, given: str | None = None) -> pathlib.Path:
  """The program's path.

  Args:
    program: which.
    given: a path or name to take instead of its own names.

  Raises:
    EngineAbsent: it is nowhere; says what to install.
  """
  names = [checks.text("program", given)] if given else program.names
  found = next(filter(None, map(_look_for, names)), None)
  missing = [] if found else [names[-1]]
  missing += [name for name in program.also if not _look_for(name)]
  if not missing:
    return pathlib.Path(found).absolute()
  raise EngineAbsent(
    f"{' and '.join(missing)} is not installed: install {program.package}, or "
    f"run `./scripts/install_engines {program.group}`. It is looked for in "
    f"{FOLDER}/ (or the folder that {FOLDER_VARIABLE} names), beside this "
    "Python, and on PATH."
  )


def is_installed(program: Program) -> bool:
  try:
    find(program)
  except EngineAbsent:
    return False
  return True


@functools.cache
def version(program: Program, path: pathlib.Path, told: str) -> str:
  """The version of a program, such as '0.0.108'; '' if nobody knows.

  Args:
    program: which.
    path: where it is.
    told: what it says itself, which may be something else (gopls).
  """
  if program.told_by == "debian":
    told = _output(["dpkg-query", "-W", "-f", "${Version}", program.debian])
  elif program.told_by == "npm":
    found = path.resolve().parent / "package.json"
    told = files.read_json(found)["version"] if found.is_file() else ""
  return found_version(told)


def found_version(text: str) -> str:
  """The first version number in a text, or ''."""
  match = _VERSION.search(text)
  return match[0] if match else ""


def _output(command: Sequence[str]) -> str:
  try:
    found = subprocess.run(
      command,
      capture_output=True,
      text=True,
      errors="replace",
      stdin=subprocess.DEVNULL,
      timeout=_VERSION_SECONDS,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return found.stdout or found.stderr


def numbers(text: str) -> tuple[int, ...]:
  """A version as numbers that compare; () for ''."""
  return tuple(int(n) for n in text.split(".") if n.isdigit())


@functools.cache
def warn_of_version(name: str, found: str, tested: str) -> None:
  """Says once that a version is not the one that tests have seen.

  '17' stands for all of 17.
  """
  if found != tested and not found.startswith(f"{tested}."):
    _log.warning(
      "%s %s is not the version that tests have seen (%s): names of its "
      "errors may have changed.",
      name,
      found or "of unknown version",
      tested,
    )
