"""The ledger of a run: each round on the disk right before it is made."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from locojax.core import types
from locojax.methods import dp_ftrl

RUN = "run"


class Recorder:
  """Writes the release of round k before step k; for `Experiment.before_step`.

  The norm of a tree is known from the state at the tree's first round only,
  which is where it is read, and once after a resume. A run that was stopped
  makes the same rounds again, which the ledger checks.

  Args:
    path: of the ledger.
    sampler: round -> cohort.
    clip: of the rounds.
    restart: when trees restart; None for one tree.
    release: what is the same in every round (key, multipliers, settings).
    max_participations, min_sep: declared, which a tree must keep to; None for
      Poisson cohorts, which bound neither.
  """

  def __init__(
    self,
    path: pathlib.Path,
    *,
    sampler: Callable[[int], dp_ftrl.Cohort],
    clip: dp_ftrl.Clip | dp_ftrl.QuantileClip,
    restart: dp_ftrl.RestartPolicy | None,
    release: dp_ftrl.Release,
    max_participations: int | None = None,
    min_sep: int | None = None,
  ):
    self._path, self._sampler = path, sampler
    self._clip, self._restart = clip, restart
    self._release = release
    self._declared = (max_participations, min_sep)
    self._next: int | None = None

  def __call__(self, step: int, state: types.TrainState) -> None:
    """Before step `step`; returns when its line is on the disk.

    Raises:
      dp_ftrl.LedgerError: the ledger does not know the rounds before, or knows
        this one with another cohort or setting.
      ValueError: a client took part more often than was declared.
    """
    tree_id, first = (0, 0)
    if self._restart is not None:
      tree_id, first = self._restart.tree_of(step)
    opens = step != self._next  # a new run, or a resumed one
    if opens:
      self._book = dp_ftrl.PrivacyLedger(self._path)
      self._book.resume(RUN, step, policy="replay")
    if opens or step == first:
      self._start_tree(tree_id, first, step, state)
    present = self._present(step)
    self._log.add(step - first, present)
    k, b = self._declared
    if k is not None:
      self._log.check(max_participations=k, min_sep=b)
    self._book.append(
      dataclasses.replace(
        self._release,
        **self._tree,
        round=step,
        cohort=dp_ftrl.cohort_hash(present),
        max_participations=self._log.max_participations,
        min_sep=self._log.min_sep,
      )
    )
    self._next = step + 1

  def _present(self, step: int):
    found = self._sampler(step)
    return found.clients[found.mask]

  def _start_tree(self, tree_id: int, first: int, step: int, state) -> None:
    """What is the same in a tree, and its participations before `step`."""
    norm = dp_ftrl.clip_norm_in_force(
      self._clip, state, starts_tree=step == first
    )
    self._tree: dict[str, Any] = {"tree_id": tree_id, "clip_norm": norm}
    self._log = dp_ftrl.Log()
    for t in range(first, step):
      self._log.add(t - first, self._present(t))
