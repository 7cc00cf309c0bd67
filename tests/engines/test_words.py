"""Positions, documents, answers of servers, kinds: no process needed."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from locojax import engines
from locojax.engines import (
  documents,
  jedi_engine,
  kinds,
  positions,
  presets,
  programs,
  syntax,
  wire,
)

ROOT = pathlib.Path(__file__).parents[2]
PIECES = (
  "a",
  "é",
  "漢",
  "\U0001f600",
  "\n",
  "\r\n",
  "\r",
  "\u2028",
  "\x0b",
  "\x85",
)


def _texts(num=200):
  rng = np.random.default_rng(0)
  return ["".join(rng.choice(PIECES, rng.integers(0, 12))) for _ in range(num)]


def test_lines_are_those_of_the_protocol():
  lines = engines.Lines("a\r\nb\rc\nd\u2028e\x0bf\x85g")
  assert lines.starts == [0, 3, 5, 7] and len(lines) == 4
  assert [lines.line(i) for i in range(4)] == [
    *("a", "b", "c"),
    "d\u2028e\x0bf\x85g",
  ]
  assert engines.Lines("").starts == [0]
  assert engines.Lines("x\n").line(1) == ""


def test_offsets_and_positions_are_inverse():
  for text in _texts():
    lines = engines.Lines(text)
    for offset in range(len(text) + 1):
      place = lines.position(offset)
      inside = text[offset - 1 : offset + 1] == "\r\n" and offset
      assert lines.offset(place) == offset - bool(inside)


def test_wire_columns_are_utf_16_and_come_back():
  for text in _texts():
    lines = engines.Lines(text)
    for offset in range(len(text) + 1):
      place = lines.position(offset)
      found = lines.to_wire(place)
      before = lines.line(place.line)[: place.column]
      assert found["character"] == len(before.encode("utf-16-le")) // 2
      assert lines.from_wire(found) == place


def test_wire_places_outside_are_moved_inside():
  lines = engines.Lines("a\U0001f600b\nc")
  at = lambda line, unit: lines.from_wire({"line": line, "character": unit})
  assert at(0, 2) == engines.Position(0, 1)  # Inside the pair.
  assert at(0, 3) == engines.Position(0, 2)
  assert at(0, 99) == engines.Position(0, 3)
  assert at(9, 0) == engines.Position(1, 1)
  whole = {
    "start": {"line": 1, "character": 1},
    "end": {"line": 0, "character": 0},
  }
  assert lines.range_from_wire(whole).end == engines.Position(1, 1)


def test_newlines_for_returns_keep_every_place():
  for text in _texts():
    told = positions.with_newlines(text)
    assert engines.Lines(told).starts == engines.Lines(text).starts
    assert not engines.Lines(told).has_lone_returns
  assert positions.with_newlines("a\r\r\nb\r") == "a\n\r\nb\n"


def test_words_check_themselves():
  with pytest.raises(ValueError, match="line=-1"):
    engines.Position(-1, 0)
  with pytest.raises(ValueError, match="end="):
    engines.Range(engines.Position(1, 0), engines.Position(0, 5))
  with pytest.raises(ValueError, match="end=1.*start=2"):
    engines.Edit(2, 1, "")
  with pytest.raises(ValueError, match="text=3"):
    engines.Edit(0, 0, 3)


def test_uris_and_paths_are_inverse(tmp_path):
  for name in ("a.py", "with blank.py", "ü#%?.py", "漢字.py"):
    path = tmp_path / name
    assert documents.path(engines.uri(path)) == path
    assert documents.check_inside(engines.uri(path), tmp_path) == path.resolve()
  with pytest.raises(ValueError, match="inside"):
    documents.check_inside(engines.uri(tmp_path / ".." / "x"), tmp_path)


def test_a_report_says_what_was_not_looked_at():
  place = lambda line: engines.Position(line, 0)
  skipped = (engines.Range(place(3), place(4)),)
  report = engines.Report((), 1, frozenset({"type"}), skipped, place(6))
  assert not report.is_checked(0) and not report.is_checked(0, "type")
  assert report.is_checked(0, "syntax") and report.is_checked(6, "arity")
  for line in (3, 4, 7):
    assert not report.is_checked(line, "syntax")
  assert engines.Report((), 1).is_checked(99)
  with pytest.raises(ValueError, match="did you mean 'type'"):
    report.is_checked(0, "typ")


def test_completions_of_any_form_are_ordered_as_in_an_editor():
  lines = engines.Lines("x.\U0001f600a")
  edit = {
    "range": {
      "start": {"line": 0, "character": 4},
      "end": {"line": 0, "character": 5},
    },
    "newText": "abs()",
  }
  items = [
    {"label": " zip(a)", "filterText": "zip", "sortText": "1", "kind": 3},
    {"label": "b"},
    {"label": "abs", "sortText": "0", "textEdit": edit, "kind": 99},
    {"label": "•c", "insertText": "cc", "detail": "int"},
    {"label": "", "sortText": " 0", "detail": "Any"},  # of ty, behind `self.`
  ]
  for form in (items, {"items": items[::-1], "isIncomplete": True}):
    found = wire.completions(form, lines, 7)
    assert found.names == ("abs", "zip", "b", "c") and found.version == 7
  assert found.incomplete
  first, second, _, last = found
  assert first.insert == "abs()" and first.kind == ""
  assert first.range.start == engines.Position(0, 3)
  assert (second.kind, second.insert) == ("function", "zip(a)")
  assert (last.insert, last.detail, last.range) == ("cc", "int", None)
  assert wire.completions(None, lines, 1).names == ()


def test_signatures_and_hovers_of_any_form():
  label = "f(\U0001f600: int, y)"
  found = wire.signatures(
    {
      "signatures": [
        {"label": label, "parameters": [{"label": [2, 9]}, {"label": "y"}]}
      ],
      "activeParameter": 1,
    }
  )
  assert (
    found[0].parameters == ("\U0001f600: int", "y") and found[0].active == 1
  )
  assert wire.signatures(None) == () and wire.hover(None) == ""
  for contents in ("a", {"value": "a"}, {"language": "x", "value": "a"}, ["a"]):
    assert wire.hover({"contents": contents}) == "a"


@pytest.mark.parametrize(
  ("name", "code", "message", "kind"),
  [
    ("pyright", "reportCallIssue", "Expected 2 positional arguments", "arity"),
    ("pyright", "reportCallIssue", 'Object of type "int" is not', "type"),
    ("pyrefly", "bad-argument-count", "", "arity"),
    ("tsc", "1005", "", "syntax"),
    ("tsc", "2552", "", "reference"),
    ("tsc", "2591", "", "reference"),
    ("tsc", "6133", "", "other"),
    ("gopls", "", "expected operand", "syntax"),
    ("gopls", "UnusedVar", "", "other"),
    ("clangd", "expected_expression", "", "syntax"),
    ("javac", "compiler.err.not.stmt", "", "syntax"),
    ("buf", "", "cannot find `Foo` in this scope", "reference"),
    ("buf", "", "field number `1` used more than once", "other"),
  ],
)
def test_kinds_of_errors(name, code, message, kind):
  assert getattr(kinds, name)(code, message, ()) == kind


def test_clangd_says_in_notes_why_no_function_fits():
  few = (
    "candidate function not viable: requires 2 arguments, but 1 was provided"
  )
  types = "candidate function not viable: no known conversion from 'char' to"
  code, whole = "ovl_no_viable_function_in_call", "No matching function\n\n"
  assert kinds.clangd(code, whole + few, ()) == "arity"
  assert kinds.clangd(code, whole + types, ()) == "type"
  assert kinds.clangd(code, whole + few + "\n" + types, ()) == "type"


def test_every_kind_is_one():
  for table in ("TY", "PYREFLY", "PYRIGHT", "TSC", "GOPLS", "CLANGD", "JAVAC"):
    assert set(getattr(kinds, table).values()) <= set(engines.KINDS)
  assert set(kinds.TY_BEFORE.values()) <= set(kinds.TY)


def test_versions_are_found_and_warned_of(caplog):
  assert programs.found_version("1:0.5.0+ds-1") == "0.5.0"
  assert programs.found_version("clangd version 22.1.1 linux") == "22.1.1"
  assert programs.found_version("master") == ""
  programs.warn_of_version("x", "17.0.15", "17")
  assert not caplog.records
  programs.warn_of_version("x", "18.0", "17")
  programs.warn_of_version("x", "18.0", "17")
  assert len(caplog.records) == 1 and "(17)" in caplog.text


def test_the_script_installs_the_versions_that_tests_have_seen():
  script = (ROOT / "scripts" / "install_engines").read_text()
  pins = dict(re.findall(r"([\w@/-]+?)(?:==|@)(\d[\d.]*\d)", script))
  for settings in presets.SERVERS.values():
    program = settings.program
    package = re.search(r"packages? ([\w@/-]+)", program.package)[1]
    assert f"  {program.group})" in script
    if "Debian" in program.package:
      assert f":{package}" in script
    else:
      assert pins[package] == program.tested, package
  assert pins["jedi"] == jedi_engine.TESTED
  assert pins["tree-sitter"] == syntax.TESTED
  for _, package, version in syntax.GRAMMARS.values():
    assert pins[package] == version
  assert "://" not in script


def test_the_script_refuses_what_it_does_not_know():
  script = ROOT / "scripts" / "install_engines"
  for arguments in ([], ["pyton"], ["python", "all"]):
    found = subprocess.run(
      [shutil.which("bash"), script, *arguments], capture_output=True, text=True
    )
    assert found.returncode == 2 and "usage" in found.stderr


def test_a_static_engine_says_what_it_was_given(tmp_path):
  problem = engines.Diagnostic(
    engines.Range(engines.Position(0, 0), engines.Position(0, 1)), "no"
  )
  judge = lambda text: [problem] if "bad" in text else []
  uri = engines.uri(tmp_path / "a.py")
  with engines.StaticEngine(tmp_path, names=("b", "a"), judge=judge) as engine:
    assert isinstance(engine, engines.Engine)
    engine.open(uri, "x")
    assert engine.complete(uri, engines.Position(0, 1)).names == ("b", "a")
    assert engine.diagnostics(uri).errors == ()
    assert engine.change(uri, [engines.Edit(0, 1, "bad")]) == 2
    assert engine.diagnostics(uri).items == (problem,)
    assert engine.signature(uri, engines.Position(0, 0)) == ()
    assert engine.hover(uri, engines.Position(0, 0)) == ""
    with pytest.raises(ValueError, match="column=9"):
      engine.complete(uri, engines.Position(0, 9))
  with pytest.raises(engines.EngineDied):
    engine.diagnostics(uri)
