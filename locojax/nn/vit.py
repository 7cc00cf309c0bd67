"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929).

Letters: B batch, H W height and width, P patch, L patches of an image, T
tokens, E width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from locojax.core import checks
from locojax.nn import transformer

# Weights released for JAX were trained with the first, those of timm and
# Hugging Face are run with the second.
TANH_GELU = functools.partial(nn.gelu, approximate=True)
EXACT_GELU = functools.partial(nn.gelu, approximate=False)


class PatchEmbed(nn.Module):
  """Patches of P x P pixels to vectors, by a convolution of stride P.

  Attributes:
    patch_size: P.
    size: E.
    dtype: of the computation; None follows the input.
  """

  patch_size: int
  size: int
  dtype: Any = None

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """`[B, H, W, channels]` to `[B, L, E]`, patches row by row.

    Raises:
      ValueError: not images, or sides that P does not divide.
    """
    if images.ndim != 4:
      raise ValueError(
        f"images have shape {images.shape}: it must be [B, H, W, channels]."
      )
    checks.positive_int("size", self.size)
    for name, side in zip(("height", "width"), images.shape[1:3]):
      checks.divisible(name, side, "patch_size", self.patch_size)
    patch = (self.patch_size, self.patch_size)
    x = nn.Conv(
      self.size,
      patch,
      strides=patch,
      padding="VALID",
      dtype=self.dtype,
      name="projection",
    )(images)
    return x.reshape(x.shape[0], -1, self.size)


def sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
  """Height and width of images given by one side or by both.

  Raises:
    ValueError: neither an integer, 1 or more, nor two of them.
  """
  pair = (image_size,) * 2 if isinstance(image_size, int) else image_size
  if len(checks.sizes("image_size", pair)) != 2:
    checks.refuse("image_size", image_size, "a side, or height and width")
  return tuple(pair)


