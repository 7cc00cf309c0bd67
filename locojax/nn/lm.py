"""Decoder-only language model, with a cache for generation.

Letters: B batch, T tokens, V vocabulary, E model size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import checks, types
from locojax.nn import attention, transformer

POSITIONS = ("learned", "rotary")


class DecoderLM(nn.Module):
  """Tokens to logits of the next token.

  Layers: `embed`, `positions` (learned), `decoder` (see `transformer.Stack`),
  `output` (unless the embedding is tied).

  Attributes:
    vocab_size: V.
    max_len: longest sequence; size of the cache and of learned positions.
    num_layers, num_heads, activation, scan, remat, use_bias: of the stack.
    model_size: E.
    hidden_size: of the feed-forward layers; None is 4 E.
    positions: 'learned' or 'rotary'.
    tie_embedding: whether the logits are products with the embedding.
    dtype: dtype of the computation; None is that of the parameters. Parameters
      are float32.
  """

  vocab_size: int
  max_len: int
  num_layers: int
  num_heads: int
  model_size: int
  hidden_size: int | None = None
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  positions: str = "learned"
  tie_embedding: bool = False
  scan: bool = False
  remat: str = "none"
  use_bias: bool = True
  dtype: Any = None

  def _check(self) -> None:
    for name in ("vocab_size", "max_len", "model_size"):
      checks.positive_int(name, getattr(self, name))
    if self.hidden_size is not None:
      checks.positive_int("hidden_size", self.hidden_size)
    checks.one_of("positions", self.positions, POSITIONS)
    checks.float_dtype("dtype", self.dtype)

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    *,
    valid: jax.Array | None = None,
    mask: jax.Array | None = None,
    decode: bool = False,
  ) -> jax.Array:
    """`[B, T]` tokens to `[B, T, V]` logits, in the dtype of the computation.

    With `decode` the tokens follow those of the calls before, kept in the
    collection `cache` (`init_cache`), which must be mutable:

        logits, new = model.apply(
          {"params": params, "cache": cache}, tokens,
          decode=True, mutable="cache")
        cache = new["cache"]

    Padding is skipped wherever it stands, so prompts of several lengths share
    a batch. All arrays of the cache lead with B (after the layers, with
    `scan`). Tokens beyond `max_len` in all are not remembered.

    Args:
      tokens: integers in [0, V); T at most `max_len`.
      valid: `[B, T]`, false at padding; None if there is none.
      mask: bool, broadcast to `[B, H, T, S]`, besides these.
      decode: whether to use the cache.

    Raises:
      ValueError: a setting, or a sequence that is too long.
    """
    self._check()
    checks.in_range("length of tokens", tokens.shape[1], 1, self.max_len)
    places = self._places(tokens, valid, decode)
    embed = nn.Embed(
      self.vocab_size, self.model_size, dtype=self.dtype, name="embed"
    )
    x = embed(tokens)
    if self.positions == "learned":
      x = x + nn.Embed(
        self.max_len,
        self.model_size,
        dtype=self.dtype,
        embedding_init=nn.initializers.normal(0.02),
        name="positions",
      )(jnp.minimum(places, self.max_len - 1))
    x = transformer.Stack(
      self.num_layers,
      self.num_heads,
      self.hidden_size or 4 * self.model_size,
      activation=self.activation,
      causal=True,
      use_rotary=self.positions == "rotary",
      decode=decode,
      max_len=self.max_len,
      scan=self.scan,
      remat=self.remat,
      use_bias=self.use_bias,
      dtype=self.dtype,
      name="decoder",
    )(x, valid=valid, mask=mask, positions=places)
    if self.tie_embedding:
      return embed.attend(x)
    return nn.Dense(
      self.vocab_size, use_bias=False, dtype=self.dtype, name="output"
    )(x)

  def _places(self, tokens, valid, decode: bool) -> jax.Array:
    """Positions `[B, T]` or `[1, T]`; moves the cache's count on."""
    if valid is None:
      places = jnp.arange(tokens.shape[1])[None]
      count = jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32)
    else:
      places = attention.valid_positions(valid)
      count = jnp.sum(valid.astype(jnp.int32), axis=-1)
    if not decode:
      return places
    done = self.variable("cache", "length", jnp.zeros, count.shape, jnp.int32)
    places = places + done.value[:, None]
    if not self.is_initializing():
      done.value = done.value + count
    return places


def init_cache(model: DecoderLM, batch_size: int) -> types.PyTree:
  """An empty cache for `decode=True`: zeros, no computation.

  Args:
    model: the model.
    batch_size: B.

  Returns:
    `length` `[B]` int32 and, for each layer, keys and values
    `[B, max_len, heads, head size]`.
  """
  checks.positive_int("batch_size", batch_size)
  tokens = jnp.zeros((batch_size, 1), jnp.int32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), tokens, decode=True)["cache"]
  )
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
