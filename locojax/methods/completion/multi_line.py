"""Several lines, one by one, as long as the model is sure enough.

The blog: the single-line model is applied iteratively, with learned thresholds
for deciding whether to start predicting the following line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from locojax.core import checks


def _next_line(suffix: str) -> str:
  """The first line of a suffix that is not blank, stripped."""
  lines = (line.strip() for line in suffix.split("\n"))
  return next((line for line in lines if line), "")


def multi_line(
  predict: Callable[[str, str], Any],
  prefix: str,
  suffix: str,
  *,
  thresholds: Sequence[float],
  max_lines: int = 8,
  score: Callable[[Any], float] = lambda s: s.confidence,
) -> list[Any]:
  """Lines, each predicted with those before it accepted.

  It ends at the first line whose score is below its threshold, at `max_lines`,
  and before a line that the suffix has next.

  Args:
    predict: `(prefix, suffix) -> suggestion` with a `text`, or None.
    prefix, suffix: around the cursor.
    thresholds: of line 0, 1, ...; the last one is that of all further lines.
      The first decides whether anything is shown. In [0, 1], or inf for never.
    max_lines: at most so many.
    score: of a suggestion, such as its confidence.

  Returns:
    The suggestions; joined by line ends their texts are the completion.

  Raises:
    ValueError: no thresholds, or one outside.
  """
  checks.positive_int("max_lines", max_lines)
  if not len(thresholds):
    checks.refuse("thresholds", thresholds, "one number or more")
  for i, threshold in enumerate(thresholds):
    if threshold != math.inf:
      checks.in_range(f"thresholds[{i}]", threshold, 0.0, 1.0)
  following, out = _next_line(suffix), []
  for i in range(max_lines):
    found = predict(prefix, suffix)
    least = thresholds[min(i, len(thresholds) - 1)]
    if found is None or score(found) < least:
      break
    if i and following and found.text.strip() == following:
      break
    out.append(found)
    prefix = f"{prefix}{found.text}\n"
  return out


def fit_threshold(
  scores: Sequence[float], correct: Sequence[bool], target_precision: float
) -> float:
  """The smallest score at which what is at or above it is right often enough.

  Args:
    scores: of suggestions.
    correct: whether each was right.
    target_precision: in (0, 1].

  Returns:
    A score that was observed; inf if none is enough.

  Raises:
    ValueError: sizes that differ, or a precision outside.

  >>> fit_threshold([0.2, 0.6, 0.9], [False, True, True], 0.9)
  0.6
  """
  checks.between("target_precision", target_precision, 0.0, 1.0 + 1e-9)
  scores = np.asarray(scores, np.float64)
  correct = np.asarray(correct, bool)
  checks.same_shape("correct", correct.shape, "scores", scores.shape)
  order = np.argsort(-scores, kind="stable")
  scores, correct = scores[order], correct[order]
  precision = np.cumsum(correct) / np.arange(1, len(scores) + 1)
  # Equal scores go together: only the last of them is a place to cut.
  last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
  good = scores[last & (precision >= target_precision - 1e-12)]
  return float(good[-1]) if good.size else math.inf


def precision_coverage(
  scores: Sequence[float], correct: Sequence[bool]
) -> list[tuple[float, float, float]]:
  """`(threshold, coverage, precision)` at each score, the highest first."""
  scores = np.asarray(scores, np.float64)
  correct = np.asarray(correct, bool)
  checks.same_shape("correct", correct.shape, "scores", scores.shape)
  out = []
  for threshold in sorted(set(scores.tolist()), reverse=True):
    shown = scores >= threshold
    out.append((threshold, float(shown.mean()), float(correct[shown].mean())))
  return out


@dataclasses.dataclass(frozen=True)
class LogisticConfidence:
  """Probability that a line is right, from a few facts about it.

  Attributes:
    weights: of the constant and the `FEATURES`.
  """

  weights: tuple[float, ...]
  FEATURES = ("mean_log_prob", "line", "length", "dedents")

  @staticmethod
  def features(
    mean_log_prob: float, line: int, text: str, before: str
  ) -> np.ndarray:
    """Mean log-probability, index of the line, log length, change of indent.

    Args:
      mean_log_prob: of the tokens of the line.
      line: its index in the suggestion.
      text: the line.
      before: the line before it; its indentation is compared.
    """
    indent = lambda s: len(s) - len(s.lstrip())
    change = np.sign(indent(text) - indent(before)) if line else 0
    length = math.log1p(len(text.strip()))
    return np.array([mean_log_prob, line, length, change], np.float64)

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """Probabilities `[...]` of features `[..., 4]`."""
    weights = np.asarray(self.weights)
    return 1 / (1 + np.exp(-(weights[0] + np.asarray(features) @ weights[1:])))

  @classmethod
  def fit(
    cls,
    features: np.ndarray,
    correct: Sequence[bool],
    *,
    ridge: float = 1e-2,
    num_steps: int = 50,
  ) -> LogisticConfidence:
    """Logistic regression by Newton's method.

    Args:
      features: `[n, 4]`.
      correct: `[n]`.
      ridge: penalty of the squared weights, over n.
      num_steps: at most so many.

    Raises:
      ValueError: sizes that differ.
    """
    checks.positive("ridge", ridge)
    x = np.column_stack([np.ones(len(features)), np.asarray(features)])
    y = np.asarray(correct, np.float64)
    checks.same_shape("correct", y.shape, "features", (len(x),))
    penalty = ridge * len(x) * np.eye(x.shape[1])
    penalty[0, 0] = 0.0
    w = np.zeros(x.shape[1])
    for _ in range(num_steps):
      p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
      hessian = (
        (x * (p * (1 - p))[:, None]).T @ x + penalty + 1e-9 * np.eye(len(w))
      )
      move = np.linalg.solve(hessian, x.T @ (y - p) - penalty @ w)
      w = w + move
      if np.abs(move).max() < 1e-9:
        break
    return cls(tuple(w.tolist()))
