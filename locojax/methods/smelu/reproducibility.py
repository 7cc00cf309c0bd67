"""Prediction difference (PD): how much identically trained models disagree.

Shamir, Coviello 2020, "Anti-Distillation", arXiv 2010.09923; Shamir, Lin,
Coviello 2020, arXiv 2010.09931; Shamir, Lin 2022, arXiv 2202.06499.

Letters in shapes: M models, N examples, K classes, P = M (M - 1) / 2 pairs of
models in the order of `differences.pair_indices`: (0, 1), (0, 2), ..., (1, 2).

Predictions are probabilities: `[M, N]` of the positive outcome, or `[M, N, K]`
over classes. There are two forms, and a number without its form says little:

* *deviation*: distance of each model from the mean of the models;
* *pairwise*: distance between two models, averaged over the pairs. For M = 2
  it is exactly twice the deviation.

`weights` are `[N]`, zero or more; an example of weight zero counts as removed,
whatever it holds. `reduce` says what is left of the axes: `mean` a number,
`examples` an `[N]` array (NaN at removed examples), `pairs` a `[P]` array,
`classes` a `[K]` array. Values are in float32, or float64 where the input is.
Values are checked when they are concrete; under `jit` what would be an error
gives NaN or is computed as it stands; a bad label gives NaN (`core.labels`). Of
no examples every difference is NaN, with gradient 0.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks
from locojax.methods.smelu import differences

MODES = ("pairwise", "deviation")


def _reduce(values, weights, reduce: str):
  """`[R, N]` or `[R, N, K]` values to what `reduce` asks for."""
  if reduce == "examples":
    live = differences.spread_right(weights, values.ndim) != 0
    return jnp.mean(jnp.where(live, values, jnp.nan), axis=0)
  sums = differences.weighted_sum(values, weights)
  means = arrays.ratio(sums, jnp.sum(weights), jnp.nan)
  if reduce == "pairs":
    return means
  return jnp.mean(means, axis=0)


@functools.partial(jax.jit, static_argnames=("fn", "reduce"))
def _apply(fn, preds, weights, options, reduce):
  return _reduce(
    fn(preds, per_class=reduce == "classes", **options), weights, reduce
  )


def _evaluate(fn, preds, weights, reduce, allowed, check=None, **options):
  preds, weights = differences.check_predictions(preds, weights)
  checks.one_of("reduce", reduce, allowed)
  per_class = reduce == "classes"
  if per_class and preds.ndim == 2:
    raise ValueError(
      f"reduce='classes' is not allowed for preds of shape {preds.shape}: it "
      "needs [models, examples, classes]."
    )
  if check is not None:
    check(preds, weights, per_class=per_class)
  return _apply(fn, preds, weights, options, reduce)


@functools.lru_cache
def _deviation_of(p: float):
  return functools.partial(differences.deviation_values, p=p)


def prediction_difference(
  preds: ArrayLike,
  p: float = 1,
  weights: ArrayLike | None = None,
  *,
  reduce: str = "mean",
) -> jax.Array:
  """PD_p: the deviation of models from their mean.

    PD_p = (1/N) sum_n [ (1/M) sum_m |P_mn - mean_m P_mn|^p ]^(1/p),

  summed over classes if there are any. p = 1 is the mean absolute deviation,
  p = 2 the standard deviation.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities.
    p: exponent, finite and 1 or more.
    weights: `[N]` weights or a mask.
    reduce: `mean`, `examples`, or `classes` (each class alone).

  Returns:
    `[]`, `[N]` or `[K]`. Exactly zero for equal models.

  Raises:
    ValueError: see `differences.check_predictions`; or p below 1.

  >>> round(float(prediction_difference([[0.1, 0.5], [0.2, 0.4]])), 4)
  0.05
  """
  checks.in_range("p", p, 1, float(np.finfo(np.float32).max))
  allowed = ("mean", "examples", "classes")
  return _evaluate(_deviation_of(p), preds, weights, reduce, allowed)


def pairwise_prediction_difference(
  preds: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  reduce: str = "mean",
) -> jax.Array:
  """The mean of |P_i - P_j| over examples and pairs of models.

  Summed over classes if there are any: twice the total variation distance.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities.
    weights: `[N]` weights or a mask.
    reduce: `mean`, `examples`, `pairs` or `classes`.

  Returns:
    `[]`, `[N]`, `[P]` or `[K]`. For two models twice `prediction_difference`.

  >>> round(float(pairwise_prediction_difference([[0.1], [0.4]])), 4)
  0.3
  """
  allowed = ("mean", "examples", "pairs", "classes")
  return _evaluate(differences.pairwise_values, preds, weights, reduce, allowed)


def relative_prediction_difference(
  preds: ArrayLike,
  mode: str = "pairwise",
  eps: float = 0.0,
  *,
  weights: ArrayLike | None = None,
  reduce: str = "mean",
) -> jax.Array:
  """Relative PD: differences over the mean prediction of each example.

    pairwise   |P_in - P_jn| / ((P_in + P_jn) / 2), averaged over pairs
    deviation  (1/M) sum_m |P_mn - mean P_n| / mean P_n

  The pairwise form is the one of the SmeLU blog post; for two models it is
  exactly twice the other. With classes, the relative PD of each class is
  weighted by the mean probability of the class and summed; for eps = 0 this is
  the absolute form, as the probabilities sum to 1.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities.
    mode: `pairwise` or `deviation`.
    eps: floor of the denominator. Tiny predictions make the relative PD
      explode: report the least prediction along with it.
    weights: `[N]` weights or a mask.
    reduce: `mean`, `examples`, `classes` (each class alone, unweighted), or,
      for the pairwise form, `pairs`.

  Returns:
    `[]`, `[N]`, `[K]` or `[P]`. The pairwise form is in [0, 2].

  Raises:
    ValueError: see `differences.check_predictions`; or a denominator of
      zero with eps = 0.

  >>> preds = [[0.1, 0.5, 0.9], [0.2, 0.4, 0.9]]
  >>> round(float(relative_prediction_difference(preds)), 4)
  0.2963
  >>> round(float(relative_prediction_difference(preds, "deviation")), 4)
  0.1481
  """
  checks.one_of("mode", mode, MODES)
  checks.nonnegative("eps", eps)
  pairwise = mode == "pairwise"
  fn = (
    differences.relative_pairwise_values
    if pairwise
    else differences.relative_deviation_values
  )
  allowed = ("mean", "examples", "classes") + (("pairs",) if pairwise else ())
  check = functools.partial(differences.check_relative, mode=mode, eps=eps)
  return _evaluate(fn, preds, weights, reduce, allowed, check, eps=eps)


def signed_prediction_difference(
  preds: ArrayLike, weights: ArrayLike | None = None
) -> jax.Array:
  """The mean of P_i - P_j over examples: bias between two models.

  A difference of this size is a shift of the whole model; what is left of the
  PD without it is disagreement on single examples.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities.
    weights: `[N]` weights or a mask.

  Returns:
    `[P]`, or `[P, K]` by class.

  >>> signed_prediction_difference([[0.5, 0.25], [0.25, 0.25]]).tolist()
  [0.125]
  """
  return _evaluate(
    differences.signed_values, preds, weights, "pairs", ("pairs",)
  )


def hellinger_prediction_difference(
  preds: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  reduce: str = "mean",
) -> jax.Array:
  """Hellinger distance of two models, averaged over examples and pairs.

    H(p, q) = sqrt(1 - sum_k sqrt(p_k q_k)) = sqrt(sum_k (√p_k - √q_k)^2 / 2),

  over both outcomes for binary predictions.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities.
    weights: `[N]` weights or a mask.
    reduce: `mean`, `examples` or `pairs`.

  Returns:
    `[]`, `[N]` or `[P]`, in [0, 1]; 1 where the supports are disjoint.

  >>> float(hellinger_prediction_difference([[0.0], [1.0]]))
  1.0
  """
  allowed = ("mean", "examples", "pairs")
  return _evaluate(
    differences.hellinger_values, preds, weights, reduce, allowed
  )


def disagreement(
  preds: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  threshold: float = 0.5,
  reduce: str = "mean",
) -> jax.Array:
  """Churn: the share of examples on which two models decide differently.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities.
    weights: `[N]` weights or a mask.
    threshold: binary decisions are `preds >= threshold`, in [0, 1]; of classes
      the most probable is chosen (the first, if tied).
    reduce: `mean`, `examples` or `pairs`.

  Returns:
    `[]`, `[N]` or `[P]`, in [0, 1].

  >>> float(disagreement([[0.4, 0.9], [0.6, 0.8]]))
  0.5
  """
  checks.in_range("threshold", threshold, 0, 1)
  return _evaluate(
    differences.disagreement_values,
    preds,
    weights,
    reduce,
    ("mean", "examples", "pairs"),
    threshold=threshold,
  )


def logit_difference(
  preds: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  eps: float = 1e-6,
  reduce: str = "mean",
) -> jax.Array:
  """The mean of |logit P_i - logit P_j| over examples and pairs.

  With classes, the mean over classes of the log-odds of each against the rest.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities.
    weights: `[N]` weights or a mask.
    eps: predictions are clipped to [eps, 1 - eps], in (0, 0.5).
    reduce: `mean`, `examples`, `pairs` or `classes`.

  Returns:
    `[]`, `[N]`, `[P]` or `[K]`.

  >>> round(float(logit_difference([[0.5], [0.75]])), 4)
  1.0986
  """
  checks.in_range("eps", eps, np.finfo(np.float32).eps, 0.5)
  allowed = ("mean", "examples", "pairs", "classes")
  return _evaluate(
    differences.logit_values, preds, weights, reduce, allowed, eps=eps
  )


def label_prediction_difference(
  preds: ArrayLike,
  labels: ArrayLike,
  p: float = 1,
  *,
  weights: ArrayLike | None = None,
  reduce: str = "mean",
) -> jax.Array:
  """PD_p of the probability of the true label alone.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities.
    labels: `[N]` class indices; 0 or 1 for binary predictions.
    p: as in `prediction_difference`.
    weights: `[N]` weights or a mask.
    reduce: `mean` or `examples`.

  Returns:
    `[]` or `[N]`.
  """
  preds, weights = differences.check_predictions(preds, weights)
  true = differences.label_probability(preds, labels, weights)
  return prediction_difference(true, p, weights, reduce=reduce)


def relative_label_prediction_difference(
  preds: ArrayLike,
  labels: ArrayLike,
  mode: str = "pairwise",
  eps: float = 0.0,
  *,
  weights: ArrayLike | None = None,
  reduce: str = "mean",
) -> jax.Array:
  """Relative PD of the probability of the true label alone.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities.
    labels: `[N]` class indices; 0 or 1 for binary predictions.
    mode: as in `relative_prediction_difference`, and so is `eps`.
    eps: floor of the denominator.
    weights: `[N]` weights or a mask.
    reduce: `mean`, `examples`, or for the pairwise form `pairs`.

  Returns:
    `[]`, `[N]` or `[P]`.
  """
  preds, weights = differences.check_predictions(preds, weights)
  true = differences.label_probability(preds, labels, weights)
  return relative_prediction_difference(
    true, mode, eps, weights=weights, reduce=reduce
  )


def ensemble(preds: ArrayLike, k: int) -> jax.Array:
  """Ensembles of k models each: the mean of their probabilities.

  Args:
    preds: `[M, ...]`, M a multiple of k.
    k: models in an ensemble; neighbours on the first axis are joined.

  Returns:
    `[M // k, ...]`, to be given to any metric here.

  Raises:
    ValueError: k below 1, or M not a multiple of k.

  >>> ensemble([[0.0], [0.5], [1.0], [0.5]], 2).tolist()
  [[0.25], [0.75]]
  """
  preds = arrays.as_float(preds)
  checks.positive_int("k", k)
  checks.divisible("number of models", preds.shape[0], "k", k)
  return preds.reshape((-1, k) + preds.shape[1:]).mean(axis=1)
