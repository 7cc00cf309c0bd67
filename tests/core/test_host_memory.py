"""Freed memory of the host that stays with the process."""

import json
import platform
import subprocess
import sys

import pytest

from locojax.core import host_memory

# Minor faults of calls of a program that needs tens of MiB of temporaries.
_PROGRAM = """
import resource
from locojax.core import host_memory
took = host_memory.keep_freed()
import jax
import jax.numpy as jnp

@jax.jit
def f(x):
  y = x @ x.T
  return jnp.sum((y @ y) @ x)

x = jnp.ones((2048, 8))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(6):
  f(x).block_until_ready()
before = faults()
for _ in range(4):
  f(x).block_until_ready()
print([int(took), (faults() - before) // 4])
"""


def _run(monkeypatch, keep):
  monkeypatch.setenv(host_memory.VARIABLE, keep)
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
  )
  return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_calls_take_no_new_pages(monkeypatch):
  took, kept = _run(monkeypatch, "1")
  took_not, returned = _run(monkeypatch, "0")
  assert (took, took_not) == (1, 0)
  assert 20 * kept < returned


@pytest.mark.parametrize(
  "told, only", (("cpu", True), ("cpu,cuda", True), ("tpu", False))
)
def test_what_jax_is_told_to_compute_on(monkeypatch, told, only):
  monkeypatch.setenv("JAX_PLATFORMS", told)
  assert host_memory.only_processor() is only


@pytest.mark.parametrize("devices, only", (((), True), (("/dev/null",), False)))
def test_without_being_told_devices_are_looked_for(monkeypatch, devices, only):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setattr(host_memory, "_DEVICES", devices)
  assert host_memory.only_processor() is only
