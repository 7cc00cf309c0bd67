"""Who takes part in which round, and what was realised.

A sampler gives the clients of a round as a function of (seed, round), so a
resumed run asks the same clients. What counts for privacy is what happened: a
`Log` takes the cohorts down and tells k and the least separation, which must
keep to what was declared. Late or dropped clients still count as taking part.
NumPy only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from locojax.core import checks
from locojax.methods.dp_ftrl import releases, sensitivity


class Cohort(NamedTuple):
  """Clients of one round.

  Attributes:
    clients: `[cohort]` int64 ids; 0 where there is none.
    mask: `[cohort]` bool.
  """

  clients: np.ndarray
  mask: np.ndarray


def _padded(clients: np.ndarray, size: int) -> Cohort:
  out, mask = np.zeros(size, np.int64), np.zeros(size, bool)
  out[: len(clients)], mask[: len(clients)] = clients, True
  return Cohort(out, mask)


def _check_sizes(num_clients: int, cohort_size: int) -> None:
  checks.positive_int("num_clients", num_clients)
  checks.positive_int("cohort_size", cohort_size)
  if cohort_size > num_clients:
    raise ValueError(
      f"cohort_size={cohort_size} is not allowed: there are {num_clients} "
      "clients."
    )


def _cyclic(start: int, size: int, num_clients: int) -> np.ndarray:
  """Places `start, start + 1, ...` of an order that goes round and round."""
  return np.arange(start, start + size) % num_clients


def _rng(seed: int, *stream: int) -> np.random.Generator:
  return np.random.default_rng([seed, *stream])


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_clients: int) -> np.ndarray:
  """The clients in the order of an epoch, for all its rounds."""
  order = _rng(seed, epoch).permutation(num_clients)
  order.flags.writeable = False
  return order


class Counts:
  """What was realised in k and the least separation; keeps no rounds.

  >>> counts = Counts()
  >>> counts.add(0, [3, 5]); counts.add(4, [3])
  >>> counts.max_participations, counts.min_sep
  (2, 4)
  """

  def __init__(self):
    self._last: dict[int, int] = {}
    self._count: dict[int, int] = {}
    self._most, self._gap = 0, None
    self.num_rounds = 0

  def add(self, round_index: int, clients: Iterable[int]) -> None:
    """Takes down the clients of the next round.

    Raises:
      ValueError: a round out of order, or a client twice in it.
    """
    if round_index < self.num_rounds:
      raise ValueError(
        f"round_index={round_index} is not allowed: round "
        f"{self.num_rounds - 1} is already in the log."
      )
    clients = releases.client_ids(clients)
    if len(set(clients)) != len(clients):
      raise ValueError(f"round {round_index} has a client twice.")
    for client in clients:
      if client in self._last:
        gap = round_index - self._last[client]
        self._gap = gap if self._gap is None else min(gap, self._gap)
      self._last[client] = round_index
      count = self._count[client] = self._count.get(client, 0) + 1
      self._most = max(self._most, count)
    self.num_rounds = round_index + 1

  @property
  def max_participations(self) -> int:
    """k that was realised, 0 without rounds."""
    return self._most

  @property
  def min_sep(self) -> int:
    """Least difference of two rounds of a client; else all rounds."""
    return max(1, self.num_rounds) if self._gap is None else self._gap

  def check(self, *, max_participations: int, min_sep: int) -> None:
    """Raises ValueError if it does not keep to what was declared."""
    close = self._gap is not None and self._gap < min_sep
    if self.max_participations > max_participations or close:
      raise ValueError(
        f"a client took part {self.max_participations} times, at least "
        f"{self.min_sep} rounds apart: declared were max_participations="
        f"{max_participations} and min_sep={min_sep}."
      )


class Log(Counts):
  """What was realised: the rounds of every client.

  >>> log = Log()
  >>> log.add(0, [3, 5]); log.add(4, [3])
  >>> log.tree_sensitivity(6)
  5
  """

  def __init__(self):
    super().__init__()
    self._rounds: dict[int, list[int]] = {}

  def add(self, round_index: int, clients: Iterable[int]) -> None:
    """As `Counts.add`."""
    clients = releases.client_ids(clients)
    super().add(round_index, clients)
    for client in clients:
      self._rounds.setdefault(client, []).append(round_index)

  def tree_sensitivity(self, num_rounds: int | None = None) -> int:
    """zeta^2 of one tree under the realised rounds: the worst client's."""
    total = self.num_rounds if num_rounds is None else num_rounds
    several = {tuple(r) for r in self._rounds.values()}
    return max((sensitivity.pattern(r, total) for r in several), default=0)


