"""Residual networks of bottlenecks for clips, with self-gating.

The layout is that of the 3D ResNet of TensorFlow Model Garden (`resnet_3d.py`,
`nn_blocks_3d.py`); self-gating is from S3D-G (Xie et al. 2017, arXiv
1712.04851).

Letters: B batch, T frames, H height, W width, C channels, F features,
K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import arrays, checks
from locojax.nn import norms, resnet

# Blocks in each stage by depth.
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PADDINGS = ("same", "symmetric")


def check_clips(clips: jax.Array, mask: jax.Array | None) -> None:
  """`resnet.check_batch` of clips."""
  axes = ("batch", "frames", "height", "width", "channels")
  resnet.check_batch("clips", clips, mask, axes)


class SelfGating(nn.Module):
  """y = x sigmoid(W mean(x) + b), the mean over frames and pixels.

  Attributes:
    dtype: of the result; None follows the input. The gate itself is computed
      in float32 or wider.
    bias_init: of b. With a large value the gate is open.
  """

  dtype: Any = None
  bias_init: Callable[..., jax.Array] = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[B, ..., C]` to the same shape."""
    axes = tuple(range(1, x.ndim - 1))
    pooled = jnp.mean(arrays.as_float(x), axis=axes, keepdims=True)
    gate = nn.Dense(
      x.shape[-1],
      kernel_init=nn.initializers.truncated_normal(0.01),
      bias_init=self.bias_init,
      name="dense",
    )(pooled)
    y = x * jax.nn.sigmoid(gate)
    return y.astype(self.dtype or x.dtype)


