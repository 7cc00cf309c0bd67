"""What the answers of a model look like: kinds, overlaps, false positives.

Lewkowycz et al., arXiv 2206.14858, sections 4 and 5: right answers by wrong
ways, and whether questions were memorised (changed numbers; overlap of a
solution with the published one).
"""

from __future__ import annotations

import collections
import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.methods.minerva import latex_reader
from locojax.methods.minerva.latex_tokens import Unreadable

SHEET_COLUMNS = (
  *("id", "level", "problem", "solution", "answer", "target"),
  *("false_positive", "remark"),
)
# How the paper sorts mistakes; for a column of a sheet of wrong solutions.
MISTAKES = (
  *("reasoning", "calculation", "misread question", "wrong fact"),
  *("too short", "hallucinated object", "other"),
)
_NUMBER = re.compile(r"(?<![\w.\\])\d+(?:\.\d+)?(?![\w]|\.\d)")
_WORDS = re.compile(r"\\[a-zA-Z]+|\d+(?:\.\d+)?|[a-zA-Z]+|[^\w\s]")


def answer_category(text: str) -> str:
  """What kind of answer a text is.

  Returns:
    `integer`, `number`, `formula`, `number with unit`, `unreadable`, or the
    `kind` of a `latex_reader.Answer` that is no scalar.
  """
  try:
    found = latex_reader.read_answer(text)
  except Unreadable:
    return "unreadable"
  if found.kind != "scalar":
    return found.kind
  if found.unit is not None:
    return "number with unit"
  if found.value.integer() is not None:
    return "integer"
  return "formula" if found.value.variables() else "number"


def answer_categories(texts: Iterable[str]) -> dict[str, int]:
  """How many answers are of each kind, the most frequent first."""
  return dict(collections.Counter(map(answer_category, texts)).most_common())


def _ngrams(words: Sequence[str], n: int) -> collections.Counter:
  return collections.Counter(
    tuple(words[k : k + n]) for k in range(len(words) - n + 1)
  )


def bleu_overlap(text: str, reference: str, *, max_n: int = 4) -> float:
  """BLEU of a solution against the published one, in [0, 1].

  Papineni et al., 2002, for one sentence: the geometric mean of the n-gram
  precisions, with 1 added to numerators and denominators above n = 1 (Lin and
  Och, 2004), and the brevity penalty. Commands of LaTeX, numbers, words and
  other characters are the words.

  Args:
    text: what is looked at.
    reference: what it is compared with.
    max_n: the longest n-grams.
  """
  checks.positive_int("max_n", max_n)
  ours, theirs = _WORDS.findall(text), _WORDS.findall(reference)
  if not ours or not theirs:
    return 0.0
  total = 0.0
  for n in range(1, max_n + 1):
    one, two = _ngrams(ours, n), _ngrams(theirs, n)
    extra = int(n > 1)
    hits = sum((one & two).values()) + extra
    if not hits:
      return 0.0
    total += math.log(hits / (sum(one.values()) + extra))
  brevity = min(0.0, 1.0 - len(theirs) / len(ours))
  return math.exp(total / max_n + brevity)


def perturb_numbers(
  problem: str, *, rng: np.random.Generator, low: int = 2, high: int = 99
) -> tuple[str, dict[str, str]]:
  """A problem with its numbers changed, the same one alike everywhere.

  Years, exponents and other numbers that must stay are for a human to check:
  the paper changed its questions by hand.

  Args:
    problem: its text; numbers glued to letters or commands stay.
    rng: draws the new numbers.
    low, high: new whole numbers are between them; decimals keep their places.

  Returns:
    The text, and which number became which.
  """
  if not isinstance(rng, np.random.Generator):
    checks.refuse("rng", rng, "a numpy.random.Generator")
  checks.nonnegative_int("low", low)
  checks.int_in_range("high", high, low + 1, 10**9)
  changed: dict[str, str] = {}

  def other(match: re.Match) -> str:
    old = match[0]
    if old not in changed:
      changed[old] = _other_number(old, rng, low, high)
    return changed[old]

  return _NUMBER.sub(other, problem), changed


def _other_number(old: str, rng: np.random.Generator, low, high) -> str:
  places = len(old.partition(".")[2])
  while True:
    whole = str(int(rng.integers(low, high + 1)))
    digits = "".join(str(d) for d in rng.integers(0, 10, places))
    new = f"{whole}.{digits}" if places else whole
    if new != old:
      return new


def false_positive_sheet(
  rows: Iterable[Mapping[str, Any]],
  *,
  per_level: int,
  rng: np.random.Generator,
) -> str:
  """A CSV sheet of right answers for a human to check, some of each level.

  Args:
    rows: solutions with a right answer: `id`, `level`, `problem`, `solution`,
      `answer`, `target`.
    per_level: how many of each level, if there are that many (the paper: 20).
    rng: draws them.

  Returns:
    The sheet, with empty columns `false_positive` and `remark`.
  """
  checks.positive_int("per_level", per_level)
  if not isinstance(rng, np.random.Generator):
    checks.refuse("rng", rng, "a numpy.random.Generator")
  levels: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    levels.setdefault(str(row["level"]), []).append(row)
  out = io.StringIO()
  writer = csv.DictWriter(
    out, SHEET_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n"
  )
  writer.writeheader()
  for level in sorted(levels):
    found = levels[level]
    take = rng.permutation(len(found))[:per_level]
    writer.writerows(found[k] for k in sorted(take.tolist()))
  return out.getvalue()


def false_positive_rates(sheet: str) -> dict[str, tuple[int, int]]:
  """Of a sheet that a human filled in: (false positives, checked) by level.

  `false_positive` holds yes or no (1 or 0); rows without are not counted.
  """
  out: dict[str, tuple[int, int]] = {}
  for number, row in enumerate(csv.DictReader(io.StringIO(sheet)), 2):
    said = (row["false_positive"] or "").strip().lower()
    if not said:
      continue
    if said not in ("yes", "no", "1", "0"):
      raise ValueError(
        f"line {number}: false_positive={said!r} is not allowed: it must be "
        "yes or no."
      )
    wrong, checked = out.get(row["level"], (0, 0))
    out[row["level"]] = (wrong + (said in ("yes", "1")), checked + 1)
  return out
