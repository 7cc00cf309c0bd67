"""Pix2Seq: an encoder of images, a bridge, and a decoder of tokens.

Chen et al. 2022, arXiv 2109.10852, sizes and details as of the released code.

    model = pix2seq.preset("vit_b", vocab.size)
    variables = model.init(key, images, tokens)
    logits = model.apply(variables, images, tokens)

Letters: B batch, H W height and width, L places of the grid, T tokens, V
vocabulary, E model size of the encoder, D of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from locojax.core import checks
from locojax.methods.pix2seq import encoders
from locojax.nn import lm, transformer, vit

BRIDGES = ("linear", "linear_p", "mlp")
_INIT = nn.initializers.truncated_normal(0.02)


class SequenceDecoder(lm.DecoderLM):
  """The decoder: a `lm.DecoderLM` with other defaults.

  Learned positions, attention to the image, an embedding that is also the
  matrix of the logits, and a bias of these. `max_len` is the longest sequence,
  5 times the most objects or more.
  """

  activation: Callable[[jax.Array], jax.Array] = vit.EXACT_GELU
  tie_embedding: bool = True
  output_bias: bool = True
  cross_attention: bool = True
  embedding_init: Any = _INIT
  position_init: Any = _INIT
  output_bias_init: Any = _INIT
  dropout: float = 0.1
  drop_path: float = 0.1


class Bridge(nn.Module):
  """From the vectors of the encoder to the memory of the decoder.

  Layers: `projection`, `norm`, and with 'mlp' `feed_forward_norm` and
  `feed_forward`.

  Attributes:
    size: D.
    mode: 'linear' is a dense layer and a norm; 'linear_p' adds the code of the
      place again; 'mlp' a feed-forward block, x + f(norm(x)), too.
    hidden_size: of that.
    activation, dropout, drop_path: of that, as in `transformer.Block`.
    dtype: dtype of the computation; None follows the input.
  """

  size: int
  mode: str
  hidden_size: int
  activation: Callable[[jax.Array], jax.Array]
  dropout: float
  drop_path: float
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """`[B, h, w, E]` to `[B, L, D]`."""
    checks.one_of("bridge", self.mode, BRIDGES)
    checks.below("drop_path", self.drop_path, 0, 1)
    init = nn.initializers.xavier_uniform()
    x = nn.Dense(
      self.size, dtype=self.dtype, kernel_init=init, name="projection"
    )(x)
    norm = lambda name: nn.LayerNorm(encoders.EPS, dtype=self.dtype, name=name)
    if self.mode == "linear":
      return norm("norm")(x).reshape(x.shape[0], -1, self.size)
    x = encoders.located(self, x, "norm").reshape(x.shape[0], -1, self.size)
    if self.mode == "linear_p":
      return x
    y = transformer.FeedForward(
      self.hidden_size,
      activation=self.activation,
      dtype=self.dtype,
      dropout=self.dropout,
      name="feed_forward",
    )(norm("feed_forward_norm")(x), train=train)
    drop = nn.Dropout(
      self.drop_path, broadcast_dims=(1, 2), deterministic=not train
    )
    return x + drop(y)


class Pix2Seq(nn.Module):
  """Images and tokens to logits of the tokens that follow.

  The parameters are `encoder`, `bridge` and `decoder`.

  Attributes:
    encoder: a `ViTEncoder`, a `ResNetEncoder`, or any module that maps images
      to `[B, h, w, E]` and takes `train` and `mask`.
    decoder: a `SequenceDecoder`.
    bridge_mode: 'linear', 'linear_p' or 'mlp', see `Bridge`.
    bridge_ratio: hidden size of the bridge over D; that of the encoder's blocks
      in the released models.
    activation, dropout, drop_path: of the bridge.
    dtype: dtype of the bridge; None follows the encoder.
  """

  encoder: nn.Module
  decoder: nn.Module
  bridge_mode: str = "mlp"
  bridge_ratio: int = 4
  activation: Callable[[jax.Array], jax.Array] = vit.EXACT_GELU
  dropout: float = 0.1
  drop_path: float = 0.1
  dtype: Any = None

  def setup(self):
    checks.positive_int("bridge_ratio", self.bridge_ratio)
    size = self.decoder.model_size
    self.bridge = Bridge(
      size,
      mode=self.bridge_mode,
      hidden_size=self.bridge_ratio * size,
      activation=self.activation,
      dropout=self.dropout,
      drop_path=self.drop_path,
      dtype=self.dtype,
    )

  def encode(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """The memory of the decoder, `[B, L, D]`.

    Args:
      images: `[B, H, W, channels]`, floats in [0, 1] or bytes; no mean is taken
        off. What pads an image is 0.3 in the released recipe.
      train: whether anything is dropped, by keys of the name `dropout`.
      mask: `[B]`, zero at images that are padding of the batch.

    Raises:
      ValueError: what the encoder refuses.
    """
    return self.bridge(
      self.encoder(images, train=train, mask=mask), train=train
    )

  def __call__(
    self,
    images: jax.Array,
    tokens: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Logits `[B, T, V]`: of place t, they depend on tokens up to t alone.

    Args:
      images, train, mask: as of `encode`.
      tokens: `[B, T]`, the inputs of `build_sequences`; or `[B n, T]`, n
        sequences of each image in turn.

    Raises:
      ValueError: what encoder or decoder refuse.
    """
    memory = self.encode(images, train=train, mask=mask)
    return self.decoder(tokens, memory=memory, train=train)


