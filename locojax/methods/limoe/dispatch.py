"""From tokens to experts and back, four ways with one result.

  einsum   one-hot masks, as V-MoE's code; costs S / M of the experts' own work
  gather   padded buffers by index, one batched product; the default
  ragged   tokens sorted by expert, products over uneven groups; never padded
  dense    all experts on all tokens; for tests and tiny models

`experts` is a function `[E, N, D] -> [E, N, D]`, for `ragged` a
`ragged.RaggedExperts`, or without a mesh a function `([N, D] sorted by expert,
group sizes [E]) -> [N, D]`.

Letters: G groups, S tokens of a group, K choices, E experts, C places, D size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from locojax.core import arrays, checks
from locojax.core import mesh as mesh_lib
from locojax.methods.limoe import ragged, routing
from locojax.methods.limoe import rows as rows_lib

DISPATCHERS = ("einsum", "gather", "ragged", "dense")
# Groups lie along both axes while they are routed, then experts along one.
_GROUPS = ("data", "expert")


def _lay(x: jax.Array, *axes) -> jax.Array:
  """`mesh.constrain` where the axes divide the sizes; else `x`."""
  mesh = jax.sharding.get_abstract_mesh()
  sizes = {} if mesh.empty else dict(mesh.shape)
  for size, axis in zip(x.shape, axes):
    names = axis if isinstance(axis, tuple) else (axis,)
    if size % math.prod(sizes.get(n, 1) for n in names):
      return x
  return mesh_lib.constrain(x, *axes)


def _to_experts(buffers: jax.Array) -> jax.Array:
  """`[G, E, C, D]` from cut groups to cut experts: an all-to-all on a mesh."""
  return _lay(_lay(buffers, _GROUPS), "data", "expert")


def _to_groups(buffers: jax.Array) -> jax.Array:
  return _lay(_lay(buffers, "data", "expert"), _GROUPS)


def _run_experts(experts: Callable, buffers: jax.Array) -> jax.Array:
  """Experts on `[G, E, C, D]`."""
  g, e, c, d = buffers.shape
  rows = _to_experts(buffers).swapaxes(0, 1).reshape(e, g * c, d)
  rows = _lay(rows, "expert", "data")
  out = experts(rows).reshape(e, g, c, -1).swapaxes(0, 1)
  return _to_groups(out)


def _tables(assignment: routing.Assignment, num_experts: int, capacity: int):
  """Slots of a group: `(slot [S, K], kept, pair [E C], filled)`.

  `slot` is e C + position, `pair` the s K + k that sits in a slot.
  """
  slot = assignment.expert * capacity + assignment.position
  kept = assignment.kept
  num = num_experts * capacity
  pairs = jnp.arange(slot.size, dtype=jnp.int32)
  to = jnp.where(kept, slot, num).reshape(-1)
  empty = jnp.full((num,), -1, jnp.int32)
  pair = empty.at[to].set(pairs, mode="drop", unique_indices=False)
  return slot, kept, pair, pair >= 0


def _gather(x, assignment, experts, num_experts, capacity):
  """Padded buffers by index."""
  top_k = assignment.expert.shape[-1]

  def there(x, a):
    slot, kept, pair, filled = _tables(a, num_experts, capacity)
    rows = rows_lib.gather(x, filled, pair // top_k, kept, slot)
    return rows.reshape(num_experts, capacity, -1)

  def back(y, a):
    slot, kept, pair, filled = _tables(a, num_experts, capacity)
    flat = y.reshape(num_experts * capacity, -1)
    rows = rows_lib.gather(
      flat, kept.reshape(-1), slot.reshape(-1), filled[:, None], pair[:, None]
    )
    rows = rows.reshape(*kept.shape, -1)
    weight = jnp.where(kept, a.weight, 0.0)[..., None]
    return (arrays.as_float(rows) * weight).sum(axis=1)

  out = _run_experts(experts, jax.vmap(there)(x, assignment))
  return jax.vmap(back)(out, assignment)


def _einsum(x, assignment, experts, num_experts, capacity):
  """One-hot masks `[G, S, E, C]`."""
  a = assignment
  expert = jax.nn.one_hot(a.expert, num_experts, dtype=x.dtype)
  place = jax.nn.one_hot(a.position, capacity, dtype=x.dtype)
  place = place * a.kept[..., None].astype(x.dtype)
  dispatch = jnp.einsum("gske,gskc->gsec", expert, place)
  buffers = jnp.einsum("gsec,gsd->gecd", dispatch, x)
  out = arrays.as_float(_run_experts(experts, buffers))
  weight = jnp.where(a.kept, a.weight, 0.0)
  combine = jnp.einsum(
    "gsk,gske,gskc->gsec",
    weight,
    arrays.as_float(expert),
    arrays.as_float(place),
  )
  return jnp.einsum("gsec,gecd->gsd", combine, out)


def _dense(x, assignment, experts, num_experts, capacity):
  """All experts on all tokens."""
  del capacity
  g, s, d = x.shape
  rows = jnp.broadcast_to(x.reshape(1, g * s, d), (num_experts, g * s, d))
  out = arrays.as_float(experts(rows)).reshape(num_experts, g, s, -1)
  weight = jnp.where(assignment.kept, assignment.weight, 0.0)
  chosen = jax.nn.one_hot(assignment.expert, num_experts, dtype=weight.dtype)
  return jnp.einsum("gsk,gske,egsd->gsd", weight, chosen, out)


def _ragged(x, assignment, experts, num_experts, capacity):
  """Rows sorted by expert, without padding."""
  del capacity
  return ragged.apply(x, assignment, experts, num_experts)


_RUN = {
  "einsum": _einsum,
  "gather": _gather,
  "ragged": _ragged,
  "dense": _dense,
}


def apply_experts(
  x: jax.Array,
  assignment: routing.Assignment,
  experts: Callable,
  *,
  num_experts: int,
  capacity: int,
  dispatcher: str = "gather",
) -> jax.Array:
  """sum_k gate_k expert_k(x) of what is kept.

  Args:
    x: `[G, S, D]`; a token that no expert keeps may hold anything.
    assignment: with a leading axis G.
    experts: see the head of the module.
    num_experts: E.
    capacity: C; S for dropless buffers.
    dispatcher: one of `DISPATCHERS`.

  Returns:
    `[G, S, D]` in the dtype of x, zeros for a token without an expert; summed
    over k in float32. On a mesh with an axis `expert` that divides E, `einsum`
    and `gather` exchange tokens by all-to-all, `ragged` by all-gather and
    reduce-scatter, and no weights move.

  Raises:
    ValueError: an unknown dispatcher; `ragged` on a mesh with sizes that do not
      divide, or with a function.

  >>> gates = jnp.array([[[0.75, 0.25], [0.5, 0.5]]])  # a group of two tokens
  >>> route = lambda g: routing.route_top_k(g, top_k=1, capacity=2)
  >>> x, double = jnp.ones((1, 2, 3)), lambda rows: 2 * rows
  >>> y = apply_experts(
  ...   x, jax.vmap(route)(gates), double, num_experts=2, capacity=2
  ... )
  >>> y[0, :, 0].tolist()
  [1.5, 1.0]
  """
  run = checks.lookup("dispatcher", dispatcher, _RUN)
  # What no expert keeps may hold anything; 0 times it must be 0.
  x = arrays.kept(x, jnp.any(assignment.kept, axis=-1))
  return run(x, assignment, experts, num_experts, capacity).astype(x.dtype)


def apply_expert_choice(
  x: jax.Array, choice: routing.ExpertChoice, experts: Callable
) -> jax.Array:
  """Sum over the experts that took a token.

  Args:
    x: `[G, S, D]`; where a token has no weight, it may hold anything.
    choice: with a leading axis G.
    experts: see the head of the module.

  Returns:
    `[G, S, D]` in the dtype of x, summed in float32.

  >>> gates = jnp.array([[[0.75, 0.25], [0.5, 0.5]]])
  >>> choose = lambda g: routing.route_expert_choice(g, capacity=1)
  >>> x, double = jnp.ones((1, 2, 3)), lambda rows: 2 * rows
  >>> apply_expert_choice(x, jax.vmap(choose)(gates), double)[0, :, 0].tolist()
  [1.5, 1.0]
  """

  def back(y, c):
    rows = arrays.as_float(y) * c.weight[..., None]
    zeros = jnp.zeros((x.shape[1], y.shape[-1]), rows.dtype)
    return zeros.at[c.token.reshape(-1)].add(rows.reshape(-1, y.shape[-1]))

  buffers = jax.vmap(lambda x, c: arrays.kept(x[c.token], c.weight))(x, choice)
  out = _run_experts(experts, buffers)
  return jax.vmap(back)(out, choice).astype(x.dtype)


def apply_soft(
  x: jax.Array, weights: tuple[jax.Array, jax.Array], experts: Callable
) -> jax.Array:
  """Soft MoE: slots are mixtures of tokens, tokens mixtures of slots.

  Args:
    x: `[G, S, D]`; a token that is mixed into no slot may hold anything.
    weights: of `routing.soft_moe_weights`, with a leading axis G.
    experts: see the head of the module.

  Returns:
    `[G, S, D]` in the dtype of x.

  >>> x, slots = jnp.ones((1, 4, 3)), jnp.ones((3, 2, 2))
  >>> weights = jax.vmap(lambda g: routing.soft_moe_weights(g, slots))(x)
  >>> y = apply_soft(x, weights, lambda rows: 2 * rows)
  >>> y.shape, round(float(y[0, 0, 0]), 4)
  ((1, 4, 3), 2.0)
  """
  there, back = weights
  x = arrays.kept(x, jnp.any(there != 0, axis=(-2, -1)))
  buffers = jnp.einsum("gsep,gsd->gepd", there.astype(x.dtype), x)
  out = arrays.as_float(_run_experts(experts, buffers))
  return jnp.einsum("gsep,gepd->gsd", back, out).astype(x.dtype)
