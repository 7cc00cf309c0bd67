"""Table and figure of the federated experiments, from their run folders."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common import study
from locojax.methods import dp_ftrl
from locojax.report import curves, runs

COLUMNS = {
  "method": "method",
  "rho": "rho",
  "eps": "eps (exact)",
  "clip_norm": "C",
  "last_norm": "last C",
  "noise_multiplier": "z",
  "squared_sensitivity": "zeta^2",
  "server_rate": "server rate",
  "accuracy": "test accuracy (%)",
  "loss": "test loss",
}

_AMPLIFIED = (
  " `amplified` has the eps of the others, by privacy loss distributions for "
  "Poisson cohorts."
)


class Point(NamedTuple):
  """A row: names of the config, and what they are set to.

  Attributes:
    method, rho: the mechanism.
    clip_norm: C, or what adaptive clipping starts from.
  """

  method: str
  rho: float
  clip_norm: float


def folder(workdir: pathlib.Path, config, point: Point) -> pathlib.Path:
  """Where a point lives."""
  where = pathlib.Path(workdir) / point.method / f"rho_{point.rho:g}"
  return where / f"norm_{point.clip_norm:g}" if config.clip_norms else where


def _values(found: Sequence[runs.Run], name: str, default=None) -> list:
  return [
    r.result["values"].get(name, default) if r.finished else None for r in found
  ]


def _row(config, workdir, point: Point, place, make) -> dict[str, Any]:
  method, rho, norm = point
  where = folder(workdir, config, point)
  found = [runs.load(where / f"seed_{s}") for s in config.seeds]
  mechanism = make(method, place, rho)
  private = method != "none"
  accuracy = _values(found, "test/accuracy")
  return {
    "task": config.task,
    "data": config.data.name,
    "method": method,
    "rho": rho if private else None,
    "eps": dp_ftrl.zcdp_to_eps(rho, place.delta) if private else None,
    "delta": place.delta,
    "clip_norm": norm,
    "last_norm": _values(found, "train/clip_norm", norm),
    "noise_multiplier": mechanism.noise_multiplier,
    "total_multiplier": mechanism.total_multiplier,
    "squared_sensitivity": mechanism.squared_sensitivity,
    "server_rate": found[0].config["server_rate"],
    "accuracy": [None if a is None else 100 * a for a in accuracy],
    "loss": _values(found, "test/loss"),
    "num_rounds": place.num_rounds,
    "max_participations": place.max_participations,
    "min_sep": place.min_sep,
  }


def _curve(rows, key: str):
  """Accuracy of a method's rows against a column, over seeds."""
  rows = sorted(rows, key=lambda r: r[key])
  x = np.array([r[key] for r in rows])
  y = np.array([r["accuracy"] for r in rows], float)
  return curves.average([(x, s) for s in y.T], band="std")


def _norms_figure(config, made, path: pathlib.Path) -> pathlib.Path:
  """Accuracy against the (initial) norm; a panel for each rho."""
  data, panels = {}, []
  for i, rho in enumerate(config.rhos):
    for method in config.methods:
      own = [r for r in made if r["method"] == method]
      own = [r for r in own if r["rho"] in (None, rho)]
      data[method, i] = _curve(own, "clip_norm")
    panels.append(
      curves.Panel(
        key="accuracy",
        title=f"{config.task}, {config.data.name}, rho {rho:g}",
        x_label="clipping norm, fixed or initial",
        y_label="test accuracy (%)",
        x_log=True,
      )
    )
  return curves.draw(data, list(config.methods), panels, path)


def _figure(config, made, path: pathlib.Path) -> pathlib.Path:
  """Accuracy against eps, a curve for each method."""
  data = {}
  for method in config.methods:
    own = [r for r in made if r["method"] == method]
    if method == "none":
      eps = sorted(r["eps"] for r in made if r["eps"])
      ends = (eps[0], eps[-1]) if eps else (1.0,)
      own = [{**own[0], "eps": e} for e in ends]
    data[method, 0] = _curve(own, "eps")
  panels = [
    curves.Panel(
      key="accuracy",
      title=f"{config.task}, {config.data.name}",
      x_label=f"eps at delta {config.delta:g}, exact",
      y_label="test accuracy (%)",
    )
  ]
  return curves.draw(data, list(config.methods), panels, path)


def _clipping(config, place) -> str:
  """How updates are clipped, in words."""
  norms = config.clip_norms or (config.clip_norm,)
  out = "clip norm " + ", ".join(f"{n:g}" for n in norms)
  restarted = [m for m in config.methods if m.endswith(("restart", "adaptive"))]
  if restarted:
    lengths = place.restart.lengths(place.num_rounds)
    out += f"; {' and '.join(restarted)}: trees of {lengths} rounds"
  if any(m.endswith("adaptive") for m in restarted):
    stddev = place.count_stddev or place.num_clients / 20
    out += (
      f"; adaptive: from that norm to the {config.clip.quantile:g} quantile, "
      f"rate {config.clip.learning_rate:g}, standard deviation of the count "
      f"{stddev:g}, all paid out of the same rho"
    )
  return out


def _notes(config, place) -> str:
  return (
    f"{place.num_rounds} rounds of {config.cohort_size} clients, each in "
    f"at most {place.max_participations} rounds, at least {place.min_sep} "
    f"apart; {_clipping(config, place)}. Server rates of "
    f"{tuple(config.server_rates)} by test loss of another seed, which "
    "no privacy is charged for."
    + (_AMPLIFIED if "amplified" in config.methods else "")
  )


def write(
  made: study.Study, points: Sequence[Point], place, make: Callable
) -> dict[str, Any]:
  """Writes table, figure, and the result file that the config names."""
  config = made.config
  rows = [_row(config, made.workdir, point, place, make) for point in points]
  draw = _norms_figure if config.clip_norms else _figure
  return made.write(
    rows,
    COLUMNS,
    draw=lambda path: draw(config, rows, path),
    seeds=config.seeds,
    notes=_notes(config, place),
  )
