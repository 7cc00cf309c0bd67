"""Reads the collectives of a compiled program from its HLO text."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from locojax.train import hlo

SLICES = "slice-transfer"
KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
  SLICES,
)

_MESH_GROUPS = re.compile(
  r"replica_groups=mesh\[([^\]]*)\]"
  r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}"
)
_IOTA_GROUPS = re.compile(
  r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
)
_LIST_GROUPS = re.compile(r"replica_groups=\{(\{.*?\})?\}")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program, or several of one kind, size and axes.

  Attributes:
    kind: one of `KINDS`; a `slice-transfer` goes over the network between
      slices, whatever it is part of.
    bytes: payload on one device for one run, the larger of its input and
      output; of a ragged one the whole buffer, which it need not fill.
    group_size: number of devices that take part together.
    axes: mesh axes that it runs over, such as `data` or `data,model`.
    trips: how often the loops around it run it in a step.
    in_loop: whether it lies inside a loop body.
    trips_known: whether all those loops have a known length; an unknown one
      counts once.
    count: how many such instructions there are.
  """

  kind: str
  bytes: int
  group_size: int
  axes: str
  trips: int = 1
  in_loop: bool = False
  trips_known: bool = True
  count: int = 1

  @property
  def traffic(self) -> float:
    """Bytes that a device sends in a step, by the ring algorithms."""
    share = (self.group_size - 1) / max(self.group_size, 1)
    if self.kind == "all-reduce":
      share *= 2
    elif self.kind.startswith("collective") or self.kind == SLICES:
      share = 1.0
    return self.bytes * share * self.trips * self.count


def _ids(text: str) -> list[int]:
  return [int(n) for n in re.findall(r"\d+", text)]


def _groups(line: str, num_devices: int) -> list[tuple[int, ...]] | None:
  """Device groups of a collective, in any of HLO's notations."""
  mesh = _MESH_GROUPS.search(line)
  if mesh:
    axes = re.findall(r"'([^']+)'=(\d+)", mesh[1])
    over = set(re.findall(r"'([^']+)'", mesh[4]))
    if ":" in mesh[4] or "device_ids" in mesh[1]:
      return None
    sizes = [int(n) for _, n in axes]
    devices = np.arange(math.prod(sizes))
    if mesh[2]:
      devices = devices.reshape(_ids(mesh[2]))
      devices = devices.transpose(_ids(mesh[3])) if mesh[3] else devices
    keep = [i for i, (name, _) in enumerate(axes) if name not in over]
    run = [i for i, (name, _) in enumerate(axes) if name in over]
    ids = devices.reshape(sizes).transpose(keep + run)
    ids = ids.reshape(-1, math.prod(sizes[i] for i in run))
    return [tuple(row) for row in ids.tolist()]
  if "replica_groups=mesh" in line:
    return None  # a form that is not known: say so rather than "all devices"
  iota = _IOTA_GROUPS.search(line)
  if iota:
    ids = np.arange(math.prod(_ids(iota[2]))).reshape(_ids(iota[2]))
    ids = ids.transpose(_ids(iota[3])) if iota[3] else ids
    return [tuple(row) for row in ids.reshape(_ids(iota[1])).tolist()]
  listed = _LIST_GROUPS.search(line)
  if listed and listed[1]:
    return [tuple(_ids(g)) for g in re.findall(r"\{([\d,]+)\}", listed[0])]
  return [tuple(range(num_devices))]


def _axes_of(groups, mesh_shape: Mapping[str, int]) -> str:
  """Names of the mesh axes whose groups these are."""
  names = [n for n, size in mesh_shape.items() if size > 1]
  ids = np.arange(math.prod(mesh_shape[n] for n in names))
  ids = ids.reshape([mesh_shape[n] for n in names])
  wanted = {frozenset(g) for g in groups}
  for num in range(1, len(names) + 1):
    for run in itertools.combinations(range(len(names)), num):
      keep = [i for i in range(len(names)) if i not in run]
      rows = ids.transpose(keep + list(run))
      rows = rows.reshape(-1, math.prod(ids.shape[i] for i in run))
      if {frozenset(r) for r in rows.tolist()} == wanted:
        return ",".join(names[i] for i in run)
  return f"groups of {len(groups[0])}"


def _payload(types: str, kind: str, started: bool, group: int) -> int:
  parts = hlo.elements(types)
  if started and len(parts) > 1 and kind != "all-reduce":
    return max(map(hlo.num_bytes, parts[:2]))  # input, output; then contexts
  return hlo.num_bytes(types) * (group if kind == "reduce-scatter" else 1)


