"""Shampoo with grafting, as an optax transformation.

Gupta, Koren, Singer, "Shampoo: Preconditioned Stochastic Tensor
Optimization", 2018; grafting after Anil et al., "Scalable Second Order
Optimization for Deep Learning", 2020.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.locoprop.baselines import linalg, settings
from locojax.core import checks

GRAFTINGS = ("rmsprop", "adagrad", "sgd", None)
_TINY = 1e-30


class ShampooState(NamedTuple):
  """State of `scale_by_shampoo`; every tree has the parameters' structure.

  Attributes:
    count: updates done, `[]` int32.
    left: `[m, m]` sums of G G^T; empty where a side has no matrix.
    right: `[n, n]` sums of G^T G.
    left_root: the power of `left` in use.
    right_root: the power of `right` in use.
    diagonal: sums of G * G where neither side has a matrix.
    graft: sums of G * G for the grafted norm.
  """

  count: jax.Array
  left: Any
  right: Any
  left_root: Any
  right_root: Any
  diagonal: Any
  graft: Any


def _sides(shape, max_dim) -> tuple[int | None, int | None]:
  """Sizes of the left and right statistics, None where there is none."""
  sizes = linalg.matrix_shape(shape) or (None, None)
  fits = lambda n: n is not None and (max_dim is None or n <= max_dim)
  return tuple(n if fits(n) else None for n in sizes)


def _weight(decay):
  """The weight of a new term: 1 - decay, or 1 for a plain sum."""
  return jnp.where(decay == 1.0, 1.0, 1.0 - decay)


def _correction(decay, t):
  """The sum of the weights after `t` terms, or 1 for a plain sum."""
  return jnp.where(decay == 1.0, 1.0, 1.0 - decay**t)


def _add(decay, total, term):
  if linalg.is_absent(total):
    return total
  new = decay * total + _weight(decay) * term
  return new.astype(total.dtype)


def scale_by_shampoo(
  *,
  b2: float = 0.99,
  eps: float = 1e-6,
  update_every: int = 1,
  exponent: float = -0.25,
  grafting: str | None = "rmsprop",
  graft_b2: float = 0.99,
  graft_eps: float = 1e-8,
  start_preconditioning_step: int = 1,
  max_dim: int | None = None,
) -> optax.GradientTransformation:
  """The Shampoo direction, `L^e G R^e`; see `shampoo` for the arguments."""
  settings.check(checks.in_range, "b2", b2, 0.0, 1.0)
  settings.check(checks.nonnegative, "eps", eps)
  settings.check(checks.positive_int, "update_every", update_every)
  settings.check(checks.in_range, "exponent", exponent, -1.0, 0.0)
  checks.one_of("grafting", grafting, GRAFTINGS)
  settings.decay("graft_b2", graft_b2)
  settings.check(checks.positive, "graft_eps", graft_eps)
  settings.check(
    checks.positive_int,
    "start_preconditioning_step",
    start_preconditioning_step,
  )
  graft_decay = 1.0 if grafting == "adagrad" else graft_b2

  def init(params):
    limit = settings.max_dim(max_dim)

    def side(index, make):
      def one(p):
        n = _sides(p.shape, limit)[index]
        if n is None:
          return optax.MaskedNode()
        return make(n, dtype=linalg.accumulator(p.dtype))

      return jax.tree.map(one, params)

    def moments(wanted):
      return jax.tree.map(
        lambda p: (
          jnp.zeros_like(p, linalg.accumulator(p.dtype))
          if wanted(p)
          else optax.MaskedNode()
        ),
        params,
      )

    square = lambda n, dtype: jnp.zeros((n, n), dtype)
    return ShampooState(
      count=jnp.zeros([], jnp.int32),
      left=side(0, square),
      right=side(1, square),
      left_root=side(0, jnp.eye),
      right_root=side(1, jnp.eye),
      diagonal=moments(lambda p: _sides(p.shape, limit) == (None, None)),
      graft=moments(lambda p: grafting in ("rmsprop", "adagrad")),
    )

  def new_roots(left, right, t):
    """The powers of all statistics, equal shapes in one decomposition."""
    sides = [s for pair in zip(left, right) for s in pair]
    others = [s for pair in zip(right, left) for s in pair]
    kept = [i for i, s in enumerate(sides) if not linalg.is_absent(s)]
    scale = 1.0 / _correction(b2, t)
    stats = [(sides[i] * scale).astype(sides[i].dtype) for i in kept]
    powers = [
      # One matrix alone takes the power of both.
      jnp.asarray(
        exponent * (2 if linalg.is_absent(others[i]) else 1), sides[i].dtype
      )
      for i in kept
    ]
    roots = linalg.by_shape(
      lambda s, p: linalg.matrix_power(s, p, eps), stats, powers
    )
    out = [optax.MaskedNode()] * len(sides)
    for i, root in zip(kept, roots):
      out[i] = root
    return out[::2], out[1::2]

  def direction(g, left_root, right_root, diagonal, t):
    if not linalg.is_absent(diagonal):
      moment = diagonal / _correction(b2, t)
      moment = moment + eps * jnp.max(moment, initial=0.0)
      scale = jnp.where(moment > 0, moment, 1.0) ** (2 * exponent)
      return g * scale.astype(g.dtype)
    out = linalg.as_matrix(g)
    if not linalg.is_absent(left_root):
      out = linalg.matmul(left_root, out)
    if not linalg.is_absent(right_root):
      out = linalg.matmul(out, right_root)
    return out.reshape(g.shape)

  def graft_direction(g, moment, t):
    if linalg.is_absent(moment):
      return g
    moment = moment / _correction(graft_decay, t)
    return (g / (jnp.sqrt(moment) + graft_eps)).astype(g.dtype)

  def one_update(g, left_root, right_root, diagonal, moment, t):
    wide = g.astype(linalg.accumulator(g.dtype))
    out = direction(wide, left_root, right_root, diagonal, t)
    graft = graft_direction(wide, moment, t)
    if grafting is not None:
      norm = jnp.maximum(jnp.linalg.norm(out), _TINY)
      out = out * (jnp.linalg.norm(graft) / norm)
    out = jnp.where(t >= start_preconditioning_step, out, graft)
    return out.astype(g.dtype)

  def update(updates, state, params=None):
    del params
    grads, treedef = jax.tree.flatten(updates)
    spread, pack = treedef.flatten_up_to, treedef.unflatten
    t = optax.safe_increment(state.count)
    mats = [
      linalg.as_matrix(g) if g.ndim > 1 else jnp.zeros((1, 1)) for g in grads
    ]
    wide = [g.astype(linalg.accumulator(g.dtype)) for g in grads]
    left = [
      _add(b2, s, 0 if linalg.is_absent(s) else linalg.matmul(m, m.T))
      for s, m in zip(spread(state.left), mats)
    ]
    right = [
      _add(b2, s, 0 if linalg.is_absent(s) else linalg.matmul(m.T, m))
      for s, m in zip(spread(state.right), mats)
    ]
    diagonal = [
      _add(b2, s, g * g) for s, g in zip(spread(state.diagonal), wide)
    ]
    moments = [
      _add(graft_decay, s, g * g) for s, g in zip(spread(state.graft), wide)
    ]
    due = (state.count % update_every == 0) | (t == start_preconditioning_step)
    roots = jax.lax.cond(
      due & (t >= start_preconditioning_step),
      lambda: new_roots(left, right, t),
      lambda: (spread(state.left_root), spread(state.right_root)),
    )
    out = [
      one_update(*leaf, t) for leaf in zip(grads, *roots, diagonal, moments)
    ]
    state = ShampooState(
      t, *map(pack, (left, right, *roots, diagonal, moments))
    )
    return pack(out), state

  return optax.GradientTransformation(init, update)


def shampoo(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float = 0.9,
  b2: float = 0.99,
  eps: float = 1e-6,
  update_every: int = 1,
  exponent: float = -0.25,
  grafting: str | None = "rmsprop",
  graft_b2: float = 0.99,
  graft_eps: float = 1e-8,
  start_preconditioning_step: int = 1,
  max_dim: int | None = None,
  weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """Shampoo: `W -= lr L^e G R^e` with e = -1/4, at the norm of another rule.

  With `L = EMA(G G^T)`, `R = EMA(G^T G)` and the power of a statistic S taken
  of `S + eps lambda_max(S) I`. An array of more than two axes is a matrix of
  its leading axes by its last. Scalars, vectors and matrices with both sides
  above `max_dim` use the diagonal `(G * G)^(2e)`; a matrix with one such side
  uses the other with twice the exponent.

  Args:
    learning_rate: a number or a schedule.
    b1: decay of the (bias-corrected) mean of the directions, in [0, 1).
    b2: decay of the statistics, in [0, 1]; 1 sums them.
    eps: ridge relative to the largest eigenvalue (or diagonal entry).
    update_every: steps between two eigendecompositions.
    exponent: the power for each side, in [-1, 0].
    grafting: the rule whose norm the direction of every array takes:
      'rmsprop', 'adagrad', 'sgd', or None for Shampoo's own norm.
    graft_b2: decay of the grafted RMSProp, in [0, 1).
    graft_eps: added to the root of the grafted moment.
    start_preconditioning_step: number of the first step that uses the
      statistics; those before it take the direction of the grafted rule.
    max_dim: largest side to have a matrix; None for no limit.
    weight_decay: decoupled weight decay.

  Returns:
    A transformation whose updates have the dtype of the gradients. Statistics
    are float32 (float64 for float64 gradients).

  Raises:
    ValueError: a setting is outside its range.
  """
  settings.learning_rate(learning_rate)
  settings.decay("b1", b1)
  return optax.chain(
    scale_by_shampoo(
      b2=b2,
      eps=eps,
      update_every=update_every,
      exponent=exponent,
      grafting=grafting,
      graft_b2=graft_b2,
      graft_eps=graft_eps,
      start_preconditioning_step=start_preconditioning_step,
      max_dim=max_dim,
    ),
    optax.ema(b1, debias=True),
    settings.weight_decay(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )
