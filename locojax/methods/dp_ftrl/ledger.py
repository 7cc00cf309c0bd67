"""What was released: an append-only record to state privacy from.

A line is written and forced to disk *before* the release that it is of. If a
run then stops between ledger and checkpoint, the ledger is ahead, and the noise
of the rounds in between may have been seen with the data of one cohort. Going
on would use the same noise with whatever cohort comes, and the difference of
two releases with equal noise shows the data. `resume` refuses that, and names
the two ways out.

Lines are JSON, each with the hash of the line before (`chain`); a checkpoint
keeps the `head`, with which a changed or lost end is found too. What may follow
what is in `releases`: with one key nothing may change that privacy or noise
depends on, and with a fresh key everything may. Keys and clients are never
written, only their hashes; who took part is drawn again and held against them
(`realised`), so that a participation is charged as it was recorded or not at
all. The settings of a run are written in full, once, for people to compare.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from locojax.core import checks
from locojax.methods.dp_ftrl import (
  accounting,
  chain,
  participation,
  releases,
  sensitivity,
)

POLICIES = ("refuse", "replay", "new_tree")

Sensitivity = Callable[[int, int, int], float]


def _realised(part: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
  """k and b of a tree; until somebody came back, `min_sep` says nothing."""
  part = list(part)
  k = max(r["max_participations"] for r in part)
  gaps = [r["min_sep"] for r in part if r["max_participations"] > 1]
  return k, min(gaps, default=len(part))


class PrivacyLedger:
  """The ledger in a file.

  Args:
    path: made with its folder when the first line is written. A last line that
      was torn while it was written was never followed by a release, and is left
      out; `verify` tells where that cannot be.

  Raises:
    chain.LedgerError: a malformed line, or lines that were changed, lost or
      reordered; names file and line.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self._chain = chain.Chain(self.path, releases.check_record)
    self._runs: dict[str, releases.Run] = {}
    # Fingerprint -> the run and the updates' key that it was used with.
    self._owners: dict[str, tuple[str, str]] = {}
    for record in self.records:
      self._run(record["run_id"]).read(record)
      self._own(record)

  def _run(self, run_id: str) -> releases.Run:
    return self._runs.setdefault(run_id, releases.Run())

  def _own(self, record: Mapping[str, Any]) -> None:
    if record["kind"] == "release":
      for key in releases.keys_of(record):
        self._owners.setdefault(key, (record["run_id"], record["key"]))

  def _write(self, record: Mapping[str, Any]) -> None:
    self._chain.append(record)
    written = self._chain.records[-1]
    self._run(written["run_id"]).take(written)
    self._own(written)

  @property
  def records(self) -> list[dict[str, Any]]:
    """All records, oldest first."""
    return self._chain.records

  @property
  def releases(self) -> list[dict[str, Any]]:
    """The releases, replays of a round counted once."""
    return [r for r in self.records if r["kind"] == "release"]

  @property
  def head(self) -> dict[str, Any]:
    """Names the whole content (`records`, `hash`); belongs into a checkpoint.

    It does not tell what is in the ledger.
    """
    return self._chain.head

  def verify(self, head: Mapping[str, Any], *, is_end: bool = False) -> None:
    """Refuses a ledger that does not go on from a checkpoint's `head`.

    Args:
      head: what `head` was when the checkpoint was made. More records may have
        come since: their rounds are ahead, see `resume`.
      is_end: whether the run was finished then, so that none may.

    Raises:
      chain.LedgerError: lines were changed, cut off or lost, or another ledger
        is in the place of this one.
    """
    self._chain.verify(head, is_end=is_end)

  def next_round(self, run_id: str) -> int:
    """The first round of a run that is not in the ledger.

    After `new_tree`: that is not there with the new key.
    """
    return self._run(run_id).next_round

  def first_round(self, run_id: str) -> int:
    """The first round with the current key: 0, or that of a `new_tree`."""
    return self._run(run_id).first_round

  def compare(
    self,
    release: releases.Release,
    settings: Mapping[str, Any] | None = None,
  ) -> None:
    """Refuses a release whose setting is not that of the last one.

    Cohort, tree, norm and participation are not looked at.

    Args:
      release: with the number of a round.
      settings: of `release.settings`; to name what differs.

    Raises:
      chain.LedgerError: names what differs, with both values, and the way out.
    """
    plain = None if settings is None else releases.plain(settings)
    self._sound(release.run_id).check(release.record(), plain)
    self._check_keys(release)

  def append(
    self,
    release: releases.Release,
    *,
    settings: Mapping[str, Any] | None = None,
  ) -> None:
    """Writes a release, and returns when it is on the disk.

    The very same release again (a replay) adds no line.

    Args:
      release: what is about to be released.
      settings: what `release.settings` is the hash of; written before the first
        release with it.

    Raises:
      chain.LedgerError: another release of this round; another setting, norm of
        the tree or participation than that of the release before; a key of
        another run, or of updates and counts alike; a round that was left out.
      ValueError: a field of the release is out of range.
    """
    record = release.record()
    releases.check_record(record)
    self.compare(release, settings)
    run = self._run(release.run_id)
    if run.is_replay(record):
      return
    run.check_next(record)
    if settings is not None and not run.knows_settings(release.settings):
      self._write(_settings_record(release, settings))
    self._write(record)

  def _check_keys(self, release: releases.Release) -> None:
    if release.count_key == release.key:
      raise chain.LedgerError(
        f"count_key={release.count_key!r} is not allowed: it must not be that "
        "of the updates' noise."
      )
    mine = (release.run_id, release.key)
    for key in releases.keys_of(release.record()):
      run_id, _ = owner = self._owners.get(key, mine)
      if owner != mine:
        raise chain.LedgerError(
          f"the key {key} is that of run {run_id!r}, or of its other noise: "
          "noise must not be used twice. Take a fresh key."
        )

  def _sound(self, run_id: str) -> releases.Run:
    """A run whose records follow the rules.

    Raises:
      chain.LedgerError: they do not, so that no account of them is right.
    """
    run = self._run(run_id)
    if run.trouble:
      raise chain.LedgerError(
        f"{self.path} has releases that no account covers: {run.trouble}"
      )
    return run

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
        checks. `new_tree`, also where it is not ahead: the run goes on with a
        new key, a fresh tree and, perhaps, other settings; the lost rounds are
        charged.
      new_key: fingerprint of the new key, for `new_tree`.

    Returns:
      The releases that are ahead of the checkpoint, which `replay` must repeat;
      empty if there are none.

    Raises:
      chain.LedgerError: the ledger is ahead, and the policy does not say what
        to do; the ledger is behind; or the new key is not new.
    """
    checks.one_of("policy", policy, POLICIES)
    run = self._sound(run_id)
    known = run.next_round
    if next_round > known:
      raise chain.LedgerError(
        f"the checkpoint is at round {next_round}, the ledger at {known}: "
        f"rounds were released that {self.path} does not have."
      )
    ahead = [r for r in run.of_key() if r["round"] >= next_round]
    if policy == "new_tree":
      self._start_key(run_id, next_round, new_key, len(ahead))
      return []
    if not ahead or policy == "replay":
      return ahead
    raise chain.LedgerError(
      f"the ledger is ahead of the checkpoint: rounds {next_round} to "
      f"{known - 1} of run {run_id!r} may have been released. Their noise "
      "must not meet other data. Either policy='replay': make these rounds "
      "again with the very same cohorts; or policy='new_tree': go on with a "
      "new key and a fresh tree, and the lost rounds are charged."
    )

  def _start_key(self, run_id, next_round, new_key, num_lost) -> None:
    run = self._run(run_id)
    if run.is_unused and (run.key, run.first_round) == (new_key, next_round):
      return  # said already, and nothing came of it
    taken = set(self._owners) | {r.get("key") for r in self.records}
    if new_key is None or new_key in taken:
      raise chain.LedgerError(
        f"new_key={new_key!r} is not allowed: it must be the fingerprint of a "
        "key that is not in the ledger."
      )
    self._write(
      {
        "kind": "new_tree",
        "run_id": run_id,
        "key": new_key,
        "first_round": next_round,
        "num_lost": num_lost,
      }
    )

  def realised(
    self,
    run_id: str,
    clients_of: Callable[[int], Iterable[int]],
    *,
    before: int,
  ) -> participation.Trees:
    """Who took part so far, as the ledger recorded it; to go on from.

    The ledger has hashes of cohorts, not clients. So the cohorts are asked for
    again, and each must be the recorded one.

    Args:
      run_id: of the run; the rounds with its current key count.
      clients_of: round -> the clients who took part.
      before: the round to go on with; those from there on do not count.

    Raises:
      chain.LedgerError: a cohort is not the recorded one, or participated more
        than was recorded; names the round.
    """
    out = participation.Trees()
    for record in self._sound(run_id).of_key():
      at = record["round"]
      if at >= before:
        break
      clients = list(clients_of(at))
      if releases.cohort_hash(clients) != record["cohort"]:
        raise chain.LedgerError(
          f"the cohort of round {at} is not the one that {self.path} has: its "
          "participation would be charged as that of others. Bring back data "
          "and sampler as they were; or go on with a new key and a fresh tree "
          "(policy='new_tree')."
        )
      out.add(at, record["tree_id"], clients)
      _check_recorded(record, out.tree)
    return out

  def segments(self, run_id: str) -> list[list[dict[str, Any]]]:
    """The releases of a run by (key, tree): each is one mechanism."""
    out: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for r in self._run(run_id).releases:
      out.setdefault((r["key"], r["tree_id"]), []).append(r)
    return list(out.values())

  def statement(
    self,
    run_id: str,
    *,
    delta: float,
    squared_sensitivity: Sensitivity | Mapping[str, Sensitivity] | None = None,
  ) -> dict[str, float]:
    """rho and eps of all that was released, lost rounds among it.

    Each tree is charged for the participations that were realised within it, at
    most k and `min_sep` apart, and for the count of adaptive clipping where
    there is one. rho of trees, and of keys, adds, as if the worst user of each
    were the same.

    Args:
      run_id: of the run.
      delta: in (0, 1).
      squared_sensitivity: (rounds, participations at most, least
        separation) -> squared sensitivity of one mechanism; needed for those
        that are not trees. Several: by the name of the mechanism.

    Raises:
      chain.LedgerError: no releases of this run; a mechanism that is not known;
        releases that do not follow the rules, so that no account is right.
    """
    self._sound(run_id)
    parts = self.segments(run_id)
    if not parts:
      raise chain.LedgerError(f"{self.path} has no releases of run {run_id!r}.")
    measures = _measures(parts, squared_sensitivity)
    last = {part[0]["key"]: part for part in parts}
    rho = total = 0.0
    for part in parts:
      length = len(part)
      if part[0].get("completed") and part is not last[part[0]["key"]]:
        length = 1 << (length - 1).bit_length()
      k, b = _realised(part)
      squared = measures[part[0]["mechanism"]](length, k, b) if k else 0
      total += squared
      rho += _rho(part, squared)
    return {
      "num_rounds": sum(map(len, parts)),
      "num_trees": len(parts),
      "squared_sensitivity": total,
      "rho": rho,
      "delta": delta,
      "eps_exact": accounting.zcdp_to_eps(rho, delta),
      "eps_rdp": accounting.zcdp_to_eps(rho, delta, method="rdp"),
    }


def _settings_record(release, settings) -> dict[str, Any]:
  return {
    "kind": "settings",
    "run_id": release.run_id,
    "hash": release.settings,
    "settings": releases.plain(settings),
  }


def _check_recorded(
  record: Mapping[str, Any], found: participation.Counts
) -> None:
  """Refuses a record that says less than what is found."""
  k = record["max_participations"]
  wide = found.max_participations > 1 and record["min_sep"] > found.min_sep
  if k < found.max_participations or wide:
    raise chain.LedgerError(
      f"round {record['round']} is recorded with max_participations={k} and "
      f"min_sep={record['min_sep']}, but it was {found.max_participations} and "
      f"{found.min_sep}: the ledger says less than what was spent."
    )


def _measures(parts, squared_sensitivity) -> Mapping[str, Sensitivity]:
  """Sensitivity of each mechanism that there is."""
  names = {part[0]["mechanism"] for part in parts}
  if callable(squared_sensitivity):
    given = dict.fromkeys(names - {"tree"}, squared_sensitivity)
  else:
    given = squared_sensitivity or {}
  known = {"tree": sensitivity.tree, **given}
  if names - set(known):
    raise chain.LedgerError(
      f"the mechanisms {sorted(names - set(known))} are not trees: give their "
      "squared_sensitivity."
    )
  return known


def _rho(part: Iterable[Mapping[str, Any]], squared: float) -> float:
  """rho of a tree at the least noise in it."""
  worst = min(
    accounting.total_noise_multiplier(
      r["noise_multiplier"], r.get("count_multiplier")
    )
    for r in part
  )
  if not worst:
    return float("inf")
  return accounting.zcdp(squared, worst) if squared else 0.0
