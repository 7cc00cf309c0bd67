"""Sums over the clients of a cohort: local training, clipping, and adding up.

The inner half of a round; `rounds.make_step` is the outer one and says what a
cohort is. On each device a `lax.scan` runs over chunks of clients, each chunk
a `vmap`, so that only a chunk's updates are alive; one psum over the mesh axis
of the clients adds what the devices have.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from locojax.core import checks, metrics, narrow, trees, types
from locojax.methods.dp_ftrl import clipping, noise
from locojax.methods.dp_ftrl import sums as sums_lib

_ROUNDING_STREAM = 0x6819D
_MAX_CELLS = 2**23


@dataclasses.dataclass(frozen=True)
class Plan:
  """The settings of `rounds.make_step` that say what a client does."""

  loss_fn: types.LossFn
  client_tx: optax.GradientTransformation
  clients_per_chunk: int
  mask: str
  client_mask: str
  axis: str
  grid: float | None = None
  clip_norm: float | None = None


class Sums(NamedTuple):
  """Sums over clients; `update` is minus the sum of clipped updates."""

  update: types.PyTree
  below: jax.Array
  found: dict[str, Any]
  norm: jax.Array
  clipped: jax.Array
  finite: jax.Array
  clients: jax.Array


def _as_means(loss: jax.Array, found: types.Metrics) -> dict[str, Any]:
  """Metrics of a local step, each a `Mean`, with `loss` among them."""
  is_mean = lambda x: isinstance(x, metrics.Mean)

  def one(x):
    if is_mean(x):
      return x
    return metrics.Mean(jnp.asarray(x, jnp.float32), jnp.float32(1.0))

  return jax.tree.map(one, {"loss": loss, **found}, is_leaf=is_mean)


def _where(condition: jax.Array, tree: types.PyTree, other: types.PyTree):
  """`tree` or `other`; what a step hands on as it is stays one for all clients.

  So frozen weights in the model state are not copied for every client.
  """
  pick = lambda a, b: a if a is b else jnp.where(condition, a, b)
  return jax.tree.map(pick, tree, other)


def _zeros(shapes: types.PyTree) -> types.PyTree:
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _local_step(plan: Plan, dtypes, shared, carry, inputs):
  """One step of a client; nothing changes where no example counts.

  A client's parameters are float32 or wider, for short steps would be lost in
  16 bits; the loss sees them in `dtypes`.
  """
  params, opt_state, model_state = carry
  index, key, batch = inputs
  batch = {**batch, **shared}
  seen = jax.tree.map(lambda p, dtype: p.astype(dtype), params, dtypes)
  (loss, (found, new_model_state)), grads = jax.value_and_grad(
    plan.loss_fn, has_aux=True
  )(seen, model_state, batch, jax.random.fold_in(key, index))
  grads = narrow.widen(grads)
  updates, new_opt_state = plan.client_tx.update(
    grads, opt_state, params, value=loss, grad=grads
  )
  new = (optax.apply_updates(params, updates), new_opt_state, new_model_state)
  active = jnp.array(True)
  if plan.mask in batch:
    active = jnp.any(batch[plan.mask] != 0)
  found = _as_means(loss, found)
  return _where(active, new, carry), _where(
    active, found, jax.tree.map(jnp.zeros_like, found)
  )


def _train(plan: Plan, params, model_state, shared, batch, key):
  """A client's update and its metrics, summed over its local steps."""
  num_steps = len(jax.tree.leaves(batch)[0])
  wide, dtypes = narrow.widen(params), jax.tree.map(lambda p: p.dtype, params)
  carry = (wide, plan.client_tx.init(wide), model_state)
  (trained, _, _), found = jax.lax.scan(
    lambda c, x: _local_step(plan, dtypes, shared, c, (x[0], key, x[1])),
    trees.strong_types(carry),
    (jnp.arange(num_steps), batch),
  )

  delta = jax.tree.map(jnp.subtract, trained, wide)
  return delta, jax.tree.map(lambda x: jnp.sum(x, axis=0), found)


def _client(plan: Plan, state_of, bounds, shared, client) -> Sums:
  """What one client adds to the sums."""
  params, model_state, key = state_of
  index, counts, batch = client
  own = jax.random.fold_in(key, index)
  delta, found = _train(plan, params, model_state, shared, batch, own)
  clip_norm, estimate = bounds
  clipped, norm, finite = clipping.clip_update(delta, clip_norm)
  if plan.grid is not None:
    rounding = jax.random.fold_in(own, _ROUNDING_STREAM)
    clipped = noise.quantize(clipped, plan.grid, key=rounding)
  here = counts != 0
  good = jnp.logical_and(here, finite)
  below = over = jnp.float32(0.0)
  if estimate is not None:
    below = clipping.below_bit(norm, estimate)
  if clip_norm is not None:
    over = (norm > clip_norm).astype(jnp.float32)
  kept = lambda x: jnp.where(good, x, jnp.zeros_like(x))
  return Sums(
    update=jax.tree.map(lambda x: kept(-x), clipped),
    below=kept(below),
    found=jax.tree.map(kept, found),
    norm=kept(norm),
    clipped=kept(over),
    finite=good.astype(jnp.float32),
    clients=here.astype(jnp.float32),
  )


