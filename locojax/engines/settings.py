"""What sets one language server apart from another."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from locojax.engines.programs import Program
from locojax.engines.types import OTHER

# (code, message, numbers of the engine's version) -> one of `KINDS`.
Kinds = Callable[[str, str, tuple[int, ...]], str]


def no_kinds(code: str, message: str, version: tuple[int, ...]) -> str:
  """Every error is of kind 'other'."""
  return OTHER


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to start a language server, and what to know of it.

  Attributes:
    name: of the engine.
    language: of its documents.
    language_id: the same in the protocol's words.
    suffixes: of its files.
    program: what it needs.
    arguments: after the program.
    env: variables for its process.
    pull: diagnostics are asked for; otherwise the server sends them.
    options: `initializationOptions`.
    configuration: by section, what the server is told when it asks.
    kinds: sorts its errors by code, message and version.
    newlines_only: `\\r` alone ends no line for it, against the protocol; it is
      told `\\n` instead.
    full_text: it is sent the whole text with each change.
    hides: kinds that it does not look for where the syntax is wrong.
    unchecked: kinds that it never looks for.
    stops: code of the error after which it has given up, or ''.
    unreachable: pattern of its messages for code that is never reached, where
      it looks for no errors; '' if it looks there too.
    regions: after a push it sends the regions that are not compiled.
    skips_same: it sends nothing for a text equal to the last it looked at.
    needs: names of files in `root`, one of which must be there, and what to
      do if none is.
    timeout: seconds for an answer.
    start_timeout: seconds for the start.
  """

  name: str
  language: str
  language_id: str
  suffixes: tuple[str, ...]
  program: Program
  arguments: tuple[str, ...] = ()
  env: Mapping[str, str] = dataclasses.field(default_factory=dict)
  pull: bool = True
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  configuration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  kinds: Kinds = no_kinds
  newlines_only: bool = False
  full_text: bool = False
  hides: frozenset[str] = frozenset()
  unchecked: frozenset[str] = frozenset()
  stops: str = ""
  unreachable: str = ""
  regions: bool = False
  skips_same: bool = False
  needs: tuple[tuple[str, ...], str] | None = None
  timeout: float = 10.0
  start_timeout: float = 60.0

  def check_root(self, root: pathlib.Path) -> pathlib.Path:
    """The workspace folder, with what the engine needs in it.

    Raises:
      ValueError: it is no folder, or a file that the engine needs is missing.
    """
    root = pathlib.Path(root).resolve()
    if not root.is_dir():
      raise ValueError(f"root={str(root)!r} is not allowed: it is no folder.")
    names, remedy = self.needs or ((), "")
    if names and not any((root / name).exists() for name in names):
      raise ValueError(
        f"root={str(root)!r} has no {' or '.join(names)}, without which "
        f"{self.name} reports little or nothing: {remedy}."
      )
    return root
