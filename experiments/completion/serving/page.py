"""An editor in a page, which speaks to the server over a websocket.

Monaco is served from where `scripts/install_monaco` put it; nothing is asked of
any other machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import mimetypes
import os
import pathlib
import secrets
import sys
import urllib.parse
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from experiments.completion.serving import server
from experiments.completion.serving.assistant import Assistant
from locojax import engines
from locojax.core import checks

VARIABLE, FOLDER = "LOCOJAX_MONACO", ".monaco"
_HERE = pathlib.Path(__file__).parent
_CHECKOUT = _HERE.parents[2]
_OWN = ("page.html", "page.js")
_MAX_BYTES = 64 * 2**20  # of a message


def monaco() -> pathlib.Path:
  """The folder of Monaco's `vs`.

  Raises:
    ImportError: it is not installed.
  """
  folder = pathlib.Path(os.environ.get(VARIABLE) or _CHECKOUT / FOLDER)
  found = folder / "package" / "min" / "vs"
  if not (found / "loader.js").is_file():
    raise ImportError(
      f"the page needs Monaco (npm: monaco-editor) in {folder.name}: "
      "./scripts/install_monaco puts it there"
    )
  return found.parent


def is_installed() -> bool:
  """Whether Monaco is there."""
  try:
    return bool(monaco())
  except ImportError:
    return False


class _Socket:
  """A websocket as pygls writes to it."""

  def __init__(self):
    self.queue: asyncio.Queue = asyncio.Queue()

  def write(self, data: str) -> None:
    self.queue.put_nowait(data)

  def close(self) -> None:
    self.queue.put_nowait(None)


async def _send(socket: _Socket, connection: Any) -> None:
  while (data := await socket.queue.get()) is not None:
    await connection.send(data)
  await connection.close()


async def _editor(assistant: Assistant, connection: Any) -> None:
  """One editor, as long as its page is open."""
  made = server.Server(
    assistant, loop=asyncio.get_running_loop(), ends_process=False
  )
  protocol, socket = made.lsp, _Socket()
  protocol._send_only_body = True
  protocol.connection_made(socket)
  sending = asyncio.create_task(_send(socket, connection))
  try:
    async for message in connection:
      protocol._procedure_handler(
        json.loads(message, object_hook=protocol._deserialize_message)
      )
  finally:
    for uri in list(made.texts):
      made.closed(uri)
    sending.cancel()


class _Site:
  """Files of the page: ours, Monaco's, and what the page is told.

  Args:
    root: folder that documents lie in.
    token: that an address must have; another site's page does not know it.
  """

  def __init__(self, root: pathlib.Path, token: str):
    self._root, self._token, self._monaco = root, token, monaco()

  def is_ours(self, path: str) -> bool:
    """Whether an address has the token."""
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)
    given = query.get("token", [""])[0]
    return secrets.compare_digest(given.encode(), self._token.encode())

  def read(self, path: str) -> tuple[HTTPStatus, str, bytes]:
    """Status, kind and content of an address."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(path).path).lstrip("/")
    if name == "settings.json":
      if not self.is_ours(path):
        return HTTPStatus.FORBIDDEN, "text/plain", b"no token"
      told = {"root": engines.uri(self._root)}
      return HTTPStatus.OK, "application/json", json.dumps(told).encode()
    name = name or _OWN[0]
    top = _HERE if name in _OWN else self._monaco
    found = (top / name).resolve()
    if not found.is_relative_to(top.resolve()) or not found.is_file():
      return HTTPStatus.NOT_FOUND, "text/plain", b"not found"
    kind = mimetypes.guess_type(found.name)[0] or "application/octet-stream"
    return HTTPStatus.OK, kind, found.read_bytes()


@contextlib.asynccontextmanager
async def opened(
  assistant: Assistant, root: str | os.PathLike, host: str, port: int
) -> AsyncIterator[str]:
  """Serves the page as long as the context lasts; gives its address.

  Raises:
    ImportError: websockets or Monaco is not installed.
    ValueError: `root` is no folder.
  """
  from websockets.asyncio import server as sockets
  from websockets.datastructures import Headers
  from websockets.http11 import Response

  folder = pathlib.Path(root).expanduser().resolve()
  if not folder.is_dir():
    checks.refuse("root", str(root), "a folder")
  token = secrets.token_urlsafe(16)
  site = _Site(folder, token)

  def answer(connection, request):
    if request.headers.get("Upgrade", "").lower() == "websocket":
      if site.is_ours(request.path):
        return None
      return connection.respond(HTTPStatus.FORBIDDEN, "no token\n")
    status, kind, body = site.read(request.path)
    headers = {"Content-Type": kind, "Content-Length": str(len(body))}
    headers |= {"Connection": "close"}
    return Response(status.value, status.phrase, Headers(headers), body)

  async with sockets.serve(
    lambda connection: _editor(assistant, connection),
    host,
    port,
    process_request=answer,
    max_size=_MAX_BYTES,
    compression=None,
  ) as made:
    used = made.sockets[0].getsockname()[1]
    yield f"http://{host}:{used}/?token={token}"


async def serve(
  assistant: Assistant, root: str | os.PathLike, host: str, port: int
) -> None:
  """Serves the page until it is stopped; says its address."""
  async with opened(assistant, root, host, port) as address:
    print(f"an editor at {address}", file=sys.stderr)
    seconds = await asyncio.wrap_future(assistant.loading)
    print(f"the model is there after {seconds:.0f} s", file=sys.stderr)
    await asyncio.get_running_loop().create_future()