def conv_3d(
  x: jax.Array,
  kernel: jax.Array,
  *,
  strides: tuple[int, int, int] = (1, 1, 1),
  padding: str = "same",
) -> jax.Array:
  """A convolution over frames and pixels.

  A kernel of one frame is a convolution of images, frame by frame, and one of a
  single pixel a convolution along the frames: both are two-dimensional, for
  which compilers have far faster programs, on CPUs above all.

  Args:
    x: `[B, T, H, W, C]`.
    kernel: `[k, h, w, C, F]` of the same dtype.
    strides: along frames, height and width.
    padding: of `PADDINGS`.

  Returns:
    `[B, T', H', W', F]`.
  """
  k, h, w, _, _ = kernel.shape
  shape = x.shape[1:4]
  if padding == "symmetric":
    pads = [((n - 1) // 2, (n - 1) // 2) for n in (k, h, w)]
  else:
    pads = jax.lax.padtype_to_pads(shape, (k, h, w), strides, "SAME")
  if k == 1:
    x = x[:, :: strides[0]]
    y = _conv_2d(x.reshape(-1, *x.shape[2:]), kernel[0], strides[1:], pads[1:])
    return y.reshape(*x.shape[:2], *y.shape[1:])
  if h == w == 1:
    x = x[:, :, :: strides[1], :: strides[2]]
    flat = x.reshape(*x.shape[:2], -1, x.shape[-1])
    y = _conv_2d(flat, kernel[:, 0], (strides[0], 1), (pads[0], (0, 0)))
    return y.reshape(*y.shape[:2], *x.shape[2:4], y.shape[-1])
  numbers = ("NDHWC", "DHWIO", "NDHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, strides, pads, dimension_numbers=numbers
  )


def _conv_2d(x, kernel, strides, pads) -> jax.Array:
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, strides, pads, dimension_numbers=numbers
  )


class _Kernel(nn.Module):
  """`conv_3d` with its weights, as `nn.Conv` without a bias has them."""

  features: int
  size: tuple[int, int, int]
  strides: tuple[int, int, int]
  padding: str
  dtype: Any

  @nn.compact
  def __call__(self, x):
    shape = (*self.size, x.shape[-1], self.features)
    init = nn.initializers.lecun_normal()
    kernel = self.param("kernel", init, shape, jnp.float32)
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    return conv_3d(x, kernel, strides=self.strides, padding=self.padding)


class _Conv(nn.Module):
  """Convolution and batch norm, and the activation if there is one."""

  features: int
  kernel: tuple[int, int, int]
  strides: tuple[int, int, int] = (1, 1, 1)
  activation: Callable[[jax.Array], jax.Array] | None = None
  padding: str = "same"
  group_size: int | None = None
  momentum: float = 0.9
  eps: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(self, x, *, train, mask):
    x = _Kernel(
      self.features,
      self.kernel,
      self.strides,
      self.padding,
      self.dtype,
      name="conv",
    )(x)
    settings = {"momentum": self.momentum, "epsilon": self.eps, "name": "norm"}
    settings["dtype"] = self.dtype
    if self.group_size is None:
      norm = nn.BatchNorm(**settings)
    else:
      norm = norms.GroupBatchNorm(self.group_size, **settings)
    x = norms.batch_norm(norm, x, mask, train=train)
    return x if self.activation is None else self.activation(x)


class Bottleneck3D(nn.Module):
  """[k, 1, 1] to F channels, [1, 3, 3], 1 to 4 F, gate, plus a shortcut.

  Attributes:
    features: F.
    temporal_kernel: k.
    stride: of height and width, in the middle convolution and the shortcut.
    gated: whether the block has a gate.
    activation: elementwise function.
    layer: maker of a convolution with its norm.
    train: whether batch norm takes the statistics of the batch.
    dtype: of the gate.
  """

  features: int
  temporal_kernel: int
  stride: int
  gated: bool
  activation: Callable[[jax.Array], jax.Array]
  layer: Callable[..., nn.Module]
  train: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`[B, T, H, W, C]` to `[B, T, H / stride, W / stride, 4 F]`."""
    mode = {"train": self.train, "mask": mask}
    act, strides = self.activation, (1, self.stride, self.stride)
    one, wide = (1, 1, 1), 4 * self.features
    skip = x
    if x.shape[-1] != wide:
      skip = self.layer(wide, one, strides, name="shortcut")(x, **mode)
    elif self.stride != 1:
      skip = nn.max_pool(x, one, strides, padding="SAME")
    y = self.layer(
      self.features,
      (self.temporal_kernel, 1, 1),
      activation=act,
      name="reduce",
    )(x, **mode)
    y = self.layer(
      self.features, (1, 3, 3), strides, activation=act, name="spatial"
    )(y, **mode)
    y = self.layer(wide, one, name="expand")(y, **mode)
    if self.gated:
      y = SelfGating(self.dtype, name="gate")(y)
    return act(y + skip)


def alternating(sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
  """Temporal kernels of the blocks of stages, as in the 3D ResNet-50.

  All 3 in the first stage, 3 and 1 in turn in the others, the last of which
  begins with 1.

  >>> alternating((3, 4, 2, 3))
  ((3, 3, 3), (3, 1, 3, 1), (3, 1), (1, 3, 1))
  """
  last = len(sizes) - 1
  return tuple(
    tuple(3 if i == 0 or j % 2 == (i == last) else 1 for j in range(size))
    for i, size in enumerate(sizes)
  )


class ResNet3D(nn.Module):
  """A residual network for clips.

  A convolution and a maximum over 3 frames and pixels, stages of blocks of
  which stage i > 0 halves height and width, mean over frames and pixels,
  dropout, dense layer. The last block of each stage has a gate. The defaults
  are the 3D ResNet-50 of Model Garden's Kinetics configs: 33,208,072
  parameters with 200 classes, 27,633,672 without gates.

  Layers: `stem`, `stage_i_block_j`, `head`. Parameters and batch statistics
  are float32; those are in the collection `batch_stats`.

  Attributes:
    num_classes: K.
    depth: a key of `DEPTHS`.
    stage_sizes: blocks in each stage; None is by the depth.
    temporal_kernel_sizes: of the blocks of each stage; None is `alternating`.
    width: channels of the stem.
    stem_temporal: size and stride of the first convolution, and stride of the
      maximum, along the frames.
    stem_spatial: the same along height and width. With strides of 1 alone
      there is no maximum; along the frames it is over one where its stride
      is 1.
    self_gating: whether there are gates.
    dropout: rate before the head.
    bn_group_size: examples that share statistics (`norms.GroupBatchNorm`);
      None is the whole batch, over all devices.
    padding: 'same' as in TensorFlow, or 'symmetric', (k - 1) / 2 on both sides,
      as weights of `resnet_v1` want it. They differ where strides are 2.
    activation: elementwise function.
    momentum: of the running means of batch norm.
    eps: added to the variances.
    dtype: dtype of the computation; None follows the input. Statistics, the
      mean and the head are in float32.
    remat: whether training computes the inside of each block again in the
      backward pass instead of keeping it.
  """

  num_classes: int
  depth: int = 50
  stage_sizes: Sequence[int] | None = None
  temporal_kernel_sizes: Sequence[Sequence[int]] | None = None
  width: int = 64
  stem_temporal: tuple[int, int, int] = (5, 2, 2)
  stem_spatial: tuple[int, int, int] = (7, 2, 2)
  self_gating: bool = True
  dropout: float = 0.2
  bn_group_size: int | None = None
  padding: str = "same"
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  momentum: float = 0.9
  eps: float = 1e-5
  dtype: Any = None
  remat: bool = False

  def kernels(self) -> tuple[tuple[int, ...], ...]:
    """Temporal kernels of all blocks, stage by stage.

    Raises:
      ValueError: sizes or kernels that are not allowed.
    """
    if self.stage_sizes is None:
      sizes = DEPTHS[checks.one_of("depth", self.depth, DEPTHS)]
    else:
      sizes = checks.sizes("stage_sizes", self.stage_sizes)
    checks.positive_int("number of stages", len(sizes))
    if self.temporal_kernel_sizes is None:
      return alternating(sizes)
    found = tuple(
      checks.sizes(f"temporal_kernel_sizes[{i}]", k)
      for i, k in enumerate(self.temporal_kernel_sizes)
    )
    if tuple(map(len, found)) != tuple(sizes):
      checks.refuse(
        "temporal_kernel_sizes", found, f"of stages of {sizes} blocks"
      )
    return found

  def _check(self, clips, mask) -> None:
    checks.positive_int("num_classes", self.num_classes)
    checks.positive_int("width", self.width)
    for name in ("stem_temporal", "stem_spatial"):
      if len(checks.sizes(name, getattr(self, name))) != 3:
        checks.refuse(name, getattr(self, name), "kernel, stride, pool stride")
    checks.below("dropout", self.dropout, 0.0, 1.0)
    if self.bn_group_size is not None:
      checks.positive_int("bn_group_size", self.bn_group_size)
    checks.one_of("padding", self.padding, PADDINGS)
    checks.float_dtype("dtype", self.dtype)
    check_clips(clips, mask)

  def _stem(self, layer, x, mode):
    (k, s, p), (kernel, stride, pool) = self.stem_temporal, self.stem_spatial
    x = layer(
      self.width,
      (k, kernel, kernel),
      (s, stride, stride),
      activation=self.activation,
      name="stem",
    )(x, **mode)
    if p == pool == 1:
      return x
    window = (1 if p == 1 else 3, *(1 if pool == 1 else 3,) * 2)
    return nn.max_pool(x, window, (p, pool, pool), padding="SAME")

  @nn.compact
  def __call__(
    self,
    clips: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    return_features: bool = False,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`[B, T, H, W, C]` to logits `[B, K]`.

    With `train`, the collection `batch_stats` must be mutable, and dropout
    needs the key `dropout`.

    Args:
      clips: floats, in [0, 1] or normalised by the caller.
      train: whether batch norm takes the statistics of the batch (and updates
        the running ones), and dropout is on.
      mask: `[B]`, true at real examples; the others stay out of the batch
        statistics, and count as zeros, whatever they hold. None if all are.
      return_features: also give what the last layer sees, before dropout.

    Returns:
      Logits float32; or (logits, features `[B, F]` float32), F being `width`
      times 2^(stages + 1).

    Raises:
      ValueError: a bad setting or shape, or clips of integers.
    """
    kernels = self.kernels()
    self._check(clips, mask)
    layer = functools.partial(
      _Conv,
      padding=self.padding,
      group_size=self.bn_group_size,
      momentum=self.momentum,
      eps=self.eps,
      dtype=self.dtype,
    )
    if mask is not None:
      clips = arrays.kept(clips, mask)
      mask = arrays.spread(mask, clips.ndim) != 0
    x = self._stem(layer, clips, {"train": train, "mask": mask})
    block = nn.remat(Bottleneck3D) if self.remat and train else Bottleneck3D
    for i, stage in enumerate(kernels):
      for j, kernel in enumerate(stage):
        x = block(
          self.width * 2**i,
          temporal_kernel=kernel,
          stride=2 if i > 0 and j == 0 else 1,
          gated=self.self_gating and j == len(stage) - 1,
          activation=self.activation,
          layer=layer,
          train=train,
          dtype=self.dtype,
          name=f"stage_{i}_block_{j}",
        )(x, mask)
    features = jnp.mean(arrays.as_float(x), axis=(1, 2, 3))
    y = nn.Dropout(self.dropout, deterministic=not train)(features)
    init = nn.initializers.normal(0.01)
    logits = nn.Dense(self.num_classes, kernel_init=init, name="head")(y)
    return (logits, features) if return_features else logits


# For clips of 16 frames of 32 pixels on a CPU: 0.13 million parameters, and
# convolutions of two dimensions alone.
ResNet3DTiny = functools.partial(
  ResNet3D,
  stage_sizes=(1, 1, 1),
  temporal_kernel_sizes=((3,), (3,), (3,)),
  width=12,
  stem_temporal=(1, 1, 1),
  stem_spatial=(5, 2, 1),
)
