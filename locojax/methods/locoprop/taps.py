"""The tape: inputs, pre-activations and their gradients of every layer.

`capture` turns a loss into a function that returns, besides loss and gradients,
a tape of the layers whose pre-activation is affine in their parameters. Stock
linen layers are seen through `nn.intercept_methods`, those of NNX by
`nnx_layers`; a zero perturbation added to their output makes the gradient at
the pre-activation available to the same backward pass. A model made of plain
functions, or of Equinox modules, names its layers with `tap`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import tracers

from locojax.core import checks, trees, types
from locojax.methods.locoprop import matching, nnx_layers

LAYERS = (
  nn.Dense,
  nn.DenseGeneral,
  nn.Einsum,
  nn.Conv,
  nn.ConvTranspose,
  nn.Embed,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerRecord:
  """One call of one layer, all at the weights of the forward pass.

  Attributes:
    inputs: arguments of the layer; `[..., din]` for a dense layer.
    preact: A, `[..., dout]`, the output before the transfer function.
    preact_grad: dL/dA, the shape of `preact`. With a loss that is a mean over
      the batch each row carries the 1/batch.
    path: path of the layer's parameters, 'encoder/Dense_0'.
    affine: `(layer_params, *inputs) -> preact`, affine in the parameters.
    kind: 'dense', 'conv', ..., or 'tap'.
    transfer: name of the transfer function if the layer itself tells it.
    row_mask: `[batch]`, zero for examples that do not count, or None.
  """

  inputs: tuple[jax.Array, ...]
  preact: jax.Array
  preact_grad: jax.Array
  path: str = dataclasses.field(metadata={"static": True})
  affine: Callable[..., jax.Array] = dataclasses.field(
    metadata={"static": True}
  )
  kind: str = dataclasses.field(metadata={"static": True})
  transfer: str | None = dataclasses.field(
    default=None, metadata={"static": True}
  )
  row_mask: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tape:
  """Records by name; a second call of a layer has the name 'path#1'.

  Attributes:
    records: record by name.
    order: names in the order of the forward pass; empty if not known.
    unfit: paths of layers whose parameters are used otherwise than in the
      calls on the tape, each with how; `locoprop` refuses to cover those.
  """

  records: dict[str, LayerRecord]
  order: tuple[str, ...] = dataclasses.field(
    default=(), metadata={"static": True}
  )
  unfit: tuple[tuple[str, str], ...] = dataclasses.field(
    default=(), metadata={"static": True}
  )

  def why_unfit(self, path: str) -> str | None:
    """Why the local problem of a layer is not what its calls say, if so."""
    for head, why in self.unfit:
      if path == head or path.startswith(f"{head}/"):
        return why
    return None

  def with_row_mask(self, mask: jax.Array) -> Tape:
    """The tape with masked examples taken out of the local problems.

    A masked example has no gradient, but its response still holds the layer
    where it is after the first local iteration; with the mask it is as if
    removed.

    Args:
      mask: `[batch]`, zero for examples that do not count.

    Raises:
      ValueError: a layer whose leading axis is not the batch.
    """
    records = {}
    for name, record in self.records.items():
      checks.same_shape(
        "mask",
        mask.shape,
        f"the batch axis of {name!r}",
        record.preact.shape[:1],
      )
      records[name] = dataclasses.replace(record, row_mask=mask)
    return dataclasses.replace(self, records=records)

  def by_layer(self) -> dict[str, list[LayerRecord]]:
    """The records of each layer, in the order of the calls."""
    layers: dict[str, list[LayerRecord]] = {}
    for name in self.order or self.records:
      record = self.records[name]
      layers.setdefault(record.path, []).append(record)
    return layers


@dataclasses.dataclass(frozen=True)
class _ModuleAffine:
  """A stock layer as a function of its own parameters; equal by its fields."""

  module: nn.Module

  def __call__(self, params, *inputs):
    with _quiet():
      return self.module.apply({"params": params}, *inputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Puts the tape away."""
  token = _recorder.set(None)
  try:
    yield
  finally:
    _recorder.reset(token)


def in_dtype(affine: Callable[..., jax.Array], dtype) -> Callable[..., Any]:
  """The same function, its products in `dtype`, given arrays of that dtype.

  A stock layer with a `dtype` of its own computes in this one instead; any
  other function is taken to compute in what it is given.
  """
  if isinstance(affine, nnx_layers.Affine):
    return affine.in_dtype(jnp.dtype(dtype))
  if getattr(getattr(affine, "module", None), "dtype", None) is None:
    return affine
  return _ModuleAffine(affine.module.clone(dtype=jnp.dtype(dtype)))


