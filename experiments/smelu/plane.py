"""The plane of prediction difference against loss, from predictions alone."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.common import study
from experiments.smelu import pd_report
from locojax.methods.smelu import ranking, reproducibility
from locojax.report import planes

BASELINE = "relu"
COLUMNS = (
  "condition",
  "setting",
  "rate",
  "log_loss",
  "loss_change_percent",
  "quality",
  "pd_percent",
  "pd_low",
  "pd_high",
  "pd_to_relu",
  "disagreement_percent",
  "swap_percent",
  "pairs",
  "trainings",
)


def folder_name(text: str) -> str:
  """A setting as the name of a folder."""
  return text.replace(":", "_").replace("*", "_x")


def folder(workdir: pathlib.Path, condition: str, setting: str) -> pathlib.Path:
  """Where a point lives."""
  return pathlib.Path(workdir) / "points" / condition / folder_name(setting)


def points(config) -> list[tuple[str, str]]:
  """(condition, setting) of every point, in the order of the grid."""
  return [(c, s) for c, several in config.grid.items() for s in several]


def settings(config) -> list[str]:
  """All settings of the grid, each once."""
  return list(dict.fromkeys(s for _, s in points(config)))


def log_losses(preds: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Log loss of each model `[M]`; predictions `[M, N]` or `[M, N, K]`."""
  return np.asarray(ranking.log_loss(preds, labels))


def _report(config, where: pathlib.Path, ensemble: int) -> dict[str, Any]:
  data = pd_report.load([str(where)])
  if ensemble > 1:
    data["preds"] = np.asarray(
      reproducibility.ensemble(data["preds"], ensemble)
    )
  return pd_report.report(
    data, key=jax.random.key(config.seed), eps=config.pd_floor
  )


def measure(config, where: pathlib.Path, ensemble: int = 1) -> dict[str, Any]:
  """Loss, quality and prediction difference of the models of a folder.

  The difference is the relative one, pairwise; for classes that of the
  probability of the true one. Its interval is over models (jackknife), or
  over examples where there are two models.
  """
  found = _report(config, where, ensemble)
  clicks = "auc" in found
  name = "relative_pd_pairwise" if clicks else "label_relative_pd_pairwise"
  ends = found["over_models"].get(name) or found["over_examples"][name]
  losses = found["log_loss_by_model"]
  models = found["num_models"]
  spread = np.std(losses, ddof=1) / np.sqrt(models) if models > 1 else 0.0
  swap = found.get("swap_top_item")
  return {
    "log_loss": found["log_loss"],
    "log_loss_error": float(spread),
    "quality": found["auc"] if clicks else found["accuracy"],
    "pd_percent": 100 * found[name],
    "pd_low": 100 * ends[0],
    "pd_high": 100 * ends[1],
    "hellinger": found["hellinger_pd"],
    "disagreement_percent": 100 * found["disagreement"],
    "swap_percent": None if swap is None else 100 * swap,
    "pairs": models * (models - 1) // 2,
    "lowest_prediction": found["lowest_prediction"],
  }


def _ensemble_of(setting: str) -> int:
  number = setting.partition("+")[0].partition("*")[2]
  return int(number or 1)


def rows(
  config, workdir: pathlib.Path, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
  """A row for each point, with ratios to ReLU under the same condition."""
  out = []
  for condition, setting in points(config):
    ensemble = _ensemble_of(setting)
    activation = setting.partition("+")[0].partition("*")[0]
    row = {
      "data": config.data.name,
      "condition": condition,
      "setting": setting,
      "rate": rates.get(activation),
      "trainings": 2 if setting.endswith("+warm") else ensemble,
    }
    out.append(
      row | measure(config, folder(workdir, condition, setting), ensemble)
    )
  for row in out:
    base = next((r for r in out if _is_baseline(r, row["condition"])), None)
    if base is not None:
      change = row["log_loss"] / base["log_loss"] - 1
      row["loss_change_percent"] = 100 * change
      row["pd_to_relu"] = row["pd_percent"] / base["pd_percent"]
  return out


def _is_baseline(row: Mapping[str, Any], condition: str) -> bool:
  return row["condition"] == condition and row["setting"] == BASELINE


def _point(row: Mapping[str, Any], base: float) -> planes.Point:
  setting = row["setting"]
  group = setting.partition(":")[0]
  x = 100 * (row["log_loss"] / base - 1)
  error = 100 * row["log_loss_error"] / base
  return planes.Point(
    label=setting,
    group=group,
    x=x,
    y=row["pd_percent"],
    x_range=(x - error, x + error),
    y_range=(row["pd_low"], row["pd_high"]),
  )


def draw(
  made: Sequence[Mapping[str, Any]], path: pathlib.Path, title: str
) -> pathlib.Path:
  """A plane for each condition of more than two points, the fullest first."""
  panels = []
  for condition in dict.fromkeys(r["condition"] for r in made):
    several = [r for r in made if r["condition"] == condition]
    base = next((r for r in several if r["setting"] == BASELINE), several[0])
    if len(several) > 2:
      found = [_point(r, base["log_loss"]) for r in several]
      panels.append((condition.replace("_", " "), found))
  panels.sort(key=lambda panel: -len(panel[1]))
  return planes.draw(
    panels,
    path,
    x_label="log loss, % above ReLU",
    y_label="relative prediction difference, %",
    title=title,
  )


def front(made: Sequence[Mapping[str, Any]], condition: str) -> list[str]:
  """The settings on the Pareto front of a condition."""
  several = [r for r in made if r["condition"] == condition]
  found = [_point(r, several[0]["log_loss"]) for r in several]
  return [p.label for p in planes.pareto_front(found)]


def write(made: study.Study, rates: Mapping[str, float]) -> dict[str, Any]:
  """Writes table, plane, and the result file that the config names."""
  config = made.config
  found = rows(config, made.workdir, rates)
  for row in found:
    on_front = row["setting"] in front(found, row["condition"])
    row["pareto"] = "yes" if on_front else ""
  columns = [c for c in COLUMNS if any(r.get(c) is not None for r in found)]
  return made.write(
    found,
    [*columns, "pareto"],
    draw=lambda path: draw(found, path, f"{config.data.name}"),
    seeds=[config.seed],
    figure="plane.png",
  )
