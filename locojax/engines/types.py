"""Words of the engines: places, edits, diagnostics, completions, errors.

A place is a line and a column, both from 0; a column counts code points of the
line, never UTF-16 units or bytes: engines are spoken to in theirs, see
`positions`. Lines end with `\\n`, `\\r\\n` or `\\r`, as the language server
protocol has it, and with nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

from locojax.core import checks

SYNTAX, REFERENCE, ARITY, TYPE, OTHER = KINDS = (
  "syntax",
  "reference",
  "arity",
  "type",
  "other",
)
SEMANTIC = frozenset({REFERENCE, ARITY, TYPE})
SEVERITIES = ("error", "warning", "information", "hint")


class EngineError(RuntimeError):
  """An engine refused a request, or does not work; says which and why."""


class EngineAbsent(EngineError, ImportError):
  """The program or package of an engine is not installed; says what to do."""


class EngineDied(EngineError):
  """An engine ended and was not, or could not be, started again."""


class EngineTimeout(EngineError, TimeoutError):
  """An engine did not answer in time."""


class Stale(EngineError):
  """A document changed, or was closed, before its answer came."""


@dataclasses.dataclass(frozen=True, order=True)
class Position:
  """A place in a document: `line` and `column` from 0, in code points."""

  line: int
  column: int

  def __post_init__(self):
    checks.nonnegative_int("line", self.line)
    checks.nonnegative_int("column", self.column)


@dataclasses.dataclass(frozen=True, order=True)
class Range:
  """What lies from `start` up to, and without, `end`."""

  start: Position
  end: Position

  def __post_init__(self):
    if self.end < self.start:
      checks.refuse("end", self.end, f"at or after start={self.start}")

  def lines(self) -> range:
    """The lines that it touches."""
    return range(self.start.line, self.end.line + 1)


@dataclasses.dataclass(frozen=True)
class Edit:
  """A replacement of characters by a text.

  Attributes:
    start: first code point replaced, an offset into the text.
    end: one past the last; `start` for an insertion.
    text: what comes there.
  """

  start: int
  end: int
  text: str

  def __post_init__(self):
    checks.nonnegative_int("start", self.start)
    checks.text("text", self.text)
    if not isinstance(self.end, int) or self.end < self.start:
      checks.refuse("end", self.end, f"an integer, start={self.start} or more")


@dataclasses.dataclass(frozen=True)
class Diagnostic:
  """What an engine says of a place.

  Attributes:
    range: where.
    message: in the engine's words.
    severity: one of `SEVERITIES`.
    code: the engine's, as text; '' where it has none.
    kind: one of `KINDS`, by the engine's own table of codes.
    source: who says it.
    unnecessary: the code is never reached or used.
  """

  range: Range
  message: str
  severity: str = "error"
  code: str = ""
  kind: str = OTHER
  source: str = ""
  unnecessary: bool = False

  @property
  def is_error(self) -> bool:
    return self.severity == "error"


@dataclasses.dataclass(frozen=True)
class Report(Sequence):
  """The diagnostics of one version of a document, in order of place.

  Attributes:
    items: the diagnostics.
    version: of the document that they are about.
    unchecked: kinds of error that were not looked for, such as types in a Go
      file with an error of syntax: that none is reported says nothing.
    skipped: code that is never reached, at which the engine did not look.
    stopped: the engine gave up here; nothing after it was looked at.
  """

  items: tuple[Diagnostic, ...]
  version: int
  unchecked: frozenset[str] = frozenset()
  skipped: tuple[Range, ...] = ()
  stopped: Position | None = None

  def __len__(self) -> int:
    return len(self.items)

  def __getitem__(self, index):
    return self.items[index]

  def __iter__(self) -> Iterator[Diagnostic]:
    return iter(self.items)

  @property
  def errors(self) -> tuple[Diagnostic, ...]:
    return tuple(d for d in self.items if d.is_error)

  def is_checked(self, line: int, kind: str | None = None) -> bool:
    """Whether an error in a line would be here: otherwise none says nothing.

    Args:
      line: from 0.
      kind: of error, one of `KINDS`; None asks for all of syntax and
        `SEMANTIC`.
    """
    wanted = SEMANTIC if kind is None else {checks.one_of("kind", kind, KINDS)}
    if wanted & self.unchecked:
      return False
    if self.stopped is not None and line > self.stopped.line:
      return False
    return not any(line in place.lines() for place in self.skipped)


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """One entry of a completion list.

  Attributes:
    name: the identifier that it stands for, without decoration.
    insert: the text that accepting it puts into the document.
    label: as an editor shows it.
    kind: 'function', 'field' and so on, see `lsp.ITEM_KINDS`; '' if unknown.
    detail: a type or signature; '' if the engine gives none.
    range: what `insert` replaces; None is the identifier at the cursor.
    data: the engine's own entry, for a server that hands it on.
  """

  name: str
  insert: str
  label: str = ""
  kind: str = ""
  detail: str = ""
  range: Range | None = None
  data: Any = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class CompletionList(Sequence):
  """Entries in the order in which an editor shows them.

  Attributes:
    items: the entries.
    version: of the document that they are for.
    incomplete: typing on may bring entries that are not here.
  """

  items: tuple[Item, ...]
  version: int
  incomplete: bool = False

  def __len__(self) -> int:
    return len(self.items)

  def __getitem__(self, index):
    return self.items[index]

  def __iter__(self) -> Iterator[Item]:
    return iter(self.items)

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(item.name for item in self.items)


@dataclasses.dataclass(frozen=True)
class Signature:
  """How something is called.

  Attributes:
    label: the whole of it, as written in the language.
    parameters: their labels, in order.
    active: index of the parameter at the cursor, or None.
  """

  label: str
  parameters: tuple[str, ...] = ()
  active: int | None = None


@runtime_checkable
class Engine(Protocol):
  """What every engine can do, over LSP or in process.

  Documents are named by `file:` URIs inside the engine's `root`, open before
  anything is asked of them. Methods ending in `_later` return a
  `concurrent.futures.Future` at once, which `asyncio.wrap_future` takes;
  cancelling it tells the engine to stop. The others wait.

  Raises, in general: `ValueError` for a URI that is not open or a position
  outside the text; `EngineTimeout`, `EngineDied`, `Stale`, `EngineError`.
  """

  name: str
  language: str
  version: str

  def open(self, uri: str, text: str) -> int:
    """Takes in a document; its version."""

  def change(self, uri: str, edits: Sequence[Edit]) -> int:
    """Applies edits, each to the text that those before it left; the version.

    Where one is outside the text, none is applied.
    """

  def close(self, uri: str) -> None:
    """Forgets a document."""

  def text(self, uri: str) -> str:
    """The text of an open document."""

  def complete(
    self, uri: str, position: Position, *, timeout: float | None = None
  ) -> CompletionList:
    """Entries that may stand at a position."""

  def complete_later(self, uri: str, position: Position) -> Future:
    """The same, later."""

  def diagnostics(self, uri: str, *, timeout: float | None = None) -> Report:
    """What is wrong with the text as it is now."""

  def diagnostics_later(self, uri: str) -> Future:
    """The same, later."""

  def signature(
    self, uri: str, position: Position, *, timeout: float | None = None
  ) -> tuple[Signature, ...]:
    """How the call around a position may be made; () if there is none."""

  def hover(
    self, uri: str, position: Position, *, timeout: float | None = None
  ) -> str:
    """What is known of the thing at a position; '' if nothing."""

  def shutdown(self) -> None:
    """Ends it and all its processes; nothing happens the second time."""
