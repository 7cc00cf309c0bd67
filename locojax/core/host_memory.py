"""Memory of the host, for programs that compute on its processor."""

from __future__ import annotations

import ctypes
import glob
import os
import sys

# Turns `keep_freed` off.
VARIABLE = "LOCOJAX_KEEP_FREED"
# Variables that glibc reads at the start of a program, what the options are to
# `mallopt` (malloc.h), and values.
_OPTIONS = (
  ("MALLOC_ARENA_MAX", -8, 1),
  ("MALLOC_MMAP_MAX_", -4, 0),
  ("MALLOC_TRIM_THRESHOLD_", -1, 2**31 - 1),
)
# `keep_freed` for any program that is started with these.
ENVIRONMENT = {name: str(value) for name, _, value in _OPTIONS}
# Files of GPUs and TPUs.
_DEVICES = (
  *("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd"),
  *("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),
)


def keep_freed() -> bool:
  """Has this process keep the memory that it frees, for what it needs next.

  XLA allocates the temporaries of a program at every call and frees them after
  it. On Linux the C library gives large pieces back to the system at once, and
  takes them anew, page by page and filled with zeros, at the next call: a third
  of the processor's time in small training loops. With this they stay, in one
  pool for all threads. The process keeps what it needed at its peak until it
  ends; memory of accelerators is not concerned.

  Threads that have allocated before stay with pools of their own: call it
  before JAX is used. Where `$LOCOJAX_KEEP_FREED` is 0 nothing is changed.

  Returns:
    Whether the C library took the settings: it is glibc, and they are wanted.
  """
  if os.environ.get(VARIABLE) == "0" or not sys.platform.startswith("linux"):
    return False
  set_option = getattr(ctypes.CDLL(None), "mallopt", None)
  if set_option is None:
    return False
  took = [set_option(option, value) for _, option, value in _OPTIONS]
  return all(took)


def only_processor() -> bool:
  """Whether JAX will compute on the host's processor, before it is asked.

  It is so if `$JAX_PLATFORMS` begins with cpu, or if it is empty and Linux has
  no file of a GPU or TPU.
  """
  told = os.environ.get("JAX_PLATFORMS", "")
  if told:
    return told.split(",")[0] == "cpu"
  return not any(glob.glob(pattern) for pattern in _DEVICES)