class ViT(nn.Module):
  """Patches, [cls], learned positions, and a stack of pre-LN blocks.

  Parameters: `patches` (`PatchEmbed`), `cls` `[1, 1, E]`, `pos_embedding`
  `[1, 1 + L, E]` (without [cls]: L rows), `encoder` (`transformer.Stack`). It
  has no head: what is done with the tokens is the caller's.

  Attributes:
    patch_size: P.
    width: E.
    num_layers, num_heads, hidden_size: of the blocks.
    activation: of the feed-forward layers; `TANH_GELU` or `EXACT_GELU` for
      weights of others, whose kind `vit_weights.load_vit` tells.
    norm_eps: what the norms add to the variance; told likewise.
    use_cls: whether a learned token stands in front of the patches.
    image_size: the side, or height and width, that images must have; None
      takes those at `init`, and later any of as many patches.
    scan, remat, kernel: as in `transformer.Stack`.
    dtype: of the computation; None follows the input.
  """

  patch_size: int
  width: int
  num_layers: int
  num_heads: int
  hidden_size: int
  activation: Callable[[jax.Array], jax.Array] = TANH_GELU
  norm_eps: float = 1e-6
  use_cls: bool = True
  image_size: int | tuple[int, int] | None = None
  scan: bool = False
  remat: str = "none"
  dtype: Any = None
  kernel: str = "full"

  def setup(self):
    checks.positive_int("width", self.width)
    checks.divisible("width", self.width, "num_heads", self.num_heads)
    checks.float_dtype("dtype", self.dtype)
    self.encoder = transformer.Stack(
      self.num_layers,
      self.num_heads,
      self.hidden_size,
      activation=self.activation,
      norm_eps=self.norm_eps,
      scan=self.scan,
      remat=self.remat,
      dtype=self.dtype,
      kernel=self.kernel,
    )

  def _check_size(self, images: jax.Array) -> None:
    if self.image_size is not None:
      checks.same_shape(
        "images", images.shape[1:3], "image_size", sides(self.image_size)
      )

  def _positions(self, num: int) -> jax.Array:
    """`[1, num, E]`, made for the images of `init`."""
    name, shape = "pos_embedding", (1, num, self.width)
    if self.has_variable("params", name):
      held = self.get_variable("params", name)
      if jnp.shape(held) != shape:
        raise ValueError(
          f"images with {num} tokens do not fit the parameter {name} of "
          f"shape {jnp.shape(held)}: they must have the size of those at init "
          "(vit_positions.resize makes positions for another one)."
        )
    return self.param(name, nn.initializers.normal(0.02), shape)

  @nn.compact
  def embed(self, images: jax.Array) -> jax.Array:
    """What the first block reads: [cls] and patches with their positions.

    Args:
      images: `[B, H, W, channels]`, sides multiples of P.

    Returns:
      `[B, 1 + L, E]`, or `[B, L, E]` without [cls].

    Raises:
      ValueError: not images, or of another size than those at `init`.
    """
    x = PatchEmbed(
      self.patch_size, self.width, dtype=self.dtype, name="patches"
    )(images)
    self._check_size(images)
    if self.use_cls:
      cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
      x, _ = transformer.prepend(x, None, cls)
    return x + self._positions(x.shape[1]).astype(x.dtype)

  def __call__(
    self,
    images: jax.Array | None = None,
    *,
    tokens: jax.Array | None = None,
    extra_tokens: Mapping[int, jax.Array] | None = None,
    extra_key_values: Mapping[int, tuple[jax.Array, jax.Array]] | None = None,
    num_rows: int | None = None,
  ) -> jax.Array:
    """All tokens after the final norm, or the first `num_rows`.

    Args:
      images: `[B, H, W, channels]`, sides multiples of P.
      tokens: `[B, T, E]`, what `embed` gave; instead of `images`.
      extra_tokens: by the number of a block, tokens `[B, N, E]` or `[1, N, E]`
        put in front of its input, without positions; they stay, so that the
        sequence grows: the tokens of the last such block, ..., of the first,
        [cls], patches.
      extra_key_values: by the number of a block, keys and values `[B, N, H, D]`
        or `[1, N, H, D]` put in front of those of its attention, H heads of
        size D = E / H; the sequence does not grow.
      num_rows: gives the first tokens alone, as many; the last block computes
        no others.

    Returns:
      `[B, T', E]`: 1 + L tokens and the extra ones; or `[B, num_rows, E]`.

    Raises:
      ValueError: not exactly one of `images` and `tokens`, or what does not fit
        (see `embed` and `transformer.Stack`).
    """
    if (images is None) == (tokens is None):
      raise ValueError("exactly one of images and tokens is needed.")
    x = self.embed(images) if tokens is None else tokens
    if x.ndim != 3 or x.shape[2] != self.width:
      raise ValueError(
        f"tokens have shape {x.shape}: it must be [B, T, {self.width}]."
      )
    return self.encoder(
      x,
      extra_tokens=extra_tokens,
      extra_key_values=extra_key_values,
      num_rows=num_rows,
    )


_SIZES = {
  "Ti": dict(width=192, num_layers=12, num_heads=3, hidden_size=768),
  "S": dict(width=384, num_layers=12, num_heads=6, hidden_size=1536),
  "B": dict(width=768, num_layers=12, num_heads=12, hidden_size=3072),
  "L": dict(width=1024, num_layers=24, num_heads=16, hidden_size=4096),
}
# Sizes of Dosovitskiy et al., table 1, and of Steiner et al. 2021 (AugReg),
# arXiv 2106.10270, table 2; patches of 4 are for small images.
PRESETS: dict[str, dict[str, Any]] = {
  f"{size}/{patch}": {**settings, "patch_size": patch}
  for size, settings in _SIZES.items()
  for patch in (4, 8, 14, 16, 32)
}


def preset(name: str) -> dict[str, Any]:
  """Settings of `ViT` by size and patch, as `B/16`; a new dict.

  Raises:
    ValueError: not a name of `PRESETS`.
  """
  return dict(checks.lookup("preset", name, PRESETS))
