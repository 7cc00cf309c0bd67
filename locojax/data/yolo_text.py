"""YOLO's label file of an image: `class x y width height` a line, in shares.

Classes count from 0, (x, y) is the centre. Blank lines are passed over; other
numbers of columns (polygons, predictions with scores) are refused. Messages
name file and line.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np

from locojax.core import boxes as layouts
from locojax.data import sources


class Labels(NamedTuple):
  """Objects of an image.

  Attributes:
    classes: `[n]` int64 from 0.
    boxes: `[n, 4]` float64 yxyx, shares of the image.
    lines: `[n]` where they stand, from 1.
  """

  classes: np.ndarray
  boxes: np.ndarray
  lines: tuple[int, ...]


def _row(cells: list[str], where: str) -> tuple[int, list[float]]:
  if len(cells) != 5:
    raise ValueError(
      f"{where} has {len(cells)} columns: it must have the 5 of `class x y "
      "width height` (no polygons, no scores)."
    )
  try:
    label, numbers = int(cells[0]), [float(c) for c in cells[1:]]
  except ValueError:
    label, numbers = -1, []
  if label < 0 or not all(map(math.isfinite, numbers)):
    raise ValueError(
      f"{where}: {' '.join(cells)!r} must be an integer, 0 or more, and four "
      "finite numbers."
    )
  if min(numbers[2:]) < 0:
    raise ValueError(f"{where}: {' '.join(cells)!r} has a negative size.")
  return label, numbers


def read(path: str | os.PathLike) -> Labels:
  """The objects of a label file; an empty one has none.

  Raises:
    ValueError: it cannot be read, or a line is malformed; it is named.
  """
  rows = [
    (i, *_row(line.split(), f"{path}, line {i}"))
    for i, line in sources.lines_of(path)
  ]
  boxes = np.array([r[2] for r in rows], np.float64).reshape(-1, 4)
  return Labels(
    np.array([r[1] for r in rows], np.int64),
    layouts.cxcywh_to_yxyx(boxes),
    tuple(r[0] for r in rows),
  )
