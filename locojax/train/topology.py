"""TPU chips and slices without a TPU: figures, and stand-in devices."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import re
from typing import Any

import jax

from locojax.core import checks

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Figures of one device: a chip, or one of the two halves of a `tpu7x`.

  Attributes:
    hbm_bytes: what the compiler lets a program have of its memory (libtpu
      0.0.42; the published sizes are up to 1.25 GiB more, or 0.7 less).
    flops: published peak of dense bf16 products a second.
    hbm_bandwidth: bytes a second.
    ici_bandwidth: bytes a second along one axis of the torus, both ways.
    dims: number of axes in the name of a slice.
    devices: how many devices a chip is.
    slices: layouts that there are; of three axes also those of `cubes`.
    cubes: the most cubes of 4 x 4 x 4 chips in one slice; their axes are
      multiples of 4 in rising order. 0: none.
  """

  hbm_bytes: int
  flops: float
  hbm_bandwidth: float
  ici_bandwidth: float
  dims: int
  devices: int = 1
  slices: tuple[str, ...] = ()
  cubes: int = 0

  def has(self, layout: tuple[int, ...]) -> bool:
    """Whether a slice of this layout can be had."""
    if "x".join(map(str, layout)) in self.slices:
      return True
    return (
      all(n % 4 == 0 for n in layout)
      and list(layout) == sorted(layout)
      and math.prod(layout) <= 64 * self.cubes
    )


# Shapes as the pages of Cloud TPU on each version list them (read in 2026).
_FLAT = (*("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),)
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")

CHIPS = {
  "v4": Chip(
    int(30.75 * GIB), 275e12, 1.2e12, 0.9e11, 3, slices=_SMALL, cubes=64
  ),
  "v5e": Chip(int(15.75 * GIB), 197e12, 0.82e12, 0.9e11, 2, slices=_FLAT),
  "v5p": Chip(
    int(95.74 * GIB), 459e12, 2.8e12, 1.8e11, 3, slices=_SMALL, cubes=96
  ),
  "v6e": Chip(int(31.25 * GIB), 918e12, 1.6e12, 1.8e11, 2, slices=_FLAT),
  "tpu7x": Chip(
    int(94.75 * GIB),
    1153e12,
    3.7e12,
    1.8e11,
    3,
    devices=2,
    slices=_SMALL,
    cubes=144,
  ),
}

# One device for each chip of two cores, as jax makes meshes of them.
_SETTINGS = {"v4": {"chip_config_name": "megacore"}}
# Chips of a host where libtpu's own guess is another: it takes 2 x 2.
_HOSTS = {
  ("v5e", (1, 1)): (1, 1, 1),
  ("v6e", (1, 1)): (1, 1, 1),
  ("v5e", (2, 4)): (2, 4, 1),
  ("v6e", (2, 4)): (2, 4, 1),
}

_EXTRA = "pip install 'locojax[tpu-check]'"


@dataclasses.dataclass(frozen=True)
class Slice:
  """A TPU slice by name, with stand-ins for its devices.

  Attributes:
    name: such as `v5e:16x16`.
    chip: figures of its devices.
    devices: stand-ins that meshes and compilation accept, slice after slice.
    num_slices: how many such slices are joined by the network between them.
  """

  name: str
  chip: Chip
  devices: tuple
  num_slices: int = 1


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
  if not chip.has(layout):
    cubes = ""
    if chip.cubes:
      cubes = (
        ", and whole cubes: multiples of 4 in rising order, "
        f"{64 * chip.cubes} chips at most"
      )
    raise ValueError(
      f"topology={name!r} is not allowed: nobody can have such a slice. "
      f"{match[1]} comes as {', '.join(chip.slices)}{cubes}."
    )
  return match[1], layout


def libtpu_version() -> str:
  """The version of the compiler, or `not installed`.

  What a program is compiled to depends on it.
  """
  for name in ("libtpu", "libtpu-nightly"):
    try:
      return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return "not installed"


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


def describe(name: str, num_slices: int = 1) -> Slice:
  """Stand-in devices and figures for a slice, or several; needs no TPU.

  Args:
    name: chip and layout, such as `v5e:16x16`.
    num_slices: how many of them.

  Returns:
    A `Slice`.

  Raises:
    ValueError: an unknown chip or a layout that the chip does not come in.
    ImportError: libtpu is not installed.
  """
  kind, layout = parse(name)
  checks.positive_int("num_slices", num_slices)
  _set_environment()
  from jax.experimental import topologies

  settings: dict[str, Any] = dict(_SETTINGS.get(kind, {}))
  if (kind, layout) in _HOSTS:
    settings["chips_per_host_bounds"] = list(_HOSTS[kind, layout])
  if num_slices > 1:
    settings["num_slices"] = num_slices
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **settings
    )
  except jax.errors.JaxRuntimeError as error:
    if status(error) != "INVALID_ARGUMENT":
      raise
    raise ValueError(f"topology={name!r} is not allowed: {error}") from error
  return Slice(name, CHIPS[kind], tuple(found.devices), num_slices)


def status(error: jax.errors.JaxRuntimeError) -> str:
  """The status of an error of the runtime, such as `RESOURCE_EXHAUSTED`."""
  known = getattr(error, "error_code_string", None)
  return known or str(error).partition(":")[0]
