"""LocoProp as an optax transformation, and as a step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from locojax.core import checks, metrics, trees, types
from locojax.methods.locoprop import (
  arguments,
  chain,
  exact,
  matching,
  rows,
  stacking,
  taps,
  targets,
  update,
)

Schedule = Callable[[Any], Any]

notebook_rmsprop = functools.partial(
  optax.rmsprop, decay=0.9, eps=1e-5, initial_scale=1.0, momentum=0.999
)

INNER: dict[str, Callable[..., optax.GradientTransformation]] = {
  "sgd": optax.sgd,
  "momentum": functools.partial(optax.sgd, momentum=0.9),
  "nesterov": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
  "adagrad": optax.adagrad,
  "rmsprop": notebook_rmsprop,
  "adam": optax.adam,
}


class LocoPropState(NamedTuple):
  """State of `locoprop`.

  Attributes:
    count: number of outer updates, `[]` int32.
    inner: state of the inner optimiser over the covered parameters.
    fallback: state of the fallback over all other parameters.
  """

  count: jax.Array
  inner: optax.OptState
  fallback: optax.OptState


def linear_floor(floor: float = 0.25) -> Callable[[jax.Array, int], jax.Array]:
  """Local schedule max(1 - t/T, floor), t = 0 ... T-1.

  >>> [float(linear_floor(0.25)(t, 10)) for t in (0, 5, 9)]
  [1.0, 0.5, 0.25]
  """
  checks.in_range("floor", floor, 0.0, 1.0)
  return lambda t, num: jnp.maximum(1.0 - t / num, floor)


def constant_local() -> Callable[[jax.Array, int], jax.Array]:
  """Local schedule 1.

  >>> float(constant_local()(3, 10))
  1.0
  """
  return lambda t, num: jnp.ones_like(t, jnp.result_type(float))


def linear_warmup_decay(
  peak: float, *, warmup_steps: int, num_steps: int
) -> Schedule:
  """Linear from 0 to `peak`, then linear to 0 at `num_steps`.

  Args:
    peak: the largest learning rate.
    warmup_steps: updates before the peak; the first of them has rate 0.
    num_steps: updates in all.

  >>> rate = linear_warmup_decay(1.0, warmup_steps=2, num_steps=10)
  >>> [round(float(rate(t)), 3) for t in (0, 1, 2, 6, 10)]
  [0.0, 0.5, 1.0, 0.5, 0.0]
  """
  checks.positive("peak", peak)
  checks.positive_int("num_steps", num_steps)
  checks.in_range("warmup_steps", warmup_steps, 0, num_steps - 1)
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, peak, warmup_steps),
      optax.linear_schedule(peak, 0.0, num_steps - warmup_steps),
    ],
    [warmup_steps],
  )


def locoprop(
  learning_rate: float | Schedule,
  inner: str | Callable[..., optax.GradientTransformation] = notebook_rmsprop,
  *,
  transfers: Mapping[str, str | matching.MatchingLoss] | None = None,
  gamma: float | Schedule | Mapping[str, float] = 10.0,
  num_local_iters: int = 10,
  variant: str = "matching",
  target: str | None = None,
  local_schedule: Callable[[jax.Array, int], jax.Array] | None = None,
  reg: float = 0.0,
  local_reduction: str = "sum",
  solver: str = "iterative",
  clip_targets: float | None = None,
  persist_inner_state: bool = True,
  fallback: optax.GradientTransformation | None = None,
  layers: Sequence[str] | None = None,
  max_rows: int | None = None,
  rotate_rows: bool = True,
  gram: bool | None = None,
  comm: str = "all_reduce",
  axis_name: str | None = None,
  order: str = "jacobi",
  correction: float = 0.1,
  stack_equal_shapes: bool = False,
  allow_nonconvex: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """LocoProp: layer-wise local losses optimised by a few first-order steps.

  Each layer takes T steps on its own convex problem, its input and its target
  fixed (Amid, Anil, Warmuth 2022, arXiv 2106.06199, algorithm 1):

    matching (M)  sum_n D_F(X W, f^-1(Y*)),  Y* = f(A) - gamma dL/dA
    squared  (S)  1/2 ||X W - A*||^2,        A* = A - gamma dL/dA

  `update(grads, state, params, tape=...)` returns W_T - W0, so that
  `optax.apply_updates`, `optax.chain` and checkpoints work as for any other
  transformation. The local gradient is gamma `grads` at W0 plus its change
  along the way, so a transformation before this one (clipping) acts on the
  first term. `optax.MultiSteps` does not fit, and is refused: it adds up
  gradients, not tapes.

  A layer's local problem is computed in float64 where its parameters are, else
  in float32, and so is the state of the inner optimiser; updates come in the
  dtype of the parameters. Rows that a mask of the tape takes out count for
  nothing, whatever they hold.

  Args:
    learning_rate: local learning rate eta, or a schedule of the outer count.
    inner: inner optimiser: a name ('sgd', 'momentum', 'nesterov', 'adagrad',
      'rmsprop', 'adam') or a function from a learning rate (may be traced) to
      a transformation. The default is the one of the official code.
    transfers: ordered {regex of the layer path: transfer function}, first hit
      wins. Layers that no pattern hits take the fallback. None: what the
      layers tell themselves (`LocoDense`, `tap`), else linear.
    gamma: activation learning rate; a number, a schedule, or {regex: number}.
      With a mean loss of sigmoid or softmax cross-entropy and gamma = batch at
      the last layer, its target is the label.
    num_local_iters: T. The first iteration is free: the backward pass has its
      gradient. T=1 is the inner optimiser on gamma times the gradient.
    variant: 'matching' or 'squared'.
    target: 'md', 'gd' or 'post_gd' (see `targets.residual_at_start`). None:
      'md' for matching, 'gd' for squared.
    local_schedule: `(t, T) -> factor` on eta. None: `linear_floor(0.25)`.
    reg: proximal weight lambda of lambda/2 ||W - W0||^2.
    local_reduction: 'sum' over rows, or 'mean': local gradients over rows.
    solver: 'iterative', or 'exact' for 'squared': the proximal minimiser with
      eta as the inverse of its weight; T and `inner` then play no role.
    clip_targets: margin that keeps targets inside the range of f.
    persist_inner_state: keep the inner state from batch to batch.
    fallback: transformation of all parameters that are not covered.
    layers: exact paths of the layers to cover. None: found by their parameters
      (`find_layers`), those hit by `transfers`.
    max_rows: rows that the local iterations after the first see.
    rotate_rows: other rows each iteration (True), or always the same.
    gram: 'squared': iterate on X^T X. None: where it is cheaper.
    comm: rows sharded over devices: 'all_reduce' the change of the gradient in
      each of the T-1 iterations after the first (exact; all layers in one);
      'gather' the rows that these will see once, before them, and compute on
      every device the same; 'average' local iterates at the end (one
      all-reduce; an approximation; needs `axis_name`). The gradient itself is
      reduced in the backward pass, whatever `comm` is.
    axis_name: mapped axis when called inside `shard_map`. Under plain `jit`
      the compiler inserts the same collectives from the shardings.
    order: 'jacobi': all layers at once, each with its input at W0.
      'gauss_seidel': one after another in forward order; the stored input of
      the next layer, but not its target, follows the new output of the one
      before (`chain.gauss_seidel`). For chains, see `verify_chain`; the inner
      optimiser then sees one layer at a time.
    correction: with 'gauss_seidel' the largest move of an input, by row:
      correction sqrt(its size) in norm. 0 is 'jacobi'.
    stack_equal_shapes: compute layers of equal shape and transfer function as
      one batched product; the same numbers up to rounding. Fewer, larger
      kernels, for a second copy of their inputs and pre-activations.
    allow_nonconvex: permit transfer functions that are not monotone.

  Returns:
    A transformation with extra argument `tape` (from `taps.capture`).

  Raises:
    ValueError: an argument out of range; no tape; a layer without transfer
      function or not on the tape; parameters that nothing covers.

  >>> from locojax.methods.locoprop import capture, tap
  >>> affine = lambda layer, x: x @ layer["kernel"]
  >>> params = {"h": {"kernel": jnp.ones((2, 3))}}
  >>> def loss_fn(params, model_state, x, key):
  ...   a = tap("h", affine, params["h"], x)
  ...   return jnp.tanh(a).mean(), ({}, model_state)
  ...
  >>> (loss, _), grads, tape = capture(loss_fn)(
  ...   params, {}, jnp.ones((4, 2)), None
  ... )
  >>> tx = locoprop(1e-3, transfers={"h": "tanh"})
  >>> updates, _ = tx.update(grads, tx.init(params), params, tape=tape)
  >>> updates["h"]["kernel"].shape
  (2, 3)
  """
  checks.one_of("comm", comm, ("all_reduce", "gather", "average"))
  if comm == "average" and axis_name is None:
    raise ValueError("comm='average' needs axis_name.")
  if comm == "gather" and max_rows is None:
    raise ValueError("comm='gather' needs max_rows.")
  if isinstance(inner, str):
    inner = checks.lookup("inner", inner, INNER)
  checks.one_of("variant", variant, targets.VARIANTS)
  options = targets.LocalOptions(
    variant=variant,
    target=target or ("md" if variant == "matching" else "gd"),
    clip_targets=clip_targets,
    max_rows=max_rows,
    rotate_rows=rotate_rows,
    gather_rows=comm == "gather",
    num_iters=num_local_iters,
    gram=gram,
    axis_name=axis_name if comm != "average" else None,
  )
  settings = arguments.Settings(
    learning_rate=learning_rate,
    inner=inner,
    gamma=gamma,
    num_local_iters=num_local_iters,
    local_schedule=local_schedule or linear_floor(),
    reg=reg,
    local_reduction=local_reduction,
    solver=solver,
    persist_inner_state=persist_inner_state,
    average=comm == "average",
    transfers=transfers,
    layers=None if layers is None else tuple(layers),
    allow_nonconvex=allow_nonconvex,
    options=options,
    order=order,
    correction=correction,
    stack_equal_shapes=stack_equal_shapes,
  )
  return _transformation(arguments.check(settings), fallback, axis_name)


def _mask(layers: Sequence[str], params, *, inverted: bool = False):
  """A tree of bools: does the leaf belong to one of the layers?"""
  return trees.map_with_path(
    lambda path, _: arguments.in_layers(path, layers) != inverted, params
  )


def _cast(settings, params):
  """The parameters as the inner optimiser sees them, see `rows.cast`."""
  covered = {
    path: rows.cast(taps.subtree(params, path))
    for path in settings.covered(params)
  }
  leaves = trees.flatten_nested(covered)
  return trees.map_with_path(lambda path, p: leaves.get(path, p), params)


def _inner_of(settings, layers=None):
  """`rate -> inner optimiser` of some layers, or of all that are covered."""

  def mask(params):
    return _mask(settings.covered(params) if layers is None else layers, params)

  return lambda rate: optax.masked(settings.inner(rate), mask)


def _transformation(settings, fallback, axis_name):
  """Closure pair of the checked settings."""
  inner_tx = _inner_of(settings)
  fallback_tx = optax.masked(
    optax.with_extra_args_support(fallback or optax.identity()),
    lambda params: _mask(settings.covered(params), params, inverted=True),
  )

  def init_fn(params):
    inner_state = optax.EmptyState()
    if settings.solver == "iterative":
      inner_state = inner_tx(1.0).init(_cast(settings, params))
    return LocoPropState(
      jnp.zeros([], jnp.int32), inner_state, fallback_tx.init(params)
    )

  def update_fn(updates, state, params=None, *, tape=None, **extra_args):
    arguments.check_call(settings, fallback, params, tape)
    delta, inner_state = _local_updates(settings, tape, updates, state, params)
    if settings.average:
      delta = jax.lax.pmean(delta, axis_name)
    rest, fallback_state = fallback_tx.update(
      updates, state.fallback, params, **extra_args
    )
    updates = trees.map_with_path(
      lambda path, p, r: delta.get(path, r).astype(p.dtype), params, rest
    )
    count = optax.safe_increment(state.count)
    return updates, LocoPropState(count, inner_state, fallback_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _local_updates(settings, tape, grads, state, params):
  """Displacements by leaf path, and the inner state."""
  layers, covered = tape.by_layer(), settings.covered(params)
  options = {p: settings.layer_options(p, state.count) for p in covered}
  solve = functools.partial(
    _solve,
    settings,
    grads=grads,
    params=params,
    rates=settings.rates(state.count),
    options=options,
  )
  inner_tx, inner_state = _inner_of(settings), state.inner
  iterative = settings.solver == "iterative"
  if iterative and not settings.persist_inner_state:
    inner_state = inner_tx(1.0).init(_cast(settings, params))
  if not settings.in_turn:
    records = {path: layers[path] for path in covered}
    delta, inner_state = solve(records, inner_tx, inner_state)
    return trees.flatten_nested(delta), inner_state
  parts = []

  def one(path, record, shift):
    inner_tx = _inner_of(settings, (path,))
    part = _part(inner_tx, inner_state, params) if iterative else inner_state
    delta, part = solve({path: [record]}, inner_tx, part, shift=shift)
    parts.append(part)
    return delta[path]

  delta = chain.gauss_seidel(
    [(path, layers[path][0]) for path in layers if path in covered],
    {path: taps.subtree(params, path) for path in covered},
    correction=settings.correction,
    transfers={path: settings.transfer(layers[path]) for path in covered},
    options=options,
    solve=one,
  )
  return trees.flatten_nested(delta), _joined(inner_state, parts)


def _part(inner_tx, state, params):
  """What the inner state holds for the layers of `inner_tx`."""
  leaves = trees.flatten(state)
  shapes = jax.eval_shape(inner_tx(1.0).init, params)
  return trees.map_with_path(lambda path, _: leaves[path], shapes)


def _joined(state, parts):
  """The inner state with the leaves of its parts in place of its own."""
  leaves = {k: x for part in parts for k, x in trees.flatten(part).items()}
  return trees.map_with_path(lambda path, x: leaves.get(path, x), state)


def _solve(
  settings,
  layers,
  inner_tx,
  inner_state,
  *,
  grads,
  params,
  rates,
  options,
  shift=None,
):
  """Displacements by path of some layers, all in one loop; inner state."""
  problems, scale, delta = {}, {}, {}
  for path, records in layers.items():
    layer_grads = taps.subtree(grads, path)
    if settings.solver == "exact":
      delta[path] = exact.exact_delta(
        records, layer_grads, rates[0], options[path], shift
      )
      continue
    problems[path] = update.Problem(
      records,
      taps.subtree(params, path),
      layer_grads,
      settings.transfer(records),
      options[path],
      shift,
    )
    if settings.local_reduction == "mean":
      num = sum(rows.kept(r) for r in records)
      num = update.sum_over_devices(num, options[path])
      scale[path] = 1 / jnp.maximum(num, 1)
  if settings.solver == "exact":
    return delta, inner_state
  return _iterate(
    settings, inner_tx, inner_state, problems, params, scale, rates
  )


def _iterate(settings, inner_tx, inner_state, problems, params, scale, rates):
  """One loop, the inner optimiser working on the whole tree."""
  zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)

  def wrap(by_layer):
    leaves = trees.flatten_nested(by_layer)
    return trees.map_with_path(lambda path, z: leaves.get(path, z), zeros)

  def unwrap(tree):
    return {path: taps.subtree(tree, path) for path in problems}

  stacked = settings.stack_equal_shapes
  delta, inner_state = update.iterate(
    problems,
    unwrap(params),
    inner=inner_tx,
    inner_state=inner_state,
    learning_rates=rates,
    reg=settings.reg,
    scale=scale,
    combine=stacking.together if stacked else update.each_alone,
    wrap=wrap,
    unwrap=unwrap,
  )
  return unwrap(delta), inner_state


def _finite(x, mask):
  """`x` with 0 for what is not finite in rows that do not count."""
  rows_ = jnp.shape(x)[:1] == jnp.shape(mask)
  if not rows_ or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
    return x
  return jnp.where(jnp.isfinite(x), x, rows.masked(x, mask))


def make_step(
  loss_fn: types.LossFn,
  tx: optax.GradientTransformation,
  *,
  layers: tuple[type, ...] | None = None,
  filter: Callable[[str], bool] | None = None,
  row_mask: Callable[[types.Batch], jax.Array] | None = None,
) -> types.StepFn:
  """A step that hands the tape to any optax chain.

  Args:
    loss_fn: any loss (`core.types.LossFn`).
    tx: `locoprop(...)`, or a chain that holds one; a transformation that takes
      no tape is run as ever.
    layers, filter: what to capture, see `taps.capture`.
    row_mask: `batch -> [batch]`, zero for examples that the loss masks; they
      then take no part in the local problems either. What is not finite in
      them is zero for the loss too, for 0 times NaN would be NaN in a gradient.

  Returns:
    `(TrainState, batch) -> (TrainState, metrics)`.

  >>> from locojax.methods.locoprop import tap
  >>> from locojax.train import steps
  >>> affine = lambda layer, x: x @ layer["kernel"]
  >>> params = {"h": {"kernel": jnp.ones((2, 3))}}
  >>> def loss_fn(params, model_state, x, key):
  ...   a = tap("h", affine, params["h"], x)
  ...   return jnp.tanh(a).mean(), ({}, model_state)
  ...
  >>> tx = locoprop(1e-3, transfers={"h": "tanh"})
  >>> step = make_step(loss_fn, tx)
  >>> state = steps.init_state(params, tx, key=jax.random.key(0))
  >>> state, metrics = step(state, jnp.ones((4, 2)))
  >>> int(state.step), sorted(metrics)
  (1, ['loss'])
  """
  captured = taps.capture(loss_fn, layers=layers, filter=filter)
  tx = optax.with_extra_args_support(tx)

  def step(state, batch):
    mask = None if row_mask is None else row_mask(batch)
    if mask is not None:
      batch = jax.tree.map(lambda x: _finite(x, mask), batch)
    (loss, (measured, model_state)), grads, tape = captured(
      state.params, state.model_state, batch, state.step_key()
    )
    if mask is not None:
      tape = tape.with_row_mask(mask)
    updates, opt_state = tx.update(
      grads, state.opt_state, state.params, tape=tape, value=loss
    )
    measured = {"loss": metrics.mean(loss), **measured}
    return state.advance(updates, opt_state, model_state), measured

  return step
