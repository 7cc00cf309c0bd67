"""Worker processes: limits of CPU time, kills, and one outcome for each."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from locojax.train import workers

PROGRAM = pathlib.Path(__file__).with_name("silly_program.py")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool():
  with workers.WorkerPool(
    PROGRAM, num_workers=2, cpu_seconds=0.3, memory_mb=2048
  ) as made:
    yield made


def test_outcomes_are_in_order_and_workers_are_light(pool):
  found = pool.map([{"value": k} for k in range(20)])
  assert [f.value for f in found] == [k * k for k in range(20)]
  assert {f.status for f in found} == {"done"}
  assert pool.info["jax"] is False


def test_a_limit_is_of_cpu_time(pool):
  slow, spins = pool.map([{"sleep": 1.0, "value": 3}, {"spin": True}])
  assert slow == workers.Outcome("done", 9)
  assert spins.status == "timed out" and spins.reason


def test_a_limit_on_the_wall_ends_what_waits():
  with workers.WorkerPool(PROGRAM, wall_seconds=0.5) as made:
    assert made.map([{"sleep": 60, "value": 1}])[0].status == "timed out"
    assert made.map([{"value": 2}])[0].value == 4


def test_failures_are_told(pool):
  failed, memory = pool.map([{"value": "a"}, {"allocate": 2**33}])
  assert failed.status == "failed" and "TypeError" in failed.reason
  assert memory.status == "failed" and "MemoryError" in memory.reason


def test_what_ends_every_worker_is_crashed(pool):
  dies, lives = pool.map([{"die": True}, {"value": 5}])
  assert dies.status == "crashed"
  assert lives.value == 25


def test_many_slow_requests_leave_the_rest_alone():
  with workers.WorkerPool(PROGRAM, num_workers=2, cpu_seconds=0.02) as made:
    slow = [made.submit({"spin": True}) for _ in range(30)]
    rest = made.map([{"value": k} for k in range(30)])
    assert [f.value for f in rest] == [k * k for k in range(30)]
    assert {f.result().status for f in slow} == {"timed out"}


@pytest.mark.slow
def test_a_thousand_slow_requests_end():
  with workers.WorkerPool(PROGRAM, num_workers=2, cpu_seconds=0.02) as made:
    found = made.map([{"spin": True}] * 1000)
  assert [f.status for f in found] == ["timed out"] * 1000


def test_workers_killed_at_random_lose_nothing(tmp_path):
  """Every request has one outcome, the right one; done again if need be."""
  notes = tmp_path / "notes"
  stop = threading.Event()
  with workers.WorkerPool(
    PROGRAM, num_workers=2, cpu_seconds=5.0, attempts=50
  ) as made:

    def kill():
      while not stop.wait(0.05):
        for pid in made.pids:
          if pid is not None and pid != os.getpid():
            try:
              os.kill(pid, signal.SIGKILL)
            except OSError:
              continue

    killer = threading.Thread(target=kill)
    killer.start()
    requests = [
      {"value": k, "sleep": 0.01, "note": [str(notes), str(k)]}
      for k in range(40)
    ]
    delivered = []
    futures = [made.submit(request) for request in requests]
    for future in futures:
      future.add_done_callback(lambda f: delivered.append(f.result().value))
    found = [future.result() for future in futures]
    stop.set()
    killer.join()
  assert [f.value for f in found] == [k * k for k in range(40)]
  assert sorted(delivered) == sorted(k * k for k in range(40))
  seen = notes.read_text().split()
  assert set(seen) == {str(k) for k in range(40)}


def test_it_works_from_many_threads(pool):
  found = {}

  def ask(k):
    found[k] = pool.submit({"value": k}).result().value

  threads = [threading.Thread(target=ask, args=(k,)) for k in range(20)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {k: k * k for k in range(20)}


_SCRIPT = """
from locojax.train import workers
pool = workers.WorkerPool({program!r})
print(pool.map([{{"value": 3}}])[0].value)
pids = pool.pids
print(*pids)
"""


def test_it_works_in_a_script_without_a_main_guard():
  """And ends with the script, which does not close it."""
  code = _SCRIPT.format(program=str(PROGRAM))
  done = subprocess.run(
    [sys.executable, "-"],
    input=code,
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    timeout=300,
  )
  value, pid = done.stdout.split()
  assert value == "9", done.stderr
  for _ in range(100):
    if not pathlib.Path(f"/proc/{pid}").exists():
      break
    time.sleep(0.1)
  else:
    pytest.fail("the worker is still there")


_KILLED = """
from locojax.train import workers
pool = workers.WorkerPool({program!r})
print(*pool.pids, pool._workers[0]._process.pid, flush=True)
pool.map([{{"value": 3, "sleep": 1.0}}])
"""


def _is_gone(pid: str) -> bool:
  """Or nobody has asked how it ended."""
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return True
  return stat.rpartition(")")[2].split()[0] == "Z"


def test_nothing_is_left_of_a_program_killed_in_the_middle_of_a_request():
  code = _KILLED.format(program=str(PROGRAM))
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", code]
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env
  ) as running:
    pids = running.stdout.readline().split()
    running.kill()
  assert len(pids) == 2
  for _ in range(150):
    if all(map(_is_gone, pids)):
      break
    time.sleep(0.1)
  else:
    pytest.fail("a worker is still there")


def test_what_a_program_lacks_is_said_at_once():
  with pytest.raises(ImportError, match="pip install something"):
    workers.WorkerPool(PROGRAM, options={"missing": "something"})
  with pytest.raises(RuntimeError, match="No such file|FileNotFoundError"):
    workers.WorkerPool(PROGRAM.with_name("absent.py"))


def test_a_closed_pool_takes_nothing():
  made = workers.WorkerPool(PROGRAM)
  made.close()
  made.close()
  with pytest.raises(ValueError, match="closed"):
    made.submit({"value": 1})


@pytest.mark.parametrize(
  "bad",
  [
    {"num_workers": 0},
    {"cpu_seconds": 0},
    {"wall_seconds": -1},
    {"memory_mb": 0.5},
    {"attempts": 0},
  ],
)
def test_bad_arguments_are_named(bad):
  (name,) = bad
  with pytest.raises(ValueError, match=f"{name}=.*is not allowed"):
    workers.WorkerPool(PROGRAM, **bad)
