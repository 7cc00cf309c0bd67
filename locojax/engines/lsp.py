"""An engine that is a language server: LSP 3.17 over standard streams.

The documents are kept here and are the truth; the server is told of every
change before it is asked anything. Should it end, it is started again once and
told all of them anew, and what was asked meanwhile is asked again.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from locojax.core import checks
from locojax.engines import calls, documents, positions, programs, rpc, wire
from locojax.engines.calls import Call
from locojax.engines.documents import Document
from locojax.engines.settings import Settings
from locojax.engines.types import (
  CompletionList,
  Edit,
  EngineDied,
  EngineError,
  Position,
  Report,
  Signature,
  Stale,
)

_log = logging.getLogger(__name__)
_FULL = 1  # TextDocumentSyncKind
_CONTENT_MODIFIED, _SERVER_CANCELLED = -32801, -32802
_MAX_TRIES, _TRY_AGAIN_SECONDS = 20, 0.01
_SHUTDOWN_SECONDS = 2.0
_IDS_BY_SUFFIX = {".tsx": "typescriptreact", ".c": "c", ".h": "cpp"}


def _wire_version(document: Document) -> int:
  """The version that a server is told: an even one, see `_nudge`."""
  return 2 * document.version


class LspEngine:
  """A language server as an `Engine`.

  Args:
    settings: which server, see `locojax.engines.presets`.
    root: the workspace folder; documents lie inside it.
    program: path or name to run instead of the settings' own.
    restarts: how often it is started again after it ended by itself.

  Raises:
    EngineAbsent: its program is not installed.
    EngineDied: it ended, or said nothing, at the start.
    ValueError: `root` is no folder or lacks what the engine needs.
  """

  def __init__(
    self,
    settings: Settings,
    root: str | pathlib.Path,
    *,
    program: str | None = None,
    restarts: int = 1,
  ):
    self.settings, self.name = settings, settings.name
    self.language = settings.language
    self.root = settings.check_root(pathlib.Path(root))
    self.program = programs.find(settings.program, program)
    self.version = ""
    self.restarted = 0
    self._restarts = checks.nonnegative_int("restarts", restarts)
    self._lock = threading.RLock()
    self._documents: dict[str, Document] = {}
    self._reports: dict[str, tuple[Document, Report]] = {}  # The last ones.
    self._results: dict[str, str] = {}  # Of pulls, by URI.
    self._calls: dict[int, Call] = {}
    self._waiting: list[Call] = []
    self._nudged: list[Document] = []
    self._held: dict[str, tuple[Document, Report]] = {}
    self._last_id = 0
    self._connection: rpc.Connection | None = None
    self._starting: Call | None = None
    self._closing, self._died = False, ""
    self._capabilities: dict[str, Any] = {}
    self._start()

  def __enter__(self) -> LspEngine:
    return self

  def __exit__(self, *_) -> None:
    self.shutdown()

  # The process.

  def _start(self) -> None:
    """Starts the server, tells it all documents, and asks what is open."""
    starting = Call("initialize", self._introduction())
    self._starting = starting
    try:
      connection = rpc.Connection(
        [str(self.program), *self.settings.arguments],
        cwd=self.root,
        env=self.settings.env,
        on_message=self._on_message,
        on_answer=self._on_answer,
        on_end=self._on_end,
      )
    except OSError as error:
      raise EngineDied(f"{self.name} does not start: {error}") from error
    starting.id = self._new_id()
    self._calls[starting.id] = starting
    connection.send(
      {"id": starting.id, "method": starting.method, "params": starting.params}
    )
    try:
      found = calls.wait(starting, self.name, self.settings.start_timeout)
    except EngineError:
      connection.end()
      raise
    finally:
      self._starting = None
    self._capabilities = found.get("capabilities") or {}
    told = (found.get("serverInfo") or {}).get("version") or ""
    wanted = self.settings.program
    self.version = programs.version(wanted, self.program, told)
    programs.warn_of_version(self.name, self.version, wanted.tested)
    connection.send({"method": "initialized", "params": {}})
    with self._lock:
      lost, ended = connection.lost, self._closing
      if not ended:
        self._connection = connection
        self._tell_all()
    if ended:
      connection.end()
      raise EngineDied(f"{self.name} was shut down.")
    if lost:  # While it was not ours yet.
      self._on_end(connection)

  def _tell_all(self) -> None:
    """Tells a new server all documents, and asks it what is open."""
    self._results.clear()
    self._nudged.clear()
    self._held.clear()
    for document in self._documents.values():
      self._send_open(document)
    for call in list(self._calls.values()):
      self._ask_again(call)

  def _introduction(self) -> dict[str, Any]:
    folder = {"uri": documents.uri(self.root), "name": self.root.name}
    return {
      "processId": os.getpid(),
      "clientInfo": {"name": "locojax"},
      "rootUri": folder["uri"],
      "workspaceFolders": [folder],
      "capabilities": wire.CAPABILITIES,
      "initializationOptions": dict(self.settings.options),
    }

  def _on_end(self, connection: rpc.Connection) -> None:
    """The server ended: starts it again, or fails all that is asked."""
    with self._lock:
      words = f"{self.name} ended (exit {connection.process.returncode})."
      words += f" It said:\n{connection.said()}" if connection.said() else ""
      if connection is not self._connection:
        connection.lost = True
        if self._starting is not None:
          self._starting.fail(EngineDied(words))
        return
      self._connection = None
      if self._closing:
        return
      if self.restarted >= self._restarts:
        self._fail_all(words)
        return
      self.restarted += 1
    _log.warning("%s It is started again.", words)
    try:
      self._start()
    except EngineError as error:
      self._fail_all(str(error))

  def _fail_all(self, words: str) -> None:
    with self._lock:
      self._died = words
      for call in [*self._calls.values(), *self._waiting]:
        call.fail(EngineDied(words))
      self._calls.clear()
      self._waiting.clear()

  def restart(self) -> None:
    """Starts a server again that ended too often, with all documents.

    Raises:
      EngineDied: it does not start.
    """
    with self._lock:
      if self._connection is not None or not self._died:
        return
      self._died, self.restarted = "", 0
    try:
      self._start()
    except EngineError as error:
      self._fail_all(str(error))
      raise

  def shutdown(self) -> None:
    """Ends the server and its processes; open questions fail."""
    with self._lock:
      connection, self._connection = self._connection, None
      was, self._closing = self._closing, True
      self._fail_all(f"{self.name} was shut down.")
    if connection is None or was:
      return
    call = Call("shutdown", None, on_cancel=lambda _: None)
    with self._lock:
      call.id = self._new_id()
      self._calls[call.id] = call
    connection.send({"id": call.id, "method": "shutdown"})
    try:
      calls.wait(call, self.name, _SHUTDOWN_SECONDS)
    except EngineError as error:
      _log.debug("%s: %s", self.name, error)
    connection.send({"method": "exit"})
    connection.end()

  # Documents.

  def open(self, uri: str, text: str) -> int:
    documents.check_inside(uri, self.root)
    with self._lock:
      self._check_alive()
      if uri in self._documents:
        checks.refuse("uri", uri, "a document that is not open yet")
      document = Document(uri, documents.check_text(text))
      self._documents[uri] = document
      self._send_open(document)
    return document.version

  def _send_open(self, document: Document) -> None:
    suffix = pathlib.PurePosixPath(document.uri).suffix
    self._notify(
      "textDocument/didOpen",
      {
        "textDocument": {
          "uri": document.uri,
          "languageId": _IDS_BY_SUFFIX.get(suffix, self.settings.language_id),
          "version": _wire_version(document),
          "text": self._sent(document),
        }
      },
    )

  def change(self, uri: str, edits: Sequence[Edit]) -> int:
    with self._lock:
      before = self._document(uri)
      if not edits:
        return before.version
      document, changes = before.edited(edits)
      if self._takes_whole(before, document):
        changes = [{"text": self._sent(document)}]
      self._documents[uri] = document
      self._send_change(document, changes)
      self._drop_waiting(uri)
    return document.version

  def _send_change(
    self, document: Document, changes: list[Any], nudge: bool = False
  ) -> None:
    version = _wire_version(document) + nudge
    self._notify(
      "textDocument/didChange",
      {
        "textDocument": {"uri": document.uri, "version": version},
        "contentChanges": changes,
      },
    )

  def _sent(self, document: Document) -> str:
    """The text of a document as the server is told it."""
    odd = self.settings.newlines_only
    return positions.with_newlines(document.text) if odd else document.text

  def _takes_whole(self, before: Document, after: Document) -> bool:
    """Whether the server needs the whole text rather than edits."""
    sync = self._capabilities.get("textDocumentSync", _FULL)
    kind = sync.get("change") if isinstance(sync, dict) else sync
    if kind == _FULL or self.settings.full_text:
      return True
    odd = (d.lines.has_lone_returns for d in (before, after))
    return self.settings.newlines_only and any(odd)

  def close(self, uri: str) -> None:
    with self._lock:
      self._document(uri)
      del self._documents[uri]
      self._reports.pop(uri, None)
      self._results.pop(uri, None)
      self._notify("textDocument/didClose", {"textDocument": {"uri": uri}})
      self._drop_waiting(uri)

  def text(self, uri: str) -> str:
    with self._lock:
      return self._document(uri).text

  def _check_alive(self) -> None:
    if self._died:
      raise EngineDied(self._died)

  def _document(self, uri: str) -> Document:
    self._check_alive()
    return checks.lookup("uri", uri, self._documents)

  def _drop_waiting(self, uri: str) -> None:
    """Fails who waits for diagnostics of a text that is no more."""
    for call in [c for c in self._waiting if c.document.uri == uri]:
      self._waiting.remove(call)
      call.fail(Stale(f"{uri} changed before {self.name} had looked at it."))

  # Messages.

  def _new_id(self) -> int:
    with self._lock:
      self._last_id += 1
      return self._last_id

  def _notify(self, method: str, params: dict[str, Any]) -> None:
    if self._connection is not None:
      self._connection.send({"method": method, "params": params})

  def _ask(self, call: Call) -> Call:
    with self._lock:
      self._check_alive()
      call.on_cancel = self._on_cancel
      call.id = self._new_id()
      self._calls[call.id] = call
      if self._connection is not None:
        self._connection.send(
          {"id": call.id, "method": call.method, "params": call.params}
        )
    return call

  def _ask_again(self, call: Call) -> None:
    """Sends a call once more, if its document is still the same."""
    with self._lock:
      self._calls.pop(call.id, None)
      if call.done():
        return
      now = call.document and self._documents.get(call.document.uri)
      if call.document is not None and now is not call.document:
        call.fail(Stale(f"{call.document.uri} changed before the answer."))
      elif self._died:
        call.fail(EngineDied(self._died))
      else:
        self._ask(call)

  def _on_cancel(self, call: Call) -> None:
    with self._lock:
      if call in self._waiting:
        self._waiting.remove(call)
      if self._calls.pop(call.id, None) is not None:
        self._notify("$/cancelRequest", {"id": call.id})

  def _on_answer(self, message: dict[str, Any]) -> None:
    with self._lock:
      call = self._calls.pop(message.get("id"), None)
    if call is None:  # Cancelled, or asked of the process before.
      return
    error = message.get("error")
    if error is None:
      call.answer(message.get("result"))
    elif error.get("code") not in (_CONTENT_MODIFIED, _SERVER_CANCELLED):
      words = f"{self.name}, {call.method}: {error.get('message')}"
      call.fail(EngineError(f"{words} ({error.get('code')})."))
    elif call.tries >= _MAX_TRIES:
      call.fail(Stale(f"{self.name} put off {call.method} {call.tries} times."))
    else:
      call.tries += 1
      timer = threading.Timer(_TRY_AGAIN_SECONDS, self._ask_again, [call])
      timer.daemon = True
      timer.start()

  def _on_message(self, message: dict[str, Any]) -> Any:
    """What the server tells or asks on its own."""
    method, params = message["method"], message.get("params") or {}
    if method == "textDocument/publishDiagnostics":
      self._take_pushed(params)
    elif method == "textDocument/inactiveRegions":
      self._take_regions(params)
    elif method == "workspace/configuration":
      # Objects, never null: gopls takes null for an error.
      table = self.settings.configuration
      return [table.get(i.get("section", ""), {}) for i in params["items"]]
    elif method == "workspace/workspaceFolders":
      return self._introduction()["workspaceFolders"]
    elif method == "workspace/applyEdit":
      return {"applied": False}
    elif "id" in message and not method.startswith(
      ("client/", "window/", "workspace/")
    ):
      return NotImplemented
    return None

  # Questions.

  def _place(self, uri: str, position: Position) -> tuple[Document, Any]:
    document = self._document(uri)
    return document, {
      "textDocument": {"uri": uri},
      "position": document.lines.to_wire(position),
    }

  def _wait(self, call: Future, timeout: float | None) -> Any:
    timeout = self.settings.timeout if timeout is None else timeout
    checks.positive("timeout", timeout)
    return calls.wait(call, self.name, timeout)

  def complete_later(self, uri: str, position: Position) -> Future:
    with self._lock:
      document, params = self._place(uri, position)
      take = lambda found: wire.completions(
        found, document.lines, document.version
      )
      method = "textDocument/completion"
      params["context"] = {"triggerKind": 1}
      return self._ask(Call(method, params, document=document, take=take))

  def complete(
    self, uri: str, position: Position, *, timeout: float | None = None
  ) -> CompletionList:
    return self._wait(self.complete_later(uri, position), timeout)

  def signature(
    self, uri: str, position: Position, *, timeout: float | None = None
  ) -> tuple[Signature, ...]:
    if not self._capabilities.get("signatureHelpProvider"):
      return ()
    with self._lock:
      document, params = self._place(uri, position)
      method = "textDocument/signatureHelp"
      call = self._ask(
        Call(method, params, document=document, take=wire.signatures)
      )
    return self._wait(call, timeout)

  def hover(
    self, uri: str, position: Position, *, timeout: float | None = None
  ) -> str:
    if not self._capabilities.get("hoverProvider"):
      return ""
    with self._lock:
      document, params = self._place(uri, position)
      method = "textDocument/hover"
      call = self._ask(Call(method, params, document=document, take=wire.hover))
    return self._wait(call, timeout)

  # Diagnostics.

  def _report(self, document: Document, items: Sequence[Any]) -> Report:
    """Diagnostics of the server for a document, with what they leave open."""
    settings = self.settings
    numbers = programs.numbers(self.version)
    kind = lambda code, message: settings.kinds(code, message, numbers)
    found = [wire.diagnostic(item, document.lines, kind) for item in items]
    found.sort(key=lambda d: (d.range, d.code, d.message))
    unchecked = settings.unchecked
    if any(d.kind == "syntax" and d.is_error for d in found):
      unchecked |= settings.hides
    ends = [d for d in found if settings.stops and d.code == settings.stops]
    kept = tuple(d for d in found if d not in ends)
    stopped = max((d.range.start for d in kept), default=None) if ends else None
    skips = settings.unreachable and re.compile(settings.unreachable, re.I)
    skipped = tuple(
      d.range
      for d in kept
      if skips and d.unnecessary and skips.search(d.message)
    )
    return Report(kept, document.version, unchecked, skipped, stopped)

  def diagnostics_later(self, uri: str) -> Future:
    with self._lock:
      document = self._document(uri)
      if not self.settings.pull:
        return self._wait_for_push(document)
      params = {"textDocument": {"uri": uri}}
      if uri in self._results:
        params["previousResultId"] = self._results[uri]
      take = lambda found: self._take_pulled(document, found)
      method = "textDocument/diagnostic"
      return self._ask(Call(method, params, document=document, take=take))

  def _take_pulled(self, document: Document, found: Any) -> Report:
    with self._lock:
      known = self._reports.get(document.uri)
      if found.get("resultId") is not None:
        self._results[document.uri] = found["resultId"]
      if found.get("kind") == "unchanged" and known is not None:
        # It carries no items: they are those of the last answer.
        report = dataclasses.replace(known[1], version=document.version)
      else:
        report = self._report(document, found.get("items") or ())
      if document.uri in self._documents:
        self._reports[document.uri] = document, report
      return report

  def _still_holds(self, known: tuple[Document, Report], now: Document) -> bool:
    """Whether a report is, or will be the last, of the text as it is now."""
    about = known[0]
    return about is now or (self.settings.skips_same and about.text == now.text)

  def _wait_for_push(self, document: Document) -> Call:
    call = Call("", None, document=document)
    call.on_cancel = self._on_cancel
    known = self._reports.get(document.uri)
    if known is not None and self._still_holds(known, document):
      call.answer(dataclasses.replace(known[1], version=document.version))
    else:
      self._waiting.append(call)
    return call

  def _take_pushed(self, params: dict[str, Any]) -> None:
    """Keeps diagnostics of the text as it is now; others are of no use."""
    with self._lock:
      document = self._documents.get(params["uri"])
      version = params.get("version")
      if document is None:
        return
      if version is None:
        self._nudge(document)
      if version is None or version // 2 != document.version:
        return
      report = self._report(document, params["diagnostics"])
      if self.settings.regions:
        self._held[document.uri] = document, report
        return
    self._deliver(document, report)

  def _take_regions(self, params: dict[str, Any]) -> None:
    """Adds the regions that follow a push to it (clangd)."""
    with self._lock:
      held = self._held.pop(params["textDocument"]["uri"], None)
    if held is not None:
      document, report = held
      skipped = map(document.lines.range_from_wire, params["regions"])
      report = dataclasses.replace(report, skipped=tuple(skipped))
      self._deliver(document, report)

  def _deliver(self, document: Document, report: Report) -> None:
    """Gives a report to all that wait for it."""
    with self._lock:
      if self._documents.get(document.uri) is not document:
        return
      self._reports[document.uri] = document, report
      ready = [c for c in self._waiting if c.document is document]
      for call in ready:
        self._waiting.remove(call)
    for call in ready:
      call.answer(report)

  def _nudge(self, document: Document) -> None:
    """Asks for diagnostics with a version, by a change that changes nothing.

    What gopls sends first, of a file as it is on the disk, has none: it may be
    about the text as it is now or not.
    """
    known = self._reports.get(document.uri)
    if document in self._nudged or (known and known[0] is document):
      return
    self._nudged = [d for d in self._nudged if d.uri != document.uri]
    self._nudged.append(document)
    self._send_change(document, [{"text": self._sent(document)}], nudge=True)

  def diagnostics(self, uri: str, *, timeout: float | None = None) -> Report:
    return self._wait(self.diagnostics_later(uri), timeout)
