"""What the weights say about the labels: noise detection and suspects.

`effective_sample_size` runs inside `jit`; the others are for the host, in
float64 NumPy, on weights or losses collected over a data set. Weights of
different batches compare if each is times the size of its batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks


def effective_sample_size(
  weights: ArrayLike,
  *,
  axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
  """(sum w)^2 / sum w^2: how many equally weighted examples count as much.

  Args:
    weights: `[n]`, zero or more, of any sum.
    axis_name: mapped axis over which the batch is split.

  Returns:
    `[]`, from 1 (one-hot) to n (uniform); 0 if all weights are 0.

  >>> float(effective_sample_size([0.5, 0.5, 0.0]))
  2.0
  """
  weights = arrays.as_float(weights)
  top = jnp.max(weights)
  if axis_name is not None:
    top = jax.lax.pmax(top, axis_name)
  weights = weights / jnp.where(top == 0, 1.0, top)
  sums = jnp.stack([jnp.sum(weights), jnp.sum(jnp.square(weights))])
  if axis_name is not None:
    sums = jax.lax.psum(sums, axis_name)
  return jnp.square(sums[0]) / jnp.where(sums[1] == 0, 1.0, sums[1])


def _host(name: str, x: ArrayLike) -> np.ndarray:
  x = np.asarray(x, np.float64)
  if x.ndim != 1 or not x.size:
    raise ValueError(f"{name} has shape {x.shape}: it must be [examples].")
  if np.isnan(x).any():
    raise ValueError(f"{name} holds NaN: it must be numbers.")
  return x


def _pair(weights, is_noisy) -> tuple[np.ndarray, np.ndarray]:
  weights = _host("weights", weights)
  is_noisy = np.asarray(is_noisy)
  checks.same_shape("is_noisy", is_noisy.shape, "weights", weights.shape)
  return weights, is_noisy.astype(bool)


def noise_detection_auc(weights: ArrayLike, is_noisy: ArrayLike) -> float:
  """Chance that a mislabelled example weighs less than a clean one.

  The area under the ROC curve of "low weight = mislabelled"; ties count half.

  Args:
    weights: `[n]` weights (or minus losses).
    is_noisy: `[n]`, true where the label is wrong.

  Returns:
    In [0, 1], 1/2 for chance; NaN if one kind of example is missing.

  Raises:
    ValueError: wrong shapes, or NaN.

  >>> noise_detection_auc([0.4, 0.3, 0.1, 0.3], [0, 0, 1, 1])
  0.875
  """
  weights, is_noisy = _pair(weights, is_noisy)
  clean, noisy = np.sort(weights[~is_noisy]), weights[is_noisy]
  if not clean.size or not noisy.size:
    return float("nan")
  left = np.searchsorted(clean, noisy, side="left")
  right = np.searchsorted(clean, noisy, side="right")
  return float(1 - np.mean((left + right) / 2) / clean.size)


def _flag(weights, threshold, rate):
  if (threshold is None) == (rate is None):
    raise ValueError(
      f"threshold={threshold!r} and rate={rate!r} are not allowed: give "
      "exactly one."
    )
  if threshold is not None:
    return weights < threshold
  checks.in_range("rate", rate, 0, 1)
  flagged = np.zeros(weights.shape, bool)
  flagged[suspects(weights)[: round(rate * weights.size)]] = True
  return flagged


def detection_scores(
  weights: ArrayLike,
  is_noisy: ArrayLike,
  *,
  threshold: float | None = None,
  rate: float | None = None,
) -> dict[str, float]:
  """Precision and recall of "low weight = mislabelled".

  Args:
    weights: `[n]`.
    is_noisy: `[n]`, true where the label is wrong.
    threshold: examples below it are flagged; for batch weights a multiple of
      1 / n is natural.
    rate: or the share of examples that is flagged, in [0, 1]: the noise rate
      where it is known (ties are cut at the lower index).

  Returns:
    `precision` (NaN if none is flagged), `recall` (NaN if none is noisy),
    `f1`, `flagged` (share of all examples).

  Raises:
    ValueError: wrong shapes, NaN, both or none of `threshold` and `rate`.

  >>> scores = detection_scores([0.6, 0.1, 0.3], [0, 1, 1], rate=1 / 3)
  >>> scores["precision"], scores["recall"]
  (1.0, 0.5)
  """
  weights, is_noisy = _pair(weights, is_noisy)
  flagged = _flag(weights, threshold, rate)
  hits = float(np.sum(flagged & is_noisy))
  share = lambda total: hits / total if total else float("nan")
  return {
    "precision": share(int(flagged.sum())),
    "recall": share(int(is_noisy.sum())),
    "f1": 2 * share(int(flagged.sum()) + int(is_noisy.sum())),
    "flagged": float(flagged.mean()),
  }


def suspects(
  scores: ArrayLike, *, kind: str = "weights", k: int | None = None
) -> np.ndarray:
  """Indices of examples, the most likely mislabelled first.

  Args:
    scores: `[n]` weights or losses.
    kind: `weights` (the lowest first) or `losses` (the highest first).
    k: how many; None ranks all.

  Returns:
    `[min(k, n)]` int64; ties in the order of the data.

  Raises:
    ValueError: a wrong shape, NaN, an unknown kind, k below 1.

  >>> suspects([0.2, 0.1, 0.7], k=2).tolist()
  [1, 0]
  """
  scores = _host(kind, scores)
  checks.one_of("kind", kind, ("weights", "losses"))
  if k is not None:
    checks.positive_int("k", k)
  signed = scores if kind == "weights" else -scores
  return np.argsort(signed, kind="stable")[:k]


def weight_histograms(
  weights: ArrayLike,
  is_noisy: ArrayLike,
  *,
  edges: ArrayLike | None = None,
  num_bins: int = 30,
) -> dict[str, np.ndarray]:
  """Counts of weights of clean and of mislabelled examples, in equal bins.

  Args:
    weights: `[n]`.
    is_noisy: `[n]`, true where the label is wrong.
    edges: `[bins + 1]`, increasing; None spaces `num_bins` from 0 to the
      largest weight. Weights outside are counted in the end bins.
    num_bins: bins if no edges are given.

  Returns:
    `edges` `[bins + 1]`, `clean` and `noisy` `[bins]` int64; the counts sum to
    the numbers of examples.

  Raises:
    ValueError: wrong shapes, NaN, edges that do not increase.

  >>> found = weight_histograms([0.1, 0.9], [1, 0], edges=[0, 0.5, 1])
  >>> found["clean"].tolist(), found["noisy"].tolist()
  ([0, 1], [1, 0])
  """
  weights, is_noisy = _pair(weights, is_noisy)
  checks.positive_int("num_bins", num_bins)
  if edges is None:
    top = weights.max()
    edges = np.linspace(0, top if top > 0 else 1.0, num_bins + 1)
  edges = _host("edges", edges)
  if edges.size < 2 or not (np.diff(edges) > 0).all():
    raise ValueError(f"edges={edges.tolist()} is not allowed: must increase.")
  inside = np.clip(weights, edges[0], edges[-1])
  count = lambda keep: np.histogram(inside[keep], edges)[0]
  return {"edges": edges, "clean": count(~is_noisy), "noisy": count(is_noisy)}
