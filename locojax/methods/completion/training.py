"""Batches of examples, and their loss."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from locojax.core import checks, labels, metrics, types
from locojax.methods.completion import examples as examples_lib
from locojax.methods.completion.examples import Example, Tokenizer
from locojax.nn import seq2seq


def target_tokens(
  example: Example, tokenizer: Tokenizer, *, max_tokens: int
) -> list[int]:
  """The target and the end; a target that is too long is cut, without end."""
  tokens = tokenizer.encode(example.target)
  return [*tokens, tokenizer.eos][: checks.positive_int("max", max_tokens)]


def _rows(rows: Sequence[Sequence[int]], width: int, fill: int) -> np.ndarray:
  out = np.full((len(rows), width), fill, np.int32)
  for line, row in zip(out, rows):
    line[: len(row)] = row
  return out


def encoder_decoder_batch(
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  *,
  max_inputs: int,
  max_targets: int,
  prefix_share: float = 0.75,
  with_suffix: bool = True,
) -> dict[str, np.ndarray]:
  """Examples as `examples.input_tokens` and targets.

  Args:
    examples: B of them.
    tokenizer: of the model.
    max_inputs: S, of the encoder.
    max_targets: T, of the decoder.
    prefix_share: see `examples.fit`.
    with_suffix: whether the model sees what is after the cursor.

  Returns:
    `inputs` `[B, S]` int32, `num_inputs` `[B]`, `targets` `[B, T]`,
    `num_targets` `[B]`; padding is behind.
  """
  inputs, targets = [], []
  for e in examples:
    inputs.append(
      examples_lib.input_tokens(
        e.prefix,
        e.suffix if with_suffix else "",
        e.language,
        tokenizer,
        max_tokens=max_inputs,
        prefix_share=prefix_share,
      )
    )
    targets.append(target_tokens(e, tokenizer, max_tokens=max_targets))
  return _batch(inputs, targets, max_inputs, max_targets, tokenizer.pad)


def decoder_batch(
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  *,
  max_inputs: int,
  max_targets: int,
  order: str = "psm",
  prefix_share: float = 0.75,
  with_suffix: bool = True,
) -> dict[str, np.ndarray]:
  """The same for a decoder alone: `inputs` are `examples.fim_tokens`."""
  inputs, targets = [], []
  for e in examples:
    inputs.append(
      examples_lib.fim_tokens(
        e.prefix,
        e.suffix if with_suffix else "",
        e.language,
        tokenizer,
        max_tokens=max_inputs,
        order=order,
        prefix_share=prefix_share,
      )
    )
    targets.append(target_tokens(e, tokenizer, max_tokens=max_targets))
  return _batch(inputs, targets, max_inputs, max_targets, tokenizer.pad)


def _batch(inputs, targets, max_inputs, max_targets, pad):
  lengths = lambda rows: np.array([len(r) for r in rows], np.int32)
  return {
    "inputs": _rows(inputs, max_inputs, pad),
    "num_inputs": lengths(inputs),
    "targets": _rows(targets, max_targets, pad),
    "num_targets": lengths(targets),
  }


def _before(lengths: jax.Array, width: int) -> jax.Array:
  """`[B, width]`, true at places below the lengths."""
  return jnp.arange(width) < lengths[:, None]


def _counted(batch) -> tuple[jax.Array, ...]:
  """Tokens with zeros at what does not count, and how many count."""
  out = []
  for name in ("inputs", "targets"):
    num = batch[f"num_{name}"]
    if "mask" in batch:
      num = jnp.where(batch["mask"] != 0, num, 0)
    there = _before(num, batch[name].shape[1])
    out += [jnp.where(there, batch[name], 0), num]
  return tuple(out)


def _logits(model, params, batch):
  """Logits, the tokens they should be, and which of these count, `[B, N]`.

  N are the targets, and for a decoder alone what of the prompt is before them.
  """
  inputs, num_inputs, targets, num_targets = _counted(batch)
  valid = _before(num_inputs, inputs.shape[1])
  real = _before(num_targets, targets.shape[1])
  if isinstance(model, seq2seq.Seq2SeqLM):
    start = jnp.zeros_like(targets[:, :1])
    logits = model.apply(
      {"params": params},
      jnp.concatenate([start, targets[:, :-1]], axis=1),
      inputs=inputs,
      inputs_valid=valid,
    )
    return logits, targets, real
  # Targets stand behind the padding of the prompts, which is skipped.
  tokens = jnp.concatenate([inputs, targets], axis=1)
  both = jnp.concatenate([valid, real], axis=1)
  logits = model.apply({"params": params}, tokens[:, :-1], valid=both[:, :-1])
  # The last real token of the prompt says what the first target is.
  width = inputs.shape[1]
  at = jnp.maximum(num_inputs - 1, 0)[:, None, None]
  last = jnp.take_along_axis(logits, at, axis=1)
  behind = jnp.concatenate([last, logits[:, width:]], axis=1)
  inside = _before(num_inputs - 1, width - 1)
  logits = jnp.concatenate([logits[:, : width - 1], behind], axis=1)
  wanted = jnp.concatenate([inputs[:, 1:], targets], axis=1)
  return logits, wanted, jnp.concatenate([inside, real], axis=1)


def make_loss_fn(
  model: nn.Module, *, z_loss: float = 1e-4, context_weight: float = 0.0
) -> types.LossFn:
  """Cross-entropy of the targets, mean over their tokens, with a z-loss.

  The z-loss is z_loss * (log sum exp)^2 of each token's logits (as of T5X; it
  keeps logits from drifting).

  Args:
    model: of `model.encoder_decoder` or `model.decoder_only`.
    z_loss: 0 or more.
    context_weight: weight of the tokens of the prompt, which only a decoder
      alone can learn from; targets have 1.

  Returns:
    A `LossFn` of batches of `encoder_decoder_batch` or `decoder_batch`; a
    `mask` `[B]` beside them leaves examples out. Its
    metrics are `loss`, and of the targets `accuracy` and `cross_entropy`.

  Raises:
    ValueError: a setting; a `context_weight` for an encoder-decoder.
  """
  checks.nonnegative("z_loss", z_loss)
  checks.nonnegative("context_weight", context_weight)
  if context_weight and isinstance(model, seq2seq.Seq2SeqLM):
    checks.refuse("context_weight", context_weight, "0 for an encoder-decoder")

  def loss_fn(params, model_state, batch, key):
    del key
    logits, wanted, real = _logits(model, params, batch)
    logits = logits.astype(jnp.float32)
    width = batch["targets"].shape[1]
    weights = real.astype(jnp.float32)
    if "mask" in batch:
      weights = weights * batch["mask"].astype(jnp.float32)[:, None]
    is_target = jnp.arange(wanted.shape[1]) >= wanted.shape[1] - width
    weights = weights * jnp.where(is_target, 1.0, context_weight)
    each = labels.cross_entropy(logits, wanted)
    z = jax.nn.logsumexp(logits, axis=-1)
    value = metrics.mean(each + z_loss * z**2, weights)
    own = weights[:, -width:]
    right = jnp.argmax(logits, axis=-1)[:, -width:] == wanted[:, -width:]
    found = {
      "loss": value,
      "cross_entropy": metrics.mean(each[:, -width:], own),
      "accuracy": metrics.mean(right.astype(jnp.float32), own),
    }
    return value.loss(), (found, model_state)

  return loss_fn
