"""Dropless experts: tokens sorted by expert, products over uneven groups.

On a mesh everything happens inside `shard_map`: a plain `ragged_dot` is not
partitioned, so that every device would gather all tokens or all weights and do
the whole product. The devices along `expert` show each other their tokens
(all-gather), each runs its own experts on what they were chosen for, and the
sums go back (reduce-scatter). No weights move.

On TPU the products are a Pallas kernel (megablox), as what XLA makes of a
`ragged_dot` there depends on the version of libtpu: it may be a dense product
of E times the work, in one direction or in all.

Letters: G groups, S tokens of a group, K choices, E experts, D size, N rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from locojax.core import arrays, types
from locojax.methods.limoe import routing
from locojax.methods.limoe import rows as rows_lib

# Rows of a tile of the kernel; N is filled up to a multiple of it.
_TILE = 128
_KERNEL_DTYPES = (jnp.bfloat16, jnp.float32)
_MOST = {"rows": 512, "columns": 1024}


@dataclasses.dataclass(frozen=True)
class RaggedExperts:
  """Experts as weights and a function, so that each device can run its own.

  Attributes:
    weights: tree of arrays `[E, ...]`.
    run: `(weights of some experts, rows [N, D] in their order, sizes) -> [N,
      D]`; rows beyond the sum of the sizes may become anything.
  """

  weights: types.PyTree
  run: Callable[[types.PyTree, jax.Array, jax.Array], jax.Array]


def product(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
  """Rows of group e times `w[e]`.

  Args:
    x: `[N, D]`, the groups one after the other.
    w: `[E, D, M]`.
    sizes: `[E]` int32, rows of each group; their sum may be less than N.

  Returns:
    `[N, M]`; rows beyond the sum of the sizes are zeros.
  """
  inside = jnp.arange(len(x)) < jnp.sum(sizes)
  x = jnp.where(inside[:, None], x, 0)
  out = jax.lax.platform_dependent(
    x, w, sizes, tpu=_kernel, default=jax.lax.ragged_dot
  )
  return jnp.where(inside[:, None], out, 0)


def _side(size: int, most: int) -> int:
  """A tile that covers `size` with few, or `most`."""
  return min(most, -(-size // _TILE) * _TILE)


def _kernel(x, w, sizes, interpret=False):
  if x.dtype not in _KERNEL_DTYPES:
    return jax.lax.ragged_dot(x, w, sizes)
  from jax.experimental.pallas.ops.tpu.megablox import gmm

  num = len(x)
  side = _side(num, _MOST["rows"])
  x = jnp.pad(x, ((0, -num % side), (0, 0)))
  columns = (_side(n, _MOST["columns"]) for n in w.shape[1:])
  tiling = (side, *columns)
  return gmm(x, w, sizes, x.dtype, tiling, interpret=interpret)[:num]


def _mesh_axes() -> dict[str, int]:
  """Axes of the mesh in effect that tokens lie along, of more than one."""
  mesh = jax.sharding.get_abstract_mesh()
  sizes = {} if mesh.empty else dict(mesh.shape)
  return {n: sizes[n] for n in ("data", "expert") if sizes.get(n, 1) > 1}


def _is_cut() -> bool:
  """Whether the mesh in effect has more than one device to divide work over."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.manual_axes:
    return False
  return math.prod(mesh.shape.values()) > 1


def apply(
  x: jax.Array,
  assignment: routing.Assignment,
  experts: RaggedExperts | Callable,
  num_experts: int,
) -> jax.Array:
  """sum_k gate_k expert_k(x) of what is kept, float32.

  Args:
    x: `[G, S, D]`.
    assignment: with a leading axis G.
    experts: `RaggedExperts`; without a mesh also a function `(rows, sizes) ->
      rows`.
    num_experts: E.

  Raises:
    ValueError: on a mesh: a function, or sizes that do not divide.
  """
  weight = jnp.where(assignment.kept, assignment.weight, 0.0)
  if not _is_cut():
    run = experts
    if isinstance(experts, RaggedExperts):
      run = lambda rows, sizes: experts.run(experts.weights, rows, sizes)
    return _sorted(x, assignment.expert, weight, run, num_experts)
  if not isinstance(experts, RaggedExperts):
    raise ValueError(
      "dispatcher='ragged' on a mesh needs limoe.RaggedExperts: the weights of "
      "a function cannot be divided among devices."
    )
  return _on_mesh(x, assignment.expert, weight, experts, num_experts)


def _sorted(x, expert, weight, run, num_experts) -> jax.Array:
  """Rows sorted by expert; those of expert E, which is nobody, come last."""
  (g, s, d), top_k = x.shape, expert.shape[-1]
  chosen = expert.reshape(-1)
  order = jnp.argsort(chosen, stable=True)
  place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
  always = jnp.ones(order.shape, bool)
  rows = rows_lib.gather(
    x.reshape(g * s, d),
    always,
    order // top_k,
    jnp.ones((g * s, top_k), bool),
    place.reshape(g * s, top_k),
  )
  sizes = jnp.bincount(chosen, length=num_experts + 1)[:num_experts]
  out = run(rows, sizes.astype(jnp.int32))
  back = rows_lib.gather(out, always, place, always[:, None], order[:, None])
  back = arrays.as_float(back).reshape(g, s, top_k, -1)
  back = jnp.where(weight[..., None] != 0, back, 0.0)
  return (back * weight[..., None]).sum(axis=2)


def _on_mesh(x, expert, weight, experts, num_experts) -> jax.Array:
  axes = _mesh_axes()
  ways, cut = math.prod(axes.values()), axes.get("expert", 1)
  for name, size, by in (
    ("groups", x.shape[0], ways),
    ("num_experts", num_experts, cut),
  ):
    if size % by:
      raise ValueError(
        f"{name}={size} is not allowed with dispatcher='ragged' on a mesh of "
        f"{axes}: it must be a multiple of {by}."
      )
  tokens = jax.P(tuple(axes))
  own = jax.P("expert") if cut > 1 else jax.P()

  def part(x, expert, weight, weights):
    if cut == 1:
      run = lambda rows, sizes: experts.run(weights, rows, sizes)
      return _sorted(x, expert, weight, run, num_experts)
    return _exchanged(x, expert, weight, weights, experts.run)

  return jax.shard_map(
    part,
    in_specs=(tokens, tokens, tokens, own),
    out_specs=tokens,
    check_vma=False,
  )(x, expert, weight, experts.weights)


def _exchanged(x, expert, weight, weights, run) -> jax.Array:
  """On one device: its experts, on the tokens of all along `expert`."""
  every = lambda a: jax.lax.all_gather(a, "expert", axis=0, tiled=True)
  x, expert, weight = every(x), every(expert), every(weight)
  num = len(jax.tree.leaves(weights)[0])
  local = expert - num * jax.lax.axis_index("expert")
  mine = (local >= 0) & (local < num) & (weight != 0)
  out = _sorted(
    x,
    jnp.where(mine, local, num),
    jnp.where(mine, weight, 0.0),
    lambda rows, sizes: run(weights, rows, sizes),
    num,
  )
  return jax.lax.psum_scatter(out, "expert", scatter_dimension=0, tiled=True)
