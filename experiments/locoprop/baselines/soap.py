"""SOAP: Adam in the eigenbasis of Shampoo, as an optax transformation.

Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024,
Algorithm 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.locoprop.baselines import linalg, settings
from locojax.core import checks

REFRESHES = ("qr", "eigh")


class SoapState(NamedTuple):
  """State of `scale_by_soap`; every tree has the parameters' structure.

  Attributes:
    count: calls done, `[]` int32.
    mu: mean of the gradients, in the eigenbasis.
    nu: mean of their squares, in the eigenbasis.
    left: `[m, m]` mean of G G^T; empty where a side has no basis.
    right: `[n, n]` mean of G^T G.
    left_basis: `[m, m]`, eigenvectors of `left` in its columns.
    right_basis: `[n, n]`, eigenvectors of `right` in its columns.
  """

  count: jax.Array
  mu: Any
  nu: Any
  left: Any
  right: Any
  left_basis: Any
  right_basis: Any


def _rotate(x: jax.Array, left, right, back: bool = False) -> jax.Array:
  """`Ql^T X Qr`, or with `back` `Ql X Qr^T`; empty bases are identities."""
  if linalg.is_absent(left) and linalg.is_absent(right):
    return x
  out = linalg.as_matrix(x)
  if not linalg.is_absent(left):
    out = linalg.matmul(left if back else left.T, out)
  if not linalg.is_absent(right):
    out = linalg.matmul(out, right.T if back else right)
  return out.reshape(x.shape)


def _power_iteration(stat, basis):
  """One step of orthogonal iteration: `qr(S Q)`, columns sorted before.

  Returns:
    The new basis and the order `[n]` in which the old columns were
    taken (by falling Rayleigh quotient).
  """
  product = linalg.matmul(stat, basis)
  order = jnp.argsort(-jnp.sum(basis * product, axis=0))
  return jnp.linalg.qr(product[:, order])[0], order


def _decompose(stat, basis):
  """Eigenvectors anew; the order of the columns is that of the eigenvalues."""
  return linalg.eigenvectors(stat), jnp.arange(len(basis))


def _refresh(method, stats, bases):
  """New bases and column orders for a list that may hold empty places."""
  kept = [i for i, s in enumerate(stats) if not linalg.is_absent(s)]
  new = linalg.by_shape(
    method, [stats[i] for i in kept], [bases[i] for i in kept]
  )
  out = [(optax.MaskedNode(), optax.MaskedNode())] * len(stats)
  for i, pair in zip(kept, new):
    out[i] = pair
  return [b for b, _ in out], [o for _, o in out]


def _between(old, new):
  """The rotation from an old basis to a new one."""
  return old if linalg.is_absent(old) else linalg.matmul(old.T, new)


def _permute(x, left_order, right_order):
  """Takes the rows and columns of a second moment in a new order."""
  if linalg.is_absent(left_order) and linalg.is_absent(right_order):
    return x
  out = linalg.as_matrix(x)
  if not linalg.is_absent(left_order):
    out = out[left_order]
  if not linalg.is_absent(right_order):
    out = out[:, right_order]
  return out.reshape(x.shape)


def scale_by_soap(
  *,
  b1: float = 0.95,
  b2: float = 0.95,
  shampoo_beta: float | None = None,
  eps: float = 1e-8,
  precondition_frequency: int = 10,
  refresh: str = "qr",
  max_dim: int | None = None,
) -> optax.GradientTransformation:
  """The direction of SOAP; see `soap` for the arguments."""
  settings.decay("b1", b1)
  settings.decay("b2", b2)
  beta = b2 if shampoo_beta is None else shampoo_beta
  settings.decay("shampoo_beta", beta)
  settings.check(checks.nonnegative, "eps", eps)
  settings.check(
    checks.positive_int, "precondition_frequency", precondition_frequency
  )
  checks.one_of("refresh", refresh, REFRESHES)
  method = {"qr": _power_iteration, "eigh": _decompose}[refresh]

  def init(params):
    limit = settings.max_dim(max_dim)

    def side(index, make):
      def one(p):
        shape = linalg.matrix_shape(p.shape)
        if shape is None or (limit is not None and shape[index] > limit):
          return optax.MaskedNode()
        return make(shape[index], dtype=linalg.accumulator(p.dtype))

      return jax.tree.map(one, params)

    square = lambda n, dtype: jnp.zeros((n, n), dtype)
    moment = lambda p: jnp.zeros_like(p, linalg.accumulator(p.dtype))
    return SoapState(
      count=jnp.zeros([], jnp.int32),
      mu=jax.tree.map(moment, params),
      nu=jax.tree.map(moment, params),
      left=side(0, square),
      right=side(1, square),
      left_basis=side(0, jnp.eye),
      right_basis=side(1, jnp.eye),
    )

  def refreshed(how, left, right, bases, mu, nu):
    """New bases, with both moments carried over to them."""
    new, orders = _refresh(how, left + right, bases)
    n = len(left)
    turns = [_between(old, q) for old, q in zip(bases, new)]
    mu = [_rotate(m, turns[i], turns[n + i]) for i, m in enumerate(mu)]
    nu = [_permute(v, orders[i], orders[n + i]) for i, v in enumerate(nu)]
    return new, mu, nu

  def moments(grads, bases, mu, nu, first):
    """Adam's means in the eigenbasis; the first call leaves them at zero."""
    n = len(grads)
    turned = [_rotate(g, bases[i], bases[n + i]) for i, g in enumerate(grads)]
    mix = lambda decay, old, new: jnp.where(
      first, old, decay * old + (1 - decay) * new
    ).astype(old.dtype)
    mu = [mix(b1, m, g) for m, g in zip(mu, turned)]
    nu = [mix(b2, v, g * g) for v, g in zip(nu, turned)]
    return mu, nu

  def direction(m, v, left, right, done):
    steps = jnp.maximum(done, 1)
    m = m / (1 - b1**steps)
    v = v / (1 - b2**steps)
    # eps may be zero: entries without any gradient stay at zero.
    scale = jnp.where(v > 0, jnp.sqrt(v) + eps, 1.0)
    out = (m / scale).astype(m.dtype)
    return _rotate(out, left, right, back=True)

  def update(updates, state, params=None):
    del params
    leaves, treedef = jax.tree.flatten(updates)
    spread, pack = treedef.flatten_up_to, treedef.unflatten
    grads = [g.astype(linalg.accumulator(g.dtype)) for g in leaves]
    bases = spread(state.left_basis) + spread(state.right_basis)
    n, first = len(grads), state.count == 0
    mu, nu = moments(grads, bases, spread(state.mu), spread(state.nu), first)
    out = [
      direction(mu[i], nu[i], bases[i], bases[n + i], state.count)
      for i in range(n)
    ]
    out = [o.astype(g.dtype) for o, g in zip(out, leaves)]

    def mean(total, g, left):
      if linalg.is_absent(total):
        return total
      m = linalg.as_matrix(g)
      outer = linalg.matmul(m, m.T) if left else linalg.matmul(m.T, m)
      return (beta * total + (1 - beta) * outer).astype(total.dtype)

    left = [mean(s, g, True) for s, g in zip(spread(state.left), grads)]
    right = [mean(s, g, False) for s, g in zip(spread(state.right), grads)]
    due = state.count % precondition_frequency == 0
    bases, mu, nu = jax.lax.switch(
      jnp.where(first, 2, due.astype(jnp.int32)),
      (
        lambda: (bases, mu, nu),
        lambda: refreshed(method, left, right, bases, mu, nu),
        lambda: refreshed(_decompose, left, right, bases, mu, nu),
      ),
    )
    fields = (mu, nu, left, right, bases[:n], bases[n:])
    count = optax.safe_increment(state.count)
    return pack(out), SoapState(count, *map(pack, fields))

  return optax.GradientTransformation(init, update)


