"""Videos for tests in which each frame shows its number, as blocks for bits."""

from __future__ import annotations

import numpy as np

BITS, BLOCK, COLUMNS = 10, 16, 4
HEIGHT, WIDTH = 48, 64  # three rows of four blocks


def numbered(num: int, *, height=HEIGHT, width=WIDTH) -> np.ndarray:
  """`[num, height, width, 3]`; frame i has a white block for each bit of i."""
  frames = np.full((num, height, width, 3), 16, np.uint8)
  for bit in range(BITS):
    row, column = divmod(bit, COLUMNS)
    rows = slice(row * BLOCK, (row + 1) * BLOCK)
    columns = slice(column * BLOCK, (column + 1) * BLOCK)
    frames[np.arange(num) >> bit & 1 == 1, rows, columns] = 235
  return frames


def read(frames: np.ndarray, scale: float = 1.0) -> list[int]:
  """The numbers that frames show."""
  out = np.zeros(len(frames), int)
  for bit in range(BITS):
    row, column = divmod(bit, COLUMNS)
    y, x = (int((k + 0.5) * BLOCK * scale) for k in (row, column))
    out |= (frames[:, y, x].mean(axis=-1) > 128).astype(int) << bit
  return out.tolist()
