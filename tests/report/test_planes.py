"""Trade-off planes: the Pareto front and the figure."""

from __future__ import annotations

import numpy as np
import pytest

from locojax.report import planes


def _points(pairs):
  return [planes.Point(str(i), "g", x, y) for i, (x, y) in enumerate(pairs)]


def test_front_of_a_worked_example():
  points = _points([(0, 5), (1, 3), (2, 4), (3, 1), (4, 1), (1, 6)])
  assert [p.label for p in planes.pareto_front(points)] == ["0", "1", "3"]


def test_front_is_what_nothing_dominates():
  rng = np.random.default_rng(0)
  points = _points(rng.integers(0, 12, (60, 2)).tolist())
  front = planes.pareto_front(points)
  assert [p.x for p in front] == sorted(p.x for p in front)
  for p in points:
    better = [
      q
      for q in points
      if (q.x <= p.x and q.y < p.y) or (q.x < p.x and q.y <= p.y)
    ]
    assert (p in front) == (not better)


def test_equal_points_all_stay():
  assert len(planes.pareto_front(_points([(1, 1), (1, 1), (2, 2)]))) == 2


def test_figure_is_written(tmp_path):
  points = [
    planes.Point("ReLU", "ReLU", 0.0, 9.0, (-0.1, 0.1), (7.0, 11.0)),
    planes.Point("SmeLU 0.5", "SmeLU", 0.1, 5.7, None, (3.0, 8.0)),
    planes.Point("SmeLU 1", "SmeLU", 0.5, 5.2),
  ]
  path = planes.draw(
    [("one", points), ("two", points[:2]), ("three", points[1:])],
    tmp_path / "a" / "plane.png",
    x_label="loss",
    y_label="PD",
    max_columns=2,
  )
  assert path.read_bytes().startswith(b"\x89PNG")


def test_errors():
  with pytest.raises(ValueError, match="not finite"):
    planes.pareto_front(_points([(float("nan"), 1)]))
  with pytest.raises(ValueError, match="at least one panel"):
    planes.draw([("a", [])], "x.png", x_label="x", y_label="y")
