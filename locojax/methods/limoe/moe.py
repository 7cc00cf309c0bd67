"""The mixture-of-experts layer as linen modules, for any transformer.

    y, info = MoeMlp(num_experts=8, hidden_size=2048)(x, train=True)

`info` (`RoutingInfo`) has what losses (`auxiliary`) and metrics (`reports`)
need. Routers and gates are float32 whatever the dtype of the experts (float64
for float64 tokens).

Letters: G groups, S tokens of a group, D model size, E experts, M hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from locojax.core import arrays, checks, types
from locojax.methods.limoe import dispatch, ragged, routing

ROUTERS = ("top_k", "expert_choice", "soft")
GATING = "gating"


class RoutingInfo(NamedTuple):
  """What a layer's router did.

  Attributes:
    logits: clean, `[G, S, E]` float32.
    noisy_logits: those that chose; the same without noise.
    expert, kept: `[G, S, K]` of the assignment (`expert` -1 and one column for
      Soft MoE; for expert choice the columns are the experts themselves).
    noise_std: of the noise on the logits.
  """

  logits: jax.Array
  noisy_logits: jax.Array
  expert: jax.Array
  kept: jax.Array
  noise_std: jax.Array


def _expert_init(init: Callable, share: bool) -> Callable:
  """Initialiser of `[E, ...]`: one draw for all experts, or one for each."""

  def made(key, shape, dtype=jnp.float32):
    if share:
      return jnp.broadcast_to(init(key, shape[1:], dtype), shape)
    keys = jax.random.split(key, shape[0])
    return jax.vmap(lambda k: init(k, shape[1:], dtype))(keys)

  return made


def _run(activation, dtype, weights, x, group_sizes=None) -> jax.Array:
  """`ExpertMlp`, with the weights of these or of some experts."""
  for name in ("up", "down"):
    w, b = weights[f"{name}_kernel"], weights[f"{name}_bias"]
    x, w, b = nn.dtypes.promote_dtype(x, w, b, dtype=dtype)
    if group_sizes is None:
      x = jnp.einsum("end,edm->enm", x, w) + b[:, None]
    else:
      rows = jnp.repeat(b, group_sizes, axis=0, total_repeat_length=len(x))
      x = ragged.product(x, w, group_sizes) + rows
    if name == "up":
      x = activation(x)
  return x


class ExpertMlp(nn.Module):
  """E feed-forward networks: parameters `up`, `down` with a leading E axis.

  Attributes:
    num_experts, hidden_size: E, M.
    activation: between the layers.
    share_init: all experts start alike (as in V-MoE's code).
    dtype: of the computation; None follows the input.
  """

  num_experts: int
  hidden_size: int
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  share_init: bool = True
  dtype: Any = None

  @nn.compact
  def weights(self, size: int) -> dict[str, jax.Array]:
    """The parameters, made if need be, for tokens of `size`."""
    num = self.num_experts
    kernel = _expert_init(nn.initializers.xavier_uniform(), self.share_init)
    bias = _expert_init(nn.initializers.normal(1e-6), self.share_init)
    shapes = {
      "up": ((num, size, self.hidden_size), (num, self.hidden_size)),
      "down": ((num, self.hidden_size, size), (num, size)),
    }
    out = {}
    for name, (of_kernel, of_bias) in shapes.items():
      out[f"{name}_kernel"] = self.param(f"{name}_kernel", kernel, of_kernel)
      out[f"{name}_bias"] = self.param(f"{name}_bias", bias, of_bias)
    return out

  @property
  def function(self) -> Callable[..., jax.Array]:
    """`(weights, x, group_sizes=None) -> y`, of these or of some experts."""
    return functools.partial(_run, self.activation, self.dtype)

  def as_ragged(self, size: int) -> ragged.RaggedExperts:
    """The same experts for `dispatcher="ragged"`, which divides them."""
    return ragged.RaggedExperts(self.weights(size), self.function)

  def __call__(
    self, x: jax.Array, group_sizes: jax.Array | None = None
  ) -> jax.Array:
    """`[E, N, D]` to the same; or rows `[N, D]` sorted by expert.

    Args:
      x: the tokens.
      group_sizes: `[E]` int32, rows of each expert; None for `[E, N, D]`.
    """
    return self.function(self.weights(x.shape[-1]), x, group_sizes)


class MoeMlp(nn.Module):
  """Experts with a router, in the place of a feed-forward block.

  Attributes:
    num_experts, hidden_size: E, M of each.
    top_k: K experts a token.
    router: `top_k`, `expert_choice` or `soft` (one group should then be one
      sequence).
    capacity_factor: cf of training; for `expert_choice` experts a token on
      average, for `soft` slots a token of the group that the parameters are
      made with, unless `slots_per_expert` is given. None is dropless.
    eval_capacity_factor: outside training; None (the default) is dropless, so
      that a token does not depend on what else is in its group.
    slots_per_expert: P of `soft`. The slots are parameters, so that their
      number belongs to the model: P is the same in training and outside it, for
      groups of any size. None takes what `capacity_factor` gives for the group
      at initialisation.
    multiple_of: capacities are rounded up to a multiple of this.
    group_size: tokens that are routed together; None: all of an entry of the
      leading axis.
    priority: `none`, `max` (Batch Prioritized Routing) or `sum`; in training.
    noise_std: of the logits in training, divided by E.
    dispatcher: of `dispatch.DISPATCHERS`.
    balance_rate: above 0: a bias of each expert and modality for the choice
      alone, in the collection `balance`, moves against the load by this much
      (`routing.update_balance_bias`). 0 has none.
    num_modalities: rows of that bias.
    share_init, activation, dtype: of `ExpertMlp`.

  >>> layer = MoeMlp(num_experts=4, hidden_size=16)
  >>> x = jnp.ones((1, 6, 8))  # a group of six tokens of size 8
  >>> params = layer.init(jax.random.key(0), x, train=False)
  >>> y, info = layer.apply(params, x, train=False)
  >>> y.shape, info.logits.shape, info.kept.shape
  ((1, 6, 8), (1, 6, 4), (1, 6, 1))
  """

  num_experts: int
  hidden_size: int
  top_k: int = 1
  router: str = "top_k"
  capacity_factor: float | None = 1.05
  eval_capacity_factor: float | None = None
  slots_per_expert: int | None = None
  multiple_of: int = 4
  group_size: int | None = None
  priority: str = "max"
  noise_std: float = 1.0
  dispatcher: str = "gather"
  balance_rate: float = 0.0
  num_modalities: int = 2
  share_init: bool = True
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  dtype: Any = None

  def _check(self) -> None:
    checks.positive_int("num_experts", self.num_experts)
    checks.positive_int("hidden_size", self.hidden_size)
    checks.int_in_range("top_k", self.top_k, 1, self.num_experts)
    for name in ("multiple_of", "num_modalities"):
      checks.positive_int(name, getattr(self, name))
    for name in ("capacity_factor", "eval_capacity_factor"):
      if getattr(self, name) is not None:
        checks.positive(name, getattr(self, name))
    for name in ("group_size", "slots_per_expert"):
      if getattr(self, name) is not None:
        checks.positive_int(name, getattr(self, name))
    checks.float_dtype("dtype", self.dtype)
    checks.one_of("router", self.router, ROUTERS)
    checks.one_of("priority", self.priority, routing.PRIORITIES)
    checks.one_of("dispatcher", self.dispatcher, dispatch.DISPATCHERS)
    checks.nonnegative("noise_std", self.noise_std)
    checks.nonnegative("balance_rate", self.balance_rate)
    given = self.router == "soft" and self.slots_per_expert is not None
    if self.router != "top_k" and self.capacity_factor is None and not given:
      raise ValueError(
        f"capacity_factor=None is not allowed with router={self.router!r}."
      )
    if self.router != "soft" and self.slots_per_expert is not None:
      raise ValueError(
        f"slots_per_expert={self.slots_per_expert} is not allowed with "
        f"router={self.router!r}: it must be None."
      )

  def _grouped(self, x: jax.Array) -> jax.Array:
    if self.group_size is None:
      return x
    num = x.shape[0] * x.shape[1]
    if num % self.group_size:
      near = [s for s in range(1, num + 1) if num % s == 0]
      best = min(near, key=lambda s: abs(s - self.group_size))
      raise ValueError(
        f"group_size={self.group_size} is not allowed: it must divide the "
        f"{num} tokens; the nearest that does is {best}."
      )
    return x.reshape(num // self.group_size, self.group_size, *x.shape[2:])

  def _capacity(self, size: int, train: bool) -> int:
    factor = self.capacity_factor if train else self.eval_capacity_factor
    if factor is None and self.router == "top_k":
      return size
    places = routing.compute_capacity(
      size,
      self.num_experts,
      self.capacity_factor if factor is None else factor,
      top_k=self.top_k if self.router == "top_k" else 1,
      multiple_of=self.multiple_of,
    )
    return min(places, size)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    modality: jax.Array | None = None,
  ) -> tuple[jax.Array, RoutingInfo]:
    """Routes and runs the experts.

    Args:
      x: `[G, S, D]`.
      train: whether noise, capacity and priority are those of training. With
        noise it needs the PRNG stream `gating`.
      mask: `[G, S]`, zero for tokens that count as removed (padding), whatever
        they hold: they take no expert and get zeros.
      modality: `[G, S]` int32, for the balance bias.

    Returns:
      `(y [G, S, D], info)`, info grouped as `x` came.

    Raises:
      ValueError: a bad setting.
    """
    self._check()
    shape = x.shape
    x = self._grouped(x)
    valid = None if mask is None else self._grouped(mask != 0)
    x = arrays.kept(x, valid)
    experts = ExpertMlp(
      self.num_experts,
      self.hidden_size,
      activation=self.activation,
      share_init=self.share_init,
      dtype=self.dtype,
      name="experts",
    )
    if self.router == "soft":
      y, info = self._soft(x, experts, valid)
    else:
      capacity = self._capacity(x.shape[1], train)
      y, info = self._routed(x, experts, capacity, valid, modality, train)
    lead = lambda a: a.reshape(*shape[:2], *a.shape[2:])
    info = RoutingInfo(*map(lead, info[:-1]), info.noise_std)
    return y.reshape(shape), info

  def _num_slots(self, size: int) -> int:
    """P: as given, as the parameters have it, or for the first group."""
    if self.slots_per_expert is not None:
      return self.slots_per_expert
    if self.has_variable("params", "slots"):
      return self.get_variable("params", "slots").shape[-1]
    return self._capacity(size, train=True)

  def _soft(self, x, experts, valid):
    init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
    num = self._num_slots(x.shape[1])
    slots = self.param("slots", init, (x.shape[-1], self.num_experts, num))
    scale = self.param("scale", nn.initializers.ones, ())
    run = lambda x, v: routing.soft_moe_weights(x, slots, scale, valid=v)
    axes = (0, None if valid is None else 0)
    there, back = jax.vmap(run, in_axes=axes)(x, valid)
    y = dispatch.apply_soft(x, (there, back), experts)
    logits = jnp.log(jnp.maximum(back.sum(axis=-1), 1e-30))
    none = jnp.full((*x.shape[:2], 1), -1, jnp.int32)
    kept = jnp.ones(none.shape, bool)
    if valid is not None:
      kept = valid[..., None]
    return y, RoutingInfo(logits, logits, none, kept, jnp.float32(0))

  def _routed(self, x, experts, capacity, valid, modality, train):
    num = self.num_experts
    wide = arrays.as_float(x)
    logits = nn.Dense(num, use_bias=False, dtype=wide.dtype, name="router")(
      wide
    )
    std = self.noise_std / num if train else 0.0
    noisy = logits
    if std:
      key = self.make_rng(GATING)
      noise = jax.random.normal(key, logits.shape, logits.dtype)
      noisy = logits + std * noise
    gates = jax.nn.softmax(noisy, axis=-1)
    axes = (0, None if valid is None else 0)
    if self.router == "expert_choice":
      return self._chosen(x, gates, logits, noisy, experts, capacity, valid)
    selection = self._biased(noisy, modality)
    route = lambda g, v, s: routing.route_top_k(
      g,
      top_k=self.top_k,
      capacity=capacity,
      priority=self.priority if train else "none",
      valid=v,
      selection=s,
    )
    axes = (*axes, None if selection is None else 0)
    assignment = jax.vmap(route, in_axes=axes)(gates, valid, selection)
    self._move_bias(assignment, modality, train)
    y = dispatch.apply_experts(
      x,
      assignment,
      experts.as_ragged(x.shape[-1])
      if self.dispatcher == "ragged"
      else experts,
      num_experts=num,
      capacity=capacity,
      dispatcher=self.dispatcher,
    )
    return y, RoutingInfo(
      logits, noisy, assignment.expert, assignment.kept, jnp.float32(std)
    )

  def _chosen(self, x, gates, logits, noisy, experts, capacity, valid):
    choose = lambda g, v: routing.route_expert_choice(
      g, capacity=capacity, valid=v
    )
    axes = (0, None if valid is None else 0)
    choice = jax.vmap(choose, in_axes=axes)(gates, valid)
    y = dispatch.apply_expert_choice(x, choice, experts)
    # [G, E, C] tokens to [G, S, E]: who was taken by whom.
    taken = jax.nn.one_hot(choice.token, x.shape[1], dtype=jnp.int32)
    weighs = (choice.weight > 0).astype(jnp.int32)
    kept = jnp.einsum("gecs,gec->gse", taken, weighs) > 0
    every = jnp.broadcast_to(jnp.arange(self.num_experts), kept.shape)
    return y, RoutingInfo(logits, noisy, every, kept, jnp.float32(0))

  def _biased(self, noisy, modality):
    """Scores for the choice, or None where the gates choose."""
    if not self.balance_rate:
      return None
    shape = (self.num_modalities, self.num_experts)
    bias = self.variable("balance", "bias", jnp.zeros, shape).value
    if modality is None:
      modality = jnp.zeros(noisy.shape[:2], jnp.int32)
    return noisy + bias[modality.reshape(noisy.shape[:2])]

  def _move_bias(self, assignment, modality, train):
    if not self.balance_rate or not train or self.is_initializing():
      return
    if not self.is_mutable_collection("balance"):
      return
    lead = assignment.expert.shape[:2]
    modality = jnp.zeros(lead, jnp.int32) if modality is None else modality
    chosen = jax.nn.one_hot(assignment.expert, self.num_experts)
    chosen = jnp.where((assignment.position >= 0)[..., None], chosen, 0.0)
    kind = jax.nn.one_hot(modality.reshape(lead), self.num_modalities)
    load = jnp.einsum("gske,gsm->me", chosen, kind)
    bias = self.get_variable("balance", "bias")
    moved = routing.update_balance_bias(bias, load, rate=self.balance_rate)
    self.put_variable("balance", "bias", moved)


def upcycle(
  dense: Mapping[str, types.PyTree],
  *,
  num_experts: int,
  key: jax.Array,
  noise_std: float = 0.0,
) -> dict[str, types.PyTree]:
  """Parameters of a `MoeMlp` from those of a dense feed-forward block.

  Sparse upcycling (Komatsuzaki et al. 2022, arXiv 2212.05055): every expert
  starts as a copy.

  Args:
    dense: `{up: {kernel, bias}, down: {kernel, bias}}` of
      `locojax.nn.transformer.FeedForward`.
    num_experts: E.
    key: typed key of the router (and of the noise).
    noise_std: of normal noise on each expert's kernels, relative to the
      standard deviation of the kernel.

  Returns:
    `{router: {kernel}, experts: {up_kernel, up_bias, down_kernel, down_bias}}`.

  Raises:
    ValueError: not the parameters of such a block.

  >>> dense = {
  ...   "up": {"kernel": jnp.ones((8, 16)), "bias": jnp.zeros(16)},
  ...   "down": {"kernel": jnp.ones((16, 8)), "bias": jnp.zeros(8)},
  ... }
  >>> made = upcycle(dense, num_experts=4, key=jax.random.key(0))
  >>> made["router"]["kernel"].shape, made["experts"]["up_kernel"].shape
  ((8, 4), (4, 8, 16))
  """
  checks.positive_int("num_experts", num_experts)
  checks.nonnegative("noise_std", noise_std)
  for name in ("up", "down"):
    if set(dense.get(name, ())) != {"kernel", "bias"}:
      raise ValueError(
        f"dense has {sorted(dense)}: it must have 'up' and 'down', each with "
        "a kernel and a bias."
      )
  router_key, *keys = jax.random.split(key, 3)
  out = {}
  for name, own in zip(("up", "down"), keys):
    for part in ("kernel", "bias"):
      x = jnp.asarray(dense[name][part])
      x = jnp.broadcast_to(x, (num_experts, *x.shape))
      if noise_std and part == "kernel":
        x = x + noise_std * x.std() * jax.random.normal(own, x.shape, x.dtype)
      out[f"{name}_{part}"] = x
  size = int(np.shape(dense["up"]["kernel"])[0])
  init = nn.initializers.lecun_normal()
  kernel = init(router_key, (size, num_experts), jnp.float32)
  return {"router": {"kernel": kernel}, "experts": out}
