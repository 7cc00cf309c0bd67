"""Sharding hints that vanish without a mesh."""

from __future__ import annotations

import jax


def constrain(x: jax.Array, *axes) -> jax.Array:
  """Asks that `x` be laid out by mesh axes; a no-op without a mesh.

  Args:
    x: any array.
    *axes: one entry for each leading axis of `x`: the name of a mesh axis, a
      tuple of names, or None. Names that the mesh lacks are dropped, so a
      module may name `model` and still run on a mesh of `data` alone.

  Returns:
    `x`, with a `with_sharding_constraint` when `jax.set_mesh` is active.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x

  def known(axis):
    if axis is None:
      return None
    names = axis if isinstance(axis, tuple) else (axis,)
    kept = tuple(n for n in names if n in mesh.axis_names)
    return kept if len(kept) > 1 else (kept[0] if kept else None)

  spec = jax.sharding.PartitionSpec(*(known(a) for a in axes))
  return jax.lax.with_sharding_constraint(x, spec)
