"""LocoProp as an optax transformation, and as a step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import errors

from locojax.core import checks, metrics, trees, types
from locojax.methods.locoprop import matching, taps, update

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
  """Local schedule max(1 - t/T, floor), t = 0 ... T-1."""
  checks.in_range("floor", floor, 0.0, 1.0)
  return lambda t, num: jnp.maximum(1.0 - t / num, floor)


def constant_local() -> Callable[[jax.Array, int], jax.Array]:
  """Local schedule 1."""
  return lambda t, num: jnp.ones_like(t, jnp.float32)


def linear_warmup_decay(
  peak: float, *, warmup_steps: int, num_steps: int
) -> Schedule:
  """Linear from 0 to `peak`, then linear to 0 at `num_steps`.

  Args:
    peak: the largest learning rate.
    warmup_steps: updates before the peak; the first of them has rate 0.
    num_steps: updates in all.
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


def _layer_of(path: str) -> tuple[str, str]:
  head, _, tail = path.rpartition("/")
  return head, tail


def find_layers(params: types.PyTree) -> tuple[str, ...]:
  """Paths of the subtrees that look like an affine layer.

  These hold a `kernel` or an `embedding`, maybe a `bias`, and nothing else:
  what all stock flax layers of `taps.LAYERS` make.
  """
  leaves: dict[str, set[str]] = {}
  for path in trees.flatten(params):
    head, tail = _layer_of(path)
    leaves.setdefault(head, set()).add(tail)
  shapes = ({"kernel"}, {"kernel", "bias"}, {"embedding"})
  return tuple(head for head, names in leaves.items() if names in shapes)


def in_layers(path: str, layers: Sequence[str]) -> bool:
  """Whether a leaf belongs to one of the layers."""
  return any(
    layer == "" or path == layer or path.startswith(layer + "/")
    for layer in layers
  )


def _first_match(path: str, rules: Mapping[str, Any], name: str) -> Any:
  for pattern, value in rules.items():
    if trees.matches(path, pattern):
      return value
  raise ValueError(
    f"layer {path!r} has no entry in {name}={dict(rules)!r}: add a pattern "
    "that matches it, or leave the layer out with `layers`."
  )


@dataclasses.dataclass(frozen=True)
class _Settings:
  """The checked arguments of `locoprop`."""

  learning_rate: Any
  inner: Callable[..., optax.GradientTransformation]
  gamma: Any
  num_local_iters: int
  local_schedule: Callable[[jax.Array, int], jax.Array]
  reg: Any
  local_reduction: str
  solver: str
  persist_inner_state: bool
  average: bool
  transfers: Mapping[str, Any] | None
  layers: tuple[str, ...] | None
  allow_nonconvex: bool
  options: update.LocalOptions

  def covered(self, params) -> tuple[str, ...]:
    """Paths of the layers this transformation updates itself."""
    if self.layers is not None:
      for path in self.layers:
        taps.subtree(params, path)
      return self.layers
    found = find_layers(params)
    if self.transfers is None or self.options.variant == "squared":
      return found
    return tuple(p for p in found if trees.matches(p, self.transfers))

  def transfer(self, records: list[taps.LayerRecord]) -> matching.MatchingLoss:
    """The transfer function of a layer, from the rules or the layer itself."""
    own, path = records[0].transfer, records[0].path
    if self.transfers is None:
      return matching.get(own or "linear")
    loss = matching.get(_first_match(path, self.transfers, "transfers"))
    if own is not None and own != loss.name:
      raise ValueError(
        f"transfers gives {loss.name!r} for the layer {path!r}, which itself "
        f"applies transfer={own!r}: they must be equal."
      )
    if loss.vector and records[0].preact.shape[-1] < 2:
      raise ValueError(
        f"transfers gives {loss.name!r} for the layer {path!r} of 1 output: a "
        "vector transfer function needs 2 or more."
      )
    return loss

  def rates(self, count) -> jax.Array:
    """The T learning rates of outer update `count`."""
    rate = self.learning_rate
    rate = rate(count) if callable(rate) else rate
    num = self.num_local_iters
    return rate * self.local_schedule(jnp.arange(num), num)

  def layer_options(self, path: str, count) -> update.LocalOptions:
    """The options with this layer's gamma."""
    gamma = self.gamma
    if isinstance(gamma, Mapping):
      gamma = _first_match(path, gamma, "gamma")
    gamma = gamma(count) if callable(gamma) else gamma
    return dataclasses.replace(self.options, gamma=gamma)


