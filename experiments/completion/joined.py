"""Model and engine together, measured on held-out files."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.completion.places import Place
from experiments.completion.workspace import Workspace
from locojax.methods import completion
from locojax.methods.completion import Offer

# What is shown: the engine's list or the re-ranked one, and which line.
ARMS = {
  "engine": (False, ""),
  "rerank": (True, ""),
  "line": (False, "unchecked"),
  "checked": (False, "checked"),
  "rerank_checked": (True, "checked"),
  "continued": (True, "continued"),
}


def mean(values: Sequence[Any]) -> float | None:
  """The mean of numbers; None for none."""
  found = [v for v in values if v is not None and not math.isnan(v)]
  return float(np.mean(found)) if found else None


def lines(model: Any, places: Sequence[Place]) -> dict[str, Any]:
  """How well the rest of a line, and the name at the cursor, are known."""
  exact, any_, similar, ranks, first = [], [], [], [], []
  for place in places:
    e = place.example
    found = model.lines(e.prefix, e.suffix, e.language)
    texts = [s.text for s in found] or [""]
    exact.append(completion.exact_match(texts[0], e.target))
    any_.append(any(completion.exact_match(t, e.target) for t in texts))
    similar.append(
      completion.edit_similarity(texts[0].rstrip(), e.target.rstrip())
    )
    if place.name is not None:
      names = model.names(e.prefix, e.suffix, e.language)
      names = [n.text for n in names][:10]
      ranks.append(completion.reciprocal_rank(names, place.name))
      first.append(completion.in_first(names, place.name, 1))
  return {
    "exact_match": mean(exact),
    "any_match": mean(any_),
    "edit_similarity": mean(similar),
    "name_mrr": mean(ranks),
    "name_top1": mean(first),
    "positions": len(exact),
  }


def ranks(
  model: Any, places: Sequence[Place], space: Workspace, *, k: int, visible: int
) -> dict[str, Any]:
  """What re-ranking does to the place of the true name in engines' lists."""
  before, after, typed = [], [], {n: [] for n in ("b1", "a1", "bv", "av")}
  listed = 0
  for place in places:
    e = place.example
    text = e.prefix + e.suffix
    with space.opened(place.file, text, len(e.prefix)) as document:
      items = () if document is None else document.names()
    listed += bool(items)
    if place.name not in items:
      continue
    names = model.names(e.prefix, e.suffix, e.language)
    names = [n.text for n in names]
    ranked = completion.rerank(items, names, k)
    before.append(items.index(place.name))
    after.append(ranked.index(place.name))
    least = functools.partial(
      completion.typed_before_accept, place.name, items, k=k
    )
    typed["b1"].append(least())
    typed["a1"].append(least(names))
    typed["bv"].append(least(visible=visible))
    typed["av"].append(least(names, visible=visible))
  if not before:
    return {"lists": listed, "usable": 0, "positions": len(places)}
  old, new = np.array(before), np.array(after)
  accepted = (old < visible) | (new < visible)
  clean = lambda x: None if math.isnan(x) else x
  all_ = completion.rank_changes(old, new)
  taken = completion.rank_changes(old[accepted], new[accepted])
  return {
    "positions": len(places),
    "lists": listed,
    "usable": len(before),
    "better": all_.better,
    "worse": all_.worse,
    "accepted_better": clean(taken.better),
    "accepted_worse": clean(taken.worse),
    "mrr_before": mean(1 / (old + 1)),
    "mrr_after": mean(1 / (new + 1)),
    "typed_before": mean(typed["b1"]),
    "typed_after": mean(typed["a1"]),
    "typed_before_visible": mean(typed["bv"]),
    "typed_after_visible": mean(typed["av"]),
  }


def checks(
  model: Any,
  places: Sequence[Place],
  space: Workspace,
  judge: Workspace,
  *,
  timeout: float,
) -> dict[str, Any]:
  """What checks do to the first suggestion, in files without errors.

  Bad is a suggestion in which the judge finds an error of any of the kinds.
  """
  bad, dropped, truth_dropped, unchecked = [], [], [], 0
  for place in places:
    e = place.example
    with space.opened(place.file, place.file.text, 0) as document:
      if document is None or not document.is_clean():
        continue
    found = model.lines(e.prefix, e.suffix, e.language)
    text = e.prefix + e.suffix
    with space.opened(place.file, text, len(e.prefix)) as document:
      check = document.checker(timeout=timeout)
      truth_dropped.append(not check(e.target).kept)
      if not found:
        continue
      said = check(found[0].text)
      unchecked += not said.checked
      dropped.append(not said.kept)
    if judge is space:  # It would say the same again.
      bad.append(not said.kept)
      continue
    with judge.opened(place.file, text, len(e.prefix)) as document:
      judged = None if document is None else document.checker(timeout=60.0)
      kept = said.kept if judged is None else judged(found[0].text).kept
      bad.append(not kept)
  rates = completion.compile_rates(bad, dropped)
  clean = lambda x: None if math.isnan(x) else x
  return {
    "bad_before": clean(rates.before),
    "filtered": clean(rates.filtered),
    "false_filtering": clean(rates.false_filtering),
    "bad_after": clean(rates.after),
    "truth_dropped": mean(truth_dropped),
    "unchecked": unchecked,
    "suggestions": len(bad),
    "positions": len(truth_dropped),
  }


