"""Residual networks of bottlenecks, as feature maps for other models.

He et al. 2015, arXiv 1512.03385, with the stride in the 3x3 convolution and
each block beginning as the identity (Goyal et al. 2017, arXiv 1706.02677).

Letters: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import arrays, checks
from locojax.nn import norms, resnet

# Blocks in each stage by depth.
DEPTHS = {
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}
# What is left out or changed, and the stride of the map; see `ResNet`.
VARIANTS = {"standard": 32, "c4": 16, "dc5": 16, "c3": 8}


class _Conv(nn.Module):
  """Convolution and batch norm, and the activation if there is one.

  Padding does not depend on the size: (k - 1) / 2 pixels, times the dilation,
  on both sides.
  """

  features: int
  kernel: int
  stride: int = 1
  dilation: int = 1
  activation: Callable[[jax.Array], jax.Array] | None = None
  zero: bool = False
  momentum: float = 0.9
  eps: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(self, x, *, train, mask):
    pad = self.dilation * (self.kernel - 1) // 2
    x = nn.Conv(
      self.features,
      (self.kernel, self.kernel),
      (self.stride, self.stride),
      padding=((pad, pad), (pad, pad)),
      kernel_dilation=self.dilation,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=nn.initializers.lecun_normal(),
      name="conv",
    )(x)
    init = nn.initializers.zeros if self.zero else nn.initializers.ones
    norm = nn.BatchNorm(
      momentum=self.momentum,
      epsilon=self.eps,
      dtype=self.dtype,
      scale_init=init,
      name="norm",
    )
    x = norms.batch_norm(norm, x, mask, train=train)
    return x if self.activation is None else self.activation(x)


class Bottleneck(nn.Module):
  """1x1 to F channels, 3x3, 1x1 to 4 F, plus a shortcut; then the activation.

  Attributes:
    features: F.
    stride: of the 3x3 convolution and of the shortcut.
    dilation: of the 3x3 convolution.
    project: whether the shortcut is a convolution.
    activation: elementwise function.
    layer: maker of a convolution with its norm.
  """

  features: int
  stride: int
  dilation: int
  project: bool
  activation: Callable[[jax.Array], jax.Array]
  layer: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array, **mode: Any) -> jax.Array:
    """`[B, H, W, C]` to `[B, H / stride, W / stride, 4 F]`, rounded up."""
    act, skip = self.activation, x
    if self.project:
      skip = self.layer(4 * self.features, 1, self.stride, name="shortcut")(
        x, **mode
      )
    y = self.layer(self.features, 1, activation=act, name="reduce")(x, **mode)
    y = self.layer(
      self.features,
      3,
      self.stride,
      self.dilation,
      activation=act,
      name="spatial",
    )(y, **mode)
    y = self.layer(4 * self.features, 1, zero=True, name="expand")(y, **mode)
    return act(y + skip)


class ResNet(nn.Module):
  """Images to a feature map, without a head.

  A 7x7 convolution of stride 2, a 3x3 maximum of stride 2, and four stages, the
  last three of which halve height and width. Variants, and what their map is
  smaller by:

    standard  32
    c4        16, without the last stage
    dc5       16, the last stage keeps the size; all its blocks but the first
              are dilated by 2
    c3         8, without the last two stages; a stem of three 3x3 convolutions
              (ResNet-D, He et al. 2018, arXiv 1812.01187) of stride 1, and
              stage 0 halves the size

  Layers: `stem` (c3: `stem_0` to `stem_2`), `stage_i_block_j`. Parameters and
  batch statistics are float32; those are in the collection `batch_stats`.

  Attributes:
    depth: a key of `DEPTHS`.
    variant: a key of `VARIANTS`.
    width: channels of the stem.
    stage_sizes: blocks in each of the four stages; None is by the depth.
    activation: elementwise function.
    momentum: of the running means of batch norm.
    eps: added to the variances.
    dtype: dtype of the computation; None follows the input.
  """

  depth: int = 50
  variant: str = "standard"
  width: int = 64
  stage_sizes: tuple[int, ...] | None = None
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  momentum: float = 0.9
  eps: float = 1e-5
  dtype: Any = None

  def _sizes(self) -> tuple[int, ...]:
    """Blocks in the stages of the variant."""
    checks.one_of("variant", self.variant, VARIANTS)
    if self.stage_sizes is None:
      checks.one_of("depth", self.depth, DEPTHS)
      sizes = DEPTHS[self.depth]
    else:
      sizes = checks.sizes("stage_sizes", self.stage_sizes)
      if len(sizes) != 4:
        checks.refuse("stage_sizes", sizes, "four numbers")
    return sizes[: {"c3": 2, "c4": 3}.get(self.variant, 4)]

  def _check(self, images, mask) -> None:
    checks.positive_int("width", self.width)
    checks.float_dtype("dtype", self.dtype)
    resnet.check_images(images, mask)

  def _stem(self, layer, x, mode):
    act = self.activation
    if self.variant == "c3":
      checks.divisible("width", self.width, "stem of c3", 2)
      half = self.width // 2
      for i, size in enumerate((half, half, self.width)):
        x = layer(size, 3, activation=act, name=f"stem_{i}")(x, **mode)
    else:
      x = layer(self.width, 7, 2, activation=act, name="stem")(x, **mode)
    return nn.max_pool(x, (3, 3), (2, 2), padding="SAME")

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """`[B, H, W, C]` to `[B, H / s, W / s, F]`, s as above, rounded up.

    F is 32 times the width; of c4 16 times, of c3 8 times. With `train`, the
    collection `batch_stats` must be mutable. Under jit with the batch sharded
    the statistics are those of the whole batch.

    Args:
      images: floats, normalised by the caller.
      train: whether batch norm takes the statistics of the batch (and updates
        the running ones), or the running ones.
      mask: `[B]`, true at real examples; the others stay out of the batch
        statistics, and count as zeros, whatever they hold. None if all are.

    Raises:
      ValueError: a bad setting or shape, or images of integers.
    """
    sizes = self._sizes()
    self._check(images, mask)
    layer = functools.partial(
      _Conv, momentum=self.momentum, eps=self.eps, dtype=self.dtype
    )
    mode = {"train": train, "mask": None}
    if mask is not None:
      mode["mask"] = jnp.asarray(mask)[:, None, None, None] != 0
      images = arrays.kept(images, mask)
    x = self._stem(layer, images, mode)
    for i, size in enumerate(sizes):
      dilated = self.variant == "dc5" and i == 3
      halves = not dilated and (i > 0 or self.variant == "c3")
      for j in range(size):
        x = Bottleneck(
          self.width * 2**i,
          stride=2 if halves and j == 0 else 1,
          dilation=2 if dilated and j > 0 else 1,
          project=j == 0,
          activation=self.activation,
          layer=layer,
          name=f"stage_{i}_block_{j}",
        )(x, **mode)
    return x