_VIT = dict(
  vit_b=dict(width=768, num_layers=12, num_heads=12, hidden_size=3072),
  vit_l=dict(width=1024, num_layers=24, num_heads=16, hidden_size=4096),
)
_LARGE = dict(model_size=512, num_heads=16, hidden_size=2048)
# Encoder, its settings, and those of the decoder.
PRESETS: dict[str, tuple[type[nn.Module], dict[str, Any], dict[str, Any]]] = {
  "resnet": (
    encoders.ResNetEncoder,
    dict(width=256, num_layers=6, num_heads=8, hidden_size=1024),
    dict(num_layers=6, model_size=256, num_heads=8, hidden_size=1024),
  ),
  "resnet_c": (
    encoders.ResNetEncoder,
    dict(
      width=512, num_layers=12, num_heads=16, hidden_size=2048, variant="c4"
    ),
    dict(num_layers=8, **_LARGE),
  ),
  "vit_b": (encoders.ViTEncoder, _VIT["vit_b"], dict(num_layers=6, **_LARGE)),
  "vit_l": (encoders.ViTEncoder, _VIT["vit_l"], dict(num_layers=8, **_LARGE)),
  # For small canvases on a CPU; not of the paper.
  "tiny": (
    encoders.ViTEncoder,
    dict(
      width=64,
      num_layers=2,
      num_heads=4,
      hidden_size=256,
      patch_size=8,
      stem="convolutions",
    ),
    dict(num_layers=2, model_size=64, num_heads=4, hidden_size=256),
  ),
}


def preset(
  name: str,
  vocab_size: int,
  *,
  max_len: int = 512,
  encoder: dict[str, Any] | None = None,
  decoder: dict[str, Any] | None = None,
  bridge_mode: str = "mlp",
  activation: Callable[[jax.Array], jax.Array] = vit.EXACT_GELU,
  dropout: float = 0.1,
  drop_path: float = 0.1,
  scan: bool = False,
  remat: str = "none",
  dtype: Any = None,
  kernel: str = "full",
) -> Pix2Seq:
  """A model by name.

  `resnet`, `resnet_c` (stage 4 left out), `vit_b` and `vit_l` are the released
  ones, with 36.6, 84.7, 115.2 and 341.2 million parameters for a vocabulary of
  3000; `tiny` is for canvases of some 48 pixels on a CPU.

  Args:
    name: a key of `PRESETS`.
    vocab_size: V, `Vocabulary.size`.
    max_len: longest sequence.
    encoder: other settings of the encoder, such as `{"depth": 101, "variant":
      "dc5"}` or `{"patch_size": 8}`.
    decoder: other settings of the decoder.
    bridge_mode: as of `Pix2Seq`.
    activation, dropout, drop_path, scan, remat, dtype: of all parts.
    kernel: of the self-attention, see `attention.MultiHeadAttention`.

  Raises:
    ValueError: an unknown name, or a size that is none.
  """
  make, of_encoder, of_decoder = checks.lookup("preset", name, PRESETS)
  shared = dict(
    activation=activation, dropout=dropout, drop_path=drop_path, dtype=dtype
  )
  both = dict(scan=scan, remat=remat, kernel=kernel, **shared)
  sizes = dict(vocab_size=vocab_size, max_len=max_len)
  for key, value in sizes.items():
    checks.positive_int(key, value)
  return Pix2Seq(
    make(**{**both, **of_encoder, **(encoder or {})}),
    SequenceDecoder(**{**both, **sizes, **of_decoder, **(decoder or {})}),
    bridge_mode=bridge_mode,
    **shared,
  )
