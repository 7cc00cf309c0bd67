"""Transformer blocks and stacks, pre-LN (Xiong et al. 2020, arXiv 2002.04745).

Letters: B batch, T tokens, E model size, F feed-forward size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import checks, types
from locojax.nn import attention

REMATS = ("none", "attention", "block")


class FeedForward(nn.Module):
  """Two dense layers, `up` and `down`, with an activation between them.

  Attributes:
    hidden_size: F.
    activation: elementwise function.
    use_bias: whether the dense layers have one.
    dtype: dtype of the computation; None follows the input.
    kernel_init: initialiser of the dense layers.
  """

  hidden_size: int
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  use_bias: bool = True
  dtype: Any = None
  kernel_init: Any = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., E]` to `[..., E]`."""
    checks.positive_int("hidden_size", self.hidden_size)

    def dense(size, name):
      return nn.Dense(
        size,
        use_bias=self.use_bias,
        dtype=self.dtype,
        kernel_init=self.kernel_init,
        name=name,
      )

    hidden = self.activation(dense(self.hidden_size, "up")(x))
    return dense(x.shape[-1], "down")(hidden)


class Block(nn.Module):
  """x + attention(norm(x)), then x + feed_forward(norm(x)).

  With `cross_attention`, x + cross_attention(norm(x), context) is between them;
  the context itself is not normed.

  Attributes:
    num_heads: heads of the attention.
    hidden_size: F.
    activation: of the feed-forward layers.
    causal, use_rotary, decode, max_len: as in `attention.MultiHeadAttention`.
    cross_attention: whether the block attends to a context as well.
    remat: 'attention' computes the attention weights again in the backward
      pass; the rest is the stack's.
    use_bias: whether dense layers and norms have one.
    dtype: dtype of the computation; None follows the input.
  """

  num_heads: int
  hidden_size: int
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  causal: bool = False
  use_rotary: bool = False
  decode: bool = False
  max_len: int | None = None
  cross_attention: bool = False
  remat: str = "none"
  use_bias: bool = True
  dtype: Any = None

  def _norm(self, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(dtype=self.dtype, use_bias=self.use_bias, name=name)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    valid: jax.Array | None = None,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    bias: jax.Array | None = None,
    context: jax.Array | None = None,
    context_valid: jax.Array | None = None,
  ) -> jax.Array:
    """`[B, T, E]` to `[B, T, E]`; arguments as for the attention.

    `context` `[B, S, C]` and `context_valid` `[B, S]` are of the
    cross-attention, the others of the self-attention.
    """
    attend = attention.MultiHeadAttention(
      self.num_heads,
      causal=self.causal,
      use_rotary=self.use_rotary,
      use_bias=self.use_bias,
      decode=self.decode,
      max_len=self.max_len,
      remat=self.remat == "attention",
      dtype=self.dtype,
      name="attention",
    )
    feed_forward = FeedForward(
      self.hidden_size,
      activation=self.activation,
      use_bias=self.use_bias,
      dtype=self.dtype,
      name="feed_forward",
    )
    x = x + attend(
      self._norm("attention_norm")(x),
      valid=valid,
      mask=mask,
      positions=positions,
      bias=bias,
    )
    if self.cross_attention:
      x = x + self._cross(x, context, context_valid)
    return x + feed_forward(self._norm("feed_forward_norm")(x))

  def _cross(self, x, context, context_valid) -> jax.Array:
    attend = attention.MultiHeadAttention(
      self.num_heads,
      use_bias=self.use_bias,
      decode=self.decode,
      cross=True,
      remat=self.remat == "attention",
      dtype=self.dtype,
      name="cross_attention",
    )
    normed = self._norm("cross_attention_norm")(x)
    return attend(normed, context, valid=context_valid)