def _scan_chunks(plan: Plan, state_of, bounds, shared, clients) -> Sums:
  """Sums over the clients at hand, `clients_per_chunk` updates at a time."""
  one = functools.partial(_client, plan, state_of, bounds, shared)
  size = plan.clients_per_chunk
  chunks = jax.tree.map(
    lambda x: jnp.reshape(x, (-1, size, *x.shape[1:])), clients
  )

  def run(sums, clients):
    new = jax.vmap(one)(clients)
    add = lambda total, x: total + jnp.sum(x, axis=0)
    return jax.tree.map(add, sums, new)

  def chunk(sums, clients):
    # Room that a Poisson cohort did not need costs nothing.
    there = jnp.any(clients[1] != 0)
    return jax.lax.cond(there, run, lambda sums, _: sums, sums, clients), None

  first = jax.tree.map(lambda x: x[0], clients)
  zeros = _zeros(jax.eval_shape(one, first))
  return jax.lax.scan(chunk, zeros, chunks)[0]


def _split_cohort(plan: Plan, cohort: types.Batch):
  """`(scalars for all, (index, client mask, examples))` of a cohort."""
  if not isinstance(cohort, Mapping):
    raise ValueError(f"the cohort is a {type(cohort).__name__}, not a dict.")
  cohort = dict(cohort)
  counts = cohort.pop(plan.client_mask, None)
  shared = {n: x for n, x in cohort.items() if jnp.ndim(x) == 0}
  clients = {n: x for n, x in cohort.items() if n not in shared}
  sizes = {p: jnp.shape(x)[:2] for p, x in trees.flatten(clients).items()}
  if len(set(sizes.values())) != 1 or len(next(iter(sizes.values()))) != 2:
    raise ValueError(
      "the leaves of a cohort must share their leading axes [clients, "
      f"local_steps]; got {sizes}."
    )
  num = next(iter(sizes.values()))[0]
  if counts is None:
    counts = jnp.ones((num,), jnp.float32)
  checks.same_shape(plan.client_mask, jnp.shape(counts), "clients", (num,))
  return shared, (jnp.arange(num), counts, clients)


def _check_cells(plan: Plan, num_clients: int) -> None:
  """Refuses a grid too fine for float32 to hold sums of it, and their noise."""
  if plan.grid is None:
    return
  largest = num_clients * (plan.clip_norm / plan.grid + 1)
  if largest > _MAX_CELLS:
    raise sums_lib.RoundedAway(
      f"grid={plan.grid} is not allowed with clip_norm={plan.clip_norm} and "
      f"{num_clients} clients: their sum could reach {largest:.6g} cells, and "
      f"float32 is exact up to {_MAX_CELLS} with the noise on top."
    )


def _num_shards(axis: str) -> int:
  """Devices along the axis of the mesh in force; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else dict(mesh.shape).get(axis, 1)


def sum_clients(plan: Plan, state, cohort, bounds, key) -> Sums:
  """The sums over the whole cohort, over all devices.

  Args:
    plan: the settings.
    state: the server's; clients start from its `params` and `model_state`.
    cohort: see `rounds.make_step`.
    bounds: `(C, the norm that the count asks about)`, each None or `[]`.
    key: client i has the key `fold_in(key, i)`.

  Returns:
    Sums that are the same on every device.

  Raises:
    ValueError: a cohort of wrong shapes, or of clients that do not divide.
  """
  shared, clients = _split_cohort(plan, cohort)
  _check_cells(plan, len(clients[0]))
  num_shards = _num_shards(plan.axis)
  checks.divisible(
    "number of clients",
    len(clients[0]),
    f"mesh axis {plan.axis!r} * clients_per_chunk",
    num_shards * plan.clients_per_chunk,
  )
  everywhere = ((state.params, state.model_state, key), bounds, shared)
  local = functools.partial(_scan_chunks, plan)
  if num_shards == 1:
    return local(*everywhere, clients)
  replicated, along = jax.P(), jax.P(plan.axis)
  # Without the types of varying values a loss need not know that it is mapped.
  return jax.shard_map(
    lambda *args: jax.lax.psum(local(*args), plan.axis),
    in_specs=(replicated, replicated, replicated, along),
    out_specs=replicated,
    axis_names={plan.axis},
    check_vma=False,
  )(*everywhere, clients)
