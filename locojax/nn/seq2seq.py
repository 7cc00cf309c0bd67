"""Encoder-decoder language model, of the blocks that all models share.

Letters: B batch, S tokens of the input, T of the output, V vocabulary, E size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import checks
from locojax.nn import attention, lm, relative, transformer


class TokenEncoder(nn.Module):
  """Tokens to vectors that see each other in both directions.

  Layers: `embed`, `positions` (learned), `relative` (positions), `encoder` (see
  `transformer.Stack`).

  Attributes: as of `lm.DecoderLM`.
  """

  vocab_size: int
  max_len: int
  num_layers: int
  num_heads: int
  model_size: int
  hidden_size: int | None = None
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  gated: bool = False
  positions: str = "learned"
  scan: bool = False
  remat: str = "none"
  use_bias: bool = True
  norm: str = "layer"
  embed: nn.Module | None = None
  embedding_init: Any = None
  position_init: Any = nn.initializers.normal(0.02)
  dtype: Any = None

  def _check(self) -> None:
    for name in ("vocab_size", "max_len", "model_size"):
      checks.positive_int(name, getattr(self, name))
    if self.hidden_size is not None:
      checks.positive_int("hidden_size", self.hidden_size)
    checks.one_of("positions", self.positions, lm.POSITIONS)
    checks.float_dtype("dtype", self.dtype)

  @nn.compact
  def __call__(
    self, tokens: jax.Array, *, valid: jax.Array | None = None
  ) -> jax.Array:
    """`[B, S]` tokens to `[B, S, E]`.

    Args:
      tokens: integers in [0, V); S at most `max_len`.
      valid: `[B, S]`, false at padding, on any side; None if there is none.

    Raises:
      ValueError: a setting, or a sequence that is too long.
    """
    self._check()
    checks.in_range("length of inputs", tokens.shape[1], 1, self.max_len)
    places = jnp.arange(tokens.shape[1])[None]
    if valid is not None:
      places = attention.valid_positions(valid)
    x = (self.embed or lm.embedding(self, "embed"))(tokens)
    bias = None
    if self.positions == "learned":
      x = x + lm.learned_positions(self, places)
    elif self.positions == "relative":
      table = relative.RelativeBias(self.num_heads, name="relative")
      bias = table(places, places)
    return transformer.Stack(
      self.num_layers,
      self.num_heads,
      self.hidden_size or 4 * self.model_size,
      activation=self.activation,
      gated=self.gated,
      use_rotary=self.positions == "rotary",
      scan=self.scan,
      remat=self.remat,
      use_bias=self.use_bias,
      norm=self.norm,
      dtype=self.dtype,
      name="encoder",
    )(x, valid=valid, positions=places, bias=bias)


class Seq2SeqLM(nn.Module):
  """A `TokenEncoder` and a `lm.DecoderLM` with cross-attention.

  The parameters are `encoder`, `decoder` and, with one embedding for both,
  `embed`. Generation is that of `lm`:

      memory = model.apply({"params": params}, inputs, method="encode")
      cache, kept, logits = lm.prefill(model, params, prompts, memory=memory)
      step = lm.next_token(model, params, kept)

  Attributes:
    vocab_size: V, of inputs and outputs.
    max_inputs, max_len: the longest input and output.
    encoder_layers, decoder_layers: numbers of blocks.
    share_embedding: whether both have one embedding of tokens.
    others: as of `lm.DecoderLM`.
  """

  vocab_size: int
  max_inputs: int
  max_len: int
  encoder_layers: int
  decoder_layers: int
  num_heads: int
  model_size: int
  hidden_size: int | None = None
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  gated: bool = False
  positions: str = "learned"
  share_embedding: bool = True
  tie_embedding: bool = True
  output_bias: bool = False
  logit_scale: float = 1.0
  cache_len: int | None = None
  scan: bool = False
  remat: str = "none"
  use_bias: bool = True
  norm: str = "layer"
  embedding_init: Any = None
  dtype: Any = None

  @property
  def cross_attention(self) -> bool:
    """The decoder attends to a memory."""
    return True

  def setup(self):
    checks.boolean("share_embedding", self.share_embedding)
    embed = None
    if self.share_embedding:
      embed = self.embed = lm.embedding(self)
    shared = dict(
      vocab_size=self.vocab_size,
      num_heads=self.num_heads,
      model_size=self.model_size,
      hidden_size=self.hidden_size,
      activation=self.activation,
      gated=self.gated,
      positions=self.positions,
      scan=self.scan,
      remat=self.remat,
      use_bias=self.use_bias,
      norm=self.norm,
      embed=embed,
      embedding_init=self.embedding_init,
      dtype=self.dtype,
    )
    self.encoder = TokenEncoder(
      max_len=self.max_inputs, num_layers=self.encoder_layers, **shared
    )
    self.decoder = lm.DecoderLM(
      max_len=self.max_len,
      num_layers=self.decoder_layers,
      tie_embedding=self.tie_embedding,
      output_bias=self.output_bias,
      logit_scale=self.logit_scale,
      cross_attention=True,
      cache_len=self.cache_len,
      **shared,
    )

  def encode(
    self, inputs: jax.Array, *, valid: jax.Array | None = None
  ) -> jax.Array:
    """`[B, S]` tokens to the memory `[B, S, E]`; see `TokenEncoder`."""
    return self.encoder(inputs, valid=valid)

  def __call__(
    self,
    tokens: jax.Array,
    *,
    inputs: jax.Array | None = None,
    inputs_valid: jax.Array | None = None,
    memory: jax.Array | None = None,
    memory_valid: jax.Array | None = None,
    valid: jax.Array | None = None,
    mask: jax.Array | None = None,
    at: jax.Array | None = None,
    decode: bool = False,
  ) -> jax.Array:
    """`[B, T]` tokens to `[B, T, V]` logits of the tokens that follow them.

    Args:
      tokens: of the output, the first one a start; see `lm.DecoderLM`.
      inputs: `[B, S]` tokens of the input, which are encoded.
      inputs_valid: `[B, S]`, false at their padding.
      memory: `[B, S, E]`, encoded before, in place of `inputs`.
      memory_valid: `[B, S]`, false at its padding.
      valid, mask, at, decode: as of `lm.DecoderLM`.

    Raises:
      ValueError: a setting; inputs and memory at once, or neither.
    """
    if inputs is not None:
      if memory is not None:
        raise ValueError("inputs and memory are given: give one of them.")
      memory = self.encode(inputs, valid=inputs_valid)
      memory_valid = inputs_valid
    return self.decoder(
      tokens,
      valid=valid,
      mask=mask,
      memory=memory,
      memory_valid=memory_valid,
      at=at,
      decode=decode,
    )
