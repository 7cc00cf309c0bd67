"""LSP engines against a server of our own that misbehaves as it is told."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from locojax import engines
from locojax.engines import calls, positions, rpc
from tests.engines import fakes

START = engines.Position(0, 0)
PIECES = ("a", "word ", "é", "漢", "\U0001f600", "\n", "\r\n", "\r", "\t", "")


def _uri(root, name="a.txt") -> str:
  return engines.uri(root / name)


def _alive(pid: int) -> bool:
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1]
  except OSError:
    return False
  return state.split()[0] != "Z"


def _wait_until(condition, seconds=20.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "it never came true"
    time.sleep(0.005)


def _random_text(rng, length) -> str:
  return "".join(rng.choice(PIECES, length))


def _random_edits(rng, text, most=3) -> tuple[list[engines.Edit], str]:
  """Edits, each of the text that those before left, and what they make."""
  edits = []
  for _ in range(rng.integers(1, most + 1)):
    start, end = sorted(int(i) for i in rng.integers(0, len(text) + 1, 2))
    end = min(end, start + int(rng.integers(0, 6)))
    new = _random_text(rng, rng.integers(0, 5))
    edits.append(engines.Edit(start, end, new))
    text = text[:start] + new + text[end:]
  return edits, text


@pytest.mark.parametrize("options", [{}, {"sync": 1}], ids=["edits", "whole"])
def test_a_thousand_random_edits_leave_equal_texts(tmp_path, options):
  rng, uri = np.random.default_rng(0), _uri(tmp_path)
  with fakes.make(tmp_path, **options) as engine:
    text = _random_text(rng, 60)
    assert engine.open(uri, text) == 1
    for i in range(1000):
      edits, text = _random_edits(rng, text)
      assert engine.change(uri, edits) == i + 2
      assert engine.text(uri) == text
      if i % 50 == 0 or i == 999:
        assert fakes.texts(engine) == {uri: text}


def test_a_server_of_newlines_is_told_newlines(tmp_path):
  rng, uri = np.random.default_rng(1), _uri(tmp_path)
  with fakes.make(tmp_path, newlines_only=True) as engine:
    text = "a\rb\r\nc"
    engine.open(uri, text)
    for i in range(100):
      if i % 10 == 0:
        told = fakes.texts(engine)[uri]
        assert told == positions.with_newlines(text)
        ours, theirs = engines.Lines(text), engines.Lines(told)
        assert ours.starts == theirs.starts
      edits, text = _random_edits(rng, text)
      engine.change(uri, edits)


def test_answers_out_of_order_reach_who_asked(tmp_path):
  uri = _uri(tmp_path)
  with fakes.make(tmp_path, reverse=3) as engine:
    engine.open(uri, "\U0001f600ab\r\ncd")
    places = [(0, 0), (0, 2), (1, 1)]
    asked = [engine.complete_later(uri, engines.Position(*p)) for p in places]
    found = [call.result(20) for call in asked]
    assert [f.names for f in found] == [("0_0_7",), ("0_3_7",), ("1_1_7",)]
    assert all(f.incomplete and f.version == 1 for f in found)


def test_a_late_answer_is_a_timeout_and_is_cancelled(tmp_path):
  uri = _uri(tmp_path)
  method = "textDocument/completion"
  with fakes.make(tmp_path, mute=[method]) as engine:
    engine.open(uri, "x")
    began = time.monotonic()
    with pytest.raises(engines.EngineTimeout, match=r"fake .* 0.05 s.*complet"):
      engine.complete(uri, START, timeout=0.05)
    assert time.monotonic() - began < 2
    seen = fakes.ask(engine, "fake/seen")
    asked = [i for m, i, _ in seen if m == method]
    told = [p["id"] for m, _, p in seen if m == "$/cancelRequest"]
    assert asked == told and len(told) == 1
    assert engine.diagnostics(uri).version == 1  # It goes on.


def test_a_cancelled_question_is_told_at_once(tmp_path):
  uri = _uri(tmp_path)
  with fakes.make(tmp_path, mute=["textDocument/completion"]) as engine:
    engine.open(uri, "x")
    call = engine.complete_later(uri, START)
    assert call.cancel() and call.cancelled()
    told = [s for s in fakes.ask(engine, "fake/seen") if "cancel" in s[0]]
    assert len(told) == 1
    with pytest.raises(concurrent.futures.CancelledError):
      call.result(1)


def test_a_server_that_does_not_read_stops_nobody(tmp_path):
  uri = _uri(tmp_path)
  with fakes.make(tmp_path, timeout=0.2) as engine:
    engine.open(uri, "")
    engine._notify("fake/deaf", {})
    big = "x" * 1_000_000  # More than a pipe holds.
    began = time.monotonic()
    for _ in range(3):
      engine.change(uri, [engines.Edit(0, 0, big)])
    with pytest.raises(engines.EngineTimeout):
      engine.complete(uri, START)
    assert time.monotonic() - began < 5
  assert time.monotonic() - began < 10


def test_diagnostics_of_another_version_are_ignored(tmp_path):
  uri = _uri(tmp_path)
  push = ["old", "none", "new"]
  with fakes.make(tmp_path, pull=False, push=push) as engine:
    engine.open(uri, "x")
    for text in ("", "y", "z"):
      if text:
        engine.change(uri, [engines.Edit(0, 1, text)])
      report = engine.diagnostics(uri)
      assert [d.message for d in report] == ["new"]
    assert report.version == 3
  with fakes.make(tmp_path, pull=False, push=["old"]) as engine:
    engine.open(uri, "x")
    with pytest.raises(engines.EngineTimeout, match="its diagnostics"):
      engine.diagnostics(uri, timeout=0.2)


def test_what_has_no_version_is_asked_for_again_once(tmp_path):
  uri = _uri(tmp_path)
  with fakes.make(tmp_path, pull=False, push=["none"]) as engine:
    engine.open(uri, "x\r\ny")
    waiting = engine.diagnostics_later(uri)
    changes = lambda: [
      p
      for m, _, p in fakes.ask(engine, "fake/seen")
      if m == "textDocument/didChange"
    ]
    _wait_until(lambda: len(changes()) == 1)
    assert changes()[0]["contentChanges"] == [{"text": "x\r\ny"}]
    assert not waiting.done() and fakes.texts(engine) == {uri: "x\r\ny"}


def test_who_waits_for_an_older_text_is_told(tmp_path):
  uri = _uri(tmp_path)
  with fakes.make(tmp_path, pull=False) as engine:
    engine.open(uri, "x")
    waiting = engine.diagnostics_later(uri)
    engine.change(uri, [engines.Edit(0, 1, "y")])
    with pytest.raises(engines.Stale, match="changed"):
      waiting.result(5)


def test_a_server_that_skips_equal_texts_is_not_waited_for(tmp_path):
  uri = _uri(tmp_path)
  settings = {"pull": False, "skips_same": True, "push": ["new"]}
  with fakes.make(tmp_path, **settings) as engine:
    engine.open(uri, "x")
    first = engine.diagnostics(uri)
    engine._on_message = lambda message: None
    engine._connection._on_message = lambda message: None  # Silence.
    engine.change(uri, [engines.Edit(0, 0, "y")])
    engine.change(uri, [engines.Edit(0, 1, "")])
    again = engine.diagnostics(uri, timeout=1)
    assert again.items == first.items and again.version == 3


def test_an_unchanged_pull_keeps_its_items(tmp_path):
  uri = _uri(tmp_path)
  with fakes.make(tmp_path) as engine:
    engine.open(uri, "bad worse bad2")
    first, second = engine.diagnostics(uri), engine.diagnostics(uri)
    assert [d.message for d in second] == ["bad", "bad2"]
    assert first == second
    pulls = [p for m, _, p in fakes.ask(engine, "fake/seen") if "diag" in m]
    assert "previousResultId" not in pulls[0]
    assert "previousResultId" in pulls[1]


def test_a_pull_that_is_put_off_is_asked_again(tmp_path):
  uri = _uri(tmp_path)
  with fakes.make(tmp_path, postpone=3) as engine:
    engine.open(uri, "bad")
    assert len(engine.diagnostics(uri)) == 1
  with fakes.make(tmp_path, postpone=1000) as engine:
    engine.open(uri, "bad")
    with pytest.raises(engines.Stale, match="put off .* 20 times"):
      engine.diagnostics(uri)


def test_it_is_started_again_once_with_all_documents(tmp_path):
  method = "textDocument/completion"
  with fakes.make(tmp_path, crash={method: 1}) as engine:
    one, two = _uri(tmp_path), _uri(tmp_path, "b ü.txt")
    engine.open(one, "1")
    engine.open(two, "2")
    engine.change(two, [engines.Edit(1, 1, "\U0001f600")])
    found = engine.complete(two, engines.Position(0, 2))  # Asked again by it.
    assert found.names == ("0_3_2",) and engine.restarted == 1
    assert fakes.texts(engine) == {one: "1", two: "2\U0001f600"}
    assert engine.change(two, [engines.Edit(0, 1, "")]) == 3
    assert fakes.texts(engine)[two] == "\U0001f600"


def test_what_ends_it_twice_is_told_with_its_last_words(tmp_path):
  method = "textDocument/completion"
  with fakes.make(tmp_path, crash={method: 2}) as engine:
    uri = _uri(tmp_path)
    engine.open(uri, "1")
    with pytest.raises(engines.EngineDied, match=r"exit 3\)(.|\n)*it hurts"):
      engine.complete(uri, START)
    with pytest.raises(engines.EngineDied):
      engine.text(uri)
    engine.restart()  # On purpose: all is as it was.
    assert fakes.texts(engine) == {uri: "1"}


def test_killing_it_under_load_loses_no_edit(tmp_path):
  uri, rng = _uri(tmp_path), np.random.default_rng(2)
  with fakes.make(tmp_path) as engine:
    engine.open(uri, "")
    text, asked = "", []
    killer = threading.Timer(0.05, lambda: engine._connection.kill())
    killer.start()
    pid = engine._connection.process.pid
    end = time.monotonic() + 20
    while (
      engine.restarted == 0 or engine._connection is None or len(asked) < 50
    ):
      assert time.monotonic() < end
      edits, text = _random_edits(rng, text)
      engine.change(uri, edits)
      asked.append(engine.complete_later(uri, START))
      time.sleep(0.001)
    killer.join()
    assert engine._connection.process.pid != pid and engine.restarted == 1
    assert fakes.texts(engine) == {uri: text} == {uri: engine.text(uri)}
    for call in asked:
      with contextlib.suppress(engines.Stale):
        assert len(call.result(20)) == 1
    assert not engine._calls and asked[-1].result(1).names


def test_other_words_on_its_output_end_it_clearly(tmp_path):
  engine = fakes.make(tmp_path, garbage="hello\n\nworld", restarts=0)
  with engine:
    _wait_until(lambda: engine._died)
    with pytest.raises(engines.EngineDied, match="fake ended"):
      engine.open(_uri(tmp_path), "")


def test_one_that_dies_at_the_start_is_told(tmp_path):
  with pytest.raises(engines.EngineDied, match=r"fake ended(.|\n)*too soon"):
    fakes.make(tmp_path, fail="too soon")


def test_shutdown_leaves_no_process(tmp_path):
  engine = fakes.make(tmp_path, stubborn=True, child=True)
  child = int((tmp_path / "child").read_text())
  assert _alive(child)
  engine.shutdown()
  engine.shutdown()
  assert engine._connection is None
  _wait_until(lambda: not _alive(child))
  with pytest.raises(engines.EngineDied, match="shut down"):
    engine.open(_uri(tmp_path), "")


def test_edits_and_shutdown_while_it_starts_again(tmp_path):
  (tmp_path / "slow").touch()
  uri = _uri(tmp_path)
  with fakes.make(tmp_path) as engine:
    engine.open(uri, "a")
    engine._connection.kill()
    _wait_until(lambda: engine._starting is not None)
    assert engine.change(uri, [engines.Edit(0, 0, "b")]) == 2  # At once.
    later = engine.diagnostics_later(uri)
    assert engine._starting is not None and not later.done()
    assert later.result(20).version == 2
    assert fakes.texts(engine) == {uri: "ba"}
  with fakes.make(tmp_path) as engine:
    engine._connection.kill()
    _wait_until(lambda: engine._starting is not None)
    engine.shutdown()
    _wait_until(lambda: engine._starting is None)
    assert engine._connection is None
  _wait_until(lambda: not list(rpc._running))


_PARENT = """
import sys, time
from tests.engines import fakes
engine = fakes.make(sys.argv[1])
print(engine._connection.process.pid, flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["raise SystemExit", "time.sleep(600)"])
def test_it_ends_with_its_parent(tmp_path, end):
  root = pathlib.Path(__file__).parents[2]
  parent = subprocess.Popen(
    [sys.executable, "-c", _PARENT.format(end=end), str(tmp_path)],
    cwd=root,
    env={**os.environ, "PYTHONPATH": str(root)},
    stdout=subprocess.PIPE,
    text=True,
  )
  pid = int(parent.stdout.readline())
  if "sleep" in end:
    assert _alive(pid)
    parent.send_signal(signal.SIGKILL)
  parent.wait(60)
  _wait_until(lambda: not _alive(pid))


