"""Scores out of fold: each example by a model that never saw its label."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from locojax.core import checks

Predict = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray], Predict]


def stratified(labels: np.ndarray, num_folds: int, *, seed: int) -> np.ndarray:
  """The fold of each example; the folds have equal shares of each class.

  Args:
    labels: `[n]` integers.
    num_folds: 2 or more.
    seed: of who goes where.

  Returns:
    `[n]` int64 in [0, num_folds): in each class, and in all, folds differ by
    one example at most.

  Raises:
    ValueError: fewer examples than folds, or fewer than two classes of which
      two examples are there: nothing can be held out.
  """
  labels = checks.integers("labels", labels)
  checks.seed("seed", seed)
  checks.int_in_range("num_folds", num_folds, 2, max(2, len(labels)))
  sizes = np.unique(labels, return_counts=True)[1]
  if (sizes > 1).sum() < 2:
    raise ValueError(
      f"labels with classes of {sizes.tolist()} examples are not allowed: two "
      "classes or more must have two examples or more."
    )
  rng = np.random.default_rng(seed)
  shuffled = rng.permutation(len(labels))
  order = shuffled[np.argsort(labels[shuffled], kind="stable")]
  folds = np.empty(len(labels), np.int64)
  folds[order] = np.arange(len(labels)) % num_folds
  return folds


def out_of_fold(
  fit: Fit,
  features: np.ndarray,
  labels: np.ndarray,
  folds: np.ndarray,
  num_classes: int,
) -> np.ndarray:
  """Probabilities of each example, by the model of the other folds.

  Args:
    fit: `(features, labels) -> predict` of some of the examples; `predict` is
      `features -> [m, K]`.
    features: `[n, ...]`.
    labels: `[n]` integers in [0, K).
    folds: `[n]`, of `stratified`.
    num_classes: K.

  Returns:
    `[n, K]` float64.
  """
  out = np.zeros((len(labels), num_classes))
  for fold in np.unique(folds):
    held = folds == fold
    out[held] = fit(features[~held], labels[~held])(features[held])
  return out
