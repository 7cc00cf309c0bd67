"""Checks of predictions, and their differences example by example.

What `prediction_difference` averages and `accumulator` adds up. Letters in
shapes: M models, N examples, K classes, P = M (M - 1) / 2 pairs of models.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks
from locojax.core import labels as labels_lib

_RANGE_SLACK = 1e-6


def pair_indices(num_models: int) -> tuple[np.ndarray, np.ndarray]:
  """First and second model of every pair, `[P]` each.

  >>> [index.tolist() for index in pair_indices(3)]
  [[0, 0, 1], [1, 2, 2]]
  """
  return np.triu_indices(num_models, k=1)


def spread_right(weights: jax.Array, ndim: int) -> jax.Array:
  """`[N]` weights that broadcast with values of `ndim` axes, `[M, N, ...]`."""
  return weights.reshape(weights.shape + (1,) * (ndim - 2))


@jax.jit
def _extremes(preds, weights):
  """Numbers that tell sound predictions and weights from others."""
  live = spread_right(weights, preds.ndim) != 0
  gap = jnp.abs(jnp.sum(preds, axis=-1) - 1) if preds.ndim == 3 else 0 * preds
  return {
    "low": jnp.min(jnp.where(live, preds, jnp.inf)),
    "high": jnp.max(jnp.where(live, preds, -jnp.inf)),
    "gap": jnp.max(jnp.where(weights != 0, gap, 0)),
    "least_weight": jnp.min(weights),
    "total_weight": jnp.sum(weights),
  }


def _check_values(preds, weights, sum_slack: float) -> None:
  found = jax.device_get(_extremes(preds, weights))
  least, total = found["least_weight"], found["total_weight"]
  if not (least >= 0 and 0 < total < math.inf):
    raise ValueError(
      f"weights has the least value {least:g} and the sum {total:g}: weights "
      "must be finite, 0 or more, and not all 0."
    )
  low, high, gap = found["low"], found["high"], found["gap"]
  if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):
    raise ValueError(
      f"preds holds values from {low:g} to {high:g}: predictions must be "
      "probabilities in [0, 1], with no NaN (pass logits through a sigmoid or "
      "softmax first)."
    )
  if not gap <= sum_slack:
    raise ValueError(
      f"preds has shape {preds.shape} and rows whose sum is off by {gap:g}: "
      "over the classes of the last axis probabilities must sum to 1."
    )


def check_predictions(
  preds: ArrayLike, weights: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
  """Predictions and weights as arrays, if they are sound.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities, M >= 2, N >= 1, K >= 2.
    weights: `[N]` weights or a mask; None weighs all alike.

  Returns:
    `preds` in float32 or float64, the same for all classes at removed examples
    whatever stood there; and `[N]` weights of that dtype.

  Raises:
    ValueError: wrong shapes; and, unless traced, predictions that are no
      probabilities, rows that do not sum to 1, negative or non-finite weights,
      or none above 0.
  """
  preds = jnp.asarray(preds)
  slack = 2e-2 if preds.dtype in (jnp.float16, jnp.bfloat16) else 1e-3
  preds = arrays.as_float(preds)
  if preds.ndim not in (2, 3) or 0 in preds.shape or preds.shape[2:] == (1,):
    raise ValueError(
      f"preds has shape {preds.shape}: it must be [models, examples] or "
      "[models, examples, classes] with two classes or more."
    )
  if preds.shape[0] < 2:
    raise ValueError(
      f"preds has shape {preds.shape}, so there is one model: a difference "
      "needs two or more on the first axis."
    )
  if weights is None:
    weights = jnp.ones(preds.shape[1], preds.dtype)
  weights = jnp.asarray(weights).astype(preds.dtype)
  checks.same_shape("weights", weights.shape, "one model", preds.shape[1:2])
  if arrays.is_concrete(preds, weights):
    _check_values(preds, weights, slack)
  return _indifferent(preds, weights), weights


def _indifferent(preds: jax.Array, weights: jax.Array | None) -> jax.Array:
  """Predictions that say nothing where the weight is 0: finite, no gradient."""
  if weights is None:
    return preds
  fill = 1 / preds.shape[-1] if preds.ndim == 3 else 0.5
  return jnp.where(spread_right(weights, preds.ndim) != 0, preds, fill)


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
  """Sum over examples: values `[R, N, ...]`, weights `[N]` -> `[R, ...]`."""
  weights = spread_right(weights, values.ndim)
  return jnp.sum(jnp.where(weights != 0, values, 0) * weights, axis=1)


def label_probability(
  preds: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> jax.Array:
  """The probability that each model gives to the true label.

  Args:
    preds: `[M, N]` or `[M, N, K]` probabilities; one model will do.
    labels: `[N]` class indices; 0 or 1 for binary predictions.
    weights: `[N]`; predictions and labels of weight zero may be anything.

  Returns:
    `[M, N]`; NaN where a traced label is out of range (`core.labels`).

  Raises:
    ValueError: wrong shapes; labels out of range, unless traced.

  >>> label_probability([[0.25, 0.75]], [0, 1]).tolist()
  [[0.75, 0.75]]
  """
  preds = arrays.as_float(preds)
  checks.same_shape("labels", np.shape(labels), "one model", preds.shape[1:2])
  weights = None if weights is None else jnp.asarray(weights)
  index, bad = labels_lib.check("labels", labels, num_classes(preds), weights)
  preds = _indifferent(preds, weights)
  if preds.ndim == 2:
    true = jnp.where(index == 1, preds, 1 - preds)
  else:
    true = jnp.take_along_axis(preds, index[None, :, None], axis=-1)[..., 0]
  return labels_lib.spoil(true, jnp.broadcast_to(bad, true.shape))


def num_classes(preds: jax.Array) -> int:
  """K; 2 for binary predictions."""
  return 2 if preds.ndim == 2 else preds.shape[-1]


# Values of every example: `[M, N(, K)]` predictions to `[R, N]`, where R is P
# for pairwise values and 1 for deviations; `[R, N, K]` if `per_class`.


def _combine(values, ndim, per_class):
  return jnp.sum(values, -1) if ndim == 3 and not per_class else values


def _center(preds):
  """Mean over models, exact where all models are equal."""
  return preds[:1] + jnp.mean(preds - preds[:1], axis=0, keepdims=True)


def _pairs(preds):
  first, second = pair_indices(preds.shape[0])
  return preds[first], preds[second]


def deviation_values(preds, *, p=1, per_class=False):
  """[mean_m |P_mn - mean P_n|^p]^(1/p), summed over classes; R = 1."""
  distance = jnp.abs(preds - _center(preds))
  if p == 1:
    value = jnp.mean(distance, axis=0, keepdims=True)
  elif p == 2:
    value = arrays.root(jnp.mean(distance**2, axis=0, keepdims=True))
  else:
    power = jnp.mean(distance**p, axis=0, keepdims=True)
    # Its gradient at 0, where all models agree, is 0 instead of infinite.
    some = power > 0
    value = jnp.where(some, jnp.where(some, power, 1) ** (1 / p), power)
  return _combine(value, preds.ndim, per_class)


def pairwise_values(preds, *, per_class=False):
  """|P_i - P_j|, summed over classes; R = P."""
  a, b = _pairs(preds)
  return _combine(jnp.abs(a - b), preds.ndim, per_class)


def _ratio(distance, middle, eps, per_class):
  floor = jnp.maximum(middle, eps)
  if distance.ndim == 2 or per_class:
    return distance / floor
  share = jnp.where(middle > 0, middle / floor, 0)
  return jnp.sum(share * distance, axis=-1)


def relative_pairwise_values(preds, *, eps=0.0, per_class=False):
  """|P_i - P_j| / ((P_i + P_j) / 2); R = P."""
  a, b = _pairs(preds)
  return _ratio(jnp.abs(a - b), (a + b) / 2, eps, per_class)


def relative_deviation_values(preds, *, eps=0.0, per_class=False):
  """mean_m |P_mn - mean P_n| / mean P_n; R = 1."""
  center = _center(preds)
  distance = jnp.mean(jnp.abs(preds - center), axis=0, keepdims=True)
  return _ratio(distance, center, eps, per_class)


def hellinger_values(preds, *, per_class=False):
  """sqrt(sum_k (sqrt p_k - sqrt q_k)^2 / 2), without cancellation; R = P."""
  del per_class
  preds = jnp.clip(preds, min=0, max=1)
  if preds.ndim == 2:
    preds = jnp.stack([preds, 1 - preds], axis=-1)
  a, b = _pairs(arrays.root(preds))
  return arrays.root(jnp.minimum(jnp.sum((a - b) ** 2, axis=-1) / 2, 1))


def disagreement_values(preds, *, threshold=0.5, per_class=False):
  """1 where the decisions of two models differ; R = P."""
  del per_class
  binary = preds.ndim == 2
  decisions = preds >= threshold if binary else jnp.argmax(preds, axis=-1)
  a, b = _pairs(decisions)
  return (a != b).astype(preds.dtype)


def logit_values(preds, *, eps=1e-6, per_class=False):
  """|logit P_i - logit P_j|, averaged over classes; R = P."""
  inside = jnp.clip(preds, min=eps, max=1 - eps)
  a, b = _pairs(jnp.log(inside) - jnp.log1p(-inside))
  values = jnp.abs(a - b)
  return values.mean(-1) if preds.ndim == 3 and not per_class else values


def signed_values(preds, *, per_class=False):
  """P_i - P_j, by class if there are classes; R = P."""
  del per_class
  a, b = _pairs(preds)
  return a - b


@functools.partial(jax.jit, static_argnames="mode")
def _lowest_mean(preds, weights, mode):
  """The least denominator of a relative PD."""
  if mode == "deviation":
    middle = jnp.mean(preds, axis=0, keepdims=True)
  else:  # The pair of the two least predictions.
    middle = (jnp.sort(preds, axis=0)[1:2] + jnp.min(preds, 0)) / 2
  live = spread_right(weights, preds.ndim) != 0
  return jnp.min(jnp.where(live, middle, jnp.inf))


def check_relative(
  preds: jax.Array,
  weights: jax.Array,
  mode: str,
  eps: float,
  *,
  per_class: bool = False,
) -> None:
  """Refuses a relative PD with a denominator of zero, unless traced.

  Args:
    preds: `[M, N]` or `[M, N, K]`, checked by `check_predictions`.
    weights: `[N]`, checked too.
    mode: `pairwise` or `deviation`.
    eps: floor of the denominator; above zero all is well.
    per_class: whether each class has a denominator of its own.

  Raises:
    ValueError: two models (all, for `deviation`) give zero to one example.
  """
  harmless = eps > 0 or (preds.ndim == 3 and not per_class)
  if harmless or not arrays.is_concrete(preds, weights):
    return
  if float(_lowest_mean(preds, weights, mode)) <= 0:
    raise ValueError(
      "preds holds zeros of several models for one example, and eps=0: the "
      f"relative {mode} difference is 0 / 0 there. Give eps above 0, a floor "
      "of the denominator."
    )
