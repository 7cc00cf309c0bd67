"""From images to a grid of vectors: patches or a residual network, and blocks.

Section 2.2 of Pix2Seq (Chen et al. 2022, arXiv 2109.10852) and its released
code. An encoder is any module that maps images `[B, H, W, channels]` to
`[B, h, w, E]` and takes `train` and `mask`.

Letters: B batch, H W height and width, h w rows and columns, E model size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import arrays, checks
from locojax.methods.pix2seq import positions
from locojax.nn import resnet_v1, transformer, vit

STEMS = ("patches", "convolutions")
EPS = 1e-6  # of all norms of layers


def as_floats(images: jax.Array) -> jax.Array:
  """Images in [0, 1]: bytes are divided by 255, floats are as they are.

  Raises:
    ValueError: other integers, or not `[B, H, W, channels]`.
  """
  images = checks.array("images", images)
  if images.ndim != 4:
    raise ValueError(
      f"images have shape {images.shape}: it must be [B, H, W, channels]."
    )
  if jnp.issubdtype(images.dtype, jnp.floating):
    return images
  if images.dtype != jnp.uint8:
    raise ValueError(f"images have dtype {images.dtype}: uint8 or floats only.")
  return images.astype(jnp.float32) / 255


def located(module: nn.Module, x: jax.Array, name: str) -> jax.Array:
  """Norm `name`, then the code of the place is added; `[B, h, w, E]`."""
  x = nn.LayerNorm(EPS, dtype=module.dtype, name=name)(x)
  return x + jnp.asarray(positions.position_code(*x.shape[1:]), x.dtype)


def _blocks(module: nn.Module, x: jax.Array, train: bool) -> jax.Array:
  """Norm, code and blocks of an encoder, `[B, h, w, E]` to the same."""
  x = located(module, x, "norm")
  y = transformer.Stack(
    module.num_layers,
    module.num_heads,
    module.hidden_size,
    activation=module.activation,
    scan=module.scan,
    remat=module.remat,
    kernel=module.kernel,
    norm_eps=EPS,
    dtype=module.dtype,
    dropout=module.dropout,
    drop_path=module.drop_path,
    name="encoder",
  )(x.reshape(x.shape[0], -1, x.shape[3]), train=train)
  return y.reshape(x.shape)


def _check_sizes(module: nn.Module) -> None:
  checks.positive_int("width", module.width)
  checks.divisible("width", module.width, "num_heads", module.num_heads)
  checks.float_dtype("dtype", module.dtype)


class ViTEncoder(nn.Module):
  """Patches, and blocks that see all of them; no [cls], no learned positions.

  Positions are codes, so that images of another size need nothing new. Layers:
  `patches` (`vit.PatchEmbed`, or `stem_0`, ...), `norm`, `encoder`
  (`transformer.Stack`).

  Attributes:
    width: E, a multiple of 4 and of the heads.
    num_layers, num_heads, hidden_size: of the blocks.
    patch_size: P; both sides of images are multiples.
    stem: 'patches', a convolution of stride P; or 'convolutions', as many 3x3
      of stride 2, each with an activation, as make P, which learn faster from
      few and small images. Their channels double up to E.
    activation: of the feed-forward layers and of the stem.
    dropout, drop_path, scan, remat, kernel: as in `transformer.Stack`.
    dtype: dtype of the computation; None is float32. Parameters are float32.
  """

  width: int = 768
  num_layers: int = 12
  num_heads: int = 12
  hidden_size: int = 3072
  patch_size: int = 16
  stem: str = "patches"
  activation: Callable[[jax.Array], jax.Array] = vit.EXACT_GELU
  dropout: float = 0.1
  drop_path: float = 0.1
  scan: bool = False
  remat: str = "none"
  dtype: Any = None
  kernel: str = "full"

  def _check_images(self, images: jax.Array) -> None:
    size = checks.positive_int("patch_size", self.patch_size)
    for name, side in zip(("height", "width"), images.shape[1:3]):
      if side % size:
        low = side // size * size
        near = f"{low} and {low + size}" if low else f"{size}"
        checks.refuse(
          f"{name} of images",
          side,
          f"a multiple of patch_size={size} (nearest: {near})",
        )

  def _convolutions(self, x: jax.Array) -> jax.Array:
    num = self.patch_size.bit_length() - 1
    if self.patch_size != 2**num or num == 0:
      checks.refuse("patch_size", self.patch_size, "a power of 2 above 1")
    last = 2 ** (num - 1)
    checks.divisible("width", self.width, "doublings of the channels", last)
    for i in range(num):
      x = nn.Conv(
        self.width // 2 ** (num - 1 - i),
        (3, 3),
        (2, 2),
        padding=((1, 1), (1, 1)),
        dtype=self.dtype,
        name=f"stem_{i}",
      )(x)
      x = self.activation(x)
    return x

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """`[B, H, W, channels]` to `[B, H / P, W / P, E]`.

    Args:
      images: floats in [0, 1], or bytes.
      train: whether anything is dropped, by keys of the name `dropout`.
      mask: `[B]`, zero at images that count as zeros, whatever they hold.

    Raises:
      ValueError: a bad setting; a side that P does not divide, with the nearest
        ones that it does.
    """
    checks.one_of("stem", self.stem, STEMS)
    _check_sizes(self)
    x = arrays.kept(as_floats(images), mask)
    self._check_images(x)
    if self.stem == "convolutions":
      x = self._convolutions(x)
    else:
      grid = [side // self.patch_size for side in x.shape[1:3]]
      x = vit.PatchEmbed(
        self.patch_size, self.width, dtype=self.dtype, name="patches"
      )(x)
      x = x.reshape(x.shape[0], *grid, self.width)
    return _blocks(self, x, train)


class ResNetEncoder(nn.Module):
  """The map of a residual network, and blocks that see all of it.

  Layers: `resnet` (`resnet_v1.ResNet`), `projection`, `norm`, `encoder`
  (`transformer.Stack`). Running means are in the collection `batch_stats`.

  Attributes:
    width: E, a multiple of 4 and of the heads.
    num_layers, num_heads, hidden_size: of the blocks.
    depth, variant, stage_sizes: as of `resnet_v1.ResNet`: 50, 101 or 152; and
      'standard', 'c4', 'dc5' or 'c3'.
    resnet_width: channels of its stem.
    activation: of the feed-forward layers.
    dropout: of the feed-forward layers, and of the map.
    drop_path, scan, remat, kernel: as in `transformer.Stack`.
    dtype: dtype of the computation; None is float32. Parameters are float32.
  """

  width: int = 256
  num_layers: int = 6
  num_heads: int = 8
  hidden_size: int = 1024
  depth: int = 50
  variant: str = "standard"
  stage_sizes: tuple[int, ...] | None = None
  resnet_width: int = 64
  activation: Callable[[jax.Array], jax.Array] = vit.EXACT_GELU
  dropout: float = 0.1
  drop_path: float = 0.1
  scan: bool = False
  remat: str = "none"
  dtype: Any = None
  kernel: str = "full"

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """`[B, H, W, channels]` to `[B, h, w, E]`; h is H over that of the variant.

    Args:
      images: floats in [0, 1], or bytes.
      train: whether batch norm takes the statistics of the batch, and anything
        is dropped, by keys of the name `dropout`; then `batch_stats` must be
        mutable.
      mask: `[B]`, zero at images that stay out of the statistics and count as
        zeros, whatever they hold.

    Raises:
      ValueError: a bad setting or shape.
    """
    _check_sizes(self)
    checks.below("dropout", self.dropout, 0, 1)
    x = resnet_v1.ResNet(
      depth=self.depth,
      variant=self.variant,
      width=self.resnet_width,
      stage_sizes=self.stage_sizes,
      dtype=self.dtype,
      name="resnet",
    )(as_floats(images), train=train, mask=mask)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    init = nn.initializers.xavier_uniform()
    x = nn.Dense(
      self.width, dtype=self.dtype, kernel_init=init, name="projection"
    )(x)
    return _blocks(self, x, train)
