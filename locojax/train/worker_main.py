"""What a worker process runs: a program is loaded once and answers requests.

Started by `workers.WorkerPool` as a file, with Python's standard library alone:
a worker has neither JAX nor this package, unless its program imports them. A
line of JSON comes in for each request, and one goes out.

Where the system can fork, the process that has loaded the program only makes
copies of itself, which do the work: one that is killed is replaced in
milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
from typing import Any

try:
  import resource
except ImportError:  # not on every system
  resource = None

_GRACE = 5  # seconds of CPU beyond the limit of whoever started this


def _line(rest: bytearray) -> bytes | None:
  """The next line of the input; None at its end."""
  while b"\n" not in rest:
    more = os.read(0, 65536)
    if not more:
      return None
    rest += more
  line, _, left = bytes(rest).partition(b"\n")
  rest[:] = left
  return line


def _say(out: int, **told: Any) -> None:
  message = json.dumps(told).encode() + b"\n"
  while message:
    message = message[os.write(out, message) :]


def _limit_memory(megabytes: int | None) -> None:
  if resource is None or megabytes is None:
    return
  size = megabytes * 2**20
  with contextlib.suppress(ValueError, OSError):  # not on every system
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _limit_time(seconds: float) -> None:
  """Ends this process by itself should nobody be left to end it."""
  if resource is None:
    return
  used = resource.getrusage(resource.RUSAGE_SELF)
  last = int(used.ru_utime + used.ru_stime + seconds) + _GRACE
  with contextlib.suppress(ValueError, OSError):
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (last, hard))


def _answered(answer: Any, request: Any) -> dict[str, Any]:
  """What the program says; what it raises is told, not passed on."""
  try:
    return {"value": answer(request)}
  except (Exception, MemoryError, RecursionError) as error:  # its own business
    return {"error": f"{type(error).__name__}: {error}"[:1000]}


def _serve(program: dict[str, Any], told: dict[str, Any], out: int) -> None:
  """Answers requests until there are no more."""
  rest = bytearray()
  _say(out, ready=os.getpid(), info=told["info"])
  _limit_memory(told["memory_mb"])
  while (line := _line(rest)) is not None:
    job = json.loads(line)
    _limit_time(told["cpu_seconds"])
    found = _answered(program["answer"], job["request"])
    _say(out, id=job["id"], **found)


def _keep_serving(program: dict, told: dict, out: int) -> None:
  while True:
    child = os.fork()
    if child == 0:
      with contextlib.suppress(BrokenPipeError):  # nobody is left to listen
        _serve(program, told, out)
      os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
      return


def main() -> int:
  """Loads the program that the first line names, and serves."""
  out = os.dup(1)
  os.dup2(2, 1)  # what a library prints is no answer
  rest = bytearray()
  line = _line(rest)
  if line is None:
    return 0
  told = json.loads(line)
  sys.path[:] = told["path"]
  try:
    program = runpy.run_path(told["program"])
    told["info"] = program["start"](**told["options"])
  except Exception as error:  # whatever it is, the one who starts must know
    kind = "import" if isinstance(error, ImportError) else "start"
    _say(out, failed=kind, error=f"{type(error).__name__}: {error}")
    return 1
  if hasattr(os, "fork"):
    _keep_serving(program, told, out)
  else:
    _serve(program, told, out)
  return 0


if __name__ == "__main__":
  sys.exit(main())
