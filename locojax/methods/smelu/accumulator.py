"""All prediction differences at once: streaming sums, and the report.

Letters in shapes as in `prediction_difference`: M models, N examples, K
classes, P pairs. The names of the quantities say their form:

| name | rows | what |
| --- | --- | --- |
| pd_1, pd_2 | 1 | deviation from the mean of the models, p = 1 and 2 |
| relative_pd_deviation | 1 | the same, p = 1, over the mean prediction |
| pairwise_pd | P | absolute difference of two models |
| relative_pd_pairwise | P | the same over the mean of the two |
| signed_pd | P | first minus second model; by class if there are classes |
| hellinger_pd, disagreement, logit_difference | P | |
| label_pd_1, label_relative_pd_deviation | 1 | of the true label alone |
| label_pairwise_pd, label_relative_pd_pairwise | P | |
| log_loss, accuracy | M | |

Those of the last three lines need labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import checks, metrics, narrow
from locojax.core import labels as labels_lib
from locojax.methods.smelu import differences, ranking

DEVIATION = (
  "pd_1",
  "pd_2",
  "relative_pd_deviation",
  "label_pd_1",
  "label_relative_pd_deviation",
)
PAIRWISE = (
  "pairwise_pd",
  "relative_pd_pairwise",
  "hellinger_pd",
  "disagreement",
  "logit_difference",
  "label_pairwise_pd",
  "label_relative_pd_pairwise",
)
PER_MODEL = ("log_loss", "accuracy")
SIGNED = "signed_pd"


def _label_values(preds, labels, eps, threshold):
  true = differences.label_probability(preds, labels)
  labels, bad = labels_lib.check(
    "labels", labels, differences.num_classes(preds)
  )
  if preds.ndim == 2:
    hits = (preds >= threshold) == (labels == 1)
  else:
    hits = jnp.argmax(preds, axis=-1) == labels
  bad = jnp.broadcast_to(bad, hits.shape)
  return {
    "label_pd_1": differences.deviation_values(true),
    "label_relative_pd_deviation": differences.relative_deviation_values(
      true, eps=eps
    ),
    "label_pairwise_pd": differences.pairwise_values(true),
    "label_relative_pd_pairwise": differences.relative_pairwise_values(
      true, eps=eps
    ),
    "log_loss": -jnp.log(jnp.maximum(true, ranking.LOSS_EPS)),
    "accuracy": labels_lib.spoil(hits.astype(preds.dtype), bad),
  }


def _values(preds, labels, eps, threshold):
  """Name -> `[rows, N]` values, `[P, N, K]` for the signed one of classes."""
  out = {
    "pd_1": differences.deviation_values(preds, p=1),
    "pd_2": differences.deviation_values(preds, p=2),
    "relative_pd_deviation": differences.relative_deviation_values(
      preds, eps=eps
    ),
    "pairwise_pd": differences.pairwise_values(preds),
    "relative_pd_pairwise": differences.relative_pairwise_values(
      preds, eps=eps
    ),
    SIGNED: differences.signed_values(preds),
    "hellinger_pd": differences.hellinger_values(preds),
    "disagreement": differences.disagreement_values(preds, threshold=threshold),
    "logit_difference": differences.logit_values(preds),
  }
  if labels is not None:
    out |= _label_values(preds, labels, eps, threshold)
  return out


@jax.jit
def _batch_sums(preds, labels, weights, eps, threshold):
  """Name -> weighted sums over examples; lowest predictions `[M]`."""
  values = _values(preds, labels, eps, threshold)
  totals = {n: differences.weighted_sum(v, weights) for n, v in values.items()}
  live = differences.spread_right(weights, preds.ndim) != 0
  axes = tuple(range(1, preds.ndim))
  return totals, jnp.min(jnp.where(live, preds, jnp.inf), axis=axes)


@jax.jit
def _example_means(preds, labels, weights, eps, threshold):
  """Name -> `[N]` mean over pairs or models; NaN where removed."""
  values = _values(preds, labels, eps, threshold)
  del values[SIGNED]
  return {
    name: jnp.where(weights != 0, jnp.mean(value, axis=0), jnp.nan)
    for name, value in values.items()
  }


def _checked(preds, labels, weights, eps):
  """Sound predictions, labels and weights; zero denominators are refused."""
  preds, weights = differences.check_predictions(preds, weights)
  differences.check_relative(preds, weights, "pairwise", eps)
  if labels is None:
    return preds, None, weights
  true = differences.label_probability(preds, labels, weights)
  differences.check_relative(true, weights, "pairwise", eps)
  index, bad = labels_lib.check(
    "labels", labels, differences.num_classes(preds), weights
  )
  return preds, jnp.where(bad, -1, index), weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PDAccumulator:
  """Sums of all prediction differences over a stream of examples.

  `init` gives an empty one and `update` adds a batch: a pure function that may
  run under `jit`, on batches sharded over the examples. `merge` joins those of
  two parts of the data. Sums of pairs are kept apart, for intervals over
  models. Sums are float32 unless another `dtype` is asked for; what they round
  off is kept beside them (`core/narrow.py`), so that examples count beyond the
  2^24 where float32 alone would lose them.

  Attributes:
    means: name -> `Mean` of a `[rows]` total and the `[]` weight.
    rests: likewise, what these rounded off.
    lowest: `[M]` least prediction of each model.
    eps: floor of the denominator of relative differences.
    threshold: of the decisions for binary predictions.
    labelled: whether updates come with labels.

  >>> empty = PDAccumulator.init(num_models=2)
  >>> found = empty.update([[0.5, 0.25]] * 2).update([[0.5], [0.25]])
  >>> round(float(found.compute()["pairwise_pd"]), 4)
  0.0833
  """

  means: dict[str, metrics.Mean]
  rests: dict[str, metrics.Mean]
  lowest: jax.Array
  eps: float = dataclasses.field(metadata={"static": True})
  threshold: float = dataclasses.field(metadata={"static": True})
  labelled: bool = dataclasses.field(metadata={"static": True})

  @classmethod
  def init(
    cls,
    num_models: int,
    *,
    num_classes: int | None = None,
    labelled: bool = False,
    eps: float = 0.0,
    threshold: float = 0.5,
    dtype: Any = jnp.float32,
  ) -> PDAccumulator:
    """Empty sums.

    Args:
      num_models: M, two or more.
      num_classes: K of `[M, N, K]` predictions; None for binary `[M, N]`.
      labelled: whether every update will have labels.
      eps: floor of the denominator of relative differences.
      threshold: binary decisions are `preds >= threshold`, in [0, 1].
      dtype: of the sums, float32 or float64.
    """
    if checks.positive_int("num_models", num_models) < 2:
      raise ValueError("num_models=1 is not allowed: it must be 2 or more.")
    checks.nonnegative("eps", eps)
    checks.in_range("threshold", threshold, 0, 1)
    shape = (num_models, 1)
    shape += () if num_classes is None else (num_classes,)
    preds = jax.ShapeDtypeStruct(shape, dtype)
    weights = jax.ShapeDtypeStruct((1,), dtype)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32) if labelled else None
    totals, _ = jax.eval_shape(_batch_sums, preds, labels, weights, 0.0, 0.0)
    means = {
      name: metrics.Mean(jnp.zeros(t.shape, dtype), jnp.zeros((), dtype))
      for name, t in totals.items()
    }
    lowest = jnp.full(num_models, jnp.inf, dtype)
    rests = jax.tree.map(jnp.zeros_like, means)
    return cls(means, rests, lowest, eps, threshold, labelled)

  @property
  def num_models(self) -> int:
    """M."""
    return self.lowest.shape[0]

  def update(
    self,
    preds: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
  ) -> PDAccumulator:
    """Adds examples.

    Args:
      preds: `[M, N]` or `[M, N, K]` probabilities.
      labels: `[N]` class indices, if and only if `labelled`. Others are
        refused, or where they are traced make what needs labels NaN
        (`core.labels`).
      weights: `[N]` weights or a mask. A batch of weight zero alone is refused
        unless traced.

    Returns:
      A new accumulator.

    Raises:
      ValueError: other models or classes than at `init`; labels missing or
        not expected; and, unless traced, bad values (see
        `differences.check_predictions`).
    """
    if (labels is not None) != self.labelled:
      raise ValueError(
        f"labels are {'missing' if self.labelled else 'not expected'}: this "
        f"accumulator was made with labelled={self.labelled}."
      )
    preds, labels, weights = _checked(preds, labels, weights, self.eps)
    totals, lowest = _batch_sums(
      preds, labels, weights, self.eps, self.threshold
    )
    checks.same_shape(
      "preds of one class and example",
      lowest.shape + totals[SIGNED].shape[1:],
      "the accumulator",
      self.lowest.shape + self.means[SIGNED].total.shape[1:],
    )
    dtype, weight = self.lowest.dtype, jnp.sum(weights)
    means = {
      name: metrics.Mean(t.astype(dtype), weight.astype(dtype))
      for name, t in totals.items()
    }
    return self._with(means, lowest.astype(dtype))

  def _with(self, means, lowest) -> PDAccumulator:
    """The sums with those of more examples."""
    out, rests = {}, {}
    for name, new in means.items():
      old, rest = self.means[name], self.rests[name]
      total = narrow.two_sum(old.total, rest.total, new.total)
      weight = narrow.two_sum(old.weight, rest.weight, new.weight)
      out[name] = metrics.Mean(total[0], weight[0])
      rests[name] = metrics.Mean(total[1], weight[1])
    return dataclasses.replace(
      self,
      means=out,
      rests=rests,
      lowest=jnp.minimum(self.lowest, lowest),
    )

  def merge(self, other: PDAccumulator) -> PDAccumulator:
    """The sums over the examples of both."""
    mine = (self.eps, self.threshold, self.labelled, self.num_models)
    its = (other.eps, other.threshold, other.labelled, other.num_models)
    if mine != its:
      raise ValueError(
        "accumulators of different (eps, threshold, labelled, num_models) do "
        f"not merge: {mine} and {its}."
      )
    both = self._with(other.means, other.lowest)
    return both._with(other.rests, other.lowest)

  def rows(self) -> dict[str, jax.Array]:
    """Name -> means of each pair, model or class; NaN while empty.

    Shapes are as in the table at the head of this file: `[1]`, `[P]` or `[M]`.
    Give a `[P]` array to `intervals.jackknife_models`.
    """
    both = metrics.merge(self.means, self.rests)
    return {name: m.value() for name, m in both.items()}

  def compute(self) -> dict[str, jax.Array]:
    """Name -> mean over pairs or models, `[]`; NaN while empty.

    `signed_pd` stays `[P]` or `[P, K]`; `lowest_prediction` is there too.
    """
    rows = self.rows()
    out = {n: v if n == SIGNED else jnp.mean(v) for n, v in rows.items()}
    return {**out, "lowest_prediction": jnp.min(self.lowest)}


def _chunks(preds, labels, weights, chunk):
  """Slices of equal size, about `chunk`; the last is filled with weight 0."""
  size = preds.shape[1]
  chunk = -(-size // -(-size // chunk))
  pad = -size % chunk

  if pad:
    fill = lambda x: jnp.pad(x, (0, pad))
    preds = jnp.pad(preds, [(0, 0), (0, pad), (0, 0)][: preds.ndim])
    labels = None if labels is None else fill(labels)
    weights = fill(weights)
  for start in range(0, size, chunk):
    part = slice(start, start + chunk)
    yield (
      preds[:, part],
      None if labels is None else labels[part],
      weights[part],
    )


def example_values(
  preds: ArrayLike,
  labels: ArrayLike | None = None,
  *,
  weights: ArrayLike | None = None,
  eps: float = 0.0,
  threshold: float = 0.5,
  chunk: int = 65536,
) -> dict[str, np.ndarray]:
  """All quantities for each example, averaged over pairs or models.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities.
    labels: `[N]` class indices.
    weights: `[N]` weights or a mask.
    eps: floor of the denominator of relative differences.
    threshold: of the decisions for binary predictions.
    chunk: examples in memory together.

  Returns:
    Name -> `[N]`, NaN at removed examples; without `signed_pd`. For
    `intervals.bootstrap_examples`.
  """
  checks.nonnegative("eps", eps)
  checks.positive_int("chunk", chunk)
  preds, labels, weights = _checked(preds, labels, weights, eps)
  parts = [
    jax.device_get(_example_means(*part, eps, threshold))
    for part in _chunks(preds, labels, weights, chunk)
  ]
  size = preds.shape[1]
  return {n: np.concatenate([p[n] for p in parts])[:size] for n in parts[0]}


@jax.jit
def _jitted_update(found, preds, labels, weights):
  return found.update(preds, labels, weights=weights)


def _accumulate(preds, labels, weights, eps, threshold, chunk):
  found = PDAccumulator.init(
    preds.shape[0],
    num_classes=preds.shape[2] if preds.ndim == 3 else None,
    labelled=labels is not None,
    eps=eps,
    threshold=threshold,
    dtype=preds.dtype,
  )
  for part in _chunks(preds, labels, weights, chunk):
    found = _jitted_update(found, *part)
  return found


def _rankings(preds, labels, weights, query_ids) -> dict[str, Any]:
  """AUC and ranking loss of each model, for binary predictions."""
  scores, labels = np.asarray(preds), np.asarray(labels)
  weights = np.asarray(weights)
  out = {"auc": ranking.auc(scores, labels, weights)}
  if query_ids is not None:
    out["query_auc"] = ranking.query_auc(scores, labels, query_ids, weights)
  out["ranking_loss"] = 1 - out.get("query_auc", out["auc"])
  return out


def pd_report(
  preds: ArrayLike,
  labels: ArrayLike | None = None,
  *,
  weights: ArrayLike | None = None,
  query_ids: ArrayLike | None = None,
  top_n: int = 1,
  eps: float = 0.0,
  threshold: float = 0.5,
  chunk: int = 65536,
) -> dict[str, Any]:
  """Everything that is said about the reproducibility of models.

  PD without accuracy is meaningless (a constant model has none), and relative
  PD without the least prediction nearly so; hence both are here.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities.
    labels: `[N]` class indices; 0 or 1 for binary predictions.
    weights: `[N]` weights or a mask.
    query_ids: `[N]` queries, for swap rates and per-query AUC; binary only.
    top_n: length of the list that swap rates compare.
    eps: floor of the denominator of relative differences.
    threshold: of the decisions for binary predictions.
    chunk: examples in memory together.

  Returns:
    Numbers by the names at the head of this file, and `num_models`,
    `num_examples` (of weight above zero), `lowest_prediction`, `signed_pd` (a
    list, by pair); with labels `log_loss`, `accuracy`, and for binary
    predictions `auc`, `query_auc` (with queries), `ranking_loss`, means over
    models, each with a list `<name>_by_model`; with queries `swap_top_set`,
    `swap_top_item`. Each pairwise quantity has a list `<name>_by_pair`.

  Raises:
    ValueError: as `differences.check_predictions` and
      `differences.check_relative`; queries for predictions over classes.

  >>> report = pd_report([[0.1, 0.5, 0.9], [0.2, 0.4, 0.9]], [0, 1, 1])
  >>> round(report["relative_pd_pairwise"], 4), report["auc"]
  (0.2963, 1.0)
  """
  checks.nonnegative("eps", eps)
  checks.positive_int("chunk", chunk)
  preds, labels, weights = _checked(preds, labels, weights, eps)
  if query_ids is not None and preds.ndim == 3:
    raise ValueError(
      f"query_ids are not allowed for preds of shape {preds.shape}: items are "
      "ranked by binary predictions, [models, examples]."
    )
  found = _accumulate(preds, labels, weights, eps, threshold, chunk)
  out = {
    "num_models": found.num_models,
    "num_examples": int((weights != 0).sum()),
    **_plain(found.compute()),
  }
  by_model = {k: v for k, v in found.rows().items() if k in PER_MODEL}
  if labels is not None and preds.ndim == 2:
    by_model |= _rankings(preds, labels, weights, query_ids)
  for name, values in by_model.items():
    out[name] = float(np.mean(values))
    out[f"{name}_by_model"] = np.asarray(values).tolist()
  for name, values in found.rows().items():
    if name in PAIRWISE:
      out[f"{name}_by_pair"] = np.asarray(values).tolist()
  if query_ids is not None:
    swaps = ranking.swap_rate(preds, query_ids, top_n, mask=weights)
    out |= {f"swap_{name}": value for name, value in swaps.items()}
  return out


def _plain(values: Mapping[str, jax.Array]) -> dict[str, Any]:
  return {k: v.tolist() for k, v in jax.device_get(dict(values)).items()}
