"""What an experiment hands to the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from locojax.core import types


@dataclasses.dataclass(frozen=True)
class Eval:
  """An evaluation that the loop runs every so many steps, and at 0 and the end.

  Attributes:
    every: number of steps between two runs.
    run: `TrainState -> {name: float}`; called on every process.
  """

  every: int
  run: Callable[[types.TrainState], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that `fit` needs, and nothing about where it came from.

  Attributes:
    init: `key -> TrainState` at step 0; pure, jitted by the loop.
    step: `(TrainState, batch) -> (TrainState, metrics)`; pure. `metrics` has
      the name `loss`. Its values are `metrics.Mean` or scalars.
    batches: `start -> iterator` of host-local NumPy batches `start, start+1,
      ...`; batch k is a function of (seed, k) alone.
    num_steps: number of updates in all.
    batch_shapes: the *global* batch as a tree of `jax.ShapeDtypeStruct`; what
      `--mode=check` compiles for, without data.
    rules: ordered `(regex, PartitionSpec)` for the paths of the state; a
      function `(shape, mesh) -> PartitionSpec` may stand for the latter.
    batch_spec: partition of the leaves of a batch, leading axes first.
    evals: evaluations by name.
    examples_per_step: what `examples/s` counts.
    flops_per_step: analytic number of floating-point operations of a step, for
      MFU; None leaves MFU out.
    before_step: `(k, state)`, called on every process right before step k, for
      what must be on the disk before the step is made (a privacy ledger). k is
      the number of updates done, of a resumed run too. It may read the state,
      which waits for the step before, and must neither change nor keep it; its
      time counts as the step's. None: nothing is called.
  """

  init: Callable[[jax.Array], types.TrainState]
  step: types.StepFn
  batches: Callable[[int], Iterator[types.Batch]]
  num_steps: int
  batch_shapes: Any
  rules: tuple[tuple[str, Any], ...] = ()
  batch_spec: jax.sharding.PartitionSpec = dataclasses.field(
    default_factory=lambda: jax.sharding.PartitionSpec("data")
  )
  evals: Mapping[str, Eval] = dataclasses.field(default_factory=dict)
  examples_per_step: int = 1
  flops_per_step: float | None = None
  before_step: Callable[[int, types.TrainState], None] | None = None
