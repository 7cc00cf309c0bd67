"""The checked settings of `locoprop`, and the checks of a call."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import errors

from locojax.core import checks, trees, types
from locojax.methods.locoprop import (
  chain,
  matching,
  nnx_layers,
  taps,
  targets,
)


def find_layers(params: types.PyTree) -> tuple[str, ...]:
  """Paths of the subtrees that look like an affine layer.

  These hold nothing but a `kernel` or an `embedding`, as all stock flax layers
  of `taps.LAYERS` make them, or a `weight` of two axes or more, as Equinox
  names it; and maybe a `bias`.

  >>> import jax.numpy as jnp
  >>> layer = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
  >>> find_layers({"a": layer, "norm": {"scale": jnp.ones(3)}})
  ('a',)
  """
  leaves: dict[str, dict[str, Any]] = {}
  for path, leaf in trees.flatten(params).items():
    head, tail = nnx_layers.split_name(path)
    leaves.setdefault(head, {})[tail] = leaf
  return tuple(head for head, named in leaves.items() if _is_layer(named))


def _is_layer(named: Mapping[str, Any]) -> bool:
  """Whether leaves by name are those of an affine layer."""
  names = set(named) - {"bias"}
  if set(named) == {"embedding"} or names == {"kernel"}:
    return True
  return names == {"weight"} and len(jnp.shape(named["weight"])) > 1


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
class Settings:
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
  options: targets.LocalOptions
  order: str
  correction: Any
  stack_equal_shapes: bool

  @property
  def in_turn(self) -> bool:
    """Whether layers wait for one another; with correction 0 they need not."""
    still = _is_number(self.correction) and self.correction == 0
    return self.order == "gauss_seidel" and not still

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

  def layer_options(self, path: str, count) -> targets.LocalOptions:
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
  what: str, loss: matching.MatchingLoss, settings: Settings
) -> None:
  """LocoProp-M wants monotone transfer functions, unless told otherwise."""
  needed = settings.options.variant == "matching"
  if needed and not loss.convex and not settings.allow_nonconvex:
    raise ValueError(
      f"{what} is not allowed: it is not monotone, so its matching loss is not "
      "convex. Pass allow_nonconvex=True to use it all the same, or "
      "variant='squared'."
    )


def _check_transfers(settings: Settings) -> None:
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


def check(settings: Settings) -> Settings:
  options = settings.options
  checks.one_of("variant", options.variant, targets.VARIANTS)
  checks.one_of("target", options.target, targets.TARGETS)
  if options.variant == "squared" and options.target == "post_gd":
    raise ValueError("target='post_gd' is not allowed with variant='squared'.")
  checks.one_of("solver", settings.solver, ("iterative", "exact"))
  if settings.solver == "exact" and options.variant != "squared":
    raise ValueError(
      f"solver='exact' is not allowed with variant={options.variant!r}: only "
      "'squared' has a closed form."
    )
  if settings.solver == "exact" and not targets.plain(options):
    raise ValueError("solver='exact' needs target='gd' and no clip_targets.")
  checks.one_of("local_reduction", settings.local_reduction, ("sum", "mean"))
  checks.positive_int("num_local_iters", settings.num_local_iters)
  _check_rate("learning_rate", settings.learning_rate, checks.nonnegative)
  _check_rate("gamma", settings.gamma)
  _check_rate("reg", settings.reg, checks.nonnegative)
  checks.one_of("order", settings.order, ("jacobi", "gauss_seidel"))
  _check_rate("correction", settings.correction, checks.nonnegative)
  checks.one_of(
    "stack_equal_shapes", settings.stack_equal_shapes, (False, True)
  )
  if settings.stack_equal_shapes and settings.order != "jacobi":
    raise ValueError(
      "stack_equal_shapes=True is not allowed with order='gauss_seidel': its "
      "layers are solved one after another."
    )
  if options.max_rows is not None:
    checks.positive_int("max_rows", options.max_rows)
  if options.clip_targets is not None:
    checks.positive("clip_targets", options.clip_targets)
  squared_md = options.variant == "squared" and options.target == "md"
  if squared_md and settings.transfers is None:
    raise ValueError("transfers=None is not allowed with target='md'.")
  _check_transfers(settings)
  return settings


NO_ACCUMULATION = (
  "optax.MultiSteps does not fit locoprop: it adds up gradients, not tapes. "
  "Use a larger batch, with max_rows if the local steps are what is too large."
)


def _refuse_accumulation() -> None:
  """Refuses to be called by `optax.MultiSteps`, which is handed the tape too.

  Nothing in the arguments tells: the gradient is a mean over several batches,
  the tape is of the last one. So the callers are looked at, when tracing.
  """
  frame = inspect.currentframe()
  while frame is not None:
    if isinstance(frame.f_locals.get("self"), optax.MultiSteps):
      raise ValueError("optax.MultiSteps is not allowed: " + NO_ACCUMULATION)
    frame = frame.f_back


def check_call(settings, fallback, params, tape) -> None:
  """The tape, the parameters and the settings fit together."""
  if params is None:
    raise ValueError("params=None is not allowed: locoprop needs them.")
  if not isinstance(tape, taps.Tape):
    raise ValueError(
      f"tape={tape!r} is not allowed: it must be the Tape that "
      "locoprop.capture(loss_fn) returns; pass it as update(..., tape=tape), "
      "or use locoprop.make_step. A wrapper that drops extra arguments drops "
      "the tape too. " + NO_ACCUMULATION
    )
  _refuse_accumulation()
  layers, covered = tape.by_layer(), settings.covered(params)
  missing = [path for path in covered if path not in layers]
  if missing or not covered:
    raise ValueError(
      f"layers to cover {list(covered)} and layers on the tape {list(layers)} "
      f"do not fit: {missing or 'nothing'} to cover is not on the tape. "
      "Name the layers with `layers`, or their patterns with `transfers`."
    )
  if settings.order == "gauss_seidel":
    told = settings.transfers is not None
    chain.check_chain(tape, covered, settings.transfer, told=told)
  for path in covered:
    _check_fit(path, tape)
    _check_record(layers[path], taps.subtree(params, path), settings)
  rest = [p for p in trees.flatten(params) if not in_layers(p, covered)]
  if rest and fallback is None:
    raise ValueError(
      "fallback=None is not allowed: these parameters are not covered by "
      f"locoprop and need a transformation of their own: {rest}."
    )


def _check_fit(path: str, tape: taps.Tape) -> None:
  """The calls on the tape are all that is made of the layer's parameters."""
  why = tape.why_unfit(path)
  if why is not None:
    raise ValueError(
      f"layer {path!r} is not allowed: {why}, which its local problem would "
      "not know. Leave it to `fallback`: name the other layers with `layers`, "
      "or their patterns with `transfers`."
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
