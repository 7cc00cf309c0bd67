"""Noise of tree aggregation: nodes over the rounds, prefix sums, restarts.

A node (level k, index i) covers the rounds [i 2^k, (i + 1) 2^k), and has its
own standard normal noise n[k, i]. The prefix of t rounds is the union of the
nodes of the binary digits of t.

  basic    N_t = sum over digits of n[k, i]                 (binary counter)
  honaker  B[0, i] = n[0, i],
           B[k, i] = n[k, i] + (B[k-1, 2i] + B[k-1, 2i+1]) / 2,
           N_t = sum over digits of B[k, i] / (2 - 2^-k)

Both release functions of the same noisy node sums, so they are equally private
(Honaker 2015; Kairouz et al. 2021, arXiv 2103.00039). The state is one buffer
for each level, of which those of the digits of t are in use. Nothing here knows
keys: `draw(level, index)` gives a node's noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import checks

ESTIMATORS = ("honaker", "basic")
BEHAVIOURS = ("residual", "reset")

# (level, index) -> noise of the node; both `[]` int32, perhaps traced.
Draw = Callable[[ArrayLike, ArrayLike], jax.Array]


def num_levels(num_leaves: int) -> int:
  """Levels of the largest forest over so many leaves.

  >>> [num_levels(t) for t in (1, 2, 7, 8)]
  [1, 2, 3, 4]
  """
  return checks.positive_int("num_leaves", num_leaves).bit_length()


def trailing_ones(t: ArrayLike) -> jax.Array:
  """Ones at the end of the binary digits of t: levels that leaf t completes."""
  t = jnp.asarray(t, jnp.int32)
  return jax.lax.population_count(t & ~(t + 1))


def weights(t: ArrayLike, levels: int, estimator: str) -> jax.Array:
  """What each buffer counts in the prefix of t rounds, `[levels]` float32."""
  level = jnp.arange(levels)
  used = (jnp.asarray(t, jnp.int32) >> level) & 1
  if checks.one_of("estimator", estimator, ESTIMATORS) == "basic":
    return used.astype(jnp.float32)
  return used / (2.0 - 2.0 ** -level.astype(jnp.float32))


def prefix(buffers: jax.Array, t: ArrayLike, estimator: str) -> jax.Array:
  """N_t from the buffers `[levels, ...]`; zeros for t = 0.

  Added up level by level: a matrix product would round the noise on
  accelerators.
  """
  w = weights(t, len(buffers), estimator)
  out = jnp.zeros_like(buffers[0])
  for k in range(len(buffers)):
    out += w[k].astype(buffers.dtype) * buffers[k]
  return out


def advance(
  buffers: jax.Array, t: ArrayLike, draw: Draw, estimator: str
) -> tuple[jax.Array, jax.Array]:
  """One more leaf: the buffers after it, and N_{t+1} - N_t.

  The levels above the one that the leaf completes count the same in both
  prefixes, and those below count in N_t alone, so that on average one array is
  read and one written. The buffers go through the loop, which lets XLA change
  them in place.

  Args:
    buffers: `[levels, ...]`.
    t: leaves so far, so the index of the new one, `[]` int32.
    draw: noise of a node.
    estimator: `honaker` or `basic`.

  Returns:
    The buffers for t + 1 leaves, and the residual `[...]`.
  """
  t = jnp.asarray(t, jnp.int32)
  top, levels = trailing_ones(t), len(buffers)
  basic = checks.one_of("estimator", estimator, ESTIMATORS) == "basic"
  gains = weights(t + 1, levels, estimator).astype(buffers.dtype)
  losses = weights(t, levels, estimator).astype(buffers.dtype)

  def climb(k, carry):
    new, lost, held = carry
    below = held[k]
    lost = lost + losses[k] * below
    if basic:
      # Written as it is, so that the loop owns the buffers: no copy of them.
      return new, lost, held.at[k].set(below)
    return (below + new) / 2 + draw(k + 1, t >> (k + 1)), lost, held

  new = draw(top, t >> top) if basic else draw(jnp.int32(0), t)
  start = (new, jnp.zeros_like(new), buffers)
  new, lost, buffers = jax.lax.fori_loop(0, top, climb, start)
  return buffers.at[top].set(new), gains[top] * new - lost


def complete(
  buffers: jax.Array, t: int, draw: Draw, estimator: str
) -> tuple[jax.Array, int]:
  """Adds virtual leaves up to the next power of two; t is static.

  Returns:
    The buffers and the power of two.
  """
  size = 1 << (t - 1).bit_length()
  add = lambda i, b: advance(b, i, draw, estimator)[0]
  return jax.lax.fori_loop(t, size, add, buffers), size


@dataclasses.dataclass(frozen=True)
class RestartPolicy:
  """When a fresh tree starts, and what it does to the optimiser.

  Trees start at round 0 and then, without warm-up, every `period` rounds; with
  warm-up w at w, w + period, w + 2 period, ...

  Attributes:
    period: rounds of a tree, 1 or more.
    warmup: 0, or the rounds of the first tree, below `period`.
    completion: before the restart the old tree is filled up with virtual rounds
      to a power of two, and its last noise carried on is that of one node.
      Costs sensitivity, see `sensitivity.restarts`.
    behaviour: `residual`: the noisy sum so far stays as it is, and momentum
      survives (TensorFlow Privacy's restart query, and the PyTorch code).
      `reset`: momentum starts at zero as well (`restart_dp_tree` of TFF, which
      puts the parameters in place of the start). Equal without momentum.

  Raises:
    ValueError: a bad setting.

  >>> policy = RestartPolicy(4, warmup=2)
  >>> [bool(policy.starts_tree(t)) for t in range(8)]
  [True, False, True, False, False, False, True, False]
  """

  period: int
  warmup: int = 0
  completion: bool = False
  behaviour: str = "residual"

  def __post_init__(self):
    checks.int_in_range("period", self.period, 1, 2**31 - 1)
    checks.int_in_range("warmup", self.warmup, 0, self.period - 1)
    checks.boolean("completion", self.completion)
    checks.one_of("behaviour", self.behaviour, BEHAVIOURS)

  def starts_tree(self, step: ArrayLike) -> jax.Array:
    """Whether round `step` is the first of a tree, `[]` bool."""
    step = jnp.asarray(step, jnp.int32)
    return (step == 0) | (
      (step >= self.warmup) & ((step - self.warmup) % self.period == 0)
    )

  def lengths(self, num_rounds: int) -> tuple[int, ...]:
    """Rounds of each tree of a run, for the accountant.

    >>> RestartPolicy(4, warmup=2).lengths(8)
    (2, 4, 2)
    """
    checks.positive_int("num_rounds", num_rounds)
    out, left = [], num_rounds
    first = self.warmup or self.period
    while left > 0:
      out.append(min(left, self.period if out else first))
      left -= out[-1]
    return tuple(out)

  def tree_of(self, step: int) -> tuple[int, int]:
    """Number of the tree of round `step`, and the tree's first round; host.

    >>> [RestartPolicy(4, warmup=2).tree_of(t) for t in (1, 2, 5, 6)]
    [(0, 0), (1, 2), (1, 2), (2, 6)]
    """
    checks.nonnegative_int("step", step)
    if step < self.warmup:
      return 0, 0
    number = (step - self.warmup) // self.period
    first = self.warmup + number * self.period
    return number + (self.warmup > 0), first

  @property
  def longest(self) -> int:
    """Leaves of the largest tree, virtual ones among them."""
    if not self.completion:
      return self.period
    return 1 << (self.period - 1).bit_length()


def never(step: ArrayLike) -> jax.Array:
  """`starts_tree` of a run with one tree."""
  return jnp.asarray(step, jnp.int32) == 0
