"""A small recurrent model: each token matters to all logits after it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

VOCAB, SIZE = 6, 5
_KEYS = jax.random.split(jax.random.key(7), 3)
MIX = jax.random.normal(_KEYS[0], (SIZE, SIZE)) * 0.6
EMBED = jax.random.normal(_KEYS[1], (VOCAB, SIZE))
OUT = jax.random.normal(_KEYS[2], (SIZE, VOCAB)) * 1.5


def cache(batch: int):
  """Two leaves: rows first, and rows second under `blocks`."""
  return {"h": jnp.zeros((batch, SIZE)), "blocks": jnp.zeros((1, batch, SIZE))}


def step(cache, tokens):
  """The sum of both leaves is the state of the network."""
  h = cache["h"] + cache["blocks"][0]
  h = jnp.tanh(h @ MIX + EMBED[tokens[:, 0]])
  return {"h": h / 4, "blocks": 0.75 * h[None]}, h @ OUT


def prefill(prompts):
  """`[B, P]` to the cache and the logits of the next token."""
  prompts = jnp.asarray(prompts)
  state, logits = cache(len(prompts)), None
  for tokens in prompts.T:
    state, logits = step(state, tokens[:, None])
  return state, logits


def log_probs(tokens) -> np.ndarray:
  """Of the token after `tokens`, `[V]`, in float64 on the host."""
  mix, embed, out = (np.asarray(x, np.float64) for x in (MIX, EMBED, OUT))
  h = np.zeros(SIZE)
  for token in tokens:
    h = np.tanh(h @ mix + embed[token])
  logits = h @ out
  logits = logits - logits.max()
  return logits - np.log(np.exp(logits).sum())
