"""Pairs of labels merged by what their classes are like."""

from __future__ import annotations

from typing import Any

import numpy as np

from locojax.core import checks

# All distances of so many pairs are 0.8 GB.
MOST_PAIRS = 14_000


def _table(name: str, values: Any, num: int) -> np.ndarray:
  """Features of classes, `[num, d]` float64 of norm 1."""
  found = np.asarray(values, np.float64)
  if found.ndim != 2 or found.shape[0] != num or not found.shape[1]:
    raise ValueError(
      f"{name} of shape {found.shape} is not allowed: it must be [{num}, d], a "
      "row for each class."
    )
  norm = np.linalg.norm(found, axis=1, keepdims=True)
  if not np.all(np.isfinite(found)) or not np.all(norm > 0):
    raise ValueError(
      f"{name} has rows that are zero or not finite, which is not allowed: "
      "each must have a direction."
    )
  return found / norm


def _tables(embeddings: Any, shape) -> tuple[np.ndarray, np.ndarray]:
  if isinstance(embeddings, tuple):
    if len(embeddings) != 2:
      checks.refuse(
        "len(embeddings)", len(embeddings), "2: weak and teacher classes"
      )
    weak, teacher = embeddings
    return (
      _table("embeddings[0]", weak, shape[0]),
      _table("embeddings[1]", teacher, shape[1]),
    )
  if shape[0] != shape[1]:
    raise ValueError(
      f"one table of embeddings is not allowed for {shape[0]} weak and "
      f"{shape[1]} teacher classes: it must be a pair of tables."
    )
  table = _table("embeddings", embeddings, shape[1])
  return table, table


def of_pairs(
  pairs: np.ndarray, shape: tuple[int, int], k: int, embeddings: Any
) -> np.ndarray:
  """Groups of pairs by agglomerative clustering.

  The feature of (w, t) is e_w beside e_t, both of norm 1; clusters are merged
  by the average of Euclidean distances until k are left.

  Args:
    pairs: `[p]` ids w T + t, ascending.
    shape: (W, T).
    k: groups, at most p.
    embeddings: see `build_label_space`.

  Returns:
    `[p]` integers in [0, k), in the order in which the groups first occur.

  Raises:
    ValueError: embeddings of other shapes, fewer pairs than k, or too many.
  """
  from scipy.cluster import hierarchy

  weak, teacher = _tables(embeddings, shape)
  if k > len(pairs):
    checks.refuse("k", k, f"at most {len(pairs)}, the pairs that take part")
  if len(pairs) > MOST_PAIRS:
    raise ValueError(
      f"{len(pairs)} pairs are not allowed for method='cluster': at most "
      f"{MOST_PAIRS}, all distances of which fit memory; give min_count."
    )
  if len(pairs) == 1:
    return np.zeros(1, int)
  rows = np.concatenate(
    [weak[pairs // shape[1]], teacher[pairs % shape[1]]], axis=1
  )
  tree = hierarchy.linkage(rows, method="average")
  found = hierarchy.cut_tree(tree, n_clusters=k)[:, 0]
  _, first = np.unique(found, return_index=True)
  order = np.argsort(np.argsort(first))
  return order[found]
