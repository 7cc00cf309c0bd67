"""What the READMEs say is so: code runs, files and commands exist."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import runpy
import tomllib
from typing import Any

import jax
import pytest
from packaging import version

from scripts import readme_tables

ROOT = pathlib.Path(__file__).parents[1]
NOT_YET = "Not measured yet.\n"
READMES = sorted(
  [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
  + list(ROOT.glob("experiments/*/README.md"))
)
_ROOMS = "locojax|experiments|scripts|tests|colab|results"
_PATH = re.compile(rf"(?<![\w./-])(?:\./)?(?:{_ROOMS}|\.ci)/[\w./<>*-]*")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")

each_readme = pytest.mark.parametrize(
  "path", READMES, ids=lambda p: str(p.relative_to(ROOT))
)


def _blocks(path: pathlib.Path, language: str) -> list[str]:
  found = _FENCE.findall(path.read_text(encoding="utf-8"))
  return [body for name, body in found if name == language]


PYTHON = [
  pytest.param(body, id=f"{path.relative_to(ROOT)}-{i}")
  for path in READMES
  for i, body in enumerate(_blocks(path, "python"))
]


def _run(source: str, folder: pathlib.Path) -> dict[str, Any]:
  """Runs a block as a script; its globals."""
  script = folder / "block.py"
  script.write_text(source, encoding="utf-8")
  return runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("source", PYTHON)
def test_python_blocks_run(source, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # a block may write files
  _run(source, tmp_path)


def test_locoprop_of_the_readme_learns(tmp_path):
  (source,) = _blocks(ROOT / "README.md", "python")
  end = _run(source, tmp_path)
  start = end["Net"]().init(jax.random.key(1), end["x"])["params"]
  before, _ = end["loss_fn"](start, {}, end["batch"], None)
  assert float(end["loss"]) < 0.6 * float(before)


def _named_paths(path: pathlib.Path) -> set[str]:
  """Paths of the repository in the text, but not `<name>`, X and patterns."""
  found = {m.rstrip(".").removeprefix("./") for m in _PATH.findall(_text(path))}
  return {p for p in found if not set("<>*") & set(p) and p[-2:] != "/X"}


def _text(path: pathlib.Path) -> str:
  return path.read_text(encoding="utf-8")


def _exists(path: pathlib.Path, name: str) -> bool:
  return (ROOT / name).exists() or (path.parent / name).exists()


@each_readme
def test_named_files_exist(path):
  """Results may be to come; see the tests of tables and figures for them."""
  names = {n for n in _named_paths(path) if not n.startswith("results/")}
  assert names
  assert [n for n in sorted(names) if not _exists(path, n)] == []


@each_readme
def test_links_lead_somewhere(path):
  for link in _LINK.findall(_text(path)):
    target, _, anchor = link.partition("#")
    if target.startswith("results/"):
      continue
    assert not target or (path.parent / target).exists(), link
    if anchor:
      heading = f"# {anchor.replace('-', ' ')}\n"
      assert heading in _text(path.parent / target if target else path).lower()


@each_readme
def test_named_modules_exist(path):
  for name in set(re.findall(r"python -m ([\w.]+)", _text(path))):
    assert importlib.util.find_spec(name), name


@each_readme
def test_named_configs_and_variants_exist(path):
  named = set(re.findall(r"--config[ =](\S+\.py):(\w+)", _text(path)))
  for file, variant in sorted(named):
    spec = importlib.util.spec_from_file_location("readme_config", ROOT / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    assert importlib.util.find_spec(config.experiment)


@each_readme
def test_named_extras_exist(path):
  metadata = tomllib.loads(_text(ROOT / "pyproject.toml"))
  extras = set(metadata["project"]["optional-dependencies"])
  groups = re.findall(r"install '\.\[([\w,-]+)\]'", _text(path))
  groups += re.findall(r"scripts/install ([\w,-]+)", _text(path))
  assert {e for group in groups for e in group.split(",")} <= extras


def test_tested_versions_are_those_of_the_package():
  project = tomllib.loads(_text(ROOT / "pyproject.toml"))["project"]
  lists = [project["dependencies"], *project["optional-dependencies"].values()]
  found = re.findall(r"([\w-]+)>=([\d.]+)", " ".join(sum(lists, [])))
  bounds = {name: version.Version(least) for name, least in found}
  rows = [
    r.strip("| ").split(" | ") for r in _text(ROOT / "README.md").split("\n")
  ]
  head = next(i for i, r in enumerate(rows) if r[0] == "Python")
  names, _, oldest, *newer = rows[head : head + 5]
  assert [bounds[n] for n in names[1:]] == [*map(version.Version, oldest[1:])]
  for row in newer:
    assert (
      f"Programming Language :: Python :: {row[0]}" in project["classifiers"]
    )


@each_readme
def test_tables_are_those_of_the_results(path):
  """A block is what the script writes; before there are results it says so."""

  def check(match):
    file, _ = readme_tables.parse_spec(match["spec"])
    if (ROOT / file).exists():
      return match[0]
    assert match["body"] == NOT_YET, f"{file} is missing"
    return ""

  measured = readme_tables._BLOCK.sub(check, _text(path))
  assert readme_tables.rewrite(measured, ROOT) == measured


@each_readme
def test_figures_come_with_their_results(path):
  for figure in re.findall(r"\]\((\S+\.png)\)", _text(path)):
    figure = path.parent / figure
    assert figure.exists() == figure.with_suffix(".json").exists()


def test_every_method_of_the_package_is_in_the_table():
  import locojax

  table = _text(ROOT / "README.md").split("\n## The ten systems\n")[1]
  rows = re.findall(r"^\| \[.*\| (.*) \|$", table.split("\n### ")[0], re.M)
  assert len(rows) == len(locojax.METHODS)
  assert all(re.match("yes|in part: |not yet", state) for state in rows)


def test_the_names_for_your_own_code_are_public():
  import locojax

  text = _text(ROOT / "README.md").split("\n## In your own code\n")[1]
  found = re.findall(r"`(?:nnx[^`]*\()?(\w+)\.(\w+)", text.split("\n## ")[0])
  named = [(system, name) for system, name in found if system != "tests"]
  assert {system for system, _ in named} == set(locojax.METHODS)
  for system, name in named:
    assert name in getattr(locojax, system).__all__, (system, name)


@pytest.mark.parametrize(
  "path",
  [p for p in READMES if p.parent.parent.name == "experiments"],
  ids=lambda p: p.parent.name,
)
def test_readmes_of_experiments_begin_with_advice(path):
  _, first, *_ = re.split(r"^## ", _text(path), flags=re.MULTILINE)
  assert first.startswith("When to use it\n")
  told = re.findall(r"^- \*\*(.+?)\*\*", first, flags=re.MULTILINE)
  assert told == ["Take it", "Leave it", "Set first", "It costs", "Try it"]
  quick = "" if path.parent.name == "locoprop" else f" {path.parent.name}"
  assert f"`./scripts/quickstart{quick}`" in first
