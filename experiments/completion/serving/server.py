"""The language server, on pygls 1.3: documents, cancellation, answers as JSON.

Of pygls are the messages and their types. Documents are our own (`texts.py`),
lists are sent as they are, since making objects of a thousand entries takes
longer than all the rest, and `inlineCompletionProvider`, which this pygls does
not know, is advertised by ourselves: without it no editor asks. Its trigger
kinds are those of a draft (0 and 1, where LSP 3.18 has 1 and 2), so that its
own classes would refuse what editors send: such requests stay JSON.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import locojax
from experiments.common import commands
from experiments.completion.serving import texts
from experiments.completion.serving.assistant import Assistant
from locojax.core import checks

try:
  from lsprotocol import types
  from pygls import server as pygls_server
  from pygls.protocol import LanguageServerProtocol, lsp_method
except ImportError as error:
  raise ImportError(
    "the server needs pygls 1.3: install the extra `serve`, in a checkout by "
    "./scripts/install experiments,completion,serve"
  ) from error

_log = logging.getLogger(__name__)
NAME = "locojax"
TRIGGERS = (".", ":", ">", "(", "/")
_CONTENT_MODIFIED, _INVALID, _INTERNAL = -32801, -32602, -32603
_CANCELLED = -32800
_AUTOMATIC = 2  # InlineCompletionTriggerKind


class Protocol(LanguageServerProtocol):
  """Messages of one editor."""

  @lsp_method(types.INITIALIZE)
  def lsp_initialize(self, params: Any) -> Any:
    """Capabilities: positions in UTF-16, inline completion."""
    general = params.capabilities.general
    if general is not None:
      general.position_encodings = None
    found = LanguageServerProtocol.lsp_initialize.__wrapped__(self, params)
    options = types.InlineCompletionOptions()
    found.capabilities.inline_completion_provider = options
    self._server.begin(params)
    return found

  @lsp_method(types.TEXT_DOCUMENT_DID_OPEN)
  def lsp_text_document__did_open(self, params: Any) -> None:
    """Takes in a document."""
    self._server.opened(params.text_document)

  @lsp_method(types.TEXT_DOCUMENT_DID_CHANGE)
  def lsp_text_document__did_change(self, params: Any) -> None:
    """Takes in changes, and gives up what was asked of the text before."""
    self._server.changed(params.text_document, params.content_changes)

  @lsp_method(types.TEXT_DOCUMENT_DID_CLOSE)
  def lsp_text_document__did_close(self, params: Any) -> None:
    """Forgets a document."""
    self._server.closed(params.text_document.uri)

  @lsp_method(types.EXIT)
  def lsp_exit(self, *args) -> None:
    """Ends the connection, and the process where it has no other."""
    if self.transport is not None:
      self.transport.close()
    if self._server.ends_process:
      sys.exit(0 if self._shutdown else 1)

  def connection_lost(self, exc) -> None:
    """Ends the process where it has no other connection."""
    if self._server.ends_process:
      super().connection_lost(exc)

  def get_message_type(self, method: str) -> Any:
    """The class of a message; None leaves its parameters as they are."""
    if method == types.TEXT_DOCUMENT_INLINE_COMPLETION:
      return None
    return super().get_message_type(method)

  def _execute_request_callback(self, msg_id, future) -> None:
    """Answers a request; says of one whose text has changed that it has."""
    self._request_futures.pop(msg_id, None)
    if future.cancelled():
      stale = self._server.is_stale(future)
      code = _CONTENT_MODIFIED if stale else _CANCELLED
      words = "the text has changed" if stale else "cancelled"
      return self._refuse(msg_id, code, words)
    error = future.exception()
    if isinstance(error, ValueError):
      return self._refuse(msg_id, _INVALID, commands.message(error))
    if error is not None:
      _log.error("a request failed", exc_info=error)
      return self._refuse(msg_id, _INTERNAL, repr(error))
    return self._send_response(msg_id, result=future.result())

  def _refuse(self, msg_id, code: int, words: str) -> None:
    self._result_types.pop(msg_id, None)
    found = types.ResponseError(code=code, message=words)
    self._send_response(msg_id, error=found)

  def _send_response(self, msg_id, result=None, error=None) -> None:
    """A result that is JSON already is sent as it is."""
    if error is None and isinstance(result, dict | list):
      self._result_types.pop(msg_id, None)
      self._send_data({"jsonrpc": "2.0", "id": msg_id, "result": result})
    else:
      super()._send_response(msg_id, result, error)


class Server(pygls_server.LanguageServer):
  """One editor's server; the assistant may be that of many.

  Args:
    assistant: what answers.
    loop: that it runs in.
    ends_process: whether `exit` ends the process.

  Attributes:
    texts: open documents by URI, as the editor has them.
  """

  def __init__(
    self,
    assistant: Assistant,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    ends_process: bool = True,
  ):
    super().__init__(
      NAME, locojax.__version__, loop=loop, protocol_cls=Protocol
    )
    self.assistant, self.ends_process = assistant, ends_process
    self.texts: dict[str, texts.Text] = {}
    self._asked: dict[str, set[asyncio.Task]] = {}
    self._stale: set[asyncio.Task] = set()
    self._told: set[str] = set()
    self._register()

  def _register(self) -> None:
    # Functions: pygls writes attributes on them, which methods do not take.
    async def complete(params):
      return await self._complete(params)

    async def inline(params):
      return await self._inline(_json(params))

    options = types.CompletionOptions(trigger_characters=list(TRIGGERS))
    self.feature(types.TEXT_DOCUMENT_COMPLETION, options)(complete)
    self.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION)(inline)

  # -- documents ----------------------------------------------------------

  def begin(self, params: Any) -> None:
    """Takes in the folders of an editor."""
    folders = [f.uri for f in params.workspace_folders or ()]
    self.assistant.backends.add_roots(
      folders or filter(None, [params.root_uri])
    )

  def opened(self, item: Any) -> None:
    """Takes in a document; says why if it is none to complete."""
    language = texts.language_of(item.uri, item.language_id)
    self._keep(texts.Text(item.uri, language, item.text, item.version))

  def changed(self, item: Any, changes: Any) -> None:
    """Applies changes in order, and begins to think about the new cursor."""
    before = self._text(item.uri)
    plain = [_plain(change) for change in changes]
    after = before.changed(plain, item.version)
    self._give_up(item.uri)
    self._keep(after)
    place = plain[-1].get("range") if plain else None
    if place is not None and not after.refusal:
      start = after.offset(place["start"])
      self.assistant.expect(after, start + len(plain[-1]["text"]))

  def _keep(self, text: texts.Text) -> None:
    self.texts[text.uri] = text
    if text.refusal and text.language and text.uri not in self._told:
      self._told.add(text.uri)
      name = text.uri.rsplit("/", 1)[-1]
      words = f"{name} is not completed: {text.refusal}"
      self.show_message(words, types.MessageType.Warning)

  def closed(self, uri: str) -> None:
    """Forgets a document and what was asked of it."""
    self._give_up(uri)
    self._told.discard(uri)
    text = self.texts.pop(uri, None)
    if text is not None:
      self.assistant.close(text)

  def _text(self, uri: str) -> texts.Text:
    return checks.lookup("uri", uri, self.texts)

  # -- requests -----------------------------------------------------------

  def _give_up(self, uri: str) -> None:
    for task in self._asked.pop(uri, ()):
      if task.cancel():
        self._stale.add(task)

  def is_stale(self, task: asyncio.Task) -> bool:
    """Whether a cancelled request was about a text that is no more."""
    stale = task in self._stale
    self._stale.discard(task)
    return stale

  async def _about(
    self, uri: str, answer: Callable[[texts.Text], Coroutine]
  ) -> Any:
    """An answer that is given up when the text changes."""
    task = asyncio.current_task()
    asked = self._asked.setdefault(uri, set())
    asked.add(task)
    try:
      return await answer(self._text(uri))
    finally:
      asked.discard(task)

  async def _complete(self, params: types.CompletionParams) -> Any:
    async def answer(text):
      if text.refusal:
        return {"isIncomplete": False, "items": []}
      offset = text.offset(_position(params.position))
      return await self.assistant.complete(text, offset)

    return await self._about(params.text_document.uri, answer)

  async def _inline(self, params: Mapping[str, Any]) -> Any:
    async def answer(text):
      cursor = text.offset(params["position"])
      context = params.get("context") or {}
      automatic = context.get("triggerKind", _AUTOMATIC) == _AUTOMATIC
      focused = context.get("selectedCompletionInfo")
      if not focused:
        found = await self.assistant.inline(text, cursor, automatic=automatic)
        return _inserted(text, cursor, cursor, "", found)
      start = text.offset(focused["range"]["start"])
      found = await self.assistant.inline(
        text, cursor, item=focused["text"], automatic=automatic
      )
      return _inserted(text, start, cursor, focused["text"], found)

    return await self._about(params["textDocument"]["uri"], answer)


def _inserted(
  text: texts.Text, start: int, cursor: int, item: str, found: list[str]
) -> dict[str, Any]:
  """Items that replace from `start`; those that go on from a focused item."""
  typed = text.text[start:cursor]
  place = text.range(start, cursor)
  whole = [typed + more for more in found]
  return {
    "items": [
      {"insertText": w, "filterText": w, "range": place}
      for w in whole
      if w.startswith(item) and w != item
    ]
  }


def _json(found: Any) -> Any:
  """Parameters of no class, which pygls makes named tuples, as they came."""
  if hasattr(found, "_asdict"):
    return {k: _json(v) for k, v in found._asdict().items()}
  return found


def _position(found: Any) -> dict[str, int]:
  return {"line": found.line, "character": found.character}


def _plain(change: Any) -> dict[str, Any]:
  place = getattr(change, "range", None)
  if place is None:
    return {"text": change.text}
  sides = {s: _position(getattr(place, s)) for s in ("start", "end")}
  return {"text": change.text, "range": sides}
