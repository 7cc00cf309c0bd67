"""What models of seconds see of images: their pixels, and their gradients."""

from __future__ import annotations

import numpy as np

# Images are averaged over squares until the shorter side is below twice this.
PIXELS, GRADIENTS = 32, 48
BINS = 8
CELLS = 7
_CHUNK = 256


def pooled(images: np.ndarray, by: int) -> np.ndarray:
  """Means over squares of `by` pixels, float32.

  Args:
    images: `[n, height, width, channels]`.
    by: 1 or more.

  Returns:
    `[n, height // by, width // by, channels]`; rows and columns that fill no
    square are left out.
  """
  n, height, width, channels = images.shape
  if by == 1:
    return images.astype(np.float32)
  h, w = height // by, width // by
  cells = images[:, : h * by, : w * by].reshape(n, h, by, w, by, channels)
  return cells.mean(axis=(2, 4), dtype=np.float32)


def _smaller(images: np.ndarray, side: int) -> np.ndarray:
  """Pooled until the shorter side is below twice this."""
  return pooled(images, max(1, min(images.shape[1:3]) // side))


def _gradients(images: np.ndarray) -> np.ndarray:
  grey = _smaller(images, GRADIENTS).mean(axis=-1)
  down, right = np.zeros_like(grey), np.zeros_like(grey)
  down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
  right[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
  length = np.hypot(down, right)
  turn = np.arctan2(down, right) * (BINS / (2 * np.pi)) % BINS
  low = np.floor(turn)
  part = turn - low
  cell = max(2, min(grey.shape[1:]) // CELLS)
  out = []
  for k in range(BINS):
    at = np.where(low % BINS == k, 1 - part, 0.0)
    at += np.where((low + 1) % BINS == k, part, 0.0)
    out.append(pooled((length * at)[..., None], cell))
  histogram = np.concatenate(out, axis=-1).reshape(len(images), -1)
  norm = np.linalg.norm(histogram, axis=1, keepdims=True)
  return np.sqrt(histogram / (norm + 1e-6))


def gradients(images: np.ndarray) -> np.ndarray:
  """Histograms of the directions of grey-value gradients in square cells.

  As HOG (Dalal and Triggs 2005), with signed directions, a pixel shared by two
  bins, one norm for the whole image, and the square root of each entry.

  Args:
    images: uint8 `[n, height, width, channels]`.

  Returns:
    `[n, cells * 8]` float32; about 7 cells to the shorter side.
  """
  parts = range(0, len(images), _CHUNK)
  made = [_gradients(images[start : start + _CHUNK]) for start in parts]
  return np.concatenate(made).astype(np.float32)


def of(rows: np.ndarray) -> dict[str, np.ndarray]:
  """The views of images, or the features as they are.

  Args:
    rows: uint8 images `[n, height, width, channels]`, or numbers `[n, ...]`.

  Returns:
    Name -> `[n, d]` float32; images under 8 pixels have no `gradients`.

  Raises:
    ValueError: no numbers, or not finite.
  """
  rows = np.asarray(rows)
  if rows.dtype.kind not in "fiub" or rows.ndim < 2 or not rows.size:
    raise ValueError(
      f"features of dtype {rows.dtype} and shape {rows.shape} are not allowed: "
      "they must be numbers, [examples, ...]."
    )
  if not are_images(rows):
    flat = rows.reshape(len(rows), -1).astype(np.float32)
    if not np.isfinite(flat).all():
      raise ValueError("features hold NaN or infinity: they must be finite.")
    return {"columns": flat}
  out = {"pixels": _smaller(rows, PIXELS).reshape(len(rows), -1)}
  if min(rows.shape[1:3]) >= 8:
    out["gradients"] = gradients(rows)
  return out


def are_images(rows: np.ndarray) -> bool:
  """Whether rows are uint8 `[n, height, width, channels]`."""
  return rows.ndim == 4 and rows.dtype == np.uint8
