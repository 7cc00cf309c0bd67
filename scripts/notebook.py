"""Makes the kernel of a notebook ready: installs what it lacks, and says so.

The first cell of every notebook runs this file in the root of the checkout and
calls `prepare`. Nothing but the standard library is needed before that.
"""

from __future__ import annotations

import glob
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

EXTRAS = ("experiments", "limoe")
MIN_PYTHON = (3, 11)


def prepare() -> None:
  """Installs what the notebooks need and prints which runtime this is.

  A package that is there and new enough is left as it is, JAX above all: a
  hosted runtime brings the one that fits its accelerator.

  Raises:
    RuntimeError: Python is too old, or a package was replaced that this kernel
      had already loaded; the kernel must be restarted then.
  """
  if sys.version_info < MIN_PYTHON:
    raise RuntimeError(
      f"Python {sys.version.split()[0]}: locojax needs 3.11 or newer."
    )
  missing = [r for r in requirements() if not is_met(r)]
  if missing:
    _install(missing)
  print(runtime())


def requirements() -> list[str]:
  """What `pyproject.toml` asks for with `EXTRAS`, such as `optax>=0.2.8`."""
  import tomllib  # Not in a Python that is too old.

  text = pathlib.Path("pyproject.toml").read_text(encoding="utf-8")
  project = tomllib.loads(text)["project"]
  found = list(project["dependencies"])
  for extra in EXTRAS:
    found += _of_extra(project, extra)
  return found


def _of_extra(project: dict[str, Any], extra: str) -> list[str]:
  """The requirements of an extra; those of extras that it names, too."""
  found = []
  for requirement in project["optional-dependencies"][extra]:
    own = re.fullmatch(rf"{project['name']}\[(.*)\]", requirement)
    inner = own[1].split(",") if own else []
    found += [] if own else [requirement]
    found += [r for name in inner for r in _of_extra(project, name)]
  return found


def is_met(requirement: str) -> bool:
  """Whether a package is there, of the least version or a newer one.

  Args:
    requirement: such as `optax>=0.2.8`; what follows the version is ignored.
  """
  name, minimum = re.match(r"([\w.-]+)>=([\d.]+)", requirement).groups()
  there = _version(name)
  return there is not None and _numbers(there) >= _numbers(minimum)


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _numbers(version: str) -> list[int]:
  """The first three numbers of a version; what it lacks counts as 0."""
  numbers = re.findall(r"\d+", version.partition("+")[0])
  return [*map(int, numbers), 0, 0, 0][:3]


def jax_extra() -> str:
  """The extra of jax for the accelerator of this machine, empty without one."""
  if any(map(os.path.exists, ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"))):
    cuda12 = importlib.util.find_spec("jax_cuda12_plugin")
    return "cuda12" if cuda12 else "cuda13"
  tpu = "TPU_ACCELERATOR_TYPE" in os.environ or glob.glob("/dev/accel*")
  return "tpu" if tpu else ""


def _install(missing: list[str]) -> None:
  """Installs requirements, and jax with what its accelerator needs."""
  if extra := jax_extra():
    # Named even if jax is new enough: its plug-in must follow it.
    jax = next(r for r in requirements() if r.startswith("jax>="))
    missing = [*missing, jax.replace("jax", f"jax[{extra}]")]
  loaded = _loaded()
  pip = [sys.executable, "-m", "pip", "install", "--quiet"]
  subprocess.run([*pip, *missing], check=True)
  importlib.invalidate_caches()
  replaced = sorted(
    name for name, old in loaded.items() if _version(name) != old
  )
  if replaced:
    raise RuntimeError(
      f"{', '.join(replaced)} replaced while in use: restart the kernel, then "
      "run this cell again."
    )


def _loaded() -> dict[str, str | None]:
  """Versions of the packages that this process has imported something of."""
  packages = importlib.metadata.packages_distributions()
  names = {n for top in packages if top in sys.modules for n in packages[top]}
  return {name: _version(name) for name in names}


def runtime() -> str:
  """One line: accelerator, versions of Python and jax, and the checkout."""
  import jax

  devices = jax.devices()
  kind = devices[0].platform.upper()
  if kind != "CPU":
    kind = f"{kind}, {len(devices)} x {devices[0].device_kind}"
  elif jax_extra() and "JAX_PLATFORMS" not in os.environ:
    kind += f" (jax[{jax_extra()}] would use the accelerator of this machine)"
  python = sys.version.split()[0]
  return f"{kind}; Python {python}; jax {jax.__version__}; {pathlib.Path.cwd()}"
