"""Images as sequences of patches (Dosovitskiy et al. 2021, arXiv 2010.11929).

Letters: B batch, H W height and width, P patch, T patches, E size.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from locojax.core import checks


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
    """`[B, H, W, channels]` to `[B, T, E]`, patches row by row.

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
