"""The decoder of PaLM, as `locojax.nn.lm.DecoderLM` with other blocks.

Chowdhery et al., "PaLM", arXiv 2204.02311, section 2: parallel blocks with
SwiGLU, one head of keys and values, rotary positions, no biases, an embedding
shared with the logits, which are scaled by 1 / sqrt(d).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from locojax.core import checks
from locojax.nn import attention, lm, norms, parallel, transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaLMConfig:
  """Sizes and conventions of a decoder.

  Attributes:
    vocab_size: V.
    num_layers: L.
    d_model: d.
    num_heads: h, of queries.
    head_dim: p, even; h p need not make up d.
    d_ff: f; None is 4 d.
    num_kv_heads: heads of keys and values, which divide h; 1 is multi-query.
    max_len: longest sequence.
    norm: 'rms' or 'layer', with a scale alone.
    rope_style: 'half' or 'interleaved'; rope_base: the longest period over
      2 pi.
    parallel: whether attention and feed-forward layers share norm and input.
    fused: whether their products are fused (the same function); h divides f.
    tie_embeddings: whether the logits are products with the embedding.
    logit_scale: whether they are divided by sqrt(d).
    activation: of the gate; swish makes it SwiGLU.
    dtype: dtype of the computation; None is that of the parameters (float32).
    remat: of `transformer.Stack`.
    scan_layers: whether the layers are one scan.
    kernel: of the attention, see `attention.MultiHeadAttention`.

  Raises:
    ValueError: a size below 1, or sizes that do not fit.
  """

  vocab_size: int
  num_layers: int
  d_model: int
  num_heads: int
  head_dim: int = 256
  d_ff: int | None = None
  num_kv_heads: int = 1
  max_len: int = 2048
  norm: str = "rms"
  rope_style: str = "half"
  rope_base: float = 10_000.0
  parallel: bool = True
  fused: bool = False
  tie_embeddings: bool = True
  logit_scale: bool = True
  activation: Callable[[jax.Array], jax.Array] = nn.swish
  dtype: Any = None
  remat: str = "none"
  scan_layers: bool = False
  kernel: str = "full"

  def __post_init__(self):
    for name in ("vocab_size", "num_layers", "d_model", "num_heads"):
      checks.positive_int(name, getattr(self, name))
    for name in ("head_dim", "num_kv_heads", "max_len"):
      checks.positive_int(name, getattr(self, name))
    if self.d_ff is not None:
      checks.positive_int("d_ff", self.d_ff)
    checks.divisible("head_dim", self.head_dim, "rotary positions", 2)
    heads = ("num_heads", self.num_heads)
    checks.divisible(*heads, "num_kv_heads", self.num_kv_heads)
    checks.one_of("norm", self.norm, norms.KINDS)
    checks.one_of("rope_style", self.rope_style, attention.ROTARY_STYLES)
    checks.positive("rope_base", self.rope_base)
    checks.one_of("remat", self.remat, transformer.REMATS)
    checks.one_of("kernel", self.kernel, attention.KERNELS)
    checks.float_dtype("dtype", self.dtype)
    for name in ("parallel", "fused", "tie_embeddings", "logit_scale"):
      checks.boolean(name, getattr(self, name))
    checks.boolean("scan_layers", self.scan_layers)
    if self.fused:
      checks.divisible("d_ff", self.hidden_size, *heads)
      checks.one_of("parallel, with fused=True", self.parallel, [True])

  @property
  def hidden_size(self) -> int:
    """f."""
    return self.d_ff or 4 * self.d_model


_LARGE = {"vocab_size": 256_000, "scan_layers": True, "remat": "block"}
PRESETS = {
  "palm_tiny": PaLMConfig(
    vocab_size=128,
    num_layers=2,
    d_model=32,
    num_heads=2,
    head_dim=16,
    max_len=64,
  ),
  "palm_8b": PaLMConfig(num_layers=32, d_model=4096, num_heads=16, **_LARGE),
  "palm_62b": PaLMConfig(num_layers=64, d_model=8192, num_heads=32, **_LARGE),
  "palm_540b": PaLMConfig(
    num_layers=118, d_model=18_432, num_heads=48, **_LARGE
  ),
}


def preset(name: str, **changes: Any) -> PaLMConfig:
  """A config of `PRESETS`, with changes.

  Raises:
    ValueError: an unknown name, with those there are; a bad change.
  """
  found = checks.lookup("preset", name, PRESETS)
  known = [field.name for field in dataclasses.fields(PaLMConfig)]
  for change in changes:
    checks.one_of("setting of PaLM", change, known)
  return dataclasses.replace(found, **changes)


@functools.lru_cache(maxsize=64)
def palm_model(
  config: PaLMConfig, *, cache_len: int | None = None
) -> lm.DecoderLM:
  """The decoder, a `DecoderLM`: its prefill, next token and packing serve.

  Args:
    config: sizes.
    cache_len: how many tokens the cache holds; None is `config.max_len`.

  Returns:
    `model.init(key, tokens)`, `model.apply({"params": params}, tokens)` to
    logits `[B, T, V]`; the same object for the same config, so that it may be a
    static argument of `jax.jit`. Parameters are float32. The embedding starts
    as N(0, 1) and kernels as N(0, 1 / fan_in).
  """
  checks.one_of("type of config", type(config), [PaLMConfig])
  stack = functools.partial(
    parallel.ParallelStack,
    num_kv_heads=config.num_kv_heads,
    head_size=config.head_dim,
    rotary_style=config.rope_style,
    rotary_period=config.rope_base,
    fused=config.fused,
    parallel=config.parallel,
  )
  return lm.DecoderLM(
    vocab_size=config.vocab_size,
    max_len=config.max_len,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    model_size=config.d_model,
    hidden_size=config.hidden_size,
    activation=config.activation,
    positions="rotary",
    tie_embedding=config.tie_embeddings,
    cache_len=cache_len,
    scan=config.scan_layers,
    remat=config.remat,
    kernel=config.kernel,
    use_bias=False,
    embedding_init=nn.initializers.normal(1.0),
    dtype=config.dtype,
    stack=stack,
    norm=config.norm,
    gated=True,
    logit_scale=1 / math.sqrt(config.d_model) if config.logit_scale else 1.0,
  )


def count_params(config: PaLMConfig) -> int:
  """L (2 d h p + 2 d g p + 3 d f + d) + V d + d, of g heads of keys.

  Untied embeddings have V d more, and blocks that are not parallel L d.
  """
  d, p = config.d_model, config.head_dim
  norms = 1 if config.parallel else 2
  heads = config.num_heads + config.num_kv_heads
  layer = 2 * d * p * heads + 3 * d * config.hidden_size + norms * d
  tables = 1 if config.tie_embeddings else 2
  return config.num_layers * layer + tables * config.vocab_size * d + d


def fuse(params: dict[str, Any], config: PaLMConfig) -> dict[str, Any]:
  """Parameters of the model that is not fused, as of the fused one."""
  one = functools.partial(parallel.fuse, num_heads=config.num_heads)
  stack = {}
  for name, part in params["decoder"].items():
    block = name.startswith("block_")
    each = jax.vmap(one) if name == "blocks" else one if block else None
    stack[name] = part if each is None else each(part)
  return {**params, "decoder": stack}
