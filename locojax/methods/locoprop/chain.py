"""Gauss-Seidel order: each layer sees what the one before it has become."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from locojax.core import trees, types
from locojax.methods.locoprop import matching, rows, taps, targets, update

# (path, record, shift of its gradient at W0) -> displacement of the layer.
Solve = Callable[[str, taps.LayerRecord, types.PyTree | None], types.PyTree]


def hands_on(
  record: taps.LayerRecord, loss: matching.MatchingLoss, x: jax.Array
) -> bool:
  """Whether `x` is f(A) of the record; concrete arrays."""
  response = loss.transfer(record.preact)
  floating = jnp.issubdtype(x.dtype, jnp.floating)
  if x.shape != response.shape or not floating:
    return False
  eps = max(float(jnp.finfo(v.dtype).eps) for v in (x, record.preact))
  x, response = (v.astype(jnp.float32) for v in (x, response))
  rtol, atol = max(1e-5, 4 * eps), max(1e-6, eps)
  return bool(jnp.allclose(x, response, rtol=rtol, atol=atol, equal_nan=True))


def _refuse(path: str, why: str):
  raise ValueError(
    f"order='gauss_seidel' is not allowed for the layer {path!r}: {why}. It is "
    "for a chain, where the input of each layer is the transfer function of "
    "the pre-activation of the layer before it. Use order='jacobi'."
  )


def _check_link(before, after, loss: matching.MatchingLoss) -> None:
  """The response of one layer is the input of the next, as far as is seen."""
  shape, given = before.preact.shape, after.inputs[0].shape
  if shape != given:
    why = f"its input has shape {given}, the output of {before.path!r} {shape}"
    _refuse(after.path, why)
  values = (before.preact, after.inputs[0])
  if any(isinstance(x, jax.core.Tracer) for x in values):
    return
  if not hands_on(before, loss, after.inputs[0]):
    why = f"its input is not {loss.name!r} of the output of {before.path!r}"
    _refuse(after.path, why)


def check_chain(
  tape: taps.Tape,
  covered: Sequence[str],
  transfer: Callable[[list[taps.LayerRecord]], matching.MatchingLoss],
  *,
  told: bool,
) -> None:
  """Refuses layers that do not feed one another in the order of the tape.

  Shapes are always compared, values where they are concrete.

  Args:
    tape: from `capture`.
    covered: paths of the layers to update.
    transfer: transfer function of a layer from its records.
    told: whether `transfers` was given; if not, each layer must tell its own.

  Raises:
    ValueError: names the first layer that is not fed by the one before it.
  """
  layers = tape.by_layer()
  if len(covered) > 1 and not tape.order:
    raise ValueError(
      "tape.order=() is not allowed with order='gauss_seidel': the order of "
      "the layers must be known, as on a tape from locoprop.capture."
    )
  before = None
  inside = [i for i, path in enumerate(layers) if path in set(covered)]
  for path in list(layers)[inside[0] : inside[-1] + 1]:
    records = layers[path]
    if path not in covered:
      _refuse(path, "it stands in the chain and is not covered by locoprop")
    if len(records) > 1:
      _refuse(path, f"it is called {len(records)} times")
    if len(records[0].inputs) != 1:
      _refuse(path, f"it has {len(records[0].inputs)} inputs")
    if before is not None:
      _check_link(before, records[0], transfer([before]))
    if not told and records[0].transfer is None:
      _refuse(path, "transfers=None and it does not tell its own")
    before = records[0]


def verify_chain(
  tape: taps.Tape, transfers: Mapping[str, str | matching.MatchingLoss]
) -> None:
  """Refuses a model whose layers are no chain f_m(A_m) = X_(m+1).

  Under `jit`, `order='gauss_seidel'` can compare shapes alone; this compares
  values too. Call it once, on the tape of one batch.

  Args:
    tape: concrete arrays.
    transfers: as given to `locoprop`; layers that no pattern hits are not
      covered.

  Raises:
    ValueError: names the first layer that is not fed by the one before it.

  >>> import jax.numpy as jnp
  >>> from locojax.methods.locoprop import capture, tap
  >>> affine = lambda layer, x: x @ layer["kernel"]
  >>> params = {
  ...   "h": {"kernel": jnp.ones((2, 3))},
  ...   "out": {"kernel": jnp.ones((3, 1))},
  ... }
  >>> def loss_fn(params, model_state, x, key):
  ...   h = jnp.tanh(tap("h", affine, params["h"], x))
  ...   out = tap("out", affine, params["out"], h)
  ...   return jnp.square(out).mean(), ({}, model_state)
  ...
  >>> (loss, _), grads, tape = capture(loss_fn)(
  ...   params, {}, jnp.ones((4, 2)), None
  ... )
  >>> verify_chain(tape, {"h": "tanh", "out": "linear"})
  """

  def transfer(records):
    hits = (p for p in transfers if trees.matches(records[0].path, p))
    return matching.get(transfers[next(hits)])

  covered = [p for p in tape.by_layer() if trees.matches(p, tuple(transfers))]
  if not covered:
    raise ValueError(
      f"transfers={dict(transfers)!r} is not allowed: no pattern hits a layer "
      f"of the tape; those are {list(tape.by_layer())}."
    )
  check_chain(tape, covered, transfer, told=True)


def towards(x: jax.Array, output: jax.Array, correction) -> jax.Array:
  """`x` moved towards `output` by at most correction sqrt(D) in norm, by row.

    x + (y - x) min(1, correction sqrt(D) / ||y - x||)

  Args:
    x, output: `[..., D]`; a row is the last axis.
    correction: the largest root mean square of the move over a row.

  Returns:
    `[..., D]` in the dtype of `x`; `output` itself where it is close enough.
  """
  step = rows.cast(output) - rows.cast(x)
  square = jnp.sum(jnp.square(step), axis=-1, keepdims=True)
  most = correction * step.shape[-1] ** 0.5
  far = square > most**2
  share = jnp.where(far, most / jnp.sqrt(jnp.where(far, square, 1.0)), 1.0)
  return (x + share * step).astype(x.dtype)


def shift(
  before: taps.LayerRecord,
  after: taps.LayerRecord,
  params: types.PyTree,
  transfer: matching.MatchingLoss,
  options: targets.LocalOptions,
) -> types.PyTree:
  """What other inputs, with the same targets, add to the gradient at W0.

    X'^T [f(A') - Y*] - X^T [f(A) - Y*],   A' = X' W0 + b

  Args:
    before: the record of the tape; its targets are kept.
    after: the same with other inputs and their pre-activation.
    params, transfer, options: as for `changes.gradient_change`.

  Returns:
    A tree like `params`, as `rows.cast`.
  """
  f = targets.response(transfer, options)
  old = targets.residual_at_start(before, transfer, options)
  change = f(rows.cast(after.preact)) - f(rows.cast(before.preact))
  out = jax.tree.map(
    jnp.subtract,
    update.pull_back(after, params, old + change),
    update.pull_back(before, params, old),
  )
  return update.sum_over_devices(out, options)


def _with_inputs(record, params, x) -> taps.LayerRecord:
  return dataclasses.replace(
    record, inputs=(x,), preact=record.affine(params, x)
  )


def gauss_seidel(
  layers: Sequence[tuple[str, taps.LayerRecord]],
  params: Mapping[str, types.PyTree],
  *,
  correction: float | jax.Array,
  transfers: Mapping[str, matching.MatchingLoss],
  options: Mapping[str, targets.LocalOptions],
  solve: Solve,
) -> dict[str, types.PyTree]:
  """Solves the layers of a chain one after another.

  After the solution of layer m, with its own (maybe moved) input X', its new
  output is f_m(X' (W0 + delta) + b), and each row of the stored input of layer
  m+1 is moved `towards` it. Layer m+1 then poses its local problem with that
  input, and with the target that it had at W0. The last layer moves nothing.

  Args:
    layers: `(path, record)` in the order of the forward pass.
    params: parameters W0 by path.
    correction: bound of the move, see `towards`.
    transfers, options: by path.
    solve: called in order; the shift is None for an input that has not moved.

  Returns:
    Displacement by path.
  """
  out, x = {}, None
  layers = [
    (path, rows.in_dtype(record, rows.dtype_of(params[path])))
    for path, record in layers
  ]
  for i, (path, record) in enumerate(layers):
    seen, moved = record, None
    if x is not None:
      seen = _with_inputs(record, params[path], x)
      moved = shift(record, seen, params[path], transfers[path], options[path])
    out[path] = solve(path, seen, moved)
    if i + 1 == len(layers):
      break
    new = jax.tree.map(
      lambda p, d: p + d.astype(p.dtype), params[path], out[path]
    )
    output = transfers[path].transfer(record.affine(new, *seen.inputs))
    x = towards(layers[i + 1][1].inputs[0], output, correction)
  return out
