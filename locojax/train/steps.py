"""Loss -> step, microbatches, and wrappers from step to step.

Every builder returns a `StepFn`, `(TrainState, batch) -> (TrainState,
metrics)`, pure and jittable; every wrapper takes one and returns one:

    step = steps.from_loss(loss_fn, tx, num_microbatches=4)
    step = steps.with_batch(step, mixup)
    step = steps.with_ema(step, decay=0.999)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from locojax.core import checks, narrow, trees, types
from locojax.core import metrics as metrics_lib

# Streams of random numbers beside the key of the loss, which is `step_key()`.
_BATCH_STREAM = 0x5EED_BA7C
_LAST = 2**31 - 1


def init_state(
  params: types.PyTree,
  tx: optax.GradientTransformation,
  *,
  key: jax.Array,
  model_state: types.PyTree = None,
) -> types.TrainState:
  """A state at step 0.

  Args:
    params: trainable parameters, a nested dict.
    tx: the transformation whose state is made.
    key: typed PRNG key of the run (not the one that drew the parameters).
    model_state: non-trainable variables; None stands for `{}`.

  Returns:
    A `TrainState` with `step` 0.
  """
  return types.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state={} if model_state is None else model_state,
    opt_state=trees.strong_types(tx.init(params)),
    key=key,
  )


def couples_examples(loss_fn: types.LossFn) -> types.LossFn:
  """Marks a loss that is no mean over independent examples.

  A contrast between the examples of a batch or weights normalised over it
  change when the batch is cut; `from_loss` then refuses microbatches.
  """

  @functools.wraps(loss_fn)
  def marked(*args, **kwargs):
    return loss_fn(*args, **kwargs)

  marked.couples_examples = True
  return marked


def is_coupled(loss_fn: types.LossFn) -> bool:
  """Whether a loss, or one it was made from by partial or wraps, is marked."""
  while loss_fn is not None:
    if getattr(loss_fn, "couples_examples", False):
      return True
    inner = getattr(loss_fn, "func", None)
    loss_fn = getattr(loss_fn, "__wrapped__", inner)
  return False


def split_batch(batch: types.Batch, num_microbatches: int) -> types.Batch:
  """`[n * b, ...]` -> `[n, b, ...]`; microbatch i holds the examples i::n.

  Examples are dealt out in turn, so a batch sharded over its leading axis
  stays on its devices.

  Raises:
    ValueError: a leaf without a leading axis, or one that does not divide.
  """

  def split(path, x):
    shape = jnp.shape(x)
    if not shape:
      raise ValueError(
        f"batch/{path} is a scalar: microbatches need a leading axis."
      )
    checks.divisible(
      f"leading axis of batch/{path}",
      shape[0],
      "num_microbatches",
      num_microbatches,
    )
    x = jnp.reshape(x, (-1, num_microbatches, *shape[1:]))
    return jnp.swapaxes(x, 0, 1)

  return trees.map_with_path(split, batch)


def _with_loss(loss: jax.Array, metrics: types.Metrics) -> types.Metrics:
  if "loss" in metrics:
    return dict(metrics)
  return {"loss": metrics_lib.mean(loss), **metrics}


def _weight(metrics: types.Metrics) -> jax.Array:
  loss = metrics["loss"]
  if isinstance(loss, metrics_lib.Mean):
    return loss.weight
  return jnp.float32(1.0)


def _is_mean(x: Any) -> bool:
  return isinstance(x, metrics_lib.Mean)


def _zero_where_empty(weight: jax.Array, x: jax.Array) -> jax.Array:
  """`weight * x` in at least float32; zero, not NaN, where nothing counts."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return jnp.where(weight > 0, weight * x, jnp.zeros_like(x))


def _scaled_metrics(weight, metrics):
  """Metrics as sums: a `Mean` as it is, anything else times its weight."""

  def scale(x):
    return x if _is_mean(x) else _zero_where_empty(weight, jnp.asarray(x))

  return jax.tree.map(scale, metrics, is_leaf=_is_mean)