class _Typing:
  """What arms show while one line is typed; asked once for all of them."""

  def __init__(self, model, place: Place, space: Workspace, k, timeout):
    self.model, self.place, self.space = model, place, space
    self.k, self.timeout = k, timeout
    self._known: dict[int, dict[str, Offer]] = {}

  def worth_asking(self, num: int) -> bool:
    """At the beginnings of names and signs, and behind two letters."""
    text = self.place.example.target[:num]
    typed = completion.typed(text, self.place.example.language)
    return len(typed) in (0, 2)

  def offers(self, num: int) -> dict[str, Offer]:
    """What every arm shows once `num` characters are there."""
    if num not in self._known:
      self._known[num] = self._ask(num)
    return self._known[num]

  def _ask(self, num: int) -> dict[str, Offer]:
    e = self.place.example
    prefix = e.prefix + e.target[:num]
    typed = completion.typed(prefix, e.language)
    start = len(prefix) - len(typed)
    text = prefix[:start] + e.suffix
    with self.space.opened(self.place.file, text, start) as document:
      items = () if document is None else document.names()
    items = tuple(n for n in items if n.startswith(typed))
    names = [n.text for n in self.model.names(prefix, e.suffix, e.language)]
    ranked = tuple(completion.rerank(items, names, self.k))
    found = self.model.lines(prefix, e.suffix, e.language)
    more = []
    if ranked and hasattr(self.model, "continue_focused"):
      more = self.model.continue_focused(
        prefix, e.suffix, e.language, ranked[0]
      )
    checked, continued = self._checked(prefix, found, more)
    lines_ = {
      "": "",
      "unchecked": found[0].text if found else "",
      "checked": checked,
      "continued": continued or checked,
    }
    return {
      arm: Offer(lines_[line], ranked if first else items, typed)
      for arm, (first, line) in ARMS.items()
    }

  def _checked(self, prefix: str, *lists) -> list[str]:
    """Of each list the first suggestion that passes; '' if none does."""
    e = self.place.example
    text = prefix + e.suffix
    with self.space.opened(self.place.file, text, len(prefix)) as document:
      if document is None:
        return [found[0].text if found else "" for found in lists]
      check = document.checker(timeout=self.timeout)
      known = functools.cache(lambda line: check(line).kept)
      return [
        next((s.text for s in found if known(s.text)), "") for found in lists
      ]


def users(
  model: Any,
  places: Sequence[Place],
  space: Workspace,
  *,
  user: completion.SimulatedUser,
  k: int,
  timeout: float,
  seed: int,
) -> list[dict[str, Any]]:
  """Simulated users who write the same lines, arm by arm."""
  sessions: dict[str, list[completion.Session]] = {arm: [] for arm in ARMS}
  for place in places:
    typing = _Typing(model, place, space, k, timeout)

    def offer(arm: str, num: int, typing=typing) -> Offer:
      return typing.offers(num)[arm] if typing.worth_asking(num) else Offer()

    for arm in ARMS:
      shown: Callable[[int], Offer] = functools.partial(offer, arm)
      sessions[arm].append(user.write(place.example.target, shown))
  costs = {
    arm: [s.cost / s.written for s in found] for arm, found in sessions.items()
  }
  against = completion.ab_test(costs, seed=seed) if places else {}
  out = []
  for arm, comparison in against.items():
    whole = completion.merge(sessions[arm])
    acceptance = completion.acceptance_rate(whole.events)
    out.append(
      {
        "arm": arm,
        "cost_per_char": comparison.mean,
        "difference": comparison.difference,
        "low": comparison.low,
        "high": comparison.high,
        "typed_share": whole.typed / whole.written,
        "acceptance": None if math.isnan(acceptance) else acceptance,
        "shown": len(whole.events),
        "texts": comparison.num,
      }
    )
  return out


def _predicted(model: Any, place: Place, max_lines: int):
  """Scores of the lines that the model adds, and whether each is right.

  A line is right if it is, and all before it are.
  """
  e = place.example
  found = completion.multi_line(
    lambda prefix, suffix: next(
      iter(model.lines(prefix, suffix, e.language)), None
    ),
    e.prefix,
    "",
    thresholds=[0.0],
    max_lines=max_lines,
  )
  wanted, right, out = e.target.split("\n"), True, []
  for i, line in enumerate(found):
    same = i < len(wanted) and completion.exact_match(
      line.text, wanted[i].rstrip("\r")
    )
    right = right and same
    out.append((line.confidence, right))
  return out


def several(
  model: Any,
  validation: Sequence[Place],
  test: Sequence[Place],
  *,
  precision: float,
  max_lines: int,
) -> dict[str, Any]:
  """Several lines with thresholds learnt on validation files.

  Thresholds are fitted line by line, each where the lines before were shown.
  """
  learnt = [_predicted(model, p, max_lines) for p in validation]
  thresholds: list[float] = []
  for i in range(max_lines):
    shown = [x for x in learnt if len(x) > i and _passes(x, thresholds, i)]
    if not shown:
      break
    thresholds.append(
      completion.fit_threshold(
        [x[i][0] for x in shown], [x[i][1] for x in shown], precision
      )
    )
  thresholds.append(math.inf)
  found = [_predicted(model, p, max_lines) for p in test]
  num = [
    next(
      (i for i in range(len(x)) if not _passes(x, thresholds, i + 1)), len(x)
    )
    for x in found
  ]
  right = [x[n - 1][1] for x, n in zip(found, num) if n]
  first = [x[0] for x in found if x]
  curve = completion.precision_coverage(*zip(*first)) if first else []
  return {
    "coverage": mean([n > 0 for n in num]),
    "precision": mean(right),
    "lines_shown": mean([n for n in num if n]),
    "several_shown": mean([n > 1 for n in num]),
    "target_precision": precision,
    "positions": len(test),
    "thresholds": [t for t in thresholds if t != math.inf],
    "curve": curve,
  }


def _passes(lines_, thresholds, num: int) -> bool:
  """Whether the first `num` lines reach their thresholds."""
  return all(
    lines_[i][0] >= thresholds[min(i, len(thresholds) - 1)] for i in range(num)
  )