def _is_number(value) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_rate(name: str, value: Any, check=checks.positive) -> None:
  if isinstance(value, Mapping):
    for part in value.values():
      _check_rate(name, part, check)
  elif not callable(value) and not isinstance(value, jax.Array):
    check(name, value)


def _require_convex(
  what: str, loss: matching.MatchingLoss, settings: _Settings
) -> None:
  """LocoProp-M wants monotone transfer functions, unless told otherwise."""
  needed = settings.options.variant == "matching"
  if needed and not loss.convex and not settings.allow_nonconvex:
    raise ValueError(
      f"{what} is not allowed: it is not monotone, so its matching loss is not "
      "convex. Pass allow_nonconvex=True to use it all the same, or "
      "variant='squared'."
    )


def _check_transfers(settings: _Settings) -> None:
  """Transfer functions must be known and, for LocoProp-M, monotone."""
  for pattern, name in (settings.transfers or {}).items():
    loss = matching.get(name)
    _require_convex(f"transfers[{pattern!r}]={loss.name!r}", loss, settings)
    squared = settings.options.variant == "squared"
    squared_md = squared and settings.options.target == "md"
    if squared_md and loss.inverse is None:
      raise ValueError(
        f"transfers[{pattern!r}]={loss.name!r} is not allowed with "
        "variant='squared' and target='md': it has no inverse."
      )


