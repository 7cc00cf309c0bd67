"""What a server answers: the engine's list re-ranked, checked lines inline.

One model, on one thread; the engines on theirs. Model text is shown and given
to engines to read, never run.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from experiments.completion.serving.backends import Backend, Backends
from experiments.completion.serving.live import Live
from experiments.completion.serving.texts import Text
from locojax import engines
from locojax.core import checks
from locojax.methods import completion

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a server answers.

  Attributes:
    k: names that are moved to the top of the engine's list.
    wait_ms: how long a list waits for the model once the engine has answered.
    debounce_ms: silence before a line is asked for that nobody invoked.
    check_ms: for the engine's word on each suggestion; one that it has no
      answer to by then is shown.
    num_shown: lines that must pass the engine; further ones are not looked at.
    min_chars: a line with fewer, blanks not counted, is not shown.
    max_lines: in one suggestion; more than 1 needs `thresholds`.
    thresholds: of the confidence of each line, see `completion.multi_line`;
      () shows one line whatever its confidence.
  """

  k: int = 3
  wait_ms: float = 0.0
  debounce_ms: float = 40.0
  check_ms: float = 100.0
  num_shown: int = 1
  min_chars: int = 3
  max_lines: int = 1
  thresholds: tuple[float, ...] = ()

  def __post_init__(self):
    checks.positive_int("k", self.k)
    for name in ("wait_ms", "debounce_ms"):
      checks.nonnegative(name, getattr(self, name))
    checks.positive("check_ms", self.check_ms)
    checks.positive_int("num_shown", self.num_shown)
    checks.positive_int("min_chars", self.min_chars)
    checks.positive_int("max_lines", self.max_lines)
    if self.max_lines > 1 and not self.thresholds:
      checks.refuse("max_lines", self.max_lines, "1, without thresholds")


@dataclasses.dataclass
class _Names:
  """Names asked of the model at one cursor."""

  key: tuple[str, str, str]
  future: Future