class LocoDense(nn.Module):
  """A dense layer that applies, and tells the tape, its transfer function.

  Parameters are those of `nn.Dense` (kernel `[din, features]`, bias
  `[features]`), so checkpoints of the two are interchangeable.

  Attributes:
    features: number of outputs.
    transfer: name of a registered transfer function.
    use_bias, dtype, param_dtype, kernel_init, bias_init: as in `nn.Dense`.

  >>> layer = LocoDense(3, transfer="tanh")
  >>> variables = layer.init(jax.random.key(0), jnp.ones((4, 2)))
  >>> jax.tree.map(jnp.shape, variables["params"])
  {'bias': (3,), 'kernel': (2, 3)}
  """

  features: int
  transfer: str = "linear"
  use_bias: bool = True
  dtype: Any = None
  param_dtype: Any = jnp.float32
  kernel_init: Any = nn.initializers.lecun_normal()
  bias_init: Any = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., din]` to `[..., features]`, transfer function applied."""
    loss = matching.get(self.transfer)
    dense = nn.Dense(
      self.features,
      use_bias=self.use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      parent=None,
    )
    params = {
      "kernel": self.param(
        "kernel",
        self.kernel_init,
        (x.shape[-1], self.features),
        self.param_dtype,
      )
    }
    if self.use_bias:
      params["bias"] = self.param(
        "bias", self.bias_init, (self.features,), self.param_dtype
      )
    preact = tap(
      "/".join(self.path),
      _stock_affine(dense),
      params,
      x,
      kind="dense",
      transfer=self.transfer,
    )
    return loss.transfer(preact)


_CHANGE_PARAMETERS = (nn.WeightNorm, nn.SpectralNorm)

_LEAK = (
  "layer {!r} is not allowed on the tape: it stands inside nn.scan, nn.remat, "
  "jax.vmap, jit or another transformation that its values cannot leave. "
  "Unroll it (a layer under vmap over examples is to be called on the whole "
  "batch, rows first), or leave it out with `filter` (its parameters then take "
  "the fallback)."
)


@dataclasses.dataclass
class _Recorder:
  """What one traced forward pass has shown."""

  perturbations: Mapping[str, jax.Array] | None
  keep: Callable[[str], bool]
  params: types.PyTree
  seen: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  unfit: dict[str, str] = dataclasses.field(default_factory=dict)
  trace: Any = dataclasses.field(default_factory=tracers.current_trace)

  def __post_init__(self):
    self.where = nnx_layers.paths(self.params) if nnx_layers.loaded() else {}

  def record(self, path, affine, kind, transfer, inputs, preact):
    """Notes the call; returns the pre-activation with its perturbation."""
    if not self.keep(path):
      return preact
    if tracers.current_trace() != self.trace:
      raise ValueError(_LEAK.format(path))
    name, calls = path, 0
    while name in self.seen:
      calls += 1
      name = f"{path}#{calls}"
    self.seen[name] = {
      "inputs": inputs,
      "preact": preact,
      "static": (path, affine, kind, transfer),
    }
    if self.perturbations is None:
      return preact
    return preact + self.perturbations[name]


_recorder: contextvars.ContextVar[_Recorder | None] = contextvars.ContextVar(
  "locoprop_recorder", default=None
)


def _stock_affine(module: nn.Module) -> _ModuleAffine:
  """The layer with its initialisers set aside, so that equal layers compare."""
  zeros = nn.initializers.zeros
  fields = {f.name for f in dataclasses.fields(module)}
  inits = {f for f in fields if f.endswith("_init")}
  return _ModuleAffine(
    module.clone(parent=None, name=None, **dict.fromkeys(inits, zeros))
  )


def tap(
  path: str,
  affine: Callable[..., jax.Array],
  params: types.PyTree,
  *inputs: jax.Array,
  kind: str = "tap",
  transfer: str | None = None,
) -> jax.Array:
  """Computes a layer's pre-activation and shows it to the tape, if any.

  For models made of plain functions. Outside `capture` it is just
  `affine(params, *inputs)`.

  Args:
    path: where in the parameter tree `params` stands, 'block/linear'.
    affine: hashable `(params, *inputs) -> preact`, affine in `params`. Define
      it once at module level, so that every trace sees the same function.
    params: the layer's parameters, any tree.
    *inputs: the layer's inputs, rows first.
    kind: a word for tables. 'dense' promises `inputs[0] @ kernel (+ bias)`.
    transfer: name of the transfer function that follows, if it is to be known
      from the model itself.

  Returns:
    The pre-activation.

  >>> affine = lambda layer, x: x @ layer["kernel"]
  >>> tap("h", affine, {"kernel": jnp.ones((2, 3))}, jnp.ones((4, 2))).shape
  (4, 3)
  """
  preact = affine(params, *inputs)
  recorder = _recorder.get()
  if recorder is None:
    return preact
  return recorder.record(path, affine, kind, transfer, inputs, preact)


def _kind(module: Any) -> str:
  return type(module).__name__.lower()


def _unfit(module: nn.Module, method: str, layers) -> dict[str, str]:
  """Why a layer is no longer what its calls on the tape say, by its path."""
  path = "/".join(module.path)
  if isinstance(module, _CHANGE_PARAMETERS) and method == "__call__":
    inner = "/".join(module.layer_instance.path)
    name = f"{type(module).__name__} {path!r}"
    return {inner: f"{name} changes its parameters before they are used"}
  own = method in ("__call__", "setup") or method.startswith("_")
  if isinstance(module, layers) and not own:
    return {path: f"its parameters are used by its method {method!r} as well"}
  return {}


@contextlib.contextmanager
def _recording(recorder: _Recorder, layers: tuple[type, ...]) -> Iterator[None]:
  def interceptor(next_fun, args, kwargs, context):
    module, method = context.module, context.method_name
    if _recorder.get() is recorder:
      for path, why in _unfit(module, method, linen).items():
        recorder.unfit.setdefault(path, why)
    seen = method == "__call__" and isinstance(module, linen)
    if not seen or _recorder.get() is not recorder:
      return next_fun(*args, **kwargs)
    if kwargs:
      args = (*args, *kwargs.values())
    preact = next_fun(*args)
    path = "/".join(module.path)
    affine = _stock_affine(module)
    return recorder.record(path, affine, _kind(module), None, args, preact)

  linen = tuple(t for t in layers if not nnx_layers.is_module(t))
  others = tuple(t for t in layers if nnx_layers.is_module(t))
  token = _recorder.set(recorder)
  try:
    with (
      nn.intercept_methods(interceptor),
      nnx_layers.calls_seen(others, _call_of_nnx, _use_of_nnx),
    ):
      yield
  finally:
    _recorder.reset(token)


def _found(layer: Any) -> tuple[_Recorder, str, nnx_layers.Affine] | None:
  """What the tape needs to know of an NNX layer, if it is to be on it."""
  recorder = _recorder.get()
  if recorder is None:
    return None
  found = nnx_layers.found(layer, recorder.where, _quiet)
  return None if found is None else (recorder, *found)


def _call_of_nnx(original, layer, *args, **kwargs):
  found = _found(layer)
  if found is None:
    return original(layer, *args, **kwargs)
  recorder, path, affine = found
  with _quiet():
    preact = original(layer, *args, **kwargs)
  kind = _kind(layer)
  kind = "dense" if kind == "linear" else kind
  args = (*args, *kwargs.values())
  return recorder.record(path, affine, kind, None, args, preact)


def _use_of_nnx(layer, method) -> None:
  found = _found(layer)
  if found is not None:
    recorder, path, _ = found
    why = f"its parameters are used by its method {method!r} as well"
    recorder.unfit.setdefault(path, why)


def _run(loss_fn, recorder, layers, args):
  """Loss, aux and the arrays seen, as values that may leave a trace."""
  with _recording(recorder, layers):
    loss, aux = loss_fn(*args)
  arrays = {
    name: (seen["inputs"], seen["preact"])
    for name, seen in recorder.seen.items()
  }
  return loss, (aux, arrays)


def _from_host(path: str, x):
  """A leaf of the batch; integers of the host are refused, never wrapped."""
  if not isinstance(x, np.ndarray | np.generic):
    return x
  return checks.kept(f"batch[{path!r}]" if path else "batch", x)


def capture(
  loss_fn: types.LossFn,
  *,
  layers: tuple[type, ...] | None = None,
  filter: Callable[[str], bool] | None = None,
) -> Callable[..., Any]:
  """A loss that also returns its gradient and its tape.

  Args:
    loss_fn: `(params, model_state, batch, key) -> (loss, (metrics,
      model_state))`, with stock flax layers (linen or NNX) inside, or `tap`s,
      or both. NNX layers are known by their arrays, which must be the leaves
      of `params`, as `nnx.merge(graphdef, params)` leaves them.
    layers: module types to capture, of linen or NNX; None for all of `LAYERS`
      and those of NNX by the same names. Each must be affine in its parameters.
    filter: which paths to capture; all by default.

  Returns:
    `(params, model_state, batch, key) -> ((loss, (metrics, model_state)),
    grads, tape)`, pure and jittable. It costs one forward and one backward
    pass, and holds inputs, pre-activations and gradients of all layers.

  Raises:
    ValueError: nothing was captured, or a captured layer stands inside a
      transformation (`nn.scan`, `nn.remat`) that hides its values, or the
      batch has integers of the host that JAX would wrap.

  >>> affine = lambda layer, x: x @ layer["kernel"]
  >>> params = {"h": {"kernel": jnp.ones((2, 3))}}
  >>> def loss_fn(params, model_state, x, key):
  ...   a = tap("h", affine, params["h"], x)
  ...   return jnp.tanh(a).mean(), ({}, model_state)
  ...
  >>> (loss, _), grads, tape = capture(loss_fn)(
  ...   params, {}, jnp.ones((4, 2)), None
  ... )
  >>> tape.records["h"].preact.shape, grads["h"]["kernel"].shape
  ((4, 3), (2, 3))
  """
  keep = filter or (lambda path: True)

  def captured(params, model_state, batch, key):
    batch = trees.map_with_path(_from_host, batch)
    args = (params, model_state, batch, key)
    seen, unfit = {}, {}
    wanted = LAYERS + nnx_layers.stock() if layers is None else tuple(layers)

    def probe(*args):
      recorder = _Recorder(None, keep, args[0], seen, unfit)
      return _run(loss_fn, recorder, wanted, args)

    _, (_, shapes) = jax.eval_shape(probe, *args)
    if not shapes:
      raise ValueError(
        "locoprop captured no layer: the loss calls none of "
        f"{[t.__name__ for t in wanted]} with leaves of the parameters and has "
        "no tap, or `filter` drops all. Layers of Equinox and plain functions "
        "are named by `locoprop.tap`."
      )
    zeros = {n: jnp.zeros(a.shape, a.dtype) for n, (_, a) in shapes.items()}

    def perturbed(params, zeros):
      recorder = _Recorder(zeros, keep, params)
      args = (params, model_state, batch, key)
      return _run(loss_fn, recorder, wanted, args)

    (loss, (aux, arrays)), (grads, preact_grads) = jax.value_and_grad(
      perturbed, argnums=(0, 1), has_aux=True
    )(params, zeros)
    tape = Tape(
      {
        name: LayerRecord(*arrays[name], preact_grads[name], *call["static"])
        for name, call in seen.items()
      },
      tuple(seen),
      tuple(unfit.items()),
    )
    return (loss, aux), grads, tape

  return captured


def layer_paths(loss_fn: types.LossFn, *args, **capture_options):
  """Paths of the layers that `capture` would see, without computing.

  Args:
    loss_fn: as for `capture`.
    *args: `(params, model_state, batch, key)`, arrays or shape structs.
    **capture_options: options of `capture`.

  Returns:
    A tuple of paths in the order of the forward pass.

  >>> affine = lambda layer, x: x @ layer["kernel"]
  >>> params = {"h": {"kernel": jnp.ones((2, 3))}}
  >>> def loss_fn(params, model_state, x, key):
  ...   a = tap("h", affine, params["h"], x)
  ...   return jnp.tanh(a).mean(), ({}, model_state)
  ...
  >>> layer_paths(loss_fn, params, {}, jnp.ones((4, 2)), None)
  ('h',)
  """
  fn = capture(loss_fn, **capture_options)
  _, _, tape = jax.eval_shape(fn, *args)
  return tuple(tape.by_layer())


def subtree(params: types.PyTree, path: str) -> types.PyTree:
  """The parameters of the layer at `path`, in a tree of any containers.

  Raises:
    ValueError: there is no such path.
  """
  try:
    return trees.subtree(params, path)
  except KeyError as error:
    raise ValueError(
      f"layer path {path!r} is not in the parameters, whose leaves are "
      f"{list(trees.flatten(params))}."
    ) from error
