"""The accuracy matrix of a continual run, and what is read from it.

a[i, t] is the accuracy on task i after training task t, 0 for t < i. Tasks
count from 0 and weigh the same, however many examples they have.

  average accuracy    A_t = mean over i <= t of a[i, t]
  forgetting          mean over i < t of (max_{s <= t} a[i, s] - a[i, t])
  the same, Chaudhry  mean over i < t of (max_{i <= s < t} a[i, s] - a[i, t])
  backward transfer   mean over i < t of (a[i, t] - a[i, i])
  learning accuracy   mean over i <= t of a[i, i]

The first forgetting is that of the code of L2P (Wang et al. 2022, arXiv
2112.08654), where the maximum has the current column in it, so that it is never
negative; the second is that of Chaudhry et al. (2018, arXiv 1801.10112), which
is negative where a task got better.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks

KINDS = ("official", "chaudhry")
_SLACK = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AccuracyMatrix:
  """Accuracies by task and time; a tree of arrays, so it fits in a state.

  Attributes:
    values: a `[tasks, tasks]` float32; row i is task i, column t the time.
    filled: `[tasks]` bool, the columns that were measured.

  >>> matrix = AccuracyMatrix.empty(2).updated(0, [0.5]).updated(1, [0.25, 1])
  >>> float(matrix.average_accuracy(1)), float(matrix.forgetting(1))
  (0.625, 0.25)
  """

  values: jax.Array
  filled: jax.Array

  @classmethod
  def empty(cls, num_tasks: int) -> AccuracyMatrix:
    """A matrix before the first task.

    Raises:
      ValueError: fewer than 1 task.
    """
    checks.positive_int("num_tasks", num_tasks)
    shape = (num_tasks, num_tasks)
    return cls(jnp.zeros(shape, jnp.float32), jnp.zeros(num_tasks, bool))

  @property
  def num_tasks(self) -> int:
    """The number of tasks, of the whole stream."""
    return self.values.shape[0]

  def updated(self, t: ArrayLike, accuracies: ArrayLike) -> AccuracyMatrix:
    """The matrix with column t measured (again).

    Args:
      t: the task just trained, `[]` integer; may be traced.
      accuracies: in [0, 1], of the tasks 0 to t, `[t + 1]`; or of all, of which
        those after t are left out, for a traced t.

    Raises:
      ValueError: t out of range, another number of accuracies; unless traced,
        an accuracy outside [0, 1] (percent, NaN).
    """
    known = self._check_time(t)
    found = jnp.asarray(accuracies, jnp.float32)
    allowed = {self.num_tasks, int(t) + 1} if known else {self.num_tasks}
    if found.ndim != 1 or found.size not in allowed:
      raise ValueError(
        f"accuracies has shape {found.shape}, which is not allowed: it must "
        f"have one entry for each of {sorted(allowed)} tasks."
      )
    _check_shares(found[: int(t) + 1] if known else found)
    found = jnp.pad(found, (0, self.num_tasks - found.size))
    column = jnp.where(jnp.arange(self.num_tasks) <= t, found, 0.0)
    return AccuracyMatrix(
      self.values.at[:, t].set(column), self.filled.at[t].set(True)
    )

  def average_accuracy(self, t: ArrayLike) -> jax.Array:
    """A_t, `[]`; the head of this file has the equation.

    Args:
      t: `[]` integer; may be traced.

    Raises:
      ValueError: t out of range; unless traced, a column up to t that was not
        measured (where traced, the value is NaN). So do all below.
    """
    seen = jnp.arange(self.num_tasks) <= t
    return self._mean(t, self.values[:, t], seen)

  def forgetting(self, t: ArrayLike, kind: str = "official") -> jax.Array:
    """How much of the best accuracy was lost, `[]`; NaN for t = 0.

    Args:
      t: `[]` integer; may be traced.
      kind: `official` (0 or more) or `chaudhry`; see the head of this file.

    Raises:
      ValueError: an unknown kind, or as `average_accuracy`.
    """
    checks.one_of("kind", kind, KINDS)
    rows = jnp.arange(self.num_tasks)[:, None]
    columns = jnp.arange(self.num_tasks)[None]
    counted = columns <= t
    if kind == "chaudhry":
      counted = (columns < t) & (columns >= rows)
    best = jnp.max(jnp.where(counted, self.values, -jnp.inf), axis=1)
    before = jnp.arange(self.num_tasks) < t
    return self._mean(t, best - self.values[:, t], before)

  def backward_transfer(self, t: ArrayLike) -> jax.Array:
    """How the tasks before t changed since they were learned, `[]`."""
    change = self.values[:, t] - jnp.diagonal(self.values)
    return self._mean(t, change, jnp.arange(self.num_tasks) < t)

  def learning_accuracy(self, t: ArrayLike) -> jax.Array:
    """How well each task was learned when it was new, `[]`."""
    seen = jnp.arange(self.num_tasks) <= t
    return self._mean(t, jnp.diagonal(self.values), seen)

  def summary(self, t: ArrayLike) -> dict[str, jax.Array]:
    """All of them by name, each `[]`."""
    return {
      "average_accuracy": self.average_accuracy(t),
      "forgetting": self.forgetting(t),
      "forgetting_chaudhry": self.forgetting(t, "chaudhry"),
      "backward_transfer": self.backward_transfer(t),
      "learning_accuracy": self.learning_accuracy(t),
    }

  def _check_time(self, t: ArrayLike) -> bool:
    """Whether t is known now; if so it is checked."""
    known = arrays.is_concrete(t)
    if known:
      value = t.item() if hasattr(t, "item") else t
      checks.int_in_range("t", value, 0, self.num_tasks - 1)
    return known

  def _mean(self, t, values, rows) -> jax.Array:
    """The mean over rows; NaN without any, or with a column missing."""
    needed = jnp.arange(self.num_tasks) <= t
    missing = needed & ~self.filled
    if self._check_time(t) and arrays.is_concrete(missing):
      absent = np.flatnonzero(np.asarray(missing)).tolist()
      if absent:
        raise ValueError(
          f"t={int(t)} is not allowed: there are no accuracies after the "
          f"tasks {absent} yet."
        )
    mean = jnp.sum(jnp.where(rows, values, 0.0)) / jnp.sum(rows)
    return jnp.where(jnp.any(missing), jnp.nan, mean)


def _check_shares(accuracies: jax.Array) -> None:
  if not arrays.is_concrete(accuracies):
    return
  accuracies = np.asarray(accuracies)
  low, high = float(accuracies.min()), float(accuracies.max())
  if not (low >= -_SLACK and high <= 1 + _SLACK):
    raise ValueError(
      f"accuracies from {low:g} to {high:g} are not allowed: they must be "
      "shares in [0, 1], not percent."
    )


def forgetting_chaudhry(matrix: AccuracyMatrix, t: ArrayLike) -> jax.Array:
  """mean over i < t of (max_{i <= s < t} a[i, s] - a[i, t]).

  Chaudhry et al. 2018, arXiv 1801.10112, with the maximum over the times since
  the task was learned. It may be negative.

  Args:
    matrix: with the columns up to t.
    t: `[]` integer; may be traced.

  Returns:
    `[]`; NaN for t = 0.
  """
  return matrix.forgetting(t, "chaudhry")
