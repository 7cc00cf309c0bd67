"""Rows of a cache: repeated, picked, put in, laid out over a mesh.

A cache is any pytree of arrays that have one row for each sequence of the
batch. `axes` says where: one number for all leaves, a tree of numbers, or None
for the convention of `locojax`: a leaf below `blocks` (a scanned stack) has
the layers first and the rows second, any other leaf has the rows first.
"""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp

from locojax.core import checks, mesh, trees, types

STACKED = r"(^|/)blocks(/|$)"
Axes = int | types.PyTree | None


def batch_axes(cache: types.PyTree, axes: Axes = None) -> types.PyTree:
  """The axis of the rows of each leaf, as a tree of integers.

  Raises:
    ValueError: a leaf that has no such axis, by its path.
  """
  if axes is None:
    axes = trees.map_with_path(
      lambda path, _: 1 if re.search(STACKED, path) else 0, cache
    )
  elif isinstance(axes, int):
    axes = jax.tree.map(lambda _: axes, cache)

  def check(path, leaf, axis):
    checks.int_in_range(f"axis of rows of {path}", axis, 0, leaf.ndim - 1)
    return axis

  return trees.map_with_path(check, cache, axes)


def check_rows(cache: types.PyTree, num_rows: int, axes: Axes = None) -> None:
  """Every leaf has `num_rows` rows.

  Raises:
    ValueError: one has not, by its path.
  """

  def check(path, leaf, axis):
    if leaf.shape[axis] != num_rows:
      raise ValueError(
        f"the cache has shape {leaf.shape} at {path!r}: axis {axis} must have "
        f"the {num_rows} rows of the batch (see `batch_axes`)."
      )

  trees.map_with_path(check, cache, batch_axes(cache, axes))


def _map(f, cache, axes, *rest):
  return jax.tree.map(f, cache, batch_axes(cache, axes), *rest)


def repeat(cache: types.PyTree, num: int, *, axes: Axes = None) -> types.PyTree:
  """Each row `num` times in turn: B rows to B * num, row b at b * num + i."""
  checks.positive_int("num", num)
  if num == 1:
    return cache
  return _map(lambda x, a: jnp.repeat(x, num, axis=a), cache, axes)


def gather(
  cache: types.PyTree, rows: jax.Array, *, axes: Axes = None
) -> types.PyTree:
  """The rows `rows` `[R]`, in this order, in [0, B): beams follow parents."""
  rows = checks.index_array("rows", rows)
  return _map(lambda x, a: jnp.take(x, rows, axis=a), cache, axes)


def gather_within(
  cache: types.PyTree, rows: jax.Array, *, axes: Axes = None
) -> types.PyTree:
  """Of B groups of rows, the rows `rows` `[B, J]` of each, counted within it.

  Beams follow parents of their own prompt; groups on several devices stay where
  they are, which `gather` cannot promise.

  Args:
    cache: of B N rows, those of group b from b * N on.
    rows: integers in [0, N).
    axes: where the rows are.

  Returns:
    The same of B J rows.
  """
  rows = checks.index_array("rows", rows)
  num = rows.shape[0]

  def take(x, axis):
    checks.divisible("rows of the cache", x.shape[axis], "groups", num)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    x = x.reshape(*before, num, -1, *after)
    one = lambda x, at: jnp.take(x, at, axis=axis)
    x = jax.vmap(one, (axis, 0), axis)(x, rows)
    return x.reshape(*before, -1, *after)

  return _map(take, cache, axes)


def insert(
  cache: types.PyTree,
  rows: jax.Array,
  new: types.PyTree,
  *,
  axes: Axes = None,
) -> types.PyTree:
  """Row r of `new` in place of row `rows[r]`; those outside [0, B) are dropped.

  So that a new sequence takes the place of one that has ended.

  Args:
    cache: of B rows.
    rows: `[R]` integers, no two equal.
    new: a cache of R rows.
    axes: where the rows are, in both.
  """
  rows = checks.index_array("rows", rows)
  check_rows(new, rows.shape[0], axes)

  def put(x, axis, y):
    place = jnp.where(rows < 0, x.shape[axis], rows)  # below 0 is none, too
    at = (*(slice(None),) * axis, place)
    return x.at[at].set(y.astype(x.dtype), mode="drop")

  return _map(put, cache, axes, new)


def even(
  mesh_axis: str | tuple[str, ...] | None, num_rows: int
) -> str | tuple[str, ...] | None:
  """The axis for `shard`, or None where it would be refused for so many rows.

  So without a mesh, without such an axis, and if it does not divide the rows.
  """
  found = jax.sharding.get_abstract_mesh()
  if mesh_axis is None or found.empty:
    return None
  names = mesh_axis if isinstance(mesh_axis, tuple) else (mesh_axis,)
  if not set(names) <= set(found.axis_names):
    return None
  size = math.prod(found.shape[name] for name in names)
  return None if num_rows % size else mesh_axis


def shard(
  cache: types.PyTree,
  mesh_axis: str | tuple[str, ...] | None,
  *,
  axes: Axes = None,
) -> types.PyTree:
  """Rows laid out over an axis of the mesh; no-op for None or without a mesh.

  Raises:
    ValueError: the mesh has no such axis, or it does not divide the rows.
  """
  found = jax.sharding.get_abstract_mesh()
  if mesh_axis is None or found.empty:
    return cache
  names = mesh_axis if isinstance(mesh_axis, tuple) else (mesh_axis,)
  for name in names:
    checks.one_of("data_axis", name, found.axis_names)
  size = math.prod(found.shape[name] for name in names)

  def lay_out(x, axis):
    checks.divisible("rows of the cache", x.shape[axis], str(mesh_axis), size)
    return mesh.constrain(x, *(None,) * axis, mesh_axis)

  return _map(lay_out, cache, axes)
