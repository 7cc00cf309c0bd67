"""Questions of an evaluation that training texts hold: n-grams in common.

As in Brown et al. 2020 (arXiv 2005.14165, appendix C): a question is found in a
text that has `n` of its words in a row, 13 by default; blanks, case, signs and
notation do not count. A question of fewer words is looked for whole if it has
`shortest` of them, and otherwise counted as one that cannot be checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from locojax.core import checks
from locojax.data import near_duplicates

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
  r"""Letters and digits in a row, in lower case.

  >>> words_of(r"Find $\frac{1}{2}$!")
  ['find', 'frac', '1', '2']
  """
  return _WORD.findall(text.lower())


class Overlap(NamedTuple):
  """A question that was found in a text.

  Attributes:
    name: of the question.
    share: of its n-grams that the text has.
  """

  name: str
  share: float


class Index:
  """The n-grams of questions; can be pickled.

  Attributes:
    names: of the questions, in order.
    unchecked: those too short to be looked for.
    n: words in a row.
  """

  def __init__(
    self, questions: Mapping[str, str], *, n: int = 13, shortest: int = 8
  ):
    """Takes questions by name.

    Raises:
      ValueError: a bad length.
    """
    self.n = checks.positive_int("n", n)
    self._shortest = checks.int_in_range("shortest", shortest, 1, n)
    self.names = list(questions)
    self.unchecked: list[str] = []
    by_length: dict[int, list[tuple[np.ndarray, int]]] = {}
    for number, (name, text) in enumerate(questions.items()):
      words = words_of(text)
      if len(words) < shortest:
        self.unchecked.append(name)
        continue
      length = min(n, len(words))
      grams = np.unique(near_duplicates.ngram_hashes(words, length))
      by_length.setdefault(length, []).append((grams, number))
    self._tables = {k: _table(v) for k, v in sorted(by_length.items())}

  def overlaps(self, text: str) -> list[Overlap]:
    """The questions that a text has n-grams of, in the order of `names`."""
    words, out = words_of(text), {}
    for length, (grams, owners, sizes) in self._tables.items():
      found = np.unique(near_duplicates.ngram_hashes(words, length))
      low = np.searchsorted(grams, found, side="left")
      high = np.searchsorted(grams, found, side="right")
      hits: dict[int, int] = {}
      for a, b in zip(low[low < high], high[low < high]):
        for owner in owners[a:b].tolist():
          hits[owner] = hits.get(owner, 0) + 1
      out |= {owner: count / sizes[owner] for owner, count in hits.items()}
    return [Overlap(self.names[i], out[i]) for i in sorted(out)]


def _table(
  found: Sequence[tuple[np.ndarray, int]],
) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
  """All n-grams sorted, whose they are, and how many each question has."""
  grams = np.concatenate([g for g, _ in found])
  owners = np.concatenate([np.full(g.size, i, np.int64) for g, i in found])
  order = np.lexsort((owners, grams))
  return grams[order], owners[order], {i: g.size for g, i in found}


def ngram_overlap(
  texts: Iterable[str], questions: Mapping[str, str], *, n: int = 13
) -> dict[str, float]:
  """Name of each question that is found -> largest share of its n-grams."""
  index, out = Index(questions, n=n, shortest=min(8, n)), {}
  for text in texts:
    for name, share in index.overlaps(text):
      out[name] = max(share, out.get(name, 0.0))
  return {name: out[name] for name in index.names if name in out}


def table(
  index: Index, found: Mapping[str, float], sets: Mapping[str, str]
) -> list[dict[str, Any]]:
  """A row for each set of questions: how many, checked, found, found whole.

  Args:
    index: of all questions.
    found: of `ngram_overlap`.
    sets: name of a question -> name of its set.
  """
  unchecked, rows = set(index.unchecked), []
  for kind in sorted(set(sets.values())):
    names = [n for n in index.names if sets[n] == kind]
    shares = [found[n] for n in names if n in found]
    checked = sum(n not in unchecked for n in names)
    rows.append(
      {
        "set": kind,
        "questions": len(names),
        "checked": checked,
        "found": len(shares),
        "whole": sum(s >= 1.0 for s in shares),
        "share": len(shares) / checked if checked else float("nan"),
      }
    )
  return rows
