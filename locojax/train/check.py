"""`--mode=check`: what a run will be, without data and without devices.

Shapes, the sharding table and bytes per device come from abstract evaluation.
Given the name of a TPU slice, the step is compiled ahead of time for it, which
yields memory per device, the collectives and an estimate of the step time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from locojax.core import checks, trees, types
from locojax.train import collectives as collectives_lib
from locojax.train import flops as flops_lib
from locojax.train import hlo, sharding
from locojax.train import operations as operations_lib
from locojax.train import topology as topology_lib
from locojax.train.experiment import Experiment

count_flops = flops_lib.count_flops

ASSUMPTIONS = (
  "bf16 matrix peak; arguments and outputs move through HBM once, temporaries "
  "twice; ring collectives over one axis of the torus, and between slices too; "
  "all overlap perfectly. A lower bound, not a forecast."
)
# What a compiled step may compute, in analytic counts, where nothing is said.
MAX_OPERATIONS = 1.5


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Lower bounds of the time of a step, in seconds.

  Attributes:
    compute: operations over the peak.
    memory: HBM bytes over the bandwidth.
    network: collective bytes over the bandwidth of the interconnect.
  """

  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    """The largest of the three."""
    return max(self.compute, self.memory, self.network)

  @property
  def limit(self) -> str:
    """The name of the largest term."""
    terms = dataclasses.asdict(self)
    return max(terms, key=terms.get)


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of a step, for one device.

  Attributes:
    memory: bytes by use: arguments, outputs, aliased, temporary, code; those
      in the memory of the host are not among them.
    host_bytes: the sum of those.
    collectives: what the step sends.
    operations: of the compiled program, loops as often as they run.
    operations_ratio: those over the analytic count; None where it is 0.
    xla_bytes: XLA's count of bytes accessed, loop bodies once; None if it does
      not tell.
    roofline: bounds of the step time.
    hbm_bytes: what a device has.
    compiler: version of libtpu.
    seconds: what compiling took.
  """

  memory: Mapping[str, int]
  host_bytes: int
  collectives: tuple[collectives_lib.Collective, ...]
  operations: operations_lib.Operations
  operations_ratio: float | None
  xla_bytes: float | None
  roofline: Roofline
  hbm_bytes: int
  compiler: str
  seconds: float

  @property
  def peak_bytes(self) -> int:
    """Bytes on a device while a step runs: all uses less what is aliased."""
    return sum(self.memory.values()) - 2 * self.memory["aliased"]


@dataclasses.dataclass(frozen=True)
class Report:
  """The outcome of a check that found nothing wrong.

  Attributes:
    axes: sizes of the mesh axes.
    num_params: number of trainable scalars.
    state_bytes: bytes of the state on one device, by field and `all`.
    batch_bytes: bytes of a batch on one device.
    flops: analytic operations of a step over all devices.
    compiled: what the compiler says; None without a topology.
    text: all of it, to print.
  """

  axes: Mapping[str, int]
  num_params: int
  state_bytes: Mapping[str, int]
  batch_bytes: int
  flops: flops_lib.FlopCount
  compiled: Compiled | None
  text: str


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Shapes and shardings of a step."""

  mesh: Any
  state: types.TrainState
  batch: Any
  state_shardings: Any
  batch_shardings: Any


def _in_mesh(mesh) -> contextlib.AbstractContextManager:
  if isinstance(mesh, Mesh):
    return jax.set_mesh(mesh)
  return jax.sharding.use_abstract_mesh(mesh)


def _plan(experiment: Experiment, mesh) -> _Plan:
  key = jax.eval_shape(lambda: jax.random.key(0))
  with _in_mesh(mesh):
    state = jax.eval_shape(experiment.init, key)
  batch = experiment.batch_shapes
  return _Plan(
    mesh=mesh,
    state=state,
    batch=batch,
    state_shardings=sharding.state_shardings(state, mesh, experiment.rules),
    batch_shardings=sharding.batch_shardings(
      batch, mesh, experiment.batch_spec
    ),
  )


