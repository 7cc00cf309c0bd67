"""Votes of many samples: classes of equal answers, and the largest of them.

Lewkowycz et al., arXiv 2206.14858, section 2.3 (majority voting); Wang et al.,
arXiv 2203.11171 (self-consistency). What to expect of k of n samples is in
`estimators`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from locojax.core import checks
from locojax.methods.minerva import equivalence
from locojax.methods.minerva.answers import INVALID
from locojax.methods.minerva.verdicts import Verdict

TIES = ("first", "log_probs")


class Classes(NamedTuple):
  """Equal answers together.

  Attributes:
    representatives: the first answer of each class, in order of arrival.
    counts: how many are in each class, int64 [classes].
    labels: the class of each answer, int64 [n]; -1 for an invalid one.
    invalid: how many are invalid.
  """

  representatives: tuple[str, ...]
  counts: np.ndarray
  labels: np.ndarray
  invalid: int


def _default_equal(a: str, b: str) -> bool:
  return equivalence.is_equivalent(a, b, units="ignored")


def _canonical(text: str) -> Hashable:
  return equivalence.canonical_key(text, units="ignored")


def group(
  answers: Sequence[str | None],
  equal: Callable[[str, str], bool | Verdict] | None = None,
  *,
  key: Callable[[str], Hashable] | None = None,
) -> Classes:
  """Puts equal answers together, in order of arrival.

  An answer joins the class of its key, else the first one whose representative
  it equals.

  Args:
    answers: None and `INVALID` count as invalid.
    equal: whether two answers are the same; None compares values without
      their units, and has keys that make it fast.
    key: answers of the same key are the same without asking `equal`; None
      stands for the text itself, or for canonical keys where `equal` is None.

  Returns:
    The classes.
  """
  if equal is None:
    equal, key = _default_equal, key or _canonical
  key = key or (lambda text: text)
  representatives, labels, known = [], [], {}
  for text in answers:
    if text is None or text == INVALID:
      labels.append(-1)
      continue
    name = key(text)
    if name not in known:
      known[name] = _class_of(text, representatives, equal)
    labels.append(known[name])
  found = np.array(labels, np.int64)
  counts = np.bincount(found[found >= 0], minlength=len(representatives))
  return Classes(
    tuple(representatives),
    counts.astype(np.int64),
    found,
    int((found < 0).sum()),
  )


def _class_of(text: str, representatives: list[str], equal: Callable) -> int:
  for number, other in enumerate(representatives):
    found = equal(text, other)
    if found.equal if isinstance(found, Verdict) else found:
      return number
  representatives.append(text)
  return len(representatives) - 1


def majority(
  classes: Classes,
  *,
  ties: str = "first",
  log_probs: Sequence[float] | None = None,
) -> str | None:
  """The answer with most votes.

  Args:
    classes: of `group`.
    ties: between classes of the same size, `first` takes the one that came
      first (over a random order of the samples that is a uniform choice);
      `log_probs` the one whose samples are likelier together.
    log_probs: of each sample, for `ties="log_probs"`.

  Returns:
    The representative of the class; None if all samples are invalid.
  """
  checks.one_of("ties", ties, TIES)
  if not len(classes.counts):
    return None
  best = np.flatnonzero(classes.counts == classes.counts.max())
  if ties == "log_probs":
    values = _log_probs(log_probs, len(classes.labels))
    totals = [
      np.logaddexp.reduce(values[classes.labels == label]) for label in best
    ]
    return classes.representatives[best[int(np.argmax(totals))]]
  return classes.representatives[best[0]]


def weighted_majority(
  classes: Classes, log_probs: Sequence[float]
) -> str | None:
  """The answer whose samples have the largest probability together."""
  if not len(classes.counts):
    return None
  values = _log_probs(log_probs, len(classes.labels))
  totals = [
    np.logaddexp.reduce(values[classes.labels == label])
    for label in range(len(classes.counts))
  ]
  return classes.representatives[int(np.argmax(totals))]


def _log_probs(values: Sequence[float] | None, num: int) -> np.ndarray:
  found = np.asarray([] if values is None else values, np.float64)
  checks.same_shape("log_probs", found.shape, "the answers", (num,))
  if np.isnan(found).any() or (found == np.inf).any():
    raise ValueError("log_probs has NaN or infinity, which is not allowed.")
  return found


def rerank(
  answers: Sequence[str | None],
  log_probs: Sequence[float],
  *,
  lengths: Sequence[int] | None = None,
) -> str | None:
  """The answer of the likeliest sample; the paper's baseline of voting.

  Args:
    answers: None and `INVALID` are passed over.
    log_probs: sums over tokens, [n]; of the model itself, before temperature
      and nucleus.
    lengths: tokens of each sample, for the mean instead of the sum.

  Returns:
    The answer, the first of equally likely ones; None if all are invalid.
  """
  values = _log_probs(log_probs, len(answers))
  if lengths is not None:
    sizes = checks.sizes("lengths", [int(n) for n in lengths])
    checks.same_shape("lengths", (len(sizes),), "the answers", (len(answers),))
    values = values / np.array(sizes)
  valid = [k for k, a in enumerate(answers) if a is not None and a != INVALID]
  return answers[max(valid, key=lambda k: values[k])] if valid else None
