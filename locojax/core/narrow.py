"""Long sums in narrow dtypes: what they cannot hold is carried on.

At 1, bfloat16 steps by 2^-7 and float16 by 2^-10, float32 at 2^24 by 2: an
addition below half of that leaves the sum as it is, however often it is made.
Averages and sums of a long run are kept in float32 or wider; where the sum is
itself an array of 16 bits (parameters), or a count that outgrows float32, what
was rounded off is kept beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


class Narrow(NamedTuple):
  """State of a transformation whose parameters have 16 bits.

  Attributes:
    inner: its own state, made for float32 parameters.
    rest: by parameter, the float32 that it could not hold; None for one that is
      float32 or wider.
  """

  inner: Any
  rest: PyTree


def is_narrow(x: Any) -> bool:
  """Whether an array is of floating numbers of fewer than 32 bits."""
  dtype = jnp.asarray(x).dtype if not hasattr(x, "dtype") else x.dtype
  return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


def wide_dtype(dtype: Any) -> Any:
  """float32 for floating dtypes of fewer bits; others as they are."""
  if not jnp.issubdtype(dtype, jnp.floating):
    return dtype
  return jnp.promote_types(dtype, jnp.float32)


def widen(tree: PyTree) -> PyTree:
  """Arrays (or shape structs) of `tree`, in float32 or wider if floating."""

  def one(x):
    if not is_narrow(x):
      return x
    if isinstance(x, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(x.shape, jnp.float32)
    return jnp.asarray(x, jnp.float32)

  return jax.tree.map(one, tree)


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
  """float32 values that `dtype` holds, nearest to `x`, even ones at a tie.

  Not `x.astype(dtype).astype(float32)`: within a program, XLA may leave such a
  pair out.
  """
  info = jnp.finfo(dtype)
  out = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=info.nmant)
  if info.nexp == 8:
    return out
  small = float(info.smallest_normal)
  unit = small * float(info.eps)
  out = jnp.where(jnp.abs(x) < small, jnp.round(x / unit) * unit, out)
  inf = jnp.copysign(jnp.inf, x).astype(x.dtype)
  return jnp.where(jnp.abs(out) > float(info.max), inf, out)


def two_sum(
  total: jax.Array, rest: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Adds `x` to the sum `total + rest`, with twice the bits of the dtype.

  Neumaier's summation: `rest` gets what `total + x` rounded off.

  Args:
    total, rest, x: of one dtype and shape.
  """
  new = total + x
  large = jnp.abs(total) >= jnp.abs(x)
  off = jnp.where(large, (total - new) + x, (x - new) + total)
  return new, rest + jnp.where(jnp.isfinite(new), off, jnp.zeros_like(off))


def add(
  param: jax.Array, update: jax.Array, rest: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What to add to a parameter of 16 bits, and what is left for later.

  Args:
    param: `[...]`, 16 bits.
    update: `[...]`, float32 or less.
    rest: `[...]` float32, of the update before.

  Returns:
    `(update, rest)`: in the parameter's dtype, and float32. `param + update` in
    that dtype, plus `rest`, is the sum with the given update and rest. A change
    that is not finite leaves no rest.
  """
  total = update.astype(jnp.float32) + rest
  old = rounded(param.astype(jnp.float32), param.dtype)
  wanted = rounded(old + total, param.dtype)
  change = rounded(wanted - old, param.dtype)
  made = rounded(old + change, param.dtype) - old
  left = total - made
  left = jnp.where(jnp.isfinite(left), left, 0.0)
  return change.astype(param.dtype), left


def carried(
  init: Callable[[PyTree], Any],
  update: Callable[..., tuple[PyTree, Any]],
  *,
  skip: Callable[[PyTree], PyTree] | None = None,
) -> tuple[Callable[[PyTree], Any], Callable[..., tuple[PyTree, Any]]]:
  """A gradient transformation that is right on parameters of 16 bits.

  It sees them, and their gradients, in float32, so that its averages are
  float32 too; what its updates say beyond 16 bits is carried on. Updates are in
  the parameters' dtype. With no parameter of 16 bits nothing changes but the
  dtype of updates, and the state is that of the transformation.

  Args:
    init, update: of an optax transformation.
    skip: parameters -> tree of bools: those that are never updated and need no
      rest.

  Returns:
    `init` and `update` of the new one. On parameters of 16 bits `update` needs
    them as its third argument.
  """

  def rest_of(params):
    still = jax.tree.map(lambda _: False, params)
    still = still if skip is None else skip(params)
    return jax.tree.map(
      lambda p, s: (
        None if s or not is_narrow(p) else jnp.zeros(jnp.shape(p), jnp.float32)
      ),
      params,
      still,
    )

  def wide_init(params):
    if not any(map(is_narrow, jax.tree.leaves(params))):
      return init(params)
    return Narrow(init(widen(params)), rest_of(params))

  def wide_update(updates, state, params=None, **extra):
    if not isinstance(state, Narrow):
      updates, state = update(widen(updates), state, params, **extra)
      return _like(updates, params), state
    if params is None:
      raise ValueError(
        "params=None is not allowed for parameters of 16 bits: `update` needs "
        "them to know what they cannot hold."
      )
    given = widen(params)
    updates, inner = update(widen(updates), state.inner, given, **extra)
    leaves, tree = jax.tree.flatten(params)
    rests = tree.flatten_up_to(state.rest)
    pairs = [
      (u.astype(p.dtype), None) if r is None else add(p, u, r)
      for p, u, r in zip(
        leaves, tree.flatten_up_to(updates), rests, strict=True
      )
    ]
    new, rest = (tree.unflatten(x) for x in zip(*pairs, strict=True))
    return new, Narrow(inner, rest)

  return wide_init, wide_update


def _like(updates: PyTree, params: PyTree | None) -> PyTree:
  """Updates in the dtypes of the parameters, where these are known."""
  if params is None:
    return updates
  return jax.tree.map(lambda p, u: u.astype(p.dtype), params, updates)
