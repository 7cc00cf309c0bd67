"""Ranking metrics of recommenders: AUC, ranking loss, swap rates, log loss.

The SmeLU blog post plots PD against a *ranking loss* it does not define beyond
"how accurately items are ranked". Here it is 1 - AUC, within queries where
there are queries.

The exact metrics sort on the host, in float64 NumPy; `HistogramAUC` streams on
devices. An example of weight zero counts as removed, whatever it holds.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks, narrow
from locojax.core import labels as labels_lib
from locojax.methods.smelu import differences

AVERAGES = ("queries", "weights")
LOSS_EPS = 1e-7


def _checked(scores, labels, weights):
  """Scores `[M, N]`, boolean labels `[N]` and weights `[N]`, none removed."""
  scores = np.asarray(scores, np.float64)
  labels = np.asarray(labels)
  if scores.ndim not in (1, 2):
    raise ValueError(
      f"scores has shape {scores.shape}: it must be [examples] or [models, "
      "examples]."
    )
  size = scores.shape[-1:]
  checks.same_shape("labels", labels.shape, "one model of scores", size)
  weights = np.ones(size) if weights is None else np.asarray(weights)
  weights = weights.astype(np.float64)
  checks.same_shape("weights", weights.shape, "one model of scores", size)
  if not (weights >= 0).all() or not np.isfinite(weights).all():
    raise ValueError("weights must be finite and 0 or more.")
  live = weights != 0
  scores, labels = np.atleast_2d(scores)[:, live], labels[live]
  if np.isnan(scores).any():
    raise ValueError("scores holds NaN: only examples of weight 0 may.")
  if not np.isin(labels, (0, 1)).all():
    raise ValueError(
      f"labels holds {labels[~np.isin(labels, (0, 1))][0]}: it must be 0 or 1."
    )
  return scores, labels == 1, weights[live], live


def _starts(*sorted_keys: np.ndarray) -> np.ndarray:
  """Where runs of equal keys begin."""
  changed = np.zeros(len(sorted_keys[0]), bool)
  changed[:1] = True
  for key in sorted_keys:
    changed[1:] |= key[1:] != key[:-1]
  return np.flatnonzero(changed)


def _grouped_auc(scores, labels, weights, groups):
  """AUC within each group: `[G]` values (NaN without a pair) and weights.

  Args:
    scores: `[N]`, N >= 1.
    labels: `[N]` booleans.
    weights: `[N]`.
    groups: `[N]` integers.
  """
  order = np.lexsort((scores, groups))
  scores, groups, labels = scores[order], groups[order], labels[order]
  positive = np.where(labels, weights[order], 0.0)
  negative = np.where(labels, 0.0, weights[order])
  ties, firsts = _starts(groups, scores), _starts(groups)
  tied_positive = np.add.reduceat(positive, ties)
  tied_negative = np.add.reduceat(negative, ties)
  all_positive = np.add.reduceat(positive, firsts)
  all_negative = np.add.reduceat(negative, firsts)
  group_of_tie = np.searchsorted(firsts, ties, side="right") - 1
  earlier = np.cumsum(all_negative) - all_negative
  below = np.cumsum(tied_negative) - tied_negative - earlier[group_of_tie]
  won = tied_positive * (below + tied_negative / 2)
  won = np.bincount(group_of_tie, won, minlength=len(firsts))
  pairs = all_positive * all_negative
  values = np.divide(
    won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0
  )
  return values, all_positive + all_negative


def _like(scores, values: list[float]):
  """A number for `[N]` scores, `[M]` numbers for `[M, N]`."""
  return np.array(values) if np.ndim(scores) == 2 else values[0]


def auc(
  scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> float | np.ndarray:
  """Area under the ROC curve: the chance that a positive outranks a negative.

  Exact; ties count half.

  Args:
    scores: `[N]` or `[M, N]`, any monotone transform of the predictions.
    labels: `[N]`, 0 or 1.
    weights: `[N]` weights or a mask; a pair weighs the product of its two.

  Returns:
    A float, or `[M]`, in [0, 1]; NaN where there is only one class.

  Raises:
    ValueError: shapes do not fit, NaN scores, labels other than 0 and 1.

  >>> auc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
  0.875
  """
  rows, labels, weights, _ = _checked(scores, labels, weights)
  if not len(labels):
    return _like(scores, [np.nan] * len(rows))
  one = np.zeros(len(labels), int)
  return _like(
    scores,
    [float(_grouped_auc(row, labels, weights, one)[0][0]) for row in rows],
  )


def query_auc(
  scores: ArrayLike,
  labels: ArrayLike,
  query_ids: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  average: str = "queries",
) -> float | np.ndarray:
  """The mean over queries of the AUC within each.

  Queries whose labels are all equal have no AUC and are left out.

  Args:
    scores: `[N]` or `[M, N]`.
    labels: `[N]`, 0 or 1.
    query_ids: `[N]` labels of any sort; equal ones are one query.
    weights: `[N]` weights or a mask.
    average: `queries` counts every query once, `weights` by its weight.

  Returns:
    A float, or `[M]`; NaN where no query has both labels.

  >>> query_auc([0.9, 0.1, 0.2, 0.3], [1, 0, 1, 0], ["a", "a", "b", "b"])
  0.5
  """
  checks.one_of("average", average, AVERAGES)
  rows, labels, weights, live = _checked(scores, labels, weights)
  query_ids = np.asarray(query_ids)
  checks.same_shape("query_ids", query_ids.shape, "one model", live.shape)
  if not len(labels):
    return _like(scores, [np.nan] * len(rows))
  _, groups = np.unique(query_ids[live], return_inverse=True)
  out = []
  for row in rows:
    values, sizes = _grouped_auc(row, labels, weights, groups)
    sizes = np.where(np.isnan(values), 0.0, sizes)
    sizes = np.sign(sizes) if average == "queries" else sizes
    total = sizes.sum()
    out.append(float(np.nansum(values * sizes) / total) if total else np.nan)
  return _like(scores, out)


def ranking_loss(
  scores: ArrayLike,
  labels: ArrayLike,
  query_ids: ArrayLike | None = None,
  weights: ArrayLike | None = None,
) -> float | np.ndarray:
  """1 - AUC; within queries, averaged over them, if there are queries.

  Args:
    scores: `[N]` or `[M, N]`.
    labels: `[N]`, 0 or 1.
    query_ids: `[N]`, as in `query_auc`; None ranks all examples together.
    weights: `[N]` weights or a mask.

  Returns:
    A float, or `[M]`.

  >>> ranking_loss([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
  0.125
  """
  if query_ids is None:
    return 1 - auc(scores, labels, weights)
  return 1 - query_auc(scores, labels, query_ids, weights)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HistogramAUC:
  """A streaming AUC: weights of both classes in bins of the score.

  Pairs within a bin count half, so the value is off by at most half the share
  of such pairs (`max_error`). `init` gives an empty one; `update` is pure and
  jittable, and counts of devices or batches are merged by addition.

  Counts go on beyond the 2^24 where one more is lost in float32: what a sum
  rounds off is kept beside it (`core/narrow.py`). One batch must stay below.

  Attributes:
    positives: `[bins]` weight of label 1.
    negatives: `[bins]` weight of label 0.
    positives_rest, negatives_rest: `[bins]`, what these rounded off.
    low: least score; lower ones go to the first bin.
    high: greatest score; higher ones go to the last bin.
  """

  positives: jax.Array
  negatives: jax.Array
  positives_rest: jax.Array
  negatives_rest: jax.Array
  low: float = dataclasses.field(default=0.0, metadata={"static": True})
  high: float = dataclasses.field(default=1.0, metadata={"static": True})

  @classmethod
  def init(
    cls, num_bins: int = 8192, *, low: float = 0.0, high: float = 1.0
  ) -> HistogramAUC:
    """Empty bins of equal width over [low, high]."""
    checks.positive_int("num_bins", num_bins)
    checks.positive("high - low", high - low)
    empty = jnp.zeros(num_bins)
    return cls(*4 * (empty,), low, high)

  def update(
    self,
    scores: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
  ) -> HistogramAUC:
    """Counts examples.

    Args:
      scores: `[N]`; NaN ones make the counts NaN.
      labels: `[N]` of 0 or 1; others are refused, or where they are traced make
        the counts NaN (`core.labels`).
      weights: `[N]` weights or a mask.

    Raises:
      ValueError: shapes that differ; a bad label, unless traced.
    """
    scores = jnp.asarray(scores)
    checks.same_shape("labels", np.shape(labels), "scores", scores.shape)
    weights = jnp.ones(scores.shape) if weights is None else weights
    weights = jnp.asarray(weights).astype(self.positives.dtype)
    checks.same_shape("weights", weights.shape, "scores", scores.shape)
    index, bad = labels_lib.check("labels", labels, 2, weights)
    return _count(self, scores, index, jnp.where(bad, jnp.nan, weights))

  def merge(self, other: HistogramAUC) -> HistogramAUC:
    """The counts of both."""
    mine = (*self.positives.shape, self.low, self.high)
    its = (*other.positives.shape, other.low, other.high)
    if mine != its:
      raise ValueError(
        f"histograms of different (bins, low, high) do not merge: {mine} and "
        f"{its}."
      )
    return _added(
      _added(self, other.positives, other.negatives),
      other.positives_rest,
      other.negatives_rest,
    )

  @jax.jit
  def compute(self) -> jax.Array:
    """The AUC, `[]`; NaN while there is only one class."""
    positives, negatives = _shares(self)
    below = jnp.cumsum(negatives) - negatives
    return jnp.sum(positives * (below + negatives / 2))

  @jax.jit
  def max_error(self) -> jax.Array:
    """How far `compute` can be from the exact AUC, rounding aside."""
    positives, negatives = _shares(self)
    return jnp.sum(positives * negatives) / 2


def _added(histogram, positives, negatives):
  one = narrow.two_sum(histogram.positives, histogram.positives_rest, positives)
  two = narrow.two_sum(histogram.negatives, histogram.negatives_rest, negatives)
  names = ("positives", "positives_rest", "negatives", "negatives_rest")
  return dataclasses.replace(histogram, **dict(zip(names, one + two)))


def _shares(histogram):
  positives = histogram.positives + histogram.positives_rest
  negatives = histogram.negatives + histogram.negatives_rest
  return positives / jnp.sum(positives), negatives / jnp.sum(negatives)


@jax.jit
def _count(histogram, scores, labels, weights):
  low, high = histogram.low, histogram.high
  scores = jnp.where(weights != 0, scores, low)
  weights = jnp.where(jnp.isnan(scores), jnp.nan, weights)
  size = histogram.positives.shape[0]
  place = jnp.floor((scores - low) / (high - low) * size)
  place = jnp.clip(place, 0, size - 1).astype(int)
  hits = jnp.where(labels == 1, weights, 0)
  misses = jnp.where(labels == 1, 0, weights)
  zeros = jnp.zeros_like(histogram.positives)
  return _added(
    histogram, zeros.at[place].add(hits), zeros.at[place].add(misses)
  )


def _top(scores, groups, num_groups, n):
  """Items of the top n of each group: `[N]` of the n and `[G]` the first."""
  order = np.lexsort((-scores, groups))
  sizes = np.bincount(groups, minlength=num_groups)
  firsts = np.cumsum(sizes) - sizes
  rank = np.arange(len(order)) - firsts[groups[order]]
  chosen = np.zeros(len(order), bool)
  chosen[order[rank < n]] = True
  return chosen, order[firsts]


def swap_rate(
  scores: ArrayLike,
  query_ids: ArrayLike,
  n: int = 1,
  *,
  mask: ArrayLike | None = None,
  reduce: str = "mean",
) -> dict[str, float | np.ndarray]:
  """How often two models recommend something else.

  Args:
    scores: `[M, N]` scores of N (query, item) rows by two models or more; of
      tied items the earlier row is ranked first, by every model.
    query_ids: `[N]` labels of any sort; equal ones are one query.
    n: length of the list. A query of n items or fewer has one possible set;
      it is counted, as a query that is not swapped.
    mask: `[N]`; rows of zero are removed.
    reduce: `mean` over pairs of models, or `pairs`.

  Returns:
    `top_set`, the share of queries whose set of top-n items differs, and
    `top_item`, the share whose first item differs; floats, or `[P]` arrays.

  Raises:
    ValueError: shapes do not fit, one model, NaN scores or no row.

  >>> swap_rate([[3, 2, 1, 5], [1, 2, 3, 5]], ["a", "a", "a", "b"], n=2)
  {'top_set': 0.5, 'top_item': 0.5}
  """
  checks.positive_int("n", n)
  checks.one_of("reduce", reduce, ("mean", "pairs"))
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 2 or len(scores) < 2:
    raise ValueError(
      f"scores has shape {scores.shape}: it must be [models, rows] with two "
      "models or more."
    )
  size, query_ids = scores.shape[1:], np.asarray(query_ids)
  checks.same_shape("query_ids", query_ids.shape, "one model of scores", size)
  if mask is not None:
    checks.same_shape("mask", np.shape(mask), "one model of scores", size)
    live = np.asarray(mask) != 0
    scores, query_ids = scores[:, live], query_ids[live]
  if not scores.size or np.isnan(scores).any():
    raise ValueError("scores must have a row, and NaN in masked rows only.")
  _, groups = np.unique(query_ids, return_inverse=True)
  rates = _swap_rates(scores, groups, n)
  if reduce == "pairs":
    return rates
  return {name: float(value.mean()) for name, value in rates.items()}


def _swap_rates(scores, groups, n) -> dict[str, np.ndarray]:
  num_groups = int(groups.max()) + 1
  tops = [_top(row, groups, num_groups, n) for row in scores]
  sets, items = [], []
  for i, j in zip(*differences.pair_indices(len(tops))):
    differs = np.bincount(groups, tops[i][0] ^ tops[j][0], num_groups) > 0
    sets.append(differs.mean())
    items.append((tops[i][1] != tops[j][1]).mean())
  return {"top_set": np.array(sets), "top_item": np.array(items)}


def log_loss(
  preds: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  eps: float = LOSS_EPS,
) -> jax.Array:
  """Mean of -log P(true label) for each model.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities; one model will do.
    labels: `[N]` class indices; 0 or 1 for binary predictions. Others are
      refused, or where they are traced make the loss NaN (`core.labels`).
    weights: `[N]` weights or a mask.
    eps: floor of the probability.

  Returns:
    `[M]`; NaN, with gradient 0, if no example has a weight.

  >>> [round(x, 4) for x in log_loss([[0.5, 0.5]], [0, 1]).tolist()]
  [0.6931]
  """
  checks.positive("eps", eps)
  true = differences.label_probability(preds, labels, weights)
  weights = jnp.ones(true.shape[1]) if weights is None else weights
  weights = jnp.asarray(weights).astype(true.dtype)
  checks.same_shape("weights", weights.shape, "one model", true.shape[1:])
  total = differences.weighted_sum(-jnp.log(jnp.maximum(true, eps)), weights)
  return arrays.ratio(total, jnp.sum(weights), jnp.nan)
