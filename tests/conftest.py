"""Shared set-up of the test suite: virtual devices, caches, real data."""

from __future__ import annotations

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
_DATA_HELP = (
  f"{{}} tests on real data were left out: set {DATA_VARIABLE} to a folder "
  "whose `tfds/` holds mnist, fashion_mnist, cifar10_n, ... prepared by "
  "`python -m scripts.prepare_data` (or by tfds itself)."
)
_left_out: set[str] = set()


def pytest_collection_modifyitems(config, items):
  """Leaves out tests on real data where there is none, and counts them."""
  if os.environ.get(DATA_VARIABLE):
    return
  real = [i for i in items if i.get_closest_marker("real_data")]
  if real:
    _left_out.update(i.nodeid for i in real)
    config.hook.pytest_deselected(items=real)
    items[:] = [i for i in items if i not in set(real)]


def pytest_sessionfinish(session):
  """A worker of pytest-xdist tells what it left out to the one who reports."""
  if hasattr(session.config, "workeroutput"):
    session.config.workeroutput["left_out"] = sorted(_left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
  """Takes in what a worker of pytest-xdist left out."""
  _left_out.update(getattr(node, "workeroutput", {}).get("left_out", ()))


def pytest_terminal_summary(terminalreporter):
  """Says how many tests on real data were left out, and what would run them."""
  if _left_out:
    terminalreporter.write_line(_DATA_HELP.format(len(_left_out)))


@pytest.fixture
def data_dir() -> pathlib.Path:
  """The folder of the real data sets."""
  return pathlib.Path(os.environ[DATA_VARIABLE])
