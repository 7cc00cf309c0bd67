"""Heads on frozen features: nearest class mean, and a linear probe.

Both are what a frozen backbone gives for nothing, and belong beside every
method that trains on one.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import checks, types
from locojax.methods.continual import fits, masks

DISTANCES = ("euclidean", "cosine")
_TINY = 1e-12


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NearestClassMean:
  """Running means of the features of each class; made by `ncm`.

  Attributes:
    means: `[C, d]` float32 (or float64).
    counts: `[C]` int32, how many examples each has.

  >>> model = ncm(2, 1).updated([[0.0], [2.0], [9.0]], [0, 0, 1])
  >>> model.means.tolist(), model.logits([[3.0]]).tolist()
  ([[1.0], [9.0]], [[-4.0, -36.0]])
  """

  means: jax.Array
  counts: jax.Array

  def updated(
    self,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    mask: ArrayLike | None = None,
  ) -> NearestClassMean:
    """The means after a batch; jittable.

      mean_c <- mean_c + sum_{i of class c} (f_i - mean_c) / count_c

    which keeps its digits over long streams, for no large sum is stored.

    Args:
      features: `[n, d]`, any real dtype.
      labels: `[n]` integers; what is outside [0, C) counts nowhere.
      mask: `[n]`, zero at padding.

    Raises:
      ValueError: shapes that differ.
    """
    x = jnp.asarray(features).astype(self.means.dtype)
    labels = checks.index_array("labels", labels)
    num_classes, dim = self.means.shape
    checks.same_shape("features", x.shape, "the batch", (len(labels), dim))
    live = (labels >= 0) & (labels < num_classes)
    if mask is not None:
      live = live & (jnp.asarray(mask) != 0)
    rows = jnp.where(live, labels, 0)
    gaps = jnp.where(live[:, None], x - self.means[rows], 0.0)
    num = jnp.zeros_like(self.counts).at[rows].add(live)
    gap = jnp.zeros_like(self.means).at[rows].add(gaps)
    counts = self.counts + num
    step = gap / jnp.maximum(counts, 1)[:, None].astype(gap.dtype)
    return NearestClassMean(self.means + step, counts)

  def logits(
    self, features: ArrayLike, *, distance: str = "euclidean"
  ) -> jax.Array:
    """Scores of the classes, the largest for the nearest mean.

    Args:
      features: `[n, d]`.
      distance: `euclidean`: -|f - mean_c|^2. `cosine`: the cosine of the two.

    Returns:
      `[n, C]`, -inf at classes without an example.

    Raises:
      ValueError: an unknown distance, shapes that differ.
    """
    checks.one_of("distance", distance, DISTANCES)
    x = jnp.asarray(features).astype(self.means.dtype)
    dim = self.means.shape[1]
    checks.same_shape("features", x.shape, "the means", (len(x), dim))
    if distance == "cosine":
      scores = _unit(x) @ _unit(self.means).T
    else:
      # From the middle of the means: fewer digits are lost in the squares.
      middle = jnp.mean(self.means, axis=0)
      x, means = x - middle, self.means - middle
      squares = jnp.sum(jnp.square(x), axis=1)[:, None]
      squares = squares + jnp.sum(jnp.square(means), axis=1)
      scores = 2 * x @ means.T - squares
    return jnp.where(self.counts > 0, scores, -jnp.inf)


def _unit(x: jax.Array) -> jax.Array:
  squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, _TINY))


def ncm(num_classes: int, dim: int, *, dtype=jnp.float32) -> NearestClassMean:
  """A nearest-class-mean classifier before the first example.

  Args:
    num_classes: C.
    dim: d, the size of the features.
    dtype: of the means: float32, or float64 with x64.

  Raises:
    ValueError: a bad number, or means of less than 32 bits.
  """
  checks.positive_int("num_classes", num_classes)
  checks.positive_int("dim", dim)
  checks.one_of("dtype", jnp.dtype(dtype), (jnp.float32, jnp.float64))
  means = jnp.zeros((num_classes, dim), dtype)
  return NearestClassMean(means, jnp.zeros(num_classes, jnp.int32))


def linear_probe(
  features: ArrayLike,
  labels: ArrayLike,
  *,
  num_classes: int,
  l2: float = 1e-4,
  classes: ArrayLike | None = None,
  mask: ArrayLike | None = None,
  num_steps: int = 200,
) -> types.PyTree:
  """Multinomial logistic regression on frozen features, by L-BFGS.

    min over W, b of mean CE(softmax(x W + b), label) + l2 / 2 |W|^2

  Convex, starts at 0, no random number: the same features give the same head.
  Of features with very different sizes, divide by their deviations first.

  Args:
    features: `[n, d]`; computed in float32.
    labels: `[n]` integers in [0, C).
    num_classes: C.
    l2: above 0, for a single minimum.
    classes: of the softmax: numbers `[k]` or a mask `[C]`; None for all.
      Columns of other classes stay 0.
    mask: `[n]` weights, zero at padding; such as one over the size of a class.
    num_steps: most steps.

  Returns:
    `kernel` `[d, C]` and `bias` `[C]`, as a linen `Dense` has them.

  Raises:
    ValueError: a bad number or shape, labels outside the classes.
  """
  checks.positive_int("num_classes", num_classes)
  checks.positive("l2", l2)
  checks.positive_int("num_steps", num_steps)
  x = jnp.asarray(features).astype(jnp.float32)
  if x.ndim != 2:
    raise ValueError(f"features has shape {x.shape}: it must be [examples, d].")
  start = {
    "kernel": jnp.zeros((x.shape[1], num_classes), jnp.float32),
    "bias": jnp.zeros(num_classes, jnp.float32),
  }
  masks.masked_losses(
    x @ start["kernel"], labels, classes, mask=mask
  )  # Refuses bad labels before tracing.

  def cost(head):
    logits = x @ head["kernel"] + head["bias"]
    loss, _ = masks.masked_cross_entropy(logits, labels, classes, mask=mask)
    return loss + l2 / 2 * jnp.sum(jnp.square(head["kernel"]))

  return fits.minimised(cost, start, num_steps=num_steps)
