"""A notebook opened alone gets itself a checkout and what it needs."""

from __future__ import annotations

import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import nbformat
import pytest

from scripts import notebook

ROOT = pathlib.Path(__file__).parents[1]
TOUR = ROOT / "colab" / "00_tour.ipynb"
CLONED = ("colab", "experiments", "locojax", "scripts")
# Run after the first cell: where it ended, and whose modules are found.
WHERE = """
import importlib.util
import json
import locojax
origin = importlib.util.find_spec("experiments.run").origin
print(json.dumps([os.getcwd(), locojax.__file__, origin]))
"""


def _first_cell() -> str:
  cells = nbformat.read(TOUR, as_version=4).cells
  return next(c.source for c in cells if c.cell_type == "code")


def _environment(**variables: str) -> dict[str, str]:
  """This one without what would point Python or git to this checkout."""
  here = ("PYTHONPATH", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
  return {k: v for k, v in os.environ.items() if k not in here} | variables


def _git(folder: pathlib.Path, *arguments: str) -> None:
  who = ("-c", "user.name=test", "-c", "user.email=test@example.com")
  command, env = ["git", *who, *arguments], _environment()
  subprocess.run(command, cwd=folder, env=env, check=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> pathlib.Path:
  """A repository whose clone has the files of this checkout, as they are."""
  made = tmp_path_factory.mktemp("remote") / "any_name"
  for name in CLONED:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, made / name, ignore=ignore)
  shutil.copy(ROOT / "pyproject.toml", made)
  _git(made, "init", "-q")
  _git(made, "add", ".")
  _git(made, "commit", "-q", "-m", "all")
  return made


def _run_alone(
  python: str, folder: pathlib.Path, repository: pathlib.Path, **variables: str
) -> subprocess.CompletedProcess:
  """The first cell of a notebook that lies alone in a folder."""
  shutil.copy(TOUR, folder)
  return subprocess.run(
    [python, "-c", _first_cell() + WHERE],
    cwd=folder,
    env=_environment(
      LOCOJAX_REPOSITORY=str(repository), JAX_PLATFORMS="cpu", **variables
    ),
    capture_output=True,
    text=True,
    check=False,
  )


def _check_alone(
  done: subprocess.CompletedProcess, folder: pathlib.Path
) -> None:
  assert done.returncode == 0, done.stderr
  told, where = done.stdout.splitlines()
  clone = (folder / "locojax").resolve()
  assert told.startswith("CPU; Python 3.") and told.endswith(f"; {clone}")
  ended, package, experiments = map(pathlib.Path, json.loads(where))
  assert ended == clone
  assert package == clone / "locojax" / "__init__.py"
  assert experiments == clone / "experiments" / "run.py"


def test_alone_it_ends_in_a_clone(tmp_path, repository):
  """Installs nothing: an attempt would fail for want of an index."""
  done = _run_alone(sys.executable, tmp_path, repository, PIP_NO_INDEX="1")
  _check_alone(done, tmp_path)


@pytest.mark.slow
def test_alone_it_installs_into_an_empty_environment(tmp_path, repository):
  subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
  python = str(tmp_path / "venv" / "bin" / "python")
  _check_alone(_run_alone(python, tmp_path, repository), tmp_path)
  again = _run_alone(python, tmp_path, repository, PIP_NO_INDEX="1")
  _check_alone(again, tmp_path)


@pytest.fixture
def cell(monkeypatch):
  """Runs the first cell here, without preparing; the folder it ends in."""
  monkeypatch.delenv("LOCOJAX_REPOSITORY", raising=False)
  monkeypatch.setattr(sys, "path", list(sys.path))
  ready = {"prepare": lambda: None}
  monkeypatch.setattr(runpy, "run_path", lambda path: ready)

  def run(folder: pathlib.Path) -> pathlib.Path:
    monkeypatch.chdir(folder)
    exec(_first_cell(), {})
    assert sys.path[0] == os.getcwd()
    return pathlib.Path.cwd()

  return run


@pytest.mark.parametrize("folder", [".", "colab", "experiments/common"])
def test_inside_a_checkout_it_uses_that(cell, folder):
  assert cell(ROOT / folder) == ROOT.resolve()


def test_it_uses_the_clone_that_it_made_before(cell, tmp_path):
  (tmp_path / "locojax" / "colab").mkdir(parents=True)
  (tmp_path / "locojax" / "colab" / TOUR.name).touch()
  assert cell(tmp_path) == (tmp_path / "locojax").resolve()


def test_without_an_address_it_says_what_to_set(cell, tmp_path):
  (tmp_path / "pyproject.toml").touch()  # Of some other project.
  with pytest.raises(RuntimeError, match="set REPOSITORY to the address"):
    cell(tmp_path)


@pytest.fixture
def pip(monkeypatch):
  """The calls of pip, none of which is made."""
  monkeypatch.chdir(ROOT)
  calls = []
  monkeypatch.setattr(
    notebook.subprocess, "run", lambda command, check: calls.append(command)
  )
  return calls


def test_what_is_new_enough_is_left_alone(pip, capsys):
  wanted = notebook.requirements()
  assert "jax>=" in str(wanted) and "orbax-checkpoint>=" in str(wanted)
  assert "matplotlib>=" in str(wanted)  # From an extra of an extra.
  notebook.prepare()
  assert pip == []
  assert capsys.readouterr().out.startswith("CPU; Python 3.")


@pytest.mark.parametrize("extra", ["", "cuda12", "tpu"])
def test_jax_is_installed_with_its_accelerator(pip, monkeypatch, extra):
  version = notebook._version
  monkeypatch.setattr(notebook, "jax_extra", lambda: extra)
  monkeypatch.setattr(
    notebook, "_version", lambda n: "0.1" if n == "grain" else version(n)
  )
  notebook.prepare()
  (command,) = pip
  grain, *plugin = command[command.index("--quiet") + 1 :]
  assert grain.startswith("grain>=")
  assert [r.partition(">=")[0] for r in plugin] == [f"jax[{extra}]"] * bool(
    extra
  )


def test_a_package_replaced_in_use_asks_for_a_restart(pip, monkeypatch):
  monkeypatch.setattr(notebook, "jax_extra", lambda: "")
  monkeypatch.setattr(notebook, "is_met", lambda requirement: False)
  monkeypatch.setattr(notebook, "_loaded", lambda: {"numpy": "1.0"})
  with pytest.raises(RuntimeError, match="numpy replaced .* restart"):
    notebook.prepare()


def test_an_old_python_is_refused(pip, monkeypatch):
  monkeypatch.setattr(notebook, "MIN_PYTHON", (99, 0))
  with pytest.raises(RuntimeError, match="needs 3.11 or newer"):
    notebook.prepare()


@pytest.mark.parametrize(
  ("there", "met"),
  [
    ("0.10", True),
    ("0.10.2", True),
    ("0.11.0rc1", True),
    ("1.0+cuda", True),
    ("0.9.12", False),
    (None, False),
  ],
)
def test_versions_are_compared_by_their_numbers(monkeypatch, there, met):
  monkeypatch.setattr(notebook, "_version", lambda name: there)
  assert notebook.is_met("jax>=0.10") == notebook.is_met("jax>=0.10.0") == met


@pytest.mark.parametrize(
  ("devices", "plugin", "extra"),
  [
    ((), True, ""),
    (("/dev/nvidia0",), True, "cuda12"),
    (("/dev/nvidia0",), None, "cuda13"),
    (("/dev/accel0",), None, "tpu"),
  ],
)
def test_the_accelerator_decides_the_extra(monkeypatch, devices, plugin, extra):
  monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
  monkeypatch.setattr(notebook.os.path, "exists", lambda p: p in devices)
  monkeypatch.setattr(notebook.glob, "glob", lambda pattern: list(devices))
  monkeypatch.setattr(notebook.importlib.util, "find_spec", lambda n: plugin)
  assert notebook.jax_extra() == extra
