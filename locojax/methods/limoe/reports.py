"""What routers do, by modality: success rates, loads, tables, and the loss.

Success rate: kept (token, choice) pairs by all pairs. A batch of much text that
is dropped hides behind images in the overall rate, so look at each modality.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from locojax.core import checks, metrics
from locojax.methods.limoe import auxiliary, moe

MODALITIES = ("image", "text")


@dataclasses.dataclass(frozen=True)
class LimoeAux:
  """Weights of the auxiliary losses of a model; each is a mean over its layers.

  The paper's weights and thresholds are not known to us; these are our own
  choice (see the experiment's README). 0 leaves a term out altogether.

  Attributes:
    importance, load: of V-MoE's balance losses, over all tokens.
    gshard, z: of the GShard and z losses, over all tokens.
    local, global_: by modality, of the local and the global entropy loss.
    soft_min: by modality, S of the global loss's threshold; None of a modality:
      no threshold.

  Raises:
    ValueError: a negative weight or an unknown modality.
  """

  importance: float = 0.0
  load: float = 0.0
  gshard: float = 0.0
  z: float = 0.0
  local: Mapping[str, float] = dataclasses.field(default_factory=dict)
  global_: Mapping[str, float] = dataclasses.field(default_factory=dict)
  soft_min: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name in ("importance", "load", "gshard", "z"):
      checks.nonnegative(name, getattr(self, name))
    for name in ("local", "global_", "soft_min"):
      for modality, value in getattr(self, name).items():
        checks.one_of(name, modality, MODALITIES)
        if name != "soft_min":
          checks.nonnegative(f"{name}[{modality!r}]", value)


def classic(*, weight: float = 0.005, z: float = 1e-3) -> LimoeAux:
  """Importance, load and z losses, as V-MoE and ST-MoE weigh them.

  >>> classic().load, classic().z
  (0.005, 0.001)
  """
  return LimoeAux(importance=weight, load=weight, z=z)


def limoe_aux(
  num_experts: int,
  num_tokens: Mapping[str, int],
  *,
  weight: float = 0.04,
  with_classic: bool = True,
) -> LimoeAux:
  """The losses of LIMoE: local on text, global on both, and the classic ones.

  S_text is the text's share of the tokens in experts, at least 2, S_image the
  rest.

  Args:
    num_experts: E, 3 or more.
    num_tokens: tokens of an example, `image` and `text`.
    weight: of each entropy loss.
    with_classic: whether to add `classic()`.

  Raises:
    ValueError: too few experts.

  >>> limoe_aux(8, {"image": 49, "text": 16}).soft_min
  {'text': 2, 'image': 6}
  """
  checks.in_range("num_experts", num_experts, 3, 2**31)
  share = num_tokens["text"] / (num_tokens["text"] + num_tokens["image"])
  text = max(2, round(num_experts * share))
  base = classic() if with_classic else LimoeAux()
  return dataclasses.replace(
    base,
    local={"text": weight},
    global_={"text": weight, "image": weight},
    soft_min={"text": text, "image": num_experts - text},
  )


def _mask(modality, mask, which: str) -> jax.Array:
  here = modality == MODALITIES.index(which)
  return here if mask is None else here & (mask != 0)


def auxiliary_loss(
  infos: Sequence[moe.RoutingInfo],
  modality: jax.Array,
  aux: LimoeAux,
  *,
  mask: jax.Array | None = None,
  top_k: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weighted sum of auxiliary losses, each a mean over the layers.

  Args:
    infos: of the MoE layers.
    modality: `[G, S]` int32, numbers of `MODALITIES`.
    aux: the weights.
    mask: `[G, S]`, zero for padding; None counts padding as tokens.
    top_k: K, for the load loss.

  Returns:
    `(loss [], terms)`: terms unweighted, by name such as `global/text`.

  >>> logits = jnp.zeros((1, 4, 2))  # a group of 4 tokens, 2 experts
  >>> chosen = jnp.array([[[0], [0], [1], [1]]])
  >>> kept = chosen >= 0
  >>> info = moe.RoutingInfo(logits, logits, chosen, kept, jnp.array(0.5))
  >>> modality = jnp.array([[0, 0, 1, 1]])
  >>> aux = LimoeAux(z=0.1, local={"text": 0.5})
  >>> loss, terms = auxiliary_loss([info], modality, aux)
  >>> sorted(terms), round(float(loss), 4)
  (['local/text', 'z'], 0.3946)
  """
  if not infos:
    return jnp.float32(0), {}
  logits = jnp.stack([i.logits for i in infos])
  noisy = jnp.stack([i.noisy_logits for i in infos])
  gates = jax.nn.softmax(logits, axis=-1)
  over = lambda f, *xs: jnp.mean(jax.vmap(f)(*xs))
  terms, weights = {}, {}

  def add(name, weight, value):
    if weight:
      terms[name], weights[name] = value(), weight

  a = auxiliary
  add(
    "importance",
    aux.importance,
    lambda: over(lambda g: a.importance_loss(g, mask=mask), gates),
  )
  add("load", aux.load, lambda: _load(infos, logits, noisy, top_k, mask, over))
  add(
    "gshard",
    aux.gshard,
    lambda: over(lambda g: a.gshard_loss(g, mask=mask), gates),
  )
  add("z", aux.z, lambda: over(lambda x: a.router_z_loss(x, mask=mask), logits))
  for which in MODALITIES:
    own = _mask(modality, mask, which)
    add(
      f"local/{which}",
      aux.local.get(which),
      lambda own=own: over(lambda x: a.local_entropy_loss(x, mask=own), logits),
    )
    add(
      f"global/{which}",
      aux.global_.get(which),
      lambda own=own, which=which: over(
        lambda x: a.global_entropy_loss(
          x, soft_min_experts=aux.soft_min.get(which), mask=own
        ),
        logits,
      ),
    )
  total = sum((weights[n] * x for n, x in terms.items()), jnp.float32(0))
  return total, terms


def _load(infos, logits, noisy, top_k, mask, over):
  """The load loss, 0 where no noise was added (as in evaluation)."""
  std = infos[0].noise_std
  safe = jnp.where(std > 0, std, 1.0)

  def one(clean, chose):
    # In units of the noise, so that its size may be an array.
    return auxiliary.load_loss(
      clean / safe, chose / safe, noise_std=1.0, top_k=top_k, mask=mask
    )

  return jnp.where(std > 0, over(one, logits, noisy), 0.0)


def routing_metrics(
  infos: Sequence[moe.RoutingInfo],
  modality: jax.Array,
  *,
  mask: jax.Array | None = None,
) -> dict[str, metrics.Mean]:
  """Metrics by layer and modality, mergeable.

  Args:
    infos, modality, mask: as for `auxiliary_loss`.

  Returns:
    `layer_i/success`, `layer_i/success_image`, `layer_i/success_text`, and the
    means over layers without `layer_i/`; `no_expert_...` (tokens without any
    expert), `entropy_...`, `confidence_...` (largest gate) by modality.

  >>> logits = jnp.zeros((1, 4, 2))
  >>> chosen = jnp.array([[[0], [0], [1], [1]]])
  >>> kept = jnp.array([[[True], [False], [True], [True]]])
  >>> info = moe.RoutingInfo(logits, logits, chosen, kept, jnp.array(0.5))
  >>> found = routing_metrics([info], jnp.array([[0, 0, 1, 1]]))
  >>> [float(found[f"success_{m}"].value()) for m in ("image", "text")]
  [0.5, 1.0]
  """
  out: dict[str, list[metrics.Mean]] = {}
  for i, info in enumerate(infos):
    # Of Soft MoE, which mixes every token into its slots, that is one of one.
    kept = info.kept.sum(axis=-1)
    pairs = jnp.full_like(kept, info.kept.shape[-1])
    if info.expert.shape[-1] == info.logits.shape[-1]:
      # Expert choice: a token is served or not.
      kept, pairs = jnp.minimum(kept, 1), jnp.ones_like(kept)
    log_p = jax.nn.log_softmax(info.logits, axis=-1)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    everything = jnp.ones(modality.shape, bool) if mask is None else mask != 0
    for which in (None, *MODALITIES):
      own = everything if which is None else _mask(modality, mask, which)
      end = "" if which is None else f"_{which}"
      weigh = own.astype(jnp.float32)
      success = metrics.Mean(jnp.sum(kept * weigh), jnp.sum(pairs * weigh))
      out.setdefault(f"success{end}", []).append(success)
      out[f"layer_{i}/success{end}"] = [success]
      for name, values in (
        ("no_expert", kept == 0),
        ("entropy", entropy),
        ("confidence", jnp.exp(log_p.max(axis=-1))),
      ):
        out.setdefault(f"{name}{end}", []).append(metrics.mean(values, own))
  merged = {}
  for name, each in out.items():
    merged[name] = each[0]
    for other in each[1:]:
      merged[name] = merged[name].merge(other)
  return merged


def expert_table(
  info: moe.RoutingInfo, modality: jax.Array, *, mask: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Tokens of each modality at each expert of a layer.

  Returns:
    `demand` and `kept` `[2, E]` float32, rows as `MODALITIES`.

  >>> logits = jnp.zeros((1, 4, 2))
  >>> chosen = jnp.array([[[0], [0], [1], [1]]])
  >>> kept = jnp.array([[[True], [False], [True], [True]]])
  >>> info = moe.RoutingInfo(logits, logits, chosen, kept, jnp.array(0.5))
  >>> found = expert_table(info, jnp.array([[0, 0, 1, 1]]))
  >>> found["demand"].tolist(), found["kept"].tolist()
  ([[2.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 2.0]])
  """
  num = info.logits.shape[-1]
  chosen = jax.nn.one_hot(info.expert, num)
  kept = chosen * info.kept[..., None]
  rows = [_mask(modality, mask, which) for which in MODALITIES]
  count = lambda x: jnp.stack(
    [jnp.einsum("gske,gs->e", x, r.astype(jnp.float32)) for r in rows]
  )
  return {"demand": count(chosen), "kept": count(kept)}
