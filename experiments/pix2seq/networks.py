"""Vocabulary and models of a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.pix2seq import conditions, detr
from locojax.methods import pix2seq, smelu
from locojax.nn import vit

# Settings of `pix2seq.preset` that are given as they are.
_PLAIN = ("dropout", "drop_path", "scan", "remat", "kernel")


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """By name, such as `gelu` (the exact one), `relu` or `smelu:0.5`.

  Raises:
    ValueError: an unknown name.
  """
  return vit.EXACT_GELU if name == "gelu" else smelu.get_activation(name)


PIXELS = ("unit", "standardised")


def prepared(config, images: jax.Array) -> jax.Array:
  """Bytes as the model sees them, float32 `[B, H, W, 3]`.

  `unit`: in [0, 1], as in the released code. `standardised`: each channel of
  an image less its mean, over its standard deviation. Where the colours of
  images differ a lot, small models learn much faster from that: what stands out
  is far from 0, whatever the colour of the ground.

  Args:
    config: with `model.pixels`.
    images: `[B, H, W, 3]` uint8.
  """
  x = images.astype(jnp.float32) / 255
  if config.model.pixels == "unit":
    return x
  mean = x.mean(axis=(1, 2), keepdims=True)
  std = x.std(axis=(1, 2), keepdims=True)
  return (x - mean) / jnp.maximum(std, 1 / 255)


def sequence(config) -> dict[str, Any]:
  """The settings of sequences, with what the method and the stage change."""
  changes = conditions.CONDITIONS[config.method].sequence
  found = {**config.sequence.to_dict(), **changes}
  if config.stage == "pretrain" and config.pretrain.max_objects:
    found["max_objects"] = config.pretrain.max_objects
  return found


def vocabulary(config, num_classes: int) -> pix2seq.Vocabulary:
  """The tokens of a config.

  Args:
    config: with a method.
    num_classes: labels are 1 to this.
  """
  found = sequence(config)
  return pix2seq.Vocabulary(
    num_classes, found["num_bins"], layout=found["layout"]
  )


SIZES = ("given", "preset")


def sizes(config) -> dict[str, dict[str, Any]]:
  """What differs from the preset, of `encoder` and `decoder`."""
  found = config.model.to_dict()
  return {
    part: found[part] if found["sizes"] == "given" else {}
    for part in ("encoder", "decoder")
  }


def model(config, vocab_size: int) -> pix2seq.Pix2Seq:
  """The model of a config."""
  settings = config.model.to_dict()
  least = pix2seq.PER_OBJECT * config.sequence.max_objects
  return pix2seq.preset(
    settings["preset"],
    vocab_size,
    max_len=settings["max_len"] or least,
    **sizes(config),
    activation=activation(settings["activation"]),
    dtype=jnp.dtype(settings["dtype"]),
    **{k: settings[k] for k in _PLAIN},
  )


def set_model(config, num_classes: int) -> detr.Detr:
  """Set prediction with the encoder, bridge and blocks of that model."""
  # Of its decoder only the sizes are used.
  return detr.from_pix2seq(
    model(config, 1), num_classes, config.sequence.max_objects
  )
