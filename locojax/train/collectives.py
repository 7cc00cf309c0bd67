"""Reads the collectives of a compiled program from its HLO text."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
)

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALL = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation)"
  r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_OP = re.compile(
  r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) (" + "|".join(KINDS) + r")(-start)?\("
)
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
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
    kind: one of `KINDS`.
    bytes: payload on one device for one run, the larger of its input and
      output.
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
    elif self.kind.startswith("collective"):
      share = 1.0
    return self.bytes * share * self.trips * self.count


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Lines of each computation by name, and the name of the entry."""
  out: dict[str, list[str]] = {}
  entry, lines = "", []
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      lines = out.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif line.startswith(" "):
      lines.append(line)
  return out, entry


def _callees(line: str) -> list[str]:
  names = _CALL.findall(line)
  for group in _BRANCHES.findall(line):
    names += [n.strip().lstrip("%") for n in group.split(",")]
  return names


def _trip_count(line: str, computations: Mapping[str, list[str]]):
  """Length of a while loop: XLA's own note, or `i < constant`, else None."""
  known = _KNOWN_TRIPS.search(line)
  if known:
    return int(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", line)
  lines = computations.get(condition[1], []) if condition else []
  constants = [re.search(r" constant\((\d+)\)", text) for text in lines]
  constants = [int(c[1]) for c in constants if c]
  compares = [t for t in lines if "ROOT" in t and "direction=LT" in t]
  return constants[0] if len(constants) == 1 and compares else None


def _multiplicities(computations, entry):
  """For each reached computation `(runs a step, in a loop, length known)`."""
  found = {}
  stack = [(entry, 1, False, True)]
  while stack:
    name, runs, in_loop, known = stack.pop()
    if name not in computations or found.get(name, (0,))[0] >= runs:
      continue
    found[name] = (runs, in_loop, known)
    for line in computations[name]:
      inside = (runs, in_loop, known)
      if re.search(r" while\(", line):
        trips = _trip_count(line, computations)
        inside = (runs * (trips or 1), True, known and trips is not None)
      stack += [(callee, *inside) for callee in _callees(line)]
  return found


def _bytes(types: str) -> list[int]:
  """Sizes of the arrays in the text of an HLO type."""
  out = []
  for dtype, dims in _SHAPE.findall(types):
    width = re.search(r"\d+", dtype)
    bits = int(width[0]) if width else 8  # pred has no width
    shape = [int(n) for n in dims.split(",") if n]
    out.append(math.prod(shape) * bits // 8)
  return out


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
  sizes = _bytes(types)
  if started and len(sizes) > 1 and kind != "all-reduce":
    half = len(sizes) // 2
    return max(sum(sizes[:half]), sum(sizes[half : 2 * half]))
  return sum(sizes) * (group if kind == "reduce-scatter" else 1)


def _one(line, computation, place, num_devices, mesh_shape):
  """The collective on a line of HLO, or None."""
  match = _OP.match(line)
  if not match:
    return None
  types, kind, started = match.groups()
  groups = _groups(line, num_devices)
  pairs = kind == "collective-permute"
  group = num_devices if pairs or not groups else len(groups[0])
  size = _payload(types, kind, bool(started), group)
  if kind == "all-reduce" and "all-reduce-scatter" in computation:
    kind = "reduce-scatter"  # a TPU fusion of all-reduce and slice
  axes = "pairs" if pairs else "unknown"
  if groups and not pairs:
    axes = _axes_of(groups, mesh_shape)
  runs, in_loop, known = place
  return Collective(kind, size, group, axes, runs, in_loop, known)


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


def parse(text: str, mesh_shape: Mapping[str, int]) -> tuple[Collective, ...]:
  """The collectives that a step runs.

  Args:
    text: `compiled.as_text()`.
    mesh_shape: axis sizes in order, `dict(mesh.shape)`.

  Returns:
    Equal ones merged, the largest traffic first. Groups of one device are
    left out.
  """
  computations, entry = _computations(text)
  num_devices = math.prod(mesh_shape.values())
  found: list[tuple[str, str, Collective]] = []
  for name, place in _multiplicities(computations, entry).items():
    for line in computations[name]:
      one = _one(line, name, place, num_devices, mesh_shape)
      if one is not None and one.group_size > 1:
        channel = re.search(r"channel_id=(\d+)", line)
        found.append((channel[1] if channel else "", name, one))
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
