"""Engines over the files of a corpus, started as they are needed."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator

from locojax import engines
from locojax.data import code
from locojax.methods import completion

_log = logging.getLogger(__name__)
_STARTING = 60.0  # seconds for the first answer about a file


class Document:
  """An open document with a cursor.

  Attributes:
    engine: that it is open in.
    uri, text, offset: of it.
  """

  def __init__(self, engine: engines.Engine, uri: str, text: str, offset: int):
    self.engine, self.uri, self.text, self.offset = engine, uri, text, offset

  def names(self) -> tuple[str, ...]:
    """Names of the engine's list at the cursor, each of them once."""
    place = engines.Lines(self.text).position(self.offset)
    found = self.engine.complete(self.uri, place, timeout=_STARTING)
    return tuple(dict.fromkeys(found.names))

  def is_clean(self) -> bool:
    """Whether the engine finds no error in the text."""
    report = self.engine.diagnostics(self.uri, timeout=_STARTING)
    return not any(e.kind in completion.DROPS for e in report.errors)

  def checker(self, **settings) -> completion.Checker:
    """Checks suggestions at the cursor."""
    return completion.Checker(self.engine, self.uri, self.offset, **settings)


class Workspace:
  """One engine for each language and folder.

  Args:
    names: engine by language; a language without one has none.

  Attributes:
    missing: why some did not start, by language.
  """

  def __init__(self, names: dict[str, str]):
    self._names, self._stack = names, contextlib.ExitStack()
    self._engines: dict[tuple[str, str], engines.Engine | None] = {}
    self.missing: dict[str, str] = {}

  def __enter__(self) -> Workspace:
    return self

  def __exit__(self, *_) -> None:
    self._stack.close()

  def engine(self, language: str, root: str) -> engines.Engine | None:
    """The engine of a language in a folder; None if it does not start."""
    key = (language, root)
    if key not in self._engines:
      self._engines[key] = self._started(language, root)
    return self._engines[key]

  def _started(self, language: str, root: str) -> engines.Engine | None:
    name = self._names.get(language)
    if not name or not root:
      return None
    try:
      made = engines.start(name, root=pathlib.Path(root))
    except (engines.EngineError, ValueError) as error:
      self.missing[language] = str(error)
      _log.warning("no engine for %s: %s", language, error)
      return None
    return self._stack.enter_context(made)

  @contextlib.contextmanager
  def opened(
    self, file: code.SourceFile, text: str, offset: int
  ) -> Iterator[Document | None]:
    """A file with another text, in its place; None without an engine."""
    engine = self.engine(file.language, file.root)
    if engine is None:
      yield None
      return
    uri = engines.uri(file.place)
    engine.open(uri, text)
    try:
      yield Document(engine, uri, text, offset)
    finally:
      engine.close(uri)


def available(languages) -> dict[str, str]:
  """The engine of each language that is installed and knows names."""
  names = {n: engines.BY_LANGUAGE[n] for n in languages}
  return {
    language: name
    for language, name in names.items()
    if engines.is_installed(name) and not name.startswith("tree-sitter")
  }
