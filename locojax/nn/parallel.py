"""Blocks whose attention and feed-forward layers work side by side.

    y = norm(x);  x + attention(y) + feed_forward(y)

One norm for both (Wang and Komatsuzaki 2021, GPT-J), feed-forward layers with a
gate (Shazeer 2020, arXiv 2002.05202), attention whose keys and values have
fewer heads. The decoder of PaLM (Chowdhery et al. 2022, arXiv 2204.02311) is
made of these. Fused blocks are the same function with fewer, larger products.

Letters: B batch, T tokens, E model size, F feed-forward size, H heads, G heads
of keys and values, D size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import arrays, checks, types
from locojax.nn import attention, norms, transformer

# N(0, 1 / fan_in).
FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class ParallelBlock(nn.Module):
  """y = norm(x); x + attention(y) + feed_forward(y).

  Attributes:
    num_heads: H.
    hidden_size: F.
    activation: of the gate.
    causal, use_rotary, decode, max_len, num_kv_heads, head_size, rotary_style,
      rotary_period: as in `attention.MultiHeadAttention`.
    norm: one of `norms.KINDS`, without a bias.
    norm_eps: what the norm adds.
    remat: 'attention' computes the attention weights again in the backward
      pass; the rest is the stack's.
    fused: dense layers `fused_in` (E to H (D + 2 F / H): a head's query, its
      share of the gate and of `up`), `key_value` (E to 2 G D) and `fused_out`
      (H (D + F / H) to E) in place of seven; H divides F. See `fuse`.
    parallel: false has the feed-forward layers after the attention, with a norm
      of their own, `feed_forward_norm`; not fused.
    dtype: dtype of the computation; None follows the input.
    kernel: as in `attention.MultiHeadAttention`.
  """

  num_heads: int
  hidden_size: int
  activation: Callable[[jax.Array], jax.Array] = nn.swish
  causal: bool = False
  use_rotary: bool = False
  decode: bool = False
  max_len: int | None = None
  num_kv_heads: int | None = None
  head_size: int | None = None
  rotary_style: str = "half"
  rotary_period: float = 10_000.0
  norm: str = "rms"
  norm_eps: float = 1e-6
  remat: str = "none"
  fused: bool = False
  parallel: bool = True
  dtype: Any = None
  kernel: str = "full"

  def _attention(self, kind: type, name: str) -> nn.Module:
    return kind(
      self.num_heads,
      causal=self.causal,
      use_rotary=self.use_rotary,
      use_bias=False,
      decode=self.decode,
      max_len=self.max_len,
      remat=self.remat == "attention",
      dtype=self.dtype,
      kernel_init=FAN_IN,
      num_kv_heads=self.num_kv_heads,
      head_size=self.head_size,
      rotary_style=self.rotary_style,
      rotary_period=self.rotary_period,
      kernel=self.kernel,
      name=name,
    )

  def _norm(self, name: str) -> nn.Module:
    return norms.make(
      self.norm,
      eps=self.norm_eps,
      dtype=self.dtype,
      use_bias=False,
      name=name,
    )

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    valid: jax.Array | None = None,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    prefix: tuple[jax.Array, jax.Array] | None = None,
    bias: jax.Array | None = None,
    context: jax.Array | None = None,
    context_valid: jax.Array | None = None,
    num_rows: int | None = None,
    train: bool = False,
  ) -> jax.Array:
    """`[B, T, E]` to `[B, T, E]`; arguments as of `transformer.Block`.

    Nothing is dropped in training.

    Raises:
      ValueError: sizes that do not divide; a context, a number of rows, or a
        prefix with `fused`.
    """
    del context_valid, train
    for name, given in (("context", context), ("num_rows", num_rows)):
      if given is not None:
        raise ValueError(f"{name} is not allowed for parallel blocks.")
    x = arrays.kept(x, valid)
    limits = {"valid": valid, "mask": mask, "positions": positions}
    if self.fused:
      if prefix is not None or not self.parallel:
        raise ValueError(
          "fused=True is not allowed with a prefix or parallel=False."
        )
      return x + self._fused(self._norm("norm")(x), bias=bias, **limits)
    normed = self._norm("norm")(x)
    attend = self._attention(attention.MultiHeadAttention, "attention")
    out = attend(normed, prefix=prefix, bias=bias, **limits)
    if not self.parallel:
      x, out = x + out, 0.0
      normed = self._norm("feed_forward_norm")(x)
    feed_forward = transformer.FeedForward(
      self.hidden_size,
      activation=self.activation,
      gated=True,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=FAN_IN,
      name="feed_forward",
    )
    return x + out + feed_forward(normed)

  def _fused(self, y: jax.Array, **limits: Any) -> jax.Array:
    heads, groups = self.num_heads, self.num_kv_heads or self.num_heads
    checks.divisible("hidden_size", self.hidden_size, "num_heads", heads)
    size, share = y.shape[-1], self.hidden_size // heads
    width = self.head_size or size // heads
    dense = lambda n, name: nn.Dense(
      n, use_bias=False, dtype=self.dtype, kernel_init=FAN_IN, name=name
    )
    both = dense(heads * (width + 2 * share), "fused_in")(y)
    both = both.reshape(*both.shape[:-1], heads, -1)
    query, gate, up = jnp.split(both, [width, width + share], axis=-1)
    pair = dense(2 * groups * width, "key_value")(y)
    pair = pair.reshape(*pair.shape[:-1], groups, 2 * width)
    key, value = jnp.split(pair, 2, axis=-1)
    attend = self._attention(attention.ProjectedAttention, "attention")
    out = attend(query, key, value, **limits)
    both = jnp.concatenate([out, self.activation(gate) * up], axis=-1)
    return dense(size, "fused_out")(both.reshape(*both.shape[:-2], -1))


class ParallelStack(transformer.Stack):
  """A stack of parallel blocks, then a norm; all else as of the base.

  Feed-forward layers are gated, nothing has a bias, and nothing is dropped in
  training.

  Attributes:
    num_kv_heads, head_size, rotary_style, rotary_period, norm, fused,
      parallel: of the blocks.
  """

  gated: bool = True
  use_bias: bool = False
  num_kv_heads: int | None = None
  head_size: int | None = None
  rotary_style: str = "half"
  rotary_period: float = 10_000.0
  norm: str = "rms"
  fused: bool = False
  parallel: bool = True

  def _block(self, name: str) -> nn.Module:
    for setting in ("use_bias", "cross_attention"):
      checks.one_of(setting, getattr(self, setting), [False])
    for setting in ("dropout", "drop_path"):
      checks.one_of(setting, getattr(self, setting), [0.0])
    checks.one_of("gated", self.gated, [True])
    return ParallelBlock(
      self.num_heads,
      self.hidden_size,
      activation=self.activation,
      causal=self.causal,
      use_rotary=self.use_rotary,
      decode=self.decode,
      max_len=self.max_len,
      num_kv_heads=self.num_kv_heads,
      head_size=self.head_size,
      rotary_style=self.rotary_style,
      rotary_period=self.rotary_period,
      norm=self.norm,
      norm_eps=self.norm_eps,
      remat=self.remat,
      fused=self.fused,
      parallel=self.parallel,
      dtype=self.dtype,
      kernel=self.kernel,
      name=name,
    )


def fuse(block: types.PyTree, num_heads: int) -> types.PyTree:
  """Parameters of a block that is not fused, as those of the fused one.

  Args:
    block: of one `ParallelBlock`.
    num_heads: H.

  Returns:
    The parameters of the block with `fused`, which computes the same.
  """
  kernel = lambda part, name: block[part][name]["kernel"]
  ins = lambda k, n: k.reshape(k.shape[0], n, -1)
  flat = lambda parts: jnp.concatenate(parts, -1).reshape(parts[0].shape[0], -1)
  query, key = kernel("attention", "query"), kernel("attention", "key")
  width = query.shape[1] // num_heads
  groups = key.shape[1] // width
  first = [query, kernel("feed_forward", "gate"), kernel("feed_forward", "up")]
  pair = [key, kernel("attention", "value")]
  size = query.shape[0]
  last = [kernel("attention", "out"), kernel("feed_forward", "down")]
  last = [k.reshape(num_heads, -1, size) for k in last]
  return {
    "norm": block["norm"],
    "fused_in": {"kernel": flat([ins(k, num_heads) for k in first])},
    "key_value": {"kernel": flat([ins(k, groups) for k in pair])},
    "fused_out": {"kernel": jnp.concatenate(last, 1).reshape(-1, size)},
  }