def _check_step(experiment: Experiment, plan: _Plan) -> None:
  """The step gives back a state of the same shapes, and a loss."""
  with _in_mesh(plan.mesh):
    after, metrics = jax.eval_shape(experiment.step, plan.state, plan.batch)
  if "loss" not in metrics:
    raise ValueError(
      f"the step's metrics are {sorted(metrics)}: they must have 'loss'."
    )
  if jax.tree.structure(plan.state) != jax.tree.structure(after):
    raise ValueError(
      "the step returns a state of another structure: "
      f"{jax.tree.structure(after)} from {jax.tree.structure(plan.state)}."
    )
  old, new = trees.flatten(plan.state), trees.flatten(after)
  for path, leaf in old.items():
    before, now = (leaf.shape, leaf.dtype), (new[path].shape, new[path].dtype)
    if before != now:
      raise ValueError(
        f"the step turns {path} from shape {before[0]} and dtype {before[1]} "
        f"into shape {now[0]} and dtype {now[1]}: a state must keep both."
      )


def _with_shardings(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


def compile_step(experiment: Experiment, mesh: Mesh) -> jax.stages.Compiled:
  """Compiles the step ahead of time, as `fit` would run it, state donated.

  Args:
    experiment: the experiment.
    mesh: a mesh of real devices or of stand-ins for a TPU slice.

  Returns:
    The compiled step.
  """
  return _compile(experiment, _plan(experiment, mesh))


def _compile(experiment: Experiment, plan: _Plan) -> jax.stages.Compiled:
  platform = plan.mesh.devices.flat[0].platform
  step = jax.jit(
    experiment.step,
    donate_argnums=0,
    out_shardings=(plan.state_shardings, None),
  )
  state = _with_shardings(plan.state, plan.state_shardings)
  batch = _with_shardings(plan.batch, plan.batch_shardings)
  with jax.set_mesh(plan.mesh):
    lowered = step.trace(state, batch).lower(lowering_platforms=(platform,))
    try:
      with warnings.catch_warnings():
        # The persistent cache cannot load programs of a machine that is absent.
        warnings.filterwarnings("ignore", ".*persistent compilation cache.*")
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      if topology_lib.status(error) != "RESOURCE_EXHAUSTED":
        raise
      raise ValueError(
        "the step does not fit the memory of a device, says the compiler: "
        f"{str(error)[:600]}"
      ) from error


def _memory(compiled: jax.stages.Compiled) -> tuple[dict[str, int], int]:
  """Bytes by use on the device, and the sum of those on the host."""
  found = compiled.memory_analysis()
  size = lambda name: getattr(found, f"{name}_size_in_bytes")
  own = {
    "arguments": size("argument"),
    "outputs": size("output"),
    "aliased": size("alias"),
    "temporary": size("temp"),
    "code": size("generated_code"),
  }
  host = size("host_argument") + size("host_output") - size("host_alias")
  return own, host + size("host_temp")


def _told(costs: Any, name: str) -> float | None:
  """A figure of the compiler, which may be absent or negative: unknown."""
  costs = costs[0] if isinstance(costs, (list, tuple)) and costs else costs
  found = (costs or {}).get(name)
  return None if found is None or found < 0 else float(found)


def roofline(
  *,
  flops: float,
  hbm_bytes: float,
  network_bytes: float,
  chip: topology_lib.Chip,
) -> Roofline:
  """Bounds of the step time from the figures of one device.

  Args:
    flops: operations on one device.
    hbm_bytes: bytes it moves to and from its memory.
    network_bytes: bytes it sends to others.
    chip: figures of the device.

  Returns:
    A `Roofline`; see `ASSUMPTIONS`.
  """
  return Roofline(
    compute=flops / chip.flops,
    memory=hbm_bytes / chip.hbm_bandwidth,
    network=network_bytes / chip.ici_bandwidth,
  )


def _analyse(experiment, plan, flops, tpu, hbm_bytes) -> Compiled:
  start = time.perf_counter()
  executable = _compile(experiment, plan)
  seconds = time.perf_counter() - start
  program = hlo.Program(executable.as_text())
  own = flops.total / plan.mesh.size
  memory, host_bytes = _memory(executable)
  moved = memory["arguments"] + memory["outputs"] + 2 * memory["temporary"]
  found = collectives_lib.parse(
    program, dict(plan.mesh.shape), num_slices=tpu.num_slices
  )
  counted = operations_lib.count(program)
  return Compiled(
    memory=memory,
    host_bytes=host_bytes,
    collectives=found,
    operations=counted,
    operations_ratio=counted.total / own if own else None,
    xla_bytes=_told(executable.cost_analysis(), "bytes accessed"),
    roofline=roofline(
      flops=max(own, counted.total),
      hbm_bytes=moved,
      network_bytes=sum(c.traffic for c in found),
      chip=tpu.chip,
    ),
    hbm_bytes=hbm_bytes,
    compiler=f"libtpu {topology_lib.libtpu_version()}",
    seconds=seconds,
  )


def _gib(num: float) -> str:
  return f"{num:,} bytes ({num / topology_lib.GIB:.3f} GiB)"


def check_fits(memory: Mapping[str, int], hbm_bytes: int, where: str) -> None:
  """Bytes by use, summed, are no more than a device has.

  Raises:
    ValueError: they are more; with all the numbers.
  """
  total = sum(memory.values())
  if total > hbm_bytes:
    parts = ", ".join(f"{name} {size:,}" for name, size in memory.items())
    raise ValueError(
      f"{where} does not fit: it needs {_gib(total)} on a device ({parts}), "
      f"and a device has {_gib(hbm_bytes)}."
    )


_ALLOWED = re.compile(r"([\w-]+?)(?: over ([\w,]+))?( outside loops)?")


def _allows(entry: str):
  """A function: does an entry of `allowed_collectives` cover this one?"""
  match = _ALLOWED.fullmatch(entry)
  kind, axes, outside = match.groups() if match else (entry, None, None)
  checks.one_of("allowed_collectives", kind, collectives_lib.KINDS)
  return lambda one: (
    one.kind == kind
    and (axes is None or one.axes == axes)
    and not (outside and one.in_loop)
  )


def _check_collectives(found, allowed: Iterable[str] | None) -> None:
  if allowed is None:
    return
  allowed = tuple(allowed)
  covers = [_allows(entry) for entry in allowed]
  others = [c for c in found if not any(f(c) for f in covers)]
  if others:
    raise ValueError(
      f"allowed_collectives={allowed}, but the step has also\n"
      + collectives_lib.table(others)
    )


def check_operations(
  counted: operations_lib.Operations, analytic: float, limit: float
) -> None:
  """The compiled step does not do much more than what was written.

  A ragged product that became dense, a gather that left its loop, or a step
  that every device computes whole, show here.

  Args:
    counted: of the compiled program, on one device.
    analytic: the share of one device of what was written.
    limit: the most that `counted` may be, in `analytic`.

  Raises:
    ValueError: it does more; with the numbers.
  """
  if counted.total > limit * analytic:
    ratio = counted.total / analytic if analytic else float("inf")
    raise ValueError(
      f"max_operations={limit:g}, but the compiled step does {ratio:.3g} times "
      f"what was written: {counted.total:.4g} operations on a device against "
      f"{analytic:.4g}. Something became dense, left its loop, or is computed "
      "on every device."
    )


def _state_bytes(plan: _Plan) -> dict[str, int]:
  out = {
    field.name: sharding.device_bytes(
      getattr(plan.state, field.name), getattr(plan.state_shardings, field.name)
    )
    for field in dataclasses.fields(plan.state)
  }
  return {**out, "all": sum(out.values())}


def _head(plan: _Plan, flops: flops_lib.FlopCount, name: str) -> list[str]:
  lines = [
    f"mesh {dict(plan.mesh.shape)}, {plan.mesh.size} devices ({name})",
    "",
    sharding.table(plan.state, plan.state_shardings),
    "",
    "batch",
    sharding.table(plan.batch, plan.batch_shardings).split("\n\n")[0],
    "",
    f"operations of a step: {flops.total:.4g} (analytic, all devices)",
  ]
  return lines + [f"  note: {note}" for note in flops.notes]


def _counted(compiled: Compiled, own: float) -> str:
  """The line that holds the compiled operations against the analytic ones."""
  found = compiled.operations
  ratio = compiled.operations_ratio
  line = f"  on one device {own:.4g}; compiled {found.total:.4g}"
  line += "" if ratio is None else f" (ratio {ratio:.3g})"
  if found.kernels:
    line += f"; {found.kernels} runs of kernels whose operations are not told"
  if not found.known:
    line += "; a loop of unknown length counted once"
  return line


def _tail(compiled: Compiled, flops, num_devices) -> list[str]:
  bound, own = compiled.roofline, flops.total / num_devices
  hbm_bytes = compiled.hbm_bytes
  use = f"{compiled.peak_bytes / hbm_bytes:.1%} of {_gib(hbm_bytes)}"
  lines = [
    _counted(compiled, own),
    f"  compiled in {compiled.seconds:.0f} s by {compiled.compiler}",
    "",
    f"memory on a device: {_gib(compiled.peak_bytes)}, {use}",
    *(f"  {name:9} {size:,}" for name, size in compiled.memory.items()),
  ]
  if compiled.host_bytes:
    lines.append(f"memory of the host: {_gib(compiled.host_bytes)}")
  return lines + [
    "",
    "collectives of a step",
    collectives_lib.table(compiled.collectives),
    "",
    f"roofline: a step takes {bound.seconds:.4g} s or more, limited by "
    f"{bound.limit}",
    f"  compute {bound.compute:.4g} s, memory {bound.memory:.4g} s, network "
    f"{bound.network:.4g} s; MFU at most "
    f"{bound.compute / max(bound.seconds, 1e-30):.0%}",
    f"  assumed: {ASSUMPTIONS}",
  ]


def run(
  experiment: Experiment,
  *,
  axes: Mapping[str, int],
  topology: str | None = None,
  num_slices: int | None = None,
  hbm_bytes: int | None = None,
  num_devices: int | None = None,
  allowed_collectives: Iterable[str] | None = None,
  max_operations: float | None = None,
) -> Report:
  """Checks an experiment, and says what a step of it takes.

  Args:
    experiment: what `fit` would run. Its data are not touched.
    axes: mesh axis sizes; a missing one is 1, one may be -1.
    topology: a TPU slice such as `v5e:16x16` to compile for; None stays with
      shapes and tables.
    num_slices: how many of them, joined by the network between slices; `data`
      goes over them. None is 1.
    hbm_bytes: memory of a device; None takes what the compiler lets a program
      have of the chip's.
    num_devices: without a topology, how many devices a -1 in `axes` shares
      out; None reads -1 as 1.
    allowed_collectives: what the compiled step may have: kinds of
      `collectives.KINDS`, or in the words of the table `all-to-all over expert`
      for these axes alone; with `outside loops` behind it not in a loop. None
      allows all. Needs a topology.
    max_operations: how many times the analytic number of operations the
      compiled step may do; None is `MAX_OPERATIONS`. What kernels do is known
      in neither count.

  Returns:
    A `Report`; print its `text`.

  Raises:
    ValueError: a rule that hits nothing, a size that does not divide, a state
      that the step changes in shape, a step that does not fit the memory, a
      collective that is not allowed, more operations than allowed, a slice
      that there is not. With the numbers.
    ImportError: a topology is given and libtpu is not installed.
  """
  if hbm_bytes is not None:
    checks.positive_int("hbm_bytes", hbm_bytes)
  if topology is None and allowed_collectives is not None:
    raise ValueError(
      f"allowed_collectives={tuple(allowed_collectives)} needs a topology: "
      "topology=None compiles nothing."
    )
  if max_operations is not None:
    checks.positive("max_operations", max_operations)
  if topology is None:
    mesh = sharding.abstract_mesh(axes, num_devices)
  else:
    tpu = topology_lib.describe(topology, num_slices or 1)
    mesh = sharding.make_mesh(axes, tpu.devices)
    hbm_bytes = tpu.chip.hbm_bytes if hbm_bytes is None else hbm_bytes
  plan = _plan(experiment, mesh)
  _check_step(experiment, plan)
  state_bytes = _state_bytes(plan)
  batch_bytes = sharding.device_bytes(plan.batch, plan.batch_shardings)
  if hbm_bytes is not None:
    parts = {k: v for k, v in state_bytes.items() if k != "all"}
    parts["batch"] = batch_bytes
    check_fits(parts, hbm_bytes, "the state with a batch")
  with _in_mesh(mesh):
    flops = flops_lib.count(experiment.step, plan.state, plan.batch)
  where = topology or "no devices"
  where = f"{num_slices} x {where}" if (num_slices or 1) > 1 else where
  lines = _head(plan, flops, where)
  compiled = None
  if topology is not None:
    compiled = _analyse(experiment, plan, flops, tpu, hbm_bytes)
    memory = {**compiled.memory, "aliased": -compiled.memory["aliased"]}
    check_fits(memory, hbm_bytes, f"the step on {where}")
    _check_collectives(compiled.collectives, allowed_collectives)
    limit = MAX_OPERATIONS if max_operations is None else max_operations
    check_operations(compiled.operations, flops.total / mesh.size, float(limit))
    lines += _tail(compiled, flops, mesh.size)
  return Report(
    axes=dict(mesh.shape),
    num_params=trees.num_params(plan.state.params),
    state_bytes=state_bytes,
    batch_bytes=batch_bytes,
    flops=flops,
    compiled=compiled,
    text="\n".join(lines),
  )