def value_and_grad(
  loss_fn: types.LossFn, *, num_microbatches: int = 1
) -> Callable[..., tuple[jax.Array, types.Metrics, types.PyTree, types.PyTree]]:
  """Loss, metrics and gradient of a batch, in one piece or in several.

  With microbatches the gradient is `sum_i w_i g_i / sum_i w_i`. The weight
  `w_i` is that of `metrics["loss"]` where that is a `metrics.Mean` (the number
  of examples or tokens counted), else 1. A loss that is the mean over its
  counted entries thus has the same gradient in pieces as in one, masks or
  not. Microbatch i uses `fold_in(key, i)`; model state runs through the
  pieces in order.

  Args:
    loss_fn: the loss.
    num_microbatches: how many pieces; must divide the batch.

  Returns:
    `(params, model_state, batch, key) -> (loss, metrics, model_state, grads)`;
    `metrics` has the name `loss`.

  Raises:
    ValueError: `num_microbatches` below 1; or above 1 for a loss that couples
      the examples of a batch.
  """
  checks.positive_int("num_microbatches", num_microbatches)
  if num_microbatches > 1 and is_coupled(loss_fn):
    raise ValueError(
      f"num_microbatches={num_microbatches} is not allowed: "
      f"{getattr(loss_fn, '__name__', loss_fn)} couples the examples of a "
      "batch, so its gradient is no mean over microbatches. It must be 1."
    )
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def whole(params, model_state, batch, key):
    (loss, (metrics, model_state)), grads = grad_fn(
      params, model_state, batch, key
    )
    return loss, _with_loss(loss, metrics), model_state, grads

  if num_microbatches == 1:
    return whole
  return functools.partial(_accumulate, whole, num_microbatches)


