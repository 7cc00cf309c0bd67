"""The scripts in `findings/` keep their form; running them is left to users."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
LABELS = ["Package", "Version", "Expected", "Happens", "Matters"]
_ROW = re.compile(r"^\| \[(\w+)\]\((\w+\.sh)\) \| ([\w-]+) \| \S.* \|$", re.M)
_INSTALL = re.compile(r'/pip" install (.*?)\ncd "\$work"\n', re.DOTALL)
_BODY = re.compile(r"<<'END'\n(.*)\nEND\n$", re.DOTALL)

each_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)


def _text(path: pathlib.Path) -> str:
  return path.read_text(encoding="utf-8")


def _head(path: pathlib.Path) -> dict[str, str]:
  """What the comment at the top says under each of its labels."""
  head, _, _ = _text(path).partition("\nset -euo pipefail\n")
  shebang, *lines = head.splitlines()
  assert shebang == "#!/usr/bin/env bash"
  assert all(line.startswith("# ") for line in lines)
  words = " ".join(line[1:].strip() for line in lines)
  parts = re.split(r"(?:^| )([A-Z][a-z]+): +", words)
  return dict(zip(parts[1::2], parts[2::2], strict=True))


def _pins(path: pathlib.Path) -> dict[str, str]:
  """Name -> version of all that a script installs."""
  words = _INSTALL.search(_text(path))[1].replace("\\\n", " ").split()
  found = [w for w in words if not w.startswith("--")]
  matches = [re.fullmatch(r"'([\w.-]+)==(\d+(?:\.\d+)+)'", w) for w in found]
  assert None not in matches, f"not pinned: {found}"
  return {m[1]: m[2] for m in matches}


def test_nothing_else_lies_there():
  assert SCRIPTS
  names = {p.name for p in FOLDER.iterdir()}
  assert names == {"README.md", *(p.name for p in SCRIPTS)}


@each_script
def test_it_is_a_strict_shell_script_that_cleans_up(path):
  assert os.access(path, os.X_OK)
  subprocess.run(["bash", "-n", path], check=True)
  code = [c for c in _text(path).splitlines() if not c.startswith("#")]
  assert code[:3] == [
    "set -euo pipefail",
    "work=$(mktemp -d)",
    "trap 'rm -rf \"$work\"' EXIT",
  ]
  assert max(map(len, _text(path).splitlines())) <= 80


@each_script
def test_its_head_tells_what_its_pins_are(path):
  head, pins = _head(path), _pins(path)
  assert list(head) == LABELS and all(map(str.strip, head.values()))
  assert head["Package"].split()[0] in pins
  named = re.findall(r"([\w.-]+) (\d+(?:\.\d+)+)", head["Version"])
  assert head["Package"].split()[0] == named[0][0]
  assert {name: pins[name] for name, _ in named} == dict(named)


@each_script
def test_it_runs_the_library_alone_and_notices_a_change(path):
  body = _BODY.search(_text(path))[1]
  imports = [n for n in ast.walk(ast.parse(body)) if isinstance(n, ast.Import)]
  assert imports and re.search(r'sys\.exit\(f?"changed: ', body)
  assert re.search(r'/python" -I - <<', _text(path))  # Of no PYTHONPATH.
  for word in ("locojax", "experiments", "://"):
    assert word not in _text(path)


@each_script
def test_it_names_no_place_of_a_machine(path):
  _, _, text = _text(path).partition("\n")
  assert not re.findall(r"(?:^|[\s'\"=(])/\w[\w/.-]*", text)


def test_the_readme_lists_them():
  rows = _ROW.findall(_text(FOLDER / "README.md"))
  assert [file for _, file, _ in rows] == [p.name for p in SCRIPTS]
  for (name, file, package), path in zip(rows, SCRIPTS, strict=True):
    assert file == f"{name}.sh"
    assert package == _head(path)["Package"].split()[0]
