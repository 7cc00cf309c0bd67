"""The ledger of a run: each round on the disk right before it is made."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from locojax.core import files, types
from locojax.methods import dp_ftrl

RUN = "run"
LEDGER = "ledger.jsonl"


class Recorder:
  """Writes the release of round k before step k; the journal of a run.

  A run that was stopped makes the same rounds again, which the ledger checks.
  One whose settings, cohorts or noise are not those of the last release is
  refused. To go on all the same, write a `new_tree` into the ledger
  (`PrivacyLedger.resume`) and start from a state with noise of the new key.

  The norm of a tree is known from the state at the tree's first round only,
  which is where it is read, and once after a resume.

  Args:
    path: of the ledger.
    sampler: round -> cohort.
    clip: of the rounds.
    restart: when trees restart; None for one tree.
    release: what is the same in every round (key, multipliers).
    settings: all else that the sum of a round depends on.
    num_rounds: that the noise was made for.
    max_participations, min_sep: declared, which the run must keep to; None for
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
    settings: Mapping[str, Any],
    num_rounds: int,
    max_participations: int | None = None,
    min_sep: int | None = None,
  ):
    self._path, self._sampler = path, sampler
    self._clip, self._restart = clip, restart
    self._settings, self._num_rounds = settings, num_rounds
    self._release = dataclasses.replace(
      release,
      settings=dp_ftrl.settings_hash(settings),
      completed=True if restart is not None and restart.completion else None,
    )
    self._declared = (max_participations, min_sep)
    self._next: int | None = None
    self._tree: dict[str, Any] | None = None

  def check(self, step: int, head: Any) -> None:
    """Refuses a ledger that does not belong to the checkpoint, or this run.

    Args:
      step: of the checkpoint; 0 without one.
      head: of the ledger when it was made; None without one.

    Raises:
      dp_ftrl.LedgerError: the ledger was changed, cut off or exchanged; lacks
        rounds that were made; or has another setting, or other cohorts. Says
        which.
    """
    book = dp_ftrl.PrivacyLedger(self._path)
    is_end = step >= self._num_rounds
    if head is not None:
      book.verify(head, is_end=is_end)
    self._open(book, step)

  def head(self) -> dict[str, Any]:
    """Of the ledger as it is now."""
    if self._next is None:
      return dp_ftrl.PrivacyLedger(self._path).head
    return self._book.head

  def before_step(self, step: int, state: types.TrainState) -> None:
    """Before step `step`; returns when its line is on the disk.

    Raises:
      dp_ftrl.Closed: the noise was not made for so many rounds.
      dp_ftrl.LedgerError: the ledger does not know the rounds before, or knows
        this one with another cohort or setting; the noise of the state is not
        that of the ledger.
      ValueError: a client took part more often than was declared.
    """
    if step >= self._num_rounds:
      raise dp_ftrl.Closed(
        f"round {step} is not allowed: the noise was made for max_rounds="
        f"{self._num_rounds}. More rounds need a run, and an account, of their "
        "own."
      )
    if step != self._next:  # a new run, or a resumed one
      self._open(dp_ftrl.PrivacyLedger(self._path), step)
    self._enter_tree(step, state)
    present = self._present(step)
    self._logs.add(step, self._tree["tree_id"], present)
    k, b = self._declared
    if k is not None:
      self._logs.run.check(max_participations=k, min_sep=b)
    self._book.append(
      dataclasses.replace(
        self._release,
        **self._tree,
        round=step,
        cohort=dp_ftrl.cohort_hash(present),
        max_participations=self._logs.tree.max_participations,
        min_sep=self._logs.tree.min_sep,
      ),
      settings=self._settings,
    )
    self._next = step + 1

  def _open(self, book: dp_ftrl.PrivacyLedger, step: int) -> None:
    """Takes up a ledger that fits, with the participation before `step`."""
    book.resume(RUN, step, policy="replay")
    book.compare(dataclasses.replace(self._release, round=step), self._settings)
    self._logs = book.realised(RUN, self._present, before=step)
    self._book, self._next, self._tree = book, step, None

  def _present(self, step: int):
    found = self._sampler(step)
    return found.clients[found.mask]

  def _enter_tree(self, step: int, state: types.TrainState) -> None:
    """Number and norm of the tree that `step` is in, read once a tree."""
    tree_id, first = (0, 0)
    if self._restart is not None:
      tree_id, first = self._restart.tree_of(step)
    first = max(first, self._book.first_round(RUN))
    if self._tree is None:
      self._check_noise(state)
    elif step != first:
      return
    norm = dp_ftrl.clip_norm_in_force(
      self._clip, state, starts_tree=step == first
    )
    self._tree = {"tree_id": tree_id, "clip_norm": norm}

  def _check_noise(self, state: types.TrainState) -> None:
    """Refuses a state whose noise is not the one that is written down."""
    dp_ftrl.check_open(state)
    noise = dp_ftrl.noise_states(state)
    there = {dp_ftrl.key_fingerprint(n.key) for n in noise}
    here = {self._release.key, self._release.count_key} - {None}
    if there != here and self._release.noise_multiplier:
      raise dp_ftrl.LedgerError(
        f"the noise of the checkpoint has the keys {sorted(there)}, that of "
        f"this run {sorted(here)}: what is released would not be what "
        f"{self._path} says. Set the seed back."
      )


def check_end(path: pathlib.Path, result: Mapping[str, Any]) -> None:
  """Holds the ledger of a finished run against the head in its result.

  Args:
    path: of the ledger.
    result: `result.json` or `diverged.json`; one without a head has nothing to
      compare.

  Raises:
    dp_ftrl.LedgerError: the ledger was changed, cut off, lost or went on.
  """
  if result.get("journal") is not None:
    dp_ftrl.PrivacyLedger(path).verify(result["journal"], is_end=True)


def read(path: pathlib.Path) -> dp_ftrl.PrivacyLedger:
  """A ledger to state privacy from, held against the result beside it.

  Raises:
    OSError: there is no such file.
    dp_ftrl.LedgerError: a malformed line, or it is not that of the result.
  """
  path.open("rb").close()  # a ledger that is not there would be an empty one
  for name in ("result.json", "diverged.json"):
    if (path.parent / name).exists():
      check_end(path, files.read_json(path.parent / name))
  return dp_ftrl.PrivacyLedger(path)
