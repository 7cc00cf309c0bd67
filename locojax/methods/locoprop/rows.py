"""Rows of a local problem: flattening, masks, sub-sampling."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from locojax.core import mesh, types
from locojax.methods.locoprop import taps


def dtype_of(params: types.PyTree) -> jnp.dtype:
  """What a layer's local problem is computed in: float32, or its float64."""
  return jnp.result_type(jnp.float32, *jax.tree.leaves(params))


def cast(tree: types.PyTree, dtype=None) -> types.PyTree:
  """A tree of one layer in `dtype`, or in its own `dtype_of`."""
  dtype = dtype_of(tree) if dtype is None else dtype
  return jax.tree.map(lambda x: x.astype(dtype), tree)


def count(record: taps.LayerRecord) -> int:
  """Rows of the local problem: dense leading sizes, else examples."""
  if record.kind == "dense":
    return math.prod(record.preact.shape[:-1])
  return record.preact.shape[0]


def kept(record: taps.LayerRecord) -> int | jax.Array:
  """`count` without the masked rows."""
  num = count(record)
  if record.row_mask is None:
    return num
  return jnp.sum(record.row_mask != 0) * (num // record.row_mask.size)


def flatten(record: taps.LayerRecord) -> taps.LayerRecord:
  """The record with the leading axes of a dense layer made rows."""
  if record.kind != "dense":
    return record
  flat = lambda x: x.reshape(-1, x.shape[-1])
  return dataclasses.replace(
    record,
    inputs=tuple(flat(x) for x in record.inputs),
    preact=flat(record.preact),
    preact_grad=flat(record.preact_grad),
    row_mask=_flat_mask(record),
  )


def _flat_mask(record: taps.LayerRecord) -> jax.Array | None:
  """The mask of examples, one entry for each flattened row."""
  if record.row_mask is None:
    return None
  lead = record.preact.shape[:-1]
  mask = record.row_mask.reshape(-1, *(1,) * (len(lead) - 1))
  return jnp.broadcast_to(mask, lead).reshape(-1)


def masked(x: jax.Array, mask: jax.Array | None) -> jax.Array:
  """`x` with the rows that do not count at zero, whatever they held."""
  if mask is None:
    return x
  return jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)) != 0, x, 0)


def in_dtype(record: taps.LayerRecord, dtype) -> taps.LayerRecord:
  """The record as its local problem sees it.

  Floating arrays and what the layer computes are in `dtype`; rows that do not
  count are zero everywhere, so that nothing they held can reach a sum.
  """
  arrays = seen(
    (record.inputs, record.preact, record.preact_grad), record.row_mask, dtype
  )
  inputs, preact, preact_grad = arrays
  return dataclasses.replace(
    record,
    inputs=inputs,
    preact=preact,
    preact_grad=preact_grad,
    affine=taps.in_dtype(record.affine, dtype),
  )


def seen(tree: types.PyTree, mask: jax.Array | None, dtype) -> types.PyTree:
  """Floating leaves in `dtype`, masked where their leading axis is rows."""

  def one(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    rows_ = mask is not None and x.shape[:1] == (mask.size,)
    return masked(x.astype(dtype), mask if rows_ else None)

  return jax.tree.map(one, tree)


def stride(num_rows: int, max_rows: int | None) -> int:
  """Every which row is seen."""
  return max(1, num_rows // max_rows) if max_rows else 1


def grouped(x: jax.Array, step: int) -> jax.Array:
  """`[N, ...]` to `[N // step, step, ...]`, so that a column is a sample.

  Strides keep shards in place: the rows of a sample lie on their devices.
  """
  size = x.shape[0] // step
  return x[: size * step].reshape(size, step, *x.shape[1:])


def gather(x: jax.Array, first: int, num: int) -> jax.Array:
  """Some columns of grouped rows, on every device."""
  return mesh.constrain(x[:, first : first + num], None)


def pick(x: jax.Array | None, column) -> jax.Array | None:
  """One column of grouped rows."""
  if x is None:
    return None
  return jax.lax.dynamic_index_in_dim(x, column, 1, keepdims=False)