def _check(settings: _Settings) -> _Settings:
  options = settings.options
  checks.one_of("variant", options.variant, update.VARIANTS)
  checks.one_of("target", options.target, update.TARGETS)
  if options.variant == "squared" and options.target == "post_gd":
    raise ValueError("target='post_gd' is not allowed with variant='squared'.")
  checks.one_of("solver", settings.solver, ("iterative", "exact"))
  if settings.solver == "exact" and options.variant != "squared":
    raise ValueError(
      f"solver='exact' is not allowed with variant={options.variant!r}: only "
      "'squared' has a closed form."
    )
  if settings.solver == "exact" and not update.plain(options):
    raise ValueError("solver='exact' needs target='gd' and no clip_targets.")
  checks.one_of("local_reduction", settings.local_reduction, ("sum", "mean"))
  checks.positive_int("num_local_iters", settings.num_local_iters)
  _check_rate("learning_rate", settings.learning_rate, checks.nonnegative)
  _check_rate("gamma", settings.gamma)
  _check_rate("reg", settings.reg, checks.nonnegative)
  if options.max_rows is not None:
    checks.positive_int("max_rows", options.max_rows)
  if options.clip_targets is not None:
    checks.positive("clip_targets", options.clip_targets)
  squared_md = options.variant == "squared" and options.target == "md"
  if squared_md and settings.transfers is None:
    raise ValueError("transfers=None is not allowed with target='md'.")
  _check_transfers(settings)
  return settings


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
  first term. `optax.MultiSteps` does not fit: it adds up gradients, not tapes.

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
    target: 'md', 'gd' or 'post_gd' (see `update.residual_at_start`). None:
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
    comm: rows sharded over devices: 'all_reduce' every iteration (exact);
      'gather' the sub-sampled rows once; 'average' local iterates at the end
      (an approximation; needs `axis_name`).
    axis_name: mapped axis when called inside `shard_map`. Under plain `jit`
      the compiler inserts the same collectives from the shardings.
    allow_nonconvex: permit transfer functions that are not monotone.

  Returns:
    A transformation with extra argument `tape` (from `taps.capture`).

  Raises:
    ValueError: an argument out of range; no tape; a layer without transfer
      function or not on the tape; parameters that nothing covers.
  """
  checks.one_of("comm", comm, ("all_reduce", "gather", "average"))
  if comm == "average" and axis_name is None:
    raise ValueError("comm='average' needs axis_name.")
  if comm == "gather" and max_rows is None:
    raise ValueError("comm='gather' needs max_rows.")
  if isinstance(inner, str):
    inner = checks.lookup("inner", inner, INNER)
  checks.one_of("variant", variant, update.VARIANTS)
  options = update.LocalOptions(
    variant=variant,
    target=target or ("md" if variant == "matching" else "gd"),
    clip_targets=clip_targets,
    max_rows=max_rows,
    rotate_rows=rotate_rows,
    gather_rows=comm == "gather",
    gram=gram,
    axis_name=axis_name if comm != "average" else None,
  )
  settings = _Settings(
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
  )
  return _transformation(_check(settings), fallback, axis_name)


def _mask_fn(settings: _Settings, inverted: bool):
  def mask(params):
    layers = settings.covered(params)
    return trees.map_with_path(
      lambda path, _: in_layers(path, layers) != inverted, params
    )

  return mask


def _transformation(settings, fallback, axis_name):
  """Closure pair of the checked settings."""
  inner_mask = _mask_fn(settings, inverted=False)

  def inner_tx(rate):
    return optax.masked(settings.inner(rate), inner_mask)

  fallback_tx = optax.masked(
    optax.with_extra_args_support(fallback or optax.identity()),
    _mask_fn(settings, inverted=True),
  )

  def init_fn(params):
    inner_state = optax.EmptyState()
    if settings.solver == "iterative":
      inner_state = inner_tx(1.0).init(params)
    return LocoPropState(
      jnp.zeros([], jnp.int32), inner_state, fallback_tx.init(params)
    )

  def update_fn(updates, state, params=None, *, tape=None, **extra_args):
    _check_call(settings, fallback, params, tape)
    layers = tape.by_layer()
    delta, inner_state = _local_updates(
      settings, inner_tx, layers, updates, state, params
    )
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


def _local_updates(settings, inner_tx, layers, grads, state, params):
  """Displacements by leaf path, and the inner state."""
  covered = settings.covered(params)
  problems, scale, delta = {}, {}, {}
  rates = settings.rates(state.count)
  for path in covered:
    records = layers[path]
    options = settings.layer_options(path, state.count)
    layer_grads = taps.subtree(grads, path)
    if settings.solver == "exact":
      delta[path] = update.exact_delta(records, layer_grads, rates[0], options)
      continue
    problems[path] = update.Problem(
      records,
      taps.subtree(params, path),
      layer_grads,
      settings.transfer(records),
      options,
    )
    rows = sum(update.num_rows(r) for r in records)
    scale[path] = 1 / rows if settings.local_reduction == "mean" else 1.0
  if settings.solver == "exact":
    return trees.flatten_nested(delta), state.inner
  return _iterate(settings, inner_tx, problems, params, scale, rates, state)


def _iterate(settings, inner_tx, problems, params, scale, rates, state):
  """All layers in one loop, the inner optimiser working on the whole tree."""
  inner_state = state.inner
  if not settings.persist_inner_state:
    inner_state = inner_tx(1.0).init(params)
  zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)

  def wrap(by_layer):
    leaves = trees.flatten_nested(by_layer)
    return trees.map_with_path(lambda path, z: leaves.get(path, z), zeros)

  def unwrap(tree):
    return {path: taps.subtree(tree, path) for path in problems}

  delta, inner_state = update.iterate(
    problems,
    unwrap(params),
    inner=inner_tx,
    inner_state=inner_state,
    learning_rates=rates,
    reg=settings.reg,
    scale=scale,
    wrap=wrap,
    unwrap=unwrap,
  )
  covered = tuple(problems)
  flat = trees.flatten(delta)
  kept = {p: d for p, d in flat.items() if in_layers(p, covered)}
  return kept, inner_state


def _check_call(settings, fallback, params, tape) -> None:
  """The tape, the parameters and the settings fit together."""
  if params is None:
    raise ValueError("params=None is not allowed: locoprop needs them.")
  if not isinstance(tape, taps.Tape):
    raise ValueError(
      f"tape={tape!r} is not allowed: it must be the Tape that "
      "locoprop.capture(loss_fn) returns; pass it as update(..., tape=tape), "
      "or use locoprop.make_step."
    )
  layers, covered = tape.by_layer(), settings.covered(params)
  missing = [path for path in covered if path not in layers]
  if missing or not covered:
    raise ValueError(
      f"layers to cover {list(covered)} and layers on the tape {list(layers)} "
      f"do not fit: {missing or 'nothing'} to cover is not on the tape. "
      "Name the layers with `layers`, or their patterns with `transfers`."
    )
  for path in covered:
    _check_record(layers[path], taps.subtree(params, path), settings)
  rest = [p for p in trees.flatten(params) if not in_layers(p, covered)]
  if rest and fallback is None:
    raise ValueError(
      "fallback=None is not allowed: these parameters are not covered by "
      f"locoprop and need a transformation of their own: {rest}."
    )


def _check_record(records, params, settings) -> None:
  """Shapes of a record fit the layer's parameters; transfer fits the layer."""
  loss = settings.transfer(records)
  what = f"transfer={loss.name!r} of layer {records[0].path!r}"
  _require_convex(what, loss, settings)
  for record in records:
    _check_shapes(record, params)
    if settings.solver == "exact" and record.kind != "dense":
      raise ValueError(
        f"solver='exact' is not allowed for layer {record.path!r} of kind "
        f"{record.kind!r}: it is for dense layers; name those in `layers`."
      )


