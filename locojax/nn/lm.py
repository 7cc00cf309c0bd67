"""Language models: a decoder alone or under an encoder, with a cache.

A decoder generates by three functions, which `locojax.decode` takes:

    cache, kept, logits = lm.prefill(model, params, prompts, valid=valid)
    step = lm.next_token(model, params, kept)
    out = generate.generate(step, cache, logits, ...)

Letters: B batch, T tokens, S keys of the memory, V vocabulary, E model size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import checks, types
from locojax.nn import attention, few_rows, relative, transformer

POSITIONS = ("learned", "rotary", "relative")


class DecoderLM(nn.Module):
  """Tokens to logits of the next token.

  Layers: `embed`, `positions` (learned), `relative` (positions), `decoder` (see
  `transformer.Stack`), `output` (unless the embedding is tied), `output_bias`.

  Attributes:
    vocab_size: V.
    max_len: longest sequence; size of learned positions.
    num_layers, num_heads, activation, gated, scan, remat, use_bias, norm: of
      the stack.
    model_size: E.
    hidden_size: of the feed-forward layers; None is 4 E.
    positions: 'learned', 'rotary' or 'relative' (of T5, see `relative`).
    tie_embedding: whether the logits are products with the embedding.
    output_bias: whether a bias is added to the logits.
    cross_attention: whether the blocks attend to a memory as well: the output
      of an encoder of tokens, images or anything else.
    cache_len: how many tokens the cache holds; None is `max_len`. A step costs
      less with a short one.
    embed: an embedding shared with another module; None makes an own one.
    embedding_init, position_init, output_bias_init: initialisers; the first one
      None is that of `nn.Embed`.
    dtype: dtype of the computation; None is that of the parameters. Parameters
      are float32.
    dropout, drop_path: of the stack, in training.
    kernel: of the attention, see `attention.MultiHeadAttention`.
    stack: makes the decoder of the settings above, `transformer.Stack` or one
      that takes the same, such as `parallel.ParallelStack`.
    logit_scale: what the logits are multiplied by, before the bias.
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
  tie_embedding: bool = False
  output_bias: bool = False
  cross_attention: bool = False
  cache_len: int | None = None
  scan: bool = False
  remat: str = "none"
  use_bias: bool = True
  norm: str = "layer"
  embed: nn.Module | None = None
  embedding_init: Any = None
  position_init: Any = nn.initializers.normal(0.02)
  output_bias_init: Any = nn.initializers.zeros_init()
  dtype: Any = None
  dropout: float = 0.0
  drop_path: float = 0.0
  stack: Callable[..., nn.Module] = transformer.Stack
  logit_scale: float = 1.0
  kernel: str = "full"

  def _check(self) -> None:
    for name in ("vocab_size", "max_len", "model_size"):
      checks.positive_int(name, getattr(self, name))
    if self.cache_len is not None:
      checks.int_in_range("cache_len", self.cache_len, 1, self.max_len)
    for name in ("tie_embedding", "output_bias", "cross_attention"):
      checks.boolean(name, getattr(self, name))
    if self.hidden_size is not None:
      checks.positive_int("hidden_size", self.hidden_size)
    checks.one_of("positions", self.positions, POSITIONS)
    checks.positive("logit_scale", self.logit_scale)
    checks.float_dtype("dtype", self.dtype)

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    *,
    valid: jax.Array | None = None,
    mask: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    memory: jax.Array | None = None,
    memory_valid: jax.Array | None = None,
    at: jax.Array | None = None,
    decode: bool = False,
    train: bool = False,
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
    `scan`). Tokens beyond `cache_len` in all are not remembered. The memory is
    projected in the call that gives it, to the collection `memory`, mutable
    then; later calls read it from there, and may have several rows of tokens
    for each of its rows. `prefill` and `next_token` do all this.

    Args:
      tokens: integers in [0, V); T at most `max_len`.
      valid: `[B, T]`, false at padding; None if there is none.
      mask: bool, broadcast to `[B, H, T, S]`, besides these.
      segment_ids: `[B, T]` integers that tell texts packed into one row apart:
        a token sees its own text alone, as if that were all; not with `decode`.
      memory: `[B, S, C]`, for `cross_attention`.
      memory_valid: `[B, S]`, false at its padding; None if there is none.
      at: `[B, K]`, the places in T whose logits are wanted; None is all.
      decode: whether to use the cache.
      train: whether anything is dropped, by keys of the name `dropout`.

    Returns:
      `[B, T, V]`, or `[B, K, V]` with `at`.

    Raises:
      ValueError: a setting, a sequence that is too long, or a memory that is
        missing or that the model has no cross-attention for.
    """
    self._check()
    checks.in_range("length of tokens", tokens.shape[1], 1, self.max_len)
    if segment_ids is not None:
      checks.one_of("decode", decode, [False])
      apart = attention.segment_mask(segment_ids)
      mask = attention.combine_masks(mask, apart)
    places = self._places(tokens, valid, segment_ids, decode)
    embed = self.embed or embedding(self, "embed")
    x = embed(tokens)
    if self.positions == "learned":
      x = x + learned_positions(self, places)
    x = self.stack(
      self.num_layers,
      self.num_heads,
      self.hidden_size or 4 * self.model_size,
      activation=self.activation,
      gated=self.gated,
      causal=True,
      use_rotary=self.positions == "rotary",
      decode=decode,
      max_len=self.cache_len or self.max_len,
      cross_attention=self.cross_attention,
      scan=self.scan,
      remat=self.remat,
      use_bias=self.use_bias,
      norm=self.norm,
      dtype=self.dtype,
      dropout=self.dropout,
      drop_path=self.drop_path,
      kernel=self.kernel,
      name="decoder",
    )(
      x,
      valid=valid,
      mask=mask,
      positions=places,
      bias=self._bias(places, decode),
      context=memory,
      context_valid=self._memory_valid(memory, memory_valid, decode),
      train=train,
    )
    if at is not None:
      x = jnp.take_along_axis(x, at[:, :, None], axis=1)
    return self._logits(embed, x)

  def _logits(self, embed, x: jax.Array) -> jax.Array:
    if self.tie_embedding:
      logits = embed.attend(x)
    else:
      logits = nn.Dense(
        self.vocab_size, use_bias=False, dtype=self.dtype, name="output"
      )(x)
    if self.logit_scale != 1:
      logits = logits * jnp.asarray(self.logit_scale, logits.dtype)
    if not self.output_bias:
      return logits
    bias = self.param("output_bias", self.output_bias_init, (self.vocab_size,))
    return logits + bias.astype(logits.dtype)

  def _bias(self, places: jax.Array, decode: bool) -> jax.Array | None:
    """Added to the scores of self-attention, `[B or 1, H, T, S]`."""
    if self.positions != "relative":
      return None
    length = self.cache_len or self.max_len
    keys = jnp.arange(length)[None] if decode else places
    table = relative.RelativeBias(
      self.num_heads, bidirectional=False, name="relative"
    )
    return table(places, keys)

  def _memory_valid(self, memory, memory_valid, decode: bool):
    """Which keys of the memory are real; kept beside them for `decode`."""
    if not decode or not self.cross_attention:
      return memory_valid
    if memory is None:
      return self.get_variable("memory", "valid")
    if memory_valid is not None:
      self.put_variable("memory", "valid", memory_valid.astype(bool))
    return memory_valid

  def _places(self, tokens, valid, segment_ids, decode: bool) -> jax.Array:
    """Positions `[B, T]` or `[1, T]`; moves the cache's count on."""
    if segment_ids is not None:
      valid = jnp.ones(tokens.shape, bool) if valid is None else valid
      return attention.valid_positions(valid, segment_ids)
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