def test_bad_arguments_are_refused_and_change_nothing(tmp_path):
  uri = _uri(tmp_path)
  with fakes.make(tmp_path) as engine:
    engine.open(uri, "ab")
    with pytest.raises(ValueError, match="open yet"):
      engine.open(uri, "ab")
    with pytest.raises(ValueError, match="inside the engine's root"):
      engine.open(engines.uri(tmp_path.parent / "x.txt"), "")
    with pytest.raises(ValueError, match="a file: URI"):
      engine.open("untitled:x", "")
    with pytest.raises(ValueError, match="NUL"):
      engine.open(_uri(tmp_path, "b"), "\0ELF")
    with pytest.raises(ValueError, match="lone surrogate"):
      engine.open(_uri(tmp_path, "b"), "\ud83d")
    with pytest.raises(ValueError, match="4000000 characters or fewer"):
      engine.open(_uri(tmp_path, "b"), "x" * 4_000_001)
    good, bad = engines.Edit(0, 1, "z"), engines.Edit(1, 3, "")
    with pytest.raises(ValueError, match="end=3"):
      engine.change(uri, [good, bad])
    with pytest.raises(ValueError, match="column=3"):
      engine.complete(uri, engines.Position(0, 3))
    with pytest.raises(ValueError, match="line=1"):
      engine.complete(uri, engines.Position(1, 0))
    with pytest.raises(ValueError, match="timeout"):
      engine.diagnostics(uri, timeout=0)
    engine.close(uri)
    with pytest.raises(ValueError, match="uri"):
      engine.text(uri)
    assert fakes.texts(engine) == {}
    engine.open(uri, "cd")
    assert fakes.texts(engine) == {uri: "cd"}


def test_asyncio_takes_the_futures(tmp_path):
  import asyncio

  uri = _uri(tmp_path)
  with fakes.make(tmp_path) as engine:
    engine.open(uri, "bad")

    async def ask():
      return await asyncio.wrap_future(engine.diagnostics_later(uri))

    assert len(asyncio.run(ask())) == 1


def test_an_answer_that_cannot_be_read_fails_its_call_alone():
  call = calls.Call("x", None, take=lambda found: found["missing"])
  call.answer({})
  with pytest.raises(KeyError):
    call.result(0)