def _kind(one: hlo.Instruction) -> tuple[str, bool]:
  """The kind of a collective, or "", and whether it is only started here."""
  name, started = one.opcode, False
  if name.endswith("-start"):
    name, started = name.removesuffix("-start"), True
  if name == "send" and "is_host_transfer=true" in one.attributes:
    megascale = "_xla_megascale_transfer_type" in one.attributes
    return (SLICES, False) if megascale else ("", False)
  return (name if name in KINDS else ""), started


def _one(one, computation, place, num_devices, mesh_shape, num_slices):
  """The collective that an instruction is, or None."""
  kind, started = _kind(one)
  if not kind:
    return None
  where = (place.runs, place.in_loop, place.known)
  if kind == SLICES:
    size = hlo.num_bytes(hlo.elements(one.types)[0])
    return Collective(kind, size, num_slices, "slices", *where)
  groups = _groups(one.attributes, num_devices)
  groups = _of_all_slices(groups, num_devices, num_slices)
  pairs = kind == "collective-permute"
  group = num_devices if pairs or not groups else len(groups[0])
  size = _payload(one.types, kind, started, group)
  if kind == "all-reduce" and "all-reduce-scatter" in computation:
    kind = "reduce-scatter"  # a TPU fusion of all-reduce and slice
  axes = "pairs" if pairs else "unknown"
  if groups and not pairs:
    axes = _axes_of(groups, mesh_shape)
  return Collective(kind, size, group, axes, *where)


def _of_all_slices(groups, num_devices: int, num_slices: int):
  """A program for several slices is that of one: its groups stand for all."""
  own = num_devices // num_slices
  if num_slices == 1 or not groups:
    return groups
  if sorted(i for g in groups for i in g) != list(range(own)):
    return groups
  return [
    tuple(i + s * own for i in g) for s in range(num_slices) for g in groups
  ]


def _without_copies(found) -> Iterator[Collective]:
  """One for each channel that a TPU fusion for asynchrony repeats.

  Other repetitions of a channel are collectives of their own: inside
  `shard_map` all have the same one.
  """
  repeated = {
    channel
    for channel, name, _ in found
    if channel and name.startswith("async_collective")
  }
  for channel, _, one in found:
    if channel not in repeated:
      yield one
  for wanted in repeated:
    yield next(one for channel, _, one in found if channel == wanted)


def parse(
  text: str | hlo.Program,
  mesh_shape: Mapping[str, int],
  *,
  num_slices: int = 1,
) -> tuple[Collective, ...]:
  """The collectives that a step runs.

  Args:
    text: `compiled.as_text()`, or the program that was read from it.
    mesh_shape: axis sizes in order, `dict(mesh.shape)`.
    num_slices: how many slices the devices are of, equal parts in their order.

  Returns:
    Equal ones merged, the largest traffic first. Groups of one device are
    left out.
  """
  program = hlo.Program(text) if isinstance(text, str) else text
  num_devices = math.prod(mesh_shape.values())
  found: list[tuple[str, str, Collective]] = []
  for name, place in program.places().items():
    for line in program.computations[name].values():
      one = _one(line, name, place, num_devices, mesh_shape, num_slices)
      if one is not None and one.group_size > 1:
        channel = line.attribute("channel_id")
        found.append((channel or "", name, one))
  counts: dict[Collective, int] = {}
  for one in _without_copies(found):
    counts[one] = counts.get(one, 0) + 1
  merged = [dataclasses.replace(c, count=n) for c, n in counts.items()]
  return tuple(sorted(merged, key=lambda c: -c.traffic))


def totals(
  found: Iterable[Collective],
) -> dict[tuple[str, str], tuple[int, int]]:
  """By kind and axes, `(runs, payload bytes)` of a step on one device.

  >>> one = Collective("all-reduce", 8, 2, "data", trips=3, in_loop=True)
  >>> totals([one, dataclasses.replace(one, trips=1, count=2)])
  {('all-reduce', 'data'): (5, 40)}
  """
  out: dict[tuple[str, str], tuple[int, int]] = {}
  for c in found:
    runs, size = out.get((c.kind, c.axes), (0, 0))
    more = c.count * c.trips
    out[c.kind, c.axes] = (runs + more, size + more * c.bytes)
  return out


def table(found: Iterable[Collective]) -> str:
  """One line for each entry of `parse`."""
  lines = []
  for c in found:
    times = f"{c.count} x" if c.count > 1 else ""
    loop = f", {c.trips} times in a loop" if c.in_loop else ""
    loop += "" if c.trips_known else " of unknown length (counted once)"
    lines.append(
      f"  {times:>5} {c.kind} over {c.axes} ({c.group_size} devices): "
      f"{c.bytes:,} bytes{loop}"
    )
  return "\n".join(lines) or "  none"
