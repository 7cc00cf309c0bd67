"""Which token goes to which expert, as pure functions.

Top-k routing with capacity, in array order or in order of the router's
confidence (Batch Prioritized Routing), expert choice, and Soft MoE. All work on
one routing group of S tokens; leading group axes are `jax.vmap`ped by callers.

Sources: Riquelme et al., "Scaling Vision with Sparse Mixture of Experts",
arXiv 2106.05974; Mustafa et al., "Multimodal Contrastive Learning with LIMoE",
arXiv 2206.02770; Zhou et al., expert choice, arXiv 2202.09368; Puigcerver et
al., Soft MoE, arXiv 2308.00951.

Letters: S tokens of a group, E experts, K experts a token, C places of an
expert, D model size, P slots of an expert (Soft MoE).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from locojax.core import arrays, checks
from locojax.methods.limoe import contrastive

PRIORITIES = ("none", "max", "sum")
ROUNDINGS = ("ceil", "round")


class Assignment(NamedTuple):
  """Where the tokens of a group go.

  Attributes:
    expert: `[S, K]` int32, the chosen experts, best first.
    position: `[S, K]` int32, place in the expert's queue, at or above the
      capacity for what is dropped; -1 for tokens that are not routed.
    kept: `[S, K]` bool.
    weight: `[S, K]` gates of the chosen experts (not renormalised); gradients
      flow through them alone.
  """

  expert: jax.Array
  position: jax.Array
  kept: jax.Array
  weight: jax.Array


class ExpertChoice(NamedTuple):
  """Which tokens the experts take.

  Attributes:
    token: `[E, C]` int32.
    weight: `[E, C]` gates.
  """

  token: jax.Array
  weight: jax.Array


def compute_capacity(
  num_tokens: int,
  num_experts: int,
  capacity_factor: float,
  *,
  top_k: int = 1,
  rounding: str = "ceil",
  multiple_of: int = 4,
) -> int:
  """Places of each expert for a group: S K cf / E, rounded.

  Args:
    num_tokens: S.
    num_experts: E.
    capacity_factor: cf; 1 has just enough places for balanced routing.
    top_k: K.
    rounding: `ceil` or `round`.
    multiple_of: the result is rounded up to a multiple of this.

  Returns:
    C. The factor that it amounts to is `C E / (S K)`.

  Raises:
    ValueError: a bad argument, or C below 1.

  >>> compute_capacity(512, 8, 1.05), compute_capacity(512, 32, 1.05)
  (68, 20)
  """
  checks.positive_int("num_tokens", num_tokens)
  checks.positive_int("num_experts", num_experts)
  checks.positive("capacity_factor", capacity_factor)
  checks.in_range("top_k", top_k, 1, num_experts)
  checks.one_of("rounding", rounding, ROUNDINGS)
  checks.positive_int("multiple_of", multiple_of)
  exact = num_tokens * top_k * capacity_factor / num_experts
  # A product such as 1.05 * 160 is a little above the integer that it means.
  places = math.ceil(exact - 1e-9) if rounding == "ceil" else round(exact)
  if places < 1:
    raise ValueError(
      f"capacity_factor={capacity_factor} is not allowed with {num_tokens} "
      f"tokens and {num_experts} experts: the capacity must be at least 1."
    )
  return -(-places // multiple_of) * multiple_of


def _order(
  top: jax.Array, priority: str | jax.Array, valid: jax.Array | None
) -> jax.Array:
  """`[S]`: tokens in the order in which they are served (stable)."""
  if isinstance(priority, str):
    checks.one_of("priority", priority, PRIORITIES)
    if priority == "none":
      score = jnp.zeros(len(top), jnp.float32)
    else:
      score = top[:, 0] if priority == "max" else top.sum(axis=1)
  else:
    checks.same_shape("priority", priority.shape, "tokens", top.shape[:1])
    score = priority
  score = jax.lax.stop_gradient(score)
  if valid is not None:
    score = jnp.where(valid, score, -jnp.inf)
  return jnp.argsort(-score, stable=True)


def route_top_k(
  gates: jax.Array,
  *,
  top_k: int,
  capacity: int | None,
  priority: str | jax.Array = "none",
  valid: jax.Array | None = None,
  selection: jax.Array | None = None,
) -> Assignment:
  """Each token's K best experts, as far as these have places.

  All first choices are served in order, then all second ones, and so on. Ties
  of experts go to the lower index, those of tokens to the earlier one. An
  expert keeps `min(demand, C)` whatever the order: priority decides who is
  kept, not how many.

  Args:
    gates: `[S, E]`, softmax of the router's (noisy) logits.
    top_k: K.
    capacity: C; None is dropless.
    priority: `none`: array order. `max`: Batch Prioritized Routing, larger
      first gates first. `sum`: the same by the sum of the K gates. Or `[S]`
      scores, larger first. Not causal: never in autoregressive decoding.
    valid: `[S]` bool: others take no place and get no expert (none is kept),
      whatever they hold. None: all.
    selection: `[S, E]`: the experts are chosen by this instead of the gates.

  Returns:
    The assignment.

  Raises:
    ValueError: a bad argument.

  >>> gates = jnp.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
  >>> found = route_top_k(gates, top_k=1, capacity=1, priority="max")
  >>> found.expert[:, 0].tolist(), found.kept[:, 0].tolist()
  ([0, 0, 1], [False, True, True])
  """
  num_experts = gates.shape[-1]
  checks.in_range("top_k", top_k, 1, num_experts)
  gates = arrays.kept(gates, valid)
  if selection is not None:
    selection = arrays.kept(selection, valid)
  by = gates if selection is None else selection
  _, expert = jax.lax.top_k(jax.lax.stop_gradient(by), top_k)
  weight = jnp.take_along_axis(gates, expert, axis=1)
  order = _order(weight, priority, valid)
  served = expert[order].T.reshape(-1)
  wanted = jax.nn.one_hot(served, num_experts, dtype=jnp.int32)
  if valid is not None:
    wanted = wanted * jnp.tile(valid[order], top_k)[:, None]
  queue = jnp.cumsum(wanted, axis=0) * wanted
  place = queue.max(axis=1).reshape(top_k, -1).T - 1
  position = jnp.zeros_like(expert).at[order].set(place)
  kept = position >= 0
  if capacity is not None:
    kept &= position < checks.positive_int("capacity", capacity)
  return Assignment(expert, position, kept, weight)


def route_expert_choice(
  gates: jax.Array, *, capacity: int, valid: jax.Array | None = None
) -> ExpertChoice:
  """Each expert takes its C best tokens; balanced, but it sees the group.

  Args:
    gates: `[S, E]`.
    capacity: C, at most S.
    valid: `[S]` bool; the others weigh nothing, whatever they hold.

  Raises:
    ValueError: a capacity that is not in [1, S].

  >>> gates = jnp.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
  >>> route_expert_choice(gates, capacity=2).token.tolist()
  [[1, 0], [2, 0]]
  """
  checks.in_range("capacity", capacity, 1, len(gates))
  gates = arrays.kept(gates, valid)
  by = jax.lax.stop_gradient(gates)
  if valid is not None:
    by = jnp.where(valid[:, None], by, -1.0)
  _, token = jax.lax.top_k(by.T, capacity)
  weight = jnp.take_along_axis(gates.T, token, axis=1)
  if valid is not None:
    weight = jnp.where(valid[token], weight, 0.0)
  return ExpertChoice(token, weight)


def soft_moe_weights(
  x: jax.Array,
  slots: jax.Array,
  scale: jax.Array | float = 1.0,
  *,
  valid: jax.Array | None = None,
  eps: float = 1e-6,
) -> tuple[jax.Array, jax.Array]:
  """Dispatch and combine weights of Soft MoE (equations 1 and 2).

  Args:
    x: `[S, D]` tokens; a group should be one sequence, for tokens are mixed.
    slots: `[D, E, P]` parameters.
    scale: of the logits, learned.
    valid: `[S]` bool; the others are mixed into no slot and get nothing back,
      whatever they hold.
    eps: added to the norms of tokens and slots, which are made unit vectors.

  Returns:
    `(dispatch [S, E, P], combine [S, E, P])`, float32 (float64 for float64):
    the first sums to 1 over the tokens, the second over the slots of each
    token; both are 0 at the others, and everywhere if there is no token.

  >>> key = jax.random.key(0)
  >>> x, slots = jnp.ones((5, 8)), jax.random.normal(key, (8, 4, 2))
  >>> dispatch, combine = soft_moe_weights(x, slots)
  >>> dispatch.shape, bool(jnp.allclose(dispatch.sum(axis=0), 1.0))
  ((5, 4, 2), True)
  """
  x = contrastive.unit_norm(arrays.kept(x, valid), eps=eps)
  slots = contrastive.unit_norm(slots, axis=0, eps=eps)
  logits = scale * jnp.einsum("sd,dep->sep", x, slots)
  combine = arrays.kept(jax.nn.softmax(logits, axis=(1, 2)), valid)
  # The lowest number, as the softmax of infinities alone is NaN.
  lowest = float(jnp.finfo(logits.dtype).min)
  dispatch = jax.nn.softmax(arrays.kept(logits, valid, lowest), axis=0)
  return arrays.kept(dispatch, valid), combine


def update_balance_bias(
  bias: jax.Array, load: jax.Array, *, rate: float, how: str = "standard"
) -> jax.Array:
  """Bias of each expert for the choice alone, after a batch; no loss needed.

  Args:
    bias: `[..., E]`, for example a row for each modality.
    load: `[..., E]`, tokens that chose each expert.
    rate: alpha, above 0.
    how: `standard`: b - alpha (load - mean) / std. `sign`: b - alpha sign(load
      - mean).

  Raises:
    ValueError: a bad argument.

  >>> load = jnp.array([[30.0, 10.0]])
  >>> bias = update_balance_bias(jnp.zeros((1, 2)), load, rate=0.5, how="sign")
  >>> bias.tolist()
  [[-0.5, 0.5]]
  """
  checks.positive("rate", rate)
  checks.one_of("how", how, ("standard", "sign"))
  checks.same_shape("load", load.shape, "bias", bias.shape)
  load = jax.lax.stop_gradient(load.astype(jnp.float32))
  gap = load - load.mean(axis=-1, keepdims=True)
  if how == "sign":
    return bias - rate * jnp.sign(gap)
  spread = jnp.sqrt(jnp.square(gap).mean(axis=-1, keepdims=True))
  return bias - rate * gap / jnp.maximum(spread, 1e-6)
