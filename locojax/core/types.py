"""The contracts that methods, steps, the loop and experiments share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Any]
Metrics = Mapping[str, Any]

# (params, model_state, batch, key) -> (loss, (metrics, model_state))
LossFn = Callable[
  [PyTree, PyTree, Batch, Array], tuple[Array, tuple[Metrics, PyTree]]
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a run carries from step to step.

  Attributes:
    step: number of updates done, `[]` int32.
    params: trainable parameters, a nested dict with '/'-joined paths.
    model_state: non-trainable model variables (batch statistics, ...).
    opt_state: state of the optax transformation.
    key: typed PRNG key of the run; step k uses `fold_in(key, k)`.
  """

  step: Array
  params: PyTree
  model_state: PyTree
  opt_state: PyTree
  key: Array

  def replace(self, **changes) -> TrainState:
    """Returns a copy with the named fields changed."""
    return dataclasses.replace(self, **changes)

  def advance(
    self, updates: PyTree, opt_state: PyTree, model_state: PyTree
  ) -> TrainState:
    """The state after one update: `params + updates`, dtypes kept.

    The step stays at the largest int32 once it is there.
    """
    last = jnp.iinfo(jnp.int32).max
    params = jax.tree.map(
      lambda p, u: (p + u).astype(p.dtype), self.params, updates
    )
    return self.replace(
      step=jnp.minimum(self.step, last - 1) + 1,
      params=params,
      model_state=model_state,
      opt_state=opt_state,
    )

  def step_key(self) -> Array:
    """The key of the step about to be taken, `fold_in(key, step)`."""
    return jax.random.fold_in(self.key, self.step)


# (state, batch) -> (state, metrics); pure and jittable.
StepFn = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
