"""Engines as a server asks them: one thread each, always in step.

Before an engine is asked anything it is told the text in question, whatever it
was told before: a text that a check left, a process that ended, an edit that it
refused are all made good by the next question.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from experiments.completion.serving import texts
from experiments.completion.serving.texts import Text
from locojax import engines
from locojax.methods import completion

_log = logging.getLogger(__name__)
_RESTART_SECONDS = 1.0  # between two starts of an engine that ends
_NOTHING = ("", "", None)


class Backend:
  """The engine of a language in a folder, started with its first question.

  Args:
    language: of `engines.BY_LANGUAGE`.
    root: the workspace folder.
    start: gives the engine.

  Attributes:
    missing: why it does not work; '' while it does.
  """

  def __init__(
    self,
    language: str,
    root: pathlib.Path,
    *,
    start: Callable[[str, pathlib.Path], engines.Engine],
  ):
    self._language, self._root, self._start = language, root, start
    self._engine: engines.Engine | None = None
    self._open: set[str] = set()
    self._before: tuple[str, str, Any] = _NOTHING
    self._tried = -float("inf")
    self.missing = ""
    self._pool = concurrent.futures.ThreadPoolExecutor(1, f"{language}-asker")

  @property
  def engine(self) -> engines.Engine | None:
    return self._engine

  def complete(self, text: Text, offset: int) -> Future:
    """The engine's list at an offset, later."""
    place = text.lines.position(offset)
    return self._pool.submit(
      self._asked, text, lambda engine: engine.complete(text.uri, place)
    )

  def expect(self, text: Text) -> None:
    """Begins to ask what is wrong with a text as it is, for `check`.

    The engine looks at it while the model writes. An older question is given
    up; one that can answer several at once has no list wait for this.
    """

    def work(engine):
      if self._before[2] is not None:
        self._before[2].cancel()
      later = engine.diagnostics_later(text.uri)
      self._before = (text.uri, text.text, later)

    self._pool.submit(self._asked, text, work)

  def _known_before(self, text: Text, timeout: float) -> Any:
    """What `expect` has asked for; None where that came to nothing."""
    uri, known, later = self._before
    if (uri, known) != (text.uri, text.text):
      return None
    try:
      return later.result(timeout)
    except (TimeoutError, engines.EngineError, CancelledError):
      self._before = _NOTHING
      return None

  def check(
    self,
    text: Text,
    offset: int,
    suggestions: Sequence[str],
    *,
    most: int,
    timeout: float,
    wanted: Callable[[], bool],
  ) -> Future:
    """The first that bring no error in, later; none once they are unwanted.

    Args:
      text: the document.
      offset: of the cursor.
      suggestions: to insert there, best first.
      most: how many are enough.
      timeout: seconds for each answer of the engine.
      wanted: whether anybody waits for it still.
    """

    def work(engine):
      check = completion.Checker(
        engine,
        text.uri,
        offset,
        timeout=timeout,
        baseline=self._known_before(text, timeout),
      )
      kept = (s for s in suggestions if wanted() and check(s).kept)
      return list(itertools.islice(kept, most))

    return self._pool.submit(self._asked, text, work)

  def _asked(self, text: Text, work: Callable[[engines.Engine], Any]) -> Any:
    """Tells the engine a text and asks it; again if it ended meanwhile."""
    for last in (False, True):
      engine = self._alive()
      try:
        self._tell(engine, text)
        return work(engine)
      except engines.EngineDied:
        if last:
          raise
        self._restart(engine)

  def _alive(self) -> engines.Engine:
    if self._engine is None:
      if self.missing and time.monotonic() < self._tried + _RESTART_SECONDS:
        raise engines.EngineDied(self.missing)
      self._tried = time.monotonic()
      try:
        self._engine = self._start(self._language, self._root)
      except (engines.EngineError, ValueError) as error:
        self.missing = str(error)
        raise engines.EngineDied(self.missing) from error
      self.missing = ""
    return self._engine

  def _restart(self, engine: engines.Engine) -> None:
    """Starts an engine that ended too often, at most once a second."""
    if not hasattr(engine, "restart"):
      return
    if time.monotonic() < self._tried + _RESTART_SECONDS:
      return
    self._tried = time.monotonic()
    _log.warning("%s has ended and is started again", engine.name)
    engine.restart()

  def _tell(self, engine: engines.Engine, text: Text) -> None:
    if text.uri not in self._open:
      engine.open(text.uri, text.text)
      self._open.add(text.uri)
      return
    edit = texts.difference(engine.text(text.uri), text.text)
    if edit is not None:
      engine.change(text.uri, [edit])

  def close(self, uri: str) -> Future:
    """Forgets a document, later."""

    def work():
      if uri in self._open:
        self._open.discard(uri)
        self._engine.close(uri)

    return self._pool.submit(work)

  def shutdown(self) -> None:
    self._pool.shutdown(wait=True, cancel_futures=True)
    if self._engine is not None:
      self._engine.shutdown()


def start(language: str, root: pathlib.Path) -> engines.Engine:
  """The engine of a language, as `engines.start`."""
  return engines.start(engines.BY_LANGUAGE[language], root=root)


class Backends:
  """Engines by language and folder.

  Args:
    start: gives an engine; None has none at all.
  """

  def __init__(self, start: Callable[..., engines.Engine] | None = start):
    self._start = start
    self._roots: tuple[pathlib.Path, ...] = ()
    self._known: dict[tuple[str, pathlib.Path], Backend] = {}

  def add_roots(self, uris: Sequence[str]) -> None:
    """Takes in folders that an editor works in."""
    found = [engines.path(u).resolve() for u in uris if u.startswith("file:")]
    self._roots = tuple(dict.fromkeys((*self._roots, *found)))

  def of(self, text: Text) -> Backend | None:
    """The engine for a document; None if there cannot be one.

    It works in the innermost folder of the editor that the document lies in,
    otherwise in the document's own.
    """
    if self._start is None or text.refusal:
      return None
    if not text.uri.startswith("file:"):
      return None
    path = engines.path(text.uri).resolve()
    around = [r for r in self._roots if path.is_relative_to(r)]
    root = max(around, key=lambda r: len(r.parts), default=path.parent)
    key = (text.language, root)
    if key not in self._known:
      self._known[key] = Backend(text.language, root, start=self._start)
    return self._known[key]

  def all(self) -> list[Backend]:
    return list(self._known.values())

  def shutdown(self) -> None:
    for backend in self._known.values():
      backend.shutdown()
