"""Clock, peak table, MFU, trace window."""

from __future__ import annotations

import pathlib
import time
import types

import jax
import jax.numpy as jnp
import pytest

from locojax.train import profiling


@pytest.mark.parametrize(
  "kind, peak",
  [
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA A100-SXM4-40GB", 312e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("cpu", None),
    ("some other device", None),
  ],
)
def test_peak_flops(kind, peak):
  assert profiling.peak_flops(kind) == peak


def test_mfu_worked_number():
  share = profiling.mfu(4e12, 0.5, num_devices=4, peak=10e12)
  assert share == pytest.approx(0.2)


@pytest.mark.parametrize(
  "flops, seconds, peak", [(None, 1.0, 1.0), (1.0, 1.0, None), (1.0, 0.0, 1.0)]
)
def test_mfu_is_none_when_unknown(flops, seconds, peak):
  assert profiling.mfu(flops, seconds, num_devices=1, peak=peak) is None


def test_clock_goes_on_and_stands_still(monkeypatch):
  now = [5.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  clock = profiling.Clock(100.0)
  assert clock.stop() == 100.0
  clock.start()
  now[0] += 2
  with clock.paused() as seconds:
    assert seconds == 102.0
    now[0] += 50
    assert clock.stop() == seconds
  now[0] += 1
  assert clock.stop() == 103.0


def test_memory_is_that_of_the_fullest_device(monkeypatch):
  assert set(profiling.memory()) <= {"in_use", "peak", "limit"}
  told = [{"bytes_in_use": 3, "bytes_limit": 9}, {"bytes_in_use": 5}, None]
  devices = [types.SimpleNamespace(memory_stats=lambda s=s: s) for s in told]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  assert profiling.memory() == {"in_use": 5, "limit": 9}


@pytest.mark.parametrize(
  "start, num_steps, name",
  [(-1, 2, "profile.start"), (0, 0, "profile.num_steps")],
)
def test_window_refuses(start, num_steps, name):
  with pytest.raises(ValueError, match=name):
    profiling.Window(start, num_steps)


def test_trace_records_its_window_alone(tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(
    jax.profiler, "start_trace", lambda folder: seen.append(("start", folder))
  )
  monkeypatch.setattr(
    jax.profiler, "stop_trace", lambda: seen.append(("stop",))
  )
  trace = profiling.Trace(profiling.Window(2, 3), tmp_path)
  calls = {}
  for step in range(8):
    trace.before_step(step)
    calls[step] = len(seen)
  trace.close()
  assert seen == [("start", str(tmp_path)), ("stop",)]
  assert (calls[1], calls[2], calls[4], calls[5]) == (0, 1, 1, 2)


def test_trace_writes_files(tmp_path):
  trace = profiling.Trace(profiling.Window(0, 5), pathlib.Path(tmp_path))
  trace.before_step(0)
  jax.block_until_ready(jnp.ones(3) + 1)
  trace.close()
  assert list(tmp_path.rglob("*.xplane.pb"))


def test_window_of_a_config():
  assert profiling.window({}) is None
  assert profiling.window({"start": 3, "num_steps": 0}) is None
  assert profiling.window({"start": 3, "num_steps": 2}) == profiling.Window(
    3, 2
  )
  with pytest.raises(ValueError, match="profile='stop' is not allowed"):
    profiling.window({"stop": 3})
  with pytest.raises(ValueError, match="profile.start=-1"):
    profiling.window({"start": -1, "num_steps": 2})
