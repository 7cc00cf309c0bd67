"""SIGTERM is never swallowed, wherever a program is."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import sys
import threading
import time

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import toy

from locojax.core import files
from locojax.train import checkpoints, experiment, loop, stopping


def _term():
  os.kill(os.getpid(), signal.SIGTERM)


def _fit(made, folder, **settings):
  settings = {"log_every": 5, "save_every": 50, "writers": (), **settings}
  return loop.fit(made, folder, key=jax.random.key(0), **settings)


@pytest.fixture(autouse=True)
def _handler_is_put_back():
  both = (signal.SIGTERM, signal.SIGINT)
  before = [signal.getsignal(n) for n in both]
  yield
  assert [signal.getsignal(n) for n in both] == before
  assert not stopping.due()


def test_between_stages_the_program_ends_at_once(tmp_path):
  done = []
  with pytest.raises(stopping.Preempted) as told, stopping.listening():
    files.write(tmp_path / "report", lambda f: (f.write(b"half"), _term()))
    done.append("report")
  assert told.value.code == 0 and "run again to resume" in str(told.value)
  assert not done and not list(tmp_path.iterdir())


def test_while_deferred_a_mark_is_left():
  with stopping.listening():
    with pytest.raises(stopping.Preempted), stopping.deferred():
      with stopping.deferred():
        assert not stopping.due()
        _term()
        assert stopping.due()
      stopping.stop_if_due("here")  # still deferred
    with pytest.raises(stopping.Preempted, match="stopped before the next"):
      stopping.stop_if_due("before the next")  # whoever swallowed it


class _Swallows:
  """Python raises nothing out of `__del__`."""

  def __del__(self):
    _term()
    for _ in range(1000):
      pass


def test_what_a_callback_swallows_comes_again(capfd):
  with pytest.raises(stopping.Preempted), stopping.listening():
    _Swallows()
    end = time.monotonic() + 10
    while time.monotonic() < end:
      pass
  assert capfd.readouterr().err == ""


def test_a_person_is_told_and_may_ask_twice(tmp_path, capfd):
  interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
  made = toy.make()
  whole = toy.bits(_fit(made, tmp_path / "whole"))

  def twice(k, state):
    if k == 7:
      interrupt()
      interrupt()

  def once(k, state):
    if k == 9:
      interrupt()

  for hook, error, steps in (
    (twice, KeyboardInterrupt, [5]),
    (once, stopping.Interrupted, [5, 10]),
  ):
    asks = _Asks()
    asks.before_step, asks.check = hook, lambda step, head: None
    with pytest.raises(KeyboardInterrupt) as told:
      _fit(
        dataclasses.replace(made, journal=asks), tmp_path / "a", save_every=5
      )
    assert type(told.value) is error
    assert "Ctrl-C again" in capfd.readouterr().err
    with checkpoints.Checkpoints(tmp_path / "a" / "ckpt") as store:
      assert store.steps() == steps
  assert "stopped at step 10" in str(told.value)
  assert toy.bits(_fit(made, tmp_path / "a")) == whole


def test_outside_the_main_thread_nothing_is_installed(tmp_path):
  before, seen = signal.getsignal(signal.SIGTERM), []

  def work():
    with stopping.listening():
      seen.append(signal.getsignal(signal.SIGTERM))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [before]


@pytest.mark.parametrize(
  ("when", "step"), [("data", 0), ("eval", 0), ("last", 20), ("done", 20)]
)
def test_in_a_stage_it_stops_all_stages(tmp_path, when, step):
  """Asked in the load of data, in an evaluation, at the end, and after it."""
  made = toy.make()
  whole = toy.bits(_fit(made, tmp_path / "whole"))

  def at_end(state):
    if state.step == 20:
      _term()
    return {}

  asked = {
    "data": {"batches": lambda start: (_term(), made.batches(start))[1]},
    "eval": {"evals": {"e": experiment.Eval(50, lambda s: _term() or {})}},
    "last": {"evals": {"e": experiment.Eval(50, at_end)}},
    "done": {"journal": _Asks()},
  }[when]
  stages = []
  if when == "done":
    _fit(made, tmp_path / "0")
  with pytest.raises(stopping.Preempted) as told, stopping.listening():
    for stage in range(2):
      stages.append(stage)
      _fit(dataclasses.replace(made, **asked), tmp_path / str(stage))
  assert stages == [0] and told.value.code == 0
  with checkpoints.Checkpoints(tmp_path / "0" / "ckpt") as store:
    assert store.steps() == ([step] if step else [])
  assert (tmp_path / "0" / "result.json").exists() == (step == 20)
  assert toy.bits(_fit(made, tmp_path / "0")) == whole


class _Asks:
  """A journal during whose check the signal comes."""

  def before_step(self, step, state):
    raise AssertionError("the stage is finished")

  def head(self):
    return None

  def check(self, step, head):
    _term()
