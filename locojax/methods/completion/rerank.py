"""The engine's list with the model's names on top.

The blog: the top three suggestions of the model that are also in the list of
the semantic engine are moved to its top.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from locojax.core import checks

SELECTS = ("intersect_then_top", "top_then_intersect")
Item = TypeVar("Item")


def rerank(
  items: Sequence[Item],
  tokens: Sequence[str | None],
  k: int = 3,
  *,
  select: str = "intersect_then_top",
  name: Callable[[Item], str] = str,
  probabilities: Sequence[float] | None = None,
  min_probability: float = 0.0,
  only_up: bool = False,
) -> list[Item]:
  """Moves what the model suggests to the top; a permutation of the list.

  Nothing is added or taken away, and with no token in the list nothing moves.
  All items of one name (overloads) move together, in their order.

  Args:
    items: of the engine, in its order.
    tokens: of the model, best first; None and repetitions count for nothing.
    k: how many names are moved at most.
    select: 'intersect_then_top' takes the first k that are in the list;
      'top_then_intersect' takes those of the first k that are.
    name: of an item.
    probabilities: of the tokens, for `min_probability`.
    min_probability: tokens below are left out.
    only_up: whether names stay that would not come higher than they are.

  Returns:
    The items in their new order.

  Raises:
    ValueError: k below 1; an unknown `select`; a probability outside [0, 1].

  >>> rerank(["abs", "add", "any"], ["any", "zip"])
  ['any', 'abs', 'add']
  """
  checks.positive_int("k", k)
  checks.one_of("select", select, SELECTS)
  checks.in_range("min_probability", min_probability, 0.0, 1.0)
  if probabilities is not None:
    checks.same_shape(
      "probabilities", (len(probabilities),), "tokens", (len(tokens),)
    )
    tokens = [t for t, p in zip(tokens, probabilities) if p >= min_probability]
  names = [name(item) for item in items]
  rank: dict[str, int] = {}
  for i, found in enumerate(names):
    rank.setdefault(found, i)
  wanted = list(dict.fromkeys(t for t in tokens if t is not None))
  if select == "top_then_intersect":
    wanted = wanted[:k]
  wanted = [t for t in wanted if t in rank][:k]
  if only_up:
    wanted = [t for i, t in enumerate(wanted) if i < rank[t]]
  place = {t: i for i, t in enumerate(wanted)}
  last = len(wanted)
  order = sorted(range(len(items)), key=lambda i: place.get(names[i], last))
  return [items[i] for i in order]
