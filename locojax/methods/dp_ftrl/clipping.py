"""Clipping of whole updates, at a fixed norm or at a quantile of the norms.

One user's update is all arrays of the tree together. Its L2 norm is computed
in float32; an update whose norm is not finite becomes zeros, since one that
survived would break the bound on sensitivity and tell on its user.

Adaptive clipping: Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private
Learning with Adaptive Clipping", arXiv 1905.03871. Under correlated noise its
count has a noise mechanism of its own, and the norm changes only where a tree
starts, else old nodes would keep noise of the old size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from locojax.core import checks, narrow, types

# A client tells whether its norm is at most the estimate, as +1/2 or -1/2.
COUNT_SENSITIVITY = 0.5
# No quantile estimate falls below this.
MIN_NORM = 1e-6
UPDATES = ("geometric", "arithmetic")


def update_norm(tree: types.PyTree) -> jax.Array:
  """L2 norm of all entries of a tree, `[]` float32.

  Sums of squares run in float32 or in the leaf's own dtype if that is wider.
  Finite updates of a norm beyond about 1e19 overflow, and so do not count as
  finite.

  >>> float(update_norm({"a": jnp.array([3.0]), "b": jnp.array(4.0)}))
  5.0
  """

  def squares(x):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.sum(jnp.square(x)).astype(jnp.float32)

  zero = jnp.zeros((), jnp.float32)
  return jnp.sqrt(sum(map(squares, jax.tree.leaves(tree)), start=zero))


def clip_update(
  tree: types.PyTree, clip_norm: ArrayLike | None
) -> tuple[types.PyTree, jax.Array, jax.Array]:
  """Scales an update to a norm of at most C: `delta min(1, C / |delta|)`.

  Args:
    tree: floating arrays of any shapes, one user's update.
    clip_norm: C, `[]`, above 0; None scales nothing. A Python number is
      checked.

  Returns:
    `(clipped, norm, was_finite)`: the update in its own dtypes, its norm before
    (`[]` float32), and whether that was finite (`[]` bool). A zero update stays
    zero; one whose norm is not finite becomes zeros. Entries of 16 bits are
    rounded towards zero, so that rounding does not lift the norm above C.

  Raises:
    ValueError: a bad `clip_norm`, or a leaf that is not of real numbers.

  >>> clipped, norm, _ = clip_update({"w": jnp.array([3.0, 4.0])}, 1.0)
  >>> [round(float(x), 4) for x in clipped["w"]], float(norm)
  ([0.6, 0.8], 5.0)
  """
  if clip_norm is not None and not isinstance(clip_norm, jax.Array):
    checks.positive("clip_norm", float(clip_norm))
  for leaf in jax.tree.leaves(tree):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(
        f"an update of dtype {leaf.dtype} is not allowed: it must be floating."
      )
  norm = update_norm(tree)
  finite = jnp.isfinite(norm)
  # C / 0 is infinite, so a zero update is multiplied by 1.
  scale = jnp.float32(1.0)
  if clip_norm is not None:
    scale = jnp.minimum(scale, jnp.asarray(clip_norm, jnp.float32) / norm)

  def clip(x):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return _towards_zero(jnp.where(finite, wide * scale, 0.0), x.dtype)

  return jax.tree.map(clip, tree), norm, finite


def _towards_zero(x: jax.Array, dtype) -> jax.Array:
  """`x` in a dtype of 16 bits, no entry larger than it was; else the cast."""
  if jnp.dtype(dtype).itemsize >= 4:
    return x.astype(dtype)
  near = narrow.rounded(x, dtype).astype(dtype)
  back = jax.lax.nextafter(near, jnp.zeros_like(near))
  return jnp.where(jnp.abs(narrow.rounded(x, dtype)) > jnp.abs(x), back, near)


@dataclasses.dataclass(frozen=True)
class Clip:
  """Clipping at a fixed norm, chosen without looking at private data.

  Attributes:
    norm: C, above 0; None bounds nothing, for runs without privacy.
    grid: each clipped update is rounded at random to multiples of this, for
      `add_tree_noise(..., secure=True, grid=grid)`. Rounding can make it longer
      than C: give the noise `quantized_norm(norm, grid, num_params)` as its
      clip norm. None rounds nothing.

  >>> Clip(1.0).norm
  1.0
  """

  norm: float | None
  grid: float | None = None

  def __post_init__(self):
    if self.norm is not None:
      checks.positive("norm", self.norm)
    if self.grid is not None:
      checks.positive("grid", self.grid)
      if self.norm is None:
        raise ValueError(f"grid={self.grid} is not allowed with norm=None.")


class ClipState(NamedTuple):
  """What adaptive clipping carries from round to round.

  Attributes:
    norm: the C in force, `[]` float32.
    estimate: the running estimate of the quantile, `[]` float32.
    count: state of the noise on the count.
  """

  norm: jax.Array
  estimate: jax.Array
  count: Any


@dataclasses.dataclass(frozen=True)
class QuantileClip:
  """Clipping at a private estimate of a quantile of the users' norms.

  Each round the clients tell `b_i = 1[norm_i <= estimate] - 1/2`, and

    f = clip(noisy sum_i b_i / m + 1/2, 0, 1),
    estimate <- estimate exp(-learning_rate (f - quantile))    (geometric),
    estimate <- estimate - learning_rate (f - quantile)        (arithmetic).

  Attributes:
    initial: the first C and estimate, above 0.
    count_tx: any noise transform on sums, for the count: made with
      `clip_norm=COUNT_SENSITIVITY`, `noise_multiplier=2 s_b` for a standard
      deviation s_b of the count (see `split_noise_multiplier`), a key of its
      own, and the restarts of the updates' mechanism. `optax.identity()` adds
      none, and so has no privacy.
    num_clients: m, the public number of clients to divide by. Where fewer
      report, f moves towards 1/2.
    starts_tree: round number `[]` int32 -> `[]` bool: whether a fresh tree
      starts in this round, as `RestartPolicy.starts_tree`. Only there C becomes
      the estimate. The updates' mechanism must have the same restarts.
    quantile: in [0, 1].
    learning_rate: above 0.
    update: `geometric` or `arithmetic`. No estimate falls below `MIN_NORM`.

  Raises:
    ValueError: a bad setting.
  """

  initial: float
  count_tx: optax.GradientTransformation
  num_clients: float
  starts_tree: Callable[[jax.Array], jax.Array]
  quantile: float = 0.5
  learning_rate: float = 0.2
  update: str = "geometric"

  def __post_init__(self):
    checks.positive("initial", self.initial)
    checks.positive("num_clients", self.num_clients)
    checks.in_range("quantile", self.quantile, 0.0, 1.0)
    checks.positive("learning_rate", self.learning_rate)
    checks.one_of("update", self.update, UPDATES)


def quantile_clip_init(clip: QuantileClip) -> ClipState:
  """The state before the first round."""
  first = jnp.full((), clip.initial, jnp.float32)
  return ClipState(first, first, clip.count_tx.init(jnp.zeros_like(first)))


def quantile_clip_start(
  clip: QuantileClip, state: ClipState, step: jax.Array
) -> ClipState:
  """The state at the start of round `step`: a new tree takes the estimate."""
  fresh = clip.starts_tree(step)
  return state._replace(norm=jnp.where(fresh, state.estimate, state.norm))


def below_bit(norm: jax.Array, estimate: jax.Array) -> jax.Array:
  """A client's share of the count: +1/2 if `norm <= estimate`, else -1/2.

  One whose update is not finite, or who is padding, adds 0 instead.
  """
  return jnp.where(norm <= estimate, 0.5, -0.5).astype(jnp.float32)


def quantile_clip_update(
  clip: QuantileClip, state: ClipState, count: jax.Array
) -> ClipState:
  """The state after a round, C as it was.

  Args:
    clip: the settings.
    state: of this round, from `quantile_clip_start`.
    count: the sum of `below_bit` over the clients that count, `[]` float32,
      without noise: `count_tx` adds it here.

  Returns:
    The state with a new estimate and with the noise moved on.
  """
  noisy, count_state = clip.count_tx.update(count, state.count)
  fraction = jnp.clip(noisy / clip.num_clients + 0.5, min=0.0, max=1.0)
  estimate = next_estimate(clip, state.estimate, fraction)
  return ClipState(state.norm, estimate, count_state)


def next_estimate(
  clip: QuantileClip, estimate: jax.Array, fraction: jax.Array
) -> jax.Array:
  """The estimate after a round with a share `fraction` at or below it."""
  move = clip.learning_rate * (fraction - clip.quantile)
  if clip.update == "geometric":
    new = estimate * jnp.exp(-move)
  else:
    new = estimate - move
  return jnp.maximum(new, MIN_NORM).astype(jnp.float32)


def split_noise_multiplier(
  noise_multiplier: float,
  num_clients: float,
  *,
  count_stddev: float | None = None,
) -> tuple[float, float]:
  """What the count costs: `z^-2 = z_value^-2 + (2 s_b)^-2`.

  Both mechanisms run in the same trees, so updates and counts together are as
  private as the multiplier z alone.

  Args:
    noise_multiplier: z, for both together, above 0.
    num_clients: m, clients a round.
    count_stddev: s_b, standard deviation of each node's noise on the count;
      None takes m / 20.

  Returns:
    `(z_value, 2 s_b)`: the multipliers of the updates' mechanism and of the
    count's, whose clip norm is `COUNT_SENSITIVITY`.

  Raises:
    ValueError: z is 2 s_b or more, so that the count alone costs too much.

  >>> round(split_noise_multiplier(7.0, 6500)[0], 10)
  7.0004059525
  """
  checks.positive("noise_multiplier", noise_multiplier)
  checks.positive("num_clients", num_clients)
  if count_stddev is None:
    count_stddev = num_clients / 20
  count = 2 * checks.positive("count_stddev", count_stddev)
  if noise_multiplier >= count:
    raise ValueError(
      f"noise_multiplier={noise_multiplier} is not allowed: it must be below "
      f"2 * count_stddev={count}, the multiplier of the count."
    )
  return 1 / math.sqrt(noise_multiplier**-2 - count**-2), count
