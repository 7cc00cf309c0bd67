"""What a learner has after a task: accuracies, and which prompts were chosen.

Every example is classified by itself. Beside that stands what the released code
does: the examples of a batch, all of one task and in their order, vote on the
prompts of all of them, which tells the model the task.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.l2p import learners
from locojax.data import pipeline
from locojax.methods import continual, l2p

Arrays = Mapping[str, np.ndarray]


class Predictor:
  """The predictions of a learner, compiled once.

  Args:
    learner: any.
    batch_size: of the evaluation.
  """

  def __init__(self, learner: learners.Learner, batch_size: int):
    self._learner, self._size = learner, batch_size
    pool = learner.model.pool
    self.pool_size = 0
    if isinstance(pool, l2p.PromptPoolConfig):
      self.pool_size = pool.pool_size

  @functools.cached_property
  def _alone(self):
    return jax.jit(self._learner.logits)

  @functools.cached_property
  def _voted(self):
    def run(state, batch):
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That it leaks is why it is measured.
        out = self._learner.outputs(state, batch, eval_batchwise=True)
      return out["logits"]

    return jax.jit(run)

  @functools.cached_property
  def _chosen(self):
    run = lambda s, b: self._learner.outputs(s, b)["selection"].ids
    return jax.jit(run)

  def _over(self, run, state, data: Arrays) -> np.ndarray:
    """Rows for all examples, batch after batch in their order."""
    batches = pipeline.padded_batches(data, batch_size=self._size)
    parts = [np.asarray(run(state, b))[b["mask"] != 0] for b in batches]
    return np.concatenate(parts)

  def logits(self, state, data: Arrays, *, batchwise: bool = False):
    """`[n, C]` float32.

    Args:
      state: of the learner.
      data: `image`, `label`, and `query` if there are cached ones.
      batchwise: whether the batch votes.
    """
    run = self._voted if batchwise else self._alone
    return self._over(run, state, data)

  def histogram(self, state, data: Arrays) -> np.ndarray:
    """How often each prompt is chosen, `[M]` integers."""
    ids = self._over(self._chosen, state, data)
    return np.bincount(ids.reshape(-1), minlength=self.pool_size)


def _accuracy(logits, labels, allowed) -> float:
  masked = np.where(np.asarray(allowed), logits, -np.inf)
  return float((masked.argmax(-1) == labels).mean())


def after(
  predictor: Predictor,
  state: Any,
  tests: list[Arrays],
  class_ids: tuple[tuple[int, ...], ...],
  task: int,
  num_classes: int,
) -> dict[str, Any]:
  """Everything that is kept of a learner after a task.

  Args:
    predictor: of the learner.
    state: after the task.
    tests: test examples of every task, of those to come too.
    class_ids: classes of every task.
    task: the last one trained.
    num_classes: C.

  Returns:
    `all`, `seen` and `own`: accuracies on each task among all classes, among
    those seen so far, and among those of its own test examples; `batchwise`:
    the first with the vote; `histogram` `[T][M]` of the prompts that each
    task's test examples choose. The last two only with a pool.
  """
  every = jnp.ones(num_classes, bool)
  seen = continual.classes_seen(class_ids, task, num_classes)
  found: dict[str, Any] = {"all": [], "seen": [], "own": []}
  for test in tests:
    logits = predictor.logits(state, test)
    found["all"].append(_accuracy(logits, test["label"], every))
    found["seen"].append(_accuracy(logits, test["label"], seen))
    own = np.isin(np.arange(num_classes), test["label"])
    found["own"].append(_accuracy(logits, test["label"], own))
  if predictor.pool_size:
    voted = [predictor.logits(state, t, batchwise=True) for t in tests]
    found["batchwise"] = [
      _accuracy(v, t["label"], every) for v, t in zip(voted, tests)
    ]
    found["histogram"] = [predictor.histogram(state, t).tolist() for t in tests]
  return found
