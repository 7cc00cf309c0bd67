"""Class weights: the target moves towards the class of the least loss.

Kumar, Amid 2021, arXiv 2111.05428. For each example the weights solve

  min_v sum_k v_k l_k  over the simplex, subject to D(y, v) <= gamma,

with y the given label (one-hot or soft) and D one of

  tv  sum |v - y| / 2       l1  sum |v - y|
  l2  sum (v - y)^2         kl  sum y log(y / v)

With c the label and m the class of the least loss, a one-hot y gives
v = (1 - q) e_c + q e_m, where q is gamma for `tv` (static bootstrapping),
gamma / 2 for `l1`, 1 - exp(-gamma) for `kl`; `l2` may need more classes.
Constants added to the losses of an example do not matter, so minus the logits
serve as losses. Letters in shapes: n examples, K classes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jax.typing import ArrayLike

from locojax.core import arrays, checks
from locojax.core import labels as labels_lib
from locojax.methods.ciw import inputs

DIVERGENCES = ("tv", "l1", "l2", "kl")
_LARGEST = {"tv": 1.0, "l1": 2.0}
_NUM_HALVINGS = 60
_LOG_BOUND = 80.0
# An infinite loss counts as so many times the largest finite gap (l2, soft kl).
_INFINITE = 1e3
_SUM_SLACK = 1e-3
_LOW_PRECISION_SLACK = 2e-2


def check_settings(divergence: str, gamma: ArrayLike) -> None:
  """Checks what does not depend on the losses.

  Raises:
    ValueError: an unknown divergence; gamma below 0, above 1 (`tv`) or 2
      (`l1`).
  """
  checks.one_of("divergence", divergence, DIVERGENCES)
  if divergence in _LARGEST:
    inputs.number("gamma", gamma, checks.in_range, 0, _LARGEST[divergence])
  else:
    inputs.number("gamma", gamma, checks.nonnegative)


def moved_mass(divergence: str, gamma: ArrayLike) -> ArrayLike:
  """q: what a one-hot label gives to the class of the least loss.

  >>> moved_mass("l1", 0.5)
  0.25
  """
  checks.one_of("divergence", divergence, ("tv", "l1", "kl"))
  if divergence == "kl":
    return -jnp.expm1(-jnp.asarray(gamma))
  return gamma / 2 if divergence == "l1" else gamma


def check_labels(labels: ArrayLike, shape, live=None) -> labels_lib.Checked:
  """Labels as an array, if they suit `[n, K]` losses.

  Soft labels follow the rule of `core.labels` too: a row that is no
  distribution is a bad label.

  Args:
    labels: `[n]` integers in [0, K), or `[n, K]` probabilities.
    shape: (n, K).
    live: `[n]` bool; labels of other examples are not looked at.

  Returns:
    `index`: `[n]` int32 or `[n, K]` floats, label 0 or a one-hot 0 at bad and
    at other examples; and `bad`, `[n]` bool.

  Raises:
    ValueError: another shape or dtype; unless traced, labels out of range,
      negative, or soft labels that do not sum to 1.
  """
  if not isinstance(labels, jax.Array):
    labels = np.asarray(labels)
  if jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim == 1:
    checks.same_shape("labels", labels.shape, "the batch", shape[:1])
    return labels_lib.check("labels", labels, shape[1], live)
  if not jnp.issubdtype(labels.dtype, jnp.floating) or labels.ndim != 2:
    raise ValueError(
      f"labels has shape {labels.shape} and dtype {labels.dtype}: it must be "
      f"[examples] integers or [examples, classes] floats."
    )
  checks.same_shape("labels", labels.shape, "losses", shape)
  live = jnp.ones(shape[:1], bool) if live is None else live
  return _check_soft(jnp.asarray(labels), live)


def _check_soft(labels: jax.Array, live: jax.Array) -> labels_lib.Checked:
  slack = _LOW_PRECISION_SLACK if labels.dtype.itemsize < 4 else _SUM_SLACK
  labels = arrays.as_float(labels)
  first = jax.nn.one_hot(0, labels.shape[1], dtype=labels.dtype)
  labels = jnp.where(live[:, None], labels, first)
  low, gap = labels.min(axis=1), jnp.abs(labels.sum(axis=1) - 1)
  good = (low >= 0) & (gap <= slack)
  if arrays.is_concrete(good) and not bool(good.all()):
    raise ValueError(
      f"labels has the least value {float(low.min()):g} and rows whose sum is "
      f"off by {float(gap.max()):g}: soft labels must be 0 or more and sum to "
      "1."
    )
  return labels_lib.Checked(jnp.where(good[:, None], labels, first), ~good)


def one_hot(labels: jax.Array, num_classes: int, dtype) -> jax.Array:
  """Soft labels as they are, integers as `[n, K]` rows."""
  if labels.ndim == 2:
    return labels.astype(dtype)
  return jax.nn.one_hot(labels, num_classes, dtype=dtype)


def pick(values: jax.Array, index: jax.Array) -> jax.Array:
  """`values[i, index[i]]`, `[n]`."""
  return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]


def best_class(losses: jax.Array, labels: jax.Array) -> jax.Array:
  """`[n]` class of the least loss; the label itself if it is among them."""
  best = jnp.argmin(losses, axis=1)
  tied = pick(losses, labels) <= pick(losses, best)
  return jnp.where(tied, labels, best)


@functools.partial(jax.jit, static_argnames=("divergence",))
def _two_class_weights(losses, labels, divergence, gamma):
  q = jnp.asarray(moved_mass(divergence, gamma), losses.dtype)
  num_classes, dtype = losses.shape[1], losses.dtype
  label = one_hot(labels, num_classes, dtype)
  best = one_hot(best_class(losses, labels), num_classes, dtype)
  return (1 - q) * label + q * best


def _scaled(losses):
  """`[K]` gaps to the least loss, finite, the largest 1 (or all 0)."""
  least = jnp.min(losses)
  gap = jnp.where(losses == least, 0.0, losses - least)
  finite = jnp.isfinite(gap)
  scale = jnp.max(jnp.where(finite, gap, 0.0))
  scale = jnp.where(scale > 0, scale, 1.0)
  return jnp.where(gap == jnp.inf, _INFINITE, gap / scale)


def _bisect(too_far, like):
  """Ends of log x where `too_far(x)` turns from false to true.

  `like` is a scalar of the data, for its dtype and mapped axes.
  """
  bound = jnp.asarray(_LOG_BOUND, like.dtype)
  ends = (0 * like - bound, 0 * like + bound)

  def halve(_, ends):
    low, high = ends
    mid = (low + high) / 2
    far = too_far(jnp.exp(mid))
    return jnp.where(far, low, mid), jnp.where(far, mid, high)

  return jax.lax.fori_loop(0, _NUM_HALVINGS, halve, ends)


def project_simplex(x: jax.Array) -> jax.Array:
  """The nearest point of the simplex, in the Euclidean norm.

  Args:
    x: `[K]`.

  Returns:
    `[K]`, zero or more, sum 1.

  >>> project_simplex(jnp.array([1.0, 0.5])).tolist()
  [0.75, 0.25]
  """
  ordered = -jnp.sort(-x)
  rank = jnp.arange(1, x.shape[0] + 1)
  level = (jnp.cumsum(ordered) - 1) / rank
  kept = jnp.sum(ordered > level)
  return jnp.maximum(x - level[jnp.maximum(kept - 1, 0)], 0.0)


def _l2_row(losses, label, gamma):
  """P_simplex(y - tau l), tau as large as the ball allows."""
  gap = _scaled(losses)
  distance = lambda v: jnp.sum(jnp.square(v - label))
  point = lambda tau: project_simplex(label - tau * gap)
  low, _ = _bisect(lambda tau: distance(point(tau)) > gamma, gap[0])
  tau = jnp.exp(low)
  # With the active classes known, tau has a closed form: digits beyond those
  # of the bisection. On the face of the least losses there is none.
  active = point(tau) > 0
  num = jnp.sum(active)
  shift = (1 - jnp.sum(jnp.where(active, label, 0.0))) / num
  mean = jnp.sum(jnp.where(active, gap, 0.0)) / num
  spread = jnp.sum(jnp.where(active, jnp.square(gap - mean), 0.0))
  left = jnp.sum(jnp.where(active, 0.0, jnp.square(label)))
  square = gamma - num * jnp.square(shift) - left
  exact = jnp.sqrt(jnp.maximum(square, 0.0) / jnp.where(spread > 0, spread, 1))
  return point(jnp.where(spread > 0, jnp.maximum(exact, 0.0), tau))


def _tv_row(losses, label, gamma):
  """Mass leaves the largest losses first."""
  gap = _scaled(losses)
  order = jnp.argsort(-gap)
  mass = jnp.where(gap > 0, label, 0.0)[order]
  before = jnp.cumsum(mass) - mass
  taken = jnp.zeros_like(label).at[order].set(jnp.clip(gamma - before, 0, mass))
  return (label - taken).at[jnp.argmin(gap)].add(jnp.sum(taken))


def _kl_row(losses, label, gamma):
  """v_k = y_k / (t_k + nu) up to a factor, t the gaps; or a new best class."""
  gap = _scaled(losses)
  held = label > 0

  def of(x):
    """Weights at 1 / nu = x."""
    w = label / (1 + gap * x)
    return w / jnp.sum(w)

  def distance(x):
    log_terms = jnp.log1p(gap * x)
    inside = jnp.sum(jnp.where(held, label * log_terms, 0.0))
    return inside + jnp.log(jnp.sum(label / (1 + gap * x)))

  low, _ = _bisect(lambda x: distance(x) > gamma, gap[0])
  safe = jnp.where(held & (gap > 0), gap, 1.0)
  log_mean = jnp.sum(special.xlogy(label, safe))
  ratio = jnp.where(held, label / safe, 0.0)
  least = log_mean + jnp.log(jnp.sum(ratio))
  split = jnp.exp(log_mean - gamma) * ratio
  split = split.at[jnp.argmin(gap)].add(1 - jnp.sum(split))
  opens = ~jnp.any(held & (gap == 0)) & (gamma >= least)
  return jnp.where(opens, split, of(jnp.exp(low)))


_ROWS = {"tv": _tv_row, "l1": _tv_row, "l2": _l2_row, "kl": _kl_row}


@functools.partial(jax.jit, static_argnames=("divergence",))
def _row_weights(losses, labels, divergence, gamma):
  """Any labels: row by row, by sorting or bisection."""
  y = one_hot(labels, losses.shape[1], losses.dtype)
  gamma = jnp.asarray(gamma, losses.dtype)
  budget = gamma / 2 if divergence == "l1" else gamma
  row = functools.partial(_ROWS[divergence], gamma=budget)
  moved = jax.vmap(row)(losses, y)
  if labels.ndim == 1:
    settled = best_class(losses, labels) == labels
    moved = jnp.where(settled[:, None], y, moved)
  return jnp.where(gamma > 0, moved, y)


def class_weights(
  losses: ArrayLike,
  labels: ArrayLike,
  *,
  divergence: str = "tv",
  gamma: ArrayLike,
) -> jax.Array:
  """Weights of the classes of each example, exactly.

  Constrained class weights of Kumar and Amid 2021; the head of this file has
  the problem. One-hot `tv`, `l1` and `kl` and soft `tv`, `l1` have closed
  forms; `l2` and soft `kl` need a bisection, `l2` with a closed form at its
  end.

  Args:
    losses: `[n, K]` losses of all classes, or minus the logits.
    labels: `[n]` integers in [0, K), or `[n, K]` probabilities. Others are
      refused, or where they are traced make their row NaN (`core.labels`).
    divergence: `tv`, `l1` (twice `tv`), `l2` (the square of the norm) or `kl`.
    gamma: radius in that divergence, 0 or more (`tv`: to 1; `l1`: to 2). May
      be traced; 0 gives the labels exactly.

  Returns:
    `[n, K]` float32 (float64 for float64 losses), gradient stopped, rows that
    sum to 1 as those of the labels do. The label itself where it has the
    least loss. Of several other classes of least loss the first takes the
    mass (`l2`: the nearest point). Infinite losses (masked classes) count as
    very large.

  Raises:
    ValueError: wrong shapes, labels or gamma; an unknown divergence.

  >>> class_weights([[1.2, 0.4, 2.0]], [0], gamma=0.25).tolist()
  [[0.75, 0.25, 0.0]]
  """
  check_settings(divergence, gamma)
  losses = jax.lax.stop_gradient(arrays.as_float(losses))
  if losses.ndim != 2 or 0 in losses.shape:
    raise ValueError(
      f"losses has shape {losses.shape}: it must be [examples, classes]."
    )
  labels, bad = check_labels(labels, losses.shape)
  labels = jax.lax.stop_gradient(labels)
  exact = labels.ndim == 1 and divergence != "l2"
  solve = _two_class_weights if exact else _row_weights
  weights = solve(losses, labels, divergence, gamma)
  return jax.lax.stop_gradient(labels_lib.spoil(weights, bad))


def inner_losses(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  divergence: str = "tv",
  gamma: ArrayLike,
) -> jax.Array:
  """sum_k v_k l_k for integer labels, with no `[n, K]` array of weights.

  l_k = logsumexp(z) - z_k, so (1 - q) l_c + q l_m needs of each row only
  logsumexp, the logit of the label and the largest logit: for vocabularies.

  Args:
    logits: `[n, K]`, any real dtype; computed in float32 or float64.
    labels: `[n]` integers in [0, K), others as in `class_weights`.
    divergence: `tv`, `l1` or `kl`.
    gamma: as in `class_weights`.

  Returns:
    `[n]`. Its gradient is softmax(z) - v, the weights being constants.

  Raises:
    ValueError: as `class_weights`; soft labels; `l2`.

  >>> loss = inner_losses([[0.0, 1.0]], [1], gamma=0.1)
  >>> round(float(loss[0]), 4)
  0.3133
  """
  check_settings(divergence, gamma)
  logits = arrays.as_float(logits)
  labels, bad = check_labels(labels, logits.shape)
  if labels.ndim != 1:
    raise ValueError("labels must be [examples] integers here.")
  q = jnp.asarray(moved_mass(divergence, gamma), logits.dtype)
  best = best_class(-jax.lax.stop_gradient(logits), labels)
  target = (1 - q) * pick(logits, labels) + q * pick(logits, best)
  losses = special.logsumexp(logits, axis=1) - target
  return labels_lib.spoil(losses, bad)