def _check_shapes(record, params) -> None:
  """The parameters make pre-activations of the shape on the tape."""
  try:
    shape = jax.eval_shape(record.affine, params, *record.inputs).shape
  except (errors.FlaxError, TypeError) as error:
    shapes = {path: p.shape for path, p in trees.flatten(params).items()}
    inputs = [x.shape for x in record.inputs]
    raise ValueError(
      f"the parameters of layer {record.path!r} have shapes {shapes} and the "
      f"tape has inputs of shapes {inputs} for it: they do not fit."
    ) from error
  name = f"the pre-activation of layer {record.path!r} on the tape"
  checks.same_shape(name, record.preact.shape, "that of its parameters", shape)


def make_step(
  loss_fn: types.LossFn,
  tx: optax.GradientTransformation,
  *,
  layers: tuple[type, ...] = taps.LAYERS,
  filter: Callable[[str], bool] | None = None,
  row_mask: Callable[[types.Batch], jax.Array] | None = None,
) -> types.StepFn:
  """A step that hands the tape to any optax chain.

  Args:
    loss_fn: any loss of the house.
    tx: `locoprop(...)`, or a chain that holds one; a transformation that takes
      no tape is run as ever.
    layers, filter: what to capture, see `taps.capture`.
    row_mask: `batch -> [batch]`, zero for examples that the loss masks; they
      then take no part in the local problems either.

  Returns:
    `(TrainState, batch) -> (TrainState, metrics)`.
  """
  captured = taps.capture(loss_fn, layers=layers, filter=filter)
  tx = optax.with_extra_args_support(tx)

  def step(state, batch):
    (loss, (measured, model_state)), grads, tape = captured(
      state.params, state.model_state, batch, state.step_key()
    )
    if row_mask is not None:
      tape = tape.with_row_mask(row_mask(batch))
    updates, opt_state = tx.update(
      grads, state.opt_state, state.params, tape=tape, value=loss
    )
    measured = {"loss": metrics.mean(loss), **measured}
    return state.advance(updates, opt_state, model_state), measured

  return step
