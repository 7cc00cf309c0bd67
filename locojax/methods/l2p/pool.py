"""A pool of prompts with keys, and prompts that every input gets.

Prompts are tokens in front of a sequence (`prompt`, arXiv 2112.08654) or extra
keys and values of attention (`prefix`, arXiv 2204.04799).

Letters: B examples, M prompts of the pool, N chosen, P tokens of a prompt,
Y layers, E size, H heads.
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
from locojax.methods.l2p import selection as selection_lib

STYLES = ("prompt", "prefix")
PENALTIES = (None, "paper")


def _uniform(low: float, high: float) -> Callable[..., jax.Array]:
  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, low, high)

  return init


INITIALIZERS: dict[str, Callable[..., jax.Array]] = {
  "uniform_small": _uniform(0.0, 0.01),  # official
  "uniform": _uniform(-1.0, 1.0),  # of the PyTorch port
  "normal": nn.initializers.normal(0.02),
  "orthogonal": nn.initializers.orthogonal(),
  "zeros": nn.initializers.zeros,
}


def initializer(name: str, given: Any) -> Callable[..., jax.Array]:
  """An initialiser by its name in `INITIALIZERS`, or a callable as it is."""
  return given if callable(given) else checks.lookup(name, given, INITIALIZERS)


@dataclasses.dataclass(frozen=True)
class PromptPoolConfig:
  """A pool and how prompts are chosen from it.

  Attributes:
    pool_size: M.
    length: P.
    top_k: N, at most M.
    num_layers: Y, blocks that get prompts of their own; the choice is one.
    key_dim: size of a key; None takes that of the query.
    style: one of `STYLES`.
    prompt_init, key_init: a name in `INITIALIZERS` or a callable `(key, shape,
      dtype) -> array`; `lambda *_: keys` takes those of `kmeans_keys`.
    prompt_key: whether prompts have keys; else the mean of a prompt's tokens
      is its key (the paper's ablation "w/o key-value pair").
    learn_keys: whether keys get a gradient.
    selection: how prompts are chosen in training, one of
      `selection.MODES`. At test it is `instance`.
    frequency_penalty: `paper` for eq. (4) in training, None for eq. (3).
    key_loss_weight: lambda of eq. (5).

  Raises:
    ValueError: a setting that is not allowed.
  """

  pool_size: int = 10
  length: int = 5
  top_k: int = 5
  num_layers: int = 1
  key_dim: int | None = None
  style: str = "prompt"
  prompt_init: str | Callable[..., jax.Array] = "uniform_small"
  key_init: str | Callable[..., jax.Array] = "uniform_small"
  prompt_key: bool = True
  learn_keys: bool = True
  selection: str = "instance"
  frequency_penalty: str | None = None
  key_loss_weight: float = 0.5

  def __post_init__(self):
    for name in ("pool_size", "length", "top_k", "num_layers"):
      checks.positive_int(name, getattr(self, name))
    if self.top_k > self.pool_size:
      checks.refuse("top_k", self.top_k, f"at most pool_size={self.pool_size}")
    if self.key_dim is not None:
      checks.positive_int("key_dim", self.key_dim)
    checks.one_of("style", self.style, STYLES)
    initializer("prompt_init", self.prompt_init)
    initializer("key_init", self.key_init)
    checks.boolean("prompt_key", self.prompt_key)
    checks.boolean("learn_keys", self.learn_keys)
    checks.one_of("selection", self.selection, selection_lib.MODES)
    checks.one_of("frequency_penalty", self.frequency_penalty, PENALTIES)
    checks.nonnegative("key_loss_weight", self.key_loss_weight)

  @property
  def num_tokens(self) -> int:
    """Tokens of the chosen prompts in one layer, N P."""
    return self.top_k * self.length


# Settings of Split CIFAR-100.
PRESETS: dict[str, PromptPoolConfig] = {
  # google-research/l2p, configs/cifar100_l2p.py
  "official": PromptPoolConfig(
    pool_size=10, length=10, top_k=4, selection="batch", key_loss_weight=1.0
  ),
  # arXiv 2112.08654, section 5
  "paper": PromptPoolConfig(
    pool_size=10, length=5, top_k=5, key_loss_weight=0.5
  ),
  # JH-LEE-KR/l2p-pytorch
  "pytorch": PromptPoolConfig(
    pool_size=10,
    length=5,
    top_k=5,
    selection="batch",
    key_loss_weight=0.1,
    prompt_init="uniform",
    key_init="uniform",
  ),
}


def preset(name: str, **changes: Any) -> PromptPoolConfig:
  """A config of `PRESETS`, with changes.

  >>> preset("official").length, preset("paper", pool_size=20).pool_size
  (10, 20)
  """
  return dataclasses.replace(checks.lookup("preset", name, PRESETS), **changes)


def _head_size(size: int, num_heads: int | None) -> int:
  if num_heads is None:
    raise ValueError("num_heads=None is not allowed with style='prefix'.")
  return checks.divisible("size", size, "num_heads", num_heads) // num_heads


def _token_shape(style: str, length: int, size: int, num_heads: int | None):
  """Shape of one prompt: `[P, E]`, or `[2, P, H, E / H]` for a prefix."""
  if style == "prompt":
    return (length, size)
  return (2, length, num_heads, _head_size(size, num_heads))


class GeneralPrompt(nn.Module):
  """Prompts without keys, the same for every input, `[Y, 1, ...]`.

  DualPrompt's G-prompt, and the ablation "w/o prompt pool" (a single prompt).

  Attributes:
    length: P.
    num_layers: Y.
    size: E.
    style: one of `STYLES`.
    num_heads: H, for a prefix.
    prompt_init: as in `PromptPoolConfig`.
  """

  length: int
  num_layers: int
  size: int
  style: str = "prompt"
  num_heads: int | None = None
  prompt_init: str | Callable[..., jax.Array] = "uniform_small"

  @nn.compact
  def __call__(self):
    """`[Y, 1, P, E]`, or keys and values `[Y, 1, P, H, E / H]`."""
    shape = _token_shape(self.style, self.length, self.size, self.num_heads)
    init = initializer("prompt_init", self.prompt_init)
    prompt = self.param("prompt", init, (self.num_layers, *shape))
    if self.style == "prompt":
      return prompt[:, None]
    return prompt[:, None, 0], prompt[:, None, 1]


class PromptPool(nn.Module):
  """M prompts with keys: parameters `prompt` and `key`.

  `prompt` is `[Y, M, P, E]`, or `[Y, M, 2, P, H, E / H]` for a prefix (keys,
  then values); `key` is `[M, C]`.

  Attributes:
    config: sizes and choice.
    size: E of the model that gets the prompts.
    num_heads: H, for a prefix.
  """

  config: PromptPoolConfig
  size: int
  num_heads: int | None = None

  @nn.compact
  def __call__(
    self,
    query: jax.Array,
    *,
    selection_mode: str = "instance",
    frequency: ArrayLike | None = None,
    forced_ids: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    vote_groups: int = 1,
    axis_name: str | tuple[str, ...] | None = None,
  ):
    """The prompts of each example.

    Args:
      query: `[B, C]`.
      selection_mode: one of `selection.MODES`; the caller knows whether it
        trains.
      frequency, forced_ids, mask, vote_groups, axis_name: as in
        `selection.select_prompts`.

    Returns:
      Prompts `[Y, B, N P, E]`, or keys and values `[Y, B, N P, H, E / H]`; and
      the `PromptSelection`.

    Raises:
      ValueError: a query of another size than the keys; sizes that do not
        divide; as `select_prompts`.
    """
    config = self.config
    shape = _token_shape(config.style, config.length, self.size, self.num_heads)
    init = initializer("prompt_init", config.prompt_init)
    shape = (config.num_layers, config.pool_size, *shape)
    if self.has_variable("params", "key"):
      size = self.get_variable("params", "key").shape[1:]
      checks.same_shape("query", query.shape[1:], "a key", size)
    prompt = self.param("prompt", init, shape)
    chosen = selection_lib.select_prompts(
      query,
      self._keys(prompt, query),
      config.top_k,
      frequency=frequency,
      mode=selection_mode,
      forced_ids=forced_ids,
      mask=mask,
      vote_groups=vote_groups,
      axis_name=axis_name,
    )
    # Ids outside, which traced code cannot refuse, give NaN, not a neighbour.
    rows = prompt.at[:, chosen.ids].get(mode="fill", fill_value=jnp.nan)
    return _joined(rows, config.style), chosen

  def _keys(self, prompt: jax.Array, query: jax.Array) -> jax.Array:
    """`[M, C]`: learned, fixed, or the means of the prompts' tokens."""
    config = self.config
    if config.prompt_key:
      dim = query.shape[-1] if config.key_dim is None else config.key_dim
      init = initializer("key_init", config.key_init)
      keys = self.param("key", init, (config.pool_size, dim))
    else:
      rows = jnp.moveaxis(prompt, 1, 0)
      if config.style == "prefix":
        rows = rows.reshape(*rows.shape[:-2], self.size)
      keys = rows.reshape(config.pool_size, -1, self.size).mean(axis=1)
    return keys if config.learn_keys else jax.lax.stop_gradient(keys)


def _joined(rows: jax.Array, style: str):
  """`[Y, B, N, ...]` chosen prompts to what a layer takes."""
  if style == "prompt":
    return rows.reshape(*rows.shape[:2], -1, rows.shape[-1])
  flat = lambda x: x.reshape(*x.shape[:2], -1, *x.shape[-2:])
  return flat(rows[:, :, :, 0]), flat(rows[:, :, :, 1])


def share_prompts(
  params: Any,
  from_slot: int,
  to_slot: int,
  *,
  slot_size: int,
  prompts: bool = True,
  keys: bool = False,
) -> Any:
  """A task starts from the prompts (or keys) of another one's slot.

  Slot t holds the ids [tN, (t + 1) N), those forced by `task_prompt_ids`;
  `shared_prompt_pool` and `shared_prompt_key` of the released code.

  Args:
    params: a dict with the pool at `prompt_pool`.
    from_slot, to_slot: which slots.
    slot_size: N.
    prompts, keys: what is copied.

  Returns:
    The parameters, `to_slot` changed.

  Raises:
    ValueError: no pool there, a slot outside it, or nothing to copy.
  """
  checks.boolean("prompts", prompts), checks.boolean("keys", keys)
  if "prompt_pool" not in params or "prompt" not in params["prompt_pool"]:
    raise ValueError(
      f"params has the names {sorted(params)}: it must have a prompt_pool."
    )
  new = dict(params["prompt_pool"])
  if keys and "key" not in new:
    raise ValueError("keys=True is not allowed: the pool has no keys.")
  checks.positive_int("slot_size", slot_size)
  last = new["prompt"].shape[1] // slot_size - 1
  checks.int_in_range("from_slot", from_slot, 0, last)
  checks.int_in_range("to_slot", to_slot, 0, last)
  source = slice(from_slot * slot_size, (from_slot + 1) * slot_size)
  target = slice(to_slot * slot_size, (to_slot + 1) * slot_size)
  if prompts:
    old = new["prompt"]
    new["prompt"] = old.at[:, target].set(old[:, source])
  if keys:
    new["key"] = new["key"].at[target].set(new["key"][source])
  return {**params, "prompt_pool": new}


def kmeans_keys(
  queries: ArrayLike,
  pool_size: int,
  key: jax.Array,
  *,
  num_iterations: int = 20,
  mask: ArrayLike | None = None,
) -> jax.Array:
  """Keys where queries are: centres of spherical k-means.

  Centres start at different examples, drawn by `key`, and are the unit means of
  the queries that are nearest by cosine. A centre that has lost all keeps its
  place.

  Args:
    queries: `[n, C]`, such as those of the first batches.
    pool_size: M, at most n.
    key: typed PRNG key.
    num_iterations: rounds.
    mask: `[n]`, zero at rows that do not count; M or more must.

  Returns:
    `[M, C]` float32 unit vectors, for `key_init=lambda *_: keys`.

  Raises:
    ValueError: no `[n, C]`, or fewer queries than keys.
  """
  if jnp.ndim(queries) != 2:
    raise ValueError(
      f"queries has shape {jnp.shape(queries)}: it must be [n, size of a key]."
    )
  points = selection_lib.unit_rows(queries)
  num = points.shape[0]
  checks.int_in_range("pool_size", pool_size, 1, num)
  live = jnp.ones(num, bool) if mask is None else jnp.asarray(mask) != 0
  checks.same_shape("mask", live.shape, "queries", (num,))
  # A random order of the rows that count, before all others.
  order = jnp.where(live, jax.random.uniform(key, (num,)), 2.0)
  centres = points[jnp.argsort(order)[:pool_size]]

  def improve(_, centres):
    nearest = jnp.argmax(points @ centres.T, axis=-1)
    member = jax.nn.one_hot(nearest, pool_size, dtype=points.dtype)
    total = (member * live[:, None]).T @ points
    moved = jnp.sum(jnp.square(total), axis=-1, keepdims=True) > 1e-12
    return jnp.where(moved, selection_lib.unit_rows(total), centres)

  checks.positive_int("num_iterations", num_iterations)
  return jax.lax.fori_loop(0, num_iterations, improve, centres)
