"""Empirical lower bounds on eps, from canaries in one training run.

A canary is a user whose update is a direction of its own, at the clipping norm:
the worst user that the guarantee allows. Half of the canaries, by fair coins,
take part. Who sees the noisy sums scores each canary by how far they lean its
way, and guesses the coins. Guesses that are better than eps permits refute eps.

This complements the accountant and does not replace it: it bounds eps from
below, under one attack, and finds faults (noise too small, a clip that leaks)
that no formula sees.

Sources: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run",
arXiv 2305.08846; canaries as clients with random directions: Andrew, Kairouz,
Oh, Oprea, McMahan, Suriyakumar, "One-shot Empirical Privacy Estimation for
Federated Learning", arXiv 2302.03098.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import checks, trees, types
from locojax.methods.dp_ftrl import accounting, clipping, keys

CANARY = "canary"
# A gradient far above any clipping norm: the update of a canary is clipped.
_SIZE = 1e3


def canary_direction(
  key: jax.Array, index: ArrayLike, params: types.PyTree
) -> types.PyTree:
  """The unit-norm direction of canary `index`, float32, shaped as `params`.

  Directions of different canaries are independent, so nearly orthogonal where
  there are many parameters.
  """
  own = jax.random.fold_in(key, jnp.asarray(index, jnp.uint32))
  draw = lambda path, p: jax.random.normal(keys.of_array(own, path), p.shape)
  direction = trees.map_with_path(draw, params)
  norm = clipping.update_norm(direction)
  return jax.tree.map(lambda x: x / norm, direction)


def canary_loss(
  loss_fn: types.LossFn, *, key: jax.Array, name: str = CANARY
) -> types.LossFn:
  """A loss that makes canaries of some clients, and of no others.

  Args:
    loss_fn: the loss of ordinary clients.
    key: of the directions; public.
    name: in the batch, `[batch]` int32: 0 for ordinary clients (and padding),
      i + 1 for canary i. A canary descends along its direction, by far more
      than any clipping norm (plain SGD; other local optimisers may turn it).

  Returns:
    A `LossFn`; metrics of a canary are those of the loss on its padding.
  """

  def wrapped(params, model_state, batch, key_):
    batch = dict(batch)
    index = checks.index_array(name, batch.pop(name)).max() - 1
    loss, (found, model_state) = loss_fn(params, model_state, batch, key_)
    direction = canary_direction(key, jnp.maximum(index, 0), params)
    along = sum(
      jnp.vdot(d, p)
      for d, p in zip(jax.tree.leaves(direction), jax.tree.leaves(params))
    )
    return jnp.where(index < 0, loss, -_SIZE * along), (found, model_state)

  return wrapped


def matched_filter(
  covariance: np.ndarray, participation: np.ndarray
) -> np.ndarray:
  """Weights of rounds that best tell a canary from noise: Sigma^-1 s.

  Args:
    covariance: Sigma `[rounds, rounds]` of the noise of the released sums.
    participation: s `[canaries, rounds]` of zeros and ones, the rounds in which
      a canary takes part if its coin says so.

  Returns:
    `[canaries, rounds]`, scaled so that the expected score of a canary is 1 if
    it took part with an update of norm 1 (0 if not), noise unbiased.

  Raises:
    ValueError: shapes that do not fit, or a canary without rounds.
  """
  covariance = np.asarray(covariance, np.float64)
  participation = np.asarray(participation, np.float64)
  num = participation.shape[-1]
  checks.same_shape("covariance", covariance.shape, "rounds", (num, num))
  if (participation.sum(axis=1) == 0).any():
    raise ValueError("participation has a canary that takes part in no round.")
  weights = np.linalg.solve(covariance, participation.T).T
  return weights / (weights * participation).sum(axis=1, keepdims=True)


def one_run_p_value(
  num_canaries: int,
  num_guesses: int,
  num_correct: int,
  eps: float,
  delta: float,
) -> float:
  """Probability of as many right guesses under (eps, delta)-DP, at most.

  Theorem 5.2 (algorithm 1's analysis) of arXiv 2305.08846:
  beta + 2 m delta max_i (P[v - i <= Bin < v] / i), Bin of r guesses, each right
  with probability e^eps / (1 + e^eps).

  Args:
    num_canaries: m, each with a fair coin of its own.
    num_guesses: r, of at most m.
    num_correct: v, of at most r.
    eps, delta: the guarantee to test.

  Raises:
    ValueError: numbers out of order.

  >>> round(one_run_p_value(10, 10, 10, 0.0, 0.0) * 1024, 6)
  1.0
  """
  from scipy import stats

  checks.positive_int("num_canaries", num_canaries)
  checks.in_range("num_guesses", num_guesses, 1, num_canaries)
  checks.in_range("num_correct", num_correct, 0, num_guesses)
  checks.nonnegative("eps", eps)
  checks.in_range("delta", delta, 0.0, 1.0)
  binomial = stats.binom(num_guesses, 1 / (1 + math.exp(-eps)))
  beta = float(binomial.sf(num_correct - 1))
  if not num_correct:
    return 1.0
  i = np.arange(1, num_correct + 1)
  below = np.cumsum(binomial.pmf(num_correct - i))
  alpha = float((below / i).max())
  return min(1.0, beta + 2 * num_canaries * delta * alpha)


def one_run_eps(
  scores: ArrayLike,
  included: ArrayLike,
  *,
  num_guesses: int,
  delta: float,
  confidence: float = 0.95,
) -> float:
  """Lower bound on eps from the scores of canaries of one run.

  Half of the guesses say `in` (the largest scores), half `out` (the smallest).
  How many guesses are made must be chosen before the scores are seen.

  Args:
    scores: `[m]`, larger for canaries that seem to have taken part.
    included: `[m]` bool, the coins.
    num_guesses: r, even, of at most m.
    delta: of the guarantee.
    confidence: that the bound holds.

  Returns:
    The largest eps that is refuted, or 0.

  Raises:
    ValueError: bad shapes or numbers, or a score that is not finite.
  """
  scores, included = np.asarray(scores), np.asarray(included, bool)
  checks.same_shape("included", included.shape, "scores", scores.shape)
  checks.in_range("num_guesses", num_guesses, 2, len(scores))
  checks.divisible("num_guesses", num_guesses, "two kinds of guess", 2)
  checks.in_range("confidence", confidence, 0.0, 1.0)
  if not np.isfinite(scores).all():
    raise ValueError("scores are not all finite.")
  order, half = np.argsort(scores, kind="stable"), num_guesses // 2
  correct = int((~included[order[:half]]).sum() + included[order[-half:]].sum())
  level = 1 - confidence
  test = lambda eps: one_run_p_value(
    len(scores), num_guesses, correct, eps, delta
  )
  if test(0.0) > level:
    return 0.0
  low, high = 0.0, 1.0
  while test(high) <= level and high < 64:
    low, high = high, 2 * high
  for _ in range(40):
    middle = (low + high) / 2
    low, high = (middle, high) if test(middle) <= level else (low, middle)
  return low


def gaussian_eps(
  scores: ArrayLike, included: ArrayLike, *, delta: float
) -> float:
  """An estimate (no bound) of eps: that of two Gaussians fitted to the scores.

  Andrew et al., arXiv 2302.03098, with one spread for both: with means a apart
  and standard deviation s, the exact eps of the Gaussian mechanism of rho =
  (a / s)^2 / 2.

  Raises:
    ValueError: fewer than two canaries of a kind.
  """
  scores, included = np.asarray(scores, float), np.asarray(included, bool)
  took, left = scores[included], scores[~included]
  if min(len(took), len(left)) < 2:
    raise ValueError(
      f"included has {len(took)} canaries in and {len(left)} out: at least two "
      "of each are needed."
    )
  spread = np.concatenate([took - took.mean(), left - left.mean()])
  deviation = math.sqrt((spread**2).sum() / (len(scores) - 2))
  gap = max(0.0, float(took.mean() - left.mean()))
  if gap == 0:
    return 0.0
  return accounting.zcdp_to_eps((gap / deviation) ** 2 / 2, delta)
