"""The notebooks are thin, clean, and run from the first cell to the last."""

from __future__ import annotations

import os
import pathlib
import sys

import nbclient
import nbformat
import pytest
from jupyter_client import kernelspec, manager
from jupyter_core.utils import run_sync

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
MAX_CELLS = 30


def _read(path: pathlib.Path) -> nbformat.NotebookNode:
  return nbformat.read(path, as_version=4)


def _code(path: pathlib.Path) -> list[nbformat.NotebookNode]:
  return [c for c in _read(path).cells if c.cell_type == "code"]


def _kernel() -> manager.AsyncKernelManager:
  """A kernel of this very Python, whatever kernels are installed."""
  made = manager.AsyncKernelManager()
  made._kernel_spec = kernelspec.KernelSpec(
    argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
  )
  return made


@pytest.fixture
def environment(tmp_path, monkeypatch):
  """Caches and kernels stay out of home."""
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
  monkeypatch.setenv("MPLBACKEND", "agg")
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT)]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_thin_and_has_no_outputs(path):
  notebook = _read(path)
  nbformat.validate(notebook)
  assert len(notebook.cells) < MAX_CELLS
  assert all(not c.outputs and c.execution_count is None for c in _code(path))


def test_all_begin_with_the_same_cell():
  (source,) = {_code(path)[0].source for path in NOTEBOOKS}
  assert source.count("REPOSITORY = ") == 1
  assert len(source.splitlines()) <= 25


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_second_cell_sets_flags(path):
  assert "mark_as_parsed" in _code(path)[1].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path, environment):
  notebook = _read(path)
  kernel = _kernel()
  client = nbclient.NotebookClient(
    notebook,
    km=kernel,
    timeout=300,
    resources={"metadata": {"path": str(ROOT)}},
  )
  try:
    client.execute()
  finally:
    run_sync(kernel.shutdown_kernel)(now=True)
  printed = [
    output.data["text/plain"]
    for cell in notebook.cells
    for output in cell.get("outputs", ())
    if output.output_type == "execute_result"
  ]
  assert "False" not in printed  # A last line of a cell may state an equality.


def test_there_are_a_tour_and_one_for_each_method():
  import locojax

  assert {p.stem for p in NOTEBOOKS} == {"00_tour", *locojax.METHODS}
