"""What a ledger says of a round, and which round may follow which.

The rules of a run:

* Its rounds are numbered without a gap, and each is released once with a key. A
  replay is the very same release again.
* All releases with one key have the same settings: data, cohorts, clipping,
  noise, rates, number of rounds. A tree's noise and the participation of its
  clients go on from round to round, so a change in between would be charged as
  if what was before it had not been.
* Within a tree the clipping norm stays, and what was realised only grows.
* Another key must be fresh, and announced (`new_tree`). From there on anything
  may differ, the clients too: the key is a mechanism of its own that begins
  with a fresh tree, and rho of both adds, as if the worst user of each were the
  same one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.methods.dp_ftrl import chain

ABSENT = "(not there)"
# A multiplier that was searched for is not the same on all machines to the last
# bit; the least one is charged.
_REL = 1e-9
_WAYS_OUT = (
  "Set these back; or go on with a new key and a fresh tree "
  "(policy='new_tree'), which charges both parts."
)
_OF_A_KEY = (
  *("noise_multiplier", "num_clients", "mechanism", "count_multiplier"),
  *("count_key", "completed"),
)


def client_ids(clients: Iterable[int]) -> list[int]:
  """Ids as Python integers; 2.7 is refused, not taken for client 2.

  Raises:
    ValueError: an id that is no integer, or beyond int64.
  """
  several = clients if isinstance(clients, np.ndarray) else list(clients)
  return checks.integers("clients", several, np.int64).tolist()


def cohort_hash(clients: Iterable[int]) -> str:
  """16 hex digits that name a set of clients, whatever its order.

  >>> cohort_hash([2, 1]) == cohort_hash([1, 2])
  True
  """
  text = ",".join(map(str, sorted(client_ids(clients))))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_hash(settings: Mapping[str, Any]) -> str:
  """16 hex digits that name settings, whatever their order.

  >>> settings_hash({"a": 1, "b": (2,)}) == settings_hash({"b": [2], "a": 1})
  True
  """
  return chain.digest(json.dumps(plain(settings), sort_keys=True))


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
      (data, sampler, model, rates, number of rounds), so that a branch of a run
      with other settings is not taken for its continuation; None leaves that to
      the caller.
    completed: whether a tree before a restart is filled up with virtual rounds
      to a power of two; None if not.
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
  completed: bool | None = None

  def record(self) -> chain.Record:
    """As it is written; what it has not is left out."""
    fields = dataclasses.asdict(self)
    known = {n: v for n, v in fields.items() if v is not None}
    return {"kind": "release", **known}


def _text(name: str, value: Any) -> None:
  if not isinstance(value, str):
    raise ValueError(f"{name}={value!r} is not allowed: it must be text.")


def _natural(name: str, value: Any) -> None:
  if not isinstance(value, int) or isinstance(value, bool) or value < 0:
    raise ValueError(
      f"{name}={value!r} is not allowed: it must be an integer, 0 or more."
    )


def _flag(name: str, value: Any) -> None:
  if not isinstance(value, bool):
    raise ValueError(f"{name}={value!r} is not allowed: it must be a bool.")


def _mapping(name: str, value: Any) -> None:
  if not isinstance(value, dict):
    raise ValueError(f"{name}={value!r} is not allowed: it must be an object.")


# Kind of record -> its fields; those with a mark may be missing.
_OPTIONAL = "?"
_FIELDS = {
  "release": {
    "run_id": _text,
    "key": _text,
    "tree_id": _natural,
    "round": _natural,
    "noise_multiplier": checks.nonnegative,
    "clip_norm": checks.positive,
    "num_clients": checks.positive,
    "cohort": _text,
    "max_participations": _natural,
    "min_sep": _natural,
    "mechanism": _text,
    "count_multiplier?": checks.nonnegative,
    "count_key?": _text,
    "settings?": _text,
    "completed?": _flag,
  },
  "settings": {"run_id": _text, "hash": _text, "settings": _mapping},
  "new_tree": {
    "run_id": _text,
    "key": _text,
    "first_round": _natural,
    "num_lost": _natural,
  },
  # As `new_tree`, from before it had that name.
  "lost": {
    "run_id": _text,
    "key": _text,
    "first_round": _natural,
    "last_round": _natural,
  },
}


def check_record(record: Mapping[str, Any]) -> None:
  """Raises ValueError if a record is not one of a ledger; says why."""
  kind = record.get("kind")
  if not isinstance(kind, str):
    raise ValueError(f"kind={kind!r} is not allowed: it must be text.")
  fields = checks.lookup("kind", kind, _FIELDS)
  for name, check in fields.items():
    plain = name.removesuffix(_OPTIONAL)
    if plain in record:
      check(plain, record[plain])
    elif name == plain:
      raise ValueError(f"the {kind} has no {name!r}")
  unknown = set(record) - {n.removesuffix(_OPTIONAL) for n in fields} - {"kind"}
  if unknown:
    raise ValueError(f"the {kind} has {sorted(unknown)}, which are not known")
  if kind == "settings" and record["hash"] != settings_hash(record["settings"]):
    raise ValueError("hash and settings do not agree")


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings as a line can hold them; what JSON has not, as text."""

  def one(value):
    if isinstance(value, Mapping):
      return {str(k): one(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
      return [one(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
      return repr(value)
    known = value is None or isinstance(value, str | int | float)
    return value if known else str(value)

  return one(settings)


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
  if isinstance(node, Mapping) and node:
    for name, value in node.items():
      yield from _leaves(f"{prefix}.{name}" if prefix else name, value)
  else:
    yield prefix, node


def _unequal(
  old: Mapping, new: Mapping, *, rel: float = 0.0
) -> dict[str, tuple[Any, Any]]:
  """Dotted names of what differs, with both values."""
  old, new = dict(_leaves("", old)), dict(_leaves("", new))
  pairs = {n: (old.get(n, ABSENT), new.get(n, ABSENT)) for n in {**old, **new}}

  def same(a, b):
    both = isinstance(a, float) and isinstance(b, float)
    return math.isclose(a, b, rel_tol=rel) if both else a == b

  return {n: pairs[n] for n in sorted(pairs) if not same(*pairs[n])}


def keys_of(record: Mapping[str, Any]) -> set[str]:
  """Fingerprints of all noise keys of a release."""
  return {record["key"], record.get("count_key")} - {None}


class Run:
  """The records of one run, in order, and what may follow them.

  Attributes:
    releases: replays of a round counted once.
    key: of the run's current mechanism; None before the first.
    first_round: with this key.
    trouble: why a record that is there should not be; empty if all is well.
  """

  def __init__(self):
    self.releases: list[chain.Record] = []
    self.key: str | None = None
    self.trouble = ""
    self.first_round = 0
    self._settings: dict[str, dict] = {}
    self._rounds: dict[tuple[str, int], chain.Record] = {}
    self._last: chain.Record | None = None  # of the current key

  @property
  def next_round(self) -> int:
    """The round that the current key makes next."""
    return self._last["round"] + 1 if self._last else self.first_round

  @property
  def is_unused(self) -> bool:
    """Whether the current key has no release yet."""
    return self._last is None

  def of_key(self) -> list[chain.Record]:
    """The releases with the current key."""
    return [r for r in self.releases if r["key"] == self.key]

  def knows_settings(self, name: str) -> bool:
    """Whether the settings of a hash are written down."""
    return name in self._settings

  def differences(
    self, record: Mapping[str, Any], settings: Mapping[str, Any] | None
  ) -> dict[str, tuple[Any, Any]]:
    """What differs from the last release, with both values.

    Args:
      record: of a release with the same key or another.
      settings: those of its hash, as far as the caller has them.
    """
    last = self.releases[-1]
    names = ("key", *_OF_A_KEY)
    pick = lambda r: {n: r[n] for n in names if n in r}
    out = _unequal(pick(last), pick(record), rel=_REL)
    there, here = last.get("settings"), record.get("settings")
    if there == here:
      return out
    old, new = self._settings.get(there), self._settings.get(here, settings)
    if old is None or new is None:
      return {**out, "settings": (there or ABSENT, here or ABSENT)}
    return {**out, **_unequal(old, new)}

  def check(
    self, record: Mapping[str, Any], settings: Mapping[str, Any] | None = None
  ) -> None:
    """Refuses a release that does not go on from the last one.

    Raises:
      chain.LedgerError: names what differs, with both values.
    """
    if self.key is None or (record["key"] == self.key and self.is_unused):
      return
    found = self.differences(record, settings) if self.releases else {}
    if found:
      listed = ", ".join(
        f"{n} ({a!r} there, {b!r} here)" for n, (a, b) in found.items()
      )
      raise chain.LedgerError(
        f"round {record['round']} differs from round "
        f"{self.releases[-1]['round']} of run {record['run_id']!r} in what "
        f"privacy depends on: {listed}. {_WAYS_OUT}"
      )
    if record["key"] != self.key:
      raise chain.LedgerError(
        f"round {record['round']} with the key {record['key']} is not allowed: "
        f"run {record['run_id']!r} goes on with the key {self.key}."
      )

  def is_replay(self, record: Mapping[str, Any]) -> bool:
    """Whether the very same release is there already.

    Raises:
      chain.LedgerError: the round is there, otherwise.
    """
    known = self._rounds.get((record["key"], record["round"]))
    if known is None:
      return False
    listed = ", ".join(_unequal(known, record, rel=_REL))
    if not listed:
      return True
    raise chain.LedgerError(
      f"round {record['round']} with the key {record['key']} was released for "
      f"another cohort or setting ({listed}): its noise must not be used again."
    )

  def check_next(self, record: Mapping[str, Any]) -> None:
    """Refuses a release that is not the next one, or forgets the tree's past.

    Raises:
      chain.LedgerError: says what.
    """
    at, expected = record["round"], self.next_round
    if at != expected:
      raise chain.LedgerError(
        f"round {at} is not allowed: round {expected} of run "
        f"{record['run_id']!r} is not in the ledger."
      )
    last = self._last
    if last is None or last["tree_id"] < record["tree_id"]:
      return
    if last["tree_id"] > record["tree_id"]:
      raise chain.LedgerError(
        f"round {at} of tree {record['tree_id']} is not allowed: tree "
        f"{last['tree_id']} has begun."
      )
    if last["clip_norm"] != record["clip_norm"]:
      raise chain.LedgerError(
        f"clip_norm={record['clip_norm']} of round {at} is not allowed: it "
        f"is {last['clip_norm']} in this tree."
      )
    less = record["max_participations"] < last["max_participations"]
    if less or (_gap(record) or math.inf) > (_gap(last) or math.inf):
      raise chain.LedgerError(
        f"round {at} has max_participations={record['max_participations']} and "
        f"min_sep={record['min_sep']}, the round before "
        f"{last['max_participations']} and {last['min_sep']}: participation "
        "before it was forgotten."
      )

  def take(self, record: chain.Record) -> None:
    """Adds a record of this run."""
    kind = record["kind"]
    if kind == "settings":
      self._settings[record["hash"]] = record["settings"]
    elif kind == "release":
      self.key, self._last = record["key"], record
      self.releases.append(record)
      self._rounds[record["key"], record["round"]] = record
    else:
      self.key, self._last = record["key"], None
      self.first_round = record["first_round"]

  def read(self, record: chain.Record) -> None:
    """Adds a record that is in a file, and notes if it should not be there."""
    if record["kind"] == "release" and not self.trouble:
      try:
        self.check(record)
        self.check_next(record)
      except chain.LedgerError as error:
        self.trouble = str(error).removesuffix(_WAYS_OUT).strip()
    self.take(record)


def _gap(record: Mapping[str, Any]) -> int | None:
  """Least separation in the tree; None until somebody came back."""
  return record["min_sep"] if record["max_participations"] > 1 else None