def embedding(module: nn.Module, name: str | None = None) -> nn.Embed:
  """The embedding of tokens that a model's attributes describe.

  Args:
    module: has `vocab_size`, `model_size`, `dtype` and `embedding_init`.
    name: of the layer; None is for a `setup`.
  """
  init = module.embedding_init
  given = {} if init is None else {"embedding_init": init}
  return nn.Embed(
    module.vocab_size,
    module.model_size,
    dtype=module.dtype,
    name=name,
    **given,
  )


def learned_positions(module: nn.Module, places: jax.Array) -> jax.Array:
  """Rows of the table `positions`, `[B or 1, T]` to `[B or 1, T, E]`."""
  return nn.Embed(
    module.max_len,
    module.model_size,
    dtype=module.dtype,
    embedding_init=module.position_init,
    name="positions",
  )(jnp.minimum(places, module.max_len - 1))


def init_cache(model: nn.Module, batch_size: int) -> types.PyTree:
  """An empty cache for `decode=True`: zeros, no computation.

  Args:
    model: a `DecoderLM` or a `seq2seq.Seq2SeqLM`.
    batch_size: B.

  Returns:
    `length` `[B]` int32 and, for each layer, keys and values
    `[B, heads, cache_len, head size]`.
  """
  checks.positive_int("batch_size", batch_size)
  tokens = jnp.zeros((batch_size, 1), jnp.int32)
  memory = {}
  if model.cross_attention:
    memory = {"memory": jnp.zeros((batch_size, 1, model.model_size))}
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), tokens, decode=True, **memory)[
      "cache"
    ]
  )
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def prefill(
  model: nn.Module,
  params: types.PyTree,
  tokens: jax.Array,
  *,
  valid: jax.Array | None = None,
  memory: jax.Array | None = None,
  memory_valid: jax.Array | None = None,
  reserve: int = 0,
) -> tuple[types.PyTree, types.PyTree, jax.Array]:
  """Reads the prompts, and projects the memory, once for all steps.

  Args:
    model: a `DecoderLM` or a `seq2seq.Seq2SeqLM`.
    params: its parameters.
    tokens: `[B, T]` prompts, of one token at least.
    valid: `[B, T]`, false at padding, on any side; None if there is none.
    memory: `[B, S, C]`, what an encoder gave, for `cross_attention`.
    memory_valid: `[B, S]`, false at its padding.
    reserve: how many tokens are to come; refused if the cache is too small.

  Returns:
    The cache; the projected memory (an empty dict without cross-attention),
    for `next_token`; logits `[B, V]` of the first new token.

  Raises:
    ValueError: prompt and reserve are longer than the cache; what the model
      refuses.
  """
  checks.nonnegative_int("reserve", reserve)
  batch, num = tokens.shape
  length = model.cache_len or model.max_len
  checks.in_range("length of tokens and reserve", num + reserve, 1, length)
  last = jnp.full((batch,), num - 1, jnp.int32)
  if valid is not None:
    last = last - jnp.argmax(valid.astype(bool)[:, ::-1], axis=-1)
  logits, new = model.apply(
    {"params": params, "cache": init_cache(model, batch)},
    tokens,
    valid=valid,
    memory=memory,
    memory_valid=memory_valid,
    at=last[:, None],
    decode=True,
    mutable=["cache", "memory"],
  )
  return new["cache"], new.get("memory", {}), logits[:, 0]


def next_token(
  model: nn.Module,
  params: types.PyTree,
  memory: types.PyTree | None = None,
  *,
  in_loop: bool = True,
) -> Callable[[types.PyTree, jax.Array], tuple[types.PyTree, jax.Array]]:
  """The step of generation, `(cache, tokens [B, 1]) -> (cache, [B, V])`.

  Args:
    model: a `DecoderLM` or a `seq2seq.Seq2SeqLM`.
    params: its parameters.
    memory: the projected memory of `prefill`. It is read by each step and
      changed by none; its rows may serve several rows of the cache each.
    in_loop: whether steps are taken in a loop of one compiled program, which
      gains from `few_rows`; a program of a single step does not.
  """
  checks.boolean("in_loop", in_loop)
  kept = {"memory": memory} if memory else {}
  in_loop = in_loop and not model.scan

  def step(cache, tokens):
    with few_rows.in_loop() if in_loop else contextlib.nullcontext():
      logits, new = model.apply(
        {"params": params, "cache": cache, **kept},
        tokens,
        decode=True,
        mutable=["cache"],
      )
    return new["cache"], logits[:, -1]

  return step
