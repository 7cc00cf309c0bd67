"""Weak labels against predictions of a teacher: counts and what they say.

Letters: n clips, W weak classes, T classes of the teacher. Rows are weak
labels, columns are predictions, everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from locojax.core import checks

# Classes with fewer clips than this count as rare.
RARE = 10


def check_ids(name: str, ids: ArrayLike, num: int, live=None) -> np.ndarray:
  """Ids of classes on the host, `[n]` int32.

  Args:
    name: of the argument.
    ids: `[n]` integers in [0, num).
    num: of the classes.
    live: `[n]` bool; ids of other clips are not looked at, and become 0.

  Raises:
    ValueError: not `[n]` integers, or one out of range.
  """
  found = np.asarray(ids)
  if found.ndim != 1 or found.dtype.kind not in "iu":
    raise ValueError(
      f"{name} has shape {found.shape} and dtype {found.dtype}, which is not "
      "allowed: it must be [clips] integers."
    )
  bad = (found < 0) | (found >= num)
  if live is not None:
    bad &= live
    found = np.where(live, found, 0)
  if bad.any():
    raise ValueError(
      f"{name} holds {found[bad][0]}, which is not allowed: with {num} classes "
      f"it must be integers in [0, {num - 1}]."
    )
  return found.astype(np.int32)


def check_pairs(
  weak: ArrayLike, teacher: ArrayLike, num_weak: int, num_teacher: int, live
) -> tuple[np.ndarray, np.ndarray]:
  """Both labels of the same clips; see `check_ids`.

  Raises:
    ValueError: ids as in `check_ids`, numbers that differ, or no clip.
  """
  checks.positive_int("num_weak", num_weak)
  checks.positive_int("num_teacher", num_teacher)
  same_clips(weak, teacher)
  weak = check_ids("weak", weak, num_weak, live)
  return weak, check_ids("teacher", teacher, num_teacher, live)


def same_clips(weak: ArrayLike, teacher: ArrayLike) -> None:
  """Raises unless there are as many weak labels as predictions, 1 or more."""
  checks.same_shape("weak", np.shape(weak), "teacher", np.shape(teacher))
  if np.size(weak) == 0:
    raise ValueError(
      "weak and teacher hold no clip, which is not allowed: they must be "
      "[clips] integers of one clip or more."
    )


def confusion_matrix(
  weak: ArrayLike,
  teacher: ArrayLike,
  num_weak: int,
  num_teacher: int,
  *,
  weights: ArrayLike | None = None,
) -> np.ndarray:
  """C[w, t]: how many clips have weak label w and prediction t.

  Args:
    weak: `[n]` integers in [0, W), the label of each clip's video.
    teacher: `[n]` integers in [0, T), what a teacher says of the clip.
    num_weak: W.
    num_teacher: T.
    weights: `[n]` numbers, 0 or more, that clips count; None counts each once.
      Clips of weight 0 are not looked at: `weights=teacher >= 0` leaves out
      those of which a teacher was not sure.

  Returns:
    `[W, T]` int64; float64 with weights that are no integers or booleans.

  Raises:
    ValueError: labels of other numbers or dtypes or out of range; no clip; bad
      weights.

  >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2, 2).tolist()
  [[1, 1], [0, 1]]
  """
  counted = _weights(weights, np.shape(weak))
  live = None if weights is None else counted > 0
  weak, teacher = check_pairs(weak, teacher, num_weak, num_teacher, live)
  out = np.zeros((num_weak, num_teacher), counted.dtype)
  np.add.at(out, (weak, teacher), counted)
  return out


def _weights(weights: ArrayLike | None, shape) -> np.ndarray:
  if weights is None:
    return np.ones(shape, np.int64)
  found = np.asarray(weights)
  checks.same_shape("weights", found.shape, "weak", shape)
  if not np.all(np.isfinite(found)) or np.any(found < 0):
    raise ValueError(
      f"weights have values from {found.min()} to {found.max()}, which is not "
      "allowed: they must be finite numbers, 0 or more."
    )
  whole = found.dtype.kind in "biu"
  return found.astype(np.int64 if whole else np.float64)


def check_confusion(confusion: ArrayLike) -> np.ndarray:
  """A confusion matrix as `confusion_matrix` makes it.

  Raises:
    ValueError: not `[W, T]`, negative or not finite, or all zero.
  """
  found = np.asarray(confusion)
  if found.ndim != 2 or found.dtype.kind not in "iuf":
    raise ValueError(
      f"confusion has shape {found.shape} and dtype {found.dtype}, which is "
      "not allowed: it must be [weak classes, teacher classes] counts."
    )
  if not np.all(np.isfinite(found)) or np.any(found < 0) or not found.sum():
    raise ValueError(
      f"confusion with the sum {found.sum()} is not allowed: it must be finite "
      "counts, 0 or more, of one clip or more."
    )
  return found.astype(np.float64 if found.dtype.kind == "f" else np.int64)


def entropy(counts: ArrayLike) -> float:
  """Entropy in nats of the distribution that counts are of.

  >>> round(float(entropy([1, 1])), 4)  # log(2)
  0.6931
  """
  counts = np.asarray(counts, np.float64).ravel()
  share = counts[counts > 0] / counts.sum()
  return float(-np.sum(share * np.log(share)))


def mutual_information(confusion: ArrayLike) -> float:
  """H(weak) + H(teacher) - H(weak, teacher), in nats.

  >>> round(float(mutual_information([[2, 0], [0, 2]])), 4)  # log(2)
  0.6931
  >>> round(float(mutual_information([[1, 1], [1, 1]])), 4)
  0.0
  """
  confusion = check_confusion(confusion)
  rows, columns = entropy(confusion.sum(1)), entropy(confusion.sum(0))
  return rows + columns - entropy(confusion)


def lift(confusion: ArrayLike) -> np.ndarray:
  """C[w, t] n / (row_w column_t): how much more often than by chance.

  It tells a sub-concept of w from a class that a teacher predicts everywhere.

  Args:
    confusion: `[W, T]` counts.

  Returns:
    `[W, T]` float64; 0 where a row or column is empty.

  >>> lift([[1, 1], [0, 2]]).round(3).tolist()
  [[2.0, 0.667], [0.0, 1.333]]
  """
  confusion = check_confusion(confusion).astype(np.float64)
  chance = np.outer(confusion.sum(1), confusion.sum(0)) / confusion.sum()
  return np.divide(
    confusion, chance, out=np.zeros_like(confusion), where=chance > 0
  )


def top_pairs(
  confusion: ArrayLike,
  *,
  num: int = 20,
  weak_to_teacher: ArrayLike | None = None,
) -> list[dict[str, Any]]:
  """The most frequent pairs of different labels, with their lift.

  Args:
    confusion: `[W, T]` counts.
    num: at most so many.
    weak_to_teacher: `[W]` the class of the teacher that each weak class is; by
      default the same number. Without one (W and T differ) no pair agrees.

  Returns:
    Rows of `weak`, `teacher`, `count`, `lift`; the smaller pair first on ties.

  >>> top_pairs([[4, 2], [1, 3]], num=1)
  [{'weak': 0, 'teacher': 1, 'count': 2, 'lift': 0.6666666666666666}]
  """
  confusion = check_confusion(confusion)
  checks.positive_int("num", num)
  counted = np.where(agreeing(confusion.shape, weak_to_teacher), 0, confusion)
  order = np.argsort(-counted.ravel(), kind="stable")[:num]
  above = lift(confusion)
  pairs = [divmod(int(i), confusion.shape[1]) for i in order]
  return [
    {
      "weak": w,
      "teacher": t,
      "count": confusion[w, t].item(),
      "lift": float(above[w, t]),
    }
    for w, t in pairs
    if counted[w, t] > 0
  ]


def agreeing(
  shape: tuple[int, int], weak_to_teacher: ArrayLike | None
) -> np.ndarray:
  """`[W, T]` bool, true where the teacher says the weak label.

  Raises:
    ValueError: a map that is not `[W]` integers in [0, T).
  """
  num_weak, num_teacher = shape
  out = np.zeros(shape, bool)
  if weak_to_teacher is None:
    if num_weak == num_teacher:
      np.fill_diagonal(out, True)
    return out
  found = check_ids("weak_to_teacher", weak_to_teacher, num_teacher)
  checks.same_shape("weak_to_teacher", found.shape, "weak", (num_weak,))
  out[np.arange(num_weak), found] = True
  return out
