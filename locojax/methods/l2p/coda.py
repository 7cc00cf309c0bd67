"""CODA-Prompt: components weighed by attention, no choice of prompts.

Smith et al., "CODA-Prompt: COntinual Decomposed Attention-based Prompting for
Rehearsal-Free Continual Learning", arXiv 2211.13218:

  alpha_m = cos(q * A_m, K_m),   p = sum_m alpha_m P_m,

the first half of p's tokens being extra keys, the second half extra values.
A task owns the components [start, stop): those before get no gradient, those
after have no weight, so how many there are to come changes nothing. An
optimiser with momentum must be begun anew for a task, or it would move those
before on.

Letters: B examples, M components, P tokens, Y layers, E size, H heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike

from locojax.core import checks
from locojax.methods.l2p import pool, selection

Components = tuple[ArrayLike, ArrayLike]


@dataclasses.dataclass(frozen=True)
class CodaConfig:
  """Components and their initialiser.

  Attributes:
    num_components: M, room for those of all tasks.
    length: P, even: half of it are keys, half values.
    num_layers: Y, blocks that get a prefix, each with its own components.
    init: a name in `pool.INITIALIZERS` or a callable; `start_components` makes
      those of a task anew.

  Raises:
    ValueError: a setting that is not allowed.
  """

  num_components: int = 100
  length: int = 8
  num_layers: int = 5
  init: str | Callable[..., jax.Array] = "normal"

  def __post_init__(self):
    for name in ("num_components", "length", "num_layers"):
      checks.positive_int(name, getattr(self, name))
    checks.divisible("length", self.length, "halves", 2)
    pool.initializer("init", self.init)


def _freeze_old(x: jax.Array, start: ArrayLike) -> jax.Array:
  """`[Y, M, ...]` with no gradient in the components before `start`."""
  index = jnp.arange(x.shape[1])
  old = index.reshape(1, -1, *(1,) * (x.ndim - 2)) < start
  return jnp.where(old, jax.lax.stop_gradient(x), x)


def component_weights(
  query: jax.Array, attention: jax.Array, keys: jax.Array
) -> jax.Array:
  """alpha: `[B, E]`, `[M, E]`, `[M, E]` to `[B, M]` cosines.

  The gradient into the query is stopped.
  """
  attended = jax.lax.stop_gradient(query)[:, None] * attention
  left, right = selection.unit_rows(attended), selection.unit_rows(keys)
  return jnp.einsum("bme,me->bm", left, right)


def check_components(components: Components | None, num: int) -> Components:
  """`(start, stop)` with 0 <= start < stop <= M; values seen unless traced."""
  if components is None:
    return 0, num
  start, stop = components
  if not any(isinstance(x, jax.core.Tracer) for x in (start, stop)):
    checks.int_in_range("stop of components", int(stop), 1, num)
    checks.int_in_range("start of components", int(start), 0, int(stop) - 1)
  return start, stop


class CodaPrompts(nn.Module):
  """Parameters `prompt` `[Y, M, P, E]`, `key` and `attention` `[Y, M, E]`.

  Attributes:
    config: sizes.
    size: E.
    num_heads: H; it divides E.
  """

  config: CodaConfig
  size: int
  num_heads: int

  @nn.compact
  def __call__(
    self, query: jax.Array, *, components: Components | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Keys and values of each layer, `[Y, B, P / 2, H, E / H]` each.

    Args:
      query: `[B, E]`.
      components: `(start, stop)` of the task at hand, integers or traced; at
        test only `stop` matters. None trains and uses all.

    Raises:
      ValueError: a query of another size, heads that do not divide, or
        components that are not in the pool.
    """
    config = self.config
    checks.divisible("size", self.size, "num_heads", self.num_heads)
    checks.same_shape("query", query.shape[1:], "a key", (self.size,))
    start, stop = check_components(components, config.num_components)
    init = pool.initializer("init", config.init)
    lead = (config.num_layers, config.num_components)
    prompt = self.param("prompt", init, (*lead, config.length, self.size))
    key = self.param("key", init, (*lead, self.size))
    attention = self.param("attention", init, (*lead, self.size))
    prompt, key, attention = (
      _freeze_old(x, start) for x in (prompt, key, attention)
    )
    alpha = jax.vmap(component_weights, (None, 0, 0))(query, attention, key)
    alpha = jnp.where(jnp.arange(config.num_components) < stop, alpha, 0)
    mixed = jnp.einsum("ybm,ympe->ybpe", alpha, prompt)
    heads = (self.num_heads, self.size // self.num_heads)
    mixed = mixed.reshape(*mixed.shape[:-1], *heads)
    half = config.length // 2
    return mixed[:, :, :half], mixed[:, :, half:]


def orthogonality(
  params: Any, components: Components | None = None
) -> jax.Array:
  """sum over prompts, keys, attention and layers of mean((T T' - I)^2).

  T holds the components up to `stop`, those before `start` as constants.

  Args:
    params: of `CodaPrompts`: `prompt`, `key`, `attention`.
    components: as there.
  """
  start, stop = check_components(components, params["key"].shape[1])

  def penalty(x):
    x = _freeze_old(x.reshape(*x.shape[:2], -1), start)
    live = jnp.arange(x.shape[1]) < stop
    error = jnp.einsum("yme,yne->ymn", x, x) - jnp.eye(x.shape[1])
    error = jnp.where(live[:, None] & live[None], error, 0)
    return jnp.sum(jnp.square(error)) / jnp.square(jnp.asarray(stop, x.dtype))

  return sum(penalty(params[name]) for name in ("prompt", "key", "attention"))


def _gram_schmidt(rows, start: int, stop: int, key: jax.Array) -> jax.Array:
  """`[M, C]` with new unit rows [start, stop), orthogonal to all before."""
  new = jax.random.normal(key, (stop - start, rows.shape[-1]), jnp.float32)
  spanned = jnp.concatenate([rows[:start].astype(jnp.float32), new])
  basis, _ = jnp.linalg.qr(spanned.T)
  return rows.at[start:stop].set(basis.T[start:stop].astype(rows.dtype))


def start_components(
  params: Any, components: tuple[int, int], key: jax.Array
) -> Any:
  """New components for a task, by Gram-Schmidt in each layer.

  Rows [start, stop) of prompts (flat), keys and attention become orthonormal
  and orthogonal to all before; what comes after is not looked at.

  Args:
    params: a dict with `CodaPrompts` at `prompt_pool`.
    components: `(start, stop)`, integers.
    key: typed PRNG key of the task.

  Returns:
    The parameters, these rows changed.

  Raises:
    ValueError: no such parameters, components outside the pool, or more than
      a vector has entries.
  """
  inner = params.get("prompt_pool", {})
  if set(inner) != {"prompt", "key", "attention"}:
    raise ValueError(
      f"prompt_pool has the names {sorted(inner)}: it must be that of "
      "CODA-Prompt, with prompt, key and attention."
    )
  start, stop = check_components(components, inner["key"].shape[1])
  checks.int_in_range("stop of components", stop, 1, inner["key"].shape[-1])
  new = {}
  for i, name in enumerate(sorted(inner)):
    old = jnp.asarray(inner[name])
    flat = old.reshape(*old.shape[:2], -1)
    keys = jax.random.split(jax.random.fold_in(key, i), len(flat))
    made = [_gram_schmidt(x, start, stop, k) for x, k in zip(flat, keys)]
    new[name] = jnp.stack(made).reshape(old.shape)
  return {**params, "prompt_pool": new}
