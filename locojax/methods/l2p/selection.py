"""Which prompts of a pool an input gets, as pure functions.

Cosine similarity of a query and the keys; the top N keys, example by example
(arXiv 2112.08654, eq. 3), with a penalty on what earlier tasks used (eq. 4), by
one vote of a batch (as released), or forced. The choice has no gradient. Keys
learn from `key_surrogate_loss` alone; queries never get a gradient.

Letters: B examples, M prompts of the pool, N chosen, C size of a key.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks

MODES = ("instance", "batch", "forced")
REDUCTIONS = ("sum", "mean")
_EPSILON = 1e-12


class PromptSelection(NamedTuple):
  """The chosen prompts of a batch.

  Attributes:
    ids: `[B, N]` int32, best first; after a vote the most frequent first.
    similarity: `[B, M]` cosines with all keys, gradient stopped.
    key_similarity: `[B, N]` cosines with the chosen keys; the gradient goes
      into the keys, not into the query.
  """

  ids: jax.Array
  similarity: jax.Array
  key_similarity: jax.Array


def unit_rows(x: ArrayLike, *, epsilon: float = _EPSILON) -> jax.Array:
  """v / |v| as v rsqrt(max(v.v, epsilon)), so that 0 stays 0.

  Args:
    x: `[..., C]`; computed in float32 or wider.
    epsilon: smallest squared norm.
  """
  x = jnp.asarray(x)
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, epsilon))


def _known(*arrays) -> bool:
  return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def check_frequency(frequency: ArrayLike, pool_size: int) -> jax.Array:
  """`[M]` numbers, none negative; values are seen unless traced."""
  checks.same_shape("frequency", jnp.shape(frequency), "keys", (pool_size,))
  if _known(frequency):
    values = np.asarray(frequency)
    wrong = values[~(values >= 0)]  # NaN too
    if wrong.size:
      raise ValueError(
        f"frequency has {wrong[:4].tolist()}, which is not allowed: it must "
        "be 0 or more."
      )
  return jnp.asarray(frequency)


def _check_forced(forced_ids, batch: int, top_k: int, pool_size: int):
  """`[B, N]` int32 of `[N]` or `[B, N]` ids."""
  ids = checks.index_array("forced_ids", forced_ids)
  if ids.shape not in ((top_k,), (batch, top_k)):
    raise ValueError(
      f"forced_ids has shape {ids.shape}: it must be [{top_k}] or "
      f"[{batch}, {top_k}]."
    )
  if _known(ids):
    rows = np.atleast_2d(np.asarray(ids))
    free = (rows == -1).all(axis=-1, keepdims=True)
    wrong = rows[((rows < 0) | (rows >= pool_size)) & ~free]
    if wrong.size:
      raise ValueError(
        f"forced_ids has {wrong[:8].tolist()}, which are not allowed: they "
        f"must be in [0, {pool_size - 1}] (or -1 throughout a row, which "
        "forces nothing)."
      )
  return jnp.broadcast_to(ids, (batch, top_k))


def _check_shapes(query, keys, top_k: int) -> None:
  for name, x in (("query", query), ("keys", keys)):
    if jnp.ndim(x) != 2:
      raise ValueError(
        f"{name} has shape {jnp.shape(x)}: it must be [rows, size of a key]."
      )
  if query.shape[1] != keys.shape[1]:
    raise ValueError(
      f"query has size {query.shape[1]} and keys have size {keys.shape[1]}: "
      "they must be equal."
    )
  checks.positive_int("top_k", top_k)
  if top_k > keys.shape[0]:
    checks.refuse("top_k", top_k, f"at most pool_size={keys.shape[0]}")


def _top(scores: jax.Array, top_k: int) -> jax.Array:
  """Ids of the largest, ties to the lower id; -0 is 0."""
  scores = jnp.where(scores == 0, 0, scores)
  return jax.lax.top_k(scores, top_k)[1].astype(jnp.int32)


def _vote(ids, pool_size, mask, groups, axis_name) -> jax.Array:
  """Of each part of the batch the N most frequent ids, for all its rows."""
  batch, top_k = ids.shape
  checks.divisible("batch", batch, "vote_groups", groups)
  hits = jax.nn.one_hot(ids, pool_size, dtype=jnp.int32).sum(axis=1)
  if mask is not None:
    hits = jnp.where((mask != 0)[:, None], hits, 0)
  counts = hits.reshape(groups, batch // groups, pool_size).sum(axis=1)
  if axis_name is not None:
    counts = jax.lax.psum(counts, axis_name)
  return jnp.repeat(_top(counts, top_k), batch // groups, axis=0)


def select_prompts(
  query: ArrayLike,
  keys: ArrayLike,
  top_k: int,
  *,
  frequency: ArrayLike | None = None,
  mode: str = "instance",
  forced_ids: ArrayLike | None = None,
  mask: ArrayLike | None = None,
  vote_groups: int = 1,
  axis_name: str | tuple[str, ...] | None = None,
) -> PromptSelection:
  """The N prompts of each example, by the cosine of its query and the keys.

  * `instance`: the N keys of largest cosine, ties to the lower id. With
    `frequency` h those of smallest (1 - cosine) h, eq. (4), for training.
  * `batch`: every example votes with its N; all get the N ids with most votes,
    ties to the lower id. What an example gets then depends on the others, so
    at test it tells which task the batch is from.
  * `forced`: `forced_ids`, in their order; a row of -1 forces nothing.

  Args:
    query: `[B, C]`; its gradient is stopped.
    keys: `[M, C]`. A key of zeros has similarity 0 with everything.
    top_k: N.
    frequency: `[M]`, 0 or more; see `normalize_frequency`.
    mode: one of `MODES`.
    forced_ids: `[N]` or `[B, N]` integers. In traced code an id outside the
      pool is not seen here.
    mask: `[B]`, zero at padding, which does not vote.
    vote_groups: equal consecutive parts of the batch that vote apart: 1 for the
      whole (global) batch, the number of data shards for a vote in each.
    axis_name: inside `shard_map`, the axes over which votes are added.

  Returns:
    A `PromptSelection`.

  Raises:
    ValueError: sizes that do not fit, N above M, an unknown mode, forced ids
      that are missing or outside, a negative frequency.

  >>> keys = jnp.array([[1.0, 0], [0, 1], [1, 1]])
  >>> select_prompts(jnp.array([[2.0, 1]]), keys, 2).ids.tolist()
  [[2, 0]]
  """
  query, keys = jnp.asarray(query), jnp.asarray(keys)
  _check_shapes(query, keys, top_k)
  checks.one_of("mode", mode, MODES)
  checks.positive_int("vote_groups", vote_groups)
  _check_mode(mode, forced_ids)
  batch, pool_size = query.shape[0], keys.shape[0]
  if mask is not None:
    checks.same_shape("mask", jnp.shape(mask), "the batch", (batch,))
    mask = jnp.asarray(mask)
  query = jax.lax.stop_gradient(arrays.kept(query, mask))
  cosine = unit_rows(query) @ unit_rows(keys).T
  scores = similarity = jax.lax.stop_gradient(cosine)
  if frequency is not None:
    scores = -(1 - similarity) * check_frequency(frequency, pool_size)
  ids = _top(scores, top_k)
  if mode == "batch":
    ids = _vote(ids, pool_size, mask, vote_groups, axis_name)
  elif mode == "forced":
    forced = _check_forced(forced_ids, batch, top_k, pool_size)
    ids = jnp.where((forced == -1).all(axis=-1, keepdims=True), ids, forced)
  chosen = jnp.take_along_axis(cosine, ids, axis=-1)
  return PromptSelection(ids, similarity, chosen)


def _check_mode(mode: str, forced_ids) -> None:
  if (mode == "forced") != (forced_ids is not None):
    raise ValueError(
      f"mode={mode!r} is not allowed with forced_ids="
      f"{'None' if forced_ids is None else '...'}: forced_ids come with mode="
      "'forced' and only with it."
    )


def task_prompt_ids(
  task_id: ArrayLike, *, top_k: int, pool_size: int
) -> jax.Array:
  """Slot t of a pool, ids [tN, (t + 1) N), to force on task t.

  The released stand-in for eq. (4) (`use_prompt_mask`), and the E-prompt of a
  task in DualPrompt. It uses the task id in training.

  Args:
    task_id: `[...]` integers; traced or not.
    top_k: N.
    pool_size: M.

  Returns:
    `[..., N]` int32; -1 throughout a row whose slot lies beyond the pool, for
    which `select_prompts` selects as usual.

  >>> task_prompt_ids([1, 2], top_k=2, pool_size=4).tolist()
  [[2, 3], [-1, -1]]
  """
  checks.positive_int("top_k", top_k)
  checks.positive_int("pool_size", pool_size)
  task = checks.index_array("task_id", task_id)[..., None]
  fits = (task >= 0) & (task < pool_size // top_k)
  slot = jnp.where(fits, task, 0) * top_k
  return jnp.where(fits, slot + jnp.arange(top_k, dtype=jnp.int32), -1)


def reduced_similarity(
  selection: PromptSelection, reduction: str = "sum"
) -> jax.Array:
  """`[B]`: cosines of each example with its N keys, summed or averaged."""
  checks.one_of("reduction", reduction, REDUCTIONS)
  reduce = jnp.sum if reduction == "sum" else jnp.mean
  return reduce(selection.key_similarity, axis=-1)


def key_surrogate_loss(
  selection: PromptSelection,
  reduction: str = "sum",
  *,
  mask: ArrayLike | None = None,
) -> jax.Array:
  """What pulls chosen keys to their queries: -1/B sum_b sum_n cos(q_b, k_bn).

  The second term of eq. (5) without its constant N, as released: the loss is
  `cross_entropy + weight * key_surrogate_loss(selection)`. Its gradient in a
  key is orthogonal to the key, so plain SGD never shortens one.

  Args:
    selection: from `select_prompts`.
    reduction: over the N keys of an example, `sum` (paper, code) or `mean`.
    mask: `[B]`, weights of the examples; None counts all.

  Returns:
    `[]`; 0 where no example counts.
  """
  each = reduced_similarity(selection, reduction)
  if mask is None:
    return -jnp.mean(each)
  mask = jnp.asarray(mask).astype(each.dtype)
  checks.same_shape("mask", mask.shape, "the batch", each.shape)
  total, weight = jnp.sum(jnp.where(mask != 0, each, 0) * mask), jnp.sum(mask)
  return -total / jnp.where(weight > 0, weight, 1)


def orthogonality_penalty(
  rows: ArrayLike, *, normalize: bool = False
) -> jax.Array:
  """mean((T T' - I)^2), small where rows point in different directions.

  Of CODA-Prompt (arXiv 2211.13218); with `normalize` it pushes the keys of a
  pool apart whatever their length.

  Args:
    rows: `[M, C]`.
    normalize: whether rows are made unit vectors first.
  """
  if jnp.ndim(rows) != 2:
    raise ValueError(f"rows has shape {jnp.shape(rows)}: it must be [M, C].")
  rows = unit_rows(rows) if normalize else jnp.asarray(rows)
  rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
  return jnp.mean(jnp.square(rows @ rows.T - jnp.eye(rows.shape[0])))


def update_frequency(
  counts: ArrayLike,
  ids: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
  """Counts of how often each prompt was chosen, with a batch more.

  Args:
    counts: `[M]` integers (or floats).
    ids: `[B, N]` int32.
    mask: `[B]`, zero at padding, which counts nowhere.
    axis_name: inside `shard_map`, the axes over which the batch is cut.

  Returns:
    `[M]`, the dtype kept.

  >>> update_frequency(jnp.zeros(3, jnp.int32), jnp.array([[2, 0]])).tolist()
  [1, 0, 1]
  """
  counts = checks.array("counts", counts)
  ids = checks.index_array("ids", ids)
  hits = jax.nn.one_hot(ids, counts.shape[0], dtype=counts.dtype)
  hits = hits.sum(axis=tuple(range(1, ids.ndim)))
  if mask is not None:
    checks.same_shape("mask", jnp.shape(mask), "the batch", ids.shape[:1])
    hits = jnp.where((jnp.asarray(mask) != 0)[:, None], hits, 0)
  new = hits.sum(axis=0, dtype=counts.dtype)
  if axis_name is not None:
    new = jax.lax.psum(new, axis_name)
  return counts + new


def normalize_frequency(counts: ArrayLike, smoothing: float = 1.0) -> jax.Array:
  """h of eq. (4): (count + s) / (sum + s M), which sums to 1.

  The paper does not say how h is normalised. With s = 1 it is uniform in the
  first task, where eq. (4) is then eq. (3); with s = 0 it is uniform only while
  nothing is counted, and a prompt never used has h = 0, before all others.

  Args:
    counts: `[M]`, of earlier tasks.
    smoothing: s, 0 or more.

  Returns:
    `[M]` float32.

  >>> normalize_frequency(jnp.array([3, 0])).tolist()
  [0.800000011920929, 0.20000000298023224]
  """
  checks.nonnegative("smoothing", smoothing)
  counts = check_frequency(checks.array("counts", counts), jnp.size(counts))
  counts = counts.astype(jnp.float32) + smoothing
  total = jnp.sum(counts)
  uniform = jnp.full_like(counts, 1 / counts.size)
  return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), uniform)
