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
  "whose `tfds/` holds mnist, fashion_mnist, ... prepared by "
  "`python -m scripts.prepare_data` (or by tfds itself)."
)
_left_out: list[str] = []


def pytest_collection_modifyitems(config, items):
  """Leaves out tests on real data where there is none, and counts them."""
  if os.environ.get(DATA_VARIABLE):
    return
  kept = []
  for item in items:
    if item.get_closest_marker("real_data"):
      _left_out.append(item.nodeid)
    else:
      kept.append(item)
  if _left_out:
    config.hook.pytest_deselected(
      items=[i for i in items if i.nodeid in set(_left_out)]
    )
    items[:] = kept


def pytest_terminal_summary(terminalreporter):
  """Says how many tests on real data were left out, and what would run them."""
  if _left_out:
    terminalreporter.write_line(_DATA_HELP.format(len(_left_out)))


@pytest.fixture
def data_dir() -> pathlib.Path:
  """The folder of the real data sets."""
  return pathlib.Path(os.environ[DATA_VARIABLE])