class Assistant:
  """A model and engines, for any number of editors.

  Args:
    load: gives the model, warm: anything with `names`, `lines` and
      `continue_focused`; called once, on the model's thread.
    backends: the engines.
    settings: how to answer.

  Attributes:
    settings, backends, live: parts of it.
  """

  def __init__(
    self,
    load: Callable[[], Any],
    backends: Backends,
    settings: Settings | None = None,
  ):
    self.settings = settings or Settings()
    self.backends, self.live = backends, Live()
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "model")
    self._names: _Names | None = None
    self._model: Any = None
    self.loading = self._pool.submit(self._load, load)

  def _load(self, load: Callable[[], Any]) -> float:
    start = time.perf_counter()
    self._model = load()
    return time.perf_counter() - start

  @property
  def ready(self) -> bool:
    return self._model is not None

  # -- the model ----------------------------------------------------------

  def expect(self, text: Text, offset: int) -> Future | None:
    """Begins to ask for the names at a cursor, unless it has begun."""
    if text.refusal or not self.ready:
      return None
    prefix, suffix = text.text[:offset], text.text[offset:]
    key = (prefix, suffix, text.language)
    if self._names is None or self._names.key != key:
      if self._names is not None:
        self._names.future.cancel()  # if it has not begun
      ask = lambda: self._model.names(prefix, suffix, text.language)
      self._names = _Names(key, self._pool.submit(ask))
    return self._names.future

  def _lines(self, text: Text, offset: int, item: str | None) -> list[str]:
    """What the model would write at a cursor, on its thread."""
    around = (text.text[:offset], text.text[offset:], text.language)
    if item is not None:
      found = self._model.continue_focused(*around, item)
    elif self.settings.max_lines > 1:
      many = self._model.several_lines(
        *around,
        thresholds=self.settings.thresholds,
        max_lines=self.settings.max_lines,
      )
      return ["\n".join(s.text for s in many)] if many else []
    else:
      found = self._model.lines(*around)
    least = self.settings.thresholds[:1] or (0.0,)
    found = [s.text for s in found if s.confidence >= least[0]]
    return [t for t in found if self._is_long(t)]

  def _is_long(self, text: str) -> bool:
    return len("".join(text.split())) >= self.settings.min_chars

  # -- the list -----------------------------------------------------------

  async def complete(self, text: Text, offset: int) -> dict[str, Any]:
    """The engine's list, its order the model's where that is known in time.

    Returns:
      A `CompletionList` of the protocol; empty where nobody knows the place.
    """
    expected = self.expect(text, offset)
    backend = self.backends.of(text)
    if backend is None:
      return {"isIncomplete": False, "items": []}
    try:
      found = await asyncio.wrap_future(backend.complete(text, offset))
    except (engines.EngineError, ValueError) as error:
      _log.warning("%s", error)
      return {"isIncomplete": True, "items": []}
    await self._wait(expected)
    names, known = self._known_names(text, offset, expected)
    ranked = completion.rerank(
      found.items, names, self.settings.k, name=lambda item: item.name
    )
    items = _entries(text, offset, found.items, ranked)
    return {"isIncomplete": found.incomplete or not known, "items": items}

  async def _wait(self, expected: Future | None) -> None:
    seconds = self.settings.wait_ms / 1e3
    if expected is not None and not expected.done() and seconds > 0:
      await asyncio.wait([asyncio.wrap_future(expected)], timeout=seconds)

  def _known_names(
    self, text: Text, offset: int, expected: Future | None
  ) -> tuple[list[str], bool]:
    """Names of the model, and whether they are its answer for this cursor.

    Before that has come, they are the first words of lines that go on here.
    """
    done = expected is not None and expected.done()
    if done and not expected.cancelled() and expected.exception() is None:
      return [n.text for n in expected.result()], True
    prefix, suffix = text.text[:offset], text.text[offset:]
    typed = completion.typed(prefix, text.language)
    lines = self.live.find(text.uri, prefix, suffix)
    first = [completion.first_token(typed, t, text.language) for t in lines]
    return [name for name in first if name is not None], False

  # -- lines --------------------------------------------------------------

  async def inline(
    self,
    text: Text,
    offset: int,
    *,
    item: str | None = None,
    automatic: bool = True,
  ) -> list[str]:
    """Lines to insert at a cursor, best first, without errors if checked.

    Args:
      text: the document.
      offset: of the cursor.
      item: the focused item of the editor's list, which they go on from; the
        rest of it is part of them.
      automatic: whether nobody invoked it: then it waits for silence.
    """
    if text.refusal or not self.ready:
      return []
    prefix, suffix = text.text[:offset], text.text[offset:]
    typed = completion.typed(prefix, text.language)
    if item is not None and not (item.startswith(typed) and item):
      return []
    rest = "" if item is None else item[len(typed) :]
    # What goes on from a focused item is true once that is there.
    place = (text.uri, prefix + rest, suffix)
    known = [rest + t for t in self.live.find(*place)]
    known = [t for t in known if self._is_long(t)]
    if known:
      return known
    backend = self.backends.of(text)
    if backend is not None:
      backend.expect(text)
    if automatic:
      await asyncio.sleep(self.settings.debounce_ms / 1e3)
    ask = self._pool.submit(self._lines, text, offset, item)
    found = await asyncio.wrap_future(ask)
    kept = found
    if backend is not None and found:
      kept = await self._checked(backend, text, offset, found)
    self.live.put(*place, [t[len(rest) :] for t in kept])
    return kept

  async def _checked(
    self, backend: Backend, text: Text, offset: int, found: Sequence[str]
  ) -> list[str]:
    """Those that bring no error in."""
    wanted = [True]
    ask = backend.check(
      text,
      offset,
      found,
      most=self.settings.num_shown,
      timeout=self.settings.check_ms / 1e3,
      wanted=lambda: wanted[0],
    )
    try:
      return await asyncio.wrap_future(ask)
    except (engines.EngineError, ValueError) as error:
      _log.warning("unchecked: %s", error)
      return list(found)
    finally:
      wanted[0] = False

  def close(self, text: Text) -> None:
    """Forgets a document."""
    self.live.forget(text.uri)
    backend = self.backends.of(text)
    if backend is not None:
      backend.close(text.uri)

  def shutdown(self) -> None:
    """Ends engines and threads."""
    self._pool.shutdown(wait=False, cancel_futures=True)
    self.backends.shutdown()


def _entries(
  text: Text,
  offset: int,
  items: Sequence[engines.Item],
  ranked: Sequence[engines.Item],
) -> list[dict[str, Any]]:
  """Entries as editors sort them: by `sortText`, the new rank."""
  typed = completion.typed(text.text[:offset], text.language)
  usual = text.range(offset - len(typed), offset)
  moved = bool(items) and items[0] is not ranked[0]
  out = []
  for rank, item in enumerate(ranked):
    entry = _entry(item, text, usual)
    entry["sortText"] = f"{rank:05d}"
    if rank == 0 and moved:
      entry["preselect"] = True
    out.append(entry)
  return out


_KEPT = ("detail", "kind", "documentation", "labelDetails", "tags")
_MORE = ("additionalTextEdits", "deprecated")


def _entry(
  item: engines.Item, text: Text, usual: dict[str, Any]
) -> dict[str, Any]:
  data = item.data if isinstance(item.data, dict) else {}
  out = {k: data[k] for k in (*_KEPT, *_MORE) if k in data}
  place = usual
  if item.range is not None:
    place = text.lines.range_to_wire(item.range)
  return {
    "label": item.label.strip() or item.name,
    **out,
    "filterText": item.name,
    "textEdit": {"range": place, "newText": item.insert},
  }
