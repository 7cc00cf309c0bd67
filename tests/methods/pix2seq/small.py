"""A small model for the tests, with parameters drawn by NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from locojax import pix2seq
from locojax.core import trees

VOCAB = pix2seq.Vocabulary(num_classes=2, num_bins=8)
NUM, SIDE, MAX_LEN = 4, 16, 20
RESNET = dict(resnet_width=4, stage_sizes=(1, 1, 1, 1), variant="c3")


def model(name: str = "tiny", **settings):
  """A preset in small; `resnet` with one block in each stage."""
  sizes = dict(width=8, num_layers=1, num_heads=2, hidden_size=16)
  decoder = dict(model_size=8, num_layers=2, num_heads=2, hidden_size=16)
  encoder = {**sizes, **(RESNET if name == "resnet" else {})}
  return pix2seq.preset(
    name,
    VOCAB.size,
    max_len=MAX_LEN,
    encoder={**encoder, **settings.pop("encoder", {})},
    decoder=decoder,
    **settings,
  )


def drawn(net, scale: float = 0.4):
  """Parameters and model state; running variances are 1."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), images(), tokens())
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    if path.endswith(("var", "scale")):
      return jnp.ones(leaf.shape)
    return jnp.float32(rng.normal(0, scale, leaf.shape))

  made = dict(trees.map_with_path(fill, shapes))
  return made.pop("params"), made


@functools.cache
def images(num: int = NUM):
  """`[num, 16, 16, 3]` in [0, 1]; the first ones do not depend on `num`."""
  rng = np.random.default_rng(1)
  return jnp.float32(rng.uniform(size=(num, SIDE, SIDE, 3)))


@functools.cache
def tokens(num: int = NUM, length: int = 10):
  """`[num, length]` tokens at random."""
  rng = np.random.default_rng(2)
  made = rng.integers(VOCAB.size, size=(num, length))
  return jnp.asarray(made, jnp.int32)


def batch(num: int = NUM):
  """A batch with one to three boxes an image, in four slots."""
  rng = np.random.default_rng(3)
  low = rng.uniform(0, 0.5, size=(num, 4, 2))
  high = low + rng.uniform(0.1, 0.5, size=(num, 4, 2))
  labels = rng.integers(1, 3, size=(num, 4)).astype(np.int32)
  return {
    "image": images(num),
    "boxes": jnp.float32(np.concatenate([low, high], axis=-1)),
    "labels": jnp.asarray(labels),
    "valid": jnp.arange(4) < 1 + jnp.arange(num)[:, None] % 3,
  }
