"""JSON-RPC 2.0 with `Content-Length` frames, over the pipes of a process.

Three threads each: one reads, one writes, one keeps the last lines of stderr.
Nobody who sends ever waits for the process to read, so that neither side can
stop the other; and an answer is a `Future`, for threads and asyncio alike.

It is a client of our own, of no package: that of pygls is for asyncio alone,
knows no restart, and in its newer releases needs an attrs that dp-accounting
refuses, so that no environment can have both. A list of a thousand entries is
ready no later than with pygls.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

_log = logging.getLogger(__name__)
_KEPT_LINES = 40
_CLOSE = None
METHOD_NOT_FOUND = -32601

# Processes that are running, ended with ours should nobody have done so.
_running: weakref.WeakSet[Connection] = weakref.WeakSet()


def frame(message: Mapping[str, Any]) -> bytes:
  """A message as bytes with its header."""
  body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
  return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def read_frame(stream: BinaryIO) -> dict[str, Any] | None:
  """The next message; None at the end of the stream.

  Raises:
    ValueError: what is there is no message.
  """
  length = None
  while True:
    line = stream.readline()
    if not line:
      return None
    if line in (b"\r\n", b"\n"):
      if length is None:
        raise ValueError("a message without Content-Length")
      break
    name, _, value = line.partition(b":")
    if name.strip().lower() == b"content-length":
      length = int(value)
  body = stream.read(length)
  return json.loads(body) if len(body) == length else None


class Connection:
  """A process that speaks JSON-RPC on its standard streams.

  Args:
    command: program and arguments.
    cwd: the folder that it runs in.
    env: variables over those of this process.
    on_message: called with each request (has `id`) and notification of the
      process, on the reading thread; what it returns answers a request.
    on_answer: called with each answer, on the reading thread.
    on_end: called once when the process has closed its output.

  Attributes:
    process: the process.
    lost: for its owner, to remember that it has ended.
  """

  def __init__(
    self,
    command: Sequence[str],
    *,
    cwd: str | os.PathLike,
    env: Mapping[str, str],
    on_message: Callable[[dict[str, Any]], Any],
    on_answer: Callable[[dict[str, Any]], None],
    on_end: Callable[[Connection], None],
  ):
    self._on_message, self._on_answer = on_message, on_answer
    self._on_end = on_end
    self._outgoing: queue.SimpleQueue = queue.SimpleQueue()
    self._stderr = collections.deque(maxlen=_KEPT_LINES)
    self.lost = False
    self._reaping, self._reaped = threading.Lock(), False
    # A group of its own: a Ctrl-C is not for engines, and what they start
    # themselves ends with them.
    self.process = subprocess.Popen(
      list(command),
      cwd=cwd,
      env={**os.environ, **env},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
    )
    _running.add(self)
    for work in (self._read, self._write, self._keep_stderr):
      threading.Thread(
        target=work, name=f"{command[0]}{work.__name__}", daemon=True
      ).start()

  def send(self, message: Mapping[str, Any]) -> None:
    """Sends a message in order; returns at once, also if nobody reads."""
    self._outgoing.put(frame({"jsonrpc": "2.0", **message}))

  def said(self) -> str:
    """The last lines of stderr."""
    return "\n".join(self._stderr)

  def _write(self) -> None:
    stream = self.process.stdin
    with contextlib.suppress(OSError, ValueError):
      while (data := self._outgoing.get()) is not _CLOSE:
        stream.write(data)
        if self._outgoing.empty():
          stream.flush()
    with contextlib.suppress(OSError, ValueError):
      stream.close()

  def _read(self) -> None:
    try:
      while (message := read_frame(self.process.stdout)) is not None:
        self._take(message)
    except ValueError as error:
      _log.warning("%s: not JSON-RPC: %s", self.process.args[0], error)
    finally:
      self.process.stdout.close()
      # A process that closed its output, or sends no messages, is of no use.
      self._bury()
      self._outgoing.put(_CLOSE)
      self._on_end(self)

  def _take(self, message: dict[str, Any]) -> None:
    if "method" not in message:
      self._on_answer(message)
      return
    found = self._on_message(message)
    if "id" in message:
      answer = {"result": found}
      if found is NotImplemented:
        words = f"no method {message['method']}"
        answer = {"error": {"code": METHOD_NOT_FOUND, "message": words}}
      self.send({"id": message["id"], **answer})

  def _keep_stderr(self) -> None:
    with self.process.stderr as stream:
      for line in stream:
        self._stderr.append(line.decode(errors="replace").rstrip())

  def _signal(self, number: int) -> None:
    """To the process and all of its group, while its number is its own."""
    with self._reaping:
      if not self._reaped:
        with contextlib.suppress(ProcessLookupError, PermissionError):
          os.killpg(self.process.pid, number)

  def _bury(self) -> None:
    """Ends the group and takes in the process's exit status."""
    self._signal(signal.SIGKILL)
    with self._reaping:
      self.process.wait()
      self._reaped = True
    _running.discard(self)

  def kill(self) -> None:
    """Ends the process and its group at once."""
    self._signal(signal.SIGKILL)

  def end(self, *, patience: float = 1.0) -> None:
    """Closes its input, waits, then ends it and its group by signals."""
    self._outgoing.put(_CLOSE)
    if not self._gone(patience):
      self._signal(signal.SIGTERM)
      self._gone(patience)
    self._bury()

  def _gone(self, patience: float) -> bool:
    """Whether it ended by itself in time; its number stays taken."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    end = time.monotonic() + patience
    while time.monotonic() < end:
      try:
        if os.waitid(os.P_PID, self.process.pid, flags) is not None:
          return True
      except ChildProcessError:
        return True
      time.sleep(0.002)
    return False


@atexit.register
def end_all() -> None:
  """Ends every process that was started here; done at exit."""
  for connection in list(_running):
    connection.kill()
