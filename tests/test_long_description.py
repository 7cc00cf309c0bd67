"""What an index of packages shows: the README, with links that lead there."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
_TARGET = re.compile(r"\]\(([^)\s]+)\)")
BUILD = """
from setuptools import build_meta
print(build_meta.prepare_metadata_for_build_wheel("out"))
"""


@pytest.fixture(scope="module")
def convert():
  spec = importlib.util.spec_from_file_location("_setup", ROOT / "setup.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.long_description


def test_links_of_the_readme_become_absolute_or_names(convert):
  text = (ROOT / "README.md").read_text("utf-8")
  there = convert(text, "https://example.org/us/locojax.git")
  links = _TARGET.findall(there)
  assert len(links) == len(_TARGET.findall(text)) > 20
  assert all(link.startswith("https://") for link in links)
  without = _TARGET.findall(convert(text, ""))
  assert all(link.startswith("https://") for link in without)


def test_each_kind_of_link(convert):
  text = (
    "[a](b/c.md#d) [e](#f) ![g](h.png) [i](https://j.org)\n```\n[k](l)\n```"
  )
  place = "https://example.org/x"
  assert convert(text, place + "/") == (
    f"[a]({place}/blob/main/b/c.md#d) [e]({place}/blob/main/README.md#f) "
    f"![g]({place}/raw/main/h.png) [i](https://j.org)\n```\n[k](l)\n```"
  )
  assert convert(text, "") == "a e  [i](https://j.org)\n```\n[k](l)\n```"


def test_the_metadata_of_a_build_hold_it(convert, tmp_path):
  pytest.importorskip("setuptools", minversion="77")
  for name in ("README.md", "LICENSE", "pyproject.toml", "setup.py"):
    shutil.copy(ROOT / name, tmp_path)
  project = (tmp_path / "pyproject.toml").read_text("utf-8")
  address = "https://example.org/us/locojax"
  urls = (
    f'[project.urls]\nRepository = "{address}"\n\n[tool.setuptools.packages'
  )
  assert project.count("[tool.setuptools.packages") == 1
  project = re.sub(r"\[project.urls\]\n(.+\n)*\n", "", project)
  (tmp_path / "pyproject.toml").write_text(
    project.replace("[tool.setuptools.packages", urls), "utf-8"
  )
  package = tmp_path / "locojax"
  package.mkdir()
  (package / "__init__.py").write_text("")
  (tmp_path / "out").mkdir()
  command = [sys.executable, "-c", BUILD]
  subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
  (found,) = (tmp_path / "out").glob("*/METADATA")
  head, _, body = found.read_text("utf-8").partition("\n\n")
  assert "Description-Content-Type: text/markdown" in head
  assert (
    body.strip()
    == convert((ROOT / "README.md").read_text("utf-8"), address).strip()
  )
