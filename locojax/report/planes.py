"""Two quantities against each other, both better when lower: a trade-off."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from locojax.report import curves, figures


@dataclasses.dataclass(frozen=True)
class Point:
  """One setting in the plane.

  Attributes:
    label: written next to the point.
    group: points of a group are joined by a line in the order given and share
      a colour.
    x, y: where; lower is better in both.
    x_range, y_range: (low, high) of an interval around it, or None.
  """

  label: str
  group: str
  x: float
  y: float
  x_range: tuple[float, float] | None = None
  y_range: tuple[float, float] | None = None


def pareto_front(points: Sequence[Point]) -> list[Point]:
  """The points that none is below in one coordinate and not above in the other.

  Returns:
    In ascending order of x. Of equal points all are kept.

  Raises:
    ValueError: a coordinate is not finite.
  """
  for p in points:
    if not np.isfinite([p.x, p.y]).all():
      raise ValueError(f"point {p.label!r} at ({p.x}, {p.y}) is not finite.")

  def beaten(p):
    return any(
      q.x <= p.x and q.y <= p.y and (q.x, q.y) != (p.x, p.y) for q in points
    )

  return sorted((p for p in points if not beaten(p)), key=lambda p: (p.x, p.y))


def draw(
  panels: Sequence[tuple[str, Sequence[Point]]],
  path: str | os.PathLike,
  *,
  x_label: str,
  y_label: str,
  title: str | None = None,
  max_columns: int = 3,
) -> pathlib.Path:
  """Draws planes in a grid with their Pareto fronts, and saves a PNG.

  Args:
    panels: (title, points) of each plane.
    path: the file; folders are made.
    x_label, y_label: of all panels.
    title: above them.
    max_columns: panels in a row at most.

  Returns:
    `path`.

  Raises:
    ValueError: nothing to draw, or a coordinate is not finite.
    ImportError: matplotlib is not installed.
  """
  if not panels or not all(points for _, points in panels):
    raise ValueError("planes.draw needs at least one panel, and points in it.")
  groups = dict.fromkeys(p.group for _, points in panels for p in points)
  colours = curves.colour_map(list(groups))
  columns = min(len(panels), max_columns)
  figure, grid = figures.axes(
    columns,
    num_rows=-(-len(panels) // columns),
    width=5.2,
    height=4.4,
    margin=1.6,
  )
  for ax in grid.flat[len(panels) :]:
    ax.set_visible(False)
  for ax, (name, points) in zip(grid.flat, panels):
    _draw_front(ax, pareto_front(points))
    for group in groups:
      _draw_group(ax, [p for p in points if p.group == group], colours[group])
    ax.set_title(name, fontsize=11)
    ax.set_xlabel(x_label)
    figures.plain(ax)
  for row in grid:
    row[0].set_ylabel(y_label)
  curves.legend(figure, grid.flat, [*groups, "Pareto front"])
  if title:
    figure.suptitle(title, fontsize=12)
  return figures.save(figure, path)


def _draw_front(ax, front: Sequence[Point]) -> None:
  """The boundary of what is dominated, as steps."""
  x, y = [p.x for p in front], [p.y for p in front]
  ax.step(
    x, y, where="post", color="#bbbbbb", lw=5, zorder=1, label="Pareto front"
  )
  ax.plot(x, y, "o", color="#bbbbbb", ms=11, zorder=1)


def _arms(points, value, interval):
  """Lengths of error bars `[2, points]`; 0 where there is no interval."""
  low, high = [], []
  for p in points:
    at, edges = getattr(p, value), getattr(p, interval)
    low.append(max(0.0, at - edges[0]) if edges else 0.0)
    high.append(max(0.0, edges[1] - at) if edges else 0.0)
  return [low, high]


def _draw_group(ax, points: Sequence[Point], style) -> None:
  if not points:
    return
  colour, dashes = style
  ax.errorbar(
    [p.x for p in points],
    [p.y for p in points],
    xerr=_arms(points, "x", "x_range"),
    yerr=_arms(points, "y", "y_range"),
    color=colour,
    ls=dashes,
    lw=1.2,
    elinewidth=0.9,
    marker="o",
    ms=4.5,
    label=points[0].group,
    zorder=3,
  )
  for p in points:
    if p.label != p.group:
      ax.annotate(
        p.label.removeprefix(p.group).strip(" :"),
        (p.x, p.y),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=8,
        color=colour,
        zorder=4,
      )
