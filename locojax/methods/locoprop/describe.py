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
    fallback.
  """
  header = ("layer", "kind", "transfer", "calls", "rows", "params", "tape MiB")
  lines, covered = [header], []
  for path, records in tape.by_layer().items():
    transfer = _transfer_of(records[0], transfers)
    if transfer is None:
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
  """
  out = {}
  for path, records in tape.by_layer().items():
    name = _transfer_of(records[0], transfers)
    if name is None:
      continue
    delta, grad = taps.subtree(updates, path), taps.subtree(grads, path)
    moved = jax.tree.map(jnp.add, taps.subtree(params, path), delta)
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
  return jnp.sum(loss.divergence(a, record.preact)) + step


def _dot(x, y) -> jax.Array:
  return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, x, y)))


def _cosine(x, y) -> jax.Array:
  norms = (_dot(x, x) * _dot(y, y)) ** 0.5
  return jnp.where(norms > 0, _dot(x, y) / jnp.where(norms > 0, norms, 1.0), 0)
