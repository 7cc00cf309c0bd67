"""How a pool is used: histograms, entropy, how many prompts are alive.

Selection tends to collapse on a few prompts that the first task's queries
happened to hit; these numbers say so.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from locojax.core import checks
from locojax.methods.l2p import selection


def prompt_histogram(
  ids: ArrayLike, pool_size: int, *, mask: ArrayLike | None = None
) -> jax.Array:
  """How often each prompt was chosen, `[M]` int32.

  Args:
    ids: `[B, N]` integers.
    pool_size: M.
    mask: `[B]`, zero at examples that do not count.

  >>> prompt_histogram(jnp.array([[0, 2], [2, 1]]), 4).tolist()
  [1, 1, 2, 0]
  """
  checks.positive_int("pool_size", pool_size)
  zeros = jnp.zeros(pool_size, jnp.int32)
  return selection.update_frequency(zeros, ids, mask)


def task_histograms(
  ids: ArrayLike,
  task_ids: ArrayLike,
  *,
  pool_size: int,
  num_tasks: int,
  mask: ArrayLike | None = None,
) -> jax.Array:
  """The histogram of each task, `[T, M]` int32.

  Args:
    ids: `[B, N]` integers.
    task_ids: `[B]` integers; examples of another task count nowhere.
    pool_size: M.
    num_tasks: T.
    mask: `[B]`, zero at examples that do not count.
  """
  checks.positive_int("num_tasks", num_tasks)
  tasks = checks.index_array("task_ids", task_ids)
  live = tasks[None] == jnp.arange(num_tasks)[:, None]
  if mask is not None:
    live = live & (jnp.asarray(mask) != 0)
  return jax.vmap(lambda rows: prompt_histogram(ids, pool_size, mask=rows))(
    live
  )


def usage_entropy(counts: ArrayLike) -> jax.Array:
  """Entropy of the shares over the last axis, in nats; log M if all are equal.

  Args:
    counts: `[..., M]`, 0 or more. All zeros have entropy 0.
  """
  counts = jnp.asarray(checks.array("counts", counts), jnp.float32)
  total = counts.sum(axis=-1, keepdims=True)
  share = counts / jnp.where(total > 0, total, 1)
  logs = jnp.log(jnp.where(share > 0, share, 1))
  return -jnp.sum(share * logs, axis=-1)


def num_alive(counts: ArrayLike, *, min_share: float = 0.0) -> jax.Array:
  """How many prompts have more than `min_share` of all uses, int32.

  Args:
    counts: `[..., M]`, 0 or more.
    min_share: in [0, 1); 0 counts whatever was chosen once.
  """
  checks.below("min_share", min_share, 0, 1)
  counts = jnp.asarray(checks.array("counts", counts), jnp.float32)
  total = counts.sum(axis=-1, keepdims=True)
  return jnp.sum(counts > min_share * total, axis=-1, dtype=jnp.int32)


def pool_usage(
  counts: ArrayLike, *, min_share: float = 0.0
) -> dict[str, jax.Array]:
  """The numbers of a histogram that a report shows.

  Args:
    counts: `[..., M]`.
    min_share: as in `num_alive`.

  Returns:
    `entropy` (nats), `effective` (its exponential: as many equally used
    prompts have that entropy) and `alive`.
  """
  entropy = usage_entropy(counts)
  return {
    "entropy": entropy,
    "effective": jnp.exp(entropy),
    "alive": num_alive(counts, min_share=min_share),
  }
