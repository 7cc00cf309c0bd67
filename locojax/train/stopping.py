"""Being asked to stop: SIGTERM ends a program at the next safe place.

Clusters send SIGTERM some time before they take a machine away. A program that
listens ends with exit code 0 and can be started again:

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
import signal
import threading
from collections.abc import Iterator

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


class _Listener:
  """What this process knows; there is one."""

  def __init__(self):
    self.asked = False
    self.depth = 0
    self.calls = itertools.count(1)
    self.installed = False

  def hear(self, *_) -> None:
    """The handler of the signal."""
    self.asked = True
    if not self.depth:
      raise Preempted("between two steps of the work")


_LISTENER = _Listener()


def _can_listen() -> bool:
  """JAX listens itself in a run of many processes."""
  main_thread = threading.current_thread() is threading.main_thread()
  return main_thread and jax.process_count() == 1 and not _LISTENER.installed


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Listens to SIGTERM while the context lasts; may be nested.

  Outside the main thread nothing is installed.
  """
  if not _can_listen():
    yield
    return
  before = signal.signal(signal.SIGTERM, _LISTENER.hear)
  _LISTENER.installed = True
  try:
    yield
  finally:
    _LISTENER.installed = _LISTENER.asked = False
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


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
  return _LISTENER.asked


def stop_if_due(where: str) -> None:
  """Ends the program here if it was asked to stop.

  Raises:
    Preempted: it was; says `where`.
  """
  if due():
    raise Preempted(where)
