"""Images of one size and number of channels, whatever they were."""

from __future__ import annotations

import numpy as np

from locojax.core import checks
from locojax.data import image as images_lib


def resized(images: np.ndarray, size: int, channels: int = 3) -> np.ndarray:
  """Images `[n, h, w, c]` uint8 as `[n, size, size, channels]`.

  Grey ones get three equal channels, coloured ones become grey by the ITU-R
  601-2 luma; transparent ones get a white background. Sides that shrink by a
  whole number are averaged over boxes, others interpolated bilinearly.

  Args:
    images: with c of 1, 3 or 4.
    size: height and width.
    channels: 1 or 3.
  """
  from PIL import Image

  checks.positive_int("size", size)
  checks.one_of("channels", channels, (1, 3))
  images = np.asarray(images)
  if images.shape[-1] == 4:
    images = images_lib.opaque(images)
  if images.shape[-1] == 1 and channels == 3:
    images = np.repeat(images, 3, axis=-1)
  if images.shape[-1] == 3 and channels == 1:
    images = np.stack(
      [np.asarray(Image.fromarray(i).convert("L")) for i in images]
    )
    images = images[..., None]
  if images.shape[1:3] == (size, size):
    return images
  how = Image.Resampling.BILINEAR
  if images.shape[1] % size == 0 and images.shape[2] % size == 0:
    how = Image.Resampling.BOX
  flat = images[..., 0] if channels == 1 else images
  out = np.stack(
    [np.asarray(Image.fromarray(i).resize((size, size), how)) for i in flat]
  )
  return out.reshape(len(images), size, size, channels)
