"""LIMoE's towers: images and texts through the same blocks, or through two.

Tokens of an image and tokens of a text are sequences of their own: attention
never crosses from one to the other. Only in a mixture-of-experts block do the
tokens of both, from many pairs, meet in one routing group. With the router
`soft`, whose experts see mixtures of a group, each sequence is a group of its
own: an image's vector is the same alone and in a pair.

Sizes are in `PRESETS`; the layout of experts of the S, B and L models is our
own choice (8 in every block, whose parameter counts are nearest to the reported
0.5 and 1.7 billion), that of H is confirmed by its counts.

Letters: B pairs, T tokens, D width, G routing groups.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from locojax.core import arrays, checks, trees, types
from locojax.methods.limoe import contrastive, layers, moe, reports
from locojax.nn import attention, transformer, vit

ORDERS = ("images_first", "texts_first", "interleaved")
Streams = dict[str, jax.Array]
_SIZE_FIELDS = (
  *("width", "num_layers", "num_heads", "hidden_size"),
  *("patch_size", "vocab_size", "max_text_len"),
)
# Collections that get a leading axis of layers under `scan`.
_STACKED_COLLECTIONS = ("params", "balance", "intermediates")


class Outputs(NamedTuple):
  """What a model says of a batch.

  Attributes:
    z_image, z_text: `[B, d]` float32 of unit norm; None without that input.
    log_scale, bias: `[]`, of the contrastive losses.
    infos: a `RoutingInfo` for each MoE block (of each tower).
    modality, mask: `[G, S]` of the tokens of `infos`; None without experts, and
      a tuple of two of each with two towers.
  """

  z_image: jax.Array | None
  z_text: jax.Array | None
  log_scale: jax.Array
  bias: jax.Array
  infos: tuple
  modality: Any
  mask: Any


def _group(x: jax.Array, num_groups: int) -> jax.Array:
  """`[B, T, ...]` to `[G, (B / G) T, ...]`."""
  return x.reshape(num_groups, -1, *x.shape[2:])


def join(streams: Streams, num_groups: int, order: str) -> jax.Array:
  """Tokens of all modalities in routing groups, `[G, S, ...]`.

  Args:
    streams: `[B, T, ...]` by modality.
    num_groups: G, a divisor of B.
    order: of the tokens in a group: the modalities one after the other, or pair
      after pair.
  """
  names = [n for n in reports.MODALITIES if n in streams]
  if order == "texts_first":
    names = names[::-1]
  if order == "interleaved":
    return _group(
      jnp.concatenate([streams[n] for n in names], axis=1), num_groups
    )
  return jnp.concatenate(
    [_group(streams[n], num_groups) for n in names], axis=1
  )


def split(
  joined: jax.Array, shapes: Mapping[str, tuple], order: str
) -> Streams:
  """The inverse of `join`; `shapes` are `(B, T)` by modality."""
  names = [n for n in reports.MODALITIES if n in shapes]
  if order == "texts_first":
    names = names[::-1]
  rest = joined.shape[2:]
  if order == "interleaved":
    first = shapes[names[0]][0]
    joined = joined.reshape(first, -1, *rest)
    cuts = np.cumsum([shapes[n][1] for n in names])[:-1]
    return dict(zip(names, jnp.split(joined, cuts, axis=1)))
  sizes = [math.prod(shapes[n]) // len(joined) for n in names]
  parts = jnp.split(joined, np.cumsum(sizes)[:-1], axis=1)
  return {n: p.reshape(*shapes[n], *rest) for n, p in zip(names, parts)}


class TowerBlock(nn.Module):
  """Pre-LN block whose attention is within, and experts across, modalities.

  Attributes:
    num_heads, hidden_size: of attention and feed-forward block.
    experts: settings of `moe.MoeMlp` without `hidden_size`; None is dense.
    group_examples: pairs of a routing group.
    order: of `ORDERS`.
    dtype: of the computation; None follows the input.
    kernel: as in `attention.MultiHeadAttention`.
  """

  num_heads: int
  hidden_size: int
  experts: Mapping[str, Any] | None = None
  group_examples: int | None = None
  order: str = "images_first"
  dtype: Any = None
  kernel: str = "full"

  @nn.compact
  def __call__(self, streams: Streams, masks: Streams, train: bool):
    """`(streams, masks [B, T])` to `(streams, RoutingInfo or None)`."""
    norm = lambda name: nn.LayerNorm(dtype=self.dtype, name=name)
    attend = attention.MultiHeadAttention(
      self.num_heads, dtype=self.dtype, kernel=self.kernel, name="attention"
    )
    before, after = norm("attention_norm"), norm("feed_forward_norm")
    streams = {
      n: x + attend(before(x), valid=masks[n] != 0) for n, x in streams.items()
    }
    normed = {n: after(x) for n, x in streams.items()}
    if self.experts is None:
      dense = transformer.FeedForward(
        self.hidden_size, dtype=self.dtype, name="feed_forward"
      )
      return {n: x + dense(normed[n]) for n, x in streams.items()}, None
    layer = moe.MoeMlp(
      hidden_size=self.hidden_size,
      dtype=self.dtype,
      name="moe",
      **self.experts,
    )
    num = num_groups(streams, self.group_examples, train)
    route = self._apart if layer.router == "soft" else self._together
    made, info = route(layer, normed, masks, num, train)
    return {n: x + made[n] for n, x in streams.items()}, info

  def _together(self, layer, streams, masks, num, train):
    """The tokens of both modalities, from many pairs, in one group."""
    mask, modality = routing_masks(masks, num, self.order)
    x = join(streams, num, self.order)
    y, info = layer(x, train=train, mask=mask, modality=modality)
    shapes = {n: x.shape[:2] for n, x in streams.items()}
    return split(y, shapes, self.order), info

  def _apart(self, layer, streams, masks, num, train):
    """Each sequence in a group of its own, for Soft MoE.

    Slots are mixtures of a group: in one with both modalities of a pair, its
    image would be told its text.
    """
    made = {n: layer(x, train=train, mask=masks[n]) for n, x in streams.items()}
    infos = {n: info for n, (_, info) in made.items()}
    lead = lambda *x: join(dict(zip(infos, x)), num, self.order)
    fields = zip(*(info[:-1] for info in infos.values()))
    std = next(iter(infos.values())).noise_std
    info = moe.RoutingInfo(*(lead(*field) for field in fields), std)
    return {n: y for n, (y, _) in made.items()}, info


def num_groups(
  streams: Streams, group_examples: int | None, train: bool
) -> int:
  """G of a batch.

  Raises:
    ValueError: in training, `group_examples` does not divide the batch.
  """
  batch = len(next(iter(streams.values())))
  size = batch if group_examples is None else group_examples
  if train:
    checks.divisible("batch size", batch, "group_examples", size)
  return batch // math.gcd(batch, size)


def routing_masks(masks: Streams, num: int, order: str):
  """`(mask, modality)` `[G, S]` of the joined tokens."""
  kinds = {
    n: jnp.full(m.shape, reports.MODALITIES.index(n), jnp.int32)
    for n, m in masks.items()
  }
  return join(masks, num, order), join(kinds, num, order)


def _block(has_experts, name, *, remat, in_scan, experts, **settings):
  """A block, in the module that calls this."""
  block_of = TowerBlock
  if remat:
    block_of = nn.remat(
      TowerBlock, static_argnums=(3,), prevent_cse=not in_scan
    )
  return block_of(
    experts=experts if has_experts else None, name=name, **settings
  )


class _Unit(nn.Module):
  """Blocks in a row, dense or with experts: the body of a scan.

  Attributes:
    kinds: for each block, whether it has experts.
    make: `(has experts, name)` to a block.
  """

  kinds: tuple[bool, ...]
  make: Callable[[bool, str], nn.Module]

  @nn.compact
  def __call__(self, streams: Streams, masks: Streams, train: bool):
    """`(streams, masks)` to `(streams, infos)`."""
    infos = []
    for i, kind in enumerate(self.kinds):
      streams, info = self.make(kind, f"block_{i}")(streams, masks, train)
      infos += [] if info is None else [info]
    return streams, tuple(infos)


class Tower(nn.Module):
  """Blocks, some with experts, and a `norm`.

  Unrolled, the blocks are `block_0`, ...; with `scan` runs of repeated units of
  blocks are one `units_<first>` each, whose parameters have a leading axis of
  layers (see `layers`), which compiles faster.
  """

  num_layers: int
  num_heads: int
  hidden_size: int
  moe_layers: tuple[int, ...] = ()
  experts: Mapping[str, Any] | None = None
  group_examples: int | None = None
  order: str = "images_first"
  remat: bool = False
  scan: bool = False
  dtype: Any = None
  kernel: str = "full"

  def _blocks(self, in_scan: bool) -> Callable[[bool, str], nn.Module]:
    return functools.partial(
      _block,
      remat=self.remat,
      in_scan=in_scan,
      num_heads=self.num_heads,
      hidden_size=self.hidden_size,
      experts=self.experts,
      group_examples=self.group_examples,
      order=self.order,
      dtype=self.dtype,
      kernel=self.kernel,
    )

  def _scanned(self, run: layers.Run, streams, masks, train):
    """`(streams, infos)` of a run, infos in the order of the layers."""
    kinds = [run.first + k in self.moe_layers for k in range(run.size)]
    unit = _Unit(tuple(kinds), self._blocks(True), name=run.name)
    streams, stacked = nn.scan(
      lambda unit, streams, _: unit(streams, masks, train),
      variable_axes=dict.fromkeys(_STACKED_COLLECTIONS, 0),
      split_rngs={"params": True, moe.GATING: True},
      length=run.repeats,
    )(unit, streams, None)
    infos = [
      jax.tree.map(lambda x, i=i: x[i], info)
      for i in range(run.repeats)
      for info in stacked
    ]
    return streams, infos

  @nn.compact
  def __call__(self, streams: Streams, masks: Streams, train: bool):
    """`(streams, masks)` to `(streams, infos)`."""
    infos = []
    if self.scan:
      found = layers.tower_runs(self.num_layers, self.moe_layers)
    else:
      found = [layers.Run(i, 1, 1) for i in range(self.num_layers)]
    for run in found:
      if run.repeats > 1:
        streams, more = self._scanned(run, streams, masks, train)
        infos += more
        continue
      block = self._blocks(False)(run.first in self.moe_layers, run.name)
      streams, info = block(streams, masks, train)
      infos += [] if info is None else [info]
    norm = nn.LayerNorm(dtype=self.dtype, name="norm")
    return {n: norm(x) for n, x in streams.items()}, tuple(infos)


class OneTower(nn.Module):
  """One transformer for images and texts, dense or with experts.

  Attributes:
    width, num_layers, num_heads, hidden_size: of the tower.
    patch_size: P.
    vocab_size: of the texts' tokens.
    max_text_len: largest number of tokens of a text.
    embed_dim: of the shared space; None is the width.
    moe_layers: numbers of the blocks with experts; empty is dense.
    experts: settings of `moe.MoeMlp`, with `num_experts`.
    group_examples: pairs of a routing group; None: the whole batch.
    order: of the tokens of a group, see `ORDERS`.
    separate: a tower for each modality (`TwoTower`).
    temperature_init: exp(t) at the start.
    bias_init: of the sigmoid loss.
    remat: whether the backward pass computes the blocks again.
    scan: runs of repeated layers by `nn.scan`, which compiles faster; their
      parameters are stacked (`stack_layers`, `unstack_layers`).
    dtype: of the computation; routers and embeddings' norms are float32.
    kernel: of the attention, see `attention.MultiHeadAttention`.
  """

  width: int
  num_layers: int
  num_heads: int
  hidden_size: int
  patch_size: int
  vocab_size: int = 32_000
  max_text_len: int = 16
  embed_dim: int | None = None
  moe_layers: tuple[int, ...] = ()
  experts: Mapping[str, Any] | None = None
  group_examples: int | None = None
  order: str = "images_first"
  separate: bool = False
  temperature_init: float = 10.0
  bias_init: float = -10.0
  remat: bool = False
  scan: bool = False
  dtype: Any = None
  kernel: str = "full"

  def _check(self, images, text) -> None:
    for name in _SIZE_FIELDS:
      checks.positive_int(name, getattr(self, name))
    for name in ("embed_dim", "group_examples"):
      if getattr(self, name) is not None:
        checks.positive_int(name, getattr(self, name))
    checks.divisible("width", self.width, "num_heads", self.num_heads)
    checks.positive("temperature_init", self.temperature_init)
    checks.float_dtype("dtype", self.dtype)
    checks.one_of("order", self.order, ORDERS)
    if images is None and text is None:
      raise ValueError("images=None and text=None: at least one is needed.")
    if bool(self.moe_layers) != (self.experts is not None):
      raise ValueError(
        f"moe_layers={self.moe_layers} is not allowed with experts="
        f"{self.experts}: both or neither."
      )
    for i in self.moe_layers:
      checks.int_in_range("moe_layers", i, 0, self.num_layers - 1)
    if text is not None:
      if text.ndim != 2 or text.shape[1] > self.max_text_len:
        raise ValueError(
          f"text has shape {text.shape}: it must be [B, T], T at most "
          f"max_text_len={self.max_text_len}."
        )
      if images is not None:
        checks.same_shape("text", text.shape[:1], "images", images.shape[:1])

  def _position(self, name: str, length: int, used: int) -> jax.Array:
    init = nn.initializers.normal(1 / math.sqrt(self.width))
    return self.param(name, init, (1, length, self.width))[:, :used]

  def _embedded(self, images, text, text_mask):
    streams, masks = {}, {}
    if images is not None:
      x = vit.PatchEmbed(
        self.patch_size, self.width, dtype=self.dtype, name="patches"
      )(images)
      num = x.shape[1]
      streams["image"] = x + self._position("image_position", num, num)
      masks["image"] = jnp.ones(x.shape[:2], jnp.int32)
    if text is not None:
      embed = nn.Embed(
        self.vocab_size, self.width, dtype=self.dtype, name="words"
      )
      # What is masked may be no token at all.
      x = embed(text if text_mask is None else arrays.kept(text, text_mask))
      position = self._position("text_position", self.max_text_len, x.shape[1])
      streams["text"] = x + position
      given = jnp.ones(text.shape) if text_mask is None else text_mask
      masks["text"] = (given != 0).astype(jnp.int32)
    return streams, masks

  def _tower(self, name: str) -> Tower:
    return Tower(
      self.num_layers,
      self.num_heads,
      self.hidden_size,
      moe_layers=tuple(self.moe_layers),
      experts=self.experts,
      group_examples=self.group_examples,
      order=self.order,
      remat=self.remat,
      scan=self.scan,
      dtype=self.dtype,
      kernel=self.kernel,
      name=name,
    )

  def _representation(self, x, mask, name):
    x = arrays.kept(arrays.as_float(x), mask)
    num = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    mean = x.sum(axis=1) / num.astype(x.dtype)
    head = nn.Dense(
      self.embed_dim or self.width, dtype=x.dtype, name=f"{name}_head"
    )
    return contrastive.unit_norm(head(mean))

  @nn.compact
  def __call__(
    self,
    images: jax.Array | None = None,
    text: jax.Array | None = None,
    text_mask: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> Outputs:
    """Embeds images, texts, or pairs.

    Args:
      images: `[B, H, W, channels]`.
      text: `[B, T]` int32 tokens.
      text_mask: `[B, T]`, zero at padding, which then takes no attention, no
        expert and no part in the mean, whatever it holds; None counts every
        token.
      train: capacity, noise (PRNG stream `gating`) and priority of training.

    Raises:
      ValueError: no input, inputs that do not fit, or bad settings.
    """
    self._check(images, text)
    streams, masks = self._embedded(images, text, text_mask)
    infos, kinds = (), []
    parts = [[n] for n in streams] if self.separate else [list(streams)]
    made = {}
    for names in parts:
      tower = self._tower(f"{names[0]}_tower" if self.separate else "tower")
      own = {n: streams[n] for n in names}
      own_masks = {n: masks[n] for n in names}
      out, found = tower(own, own_masks, train)
      made |= out
      infos += found
      if found:
        num = num_groups(own, self.group_examples, train)
        kinds.append(routing_masks(own_masks, num, self.order))
    z = {n: self._representation(made[n], masks[n], n) for n in made}
    log = lambda key: jnp.log(jnp.float32(self.temperature_init))
    log_scale = self.param("log_scale", log)
    bias = self.param("bias", lambda key: jnp.float32(self.bias_init))
    mask, modality = (None, None) if not kinds else kinds[0]
    if len(kinds) > 1:
      mask, modality = zip(*kinds)
    return Outputs(
      z.get("image"), z.get("text"), log_scale, bias, infos, modality, mask
    )


class TwoTower(OneTower):
  """A tower for images and one for texts, of the same size."""

  separate: bool = True


_SIZES = {
  "S": dict(width=512, num_layers=8, num_heads=8, hidden_size=2048),
  "B": dict(width=768, num_layers=12, num_heads=12, hidden_size=3072),
  "L": dict(width=1024, num_layers=24, num_heads=16, hidden_size=4096),
  "H": dict(width=1280, num_layers=32, num_heads=16, hidden_size=5120),
}
PRESETS: dict[str, dict[str, Any]] = {
  f"{size}/{patch}": {**_SIZES[size], "patch_size": patch}
  for size, patch in (
    ("S", 32),
    ("S", 16),
    ("B", 32),
    ("B", 16),
    ("L", 16),
    ("H", 14),
  )
}
# The last twelve of every second block, and 32 experts each: 5.6 billion.
_H_LAYERS = tuple(range(9, 32, 2))


def limoe_model(
  preset: str,
  *,
  kind: str = "limoe",
  experts: Mapping[str, Any] = (),
  **changes,
) -> OneTower:
  """A model of `PRESETS`.

  Args:
    preset: such as `B/16`.
    kind: `limoe`, `one_tower` (dense) or `two_tower` (dense).
    experts: settings of `moe.MoeMlp` besides those of the preset.
    **changes: fields of `OneTower` to set otherwise.

  Returns:
    The model.

  Raises:
    ValueError: an unknown preset or kind.

  >>> model = limoe_model("S/16", num_layers=2, moe_layers=(1,))
  >>> model.width, model.experts["num_experts"]
  (512, 8)
  >>> limoe_model("S/16", kind="one_tower").moe_layers
  ()
  """
  settings = dict(checks.lookup("preset", preset, PRESETS))
  checks.one_of("kind", kind, ("limoe", "one_tower", "two_tower"))
  if kind == "limoe":
    large = preset.startswith("H")
    layers = _H_LAYERS if large else tuple(range(settings["num_layers"]))
    own = {"num_experts": 32 if large else 8, "priority": "max"}
    settings |= {"moe_layers": layers, "experts": {**own, **dict(experts)}}
  model = TwoTower if kind == "two_tower" else OneTower
  return model(**{**settings, **changes})


def count_params(params: types.PyTree, *, top_k: int = 1) -> dict[str, int]:
  """`total` parameters, and `active`: those that a token meets.

  Of each `experts` array, whose leading axis (after that of the layers, if they
  are scanned) counts experts, `top_k` are met.

  >>> params = {"mlp": {"experts": {"up": jnp.zeros((4, 2, 3))}}}
  >>> count_params(params)
  {'total': 24, 'active': 6}
  """
  total = active = 0
  for path, x in trees.flatten(params).items():
    size = math.prod(x.shape)
    total += size
    if "/experts/" in path:
      num = x.shape[1 if re.search(layers.STACKED, path) else 0]
      size = top_k * size // num
    active += size
  return {"total": total, "active": active}
