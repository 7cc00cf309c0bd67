"""Simulated users, and A/B tests over the positions that arms share.

Ours: the blog's tests had developers. A user types what stands in the file, so
that arms see the same user at the same places, and only what they offer
differs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from locojax.core import checks
from locojax.methods.completion import metrics


class Offer(NamedTuple):
  """What an editor shows at a place.

  Attributes:
    line: text shown behind the cursor; '' shows nothing.
    items: the names of the list, in order; each is a whole identifier.
    typed: what of an identifier stands before the cursor, for the list.
  """

  line: str = ""
  items: tuple[str, ...] = ()
  typed: str = ""


class Session(NamedTuple):
  """What a user did.

  Attributes:
    events: suggestions that were shown and what became of them.
    typed: characters typed by hand.
    written: characters of the text in all.
    keystrokes: keys pressed: typed, accepting ones, and those that walk down
      the list.
    cost: keystrokes and what reading cost, in keystrokes.
  """

  events: tuple[metrics.Event, ...]
  typed: int
  written: int
  keystrokes: int
  cost: float

  @property
  def saved(self) -> float:
    """Characters written for each keystroke of cost."""
    return self.written / self.cost if self.cost else math.nan


@dataclasses.dataclass(frozen=True)
class SimulatedUser:
  """Types a text, reads what is shown, and takes what is right.

  A suggestion is accepted if it is how the text goes on, for `min_chars` or
  more; an entry of the list if it is the identifier of the text and saves as
  many. He looks at a suggestion once, however often it is shown again.

  Attributes:
    min_chars: below that it is not worth a key.
    visible: how many entries of the list he looks at.
    read_ms: for which a suggestion is looked at before it is taken or not.
    reading_cost: of looking at a new suggestion, in keystrokes.
    skips: how many characters he types before he looks again, where he was
      shown something wrong.
  """

  min_chars: int = 3
  visible: int = 5
  read_ms: float = 1000.0
  reading_cost: float = 0.2
  skips: int = 0

  def __post_init__(self):
    checks.positive_int("min_chars", self.min_chars)
    checks.nonnegative_int("visible", self.visible)
    checks.nonnegative("read_ms", self.read_ms)
    checks.nonnegative("reading_cost", self.reading_cost)
    checks.nonnegative_int("skips", self.skips)

  def _from_list(self, rest: str, offer: Offer) -> tuple[int, int] | None:
    """Characters that an entry writes, and keys to get there."""
    for i, name in enumerate(offer.items[: self.visible]):
      new = name[len(offer.typed) :]
      fits = name.startswith(offer.typed) and rest.startswith(new)
      following = rest[len(new) : len(new) + 1]
      whole = not (following.isalnum() or following == "_")
      if fits and whole and len(new) >= self.min_chars:
        return len(new), i + 1
    return None

  def write(self, text: str, offer: Callable[[int], Offer]) -> Session:
    """Writes a text.

    Args:
      text: what stands in the file.
      offer: what is shown once `n` characters of it are there.
    """
    done = typed = keys = 0
    cost, wait, known = 0.0, 0, None
    events: list[metrics.Event] = []
    while done < len(text):
      shown = offer(done) if not wait else Offer()
      rest = text[done:]
      taken = 0
      if shown.line and done + len(shown.line) != known:
        lines = shown.line.count("\n") + 1
        right = rest.startswith(shown.line)
        right = right and len(shown.line) >= self.min_chars
        cost += self.reading_cost
        events.append(
          metrics.Event(self.read_ms, right, len(shown.line), lines)
        )
        taken = len(shown.line) if right else 0
        known, wait = done + len(shown.line), 0 if right else self.skips + 1
      keys_here = 1
      if not taken and (found := self._from_list(rest, shown)):
        taken, keys_here = found
      if not taken:
        typed += 1
      done += taken or 1
      keys, cost = keys + keys_here, cost + keys_here
      wait = max(0, wait - 1)
    return Session(tuple(events), typed, len(text), keys, cost)


def merge(sessions: Sequence[Session]) -> Session:
  """One session of several."""
  total = lambda name: sum(getattr(s, name) for s in sessions)
  return Session(
    tuple(e for s in sessions for e in s.events),
    *(total(name) for name in ("typed", "written", "keystrokes", "cost")),
  )


class Comparison(NamedTuple):
  """An arm against another, paired by position.

  Attributes:
    mean: of the arm.
    difference: of the means, the arm less the baseline.
    low, high: bounds of the difference.
    num: positions.
  """

  mean: float
  difference: float
  low: float
  high: float
  num: int


def ab_test(
  arms: Mapping[str, Sequence[float]],
  *,
  seed: int,
  baseline: str | None = None,
  level: float = 0.95,
  num_resamples: int = 2000,
) -> dict[str, Comparison]:
  """Each arm against the baseline, with bootstrap intervals.

  Positions are drawn with replacement, the same ones for both arms (Efron
  1979); bounds are quantiles of the difference of means.

  Args:
    arms: name -> a number for each position, the same positions in all.
    seed: of the draws.
    baseline: name of an arm; None is the first.
    level: share of draws between the bounds, in (0, 1).
    num_resamples: draws.

  Returns:
    Name -> comparison, the baseline's with itself as well.

  Raises:
    ValueError: arms of different lengths, or none; a setting.
  """
  checks.between("level", level, 0.0, 1.0)
  checks.positive_int("num_resamples", num_resamples)
  if not arms:
    checks.refuse("arms", dict(arms), "one arm or more")
  baseline = next(iter(arms)) if baseline is None else baseline
  first = np.asarray(checks.lookup("baseline", baseline, dict(arms)), float)
  if not first.size:
    checks.refuse(baseline, list(first), "one position or more")
  rng = np.random.default_rng(checks.seed("seed", seed))
  draws = rng.integers(0, len(first), (num_resamples, len(first)))
  out = {}
  for name, values in arms.items():
    values = np.asarray(values, float)
    checks.same_shape(f"arm {name}", values.shape, baseline, first.shape)
    means = (values - first)[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    difference = float(np.mean(values - first))
    out[name] = Comparison(
      float(values.mean()), difference, float(low), float(high), len(first)
    )
  return out
