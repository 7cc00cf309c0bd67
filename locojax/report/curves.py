"""Curves with a band over seeds, drawn by matplotlib into PNG files."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from locojax.report import figures, names
from locojax.report import runs as runs_lib

BANDS = ("std", "range", "none")
# Distinct also for colour-blind readers, dark enough on white.
COLOURS = (
  *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#a6761d"),
  *("#4d4d4d", "#882255", "#332288", "#999933", "#117733", "#e69f00"),
)
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))


@dataclasses.dataclass(frozen=True)
class Curve:
  """The runs of one setting against a common axis.

  Attributes:
    x: `[points]`.
    mean, low, high: `[points]`; the mean over seeds and the edges of the band.
  """

  x: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def average(pairs: Sequence[tuple[Any, Any]], *, band: str = "range") -> Curve:
  """Averages curves that may have different x.

  Args:
    pairs: `(x, y)` for each seed, x ascending. If all x agree they are kept;
      else (seconds) all are interpolated linearly on as many points as the
      longest has, over the span that all of them cover.
    band: `std` (mean ± standard deviation), `range` or `none`.

  Raises:
    ValueError: no curves, an empty one, or spans that do not overlap.
  """
  names.one_of("band", band, BANDS)
  if not pairs or any(len(x) == 0 for x, _ in pairs):
    raise ValueError("pairs must hold at least one curve, none of them empty.")
  xs = [np.asarray(x, np.float64) for x, _ in pairs]
  ys = [np.asarray(y, np.float64) for _, y in pairs]
  if all(np.array_equal(x, xs[0]) for x in xs):
    x = xs[0]
  else:
    low, high = max(v[0] for v in xs), min(v[-1] for v in xs)
    if low > high:
      raise ValueError(f"the curves share no x: {low} is above {high}.")
    x = np.linspace(low, high, max(map(len, xs)))
    ys = [np.interp(x, a, b) for a, b in zip(xs, ys)]
  y = np.stack(ys)
  mean = y.mean(axis=0)
  if band == "range":
    return Curve(x, mean, y.min(axis=0), y.max(axis=0))
  width = y.std(axis=0, ddof=1) if band == "std" and len(y) > 1 else 0.0
  return Curve(x, mean, mean - width, mean + width)


def colour_map(labels: Sequence[str]) -> dict[str, tuple[str, Any]]:
  """Label -> (colour, dash pattern); give all once to agree in figures."""
  return {
    label: (
      COLOURS[i % len(COLOURS)],
      _DASHES[(i // len(COLOURS)) % len(_DASHES)],
    )
    for i, label in enumerate(dict.fromkeys(labels))
  }


@dataclasses.dataclass(frozen=True)
class Panel:
  """One pair of axes.

  Attributes:
    key: the metric.
    x: `step`, `seconds`, `epoch` or a logged name.
    title, x_label, y_label: None takes the names.
    x_log, y_log: logarithmic axes.
    y_limits: (low, high), either None; keeps early values from flattening the
      rest.
    x_limits: the same for x.
    x_whole: whether x counts something, so that its ticks are whole numbers.
  """

  key: str
  x: str = "step"
  title: str | None = None
  x_label: str | None = None
  y_label: str | None = None
  x_log: bool = False
  y_log: bool = False
  y_limits: tuple[float | None, float | None] = (None, None)
  x_limits: tuple[float | None, float | None] = (None, None)
  x_whole: bool = False


def _has(run: runs_lib.Run, key: str) -> bool:
  return any(key in line for line in run.metrics)


def averages(
  groups: Mapping[str, Sequence[runs_lib.Run]],
  panels: Sequence[Panel],
  *,
  band: str = "range",
  steps_per_epoch: float | None = None,
  partial: bool = False,
) -> dict[tuple[str, int], Curve]:
  """What `draw` takes of runs: a curve for each label and panel.

  Args:
    groups, panels, band, steps_per_epoch: as of `plot`.
    partial: whether groups without runs, and panels whose metric the first run
      of a group lacks, are left out.

  Raises:
    ValueError: a metric that a run lacks; without `partial` no runs.
  """
  return {
    (label, i): average(
      [
        runs_lib.series(r, p.key, x=p.x, steps_per_epoch=steps_per_epoch)
        for r in group
      ],
      band=band,
    )
    for label, group in groups.items()
    for i, p in enumerate(panels)
    if not partial or (group and _has(group[0], p.key))
  }


def plot(
  groups: Mapping[str, Sequence[runs_lib.Run]],
  panels: Sequence[Panel],
  path: str | os.PathLike,
  *,
  band: str = "range",
  steps_per_epoch: float | None = None,
  colours: Mapping[str, tuple[str, Any]] | None = None,
  title: str | None = None,
) -> pathlib.Path:
  """Draws panels side by side, with one legend, and saves a PNG.

  Args:
    groups: label -> runs that differ in the seed only.
    panels: what to draw; see `Panel`.
    path: the file; folders are made.
    band: what is shaded over seeds: `std`, `range` or `none`.
    steps_per_epoch: for panels against `epoch`.
    colours: from `colour_map`, for labels to look the same in many figures.
    title: above all panels.

  Returns:
    `path`.

  Raises:
    ValueError: nothing to draw, a metric that a run lacks.
    ImportError: matplotlib is not installed.
  """
  if not groups or not panels:
    raise ValueError("plot needs at least one group of runs and one panel.")
  data = averages(groups, panels, band=band, steps_per_epoch=steps_per_epoch)
  return draw(data, list(groups), panels, path, colours=colours, title=title)


def draw(
  data: Mapping[tuple[str, int], Curve],
  labels: Sequence[str],
  panels: Sequence[Panel],
  path: str | os.PathLike,
  *,
  colours: Mapping[str, tuple[str, Any]] | None = None,
  title: str | None = None,
  emphasis: Sequence[str] = (),
) -> pathlib.Path:
  """Draws curves by (label, number of the panel).

  Args:
    data: see `averages`.
    labels, panels, path, colours, title: see `plot`.
    emphasis: labels that the figure is about. They alone are coloured and have
      a band, the others are grey behind them, and the legend is in the order of
      the last values in the first panel, the highest on top. None: all alike.

  Returns:
    `path`.

  Raises:
    ValueError: a label of `emphasis` that is none of `labels`.
  """
  figure, grid = figures.axes(len(panels), margin=1.9)
  axes = grid[0]
  for label in emphasis:
    names.one_of("emphasis", label, labels)
  colours = dict(colours or colour_map(emphasis or labels))
  for i, (panel, ax) in enumerate(zip(panels, axes)):
    for label in labels:
      if (label, i) not in data:
        continue
      if emphasis and label not in emphasis:
        _draw_behind(ax, data[label, i], label)
      else:
        style = names.lookup("label", label, colours)
        _draw_curve(ax, data[label, i], label, style)
    _decorate(ax, panel)
  legend(figure, axes, by_last_value(data, labels) if emphasis else labels)
  if title:
    figure.suptitle(title, fontsize=12)
  return figures.save(figure, path)


def by_last_value(
  data: Mapping[tuple[str, int], Curve], labels: Sequence[str]
) -> list[str]:
  """Labels by where their curves of the first panel end, the highest first."""

  def last(label):
    curve = data.get((label, 0))
    end = math.nan if curve is None else float(curve.mean[-1])
    return -math.inf if math.isnan(end) else end

  return sorted(labels, key=last, reverse=True)


def standing_out(
  data: Mapping[tuple[str, int], Curve],
  labels: Sequence[str],
  ours: Sequence[str],
  *,
  mode: str = "max",
  num_peers: int = 2,
  most: int = 8,
) -> list[str]:
  """What a crowded figure emphasises: ours, and the best of the others.

  Args:
    data, labels: of `draw`.
    ours: labels that the claim is about; those that are not there count not.
    mode: whether the greatest (`max`) or least (`min`) last value is best.
    num_peers: how many of the others.
    most: up to so many labels nothing is emphasised.

  Returns:
    Labels for `draw(emphasis=)`.
  """
  names.one_of("mode", mode, ("min", "max"))
  if len(labels) <= most:
    return []
  known = [label for label in labels if (label, 0) in data]
  order = by_last_value(data, known)
  order = order if mode == "max" else order[::-1]
  peers = [label for label in order if label not in ours][:num_peers]
  return [label for label in known if label in ours or label in peers]


def _draw_behind(ax, curve: Curve, label: str) -> None:
  """A thin grey curve without a band."""
  ax.plot(curve.x, curve.mean, color="#b3b3b3", lw=1.0, label=label, zorder=1)


def _draw_curve(ax, curve: Curve, label: str, style) -> None:
  colour, dashes = style
  ax.plot(
    curve.x, curve.mean, color=colour, ls=dashes, lw=1.7, label=label, zorder=3
  )
  if not np.array_equal(curve.low, curve.high):
    ax.fill_between(
      curve.x, curve.low, curve.high, color=colour, alpha=0.18, lw=0, zorder=2
    )


def _decorate(ax, panel: Panel) -> None:
  units = {"seconds": "seconds", "epoch": "epoch", "step": "step"}
  ax.set_xlabel(panel.x_label or units.get(panel.x, panel.x))
  ax.set_ylabel(panel.y_label or panel.key)
  if panel.title:
    ax.set_title(panel.title, fontsize=11)
  if panel.x_log:
    ax.set_xscale("log")
  if panel.y_log:
    ax.set_yscale("log")
    _plain_ticks(ax.yaxis)
  if panel.x_whole:
    ax.xaxis.get_major_locator().set_params(integer=True)
  ax.set_xlim(*panel.x_limits)
  ax.set_ylim(*panel.y_limits)
  figures.plain(ax)


def _plain_ticks(axis) -> None:
  """60, 100, 200 in place of powers of ten, on a logarithmic axis."""
  from matplotlib import ticker

  axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
  axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
  axis.set_minor_formatter(ticker.NullFormatter())


def legend(figure, axes, labels: Sequence[str]) -> None:
  """One legend right of the panels, in the order of the labels.

  Labels that no curve has are left out.
  """
  handles = {}
  for ax in axes:
    for handle, label in zip(*ax.get_legend_handles_labels()):
      handles.setdefault(label, handle)
  shown = [name for name in labels if name in handles]
  figure.legend(
    [handles[name] for name in shown],
    shown,
    loc="outside right center",
    frameon=False,
    fontsize=9,
  )
