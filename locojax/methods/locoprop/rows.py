"""Rows of a local problem: flattening, masks, sub-sampling."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from locojax.core import mesh
from locojax.methods.locoprop import taps


def count(record: taps.LayerRecord) -> int:
  """Rows of the local problem: dense leading sizes, else examples."""
  if record.kind == "dense":
    return math.prod(record.preact.shape[:-1])
  return record.preact.shape[0]


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