class Trees:
  """What was realised in a run, and in its newest tree.

  Attributes:
    run: over all rounds, whatever their tree.
    tree: of the newest tree, its rounds counted from its first.

  >>> trees = Trees()
  >>> for t, tree_id in ((0, 0), (1, 0), (2, 1)):
  ...   trees.add(t, tree_id, [3])
  >>> trees.run.max_participations, trees.tree.max_participations
  (3, 1)
  """

  def __init__(self):
    self.run, self.tree = Counts(), Counts()
    self._tree_id, self._first = None, 0

  def add(self, round_index: int, tree_id: int, clients: Iterable[int]) -> None:
    """Takes down the clients of the next round, which is of tree `tree_id`."""
    clients = list(clients)
    if tree_id != self._tree_id:
      self.tree, self._tree_id = Counts(), tree_id
      self._first = round_index
    self.run.add(round_index, clients)
    self.tree.add(round_index - self._first, clients)


def logged(sampler, num_rounds: int) -> Log:
  """The log of the first rounds of a sampler."""
  log = Log()
  for t in range(num_rounds):
    cohort = sampler(t)
    log.add(t, cohort.clients[cohort.mask])
  return log


@dataclasses.dataclass(frozen=True)
class ShuffledEpochs:
  """All clients in shuffled order, cohort by cohort, epoch after epoch.

  n clients in cohorts of c have epochs of floor(n / c) rounds. A remainder
  that does not fill a cohort waits for the next epoch. Without reshuffling it
  is the first there, and the order goes on behind it, round and round: every
  client comes back after floor(n / c) or ceil(n / c) rounds, of which the
  lesser is `min_sep`, and takes part at most ceil(T c / n) times in T rounds,
  no more than the ceil(T / min_sep) that `min_sep` allows. With reshuffling
  those who wait are others in each epoch, and a client can be the last of one
  epoch and the first of the next, which is a `min_sep` of 1.

  Attributes:
    num_clients, cohort_size: of all, of a round.
    seed: of the order.
    reshuffle: whether each epoch has an order of its own.
  """

  num_clients: int
  cohort_size: int
  seed: int
  reshuffle: bool = False

  def __post_init__(self):
    _check_sizes(self.num_clients, self.cohort_size)

  @property
  def rounds_per_epoch(self) -> int:
    """Rounds of an epoch."""
    return self.num_clients // self.cohort_size

  @property
  def min_sep(self) -> int:
    """What is guaranteed."""
    return 1 if self.reshuffle else self.rounds_per_epoch

  def __call__(self, round_index: int) -> Cohort:
    """The cohort of a round."""
    epoch, place = 0, round_index
    if self.reshuffle:
      epoch, place = divmod(round_index, self.rounds_per_epoch)
    order = _order(self.seed, epoch, self.num_clients)
    start = place * self.cohort_size
    places = _cyclic(start, self.cohort_size, self.num_clients)
    return _padded(order[places], self.cohort_size)


@dataclasses.dataclass(frozen=True)
class FixedOrder:
  """Clients in the order of their ids, again and again, as centralised code.

  The order goes round and round, as that of `ShuffledEpochs` does.
  """

  num_clients: int
  cohort_size: int

  def __post_init__(self):
    _check_sizes(self.num_clients, self.cohort_size)

  @property
  def min_sep(self) -> int:
    """What is guaranteed."""
    return self.num_clients // self.cohort_size

  def __call__(self, round_index: int) -> Cohort:
    """The cohort of a round."""
    start = round_index * self.cohort_size
    ids = _cyclic(start, self.cohort_size, self.num_clients)
    return _padded(ids, self.cohort_size)


