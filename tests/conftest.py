"""Shared set-up of the test suite: devices, caches, tests left out."""

from __future__ import annotations

import importlib.util
import os
import pathlib

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_num_cpu_devices", 8)
_CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

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
}
_left_out: dict[str, set[str]] = {marker: set() for marker in _HELP}


def _can_run(marker: str) -> bool:
  if marker == "real_data":
    return bool(os.environ.get(DATA_VARIABLE))
  return importlib.util.find_spec("libtpu") is not None


def pytest_collection_modifyitems(config, items):
  """Leaves out tests that lack data or libtpu, and counts them."""
  for marker in _HELP:
    marked = [i for i in items if i.get_closest_marker(marker)]
    if marked and not _can_run(marker):
      _left_out[marker].update(i.nodeid for i in marked)
      config.hook.pytest_deselected(items=marked)
      items[:] = [i for i in items if i not in set(marked)]


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


def pytest_terminal_summary(terminalreporter):
  """Says how many tests were left out, and what would run them."""
  for marker, names in _left_out.items():
    if names:
      terminalreporter.write_line(_HELP[marker].format(len(names)))


@pytest.fixture
def data_dir() -> pathlib.Path:
  """The folder of the real data sets."""
  return pathlib.Path(os.environ[DATA_VARIABLE])
