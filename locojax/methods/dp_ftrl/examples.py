"""Privacy of single examples in an ordinary optax loop.

    sums, told = dp_ftrl.clipped_grad_sum(
      loss_of_one, params, batch, clip_norm=1.0)
    updates, opt_state = tx.update(sums, opt_state, params)

with `tx = dp_ftrl.dp_ftrl(...)`: an example is the user. Each example must come
at most k times, at least b steps apart: in batches of one order that is never
shuffled again (`FixedOrder`), k is the number of epochs and b the number of
steps of an epoch; `fixed_order_squared_sensitivity` and
`tree_squared_sensitivity` take them.

What follows the noise must be linear, as SGD with momentum is (`dp_ftrl` has
it): the noise of two steps cancels in sums of updates, so that Adam, which
divides each update by what it has seen, keeps the privacy but loses the gain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from locojax.core import checks, types
from locojax.methods.dp_ftrl import clipping


def _chunks(batch: types.Batch, num: int, chunk_size: int) -> types.Batch:
  """Leaves `[num, ...]` as `[chunks, chunk_size, ...]`, the rest zeros."""
  room = -(-num // chunk_size) * chunk_size

  def cut(x):
    x = jnp.pad(x, [(0, room - num)] + [(0, 0)] * (jnp.ndim(x) - 1))
    return x.reshape(-1, chunk_size, *x.shape[1:])

  return jax.tree.map(cut, batch)


def clipped_grad_sum(
  loss_fn: Callable[[types.PyTree, types.PyTree], jax.Array],
  params: types.PyTree,
  batch: types.Batch,
  *,
  clip_norm: float,
  mask: jax.Array | None = None,
  chunk_size: int | None = None,
) -> tuple[types.PyTree, dict[str, Any]]:
  """The sum over examples of their gradients, each of a norm of at most C.

  What `dp_ftrl`, `add_tree_noise` and `add_matrix_noise` take (arXiv
  2103.00039, algorithm 1, with examples as users).

  Args:
    loss_fn: `(params, example) -> []`, the loss of one example: `batch` without
      its leading axis. It must not look at other examples: no batch norm.
    params: floating arrays.
    batch: arrays `[examples, ...]`.
    clip_norm: C, above 0.
    mask: `[examples]`, zero at examples that count as removed (padding).
    chunk_size: examples whose gradients are alive at once; None for all.

  Returns:
    The sum, float32 or wider, like `params`; and scalars `norm` (mean before
    clipping), `clipped` (share of examples) and `not_finite` (their number,
    which count as zero).

  Raises:
    ValueError: a bad `clip_norm` or `chunk_size`, an empty batch, leaves of
      different lengths, or a loss that is no scalar.
  """
  checks.positive("clip_norm", float(clip_norm))
  sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
  if len(sizes) != 1 or sizes in ({()}, {(0,)}):
    raise ValueError(
      f"batch with leading sizes {sorted(sizes)} is not allowed: all arrays "
      "must have the same number of examples, at least one."
    )
  ((num,),) = sizes
  size = num if chunk_size is None else chunk_size
  size = min(checks.positive_int("chunk_size", size), num)
  live = jnp.ones(num, bool) if mask is None else jnp.asarray(mask) != 0
  checks.same_shape("mask", live.shape, "the batch axis", (num,))

  def one(example, alive):
    grads = jax.grad(loss_fn)(params, example)
    wide = jax.tree.map(
      lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads
    )
    clipped, norm, finite = clipping.clip_update(wide, clip_norm)
    keep = alive & finite
    told = {"norm": norm, "clipped": norm > clip_norm, "count": keep}
    told = {
      k: jnp.where(keep, v, 0).astype(jnp.float32) for k, v in told.items()
    }
    told["not_finite"] = (alive & ~finite).astype(jnp.float32)
    return jax.tree.map(lambda g: jnp.where(keep, g, 0), clipped), told

  def add(total, chunk):
    found = jax.vmap(one)(*chunk)
    total = jax.tree.map(lambda t, x: t + x.sum(axis=0), total, found)
    return total, None

  first = jax.tree.map(lambda x: x[0], batch)
  shapes = jax.eval_shape(one, first, live[0])
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  (sums, told), _ = jax.lax.scan(add, zeros, _chunks((batch, live), num, size))
  count = jnp.maximum(told.pop("count"), 1)
  shares = {name: told[name] / count for name in ("norm", "clipped")}
  return sums, {**shares, "not_finite": told["not_finite"]}