@dataclasses.dataclass(frozen=True)
class PoissonClients:
  """Each client in each round with the rate q, independently of all else.

  What amplification by sampling assumes, and real devices do not do.

  Attributes:
    num_clients: of all.
    rate: q in (0, 1].
    seed: of the draws.
    max_cohort: room of the cohort, which may be more than all clients; a draw
      beyond it is an error, for leaving clients out would not be Poisson.
  """

  num_clients: int
  rate: float
  seed: int
  max_cohort: int

  min_sep = 1

  def __post_init__(self):
    checks.positive("rate", checks.in_range("rate", self.rate, 0.0, 1.0))
    checks.positive_int("num_clients", self.num_clients)
    checks.positive_int("max_cohort", self.max_cohort)

  def __call__(self, round_index: int) -> Cohort:
    """The cohort of a round."""
    u = _rng(self.seed, round_index).random(self.num_clients)
    found = np.flatnonzero(u < self.rate)
    if len(found) > self.max_cohort:
      raise ValueError(
        f"round {round_index} has {len(found)} clients, more than max_cohort="
        f"{self.max_cohort}: make it larger."
      )
    return _padded(found, self.max_cohort)


@dataclasses.dataclass(frozen=True)
class MinSepSampler:
  """Devices that check in by themselves, at most once in a period.

  In each period of `min_sep` rounds a device decides on its own, when it is
  available, to ask for one round, and remembers it: after one participation it
  stays away for `min_sep` rounds. More devices come at some times of day than
  at others. Where more ask than a cohort holds, a random part of them is taken.

  Attributes:
    num_clients, cohort_size: of all, of a round.
    min_sep: b, least difference of two rounds of a device.
    seed: of the availability and the choice.
    max_participations: k, after which a device stays away; None for no bound.
    rounds_per_day: length of the cycle of availability.
    swing: in [0, 1): how much fewer devices are there at night.
  """

  num_clients: int
  cohort_size: int
  min_sep: int
  seed: int
  max_participations: int | None = None
  rounds_per_day: int = 100
  swing: float = 0.5

  def __post_init__(self):
    _check_sizes(self.num_clients, self.cohort_size)
    checks.positive_int("min_sep", self.min_sep)
    checks.positive_int("rounds_per_day", self.rounds_per_day)
    checks.in_range("swing", self.swing, 0.0, 0.99)
    if self.max_participations is not None:
      checks.positive_int("max_participations", self.max_participations)
    if self.min_sep * self.cohort_size > self.num_clients:
      raise ValueError(
        f"min_sep={self.min_sep} is not allowed: {self.num_clients} clients in "
        f"cohorts of {self.cohort_size} last for "
        f"{self.num_clients // self.cohort_size} rounds."
      )
    object.__setattr__(self, "_memory", {})

  def __call__(self, round_index: int) -> Cohort:
    """The cohort of a round; makes those before it if they are not known."""
    memory = self._memory
    for t in range(len(memory), round_index + 1):
      memory[t] = self._next(t)
    return memory[round_index]

  def _next(self, t: int) -> Cohort:
    if t == 0:
      last = np.full(self.num_clients, -self.min_sep, np.int64)
      state = (last, np.zeros(self.num_clients, np.int64))
      object.__setattr__(self, "_state", state)
    last, count = self._state
    rng = _rng(self.seed, t)
    day = 2 * np.pi * t / self.rounds_per_day
    present = 1 - self.swing * (1 - np.cos(day)) / 2
    rate = min(1.0, 1.5 * self.cohort_size * self.min_sep / self.num_clients)
    ask = rng.random(self.num_clients) < rate * present / self.min_sep * 2
    free = t - last >= self.min_sep
    if self.max_participations is not None:
      free &= count < self.max_participations
    found = np.flatnonzero(ask & free)
    if len(found) > self.cohort_size:
      found = rng.choice(found, self.cohort_size, replace=False)
    last[found], count[found] = t, count[found] + 1
    return _padded(np.sort(found), self.cohort_size)
