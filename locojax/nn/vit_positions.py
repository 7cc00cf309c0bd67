"""Position embeddings of a vision transformer for images of another size.

Three ways are in use, and they differ by more than a trifle: take the one of
the program whose numbers are to be met.

Letters: L patches, T = L tokens and those in front of them, E width.
"""

from __future__ import annotations

import math

import numpy as np

from locojax.core import checks

WAYS = ("official", "torch", "timm")


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
  """Keys' cubic kernel (1981, eq. 15 with its free parameter `a`)."""
  d = np.abs(distance)
  near = ((a + 2) * d - (a + 3)) * d**2 + 1
  far = a * (((d - 5) * d + 8) * d - 4)
  return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _corners(old: int, new: int) -> np.ndarray:
  """Linear between neighbours, the first and last places kept."""
  place = np.arange(new) * ((old - 1) / max(new - 1, 1))
  return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(old)))


def _torch(old: int, new: int) -> np.ndarray:
  """Cubic with a = -0.75 at half-pixel centres; the borders go on."""
  place = (np.arange(new) + 0.5) * (old / new) - 0.5
  matrix = np.zeros((new, old))
  for step in (-1, 0, 1, 2):
    at = np.floor(place) + step
    column = np.clip(at, 0, old - 1).astype(int)
    np.add.at(matrix, (np.arange(new), column), _cubic(place - at, -0.75))
  return matrix


def _timm(old: int, new: int) -> np.ndarray:
  """Cubic with a = -0.5, wider where it shrinks, cut at the borders."""
  scale = old / new
  place = (np.arange(new) + 0.5) * scale - 0.5
  distance = (np.arange(old) - place[:, None]) / max(scale, 1.0)
  weights = _cubic(distance, -0.5)
  return weights / weights.sum(axis=1, keepdims=True)


_MATRICES = {"official": _corners, "torch": _torch, "timm": _timm}


def weights(old: int, new: int, *, way: str = "official") -> np.ndarray:
  """What each new place takes of each old one, along one side.

  Args:
    old, new: number of places.
    way: of `WAYS`, see `resize`.

  Returns:
    `[new, old]` float64, rows that sum to 1; the identity where `old` is `new`.

  Raises:
    ValueError: an unknown way, or a number below 1.
  """
  matrix = checks.lookup("resize", way, _MATRICES)
  checks.positive_int("old", old)
  checks.positive_int("new", new)
  return np.eye(old) if old == new else matrix(old, new)


def square(num: int) -> tuple[int, int] | None:
  """The grid of a square image with `num` patches; None if there is none."""
  side = math.isqrt(max(num, 0))
  return (side, side) if side > 0 and side * side == num else None


def resize(
  positions: np.ndarray,
  grid: tuple[int, int],
  *,
  way: str = "official",
  num_prefix: int = 1,
  old_grid: tuple[int, int] | None = None,
) -> np.ndarray:
  """Position embeddings for a grid of patches of another size.

  Args:
    positions: `[1, T, E]`, patches row by row.
    grid: rows and columns of patches that are wanted.
    way: 'official', of the JAX releases: linear with the corners kept
      (`scipy.ndimage.zoom` of order 1, torch's bilinear with `align_corners`).
      'torch', of Hugging Face's ViT: cubic with kernel -0.75, no smoothing
      (torch's bicubic). 'timm': cubic with kernel -0.5, smoothed where it
      shrinks (torch's bicubic with `antialias`, JAX's 'cubic').
    num_prefix: tokens in front, such as [cls], whose rows stay as they are.
    old_grid: rows and columns that `positions` are for; None is a square.

  Returns:
    `[1, num_prefix + L, E]` float32; computed in float64.

  Raises:
    ValueError: an unknown way, or positions that are not for such a grid.
  """
  checks.one_of("resize", way, WAYS)
  table = np.asarray(positions)
  num = table.shape[1] - num_prefix if table.ndim == 3 else 0
  old_grid = old_grid or square(num)
  if table.ndim != 3 or old_grid is None or math.prod(old_grid) != num:
    raise ValueError(
      f"positions have shape {table.shape}: it must be [1, {num_prefix} + L, "
      f"E], L patches of {'a square' if old_grid is None else old_grid}."
    )
  front, rest = table[0, :num_prefix], table[0, num_prefix:]
  rows, columns = (weights(o, n, way=way) for o, n in zip(old_grid, grid))
  cells = rest.reshape(*old_grid, -1).astype(np.float64)
  cells = np.einsum("io,jp,ope->ije", rows, columns, cells, optimize=True)
  made = np.concatenate([front, cells.reshape(-1, table.shape[2])])
  return made[None].astype(np.float32)
