"""How every command ends: what a user must know in one line, and a code.

  0    done, or stopped by SIGTERM in a state to go on from
  2    a mistake in what was asked, said as `error: ...`
  130  stopped by Ctrl-C, likewise to go on from

Faults of the program show their traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

import jax

from locojax.train import distributed, stopping

MISTAKES = (ValueError, ImportError, FloatingPointError, FileNotFoundError)


def message(error: BaseException | str) -> str:
  """What an error says, in one line, without traceback or quotes around."""
  while isinstance(error, BaseException) and error.args:
    inner = error.args[0]
    if not isinstance(inner, BaseException | str):
      break
    error = inner
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  if "Traceback (most recent call last):" in lines:
    lines = [lines[0], lines[-1]]
  return " ".join(lines)


def refuse(error: BaseException | str, *, debug: bool = False) -> int:
  """Says what is wrong in one line; the exit code."""
  if debug and isinstance(error, BaseException):
    traceback.print_exception(error)
  print(f"error: {message(error)}", file=sys.stderr)
  return 2


def _leave(code: int, said: str) -> int:
  """Says why, and ends a program that was stopped in the middle of anything.

  What was interrupted (a compilation, an event loop) may not be fit to be taken
  down in order, and all files are whole: a process that is alone just ends.
  """
  print(said, file=sys.stderr)
  if jax.process_count() > 1:
    return code
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def run(work: Callable[[], int | None], *, debug: bool = False) -> int:
  """Does the work of a command, the last thing of a program; its exit code.

  Joins the other processes of the run first, if there are any.

  Args:
    work: gives the exit code; None for 0.
    debug: whether a mistake shows its traceback too.
  """
  try:
    distributed.initialise()  # before anything else asks JAX
    with stopping.listening():
      code = work() or 0
    for number in stopping.SIGNALS:  # nothing is left that could be stopped
      signal.signal(number, signal.SIG_IGN)
    return code
  except stopping.Preempted as preempted:
    return _leave(0, f"SIGTERM: {preempted}")
  except KeyboardInterrupt as interrupted:
    return _leave(130, str(interrupted) or "interrupted; run again to resume")
  except MISTAKES as error:
    return refuse(error, debug=debug)
