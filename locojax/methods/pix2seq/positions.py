"""Codes of places on a grid, made of sines and cosines."""

from __future__ import annotations

import numpy as np

from locojax.core import checks

_TURN = 6.2831852  # as the released code has it
_PERIOD = 10_000.0


def _line(num: int, size: int) -> np.ndarray:
  """Codes of `num` places on a line, `[num, size]` float64.

  At place i it turns by 2 pi i / (num - 1) / 10000^(2 floor(k / 2) / size):
  sines of the even k, then cosines of the odd ones.
  """
  place = np.arange(num) / max(num - 1, 1) * _TURN
  rate = _PERIOD ** -(2 * (np.arange(size) // 2) / size)
  angle = place[:, None] * rate
  return np.concatenate([np.sin(angle[:, ::2]), np.cos(angle[:, 1::2])], axis=1)


def position_code(height: int, width: int, size: int) -> np.ndarray:
  """What is added to the vectors of a grid, so that places can be told apart.

  One half of the vector is for y, the other for x; both run over a full turn,
  whatever the number of places. On a grid of one row or column all of it is for
  the place along that. (So does the released code of Pix2Seq, whose models see
  images of another size by that alone.)

  Args:
    height, width: of the grid.
    size: of the vectors, a multiple of 4.

  Returns:
    `[height, width, size]` float32.

  Raises:
    ValueError: a bad size.

  >>> position_code(1, 3, 4)[0, 0].tolist()
  [0.0, 0.0, 1.0, 1.0]
  """
  checks.positive_int("height", height)
  checks.positive_int("width", width)
  checks.divisible("size", size, "halves of sines and cosines", 4)
  if 1 in (height, width):
    code = _line(height * width, size).reshape(height, width, size)
  else:
    rows, columns = _line(height, size // 2), _line(width, size // 2)
    shape = (height, width, size // 2)
    code = np.concatenate(
      [
        np.broadcast_to(rows[:, None], shape),
        np.broadcast_to(columns[None], shape),
      ],
      axis=-1,
    )
  return code.astype(np.float32)
