"""Greedy decoding as the released code of Pix2Seq does it.

Its cache holds the normed inputs of the attention, and every step projects to
keys and values those of all tokens so far, and the whole image (the released
`architectures/transformers.py`). For the benchmark alone: the parameters are
those of a `SequenceDecoder`, and so are the tokens that come out.

The number of tokens so far grows from step to step there. A compiled program
has fixed sizes, so they grow by `chunk` tokens here: at most `chunk - 1` rows
more than needed are projected.

Letters: B batch, L places of the image, T tokens, D model size.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from locojax.core import checks
from locojax.methods.pix2seq import encoders, model
from locojax.nn import attention


def _norm(p: Any, x: jax.Array) -> jax.Array:
  mean = x.mean(axis=-1, keepdims=True)
  var = jnp.square(x - mean).mean(axis=-1, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(var + encoders.EPS) * p["scale"] + p["bias"]


def _dense(p: Any, x: jax.Array) -> jax.Array:
  return x @ p["kernel"] + p["bias"]


def _attend(p: Any, x, source, heads: int, mask=None) -> jax.Array:
  split = lambda y: y.reshape(*y.shape[:-1], heads, -1)
  query = split(_dense(p["query"], x))
  key, value = (split(_dense(p[k], source)) for k in ("key", "value"))
  out = attention.attend(query, key, value, mask)
  return _dense(p["out"], out.reshape(*out.shape[:2], -1))


def _step(decoder, params, memory, size: int, carry, t):
  """One token at place t, of which the cache's first `size` rows are used."""
  caches, token = carry
  x = params["embed"]["embedding"][token]
  x = (x + params["positions"]["embedding"][t])[:, None]
  mask = (jnp.arange(size) <= t)[None, None, None]
  blocks, heads = params["decoder"], decoder.num_heads
  for i in range(decoder.num_layers):
    p = blocks[f"block_{i}"]
    h = _norm(p["attention_norm"], x)
    caches = caches.at[i, :, t].set(h[:, 0])
    x = x + _attend(p["attention"], h, caches[i, :, :size], heads, mask)
    h = _norm(p["cross_attention_norm"], x)
    x = x + _attend(p["cross_attention"], h, memory, heads)
    h = _norm(p["feed_forward_norm"], x)
    ff = p["feed_forward"]
    x = x + _dense(ff["down"], decoder.activation(_dense(ff["up"], h)))
  x = _norm(blocks["norm"], x)[:, 0]
  logits = x @ params["embed"]["embedding"].T + params["output_bias"]
  token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return (caches, token), token


def decode(
  decoder: model.SequenceDecoder,
  params: Any,
  memory: jax.Array,
  *,
  prompt: int,
  num_tokens: int,
  chunk: int = 50,
) -> jax.Array:
  """Greedy tokens `[B, T]` behind a prompt of one token.

  Args:
    decoder: its sizes; layers unrolled.
    params: its parameters.
    memory: `[B, L, D]`.
    prompt: the token of the prompt.
    num_tokens: T.
    chunk: by how many tokens the cache grows.
  """
  checks.positive_int("chunk", chunk)
  checks.int_in_range("num_tokens", num_tokens, 1, decoder.max_len)
  batch, _, size = memory.shape
  caches = jnp.zeros((decoder.num_layers, batch, num_tokens, size))
  carry = (caches, jnp.full((batch,), prompt, jnp.int32))
  said = []
  for start in range(0, num_tokens, chunk):
    stop = min(start + chunk, num_tokens)
    step = functools.partial(_step, decoder, params, memory, stop)
    carry, tokens = jax.lax.scan(step, carry, jnp.arange(start, stop))
    said.append(tokens)
  return jnp.concatenate(said).T