def soap(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float = 0.95,
  b2: float = 0.95,
  shampoo_beta: float | None = None,
  eps: float = 1e-8,
  precondition_frequency: int = 10,
  refresh: str = "qr",
  max_dim: int | None = None,
  weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """SOAP: Adam on `Ql^T G Qr`, turned back by `Ql . Qr^T`.

  `Ql` and `Qr` hold the eigenvectors of `EMA(G G^T)` and `EMA(G^T G)`. An
  eigendecomposition at the first call, which only prepares the bases and
  moves nothing, is followed by one step of orthogonal iteration every
  `precondition_frequency` steps. A step uses the bases of the step before. At
  a change of basis the mean gradient is rotated, the mean squares follow the
  order of the columns. An array of more than two axes is a matrix of its
  leading axes by its last; scalars and vectors get Adam.

  Args:
    learning_rate: a number or a schedule.
    b1: decay of the mean gradient, in [0, 1).
    b2: decay of the mean squares, in [0, 1).
    shampoo_beta: decay of the statistics, in [0, 1); None means `b2`.
    eps: added to the root of the mean squares.
    precondition_frequency: steps between two changes of basis.
    refresh: 'qr' for orthogonal iteration, 'eigh' for a decomposition.
    max_dim: largest side to be rotated; None for no limit.
    weight_decay: decoupled weight decay.

  Returns:
    A transformation whose updates have the dtype of the gradients. Statistics
    are float32 (float64 for float64 gradients).

  Raises:
    ValueError: a setting is outside its range.
  """
  settings.learning_rate(learning_rate)
  return optax.chain(
    scale_by_soap(
      b1=b1,
      b2=b2,
      shampoo_beta=shampoo_beta,
      eps=eps,
      precondition_frequency=precondition_frequency,
      refresh=refresh,
      max_dim=max_dim,
    ),
    settings.weight_decay(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )
