"""Label spaces made from a confusion matrix; see `label_space.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from locojax.core import checks
from locojax.methods.spl import clusters, label_space
from locojax.methods.spl import counts as counts_lib

METHODS = (
  *("raw", "occupied", "spl_b", "top_k", "min_count", "cluster"),
  *("weak", "teacher", "agreement"),
)
FALLBACKS = ("drop", "row_other", "agreed", "global_other")
# Methods that need each setting, and those that may have it.
_NEEDS = {"k": ("top_k", "cluster"), "min_count": ("min_count",)}
_TAKES = {"min_count": ("cluster",), "embeddings": ("cluster",)}
_MAPPED = ("spl_b", "agreement")


def build_label_space(
  confusion: ArrayLike,
  method: str = "raw",
  *,
  k: int | None = None,
  min_count: float | None = None,
  fallback: str = "drop",
  embeddings: Any = None,
  weak_to_teacher: ArrayLike | None = None,
) -> label_space.LabelSpace:
  """The label space of some training clips.

  Methods are described at the head of `label_space.py`. Pairs that are kept
  are numbered row by row. Ties of `top_k` go to the pair that comes first.
  A pair that is not kept goes, by the fallback, to

    drop          no class (-1): its clips leave the training set
    row_other     one more class for each weak label that lost a pair
    agreed        the agreed pair of its row if that is kept, else no class
    global_other  one more class for all

  and so does a pair that did not occur, if there is such a class. (`raw`,
  `spl_b`, `weak`, `teacher` keep all pairs; `agreement` drops, always.)

  Args:
    confusion: `[W, T]` counts of the training clips, rows weak labels.
    method: one of `METHODS`.
    k: classes of `top_k` (fewer if fewer pairs occur) and `cluster`.
    min_count: of `min_count`: the fewest clips of a pair that is kept; of
      `cluster`, optional: the fewest of a pair that takes part.
    fallback: one of `FALLBACKS`.
    embeddings: of `cluster`: `[T, d]` features of the teacher's classes, such
      as rows of its last layer or embeddings of the names; or a pair of those
      of the weak classes `[W, d1]` and the teacher's `[T, d2]`.
    weak_to_teacher: `[W]` the teacher's class of each weak class; by default
      the same number, which needs W = T.

  Returns:
    A `LabelSpace` of 2 classes or more.

  Raises:
    ValueError: an unknown method or fallback; a setting that is missing, bad,
      or not of this method; no map where W and T differ and one is needed; a
      space of under 2 classes; all clips dropped.

  >>> space = build_label_space([[2, 1], [0, 3]], "spl_b")
  >>> space.num_classes, space.lookup.tolist()
  (4, [[0, 1], [3, 2]])
  """
  confusion = counts_lib.check_confusion(confusion)
  checks.one_of("method", method, METHODS)
  checks.one_of("fallback", fallback, FALLBACKS)
  given = {"k": k, "min_count": min_count, "embeddings": embeddings}
  _check_settings(method, given)
  if method in _MAPPED or fallback == "agreed":
    what = f"method={method!r}" if method in _MAPPED else "fallback='agreed'"
    _check_map(confusion.shape, weak_to_teacher, what)
  agreed = counts_lib.agreeing(confusion.shape, weak_to_teacher)
  if method in _WHOLE:
    num, lookup = _WHOLE[method](agreed)
  else:
    num, lookup = _kept(confusion, method, given)
    num, lookup = _with_fallback(num, lookup, confusion, fallback, agreed)
  if num < 2:
    raise ValueError(
      f"method={method!r} leaves num_classes={num}, which is not allowed: a "
      "label space must have 2 classes or more."
    )
  mapped = agreed.argmax(1).astype(np.int32) if agreed.any() else None
  return label_space.LabelSpace(
    num, lookup.astype(np.int32), confusion, method, mapped
  )


def _check_settings(method: str, given: dict[str, Any]) -> None:
  for name, value in given.items():
    needed = method in _NEEDS.get(name, ())
    if name == "embeddings":
      needed = method == "cluster"
    if value is None and needed:
      checks.refuse(name, value, f"given for method={method!r}")
    if value is not None and not (needed or method in _TAKES.get(name, ())):
      allowed = f"None for method={method!r}, which has no such setting"
      checks.refuse(name, value, allowed)
  if given["k"] is not None:
    checks.positive_int("k", given["k"])
  if given["min_count"] is not None:
    checks.positive("min_count", given["min_count"])


def _check_map(shape, weak_to_teacher, what: str) -> None:
  if weak_to_teacher is None and shape[0] != shape[1]:
    raise ValueError(
      f"weak_to_teacher=None is not allowed for {what} with {shape[0]} weak "
      f"and {shape[1]} teacher classes: it must be [{shape[0]}] integers."
    )


def _raw(agreed: np.ndarray) -> tuple[int, np.ndarray]:
  return agreed.size, np.arange(agreed.size).reshape(agreed.shape)


def _spl_b(agreed: np.ndarray) -> tuple[int, np.ndarray]:
  rows = np.arange(len(agreed))[:, None]
  return 2 * len(agreed), 2 * rows + ~agreed


def _weak(agreed: np.ndarray) -> tuple[int, np.ndarray]:
  rows = np.arange(len(agreed))[:, None]
  return len(agreed), np.broadcast_to(rows, agreed.shape)


def _teacher(agreed: np.ndarray) -> tuple[int, np.ndarray]:
  return agreed.shape[1], np.broadcast_to(
    np.arange(agreed.shape[1]), agreed.shape
  )


def _agreement(agreed: np.ndarray) -> tuple[int, np.ndarray]:
  num, rows = _weak(agreed)
  return num, np.where(agreed, rows, -1)


_WHOLE: dict[str, Callable[[np.ndarray], tuple[int, np.ndarray]]] = {
  "raw": _raw,
  "spl_b": _spl_b,
  "weak": _weak,
  "teacher": _teacher,
  "agreement": _agreement,
}


def _kept(
  confusion: np.ndarray, method: str, given: dict[str, Any]
) -> tuple[int, np.ndarray]:
  """Kept pairs with their classes, row by row; -1 elsewhere."""
  flat = confusion.ravel()
  kept = np.flatnonzero(flat > 0)
  if method == "top_k":
    kept = np.sort(kept[np.argsort(-flat[kept], kind="stable")][: given["k"]])
  elif given["min_count"] is not None:
    kept = kept[flat[kept] >= given["min_count"]]
  classes = np.arange(len(kept))
  if method == "cluster":
    classes = clusters.of_pairs(
      kept, confusion.shape, given["k"], given["embeddings"]
    )
  lookup = np.full(flat.shape, -1)
  lookup[kept] = classes
  num = int(classes.max()) + 1 if len(classes) else 0
  return num, lookup.reshape(confusion.shape)


def _with_fallback(
  num: int,
  lookup: np.ndarray,
  confusion: np.ndarray,
  fallback: str,
  agreed: np.ndarray,
) -> tuple[int, np.ndarray]:
  """Classes of pairs that are not kept."""
  lost = lookup < 0
  losers = (lost & (confusion > 0)).any(axis=1)
  if fallback == "row_other":
    other = np.where(losers, num + np.cumsum(losers) - 1, -1)
    return num + int(losers.sum()), np.where(lost, other[:, None], lookup)
  if fallback == "global_other" and losers.any():
    return num + 1, np.where(lost, num, lookup)
  if fallback == "agreed":
    own = np.where(agreed, lookup, -1).max(axis=1)
    return num, np.where(lost, own[:, None], lookup)
  return num, lookup
