"""Residual networks for small images, with activation before convolution.

Letters: B batch, H height, W width, C channels, F features, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import arrays, checks
from locojax.nn import norms

NORMS = ("batch", "group")
SHORTCUTS = ("activated", "input")


def check_batch(
  name: str, x: jax.Array, mask: jax.Array | None, axes: Sequence[str]
) -> None:
  """Refuses what is no batch of floats, or a mask of another batch.

  Args:
    name: of the argument.
    x: must have as many axes as `axes`, the batch first.
    mask: `[batch]`, or None.
    axes: their names.

  Raises:
    ValueError: names the shape and the dtype.
  """
  if x.ndim != len(axes) or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f"{name} of shape {x.shape} and dtype {x.dtype} are not allowed: they "
      f"must be [{', '.join(axes)}], floats."
    )
  if mask is not None:
    checks.same_shape("mask", mask.shape, f"{name}[:, 0]", x.shape[:1])


def check_images(images: jax.Array, mask: jax.Array | None) -> None:
  """`check_batch` of images."""
  axes = ("batch", "height", "width", "channels")
  check_batch("images", images, mask, axes)


class _Norm(nn.Module):
  """Batch or group normalisation, then the activation; see `PreActResNet`."""

  kind: str
  activation: Callable[[jax.Array], jax.Array]
  momentum: float
  eps: float
  group_size: int
  dtype: Any

  @nn.compact
  def __call__(self, x, *, train, mask):
    settings = {"epsilon": self.eps, "dtype": self.dtype, "name": self.kind}
    if self.kind == "group":
      checks.divisible("channels", x.shape[-1], "group_size", self.group_size)
      norm = nn.GroupNorm(None, group_size=self.group_size, **settings)
      return self.activation(norm(x))
    norm = nn.BatchNorm(momentum=self.momentum, **settings)
    return self.activation(norms.batch_norm(norm, x, mask, train=train))


class PreActBlock(nn.Module):
  """norm, activation, conv 3x3, twice; plus a shortcut.

  Attributes:
    features: F.
    stride: of the first convolution and of the shortcut.
    conv, norm: makers of the layers, `conv(features, kernel, stride, name)` and
      `norm(name)`.
    shortcut: see `PreActResNet`.
  """

  features: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  shortcut: str

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: Any) -> jax.Array:
    """`[B, H, W, C]` to `[B, H / stride, W / stride, F]`, rounded up."""
    y = self.norm(name="norm_0")(x, train=train, mask=mask)
    if self.stride != 1 or x.shape[-1] != self.features:
      skip = self.conv(self.features, 1, self.stride, name="shortcut")(y)
    else:
      skip = y if self.shortcut == "activated" else x
    y = self.conv(self.features, 3, self.stride, name="conv_0")(y)
    y = self.norm(name="norm_1")(y, train=train, mask=mask)
    return self.conv(self.features, 3, 1, name="conv_1")(y) + skip


def _conv(features, kernel, stride, *, dtype, name):
  return nn.Conv(
    features,
    (kernel, kernel),
    (stride, stride),
    padding="SAME",
    use_bias=False,
    dtype=dtype,
    kernel_init=nn.initializers.he_normal(),
    name=name,
  )


class PreActResNet(nn.Module):
  """A residual network with pre-activation (He et al. 2016, arXiv 1603.05027).

  A 3x3 convolution with norm and activation; stages of blocks, of which stage
  i > 0 halves height and width and doubles the channels; norm, activation, mean
  over the pixels, dense layer. Layers: `stem`, `stem_norm`, `stage_i_block_j`,
  `norm`, `head`. Parameters and batch statistics are float32.

  Attributes:
    num_classes: K.
    stage_sizes: blocks in each stage.
    width: channels of the stem and of the first stage.
    activation: elementwise function.
    norm: 'batch' (its running means are in the collection `batch_stats`) or
      'group' (no state; examples do not depend on each other).
    shortcut: where the shortcut of a block that keeps the shape starts:
      'activated', after the block's first norm and activation, like those that
      change the shape (as the noisy-label experiments of Kumar and Amid, arXiv
      2111.05428, have it); 'input', at the block's input (He et al.).
    momentum: of the running means of batch norm.
    eps: added to the variances.
    group_size: channels in a group, which divides all numbers of channels.
    dtype: dtype of the computation, such as bfloat16; None follows the input.
      Statistics, the mean over the pixels and the last layer are in float32.
  """

  num_classes: int
  stage_sizes: Sequence[int] = (2, 2, 2, 2)
  width: int = 64
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  norm: str = "batch"
  shortcut: str = "activated"
  momentum: float = 0.9
  eps: float = 1e-5
  group_size: int = 16
  dtype: Any = None

  def _check(self, images, mask) -> None:
    checks.positive_int("num_classes", self.num_classes)
    checks.positive_int("width", self.width)
    checks.positive_int("number of stages", len(self.stage_sizes))
    for i, size in enumerate(self.stage_sizes):
      checks.positive_int(f"stage_sizes[{i}]", size)
    checks.float_dtype("dtype", self.dtype)
    checks.one_of("norm", self.norm, NORMS)
    checks.one_of("shortcut", self.shortcut, SHORTCUTS)
    check_images(images, mask)

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    return_features: bool = False,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`[B, H, W, C]` to logits `[B, K]`.

    With batch norm and `train`, the collection `batch_stats` must be mutable:

        logits, new = model.apply(
          {"params": params, **model_state}, images, train=True,
          mutable=["batch_stats"])
        model_state = new

    Under jit with the batch sharded, the statistics are those of the whole
    batch.

    Args:
      images: floats, normalised by the caller.
      train: whether batch norm takes the statistics of the batch (and updates
        the running ones), or the running ones.
      mask: `[B]`, true at real examples; the others stay out of the batch
        statistics, and count as zeros, whatever they hold. Of none the running
        statistics stay as they are. None if all are real.
      return_features: also give what the last layer sees.

    Returns:
      Logits `[B, K]` float32; or (logits, features `[B, F]` float32) with
      `F = width 2^(stages - 1)`.

    Raises:
      ValueError: a bad setting or shape, or images of integers.
    """
    self._check(images, mask)
    norm = functools.partial(
      _Norm,
      kind=self.norm,
      activation=self.activation,
      momentum=self.momentum,
      eps=self.eps,
      group_size=self.group_size,
      dtype=self.dtype,
    )
    conv = functools.partial(_conv, dtype=self.dtype)
    mode = {"train": train, "mask": None}
    if mask is not None:
      mode["mask"] = mask.astype(bool)[:, None, None, None]
      images = arrays.kept(images, mask)
    x = conv(self.width, 3, 1, name="stem")(images)
    x = norm(name="stem_norm")(x, **mode)
    for i, size in enumerate(self.stage_sizes):
      for j in range(size):
        x = PreActBlock(
          self.width * 2**i,
          stride=2 if i > 0 and j == 0 else 1,
          conv=conv,
          norm=norm,
          shortcut=self.shortcut,
          name=f"stage_{i}_block_{j}",
        )(x, **mode)
    x = norm(name="norm")(x, **mode)
    features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    init = nn.initializers.normal(0.01)
    logits = nn.Dense(self.num_classes, kernel_init=init, name="head")(features)
    return (logits, features) if return_features else logits


# 11.2 million parameters.
PreActResNet18 = functools.partial(
  PreActResNet, stage_sizes=(2, 2, 2, 2), width=64
)
