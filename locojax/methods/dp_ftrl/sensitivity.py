"""Squared sensitivities of mechanisms, in units of the clip norm squared.

A user takes part in at most k rounds, any two of them at least `min_sep` = b
apart (j - i >= b; TensorFlow Privacy counts the rounds strictly between, one
less: `min_sep_from_tfp`). The neighbouring run has this user's updates replaced
by zeros. All nodes of a tree are one Gaussian mechanism, so its sensitivity is

    zeta^2 = max over allowed rounds u of sum over nodes (how many of u in it)^2

(Kairouz et al. 2021, arXiv 2103.00039v3, appendix D). NumPy only; no jax.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import numpy as np

from locojax.core import checks

PARTICIPATIONS = ("one_per_tree", "one_in_all")


def min_sep_from_tfp(min_separation: int) -> int:
  """`min_sep` (difference of rounds) from TensorFlow Privacy's convention.

  >>> min_sep_from_tfp(313)
  314
  """
  return checks.positive_int("min_separation + 1", min_separation + 1)


def feasible(num_rounds: int, max_participations: int, min_sep: int) -> int:
  """Participations that fit: the lesser of k and ceil(T / b).

  >>> feasible(2000, 100, 314)
  7
  """
  checks.positive_int("num_rounds", num_rounds)
  checks.positive_int("max_participations", max_participations)
  checks.positive_int("min_sep", min_sep)
  return min(max_participations, -(-num_rounds // min_sep))


def _capped(num_rounds: int, max_participations: int, min_sep: int) -> int:
  """`feasible`, with a warning where it is less than what was asked for."""
  k = feasible(num_rounds, max_participations, min_sep)
  if k < max_participations:
    warnings.warn(
      f"max_participations={max_participations} does not fit into {num_rounds} "
      f"rounds with min_sep={min_sep}: {k} are counted.",
      stacklevel=3,
    )
  return k


def single(num_rounds: int) -> int:
  """One participation in one tree: floor(log2 T) + 1."""
  return checks.positive_int("num_rounds", num_rounds).bit_length()


def every_round(num_rounds: int) -> int:
  """Participation in every round: the nodes are full."""
  checks.positive_int("num_rounds", num_rounds)
  digits = [d for d in range(num_rounds.bit_length()) if num_rounds >> d & 1]
  return sum(2**d * (2 ** (d + 1) - 1) for d in digits)


def _max_plus(left: np.ndarray, right: np.ndarray) -> np.ndarray:
  """max over g of left[a, g] + right[b - 1 - g, c]."""
  out = np.full((left.shape[0], right.shape[1]), -np.inf)
  size = left.shape[1]
  for g in range(size):
    row = right[size - 1 - g]
    if np.isneginf(left[0, g]) or np.isneginf(row[0]):
      continue
    np.maximum(out, left[:, g, None] + row[None], out=out)
  return out


class _Block:
  """Best sums of nodes within a block of consecutive rounds.

  Attributes:
    size: rounds.
    best: `[j][a, g]`: exactly j participations, the first not before round a of
      the block, the last at least g rounds before its end; -inf if impossible.
  """

  def __init__(self, size: int, best: list[np.ndarray]):
    self.size, self.best = size, best


def _leaf(min_sep: int) -> _Block:
  one = np.full((min_sep, min_sep), -np.inf)
  one[0, 0] = 1.0
  return _Block(1, [np.zeros((min_sep, min_sep)), one])


def _join(left: _Block, right: _Block, k: int, b: int, whole: bool) -> _Block:
  """Two neighbours as one block; a complete parent node adds j^2."""
  size = left.size + right.size
  slack = np.arange(b)
  skip_left = np.maximum(slack - left.size, 0)
  skip_right = np.maximum(slack - right.size, 0)
  best = [np.zeros((b, b))]
  for j in range(1, min(k, -(-size // b)) + 1):
    found = np.full((b, b), -np.inf)
    if j < len(left.best):
      np.maximum(found, left.best[j][:, skip_right], out=found)
    if j < len(right.best):
      np.maximum(found, right.best[j][skip_left], out=found)
    for i in range(max(1, j - len(right.best) + 1), min(j, len(left.best))):
      both = _max_plus(left.best[i], right.best[j - i])
      np.maximum(found, both, out=found)
    best.append(found + j * j if whole else found)
  return _Block(size, best)


@functools.lru_cache(maxsize=256)
def tree(num_rounds: int, max_participations: int, min_sep: int) -> int:
  """One tree over T rounds with (k, b)-participation, exactly.

  A dynamic programme over dyadic blocks, vectorised over the slacks at both
  ends; maximal over 1 to k participations, for more are not always worse. A k
  that does not fit is cut to `feasible`, with a warning.

  Args:
    num_rounds: T.
    max_participations: k, the rounds that one user is in, at most.
    min_sep: b, the least difference of two rounds of one user.

  Returns:
    The squared sensitivity, zeta^2.

  Raises:
    ValueError: an argument below 1.

  >>> tree(24, 8, 3), tree(1600, 1, 1)
  (88, 11)
  """
  k = _capped(num_rounds, max_participations, min_sep)
  if k == 1:
    return single(num_rounds)
  if min_sep == 1 and k == num_rounds:
    return every_round(num_rounds)
  blocks = [_leaf(min_sep)]
  for _ in range(num_rounds.bit_length() - 1):
    blocks.append(_join(blocks[-1], blocks[-1], k, min_sep, True))
  digits = [d for d in range(num_rounds.bit_length()) if num_rounds >> d & 1]
  forest = blocks[digits[-1]]
  for d in reversed(digits[:-1]):
    forest = _join(forest, blocks[d], k, min_sep, False)
  return int(max(found[0, 0] for found in forest.best))


def restarts(
  lengths: Sequence[int],
  *,
  participations: str = "one_per_tree",
  completed: bool = False,
) -> int:
  """Trees after one another, each user at most once in each (or in all).

  Args:
    lengths: rounds of each tree.
    participations: `one_per_tree`: the sum over trees. `one_in_all`: the
      largest.
    completed: trees but the last were filled up to powers of two, whose virtual
      rounds add ancestors.

  Raises:
    ValueError: no trees, or an unknown kind.

  >>> restarts([334] * 5 + [330], completed=True)
  59
  """
  checks.one_of("participations", participations, PARTICIPATIONS)
  if not len(lengths):
    raise ValueError("lengths=() is not allowed: there must be a tree.")
  each = []
  for i, length in enumerate(lengths):
    virtual = completed and i < len(lengths) - 1
    each.append(single(1 << (length - 1).bit_length() if virtual else length))
  return sum(each) if participations == "one_per_tree" else max(each)


def _node_counts(rounds: np.ndarray, num_leaves: int) -> int:
  """Sum over complete nodes of squared numbers of the given rounds in them."""
  total = 0
  for level in range(num_leaves.bit_length()):
    nodes = num_leaves >> level
    index = rounds >> level
    counts = np.bincount(index[index < nodes], minlength=1)
    total += int((counts.astype(np.int64) ** 2).sum())
  return total


def pattern(rounds: Sequence[int], num_leaves: int) -> int:
  """A tree under one known set of rounds, such as a realised log."""
  found = np.unique(np.asarray(rounds, np.int64))
  if found.size and (found[0] < 0 or found[-1] >= num_leaves):
    raise ValueError(
      f"rounds={found.tolist()!r:.60} are not allowed: they must be in [0, "
      f"{num_leaves})."
    )
  return _node_counts(found, num_leaves)


def fixed_order(
  steps_per_epoch: int,
  num_epochs: int,
  *,
  num_trees: int = 1,
  virtual: int = 0,
) -> int:
  """Every epoch in the same order: the same place each time.

  Args:
    steps_per_epoch: rounds of an epoch; a user is in one of them.
    num_epochs: of each tree.
    num_trees: trees after one another.
    virtual: rounds that complete each tree but the last.

  >>> fixed_order(100, 20, num_trees=5, virtual=48)
  4129
  """
  for name, value in (
    ("steps_per_epoch", steps_per_epoch),
    ("num_epochs", num_epochs),
    ("num_trees", num_trees),
  ):
    checks.positive_int(name, value)
  checks.nonnegative_int("virtual", virtual)
  size, worst = steps_per_epoch * num_epochs, 0
  for place in range(steps_per_epoch):
    rounds = place + steps_per_epoch * np.arange(num_epochs)
    filled = _node_counts(rounds, size + virtual)
    last = _node_counts(rounds, size)
    worst = max(worst, (num_trees - 1) * filled + last)
  return worst


def toeplitz(
  coefficients: Sequence[float],
  *,
  num_rounds: int,
  max_participations: int,
  min_sep: int,
) -> float:
  """A lower triangular Toeplitz C under (k, b)-participation.

  Exact for non-negative coefficients that do not increase: participations as
  early and close as allowed. Others are replaced by their absolute values, made
  non-increasing from the right, which gives an upper bound.

  Args:
    coefficients: `[bands]`, the first entries of the first column of C; zeros
      follow the last one.
    num_rounds: T, the rows of C; as many as there are bands or more.
    max_participations, min_sep: k and b, as of `tree_squared_sensitivity`.

  Returns:
    The squared sensitivity, zeta^2.

  Raises:
    ValueError: no coefficients, some that are not finite, or fewer rounds than
      bands.

  >>> toeplitz([1.0, 0.5, 0.25], num_rounds=10, max_participations=2, min_sep=2)
  3.125
  >>> toeplitz([1.0, 0.5, 0.25], num_rounds=3, max_participations=2, min_sep=2)
  2.8125
  """
  bands = np.asarray(coefficients, np.float64)
  if bands.ndim != 1 or not bands.size:
    raise ValueError(
      f"coefficients of shape {bands.shape} are not allowed: they must be "
      "[bands], at least one."
    )
  if not np.isfinite(bands).all():
    raise ValueError("coefficients are not allowed: they must be finite.")
  checks.positive_int("num_rounds", num_rounds)
  if num_rounds < len(bands):
    checks.refuse(
      "num_rounds", num_rounds, f"at least {len(bands)}, the number of bands"
    )
  k = _capped(num_rounds, max_participations, min_sep)
  c = np.zeros(num_rounds)
  c[: len(bands)] = np.maximum.accumulate(np.abs(bands)[::-1])[::-1]
  total = np.zeros_like(c)
  for j in range(k):
    total[j * min_sep :] += c[: len(c) - j * min_sep]
  return float(total @ total)


def matrix_pattern(matrix: np.ndarray, rounds: Sequence[int]) -> float:
  """Any C under one known set of rounds: |C u|^2, or a bound on it.

  With C^T C entrywise non-negative it is exact; else sum |C^T C| over the
  rounds, for updates may point anywhere.
  """
  columns = np.asarray(matrix, np.float64)[:, list(rounds)]
  return float(np.abs(columns.T @ columns).sum())
