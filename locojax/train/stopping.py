"""Being asked to stop: a program ends at the next safe place.

Clusters send SIGTERM some time before they take a machine away; a program that
listens ends with exit code 0 and can be started again. So it does after Ctrl-C,
which is told as `KeyboardInterrupt`:

* within `deferred` (the loop trains and saves there) the signal only leaves a
  mark, which `due` reads once a step;
* elsewhere (data load, a report is written, between stages) the program ends at
  once, for all files are written at one stroke.

In a run of many processes JAX's coordination service hears the signal, on any
of them, and all agree where to stop; outside `deferred` that is the next stage.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils


class Preempted(SystemExit):
  """The program was asked to stop and can be started again; exit code 0.

  It passes through callers of many stages, which so stop too.
  """

  def __init__(self, where: str):
    super().__init__(0)
    self.where = where

  def __str__(self) -> str:
    return f"stopped {self.where}; run again to resume"


class Interrupted(KeyboardInterrupt):
  """The same by Ctrl-C, for a person at a terminal or in a notebook."""

  def __init__(self, where: str):
    super().__init__()
    self.where = where

  def __str__(self) -> str:
    return f"stopped {self.where}; run again to resume"


SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HINT = b"\nstopping when it is safe; Ctrl-C again stops at once\n"


class _Listener:
  """What this process knows; there is one."""

  def __init__(self):
    self.asked: int | bool = False
    self.depth = 0
    self.calls = itertools.count(1)
    self.installed = self.lost = False

  def hear(self, number: int, *_) -> None:
    """The handler of the signals."""
    again = self.asked == number == signal.SIGINT and not self.lost
    self.asked, self.lost = number, False
    if not self.depth:
      raise _exception("between two steps of the work")
    if again:
      raise KeyboardInterrupt
    if number == signal.SIGINT:
      os.write(2, _HINT)  # whoever was interrupted may hold `sys.stderr`

  def unraisable(self, lost: Any) -> None:
    """An exception that Python could not raise where it came.

    It came in the middle of a callback (of the garbage collector, say), which
    swallows exceptions: the signal is sent once more, a little later.
    """
    if not isinstance(lost.exc_value, Preempted | Interrupted):
      sys.__unraisablehook__(lost)
      return
    self.lost = True
    number = int(self.asked)
    threading.Timer(0.02, os.kill, (os.getpid(), number)).start()


_LISTENER = _Listener()


def _exception(where: str) -> BaseException:
  by_person = _LISTENER.asked == signal.SIGINT
  return Interrupted(where) if by_person else Preempted(where)


def _can_listen() -> bool:
  """JAX listens itself in a run of many processes."""
  main_thread = threading.current_thread() is threading.main_thread()
  return main_thread and jax.process_count() == 1 and not _LISTENER.installed


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Listens to SIGTERM and Ctrl-C while the context lasts; may be nested.

  Outside the main thread nothing is installed.
  """
  if not _can_listen():
    yield
    return
  before = {n: signal.signal(n, _LISTENER.hear) for n in SIGNALS}
  hook, sys.unraisablehook = sys.unraisablehook, _LISTENER.unraisable
  _LISTENER.installed = True
  try:
    yield
  finally:
    sys.unraisablehook = hook
    _LISTENER.installed = _LISTENER.asked = _LISTENER.lost = False
    for number, handler in before.items():
      signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Listens too, but leaves it to `due` to find out; may be nested."""
  with listening():
    _LISTENER.depth += 1
    try:
      yield
    finally:
      _LISTENER.depth -= 1


def due() -> bool:
  """Whether to stop here; the same on every process.

  To be called by all processes in the same order, once a step.
  """
  if jax.process_count() > 1 and not _LISTENER.asked:
    # Calls are numbered through all stages: a step's number comes again.
    number = next(_LISTENER.calls)
    _LISTENER.asked = multihost_utils.reached_preemption_sync_point(number)
  return bool(_LISTENER.asked)


def stop_if_due(where: str) -> None:
  """Ends the program here if it was asked to stop.

  Raises:
    Preempted: it was, by SIGTERM; says `where`.
    Interrupted: it was, by Ctrl-C.
  """
  if due():
    stop(where)


def stop(where: str) -> NoReturn:
  """Ends the program here; see `stop_if_due`."""
  raise _exception(where)