class Stack(nn.Module):
  """Blocks, then a `norm`; an encoder, or with `causal` a decoder.

  Unrolled, the blocks are `block_0`, `block_1`, ...; with `scan` they are one
  `blocks` whose parameters have a leading axis of layers (see
  `stack_blocks`), which compiles faster and hides the layers from taps.

  Attributes:
    num_layers: number of blocks.
    num_heads, hidden_size, activation, causal, use_rotary, decode, max_len,
      cross_attention, use_bias, dtype: of the blocks.
    scan: one block run `num_layers` times by `nn.scan`.
    remat: what the backward pass computes again instead of keeping it: 'none',
      'attention' (the weights alone), 'block' (all of a block).
  """

  num_layers: int
  num_heads: int
  hidden_size: int
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  causal: bool = False
  use_rotary: bool = False
  decode: bool = False
  max_len: int | None = None
  cross_attention: bool = False
  scan: bool = False
  remat: str = "none"
  use_bias: bool = True
  dtype: Any = None

  def _block(self, name: str) -> Block:
    return Block(
      self.num_heads,
      self.hidden_size,
      activation=self.activation,
      causal=self.causal,
      use_rotary=self.use_rotary,
      decode=self.decode,
      max_len=self.max_len,
      cross_attention=self.cross_attention,
      remat=self.remat,
      use_bias=self.use_bias,
      dtype=self.dtype,
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
    bias: jax.Array | None = None,
    context: jax.Array | None = None,
    context_valid: jax.Array | None = None,
  ) -> jax.Array:
    """`[B, T, E]` to `[B, T, E]`; arguments as for the attention.

    `context` `[B, S, C]` and `context_valid` `[B, S]` are of the
    cross-attention, the others of the self-attention.
    """
    checks.one_of("remat", self.remat, REMATS)
    checks.positive_int("num_layers", self.num_layers)
    if context is not None:
      checks.one_of("cross_attention", self.cross_attention, [True])

    def run(block, x):
      return block(
        x,
        valid=valid,
        mask=mask,
        positions=positions,
        bias=bias,
        context=context,
        context_valid=context_valid,
      )

    if self.remat == "block":
      run = nn.remat(run, prevent_cse=not self.scan)
    if self.scan:
      x, _ = nn.scan(
        lambda block, x, _: (run(block, x), None),
        variable_axes={"params": 0, "cache": 0, "memory": 0},
        split_rngs={"params": True},
        length=self.num_layers,
      )(self._block("blocks"), x, None)
    else:
      for i in range(self.num_layers):
        x = run(self._block(f"block_{i}"), x)
    return nn.LayerNorm(dtype=self.dtype, use_bias=self.use_bias, name="norm")(
      x
    )


def _numbers(params: Mapping[str, Any]) -> list[str]:
  """Names of the blocks in the order of their numbers."""
  names = [name for name in params if re.fullmatch(r"block_\d+", name)]
  names.sort(key=lambda name: int(name.removeprefix("block_")))
  if names != [f"block_{i}" for i in range(len(names))] or not names:
    raise ValueError(
      f"params has the names {sorted(params)}: it must have block_0, block_1, "
      "... of an unrolled stack."
    )
  return names


def stack_blocks(params: Mapping[str, Any]) -> dict[str, types.PyTree]:
  """Parameters (or cache) of an unrolled stack as one with `scan` wants them.

  Raises:
    ValueError: no blocks, or numbers missing.
  """
  names = _numbers(params)
  rest = {k: v for k, v in params.items() if k not in names}
  blocks = [params[name] for name in names]
  return {**rest, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, types.PyTree]:
  """The inverse of `stack_blocks`.

  Raises:
    ValueError: there is no `blocks`.
  """
  if "blocks" not in params:
    raise ValueError(
      f"params has the names {sorted(params)}: it must have 'blocks'."
    )
  rest = {k: v for k, v in params.items() if k != "blocks"}
  num = jax.tree.leaves(params["blocks"])[0].shape[0]
  each = {
    f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"])
    for i in range(num)
  }
  return {**rest, **each}
