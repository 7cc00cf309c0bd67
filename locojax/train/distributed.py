"""Processes: start-up, barriers and agreement.

A run of many processes is the same program started once on each host, with
JAX's own multi-controller runtime below it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

_log = logging.getLogger(__name__)

COORDINATOR = "LOCOJAX_COORDINATOR"
NUM_PROCESSES = "LOCOJAX_NUM_PROCESSES"
PROCESS_ID = "LOCOJAX_PROCESS_ID"
AUTO = "LOCOJAX_DISTRIBUTED"
_EXPLICIT = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)


def _explicit(env: Mapping[str, str]) -> dict[str, str | int] | None:
  """Arguments of `jax.distributed.initialize` from the LOCOJAX variables."""
  given = [name for name in _EXPLICIT if env.get(name)]
  if not given:
    return None
  missing = [name for name in _EXPLICIT if name not in given]
  if missing:
    raise ValueError(
      f"{', '.join(given)} is set but {', '.join(missing)} is not: set all of "
      f"{', '.join(_EXPLICIT)}, or none."
    )
  out: dict[str, str | int] = {"coordinator_address": env[COORDINATOR]}
  for argument, name in (
    ("num_processes", NUM_PROCESSES),
    ("process_id", PROCESS_ID),
  ):
    if not env[name].isdigit():
      raise ValueError(
        f"{name}={env[name]!r} is not allowed: it must be an integer, 0 or "
        "more."
      )
    out[argument] = int(env[name])
  if not out["process_id"] < out["num_processes"]:
    raise ValueError(
      f"{PROCESS_ID}={env[PROCESS_ID]} is not allowed: it must be below "
      f"{NUM_PROCESSES}={env[NUM_PROCESSES]}."
    )
  return out


def _in_cluster(env: Mapping[str, str]) -> bool:
  """Whether the environment says that this is one of many processes."""
  if env.get(AUTO):
    return env[AUTO] not in ("0", "false", "off")
  many_tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1") or 1) > 1
  many_workers = "," in env.get("TPU_WORKER_HOSTNAMES", "")
  many_slices = bool(env.get("MEGASCALE_COORDINATOR_ADDRESS"))
  indexed_job = (
    "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
  )
  return many_tasks or many_workers or many_slices or indexed_job


def initialise(env: Mapping[str, str] | None = None) -> bool:
  """Joins the other processes of this run; call it before any use of JAX.

  The cluster is found by, in this order: `LOCOJAX_COORDINATOR` (host:port),
  `LOCOJAX_NUM_PROCESSES` and `LOCOJAX_PROCESS_ID`; `LOCOJAX_DISTRIBUTED=1`,
  which leaves everything to JAX's detection (needed on Google Cloud TPU pods,
  whose environment does not show; `0` forbids it); a SLURM step of several
  tasks; several TPU workers or slices; an indexed Kubernetes job.

  Args:
    env: the environment; `os.environ` by default.

  Returns:
    Whether there are several processes. Nothing is done for a single one, and
    nothing is done twice.

  Raises:
    ValueError: some of the three variables are missing or wrong.
  """
  env = os.environ if env is None else env
  if jax.distributed.is_initialized():
    return jax.process_count() > 1
  settings = _explicit(env)
  if settings is None and not _in_cluster(env):
    return False
  if settings is not None and settings["num_processes"] == 1:
    return False
  jax.distributed.initialize(**(settings or {}))
  _log.info(
    "process %d of %d, %d devices",
    jax.process_index(),
    jax.process_count(),
    jax.device_count(),
  )
  return jax.process_count() > 1


def is_main() -> bool:
  """Whether this is process 0, the one that writes."""
  return jax.process_index() == 0


def sync(name: str) -> None:
  """Waits until all processes have come to the barrier `name`."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def from_main(values: Sequence[int]) -> list[int]:
  """A list of integers as process 0 has it, on every process."""
  if jax.process_count() == 1:
    return list(values)
  size = multihost_utils.broadcast_one_to_all(np.int32(len(values)))
  padded = np.zeros((int(size),), np.int32)
  if is_main():
    padded[:] = values
  return [int(v) for v in multihost_utils.broadcast_one_to_all(padded)]


def all_true(value: bool) -> bool:
  """Whether `value` holds on every process."""
  if jax.process_count() == 1:
    return value
  return bool(np.all(multihost_utils.process_allgather(np.bool_(value))))
