"""Meshes from a dict, and ordered rules that lay a train state out on them.

A rule is `(regex, spec)`. The regex is searched in the '/'-joined path of a
leaf of the whole `TrainState` (`params/mlp/Dense_0/kernel`,
`opt_state/0/mu/mlp/Dense_0/kernel`); the first rule that hits wins, and a
leaf that no rule hits is replicated. `spec` is a `PartitionSpec`, or a
function `(shape, mesh) -> PartitionSpec` such as `fsdp()`.

A leaf outside `params` whose path ends in the path of a parameter (the moments
of Adam, an average of the weights) is a *companion* of that parameter:

* a rule hits it when the regex is found in its own path or in the path of the
  parameter, so that one rule serves both, anchored or not;
* when its shape is another one (factored moments, placeholders), a
  `PartitionSpec` meant for the parameter does not apply and the leaf is
  replicated. A function does apply, and so does a rule that hits the path of
  the companion alone.

The step, PRNG keys, and scalars outside `params` are always replicated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from locojax.core import checks, trees

AXES = ("data", "expert", "model")

SpecFn = Callable[[tuple[int, ...], Mesh], PartitionSpec]
Rule = tuple[str, PartitionSpec | SpecFn]


def resolve_axes(
  axes: Mapping[str, int], num_devices: int | None
) -> dict[str, int]:
  """Sizes of all mesh axes: a missing axis is 1, a -1 takes what is left.

  Args:
    axes: sizes by name, of `data`, `expert`, `model`; one may be -1.
    num_devices: how many devices the mesh must have; None accepts any number
      and reads -1 as 1.

  Returns:
    `{"data": d, "expert": e, "model": m}`.

  Raises:
    ValueError: an unknown axis, a bad size, or a product that is not the
      number of devices.
  """
  for name, size in axes.items():
    checks.one_of("mesh axis", name, AXES)
    if size != -1:
      checks.positive_int(f"axes[{name!r}]", size)
  sizes = {name: int(axes.get(name, 1)) for name in AXES}
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise ValueError(f"axes={dict(axes)}: only one axis may be -1.")
  fixed = math.prod(size for size in sizes.values() if size != -1)
  total = fixed if num_devices is None else num_devices
  if total % fixed or (not free and total != fixed):
    raise ValueError(
      f"axes={dict(axes)} do not fill {total} devices: the product of the "
      f"sizes is {fixed}" + (" without the -1." if free else ".")
    )
  return {n: total // fixed if s == -1 else s for n, s in sizes.items()}


def _axis_types() -> tuple[jax.sharding.AxisType, ...]:
  return (jax.sharding.AxisType.Auto,) * len(AXES)


def make_mesh(axes: Mapping[str, int], devices=None) -> Mesh:
  """A mesh with the axes `data`, `expert`, `model`, in this order.

  Args:
    axes: sizes by name; a missing axis has size 1, one may be -1.
    devices: the devices to use, all of them; also those of a topology
      description. None takes `jax.devices()`. Where they are of several TPU
      slices, `data` goes over them.

  Returns:
    A `Mesh` with Auto axis types.

  Raises:
    ValueError: see `resolve_axes`; or sizes that no layout on the torus of a
      TPU slice gives, or that the slices do not divide.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = resolve_axes(axes, len(devices))
  slices = {getattr(d, "slice_index", 0) for d in devices}
  try:
    if len(slices) > 1:
      return _over_slices(sizes, devices, len(slices))
    return jax.make_mesh(
      tuple(sizes.values()), AXES, axis_types=_axis_types(), devices=devices
    )
  except NotImplementedError as error:
    raise ValueError(
      f"axes={sizes} do not map onto the torus of these {len(devices)} "
      "devices: a size must be a product of torus axes. "
      f"{str(error).split('. ')[0]}."
    ) from error


