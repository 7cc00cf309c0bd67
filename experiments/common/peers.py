"""Programs of others: environments of their own, and steps taken in turns.

Nothing of a peer is a dependency: its packages go to an environment that is
removed afterwards, and its script runs there as a process.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from locojax.core import checks, host_memory

# They go together.
VERSIONS = {
  "torch": "2.14.1",
  "torchvision": "0.29.1",
  "timm": "1.0.31",
  "transformers": "5.24.0",
  "safetensors": "0.8.0",
  "numpy": "2.4.6",
}


def pins(*names: str) -> tuple[str, ...]:
  """`name==version` of packages in `VERSIONS`."""
  return tuple(f"{n}=={checks.lookup('name', n, VERSIONS)}" for n in names)


def environment(folder: pathlib.Path, packages: Sequence[str]) -> str:
  """Makes a virtual environment with packages; the path of its Python."""
  venv.create(folder, with_pip=True)
  python = str(folder / "bin" / "python")
  pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
  subprocess.run([*pip, "--disable-pip-version-check", *packages], check=True)
  return python


class Stepper:
  """A script of a peer that takes a step whenever it is asked.

  It writes a line of JSON when it is ready, then reads lines: `step` takes a
  step, which it answers with a line, and the end of its input ends it.

  Args:
    command: of the process.
    settings: variables of its environment beside those of this process; by
      default it keeps the memory that it frees, as this process does.

  Attributes:
    told: what it wrote when it was ready.
  """

  def __init__(
    self,
    command: Sequence[str],
    settings: Mapping[str, str] = host_memory.ENVIRONMENT,
  ):
    self._process = subprocess.Popen(
      list(command),
      env={**os.environ, **settings},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    try:
      self.told: dict[str, Any] = json.loads(self._line())
    except BaseException:
      self.close()
      raise

  def _line(self) -> str:
    line = self._process.stdout.readline()
    if not line:
      code = self._process.wait()
      raise RuntimeError(
        f"{' '.join(map(str, self._process.args))} ended with exit code {code} "
        "before it answered."
      )
    return line

  def __call__(self) -> None:
    """One step; returns when it is done.

    Raises:
      RuntimeError: the process has ended.
    """
    with contextlib.suppress(BrokenPipeError):  # then there is no line
      self._process.stdin.write("step\n")
      self._process.stdin.flush()
    self._line()

  def close(self) -> None:
    """Ends the process."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    try:
      self._process.wait(timeout=30)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()


def stepper(*args, **settings) -> contextlib.closing[Stepper]:
  """A `Stepper`, made of the same, that is ended at the end."""
  return contextlib.closing(Stepper(*args, **settings))


@contextlib.contextmanager
def steppers(
  script: pathlib.Path,
  options: Mapping[str, Any],
  ways: Mapping[str, Sequence[str]],
  *,
  python: str | None,
  packages: Sequence[str],
  settings: Mapping[str, str] = host_memory.ENVIRONMENT,
) -> Iterator[dict[str, Stepper]]:
  """Steppers of one script, which are ended at the end.

  Args:
    script: of the peer.
    options: its flags, the same for all.
    ways: name of a stepper -> more flags.
    python: the Python of an environment that has the packages; None makes one,
      and removes it at the end.
    packages: names in `VERSIONS`.
    settings: as of a `Stepper`.

  Yields:
    The steppers by name.
  """
  flags = [f"--{name}={value}" for name, value in options.items()]
  with contextlib.ExitStack() as stack:
    if python is None:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      python = environment(pathlib.Path(folder) / "venv", pins(*packages))
    command = [python, "-P", str(script), *flags]
    yield {
      name: stack.enter_context(stepper([*command, *more], settings))
      for name, more in ways.items()
    }
