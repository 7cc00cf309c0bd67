"""Empty figures and their files; no display is needed."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from locojax.core import files

PLOT_HELP = "figures need matplotlib: pip install 'locojax[plots]'"


def axes(
  num_columns: int,
  *,
  num_rows: int = 1,
  width: float = 4.6,
  height: float = 3.9,
  margin: float = 0.0,
  **options: Any,
):
  """A figure with a grid of panels.

  Args:
    num_columns, num_rows: of panels.
    width, height: of one panel, in inches.
    margin: inches added to the width, for a legend outside.
    **options: of matplotlib's `Figure.subplots` (`sharex`, `subplot_kw`, ...).

  Returns:
    The figure and an array `[num_rows, num_columns]` of axes.

  Raises:
    ImportError: matplotlib is not installed.
  """
  try:
    from matplotlib.backends import backend_agg
    from matplotlib.figure import Figure
  except ImportError as e:
    raise ImportError(PLOT_HELP) from e
  size = (width * num_columns + margin, height * num_rows)
  figure = Figure(figsize=size, layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  return figure, figure.subplots(
    num_rows, num_columns, squeeze=False, **options
  )


def plain(ax) -> None:
  """A light grid, and no frame above and to the right."""
  ax.grid(True, which="major", color="#dddddd", lw=0.7, zorder=0)
  ax.spines[["top", "right"]].set_visible(False)


def save(figure, path: str | os.PathLike, *, dpi: int = 150) -> pathlib.Path:
  """Writes a PNG; folders are made. Returns the path."""
  return files.write(
    path, lambda file: figure.savefig(file, format="png", dpi=dpi)
  )
