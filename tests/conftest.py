"""Shared set-up of the test suite: devices, caches, tests left out."""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib.util
import os
import pathlib
import platform
import re
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import browser

# Most of the time of the suite is compilation of programs that run once.
# Without optimisation, a multiplication and an addition become one operation
# or two by chance: an instruction set that has no such operation keeps equal
# programs equal to the bit.
_QUICK_TO_COMPILE = (
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_use_fusion_emitters=false",
  "--xla_cpu_parallel_codegen_split_count=1",
  *(("--xla_cpu_max_isa=AVX",) if platform.machine() == "x86_64" else ()),
)
_PROBE = "import jax; jax.devices()"
BUDGET = 20  # minutes
_STARTED = time.monotonic()


def _cpu() -> str:
  """A short name of the kind of CPU: programs of one may not run on another."""
  info = pathlib.Path("/proc/cpuinfo")
  told = info.read_text() if info.exists() else platform.processor()
  kind = re.findall(r"^(?:model name|flags|Features)\s*:.*$", told, re.M)[:2]
  return hashlib.sha256("\n".join(kind or [told]).encode()).hexdigest()[:8]


def _known(flags: tuple[str, ...]) -> tuple[str, ...]:
  """Those that this XLA knows: it ends a process that names another."""
  env = {**os.environ, "XLA_FLAGS": " ".join(flags)}
  found = subprocess.run(
    [sys.executable, "-c", _PROBE], env=env, capture_output=True, text=True
  )
  if found.returncode == 0:
    return flags
  left = tuple(f for f in flags if f not in found.stderr)
  return _known(left) if left != flags else ()


def _set_environment() -> None:
  """Flags and the cache of programs, for this process and all that it starts.

  Workers of pytest-xdist find them set by the process that starts them.
  """
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  folder = pathlib.Path(__file__).parents[1] / ".cache" / "jax" / _cpu()
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  given = os.environ.get("XLA_FLAGS", "")
  if "PYTEST_XDIST_WORKER" not in os.environ:
    flags = _known(_QUICK_TO_COMPILE)
    os.environ["XLA_FLAGS"] = " ".join([*flags, given]).strip()


_set_environment()
import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

# A process may have 65530 regions of memory on Linux, of which a compiled
# program takes about six: past that, compilers crash. And jax remembers 4096
# programs: one that it has forgotten does not count as compiled once.
_MOST_REGIONS = 10_000

DATA_VARIABLE = "LOCOJAX_DATA_DIR"
# By marker, what is said of tests that cannot run here.
_HELP = {
  "real_data": (
    f"{{}} tests on real data were left out: set {DATA_VARIABLE} to a folder "
    "whose `tfds/` holds mnist, fashion_mnist, cifar10_n, ... prepared by "
    "`python -m scripts.prepare_data` (or by tfds itself)."
  ),
  "tpu_check": (
    "{} tests that compile for TPUs were left out: install libtpu by "
    "`./scripts/install tpu-check` (it exists for Linux on x86-64)."
  ),
  "engine": (
    "{} tests of engines of code completion were left out: install these by "
    "`./scripts/install_engines all`."
  ),
  "monaco": (
    "{} tests of the editor in a page were left out: install it by "
    "`./scripts/install_monaco`."
  ),
  "browser": (
    "{} tests of pages in a browser were left out: install Chromium by "
    "`./scripts/install_browser`, and what drives it and makes the pages by "
    "`./scripts/install all`."
  ),
}
_left_out: dict[str, set[str]] = {marker: set() for marker in _HELP}


def _can_run(mark: pytest.Mark) -> bool:
  if mark.name == "real_data":
    return bool(os.environ.get(DATA_VARIABLE))
  if mark.name == "engine":
    return _is_installed(*mark.args)
  if mark.name == "monaco":
    return _has_monaco()
  if mark.name == "browser":
    return browser.is_installed(*mark.args)
  return importlib.util.find_spec("libtpu") is not None


@functools.cache
def _is_installed(engine: str) -> bool:
  from locojax import engines

  return engines.is_installed(engine)


@functools.cache
def _has_monaco() -> bool:
  from experiments.completion.serving import page

  return page.is_installed()


def pytest_collection_modifyitems(config, items):
  """Leaves out tests that lack data, a program or libtpu, and counts them."""
  for marker in _HELP:
    marked = [(i, i.get_closest_marker(marker)) for i in items]
    lacking = [i for i, mark in marked if mark and not _can_run(mark)]
    if lacking:
      _left_out[marker].update(i.nodeid for i in lacking)
      config.hook.pytest_deselected(items=lacking)
      items[:] = [i for i in items if i not in set(lacking)]


def pytest_collection_finish(session):
  """Lets the garbage collector look at less: tracing makes many objects.

  What is imported by now stays, and most of what tracing makes lives as long
  as its program does; with Python's own thresholds one second in twenty went
  into looking through these again and again.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 10, 10)


def _num_regions() -> int:
  """Regions of memory that this process has; 0 where that is not told."""
  maps = pathlib.Path("/proc/self/maps")
  return maps.read_bytes().count(b"\n") if maps.exists() else 0


def pytest_runtest_teardown(item, nextitem):
  """Between two files, lets go of compiled programs when there are many."""
  if nextitem is not None and nextitem.path == item.path:
    return
  if _num_regions() > _MOST_REGIONS:
    jax.clear_caches()
    gc.collect()


def pytest_sessionfinish(session):
  """A worker of pytest-xdist tells what it left out to the one who reports."""
  if hasattr(session.config, "workeroutput"):
    found = {marker: sorted(names) for marker, names in _left_out.items()}
    session.config.workeroutput["left_out"] = found


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
  """Takes in what a worker of pytest-xdist left out."""
  found = getattr(node, "workeroutput", {}).get("left_out", {})
  for marker, names in found.items():
    _left_out[marker].update(names)


def pytest_terminal_summary(terminalreporter, config):
  """Says how many tests were left out, and what would run them; the budget."""
  if hasattr(config, "workerinput"):
    return
  seconds = time.monotonic() - _STARTED
  terminalreporter.write_line(
    f"{seconds / 60:.1f} minutes; the whole suite may take {BUDGET} on two "
    "quiet cores, with ten systems in it."
  )
  for marker, names in _left_out.items():
    if names:
      terminalreporter.write_line(_HELP[marker].format(len(names)))


@pytest.fixture
def data_dir() -> pathlib.Path:
  """The folder of the real data sets."""
  return pathlib.Path(os.environ[DATA_VARIABLE])


@pytest.fixture
def browser_page():
  """A page of headless Chromium, for tests marked `browser`."""
  with browser.opened(viewport={"width": 1200, "height": 900}) as page:
    yield page
  assert page.errors == [] and page.outside == []
