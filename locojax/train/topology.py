"""TPU chips and slices without a TPU: figures, and stand-in devices."""

from __future__ import annotations

import dataclasses
import os
import re

import jax

from locojax.core import checks

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of one chip.

  Attributes:
    hbm_bytes: size of its memory.
    flops: peak of dense bf16 products a second.
    hbm_bandwidth: bytes a second.
    ici_bandwidth: bytes a second along one axis of the torus, both ways.
    dims: number of axes in the name of a slice.
  """

  hbm_bytes: int
  flops: float
  hbm_bandwidth: float
  ici_bandwidth: float
  dims: int


CHIPS = {
  "v4": Chip(32 * GIB, 275e12, 1.2e12, 0.9e11, 3),
  "v5e": Chip(16 * GIB, 197e12, 0.82e12, 0.9e11, 2),
  "v5p": Chip(95 * GIB, 459e12, 2.8e12, 1.8e11, 3),
  "v6e": Chip(32 * GIB, 918e12, 1.6e12, 1.8e11, 2),
}

# One device for each chip of two cores, as jax makes meshes of them.
_SETTINGS = {"v4": {"chip_config_name": "megacore"}}

_EXTRA = "pip install 'locojax[tpu-check]'"


@dataclasses.dataclass(frozen=True)
class Slice:
  """A TPU slice by name, with stand-ins for its devices.

  Attributes:
    name: such as `v5e:16x16`.
    chip: figures of its chips; each is one device.
    devices: stand-ins that meshes and compilation accept.
  """

  name: str
  chip: Chip
  devices: tuple


def parse(name: str) -> tuple[str, tuple[int, ...]]:
  """`"v5e:16x16"` -> `("v5e", (16, 16))`.

  Raises:
    ValueError: an unknown chip, or a layout that is not its form.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", str(name))
  if not match:
    raise ValueError(
      f"topology={name!r} is not allowed: it must be a chip of "
      f"{', '.join(CHIPS)} and a layout, such as 'v5e:16x16' or 'v4:4x4x4'."
    )
  chip = checks.lookup("chip of topology", match[1], CHIPS)
  layout = tuple(int(n) for n in match[2].split("x"))
  if len(layout) != chip.dims or 0 in layout:
    raise ValueError(
      f"topology={name!r} is not allowed: {match[1]} slices have "
      f"{chip.dims} axes, such as {match[1]}:{'x'.join('4' * chip.dims)}."
    )
  return match[1], layout


def _set_environment() -> None:
  """Lets libtpu load on a machine without a TPU; keeps what the user set."""
  try:
    import libtpu
  except ImportError as error:
    raise ImportError(
      f"compiling for a TPU topology needs libtpu: {_EXTRA}."
    ) from error
  wanted = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing here holds a real TPU
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LIBRARY_PATH": libtpu.get_library_path(),
  }
  for name, value in wanted.items():
    if os.environ.get(name, "WARNING").startswith("WARNING"):
      os.environ[name] = value


def describe(name: str) -> Slice:
  """Stand-in devices and figures for a slice; needs no TPU.

  Args:
    name: chip and layout, such as `v5e:16x16`.

  Returns:
    A `Slice`.

  Raises:
    ValueError: an unknown chip or a layout that the chip does not come in.
    ImportError: libtpu is not installed.
  """
  kind, layout = parse(name)
  _set_environment()
  from jax.experimental import topologies

  settings = dict(_SETTINGS.get(kind, {}))
  if min(layout) < 2:  # less than a whole host of 2 x 2 chips
    bounds = [min(2, n) for n in layout[:2]]
    settings["chips_per_host_bounds"] = [*bounds, 1]
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **settings
    )
  except jax.errors.JaxRuntimeError as error:
    if "INVALID_ARGUMENT" not in str(error):
      raise
    raise ValueError(f"topology={name!r} is not allowed: {error}") from error
  return Slice(name, CHIPS[kind], tuple(found.devices))
