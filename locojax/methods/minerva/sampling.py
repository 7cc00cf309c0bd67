"""Solutions of a model: many samples of a prompt, and how likely a text is.

Lewkowycz et al., arXiv 2206.14858: temperature 0.6 and nucleus 0.95, up to 512
tokens; the prompt is read once for all of its samples.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax import decode
from locojax.core import arrays, checks, types
from locojax.nn import lm

TEMPERATURE, TOP_P = 0.6, 0.95


def sampler(
  temperature: float = TEMPERATURE,
  top_p: float = TOP_P,
  top_k: int | None = None,
) -> decode.Sampler:
  """How tokens are drawn: the temperature first, then the filter.

  Args:
    temperature: 0 or more; 0 is greedy.
    top_p: share of probability, in (0, 1].
    top_k: how many tokens; None is all. Not together with a `top_p` below 1.

  Raises:
    ValueError: a number out of range, or both filters.
  """
  if top_k is not None and top_p != 1:
    raise ValueError(
      f"top_k={top_k} is not allowed with top_p={top_p}: it must be None, or "
      "top_p 1."
    )
  return decode.Sampler(temperature=temperature, top_p=top_p, top_k=top_k or 0)


def sample(
  model: nn.Module,
  params: types.PyTree,
  prompts: jax.Array,
  *,
  num_samples: int,
  key: jax.Array | None,
  valid: jax.Array | None = None,
  temperature: float = TEMPERATURE,
  top_p: float = TOP_P,
  top_k: int | None = None,
  max_new_tokens: int = 512,
  stop_tokens: Iterable[int] = (),
  constraint: decode.Constraint | None = None,
  row_ids: jax.Array | None = None,
  rows: jax.Array | None = None,
  data_axis: str | tuple[str, ...] | None = None,
) -> decode.Generated:
  """Samples that follow prompts; for use under `jax.jit`.

  Sample i of a prompt is drawn by a key of its own, which depends on neither
  the other prompts nor `num_samples` (see `decode.generate`). The cache is as
  long as prompt and new tokens together.

  Args:
    model: a `lm.DecoderLM`, such as `palm_model` makes.
    params: its parameters.
    prompts: `[B, P]` tokens.
    num_samples: n for each prompt.
    key: typed PRNG key; None for temperature 0.
    valid: `[B, P]`, false at padding.
    temperature, top_p, top_k: see `sampler`.
    max_new_tokens: T; prompt and T must not be longer than `model.max_len`.
    stop_tokens: tokens that end a solution.
    constraint: such as `decode.stop_sequences`, for an end of several tokens.
    row_ids, rows: as of `decode.generate`.
    data_axis: axis of the mesh that the B n sequences are laid out over; None
      leaves the layout to the compiler.

  Returns:
    Tokens `[B, n, T]`, and log-probabilities of the model itself and of what
    was drawn from.

  Raises:
    ValueError: a bad setting; a prompt that leaves no room for T tokens, which
      `left_truncate` makes.
  """
  how = sampler(temperature, top_p, top_k)
  checks.positive_int("max_new_tokens", max_new_tokens)
  length = prompts.shape[1] + max_new_tokens
  if length > model.max_len:
    raise ValueError(
      f"prompts of {prompts.shape[1]} tokens are not allowed: with "
      f"max_new_tokens={max_new_tokens} they must have at most "
      f"{model.max_len - max_new_tokens} (see left_truncate)."
    )
  model = model.clone(cache_len=length)
  even = decode.cache.even(data_axis, prompts.shape[0])
  prompts, valid = decode.cache.shard((prompts, valid), even, axes=0)
  cache, kept, logits = lm.prefill(
    model, params, prompts, valid=valid, reserve=max_new_tokens
  )
  return decode.generate(
    lm.next_token(model, params, kept),
    cache,
    logits,
    max_new_tokens=max_new_tokens,
    sampler=how,
    key=key,
    num_samples=num_samples,
    stop_tokens=stop_tokens,
    constraint=constraint,
    row_ids=row_ids,
    rows=rows,
    data_axis=data_axis,
  )


def log_likelihoods(
  model: nn.Module,
  params: types.PyTree,
  tokens: jax.Array,
  weights: jax.Array,
  *,
  valid: jax.Array | None = None,
) -> jax.Array:
  """Log-probabilities of texts under the model itself, for `rerank`.

  Args:
    model: a `lm.DecoderLM`.
    params: its parameters.
    tokens: `[B, T]`, prompt and solution.
    weights: `[B, T]`, 1 at the tokens that count: those of the solution. The
      first token of a row has nothing before it and never counts.
    valid: `[B, T]`, false at padding; None if there is none.

  Returns:
    `[B]` float32, sums over tokens.
  """
  checks.same_shape("weights", weights.shape, "tokens", tokens.shape)
  before = None if valid is None else valid[:, :-1]
  logits = model.apply({"params": params}, tokens[:, :-1], valid=before)
  logits = decode.log_softmax(arrays.as_float(logits))
  each = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
  weights = weights[:, 1:].astype(each.dtype)
  return jnp.sum(arrays.kept(each, weights) * weights, axis=-1)
