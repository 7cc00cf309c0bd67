"""The real engines, each where its program is installed."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.completion import engine_samples, engine_table
from locojax import engines
from locojax.engines import kinds, presets

ROOT = pathlib.Path(__file__).parents[2]
_SLOW = {"pyright"}
_CASES = [
  (name, error)
  for name in engines.NAMES
  for error in {
    **engine_samples.SAMPLES[engine_table.LANGUAGES[name]].errors,
    **engine_samples.SAMPLES[engine_table.LANGUAGES[name]].hidden,
  }
]
# What an engine does not catch and does not say that it did not look for.
BLIND = {(name, "cached_arity") for name in ("ty", "pyrefly", "pyright")}


def _param(name, *rest, slow=()):
  marks = [pytest.mark.engine(name)]
  marks += [pytest.mark.slow] if name in (*_SLOW, *slow) else []
  return pytest.param(name, *rest, marks=marks)


def each(*names, slow=()):
  params = [_param(n, slow=slow) for n in names]
  return pytest.mark.parametrize("name", params)


each_engine = each(*engines.NAMES)
each_server = each(*presets.SERVERS)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
  """Engines by name with their sample open, started when first asked for."""
  started = {}

  def get(name):
    if name not in started:
      root = tmp_path_factory.mktemp(name)
      sample, uri = engine_table.prepare(name, root)
      engine = engines.start(name, root=root)
      started[name] = engine, sample, uri
      engine.open(uri, sample.text)
      assert engine.diagnostics(uri, timeout=120).errors == ()
    engine, sample, uri = started[name]
    _put(engine, uri, sample.text)
    return engine, sample, uri

  yield get
  for engine, _, _ in started.values():
    engine.shutdown()


def _put(engine, uri, text) -> None:
  """Replaces what is between the common ends of the old and new text."""
  old = engine.text(uri)
  if old != text:
    start = len(os.path.commonprefix([old, text]))
    rest = os.path.commonprefix([old[start:][::-1], text[start:][::-1]])
    end, new_end = len(old) - len(rest), len(text) - len(rest)
    engine.change(uri, [engines.Edit(start, end, text[start:new_end])])


@pytest.mark.parametrize(("name", "error"), [_param(*case) for case in _CASES])
def test_an_error_is_caught_or_known_to_be_unchecked(running, name, error):
  engine, sample, uri = running(name)
  kind, piece, new = {**sample.errors, **sample.hidden}[error]
  before = engine.diagnostics(uri, timeout=60)
  edit, lines = engine_table.broken(sample.text, piece, new)
  engine.change(uri, [edit])
  found = engine_table.judge(
    engine.diagnostics(uri, timeout=60), before, lines, kind
  )
  if error in sample.hidden or engine.language in ("kotlin", "dart"):
    silent = (name, error) in BLIND
    assert found["caught"] == "yes" or silent or found["told"] == "yes"
  elif name == "jedi":
    assert "yes" in (found["kind_right"], found["told"])
  else:
    assert found["kind_right"] == "yes", found


ENDS = {"crlf": "\r\n", "cr": "\r"}
_COMMENT = {"python": "# {}"}
_BAD = {
  "python": "qqq",
  "typescript": "qqq;",
  "go": "var z = qqq",
  "cpp": "int z = qqq;",
  "java": "class Z { int z = qqq; }",
  "proto": "message Z { optional qqq x = 1; }",
}


@each_server
@pytest.mark.parametrize("end", ENDS)
def test_places_are_right_after_any_line_end(running, name, end):
  engine, sample, uri = running(name)
  comment = _COMMENT.get(engine.language, "// {}")
  text = sample.text + comment.format("\U0001f600é\u2028\x0c漢") + "\n"
  text = text.replace("\n", ENDS[end])
  _put(engine, uri, text)
  wide = '"\U0001f600\U0001f600", ' if name in ("ty", "pyright") else ""
  bad = wide + _BAD[engine.language]  # Without a line end after it.
  engine.change(uri, [engines.Edit(len(text), len(text), bad)])
  whole = engine.text(uri)
  wanted = engines.Lines(whole).position(whole.index("qqq"))
  report = engine.diagnostics(uri, timeout=60)
  assert wanted in [d.range.start for d in report.errors], report.errors


@each_engine
def test_members_and_names_are_completed(running, name):
  engine, sample, uri = running(name)
  piece, typed, name_there = sample.member
  start = sample.text.index(piece)
  _put(engine, uri, sample.text.replace(piece, typed))
  position = engines.Lines(engine.text(uri)).position(start + len(typed))
  found = engine.complete(uri, position, timeout=60)
  again = engine.complete(uri, position, timeout=60)
  assert name_there in found.names and found.names == again.names
  for item in found:
    assert item.name and not set(item.name) & set(" •")


@each("ty", "tsc", "gopls", "clangd", "javac", "jedi", "pyright")
def test_signatures_name_the_parameters(running, name):
  engine, sample, uri = running(name)
  offset = sample.text.index("f(1, 2)") + len("f(1, ")
  position = engines.Lines(sample.text).position(offset)
  (found,) = engine.signature(uri, position, timeout=60)
  assert len(found.parameters) == 2 and found.active == 1
  assert all(p in found.label for p in found.parameters)


@each("ty", "tsc", "gopls", "clangd", "jedi")
def test_hover_says_something(running, name):
  engine, sample, uri = running(name)
  place = engines.Lines(sample.text).position(sample.text.index("f(1, 2)"))
  assert "f" in engine.hover(uri, place, timeout=60)


@each(*presets.SERVERS, slow=("javac",))
def test_a_killed_engine_comes_back_with_the_text(tmp_path, name):
  sample, uri = engine_table.prepare(name, tmp_path)
  kind, piece, new = sample.errors["unknown_name"]
  edit, _ = engine_table.broken(sample.text, piece, new)
  with engines.start(name, root=tmp_path) as engine:
    engine.open(uri, sample.text)
    assert engine.diagnostics(uri, timeout=120).errors == ()
    engine._connection.kill()
    engine.change(uri, [edit])
    report = engine.diagnostics(uri, timeout=120)
    assert engine.restarted == 1 and report.version == 2
    assert kind in {d.kind for d in report.errors}


_PARENT = """
import sys, time
from locojax import engines
engine = engines.start(sys.argv[1], root=sys.argv[2])
print(engine._connection.process.pid, flush=True)
time.sleep(600)
"""


def _running(pid: int) -> bool:
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1]
  except OSError:
    return False
  return state.split()[0] != "Z"


@each_server
@pytest.mark.slow
def test_an_engine_ends_with_a_parent_that_was_killed(tmp_path, name):
  engine_table.prepare(name, tmp_path)
  parent = subprocess.Popen(
    [sys.executable, "-c", _PARENT, name, str(tmp_path)],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )
  with parent.stdout:
    pid = int(parent.stdout.readline())
  parent.send_signal(signal.SIGKILL)
  parent.wait(60)
  end = time.monotonic() + 30
  while _running(pid) and time.monotonic() < end:
    time.sleep(0.05)
  assert not _running(pid)


@pytest.mark.engine("ty")
def test_names_of_rules_are_those_of_this_ty(running):
  engine, _, _ = running("ty")
  command = [str(engine.program), "explain", "rule", "--output-format", "json"]
  told = subprocess.run(command, capture_output=True, check=True, text=True)
  rules = {rule["name"] for rule in json.loads(told.stdout)}
  ours = set(kinds.TY) - {"invalid-syntax"}
  assert ours <= rules
  assert not set(kinds.TY_BEFORE) & rules


@pytest.mark.engine("clangd")
def test_clangd_goes_on_after_many_errors_or_says_that_it_stopped(tmp_path):
  path = tmp_path / "many.cpp"
  lines = [f"int x{i} = y{i};" for i in range(40)]
  path.write_text("\n".join(lines))
  with engines.start("clangd", root=tmp_path) as engine:
    engine.open(engines.uri(path), path.read_text())
    report = engine.diagnostics(engines.uri(path), timeout=60)
    assert len(report.errors) == 40 and report.stopped is None
  flags = '[{"directory": ".", "command": "c++ -c many.cpp", "file": "%s"}]'
  (tmp_path / "compile_commands.json").write_text(flags % path)
  with engines.start("clangd", root=tmp_path) as engine:
    engine.open(engines.uri(path), path.read_text())
    report = engine.diagnostics(engines.uri(path), timeout=60)
    assert len(report.errors) == 19 and report.stopped.line == 18
    assert report.is_checked(18) and not report.is_checked(19)


@pytest.mark.engine("gopls")
def test_an_error_of_syntax_leaves_go_unchecked(running):
  engine, sample, uri = running("gopls")
  bad = sample.text.replace("f(1, 2)", "f(1, 2").replace("a.val", "a.nothing")
  _put(engine, uri, bad)
  report = engine.diagnostics(uri, timeout=60)
  assert {d.kind for d in report.errors} == {"syntax"}
  assert not report.is_checked(2) and report.is_checked(2, "syntax")
  with pytest.raises(ValueError, match="no go.mod or go.work"):
    engines.start("gopls", root=ROOT / "tests" / "engines")


@pytest.mark.engine("pyrefly")
def test_pyrefly_wants_a_configuration_file(tmp_path):
  with pytest.raises(ValueError, match="pyrefly.toml.*little or nothing"):
    engines.start("pyrefly", root=tmp_path)


@pytest.mark.engine("buf")
def test_buf_lists_have_one_order_and_not_the_own_package(running):
  engine, sample, uri = running("buf")
  text = sample.text.replace("optional A a", "optional a.b. a")
  _put(engine, uri, text)
  offset = text.index("a.b. ") + len("a.b.")
  place = engines.Lines(text).position(offset)
  assert engine.complete(uri, place, timeout=60).names == ()
  _put(engine, uri, sample.text.replace("optional A a", "opt"))
  lists = [engine.complete(uri, engines.Position(6, 5)) for _ in range(5)]
  assert lists[0].names and len({found.names for found in lists}) == 1


def test_versions_and_names_of_rules_go_together():
  old, new = (0, 0, 50), (0, 0, 108)
  assert kinds.ty("unresolved-attribute", "", old) == "reference"
  assert kinds.ty("missing-attribute", "", new) == "reference"
  assert kinds.ty("unresolved-attribute", "", new) == "other"
  assert kinds.ty("a-new-rule", "", (9, 9, 9)) == "other"


def test_an_absent_engine_names_its_package(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  monkeypatch.setenv("LOCOJAX_ENGINES", str(tmp_path))
  monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
  for name, settings in presets.SERVERS.items():
    with pytest.raises(engines.EngineAbsent) as raised:
      (tmp_path / "go.mod").touch()
      (tmp_path / "pyrefly.toml").touch()
      engines.start(name, root=tmp_path)
    words = str(raised.value)
    assert settings.program.package in words
    assert f"./scripts/install_engines {settings.program.group}" in words
    assert not engines.is_installed(name)
  with pytest.raises(ValueError, match="did you mean 'gopls'"):
    engines.start("gopl", root=tmp_path)
