"""Local problems: targets, T local iterations, the exact squared solution.

Letters: N rows, I inputs, O outputs of a layer. X [N, I] inputs, W [I, O]
kernel, A = X W + b [N, O], f the transfer function, G = dL/dA, gamma the
activation learning rate. The displacement of the layer's parameters from W0 is
`delta`; the local pre-activation is A + X delta, so that delta = 0 gives back
the recorded A to the last bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from locojax.core import checks, mesh, types
from locojax.methods.locoprop import matching, taps

TARGETS = ("md", "gd", "post_gd")
VARIANTS = ("matching", "squared")


@dataclasses.dataclass(frozen=True)
class LocalOptions:
  """How the local problem of a layer is posed (see `transform.locoprop`)."""

  variant: str = "matching"
  target: str = "md"
  gamma: float | jax.Array = 10.0
  clip_targets: float | None = None
  max_rows: int | None = None
  rotate_rows: bool = True
  gather_rows: bool = False
  gram: bool | None = None
  axis_name: str | None = None


def residual_at_start(
  record: taps.LayerRecord,
  transfer: matching.MatchingLoss,
  options: LocalOptions,
) -> jax.Array:
  """The local residual at W0, so that the residual is `response - Y*` later.

  With variant 'matching' it is f(A) - Y*, with 'squared' it is A - A*:

    matching, md       Y* = f(A) - gamma G              (LocoProp-M)
    matching, gd       Y* = f(A - gamma G)
    matching, post_gd  Y* = f(A) - gamma dL/dY,  dL/dY = G / f'(A)
    squared,  gd       A* = A - gamma G                 (LocoProp-S)
    squared,  md       A* = f^-1(f(A) - gamma G)

  `post_gd` is zero where f' is zero, for the gradient is lost there; its first
  step is not BackProp's. `clip_targets` keeps Y* that margin inside the range
  of f; the inverse of f always does, by 1e-4 if no margin is given.

  Returns:
    `[..., O]`, float32; no gradient flows through it.
  """
  a = record.preact.astype(jnp.float32)
  step = options.gamma * record.preact_grad.astype(jnp.float32)
  f = transfer.transfer
  if options.variant == "squared":
    if options.target == "gd":
      return step
    y = _clip(f(a) - step, transfer, options.clip_targets or 1e-4)
    return a - transfer.inverse(y)
  if options.target == "gd":
    return f(a) - f(a - step)
  if options.target == "post_gd":
    step = _undo_slope(step, a, f)
  if options.clip_targets is None:
    return step
  return f(a) - _clip(f(a) - step, transfer, options.clip_targets)


def _undo_slope(step, a, f):
  slope = jax.jvp(f, (a,), (jnp.ones_like(a),))[1]
  return jnp.where(slope > 0, step / jnp.where(slope > 0, slope, 1.0), 0.0)


def _clip(y, transfer, margin):
  low = transfer.low + margin if math.isfinite(transfer.low) else None
  high = transfer.high - margin if math.isfinite(transfer.high) else None
  return jnp.clip(y, min=low, max=high)


def target_outside(
  record: taps.LayerRecord, transfer: str, gamma: float
) -> jax.Array:
  """Share of mirror-descent targets outside the range of f.

  There the local loss has no minimum, and only the small number of local
  iterations keeps the step finite.
  """
  loss = matching.get(transfer)
  y = loss.transfer(record.preact) - gamma * record.preact_grad
  return jnp.mean((y < loss.low) | (y > loss.high))


def plain(options: LocalOptions) -> bool:
  """Whether the residual at W0 is gamma G, so that its gradient is gamma dW."""
  usual = "md" if options.variant == "matching" else "gd"
  return options.target == usual and options.clip_targets is None


def num_rows(record: taps.LayerRecord) -> int:
  """Rows of the local problem: dense leading sizes, else examples."""
  if record.kind == "dense":
    return math.prod(record.preact.shape[:-1])
  return record.preact.shape[0]


def _rows_first(record: taps.LayerRecord) -> taps.LayerRecord:
  """Flattens the leading axes of a dense layer into rows."""
  if record.kind != "dense":
    return record
  flat = lambda x: x.reshape(-1, x.shape[-1])
  return dataclasses.replace(
    record,
    inputs=tuple(flat(x) for x in record.inputs),
    preact=flat(record.preact),
    preact_grad=flat(record.preact_grad),
    row_mask=_flat_mask(record),
  )


def _flat_mask(record: taps.LayerRecord) -> jax.Array | None:
  """The mask of examples, one entry for each flattened row."""
  if record.row_mask is None:
    return None
  lead = record.preact.shape[:-1]
  mask = record.row_mask.reshape(-1, *(1,) * (len(lead) - 1))
  return jnp.broadcast_to(mask, lead).reshape(-1)


def _masked(x: jax.Array, mask: jax.Array | None) -> jax.Array:
  """`x` with the rows that do not count at zero, whatever they held."""
  if mask is None:
    return x
  return jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)) != 0, x, 0)


def _pick(x: jax.Array, stride: int, offset) -> jax.Array:
  """Every `stride`-th row from `offset` on: strides keep shards in place."""
  size = x.shape[0] // stride
  grouped = x[: size * stride].reshape(size, stride, *x.shape[1:])
  return jax.lax.dynamic_index_in_dim(grouped, offset, 1, keepdims=False)


def _sum_over_devices(tree, options: LocalOptions):
  if options.axis_name is None:
    return tree
  return jax.lax.psum(tree, options.axis_name)


# (delta, t) -> the part of the local gradient that changes with delta.
Correction = Callable[[types.PyTree, jax.Array], types.PyTree]


def correction(
  record: taps.LayerRecord,
  params: types.PyTree,
  transfer: matching.MatchingLoss,
  options: LocalOptions,
) -> Correction:
  """X^T [f(A + X delta) - f(A)], the change of the local gradient.

  The local gradient at `delta` is that at W0 plus this. Row sub-sampling
  touches this term alone: it is an unbiased estimate that vanishes with delta
  (a control variate), and the gradient at W0 stays exact.

  Args:
    record: the tape's record of the layer.
    params: the layer's parameters W0.
    transfer: f; unused for variant 'squared', where f is the identity.
    options: `max_rows`, `rotate_rows`, `gather_rows`, `gram`.

  Returns:
    `(delta, t) -> tree like params`, in float32.
  """
  rows = num_rows(record)
  record = _rows_first(record)
  stride = max(1, rows // options.max_rows) if options.max_rows else 1
  if options.variant == "squared" and _use_gram(record, options):
    return _gram_correction(record, params, stride)
  f = transfer.transfer
  if options.variant == "squared":
    f = lambda a: a

  def gradient(inputs, preact, mask, start, delta):
    linear = lambda d: jax.jvp(
      lambda p: record.affine(p, *inputs), (params,), (d,)
    )[1]
    moved = preact + linear(delta).astype(jnp.float32)
    change = (f(moved) - start) * (rows / preact.shape[0])
    change = _masked(change, mask)
    dtype = record.preact.dtype
    (out,) = jax.linear_transpose(linear, delta)(change.astype(dtype))
    return jax.tree.map(lambda x: x.astype(jnp.float32), out)

  if stride == 1:
    preact = record.preact.astype(jnp.float32)
    start = f(preact)
    mask = record.row_mask
    return lambda delta, t: gradient(record.inputs, preact, mask, start, delta)

  def sampled(delta, t):
    offset = t % stride if options.rotate_rows else 0
    inputs = [_pick(x, stride, offset) for x in record.inputs]
    chosen = _pick(record.preact, stride, offset).astype(jnp.float32)
    mask = record.row_mask
    mask = None if mask is None else _pick(mask, stride, offset)
    if options.gather_rows:
      inputs = [mesh.constrain(x, None) for x in inputs]
      chosen = mesh.constrain(chosen, None)
    return gradient(inputs, chosen, mask, f(chosen), delta)

  return sampled


def _use_gram(record, options: LocalOptions) -> bool:
  """Whether X^T X is the cheaper way (and possible): a dense layer, I < 2N."""
  possible = record.kind == "dense"
  if options.gram is None:
    return possible and record.inputs[0].shape[-1] < record.preact.shape[0]
  return options.gram and possible


def _record_gram(record, stride: int, bias: bool) -> jax.Array:
  """X~^T X~ in float32, `[I, I]`, or `[I+1, I+1]` with a column of ones."""
  x = record.inputs[0].astype(jnp.float32)
  if bias:
    x = jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)
  picked = _masked(x, record.row_mask)[::stride]
  return picked.T @ picked * (x.shape[0] / picked.shape[0])


def _fold(tree) -> jax.Array:
  """Kernel with the bias as its last row, `[I(+1), O]`."""
  if "bias" not in tree:
    return tree["kernel"].astype(jnp.float32)
  rows = (tree["kernel"], tree["bias"][None])
  return jnp.concatenate(rows).astype(jnp.float32)


def _unfold(matrix: jax.Array, like) -> dict[str, jax.Array]:
  if "bias" not in like:
    return {"kernel": matrix}
  return {"kernel": matrix[:-1], "bias": matrix[-1]}


def _gram_correction(record, params, stride) -> Correction:
  """C delta with C = X^T X, computed once: 2 I^2 O an iteration."""
  c = _record_gram(record, stride, "bias" in params)
  return lambda delta, t: _unfold(c @ _fold(delta), delta)


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
  records: Sequence[taps.LayerRecord], grads, eta, options: LocalOptions
):
  """`exact_squared_update` from gradients: -gamma (C + I/eta)^-1 dW.

  Args:
    records: all calls of one dense layer; their Gram matrices add up.
    grads: gradient of the layer's parameters.
    eta: local learning rate.
    options: `gamma`, `max_rows`, `axis_name` count.

  Returns:
    The displacement, a tree like `grads` in float32.
  """
  c = 0.0
  for record in map(_rows_first, records):
    rows = record.preact.shape[0]
    stride = max(1, rows // (options.max_rows or rows))
    c += _record_gram(record, stride, "bias" in grads)
  c = _sum_over_devices(c, options)
  rhs = -options.gamma * _fold(grads)
  solution = _solve(c + jnp.eye(c.shape[0]) / eta, rhs)
  return _unfold(solution, grads)


def start_gradient(record, params, transfer, options: LocalOptions):
  """X^T R at W0, for targets whose residual there is not gamma G."""
  record = _rows_first(record)
  residual = residual_at_start(record, transfer, options)
  residual = _masked(residual, record.row_mask)
  _, vjp = jax.vjp(lambda p: record.affine(p, *record.inputs), params)
  (out,) = vjp(residual.astype(record.preact.dtype))
  return jax.tree.map(lambda x: x.astype(jnp.float32), out)


def local_solve(
  records: Sequence[taps.LayerRecord],
  params: types.PyTree,
  grads: types.PyTree,
  *,
  transfer: str | matching.MatchingLoss,
  inner: Callable[[jax.Array], optax.GradientTransformation],
  inner_state: optax.OptState,
  learning_rates: jax.Array,
  options: LocalOptions,
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
  """One layer's local problem: its gradient at W0 and how that changes."""

  def __init__(self, records, params, grads, transfer, options):
    """Sums over the calls of the layer; see `local_solve` for the arguments."""
    checks.one_of("variant", options.variant, VARIANTS)
    self._options = options
    self._parts = [correction(r, params, transfer, options) for r in records]
    if plain(options):
      self.start = jax.tree.map(
        lambda g: options.gamma * g.astype(jnp.float32), grads
      )
    else:
      parts = [start_gradient(r, params, transfer, options) for r in records]
      self.start = _sum_over_devices(_add(parts), options)

  def change(self, delta, t):
    """The gradient at `delta` less that at W0."""
    parts = [part(delta, t) for part in self._parts]
    return _sum_over_devices(_add(parts), self._options)


def _add(trees_):
  return jax.tree.map(lambda *xs: sum(xs), *trees_)


def iterate(
  problems: dict[str, Problem],
  params: dict[str, types.PyTree],
  *,
  inner,
  inner_state,
  learning_rates: jax.Array,
  reg: float = 0.0,
  scale: dict[str, float] | None = None,
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

  start = {path: problem.start for path, problem in problems.items()}
  zero = jax.tree.map(jnp.zeros_like, w0)
  first = take(start, zero, inner_state, learning_rates[0])

  def body(t, carry):
    delta, state = carry
    change = {p: problems[p].change(delta[p], t) for p in problems}
    gradient = jax.tree.map(jnp.add, start, change)
    return take(gradient, delta, state, learning_rates[t])

  num = learning_rates.shape[0]
  delta, state = jax.lax.fori_loop(1, num, body, first)
  return wrap(delta), state
