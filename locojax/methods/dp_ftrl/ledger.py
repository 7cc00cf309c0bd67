"""What was released: an append-only record to state privacy from.

A line is written and forced to disk *before* the release that it is of. If a
run then stops between ledger and checkpoint, the ledger is ahead, and the noise
of the rounds in between may have been seen with the data of one cohort. Going
on would use the same noise with whatever cohort comes, and the difference of
two releases with equal noise shows the data. `resume` refuses that, and names
the two ways out.

Lines are JSON, each with the hash of the line before, so that nothing is
changed or left out unnoticed. Keys are never written, only their fingerprints.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from locojax.core import checks
from locojax.methods.dp_ftrl import accounting, sensitivity

POLICIES = ("refuse", "replay", "new_tree")
_FIRST = "0" * 16


class LedgerError(ValueError):
  """The ledger and what is to be done do not agree."""


def cohort_hash(clients: Iterable[int]) -> str:
  """16 hex digits that name a set of clients, whatever its order.

  >>> cohort_hash([2, 1]) == cohort_hash([1, 2])
  True
  """
  text = ",".join(map(str, sorted(int(c) for c in clients)))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_hash(settings: Mapping[str, Any]) -> str:
  """16 hex digits that name settings, whatever their order.

  >>> settings_hash({"a": 1, "b": (2,)}) == settings_hash({"b": [2], "a": 1})
  True
  """
  return _digest(json.dumps(settings, sort_keys=True))


@dataclasses.dataclass(frozen=True)
class Release:
  """One round, as it is written down before it is released.

  Attributes:
    run_id: of the training run.
    key: fingerprint of the noise key.
    tree_id: which tree of the run.
    round: of the run, from 0.
    noise_multiplier, clip_norm: z and C of the updates in this tree.
    num_clients: m, the public number that sums are divided by.
    cohort: `cohort_hash` of who took part.
    max_participations, min_sep: realised within this tree, up to and with this
      round. A tree is one mechanism; who comes back in another one is charged
      by the sum over trees.
    mechanism: whose noise it is; `statement` knows `tree`.
    count_multiplier: noise multiplier of the count of adaptive clipping, which
      has a tree beside that of the updates; None without it.
    count_key: fingerprint of the count's noise key.
    settings: `settings_hash` of all else that the sum of a round depends on
      (data, model, rates), so that a branch of a run with other settings is
      not taken for a replay; None leaves that to the caller.
  """

  run_id: str
  key: str
  tree_id: int
  round: int
  noise_multiplier: float
  clip_norm: float
  num_clients: float
  cohort: str
  max_participations: int
  min_sep: int
  mechanism: str = "tree"
  count_multiplier: float | None = None
  count_key: str | None = None
  settings: str | None = None


def _keys(record: Mapping[str, Any]) -> set[str]:
  return {record["key"], record.get("count_key")} - {None}


def _realised(part: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
  """k and b of a tree; until somebody came back, `min_sep` says nothing."""
  part = list(part)
  k = max(r["max_participations"] for r in part)
  gaps = [r["min_sep"] for r in part if r["max_participations"] > 1]
  return k, min(gaps, default=len(part))


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _line(record: Mapping[str, Any], before: str) -> str:
  return json.dumps({**record, "before": before}, sort_keys=True)


class PrivacyLedger:
  """The ledger in a file.

  Args:
    path: made with its folder if it is not there. A last line that was cut off
      while it was written was never followed by a release, and is dropped.

  Raises:
    LedgerError: lines that were changed, lost or reordered.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self.records: list[dict[str, Any]] = []
    self._head = _FIRST
    if self.path.exists():
      self._read()

  def _read(self) -> None:
    text = self.path.read_text()
    lines = text.split("\n")
    whole, rest = lines[:-1], lines[-1]
    for number, line in enumerate(whole, 1):
      try:
        record = json.loads(line)
      except json.JSONDecodeError as error:
        raise LedgerError(f"{self.path}, line {number}: {error}") from error
      if record.pop("before", None) != self._head:
        raise LedgerError(
          f"{self.path}, line {number}: it does not follow the line before; "
          "the ledger was changed."
        )
      self.records.append(record)
      self._head = _digest(line)
    if rest:
      with self.path.open("r+") as f:
        f.truncate(len(text.encode()) - len(rest.encode()))
        f.flush()
        os.fsync(f.fileno())

  def _write(self, record: Mapping[str, Any]) -> None:
    line = _line(record, self._head)
    is_new = not self.path.exists()
    with self.path.open("a") as f:
      f.write(line + "\n")
      f.flush()
      os.fsync(f.fileno())
    if is_new:  # its name in the folder must last as well
      folder = os.open(self.path.parent, os.O_RDONLY)
      try:
        os.fsync(folder)
      finally:
        os.close(folder)
    self.records.append(dict(record))
    self._head = _digest(line)

  @property
  def releases(self) -> list[dict[str, Any]]:
    """The releases, replays of a round counted once."""
    return [r for r in self.records if r["kind"] == "release"]

  @property
  def head(self) -> str:
    """Names the whole content; belongs into a checkpoint."""
    return self._head

  def next_round(self, run_id: str) -> int:
    """The first round of a run that is not in the ledger."""
    rounds = [r["round"] for r in self.releases if r["run_id"] == run_id]
    return max(rounds, default=-1) + 1

  def append(self, release: Release) -> None:
    """Writes a release, and returns when it is on the disk.

    The very same release again (a replay) adds no line.

    Raises:
      LedgerError: another release of this round; a key of another run, or of
        updates and counts alike; a round that was left out.
    """
    fields = dataclasses.asdict(release)
    known = {n: v for n, v in fields.items() if v is not None}
    record = {"kind": "release", **known}
    mine = _keys(record)
    if release.count_key == release.key:
      raise LedgerError(
        f"count_key={release.count_key!r} is not allowed: it must not be that "
        "of the updates' noise."
      )
    for other in self.releases:
      if other["run_id"] != release.run_id and mine & _keys(other):
        raise LedgerError(
          f"the key {min(mine & _keys(other))} is that of run "
          f"{other['run_id']!r}: noise must not be used twice. Take a fresh "
          "key."
        )
      same_node = other["key"] == release.key
      same_round = other["round"] == release.round
      if same_node and same_round and other["run_id"] == release.run_id:
        if other == record:
          return
        raise LedgerError(
          f"round {release.round} with the key {release.key} was released for "
          "another cohort or setting: its noise must not be used again."
        )
    expected = self.next_round(release.run_id)
    if release.round > expected:
      raise LedgerError(
        f"round {release.round} is not allowed: round {expected} of run "
        f"{release.run_id!r} is not in the ledger."
      )
    self._write(record)

  def resume(
    self,
    run_id: str,
    next_round: int,
    *,
    policy: str = "refuse",
    new_key: str | None = None,
  ) -> list[dict[str, Any]]:
    """What must be done before a run goes on from a checkpoint.

    Args:
      run_id: of the run.
      next_round: the round that the checkpoint would make next.
      policy: if the ledger is ahead. `refuse`: an error. `replay`: the caller
        makes the rounds again with the very same cohorts, which `append`
        checks. `new_tree`: the run goes on with a new key and a fresh tree, and
        the lost rounds are charged.
      new_key: fingerprint of the new key, for `new_tree`.

    Returns:
      The releases that are ahead of the checkpoint, which `replay` must repeat;
      empty if there are none.

    Raises:
      LedgerError: the ledger is ahead, and the policy does not say what to do;
        the ledger is behind; or the new key is not new.
    """
    checks.one_of("policy", policy, POLICIES)
    known = self.next_round(run_id)
    if next_round > known:
      raise LedgerError(
        f"the checkpoint is at round {next_round}, the ledger at {known}: "
        f"rounds were released that {self.path} does not have."
      )
    mine = [r for r in self.releases if r["run_id"] == run_id]
    ahead = [r for r in mine if r["round"] >= next_round]
    if not ahead or policy == "replay":
      return ahead
    if policy == "refuse":
      raise LedgerError(
        f"the ledger is ahead of the checkpoint: rounds {next_round} to "
        f"{known - 1} of run {run_id!r} may have been released. Their noise "
        "must not meet other data. Either policy='replay': make these rounds "
        "again with the very same cohorts; or policy='new_tree': go on with a "
        "new key and a fresh tree, and the lost rounds are charged."
      )
    if new_key is None or any(new_key in _keys(r) for r in self.releases):
      raise LedgerError(
        f"new_key={new_key!r} is not allowed: it must be the fingerprint of a "
        "key that is not in the ledger."
      )
    self._write(
      {
        "kind": "lost",
        "run_id": run_id,
        "key": new_key,
        "first_round": next_round,
        "last_round": known - 1,
      }
    )
    return []

  def segments(self, run_id: str) -> list[list[dict[str, Any]]]:
    """The releases of a run by (key, tree): each is one mechanism."""
    out: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for r in self.releases:
      if r["run_id"] == run_id:
        out.setdefault((r["key"], r["tree_id"]), []).append(r)
    return list(out.values())

  def statement(
    self,
    run_id: str,
    *,
    delta: float,
    squared_sensitivity: Callable[[int, int, int], float] | None = None,
  ) -> dict[str, float]:
    """rho and eps of all that was released, lost rounds among it.

    Each tree is charged for the participations that were realised within it, at
    most k and `min_sep` apart, and for the count of adaptive clipping where
    there is one. rho of trees adds, as if the worst user of each were the same.

    Args:
      run_id: of the run.
      delta: in (0, 1).
      squared_sensitivity: (rounds, k, b) -> zeta^2 of one mechanism; needed for
        mechanisms other than trees.

    Raises:
      LedgerError: no releases of this run, or a mechanism that is not known.
    """
    parts = self.segments(run_id)
    if not parts:
      raise LedgerError(f"{self.path} has no releases of run {run_id!r}.")
    others = {r["mechanism"] for part in parts for r in part} - {"tree"}
    if others and squared_sensitivity is None:
      raise LedgerError(
        f"the mechanisms {sorted(others)} are not trees: give their "
        "squared_sensitivity."
      )
    measure = squared_sensitivity or sensitivity.tree
    rho = total = 0.0
    for part in parts:
      squared = measure(len(part), *_realised(part))
      total += squared
      worst = min(
        accounting.total_noise_multiplier(
          r["noise_multiplier"], r.get("count_multiplier")
        )
        for r in part
      )
      rho += accounting.zcdp(squared, worst) if worst else float("inf")
    return {
      "num_rounds": sum(map(len, parts)),
      "num_trees": len(parts),
      "squared_sensitivity": total,
      "rho": rho,
      "delta": delta,
      "eps_exact": accounting.zcdp_to_eps(rho, delta),
      "eps_rdp": accounting.zcdp_to_eps(rho, delta, method="rdp"),
    }
