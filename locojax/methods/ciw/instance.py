"""Instance weights: small losses count more, within a divergence ball.

Kumar, Amid 2021, "Constrained Instance and Class Reweighting for Robust
Learning under Label Noise", arXiv 2111.05428. The weights of a batch solve

  min_w sum_i w_i l_i  over the simplex, subject to D(w, uniform) <= radius;

`lam` stands for the multiplier. With a_i = (1 - alpha) l_i + lam,

  kl          alpha = 1     exp(-l_i / lam)        sum w log(w / u)
  reverse_kl  alpha = 0     1 / (l_i + lam)        sum u log(u / w)
  hellinger   alpha = 1/2   (l_i / 2 + lam)^-2     1 - sum sqrt(w u)
  chi2        alpha = 2     max(lam - l_i, 0)      sum (w - u)^2 / u
  neyman      alpha = -1    (2 l_i + lam)^-1/2     sum (w - u)^2 / w
  alpha       any           max(a_i, 0)^(1 / (alpha - 1))
                            (sum w^alpha u^(1-alpha) - 1) / (alpha (alpha - 1))
  renyi       above 0       as alpha
                            log(sum w^alpha u^(1-alpha)) / (alpha - 1)
  tv          -             1 if l_i <= min l + lam, else moved to the minimum
                            sum |w - u| / 2

before they are normalised; on the right the divergence that `radius` bounds.
All is computed from logarithms, so no loss is too large and no `lam` too small.
Letter in shapes: n examples.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import arrays, checks
from locojax.methods.ciw import inputs

_ORDER = {
  "kl": 1.0,
  "reverse_kl": 0.0,
  "hellinger": 0.5,
  "chi2": 2.0,
  "neyman": -1.0,
}
DIVERGENCES = (*_ORDER, "alpha", "renyi", "tv")
# D_alpha times this is the divergence under its own name.
_SCALE = {"hellinger": 0.25, "chi2": 2.0, "neyman": 2.0}
# Bisection of log(lam / spread of the losses), in this interval.
_NUM_HALVINGS = 60
_LOG_BOUND = 80.0
# Above this, 1 + x is x.
_HUGE = 1e30
_SLACK = 1e-6


def order(divergence: str, alpha: float | None = None) -> float | None:
  """The alpha of a divergence; None for total variation.

  Raises:
    ValueError: unknown divergence; `alpha` missing, not finite, given where
      the divergence fixes it, or not above 0 for `renyi`.

  >>> order("hellinger")
  0.5
  """
  checks.one_of("divergence", divergence, DIVERGENCES)
  if divergence not in ("alpha", "renyi"):
    if alpha is not None:
      raise ValueError(
        f"alpha={alpha!r} is not allowed with divergence={divergence!r}: it "
        "belongs to 'alpha' and 'renyi'."
      )
    return _ORDER.get(divergence)
  if alpha is None:
    raise ValueError(f"alpha=None is not allowed: {divergence!r} needs it.")
  if divergence == "renyi":
    return float(checks.positive("alpha", alpha))
  limit = float(jnp.finfo(jnp.float32).max)
  return float(checks.in_range("alpha", alpha, -limit, limit))


def check_settings(divergence, alpha, lam, radius, normalize, groups) -> None:
  """Checks what does not depend on the losses; a schedule passes as `lam`.

  Raises:
    ValueError: see `instance_weights`.
  """
  order(divergence, alpha)
  if (lam is None) == (radius is None):
    raise ValueError(
      f"lam={lam!r} and radius={radius!r} are not allowed: give exactly one."
    )
  if lam is not None and not callable(lam):
    inputs.number("lam", lam)
  if radius is not None:
    inputs.number("radius", radius)
    if not normalize:
      raise ValueError(
        "normalize=False is not allowed with radius: the divergence is one "
        "between normalised weights. Give lam."
      )
  checks.positive_int("groups", groups)


def _least(losses, live):
  return jnp.min(jnp.where(live, losses, jnp.inf))


def _above(losses, least):
  """`losses - least`, with ties zero even if infinite."""
  return jnp.where(losses == least, 0.0, losses - least)


def _log_power(losses, lam, alpha):
  """log of max((1 - alpha) l / lam + 1, 0)^(1 / (alpha - 1)); see `order`."""
  x = (1 - alpha) * (losses / lam)
  if alpha > 1:
    positive = 1 + x > 0
    safe = jnp.where(positive, x, 0.0)
    out = jnp.where(positive, jnp.log1p(safe), -jnp.inf) / (alpha - 1)
    return jnp.where(jnp.isnan(x), jnp.nan, out)
  far = x > _HUGE
  # log x by parts: x itself may overflow.
  log_x = jnp.log(jnp.where(far, losses, 1.0)) + jnp.log((1 - alpha) / lam)
  small = jnp.log1p(jnp.where(far, 0.0, x))
  return jnp.where(far, log_x, small) / (alpha - 1)


def _log_weights(losses, lam, alpha, live):
  """Logarithms up to a constant, 0 at the minimum if all would be -inf."""
  least = _least(losses, live)
  if alpha == 1:
    return -_above(losses, least) / lam
  out = _log_power(losses, lam, alpha)
  if alpha < 1:
    return out
  none = jnp.all(jnp.where(live, out == -jnp.inf, True))
  only = jnp.where(losses == least, 0.0, -jnp.inf)
  return jnp.where(none, only, out)


def _log_normalize(log_w, live):
  """Weights `[n]` that sum to 1, and their logarithms; zero if none lives."""
  top = jnp.max(jnp.where(live, log_w, -jnp.inf))
  log_w = jnp.where(log_w == top, 0.0, log_w - top)
  w = jnp.where(live, jnp.exp(log_w), 0.0)
  total = jnp.sum(w)
  total = jnp.where(total == 0, 1.0, total)
  return w / total, log_w - jnp.log(total)


def _count(live, dtype):
  """Number of live examples, 1 if there are none."""
  return jnp.maximum(jnp.sum(live.astype(dtype)), 1)


@functools.partial(jax.jit, static_argnames=("name", "alpha"))
def _divergence(w, log_w, live, name, alpha):
  """The divergence of normalised weights from uniform ones, `[]`."""
  n = _count(live, w.dtype)
  ratio, log_ratio = w * n, log_w + jnp.log(n)

  def average(x, keep):
    return jnp.sum(jnp.where(live & keep, x, 0.0)) / n

  if name == "tv":
    return average(jnp.abs(ratio - 1), True) / 2
  if alpha == 1:
    return average(ratio * log_ratio, ratio > 0)
  if alpha == 0:
    return -average(log_ratio, True)
  # Two equal forms; each is exact near its own end, alpha = 0 or 1.
  if alpha <= 0.5:
    value = average(jnp.expm1(alpha * log_ratio), True)
  else:
    value = average(
      jnp.where(ratio > 0, ratio * jnp.expm1((alpha - 1) * log_ratio), -ratio),
      True,
    )
  if name == "renyi":
    return jnp.log1p(value) / (alpha - 1)
  return _SCALE.get(name, 1.0) * value / (alpha * (alpha - 1))


def divergence_from_uniform(
  weights: ArrayLike,
  *,
  divergence: str = "kl",
  alpha: float | None = None,
  mask: ArrayLike | None = None,
) -> jax.Array:
  """D(w, uniform), the quantity that `radius` bounds.

  Args:
    weights: `[n]` that sum to 1.
    divergence: one of `DIVERGENCES`; the table above has the formulas.
    alpha: order of `alpha` and `renyi`.
    mask: `[n]`, zero at examples that count as removed.

  Returns:
    `[]`, 0 or more; infinite where the divergence forbids zero weights.

  Raises:
    ValueError: see `order`; a wrong shape; an empty mask.

  >>> float(divergence_from_uniform([0.5, 0.5]))
  0.0
  """
  alpha = order(divergence, alpha)
  weights = _vector("weights", weights)
  live = inputs.live_examples(mask, weights.shape[0])
  weights = jnp.where(live, weights, 0.0)
  return _divergence(weights, jnp.log(weights), live, divergence, alpha)


@functools.partial(jax.jit, static_argnames=("name", "alpha"))
def _search(losses, radius, live, name, alpha):
  """Scaled losses, their scale, and the scaled `lam` of the radius.

  Losses are taken from their minimum: the optimum does not change, and every
  radius up to that of the one-hot weights has its `lam`.
  """
  gap = _above(losses, _least(losses, live))
  finite = live & jnp.isfinite(gap)
  scale = jnp.max(jnp.where(finite, gap, 0.0))
  gap = gap / jnp.where(scale > 0, scale, 1.0)
  bound = jnp.asarray(_LOG_BOUND, losses.dtype)

  def halve(_, ends):
    low, high = ends
    mid = (low + high) / 2
    w, log_w = _log_normalize(
      _log_weights(gap, jnp.exp(mid), alpha, live), live
    )
    outside = _divergence(w, log_w, live, name, alpha) > radius
    return jnp.where(outside, mid, low), jnp.where(outside, high, mid)

  # A zero of the data, so that both ends vary over a mapped axis as it does.
  zero = 0 * scale
  ends = (zero - bound, zero + bound)
  _, high = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, ends)
  return gap, scale, jnp.exp(high)


def lambda_for_radius(
  losses: ArrayLike,
  radius: ArrayLike,
  *,
  divergence: str = "kl",
  alpha: float | None = None,
  mask: ArrayLike | None = None,
) -> jax.Array:
  """The `lam` at which weights of `losses - min losses` have this radius.

  For `kl` the shift does not matter, so it is the `lam` of the losses too.

  Args:
    losses: `[n]`.
    radius: above 0.
    divergence: one of `DIVERGENCES` but `tv`.
    alpha: order of `alpha` and `renyi`.
    mask: `[n]`, zero at examples that count as removed.

  Returns:
    `[]`; near 0 where the one-hot weights are within the radius.

  Raises:
    ValueError: see `instance_weights`; or `tv`.

  >>> losses = [0.1, 0.5, 1.0, 3.0]
  >>> round(float(lambda_for_radius(losses, 0.3)), 4)
  0.8638
  """
  check_settings(divergence, alpha, None, radius, True, 1)
  if divergence == "tv":
    raise ValueError("divergence='tv' is not allowed: its radius has no lam.")
  losses = _vector("losses", losses)
  live = inputs.live_examples(mask, losses.shape[0])
  losses = jnp.where(live, jax.lax.stop_gradient(losses), 0.0)
  alpha = order(divergence, alpha)
  _, scale, lam = _search(losses, radius, live, divergence, alpha)
  return scale * lam


def _moved_by_radius(losses, live, radius):
  """Share of its 1/n that each example loses, the largest losses first."""
  n = jnp.sum(live)
  ordered = jnp.sort(jnp.where(live, losses, jnp.inf))
  up_to = jnp.minimum(jnp.searchsorted(ordered, losses, side="right"), n)
  ties = jnp.maximum(up_to - jnp.searchsorted(ordered, losses, side="left"), 1)
  return jnp.clip((radius * n - (n - up_to)) / ties, 0, 1)


def _tv_weights(losses, live, lam, radius):
  """Mass moved from the largest losses to the smallest; ties share alike."""
  least = _least(losses, live)
  if radius is None:
    moved = jnp.where(_above(losses, least) > lam, 1.0, 0.0)
  else:
    moved = _moved_by_radius(losses, live, radius)
  moved = jnp.where(live & (losses > least), moved, 0.0).astype(losses.dtype)
  first = live & (losses == least)
  gain = jnp.sum(moved) / _count(first, losses.dtype)
  out = (1 - moved + jnp.where(first, gain, 0.0)) / _count(live, losses.dtype)
  return jnp.where(live, out, 0.0)


def _raw(losses, live, lam, alpha):
  """Weights before they are normalised; may overflow or underflow."""
  if alpha == 1:
    return jnp.where(live, jnp.exp(-losses / lam), 0.0)
  w = jnp.exp(_log_power(losses, lam, alpha) + jnp.log(lam) / (alpha - 1))
  none = jnp.all(jnp.where(live, w == 0, True)) if alpha > 1 else False
  w = jnp.where(none, (losses == _least(losses, live)).astype(w.dtype), w)
  return jnp.where(live, w, 0.0)


def _weights(losses, live, *, name, alpha, lam, radius, normalize):
  """Weights of one group, `[n]`."""
  losses = jnp.where(live, losses, 0.0)
  if name == "tv":
    return _tv_weights(losses, live, lam, radius)
  if radius is not None:
    gap, _, lam = _search(losses, radius, live, name, alpha)
    return _log_normalize(_log_weights(gap, lam, alpha, live), live)[0]
  lam = jnp.asarray(lam, losses.dtype)
  if not normalize:
    return _raw(losses, live, lam, alpha)
  return _log_normalize(_log_weights(losses, lam, alpha, live), live)[0]


@functools.partial(
  jax.jit, static_argnames=("name", "alpha", "normalize", "groups")
)
def _grouped(losses, live, lam, radius, *, groups, normalize, **settings):
  """Weights within contiguous groups, each with its share of live examples."""
  solve = functools.partial(
    _weights, lam=lam, radius=radius, normalize=normalize, **settings
  )
  if groups == 1:
    return solve(losses, live)
  losses, live = (x.reshape(groups, -1) for x in (losses, live))
  weights = jax.vmap(solve)(losses, live)
  if normalize:
    share = jnp.sum(live, axis=1, keepdims=True) / _count(live, weights.dtype)
    weights = weights * share.astype(weights.dtype)
  return weights.reshape(-1)


def _vector(name: str, x: ArrayLike) -> jax.Array:
  x = arrays.as_float(x)
  if x.ndim != 1 or not x.shape[0]:
    raise ValueError(
      f"{name} has shape {x.shape}: it must be [examples], one or more."
    )
  return x


def _check_losses(losses, live, alpha, lam) -> None:
  harmless = alpha is None or alpha == 1 or lam is None
  if harmless or not arrays.is_concrete(losses, live):
    return
  least = float(_least(losses, live))
  if least < -_SLACK:
    raise ValueError(
      f"losses has the least value {least:g}: with lam, divergences other "
      "than 'kl' and 'tv' need losses of 0 or more."
    )


def _on_global_batch(fn, axis_name, *arrays):
  """`fn` of the arrays of all shards, and of its result the own part."""
  if axis_name is None:
    return fn(*arrays)
  rows = arrays[0].shape[0]
  gathered = [jax.lax.all_gather(x, axis_name, tiled=True) for x in arrays]
  start = jax.lax.axis_index(axis_name) * rows
  return jax.lax.dynamic_slice_in_dim(fn(*gathered), start, rows)


def instance_weights(
  losses: ArrayLike,
  *,
  divergence: str = "kl",
  alpha: float | None = None,
  lam: ArrayLike | None = None,
  radius: ArrayLike | None = None,
  normalize: bool = True,
  mask: ArrayLike | None = None,
  axis_name: str | tuple[str, ...] | None = None,
  groups: int = 1,
) -> jax.Array:
  """Weights of the examples of a batch, in closed form.

  Constrained instance weights of Kumar and Amid 2021; the table at the head of
  this file has the formulas. Under plain `jit` with the batch sharded over a
  mesh the weights are those of the global batch; inside `shard_map` they are
  with `axis_name`, by one all-gather of n losses.

  Args:
    losses: `[n]`, any real dtype. With `lam`, other than `kl` and `tv` need
      losses of 0 or more.
    divergence: one of `DIVERGENCES`.
    alpha: order of `alpha` and `renyi` (there above 0); None for the others.
    lam: above 0; from small (only the least loss counts) to large (uniform).
      May be traced.
    radius: above 0; the largest divergence from uniform weights, found by
      bisection. Where it allows the one-hot weights, it is these. May be
      traced.
    normalize: False gives the unnormalised weights of `lam`.
    mask: `[n]`, zero at examples that count as removed, whatever they hold.
    axis_name: mapped axis (or axes) over which the batch is split.
    groups: weights within so many equal, contiguous parts of the batch, each
      part with the mass of its share of live examples: what every device
      would find alone, if there are as many parts as devices.

  Returns:
    `[n]` float32 (float64 for float64 losses), gradient stopped, zero or more,
    zero at masked examples; sum 1 if normalised (over all shards). Never
    larger for a larger loss; equal for equal losses. An infinite loss has
    weight 0, unless all are infinite or a `tv` radius leaves it some. If every
    weight would be 0 (alpha > 1, all losses above lam / (alpha - 1)), the
    least loss has weight 1. A NaN makes all weights NaN, or stays in the
    weighted loss. Traced masks may be empty; then all weights are 0.

  Raises:
    ValueError: an unknown divergence; `alpha` missing or superfluous; both or
      none of `lam` and `radius`, or one not above 0 (or above 1: `tv` radius);
      `normalize=False` with a radius; a wrong shape; an empty mask; negative
      losses where they are not allowed; `groups` that does not divide n or
      comes with `axis_name`.

  >>> weights = instance_weights([0.1, 0.5, 1.0, 3.0], lam=0.5)
  >>> [round(w, 4) for w in weights.tolist()]
  [0.6182, 0.2778, 0.1022, 0.0019]
  """
  check_settings(divergence, alpha, lam, radius, normalize, groups)
  if divergence == "tv" and radius is not None:
    inputs.number("radius", radius, checks.in_range, 0, 1)
  if groups > 1 and axis_name is not None:
    raise ValueError(
      f"groups={groups} is not allowed with axis_name={axis_name!r}: without "
      "axis_name each shard is its own group."
    )
  alpha = order(divergence, alpha)
  losses = jax.lax.stop_gradient(_vector("losses", losses))
  live = inputs.live_examples(mask, losses.shape[0])
  _check_losses(losses, live, alpha, lam)
  checks.divisible("number of losses", losses.shape[0], "groups", groups)
  solve = lambda losses, live: _grouped(
    losses,
    live,
    lam,
    radius,
    name=divergence,
    alpha=alpha,
    normalize=normalize,
    groups=groups,
  )
  weights = _on_global_batch(solve, axis_name, losses, live)
  return jax.lax.stop_gradient(weights)


def uniform_weights(
  losses: ArrayLike,
  *,
  mask: ArrayLike | None = None,
  axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
  """1 over the number of live examples: the weights of a plain mean.

  Args:
    losses: `[n]`, for shape and dtype.
    mask: `[n]`, zero at examples that count as removed.
    axis_name: as in `instance_weights`.

  Returns:
    `[n]` that sum to 1 (over all shards), zero at masked examples.

  >>> uniform_weights([3.0, 1.0]).tolist()
  [0.5, 0.5]
  """
  losses = _vector("losses", losses)
  live = inputs.live_examples(mask, losses.shape[0]).astype(losses.dtype)
  total = jnp.sum(live)
  if axis_name is not None:
    total = jax.lax.psum(total, axis_name)
  return live / jnp.maximum(total, 1)
