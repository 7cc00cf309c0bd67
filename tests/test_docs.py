"""The pages of the documentation site; `scripts/docs` builds them strictly."""

from __future__ import annotations

import importlib.util
import io
import pathlib

import pytest

import locojax

SITE = pathlib.Path(__file__).parents[1] / "scripts" / "site"


def _module(name: str, needs: str):
  pytest.importorskip(needs)
  spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def generate():
  """The module that makes the pages, which are not kept."""
  library = pytest.importorskip("mkdocs_gen_files")
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(vars(library), "open", _nowhere)
    yield _module("generate", "mkdocs_gen_files")


def _nowhere(name, mode="r"):
  del name
  return io.BytesIO() if "b" in mode else io.StringIO()


def test_links_lead_to_pages_or_become_names(generate):
  known = {
    "README.md": "index.md",
    "experiments/ciw/README.md": "systems/ciw.md",
  }
  text = (
    "<!-- table: x -->\n[a](experiments/ciw/README.md#claim), [b](scripts/run)"
    ", [c](https://example.org)\n```\n[d](scripts/run)\n```\n"
  )
  made = generate.converted(text, "README.md", "index.md", known)
  assert made == (
    "[a](systems/ciw.md#claim), b, [c](https://example.org)\n"
    "```\n[d](scripts/run)\n```\n"
  )
  back = generate.converted(
    "[up](../../README.md)",
    "experiments/ciw/README.md",
    "systems/ciw.md",
    known,
  )
  assert back == "[up](../index.md)"


def test_every_public_name_of_a_method_is_in_the_reference(generate):
  for name in locojax.METHODS:
    init = pathlib.Path(locojax.__file__).parent / "methods" / name
    names = generate.exported(init / "__init__.py")
    assert set(names) == set(getattr(locojax, name).__all__), name


def test_docstrings_are_made_readable():
  readable = _module("docstrings", "griffe").readable
  text = "Args:\n  a, b,\n    c: words.\n\n>>> f(1)\n[2]\n\nMore."
  assert readable(text) == (
    "Args:\n  a, b, c: words.\n\n```pycon\n>>> f(1)\n[2]\n```\n\nMore."
  )
  assert readable(">>> 1\n1") == "```pycon\n>>> 1\n1\n```"
