"""A pool of processes for work that may not end.

    with workers.WorkerPool(PROGRAM, num_workers=2, cpu_seconds=5.0) as pool:
      outcomes = pool.map([{"a": "1", "b": "2"}, ...])

A program is a file with `start(**options) -> info` and `answer(request)`, both
of what JSON can hold. It is loaded by a new Python process, without this
package and without the main module of whoever starts it: pools work in threads,
notebooks, scripts without a main guard, and daemons.

The limit is CPU time of the worker, not time on the wall: on a busy machine
nothing turns into "timed out". A worker beyond it is killed, and there are no
signal handlers. One that dies by itself or by others loses nothing: what it was
at is done again, and everything has one outcome. No outcome is `done` but one
that a worker has given.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from concurrent import futures
from typing import Any, NamedTuple

from locojax.core import checks

DONE, FAILED, TIMED_OUT, CRASHED = "done", "failed", "timed out", "crashed"
_MAIN = pathlib.Path(__file__).with_name("worker_main.py")
_START_SECONDS = 300.0  # on the wall, to load a program


class Outcome(NamedTuple):
  """What became of a request.

  Attributes:
    status: `done`, `failed` (the program raised), `timed out` or `crashed`
      (several workers ended over it).
    value: what the program gave; None if not done.
    reason: why it is not done.
  """

  status: str
  value: Any = None
  reason: str = ""


def _cpu_seconds(pid: int) -> float | None:
  """CPU time of a process; None where the system does not tell."""
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return None
  fields = stat.rpartition(")")[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Died(Exception):
  """The worker ended."""


class _Worker:
  """A process that answers one request at a time."""

  def __init__(self, hello: dict[str, Any]):
    self._hello = hello
    self._process: subprocess.Popen | None = None
    self.pid: int | None = None
    self.info: Any = None

  def launch(self) -> None:
    """Starts the process, without waiting for it."""
    self._process = subprocess.Popen(
      [sys.executable, "-P", str(_MAIN)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      start_new_session=True,  # Ctrl-C is for whoever started it
    )
    self._lines: queue.SimpleQueue = queue.SimpleQueue()
    arguments = (self._process.stdout, self._lines)
    threading.Thread(target=_listen, args=arguments, daemon=True).start()
    self._send(self._hello)

  def _send(self, message: dict[str, Any]) -> None:
    try:
      self._process.stdin.write(json.dumps(message).encode() + b"\n")
      self._process.stdin.flush()
    except OSError as error:
      raise _Died(str(error)) from error

  def _receive(self, seconds: float) -> dict[str, Any] | None:
    """The next message; None if there is none in time."""
    try:
      line = self._lines.get(timeout=max(seconds, 0.001))
    except queue.Empty:
      return None
    if not line:
      raise _Died("it ended")
    return json.loads(line)

  def wait(self) -> None:
    """Waits until it is ready.

    Raises:
      ImportError: the program lacks something.
      RuntimeError: it could not be loaded.
    """
    while True:
      try:
        told = self._receive(_START_SECONDS)
      except _Died as error:
        raise RuntimeError("a worker ended before it was ready") from error
      if told is None:
        raise RuntimeError(f"no worker was ready in {_START_SECONDS:.0f} s")
      if "failed" in told:
        kind = ImportError if told["failed"] == "import" else RuntimeError
        raise kind(told["error"])
      if "ready" in told:
        self.pid, self.info = told["ready"], told["info"]
        return

  def ask(self, job: dict, cpu_seconds: float, wall_seconds: float) -> Outcome:
    """One request; kills the process if it takes too long.

    Raises:
      _Died: the process ended before it answered.
    """
    used, start = _cpu_seconds(self.pid), time.monotonic()
    self._send(job)
    while True:
      elapsed = time.monotonic() - start
      now = _cpu_seconds(self.pid)
      spent = elapsed if used is None or now is None else now - used
      left = min(cpu_seconds - spent, wall_seconds - elapsed)
      if left <= 0:
        return self._stopped(job)
      told = self._receive(left)
      if told is not None:
        return self._outcome(told, job)

  def _outcome(self, told: dict, job: dict) -> Outcome:
    if "ready" in told:
      self.pid = told["ready"]
      raise _Died("it was replaced")
    if told.get("id") != job["id"]:
      raise _Died("it answered something else")
    if "error" in told:
      return Outcome(FAILED, reason=told["error"])
    return Outcome(DONE, told["value"])

  def _stopped(self, job: dict) -> Outcome:
    """Kills a worker that takes too long; its last word still counts."""
    _kill(self.pid)
    with contextlib.suppress(_Died):
      told = self._receive(_START_SECONDS)
      if told is not None and "ready" not in told:
        found = self._outcome(told, job)
        self._renewed()
        return found
      if told is not None:
        self.pid = told["ready"]
        return Outcome(TIMED_OUT, reason="beyond the limit of its time")
    self._relaunch()
    return Outcome(TIMED_OUT, reason="beyond the limit of its time")

  def _renewed(self) -> None:
    try:
      self.wait()
    except RuntimeError:
      self._relaunch()

  def _relaunch(self) -> None:
    self.close()
    self.launch()
    self.wait()

  def revive(self) -> None:
    """Makes sure that there is a process, after one has died."""
    if self._process.poll() is not None or self._process.stdin.closed:
      self._relaunch()

  def close(self) -> None:
    """Kills the process and its copy."""
    if self._process is None:
      return
    for pid in (self._process.pid, self.pid):
      if pid is not None and self._process.poll() is None:
        _kill(pid)
    with contextlib.suppress(OSError):
      self._process.stdin.close()
    self._process.wait()


def _listen(stream, lines: queue.SimpleQueue) -> None:
  """Puts the lines of a stream into a queue, and an empty one at its end."""
  with stream:
    for line in stream:
      lines.put(line)
  lines.put(b"")


def _kill(pid: int) -> None:
  with contextlib.suppress(OSError):
    os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def _close_all(found: list[_Worker], jobs: queue.SimpleQueue) -> None:
  for worker in found:
    jobs.put(None)
    worker.close()


class WorkerPool:
  """Processes that answer requests, each within a limit of CPU time.

  Args:
    program: a Python file with `start(**options)`, whose value is `info`, and
      `answer(request)`.
    num_workers: how many processes, 1 or more.
    cpu_seconds: CPU time of one request.
    wall_seconds: time on the wall, for one that waits for something; None is
      20 times the CPU time and a minute.
    memory_mb: address space of a worker in MiB, where the system can limit it;
      None for no limit.
    attempts: workers that may end over a request before it counts as crashed.
    options: for `start`.

  Raises:
    ImportError: the program lacks something; it says what.
    RuntimeError: it cannot be loaded.
    ValueError: a bad argument.
  """

  def __init__(
    self,
    program: str | os.PathLike,
    *,
    num_workers: int = 1,
    cpu_seconds: float = 5.0,
    wall_seconds: float | None = None,
    memory_mb: int | None = 4096,
    attempts: int = 3,
    options: dict[str, Any] | None = None,
  ):
    checks.positive_int("num_workers", num_workers)
    self._cpu = checks.positive("cpu_seconds", cpu_seconds)
    wall = 20 * cpu_seconds + 60 if wall_seconds is None else wall_seconds
    self._wall = checks.positive("wall_seconds", wall)
    self._attempts = checks.positive_int("attempts", attempts)
    if memory_mb is not None:
      checks.positive_int("memory_mb", memory_mb)
    hello = {
      "program": os.fspath(program),
      "path": [p or os.getcwd() for p in sys.path],
      "options": options or {},
      "memory_mb": memory_mb,
      "cpu_seconds": cpu_seconds,
    }
    self._jobs: queue.SimpleQueue = queue.SimpleQueue()
    self._numbers = itertools.count()
    self._closed = threading.Event()
    self._workers = [_Worker(hello) for _ in range(num_workers)]
    self._finalizer = weakref.finalize(
      self, _close_all, self._workers, self._jobs
    )
    try:
      for worker in self._workers:
        worker.launch()
      for worker in self._workers:
        worker.wait()
    except BaseException:
      self._finalizer()
      raise
    for worker in self._workers:
      work = (worker, self._jobs, self._limits(), self._closed)
      threading.Thread(target=_work, args=work, daemon=True).start()

  def _limits(self) -> tuple[float, float, int]:
    return self._cpu, self._wall, self._attempts

  @property
  def info(self) -> Any:
    """What `start` of the program told, such as versions."""
    return self._workers[0].info

  @property
  def pids(self) -> tuple[int, ...]:
    """The processes that answer at the moment."""
    return tuple(worker.pid for worker in self._workers)

  def submit(self, request: Any) -> futures.Future:
    """A future of the `Outcome` of a request; from any thread."""
    if self._closed.is_set():
      raise ValueError("the pool is closed: it takes no requests.")
    future: futures.Future = futures.Future()
    self._jobs.put((next(self._numbers), request, future))
    return future

  def map(self, requests: Iterable[Any]) -> list[Outcome]:
    """The outcomes of requests, in their order."""
    return [future.result() for future in list(map(self.submit, requests))]

  def close(self) -> None:
    """Ends all processes; what is not done is cancelled."""
    self._closed.set()
    self._finalizer()

  def __enter__(self) -> WorkerPool:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def _work(worker: _Worker, jobs: queue.SimpleQueue, limits, closed) -> None:
  """Takes requests to a worker, one after the other."""
  while (job := jobs.get()) is not None:
    number, request, future = job
    if closed.is_set():
      future.cancel()
    elif future.set_running_or_notify_cancel():
      try:
        found = _done(worker, number, request, limits, closed)
      except BaseException as error:  # whoever waits must know
        future.set_exception(error)
      else:
        future.set_result(found)


def _done(worker: _Worker, number: int, request, limits, closed) -> Outcome:
  cpu, wall, attempts = limits
  for _ in range(attempts):
    try:
      return worker.ask({"id": number, "request": request}, cpu, wall)
    except _Died:
      if closed.is_set():
        break
      worker.revive()
      if closed.is_set():  # meanwhile
        worker.close()
  return Outcome(CRASHED, reason=f"{attempts} workers ended over it")