def _accumulate(whole, num, params, model_state, batch, key):
  """The weighted mean of `whole` over microbatches, by `lax.scan`."""
  pieces = split_batch(batch, num)

  def piece(model_state, index, batch):
    loss, metrics, model_state, grads = whole(
      params, model_state, batch, jax.random.fold_in(key, index)
    )
    weight = _weight(metrics).astype(jnp.float32)
    scale = functools.partial(_zero_where_empty, weight)
    sums = (scale(loss), jax.tree.map(scale, grads), weight)
    return (*sums, _scaled_metrics(weight, metrics)), model_state

  def body(carry, inputs):
    sums, model_state = carry
    new, model_state = piece(model_state, *inputs)
    return (jax.tree.map(jnp.add, sums, new), model_state), None

  first = jax.tree.map(lambda x: x[0], pieces)
  shapes, _ = jax.eval_shape(piece, model_state, 0, first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  (sums, model_state), _ = jax.lax.scan(
    body, (zeros, model_state), (jnp.arange(num), pieces)
  )
  loss, grads, weight, metrics = sums
  safe = jnp.where(weight > 0, weight, 1.0)
  grads = jax.tree.map(lambda g, p: (g / safe).astype(p.dtype), grads, params)
  metrics = jax.tree.map(
    lambda x: x if _is_mean(x) else x / safe, metrics, is_leaf=_is_mean
  )
  return loss / safe, metrics, model_state, grads


def from_loss(
  loss_fn: types.LossFn,
  tx: optax.GradientTransformation,
  *,
  num_microbatches: int = 1,
) -> types.StepFn:
  """A gradient step of any loss with any optax transformation.

  The loss gets the key of the step, `fold_in(state.key, state.step)`. A
  transformation with extra arguments gets `value` (the loss), `grad` and
  `value_fn` (`params -> loss` on the same batch, for line searches).

  Args:
    loss_fn: `(params, model_state, batch, key) -> (loss, (metrics,
      model_state))`, a mean over examples; `loss` is `[]`.
    tx: any transformation.
    num_microbatches: pieces in which the gradient is accumulated; see
      `value_and_grad` for when that equals the whole batch.

  Returns:
    A `StepFn`. Its metrics are those of the loss, plus `loss` where they lack
    it.

  Raises:
    ValueError: see `value_and_grad`.
  """
  grad_fn = value_and_grad(loss_fn, num_microbatches=num_microbatches)
  tx = optax.with_extra_args_support(tx)

  def step(state: types.TrainState, batch: types.Batch):
    key = state.step_key()
    loss, metrics, model_state, grads = grad_fn(
      state.params, state.model_state, batch, key
    )
    updates, opt_state = tx.update(
      grads,
      state.opt_state,
      state.params,
      value=loss,
      grad=grads,
      value_fn=lambda p: loss_fn(p, state.model_state, batch, key)[0],
    )
    return state.advance(
      updates, trees.strong_types(opt_state), model_state
    ), metrics

  return step


def with_batch(
  step: types.StepFn,
  transform: Callable[[types.Batch, jax.Array], types.Batch],
  *,
  stream: int = 0,
) -> types.StepFn:
  """A step that sees `transform(batch, key)` (mixup, noise, relabelling).

  The key is a function of the run's key, the step and `stream`, and differs
  from the key of the loss. Give two such wrappers different streams, which are
  integers in [0, 2^32).
  """
  checks.int_in_range("stream", stream, 0, 2**32 - 1)

  def wrapped(state: types.TrainState, batch: types.Batch):
    key = jax.random.fold_in(state.step_key(), _BATCH_STREAM)
    return step(state, transform(batch, jax.random.fold_in(key, stream)))

  return wrapped


def with_update(step: types.StepFn) -> types.StepFn:
  """A step whose batch says, as `update`, how many updates were done.

  For losses with a burn-in or a schedule, which are not told the step.
  """

  def wrapped(state: types.TrainState, batch: types.Batch):
    return step(state, {**batch, "update": state.step})

  return wrapped


def scanned(step: types.StepFn, num_updates: int) -> types.StepFn:
  """A step of the loop that makes many updates, one for each row of a batch.

  For small models, where the loop around a step would cost more than the step.

  Args:
    step: takes one row; it sees the number of updates done as `state.step`.
    num_updates: rows of a batch, `[num_updates, ...]`.

  Returns:
    A `StepFn` that adds one to the step of the loop. A `Mean` is merged over
    the updates, any other metric averaged. The number of updates stays at the
    last multiple of `num_updates` that an int32 holds once it is there.
  """
  checks.int_in_range("num_updates", num_updates, 1, _LAST)

  def merged(x):
    if _is_mean(x):
      return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), x)
    return jnp.mean(x, axis=0, dtype=jnp.promote_types(x.dtype, jnp.float32))

  def many(state: types.TrainState, batch: types.Batch):
    rows = jnp.minimum(state.step, _LAST // num_updates)
    inner = state.replace(step=rows * num_updates)
    if num_updates == 1:
      # Not in a loop, where XLA's convolutions are slow on CPUs.
      inner, found = step(inner, jax.tree.map(lambda x: x[0], batch))
    else:
      inner, found = jax.lax.scan(step, inner, batch)
      found = jax.tree.map(merged, found, is_leaf=_is_mean)
    return inner.replace(step=jnp.minimum(state.step, _LAST - 1) + 1), found

  return many


def init_ema(state: types.TrainState) -> types.TrainState:
  """Puts a copy of the parameters in the model state, for `with_ema`.

  The copy of parameters of 16 bits is float32: at a decay of 0.999 an average
  in bfloat16 would never move.
  """
  ema = jax.tree.map(jnp.array, narrow.widen(state.params))
  return state.replace(model_state={"model": state.model_state, "ema": ema})


def ema_state(state: types.TrainState) -> types.TrainState:
  """The state to evaluate: averaged parameters, plain model state.

  The averages are cast to the dtypes of the parameters.
  """
  inner = state.model_state
  params = jax.tree.map(
    lambda e, p: e.astype(p.dtype), inner["ema"], state.params
  )
  return state.replace(params=params, model_state=inner["model"])


def _averaged(ema: jax.Array, param: jax.Array, decay: float) -> jax.Array:
  """`ema + (1 - decay) (param - ema)`, whose fixed point is `param`.

  The sum of two products would have weights that, rounded, do not add to 1.
  """
  if not jnp.issubdtype(ema.dtype, jnp.floating):
    return param
  if narrow.is_narrow(ema):
    raise ValueError(
      f"an average of dtype {ema.dtype} is not allowed, for it would not move: "
      "it must be float32 or wider, as `init_ema` makes it."
    )
  return ema + (1 - decay) * (param.astype(ema.dtype) - ema)


def with_ema(step: types.StepFn, *, decay: float) -> types.StepFn:
  """A step that also averages: `ema <- decay * ema + (1 - decay) * params`.

  The state must come from `init_ema`; `ema_state` gives what to evaluate. The
  average is in float32 or wider, whatever the dtype of the parameters. It has
  their paths as tails, so the sharding rules of the parameters serve it too.

  Args:
    step: any step.
    decay: in [0, 1]. A float32 average follows until it is within
      2^-24 / (1 - decay) of a parameter's size: 6e-5 of it at 0.999.

  Raises:
    ValueError: a bad decay; when called, a state of another kind, or an average
      of 16 bits.
  """
  checks.in_range("decay", decay, 0.0, 1.0)

  def wrapped(state: types.TrainState, batch: types.Batch):
    if set(state.model_state) != {"model", "ema"}:
      raise ValueError(
        f"model_state has the names {sorted(state.model_state)}: a step with "
        "an average needs a state made by `init_ema`."
      )
    ema = state.model_state["ema"]
    inner = state.replace(model_state=state.model_state["model"])
    inner, metrics = step(inner, batch)
    ema = jax.tree.map(
      functools.partial(_averaged, decay=decay), ema, inner.params
    )
    model_state = {"model": inner.model_state, "ema": ema}
    return inner.replace(model_state=model_state), metrics

  return wrapped
