"""What LocoProp sees of a model: tables, checks and diagnostics."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from locojax.core import trees, types
from locojax.methods.locoprop import (
  arguments,
  chain,
  matching,
  rows,
  taps,
  targets,
  update,
)


def describe(
  tape: taps.Tape,
  params: types.PyTree,
  *,
  transfers: Mapping[str, str] | None = None,
) -> str:
  """A table of captured layers, and the parameters that no layer covers.

  Args:
    tape: from `capture`; arrays or, from `jax.eval_shape`, shape structs.
    params: the model's parameters.
    transfers: as given to `locoprop`; layers that no pattern hits count as
      not covered.

  Returns:
    One line a layer: path, kind, transfer function, calls, rows, parameters
    and bytes on the tape; then one line for each parameter left to the
    fallback, and for each layer that must be, with why.

  >>> import jax.numpy as jnp
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
  >>> print(describe(tape, params, transfers={"h": "tanh"}))
  layer  kind  transfer  calls  rows  params  tape MiB
  h      tap   tanh      1      4     6       0.00
  """
  header = ("layer", "kind", "transfer", "calls", "rows", "params", "tape MiB")
  lines, covered = [header], []
  for path, records in tape.by_layer().items():
    transfer = _transfer_of(records[0], transfers)
    if transfer is None or tape.why_unfit(path):
      continue
    covered.append(path)
    lines.append(
      (
        path or "(root)",
        records[0].kind,
        transfer,
        str(len(records)),
        str(sum(rows.count(r) for r in records)),
        str(trees.num_params(taps.subtree(params, path))),
        f"{trees.num_bytes(records) / 2**20:.2f}",
      )
    )
  widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
  text = ["  ".join(c.ljust(w) for c, w in zip(ln, widths)) for ln in lines]
  rest = [
    path
    for path in trees.flatten(params)
    if not arguments.in_layers(path, covered)
  ]
  if rest:
    text += ["", "left to the fallback:", *(f"  {path}" for path in rest)]
  if tape.unfit:
    text += ["", "cannot be covered:", *(f"  {p}: {w}" for p, w in tape.unfit)]
  return "\n".join(line.rstrip() for line in text)


def _transfer_of(record, transfers) -> str | None:
  if transfers is None:
    return record.transfer or "linear"
  for pattern, name in transfers.items():
    if trees.matches(record.path, pattern):
      return matching.get(name).name
  return None


def verify_transfers(
  tape: taps.Tape, transfers: Mapping[str, str | matching.MatchingLoss]
) -> None:
  """Refuses a transfer function that is plainly not the layer's.

  A layer's response is seen where it is the very input of another layer. If
  that input is g(A) for a registered g and not f(A) for the f given, the layer
  applies g. Layers whose response goes through anything else first (a norm, a
  sum, pooling) show nothing and pass.

  Args:
    tape: concrete arrays, of one batch.
    transfers: as given to `locoprop`.

  Raises:
    ValueError: names the layer, the function given and the one it applies.

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
  >>> verify_transfers(tape, {"h": "tanh"})  # "relu" would be refused
  """
  inputs = [x for r in tape.records.values() for x in r.inputs]
  for record in tape.records.values():
    given = _transfer_of(record, transfers)
    if given is None or _feeds(record, matching.get(given), inputs):
      continue
    for name in matching.names():
      if _feeds(record, matching.get(name), inputs):
        raise ValueError(
          f"transfers gives {given!r} for the layer {record.path!r}, but what "
          f"it hands on is {name!r} of its pre-activation: they must be equal."
        )


def verify_gradients(
  tape: taps.Tape, params: types.PyTree, grads: types.PyTree
) -> None:
  """Refuses a layer whose gradient is not that of its calls on the tape.

  The gradient X^T dL/dA over all calls must be that of the parameters. It is
  not where these have another use, such as a table of embeddings whose
  transpose gives the logits, or a penalty in the loss. The latter is sound: it
  acts on the gradient at W0 alone.

  Args:
    tape: concrete arrays, of one batch, without row masks.
    params, grads: of the same batch; `grads` as `capture` returns them.

  Raises:
    ValueError: names the first such layer.

  >>> import jax.numpy as jnp
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
  >>> verify_gradients(tape, params, grads)
  """
  for path, records in tape.by_layer().items():
    own, given = taps.subtree(params, path), taps.subtree(grads, path)
    given = rows.cast(given)
    parts = [update.pull_back(r, own, r.preact_grad) for r in records]
    arrays = jax.tree.leaves((records, given))
    eps = max(
      float(jnp.finfo(x.dtype).eps)
      for x in arrays
      if jnp.issubdtype(x.dtype, jnp.floating)
    )
    difference = jax.tree.map(jnp.subtract, update.add(parts), given)
    off = float(_dot(difference, difference) ** 0.5)
    norm = float(_dot(given, given) ** 0.5)
    if off > max(1e-3, 16 * eps) * norm:
      raise ValueError(
        f"layer {path!r} is not allowed: the gradient of its parameters has "
        f"norm {norm:.3g}, and that of its calls on the tape is {off:.3g} away "
        "from it. Something else uses its parameters; leave it to `fallback`."
      )


def _feeds(record, loss: matching.MatchingLoss, inputs) -> bool:
  return any(chain.hands_on(record, loss, x) for x in inputs)


def diagnose(
  tape: taps.Tape,
  params: types.PyTree,
  grads: types.PyTree,
  updates: types.PyTree,
  *,
  transfers: Mapping[str, str | matching.MatchingLoss],
  gamma: float = 10.0,
) -> dict[str, dict[str, jax.Array]]:
  """How well the local problems were solved, by layer.

  For targets Y* = f(A) - gamma dL/dA and monotone transfer functions.

  Args:
    tape, params, grads: of the step.
    updates: what `locoprop` returned.
    transfers: transfer functions by regex.
    gamma: activation learning rate.

  Returns:
    By layer path: `loss_before` and `loss_after`, the local matching loss
    sum F(A) - <Y*, A> less its value at W0; `update_norm`; `cosine` between
    update and negative gradient; `outside`, the share of targets outside the
    range of f.

  >>> import jax.numpy as jnp
  >>> from locojax.methods.locoprop import capture, tap
  >>> from locojax.methods.locoprop import locoprop
  >>> affine = lambda layer, x: x @ layer["kernel"]
  >>> params = {"h": {"kernel": jnp.ones((2, 3))}}
  >>> def loss_fn(params, model_state, x, key):
  ...   a = tap("h", affine, params["h"], x)
  ...   return jnp.tanh(a).mean(), ({}, model_state)
  ...
  >>> (loss, _), grads, tape = capture(loss_fn)(
  ...   params, {}, jnp.ones((4, 2)), None
  ... )
  >>> transfers = {"h": "tanh"}
  >>> tx = locoprop(1e-3, transfers=transfers)
  >>> updates, _ = tx.update(grads, tx.init(params), params, tape=tape)
  >>> found = diagnose(tape, params, grads, updates, transfers=transfers)
  >>> bool(found["h"]["loss_after"] < found["h"]["loss_before"])
  True
  """
  out = {}
  for path, records in tape.by_layer().items():
    name = _transfer_of(records[0], transfers)
    if name is None:
      continue
    own = taps.subtree(params, path)
    dtype = rows.dtype_of(own)
    own, delta, grad = (
      rows.cast(tree, dtype)
      for tree in (own, taps.subtree(updates, path), taps.subtree(grads, path))
    )
    records = [rows.in_dtype(r, dtype) for r in records]
    moved = jax.tree.map(jnp.add, own, delta)
    out[path] = {
      "loss_before": jnp.float32(0.0),
      "loss_after": sum(_change(r, moved, name, gamma) for r in records),
      "update_norm": _dot(delta, delta) ** 0.5,
      "cosine": -_cosine(delta, grad),
      "outside": jnp.mean(
        jnp.stack([targets.target_outside(r, name, gamma) for r in records])
      ),
    }
  return out


def _change(record, moved, name: str, gamma: float) -> jax.Array:
  """Local loss at the moved parameters less that at W0."""
  loss = matching.get(name)
  a = record.affine(moved, *record.inputs)
  step = jnp.sum(gamma * record.preact_grad * (a - record.preact))
  divergence = loss.divergence(a, record.preact)
  return jnp.sum(rows.masked(divergence, record.row_mask)) + step


def _dot(x, y) -> jax.Array:
  return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, x, y)))


def _cosine(x, y) -> jax.Array:
  norms = (_dot(x, x) * _dot(y, y)) ** 0.5
  return jnp.where(norms > 0, _dot(x, y) / jnp.where(norms > 0, norms, 1.0), 0)
