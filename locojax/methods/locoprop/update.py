"""Local problems: targets, T local iterations.

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


def pull_back(record, params, residual) -> types.PyTree:
  """X^T R, the gradient of <R, A> for the parameters, as `rows.cast`."""
  params = rows.cast(params)
  dtype = rows.dtype_of(params)
  record = rows.in_dtype(rows.flatten(record), dtype)
  residual = residual.reshape(record.preact.shape)
  residual = rows.masked(residual, record.row_mask)
  a, vjp = jax.vjp(lambda p: record.affine(p, *record.inputs), params)
  (out,) = vjp(residual.astype(a.dtype))
  return rows.cast(out, dtype)


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
    The displacement W_T - W0, in `rows.dtype_of(params)`, and the inner state
    in the dtypes that it had: for 16-bit parameters make it of them in float32.

  >>> from locojax.methods.locoprop import LocalOptions, capture, tap
  >>> affine = lambda layer, x: x @ layer["kernel"]
  >>> params = {"h": {"kernel": jnp.ones((2, 3))}}
  >>> def loss_fn(params, model_state, x, key):
  ...   a = tap("h", affine, params["h"], x)
  ...   return jnp.tanh(a).mean(), ({}, model_state)
  ...
  >>> (loss, _), grads, tape = capture(loss_fn)(
  ...   params, {}, jnp.ones((4, 2)), None
  ... )
  >>> moved, _ = local_solve(
  ...   [tape.records["h"]],
  ...   params["h"],
  ...   grads["h"],
  ...   transfer="tanh",
  ...   inner=optax.sgd,
  ...   inner_state=optax.sgd(0.1).init(params["h"]),
  ...   learning_rates=jnp.full(3, 0.1),
  ...   options=LocalOptions(),
  ... )
  >>> moved["kernel"].shape
  (2, 3)
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
    self.options, dtype = options, rows.dtype_of(params)
    self.parts = tuple(
      changes.gradient_change(r, params, transfer, options) for r in records
    )
    if targets.plain(options):
      self.start = jax.tree.map(
        lambda g: (options.gamma * g.astype(dtype)).astype(dtype), grads
      )
    else:
      parts = [start_gradient(r, params, transfer, options) for r in records]
      self.start = sum_over_devices(add(parts), options)
    if shift is not None:
      self.start = rows.cast(add([self.start, shift]), dtype)

  def change(self, delta, t):
    """The gradient at `delta` less that at W0."""
    parts = [part(delta, t) for part in self.parts]
    return sum_over_devices(add(parts), self.options)


def add(trees_: Sequence[types.PyTree]) -> types.PyTree:
  """The sum of trees."""
  return jax.tree.map(lambda *xs: sum(xs), *trees_)


def _as_before(new, old):
  """A leaf of the inner state in the dtype that it had."""
  dtype = jnp.result_type(old)
  return new if jnp.result_type(new) == dtype else jnp.asarray(new, dtype)


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
  w0 = {path: rows.cast(p) for path, p in params.items()}
  widest = jnp.result_type(*jax.tree.leaves(w0))
  learning_rates = learning_rates.astype(widest)

  def scaled(path, gradient, delta):
    s = scale.get(path, 1.0)
    return jax.tree.map(
      lambda g, d: (s * g + reg * d).astype(d.dtype),
      gradient[path],
      delta[path],
    )

  def take(gradient, delta, state, learning_rate):
    gradient = {path: scaled(path, gradient, delta) for path in gradient}
    current = jax.tree.map(jnp.add, w0, delta)
    updates, new_state = inner(learning_rate).update(
      wrap(gradient), state, wrap(current)
    )
    moved = jax.tree.map(
      lambda d, u: (d + u).astype(d.dtype), delta, unwrap(updates)
    )
    return moved, jax.tree.map(_as_before, new_state, state)

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