def _over_slices(sizes: Mapping[str, int], devices, num: int) -> Mesh:
  """A mesh whose `data` axis runs slice after slice."""
  from jax.experimental import mesh_utils

  if sizes["data"] % num:
    raise ValueError(
      f"axes={dict(sizes)} is not allowed: data goes over {num} slices, so its "
      f"size must be a multiple of {num}."
    )
  within = {**sizes, "data": sizes["data"] // num}
  across = [num if name == "data" else 1 for name in AXES]
  found = mesh_utils.create_hybrid_device_mesh(
    [within[name] for name in AXES], across, devices=devices
  )
  return Mesh(found, AXES, axis_types=_axis_types())


def abstract_mesh(
  axes: Mapping[str, int], num_devices: int | None = None
) -> AbstractMesh:
  """The same mesh without devices; enough for specs and tables."""
  sizes = resolve_axes(axes, num_devices)
  return AbstractMesh(tuple(sizes.values()), AXES, axis_types=_axis_types())


def _names(entry: Any) -> tuple[str, ...]:
  if entry is None:
    return ()
  return entry if isinstance(entry, tuple) else (entry,)


def check_spec(
  path: str, shape: Sequence[int], spec: PartitionSpec, mesh: Mesh
) -> PartitionSpec:
  """Returns `spec` if an array of this shape can be laid out so.

  Raises:
    ValueError: more entries than dimensions, an axis that the mesh lacks, an
      axis used twice, or a size that does not divide; with path, shape, axis
      and sizes.
  """
  shape, sizes = tuple(shape), dict(mesh.shape)
  where = f"{path} with shape {shape} and spec {spec}"
  if len(spec) > len(shape):
    raise ValueError(f"{where}: the spec has more entries than dimensions.")
  seen: set[str] = set()
  for dim, entry in enumerate(spec):
    ways = 1
    for name in _names(entry):
      if name not in sizes:
        raise ValueError(f"{where}: no axis {name!r} in the mesh {sizes}.")
      if name in seen:
        raise ValueError(f"{where}: axis {name!r} is used twice.")
      seen.add(name)
      ways *= sizes[name]
    if shape[dim] % ways:
      raise ValueError(
        f"{where}: dimension {dim} of size {shape[dim]} is not a multiple of "
        f"{ways}, the size of axis {entry!r} in the mesh {sizes}."
      )
  return spec


def fsdp(
  axis: str | tuple[str, ...] = "data",
  min_size: int = 2**18,
  base: PartitionSpec | None = None,
) -> SpecFn:
  """A rule that spreads large arrays over `axis`, whatever their shape.

  The largest dimension that divides evenly is sharded; of equal ones the
  last. Where none divides, and for arrays with fewer than `min_size` elements,
  the array keeps the layout `base` (None: replicated).

  Args:
    axis: mesh axis or axes to spread over.
    min_size: number of elements from which an array counts as large.
    base: layout to start from, such as `P(None, "model")`; its sharded
      dimensions stay as they are.

  Returns:
    A function `(shape, mesh) -> PartitionSpec` for use in a rule.
  """
  checks.nonnegative("min_size", min_size)
  base = PartitionSpec() if base is None else base

  def spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    if len(base) > len(shape) or math.prod(shape) < min_size:
      return base
    entries = list(base) + [None] * (len(shape) - len(base))
    ways = math.prod(dict(mesh.shape).get(n, 1) for n in _names(axis))
    free = [
      (size, dim)
      for dim, size in enumerate(shape)
      if entries[dim] is None and size and size % ways == 0
    ]
    if free:
      entries[max(free)[1]] = axis
    return PartitionSpec(*entries)

  return spec


def is_key(leaf: Any) -> bool:
  """Whether a leaf is a typed PRNG key."""
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _twin(path: str, params: Mapping[str, Any]) -> str | None:
  """The parameter whose path is the longest tail of `path`."""
  parts = path.split("/")
  tails = ("/".join(["params", *parts[i:]]) for i in range(1, len(parts) + 1))
  return next((tail for tail in tails if tail in params), None)


def _fixed(path: str, leaf: Any) -> bool:
  """Whether rules never speak of a leaf: step, keys, scalars of the state."""
  is_param = path.split("/")[0] == "params"
  return path == "step" or is_key(leaf) or (leaf.ndim == 0 and not is_param)


def _leading(shape: Sequence[int], twin_shape: Sequence[int]) -> int | None:
  """How many axes a leaf has before those of its parameter; None if others."""
  extra = len(shape) - len(twin_shape)
  stacked = extra > 0 and tuple(shape[extra:]) == tuple(twin_shape)
  return extra if stacked and twin_shape else None


def _spec_of(path, leaf, twin, twin_shape, rules, mesh):
  """`(index of the winning rule or None, spec)` for one leaf."""
  for index, (regex, spec) in enumerate(rules):
    by_twin = twin is not None and re.search(regex, twin) is not None
    if not by_twin and re.search(regex, path) is None:
      continue
    extra = _leading(leaf.shape, twin_shape) if by_twin else None
    if extra:
      spec = spec(tuple(twin_shape), mesh) if callable(spec) else spec
      return index, PartitionSpec(*(None,) * extra, *spec)
    if callable(spec):
      return index, spec(tuple(leaf.shape), mesh)
    if by_twin and tuple(leaf.shape) != tuple(twin_shape):
      return index, PartitionSpec()
    return index, spec
  return None, PartitionSpec()


def _check_rules(rules: Sequence[Rule]) -> None:
  for regex, spec in rules:
    try:
      re.compile(regex)
    except re.error as error:
      raise ValueError(f"rule {regex!r} is no regex: {error}.") from error
    if not isinstance(spec, PartitionSpec) and not callable(spec):
      raise ValueError(
        f"rule {regex!r} has spec={spec!r}: it must be a PartitionSpec or a "
        "function (shape, mesh) -> PartitionSpec."
      )


def _check_hits(rules, winners, ruled) -> None:
  """Every rule must lay out at least one leaf."""
  paths = [p for pair in ruled for p in pair if p is not None]
  for index, (regex, _) in enumerate(rules):
    if index in winners:
      continue
    if any(re.search(regex, path) for path in paths):
      raise ValueError(
        f"rule {index} ({regex!r}) hits only leaves that earlier rules took: "
        f"{[r for r, _ in rules[:index]]}. The first hit wins."
      )
    listed = ", ".join(dict.fromkeys(p for p, _ in ruled[:12]))
    raise ValueError(
      f"rule {index} ({regex!r}) hits nothing in the state; paths are {listed}"
      + (", ..." if len(ruled) > 12 else ".")
    )


def state_shardings(
  abstract_state: Any, mesh: Mesh, rules: Sequence[Rule] = ()
) -> Any:
  """Shardings for a whole `TrainState`, by the rules of this module's head.

  Args:
    abstract_state: the state, or its `jax.eval_shape`.
    mesh: a mesh, abstract or not.
    rules: ordered `(regex, PartitionSpec or function)`.

  Returns:
    The tree of the state with a `NamedSharding` for each leaf.

  Raises:
    ValueError: a rule that hits nothing, or only what earlier rules took; and
      all of `check_spec`.
  """
  rules = tuple(rules)
  _check_rules(rules)
  leaves = trees.flatten(abstract_state)
  params = {p: x for p, x in leaves.items() if p.split("/")[0] == "params"}
  winners: set[int] = set()
  ruled = []

  def sharding(path, leaf):
    if _fixed(path, leaf):
      return NamedSharding(mesh, PartitionSpec())
    twin = None if path in params else _twin(path, params)
    shape = params[twin].shape if twin else None
    ruled.append((path, twin))
    index, spec = _spec_of(path, leaf, twin, shape, rules, mesh)
    winners.add(index)
    return NamedSharding(mesh, check_spec(path, leaf.shape, spec, mesh))

  out = trees.map_with_path(sharding, abstract_state)
  _check_hits(rules, winners, ruled)
  return out


def batch_shardings(
  batch_shapes: Any, mesh: Mesh, batch_spec: PartitionSpec
) -> Any:
  """Shardings for a batch: `batch_spec`, cut to the rank of each leaf.

  Args:
    batch_shapes: the global batch, arrays or shape structs.
    mesh: a mesh, abstract or not.
    batch_spec: partition of the leading axes.

  Returns:
    The tree of the batch with a `NamedSharding` for each leaf.

  Raises:
    ValueError: a leaf that does not divide, named `batch/<path>`.
  """

  def sharding(path, leaf):
    spec = PartitionSpec(*tuple(batch_spec)[: len(leaf.shape)])
    return NamedSharding(
      mesh, check_spec(f"batch/{path}", leaf.shape, spec, mesh)
    )

  return trees.map_with_path(sharding, batch_shapes)


def leaf_bytes(leaf: Any, sharding: NamedSharding | None = None) -> int:
  """Bytes of a leaf: in all, or on one device under `sharding`."""
  if is_key(leaf):
    data = jax.eval_shape(jax.random.key_data, leaf)
    return data.size * data.dtype.itemsize
  shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
  return math.prod(shape) * leaf.dtype.itemsize


def device_bytes(tree: Any, shardings: Any) -> int:
  """Bytes that a tree takes on each device."""
  return sum(jax.tree.leaves(jax.tree.map(leaf_bytes, tree, shardings)))


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return [
    "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip()
    for row in rows
  ]


def table(abstract_state: Any, shardings: Any) -> str:
  """The layout in lines: path, shape, dtype, spec, bytes on one device.

  Args:
    abstract_state: the state, or its `jax.eval_shape`.
    shardings: what `state_shardings` gave for it.

  Returns:
    A text with one line a leaf, then totals by field of the state and in all.
  """
  by_path = trees.flatten(shardings)
  rows = [("path", "shape", "dtype", "spec", "bytes/device")]
  totals: dict[str, list[int]] = {}
  for path, leaf in trees.flatten(abstract_state).items():
    own, full = leaf_bytes(leaf, by_path[path]), leaf_bytes(leaf)
    spec = ", ".join(str(entry) for entry in by_path[path].spec)
    shape = "x".join(str(n) for n in leaf.shape) or "scalar"
    rows.append((path, shape, str(leaf.dtype), f"P({spec})", f"{own:,}"))
    for group in (path.split("/")[0], "all"):
      both = totals.setdefault(group, [0, 0, 0])
      for i, n in enumerate((leaf.size, full, own)):
        both[i] += n
  sums = [("total", "elements", "bytes", "bytes/device")]
  everything = totals.pop("all", [0, 0, 0])
  for group, counts in [*totals.items(), ("all", everything)]:
    sums.append((group, *(f"{n:,}" for n in counts)))
  return "\n".join([*_align(rows), "", *_align(sums)])
