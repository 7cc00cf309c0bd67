"""Local problems: targets, T local iterations, the exact squared solution.

Letters: N rows, I inputs, O outputs of a layer. X [N, I] inputs, W [I, O]
kernel, A = X W + b [N, O], f the transfer function, G = dL/dA, gamma the
activation learning rate. The displacement of the layer's parameters from W0 is
`delta`; the local pre-activation is A + X delta, so that delta = 0 gives back
the recorded A to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from locojax.core import checks, types
from locojax.methods.locoprop import changes, matching, rows, taps, targets

# (delta by path, t) -> how the local gradients differ from those at W0.
Changes = Callable[
  [dict[str, types.PyTree], jax.Array], dict[str, types.PyTree]
]


def sum_over_devices(tree: types.PyTree, options: targets.LocalOptions):
  """The sum over the mapped axis, if there is one."""
  if options.axis_name is None:
    return tree
  return jax.lax.psum(tree, options.axis_name)


def exact_squared_update(
  x: jax.Array,
  preact_grad: jax.Array,
  w: jax.Array,
  *,
  gamma: float,
  eta: float,
) -> jax.Array:
  """The minimiser of the proximal squared local loss.

    W = W0 - gamma (X^T X + I/eta)^-1 X^T G
      = W0 - gamma eta X^T (I + eta X X^T)^-1 G

  an implicit-gradient step: the input-side Kronecker factor of K-FAC. The form
  with the smaller matrix is taken; Cholesky in float32.

  Args:
    x: `[N, I]` inputs, with a column of ones if the bias is folded in.
    preact_grad: `[N, O]`, dL/dA.
    w: `[I, O]`.
    gamma: activation learning rate, above 0.
    eta: local learning rate, the inverse of the proximal weight, above 0.

  Returns:
    `[I, O]`, the new kernel, in the dtype of `w`.
  """
  x32, g = x.astype(jnp.float32), preact_grad.astype(jnp.float32)
  n, i = x.shape
  if n < i:
    inner = jnp.eye(n) + eta * (x32 @ x32.T)
    step = eta * (x32.T @ _solve(inner, g))
  else:
    step = _solve(x32.T @ x32 + jnp.eye(i) / eta, x32.T @ g)
  return w - (gamma * step).astype(w.dtype)


def _solve(matrix, rhs):
  return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), rhs)


def exact_delta(
  records: Sequence[taps.LayerRecord],
  grads,
  eta,
  options: targets.LocalOptions,
  shift: types.PyTree | None = None,
):
  """`exact_squared_update` from gradients: -gamma (C + I/eta)^-1 dW.

  Args:
    records: all calls of one dense layer; their Gram matrices add up.
    grads: gradient of the layer's parameters.
    eta: local learning rate.
    options: `gamma`, `max_rows`, `axis_name` count.
    shift: what is added to gamma `grads`, if anything.

  Returns:
    The displacement, a tree like `grads` in float32.
  """
  c = 0.0
  for record in map(rows.flatten, records):
    stride = rows.stride(record.preact.shape[0], options.max_rows)
    c += changes.record_gram(record, stride, "bias" in grads)
  c = sum_over_devices(c, options)
  rhs = options.gamma * changes.fold(grads)
  rhs = rhs if shift is None else rhs + changes.fold(shift)
  solution = _solve(c + jnp.eye(c.shape[0]) / eta, -rhs)
  return changes.unfold(solution, grads)


def pull_back(record, params, residual) -> types.PyTree:
  """X^T R, the gradient of <R, A> for the parameters, in float32."""
  record = rows.flatten(record)
  residual = residual.reshape(record.preact.shape)
  residual = rows.masked(residual, record.row_mask)
  _, vjp = jax.vjp(lambda p: record.affine(p, *record.inputs), params)
  (out,) = vjp(residual.astype(record.preact.dtype))
  return jax.tree.map(lambda x: x.astype(jnp.float32), out)


def start_gradient(record, params, transfer, options: targets.LocalOptions):
  """X^T R at W0, for targets whose residual there is not gamma G."""
  residual = targets.residual_at_start(record, transfer, options)
  return pull_back(record, params, residual)


def local_solve(
  records: Sequence[taps.LayerRecord],
  params: types.PyTree,
  grads: types.PyTree,
  *,
  transfer: str | matching.MatchingLoss,
  inner: Callable[[jax.Array], optax.GradientTransformation],
  inner_state: optax.OptState,
  learning_rates: jax.Array,
  options: targets.LocalOptions,
  reg: float = 0.0,
) -> tuple[types.PyTree, optax.OptState]:
  """T local iterations of one layer: the reference for the joint transform.

  Args:
    records: all calls of the layer on the tape.
    params: the layer's parameters W0.
    grads: gradient of the global loss for them.
    transfer: its transfer function.
    inner: `learning_rate -> GradientTransformation`.
    inner_state: its state for `params`.
    learning_rates: `[T]`, one a local iteration.
    options: how the local problem is posed.
    reg: proximal weight lambda of lambda/2 ||W - W0||^2.

  Returns:
    The displacement W_T - W0 and the inner state.
  """
  problem = Problem(records, params, grads, matching.get(transfer), options)
  return iterate(
    {"": problem},
    {"": params},
    inner=inner,
    inner_state=inner_state,
    learning_rates=learning_rates,
    reg=reg,
    wrap=lambda tree: tree[""],
    unwrap=lambda tree: {"": tree},
  )


class Problem:
  """One layer's local problem: its gradient at W0 and how that changes.

  Attributes:
    start: gradient at W0.
    parts: `gradient_change` of each call of the layer.
    options: how the problem is posed.
  """

  def __init__(self, records, params, grads, transfer, options, shift=None):
    """Sums over the calls of the layer; see `local_solve` for the arguments.

    `shift` is added to the gradient at W0 (`chain.shift`).
    """
    checks.one_of("variant", options.variant, targets.VARIANTS)
    self.options = options
    self.parts = tuple(
      changes.gradient_change(r, params, transfer, options) for r in records
    )
    if targets.plain(options):
      self.start = jax.tree.map(
        lambda g: options.gamma * g.astype(jnp.float32), grads
      )
    else:
      parts = [start_gradient(r, params, transfer, options) for r in records]
      self.start = sum_over_devices(add(parts), options)
    if shift is not None:
      self.start = add([self.start, shift])

  def change(self, delta, t):
    """The gradient at `delta` less that at W0."""
    parts = [part(delta, t) for part in self.parts]
    return sum_over_devices(add(parts), self.options)


def add(trees_: Sequence[types.PyTree]) -> types.PyTree:
  """The sum of trees."""
  return jax.tree.map(lambda *xs: sum(xs), *trees_)


def each_alone(problems: dict[str, Problem]) -> Changes:
  """`(delta by path, t) -> change of the gradient by path`."""
  return lambda delta, t: {
    path: problem.change(delta[path], t) for path, problem in problems.items()
  }


def iterate(
  problems: dict[str, Problem],
  params: dict[str, types.PyTree],
  *,
  inner,
  inner_state,
  learning_rates: jax.Array,
  reg: float = 0.0,
  scale: dict[str, float] | None = None,
  combine: Callable[[dict[str, Problem]], Changes] = each_alone,
  wrap=lambda tree: tree,
  unwrap=lambda tree: tree,
):
  """Joint local iterations of independent layers.

  The first gradient is the one the backward pass has computed already, so T
  iterations cost T - 1 forward and T - 1 backward products of each layer.

  Args:
    problems: by path of the layer.
    params: the layers' parameters W0, by path.
    inner: `learning_rate -> GradientTransformation`.
    inner_state: its state for `wrap(params)`.
    learning_rates: `[T]`.
    reg: proximal weight.
    scale: factor on the local gradient by path (1/N for a local mean).
    combine: how the changes of the gradients are computed together.
    wrap, unwrap: between the dict by path and the tree `inner` works on.

  Returns:
    `(delta by path, wrapped; inner_state)`.
  """
  scale = scale or {}
  w0 = jax.tree.map(lambda p: p.astype(jnp.float32), params)

  def scaled(path, gradient, delta):
    s = scale.get(path, 1.0)
    return jax.tree.map(
      lambda g, d: s * g + reg * d, gradient[path], delta[path]
    )

  def take(gradient, delta, state, learning_rate):
    gradient = {path: scaled(path, gradient, delta) for path in gradient}
    current = jax.tree.map(jnp.add, w0, delta)
    updates, state = inner(learning_rate).update(
      wrap(gradient), state, wrap(current)
    )
    return jax.tree.map(jnp.add, delta, unwrap(updates)), state

  change = combine(problems)
  start = {path: problem.start for path, problem in problems.items()}
  zero = jax.tree.map(jnp.zeros_like, w0)
  first = take(start, zero, inner_state, learning_rates[0])

  def body(t, carry):
    delta, state = carry
    gradient = jax.tree.map(jnp.add, start, change(delta, t))
    return take(gradient, delta, state, learning_rates[t])

  num = learning_rates.shape[0]
  delta, state = jax.lax.fori_loop(1, num, body, first)
  return wrap(delta), state
