"""How good suggestions are: on held-out code, and by what users did with them.

Definitions of the blog where it has them; section names in brackets below say
what is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from locojax.core import checks
from locojax.methods.completion import rerank as rerank_lib

SEEN_MS = 750.0
CLASSES = ("all", "single_line", "multi_line")


def exact_match(suggestion: str, target: str) -> bool:
  """Whether both are the same but for blanks at their ends."""
  return suggestion.rstrip() == target.rstrip()


def levenshtein(a: str, b: str) -> int:
  """The least number of insertions, deletions and replacements."""
  if not a or not b:
    return len(a) + len(b)
  codes = np.frombuffer(b.encode("utf-32-le"), np.uint32)
  places = np.arange(len(b) + 1)
  row = places.copy()
  for i, char in enumerate(a):
    new = np.empty_like(row)
    new[0] = i + 1
    new[1:] = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(char)))
    # Insertions run along the row.
    row = np.minimum.accumulate(new - places) + places
  return int(row[-1])


def edit_similarity(a: str, b: str) -> float:
  """1 - Levenshtein distance over the longer length; 1 for two empty texts.

  Svyatkovskiy et al. 2020, arXiv 2005.08025, section 7.
  """
  longest = max(len(a), len(b))
  return 1.0 if not longest else 1.0 - levenshtein(a, b) / longest


def reciprocal_rank(names: Sequence[str | None], target: str) -> float:
  """1 / rank of the target among names, best first; 0 if it is not there."""
  return next((1 / i for i, n in enumerate(names, 1) if n == target), 0.0)


def in_first(names: Sequence[str | None], target: str, k: int) -> bool:
  """Whether the target is among the first k names."""
  checks.positive_int("k", k)
  return target in list(names)[:k]


class CompileRates(NamedTuple):
  """What checks do to suggestions that would not compile.

  Attributes:
    before: P(bad).
    filtered: P(dropped | bad).
    false_filtering: P(dropped | good).
    after: P(bad | kept).
  """

  before: float
  filtered: float
  false_filtering: float
  after: float


def compile_rates(bad: Sequence[bool], dropped: Sequence[bool]) -> CompileRates:
  """The rates over suggestions; NaN where there are none to count.

  Args:
    bad: whether each would not compile.
    dropped: whether each was dropped.

  >>> round(compile_rates([True] * 8 + [False] * 92,
  ...   [True] * 6 + [False] * 2 + [True] * 2 + [False] * 90).filtered, 2)
  0.75
  """
  bad, dropped = np.asarray(bad, bool), np.asarray(dropped, bool)
  checks.same_shape("dropped", dropped.shape, "bad", bad.shape)
  mean = lambda x: float(x.mean()) if x.size else math.nan
  return CompileRates(
    before=mean(bad),
    filtered=mean(dropped[bad]),
    false_filtering=mean(dropped[~bad]),
    after=mean(bad[~dropped]),
  )


class Event(NamedTuple):
  """A suggestion that was shown.

  Attributes:
    visible_ms: how long it was visible.
    accepted: whether it was accepted.
    chars: its length.
    lines: its number of lines; 1 is single-line, more is multi-line.
  """

  visible_ms: float
  accepted: bool
  chars: int
  lines: int


def _of(events: Sequence[Event], which: str) -> list[Event]:
  checks.one_of("which", which, CLASSES)
  keep = {"all": lambda e: True, "single_line": lambda e: e.lines == 1}
  keep["multi_line"] = lambda e: e.lines > 1
  return [e for e in events if keep[which](e)]


def acceptance_rate(
  events: Sequence[Event],
  which: str = "all",
  *,
  seen_ms: float = SEEN_MS,
  count_early: bool = False,
) -> float:
  """Accepted over shown, of those visible for more than 750 ms.

  Args:
    events: shown suggestions.
    which: one of `CLASSES`.
    seen_ms: what is visible for exactly this long is out.
    count_early: whether those that were accepted sooner count as well.

  Returns:
    NaN if there are none.
  """
  found = [
    e
    for e in _of(events, which)
    if e.visible_ms > seen_ms or (count_early and e.accepted)
  ]
  return float(np.mean([e.accepted for e in found])) if found else math.nan


def chars_per_accept(events: Sequence[Event], which: str = "all") -> float:
  """The mean length of what was accepted, whenever; NaN if nothing was."""
  found = [e.chars for e in _of(events, which) if e.accepted]
  return float(np.mean(found)) if found else math.nan


def fraction_added(
  events: Sequence[Event], typed: int, which: str = "all"
) -> float:
  """Share of all new characters that were accepted ones of a class.

  Args:
    events: shown suggestions.
    typed: characters that were typed by hand.
    which: one of `CLASSES`; the denominator has those of all.
  """
  checks.nonnegative_int("typed", typed)
  accepted = lambda of: sum(e.chars for e in _of(events, of) if e.accepted)
  total = accepted("all") + typed
  return accepted(which) / total if total else math.nan


class RankChanges(NamedTuple):
  """Shares of positions where the true name came higher, lower, or neither."""

  better: float
  worse: float
  equal: float


def rank_changes(before: Sequence[int], after: Sequence[int]) -> RankChanges:
  """Shares over positions; ranks from 0. NaN if there are none."""
  before, after = np.asarray(before), np.asarray(after)
  checks.same_shape("after", after.shape, "before", before.shape)
  if not before.size:
    return RankChanges(math.nan, math.nan, math.nan)
  mean = lambda x: float(np.mean(x))
  return RankChanges(
    mean(after < before), mean(after > before), mean(after == before)
  )


def typed_before_accept(
  target: str,
  items: Sequence[str],
  tokens: Sequence[str | None] = (),
  *,
  visible: int = 1,
  k: int = 3,
) -> int | None:
  """The least number of characters after which the target can be picked.

  After j characters, the list and the model's names are narrowed to those that
  begin with them, and ranked anew.

  Args:
    target: the name that is wanted.
    items: names of the engine, in its order.
    tokens: names of the model, best first; none leaves the engine's order.
    visible: how many of the first items count.
    k: as of `rerank`.

  Returns:
    None if the target is not in the list.
  """
  checks.positive_int("visible", visible)
  if target not in items:
    return None
  for j in range(len(target) + 1):
    keep = lambda n, j=j: n is not None and n.startswith(target[:j])
    ranked = rerank_lib.rerank(
      list(filter(keep, items)), list(filter(keep, tokens)), k
    )
    if target in ranked[:visible]:
      return j
  return len(target)
