"""What an experiment hands to the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

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


class Journal(Protocol):
  """What a run writes down beside its checkpoints, such as a privacy ledger.

  Every checkpoint and `result.json` hold the journal's head, so that a journal
  that was changed, shortened or exchanged is found when the folder is next
  opened. All methods are called on every process that has a journal.
  """

  def before_step(self, step: int, state: types.TrainState) -> None:
    """Writes what must be on the disk before step `step` is made.

    `step` is the number of updates done, of a resumed run too. It may read the
    state, which waits for the step before, and must neither change nor keep it;
    its time counts as the step's.
    """

  def head(self) -> Any:
    """Names all that is written down so far; anything that JSON can hold."""

  def check(self, step: int, head: Any) -> None:
    """Refuses a folder whose journal does not agree with its checkpoint.

    Args:
      step: of the checkpoint that the run goes on from, or is finished with;
        0 for a fresh run.
      head: what `head` said when that checkpoint was made; None for a fresh
        run, and for a checkpoint that has none.

    Raises:
      ValueError: it does not agree; says how and what to do.
    """


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
    journal: what the run writes down beside its checkpoints; None for nothing.
    diagnose: called on every process with a state whose loss or parameters are
      not finite, before that is raised. It may raise an error of its own that
      says why; None knows of no cause but the training itself.
    programs: functions that the loop has jitted for this experiment. One made
      of it by `dataclasses.replace` shares them, so that the stages of a
      pipeline that differ in data and length alone are traced once.
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
  journal: Journal | None = None
  diagnose: Callable[[types.TrainState], None] | None = None
  programs: dict[Any, Callable] = dataclasses.field(
    default_factory=dict, compare=False, repr=False
  )
