"""A folder is worked on by one program at a time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from locojax.train import lock

# Takes the lock without JAX, which would take seconds to start.
_HOLDER = f"""
import fcntl, sys, json
file = open(sys.argv[1] + "/{lock.FILE}", "a+")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
file.truncate(0)
file.write(json.dumps(dict(pid=7, host="elsewhere", since="noon")) + "\\n")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _other_process(folder):
  """Another process that holds the lock of a folder."""
  process = subprocess.Popen(
    [sys.executable, "-S", "-c", _HOLDER, str(folder)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == "held\n"
    yield process
  finally:
    process.kill()
    process.communicate()


def test_a_second_program_is_refused_until_the_first_is_dead(tmp_path):
  with _other_process(tmp_path) as other:
    refused = "process 7 on elsewhere since noon works in it"
    for _ in range(2):  # a refusal must not free the lock
      with pytest.raises(lock.Busy, match=refused), lock.hold(tmp_path):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    with lock.hold(tmp_path):
      pass


def test_who_holds_it_is_told_and_others_are_kept_out(tmp_path):
  folder = tmp_path / "made"
  with lock.hold(folder):
    mine = json.loads((folder / lock.FILE).read_text())
    assert mine["pid"] == os.getpid() and mine["host"] and mine["since"]
    with lock.hold(folder):  # a stage in the folder of its pipeline
      pass
    (folder / lock.FILE).read_text()  # closing it must not free the lock
    refused = []

    def other_thread():
      try:
        with lock.hold(folder):
          pass
      except lock.Busy as busy:
        refused.append(str(busy))

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert "another thread of this program" in refused[0]
  thread = threading.Thread(target=other_thread)
  thread.start()
  thread.join()
  assert len(refused) == 1


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
  def none(*_):
    raise OSError(37, "No locks available")

  monkeypatch.setattr(lock.fcntl, "lockf", none)
  with lock.hold(tmp_path):
    assert "has no locks" in caplog.text
