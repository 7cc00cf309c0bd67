"""Table and figure of the benchmark, from its run folders alone."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from experiments.common import study
from experiments.locoprop import optimizers
from locojax.report import curves, runs

LOSS = "eval/train_loss"
_COLUMNS = (
  "method",
  "rate_factor",
  "train_equal_epochs",
  "test_equal_epochs",
  "ratio_equal_epochs",
  "step_ms",
  "step_ratio_adam",
  "epochs_in_equal_seconds",
  "train_equal_seconds",
  "ratio_equal_seconds",
  "memory_mib",
)


def _runs(workdir, axis: str, method: str, seeds) -> list[runs.Run | None]:
  """The finished run of each seed; None where it diverged."""
  out = []
  for seed in seeds:
    folder = workdir / axis / method / f"seed_{seed}"
    diverged = (folder / "diverged.json").exists() or not folder.exists()
    run = None if diverged else runs.load(folder)
    out.append(run if run is not None and run.finished else None)
  return out


def _values(found, name: str) -> list[float | None]:
  values = [r.result["values"][name] if r else None for r in found]
  return [v if v is not None and math.isfinite(v) else None for v in values]


def _mean(values) -> float | None:
  kept = [v for v in values if v is not None]
  return sum(kept) / len(kept) if len(kept) == len(values) else None


def _row(config, workdir, method: str) -> dict[str, Any]:
  """What one method did, over seeds."""
  seeds = list(config.seeds)
  equal = _runs(workdir, "epochs", method, seeds)
  row: dict[str, Any] = {
    "method": method,
    "train_equal_epochs": _values(equal, LOSS),
    "test_equal_epochs": _values(equal, "eval/test_loss"),
    "step_ms": [
      1e3 * r.result["seconds"] / r.result["step"] if r else None for r in equal
    ],
    "memory_mib": _mean(
      [(r.result.get("step_bytes") or 0) / 2**20 if r else None for r in equal]
    ),
  }
  kept = [r for r in equal if r]
  if config.rate_factors and kept:
    row["rate_factor"] = kept[0].config["rate_factor"]
  if config.equal_seconds:
    found = _runs(workdir, "seconds", method, seeds)
    row["train_equal_seconds"] = _values(found, LOSS)
    row["test_equal_seconds"] = _values(found, "eval/test_loss")
    epochs = [r.config["num_epochs"] if r else None for r in found]
    row["epochs_in_equal_seconds"] = epochs[0]
    row["seconds"] = [r.result["seconds"] if r else None for r in found]
  return row


def _add_ratios(rows, column: str, key: str) -> None:
  """Ratio of the mean to that of the best first-order method."""
  means = {r["method"]: _mean(r[column]) for r in rows}
  first = [means[m] for m in optimizers.FIRST_ORDER if means.get(m) is not None]
  for row in rows:
    mean = means[row["method"]]
    row[key] = mean / min(first) if first and mean is not None else None


def rows(config, workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of the table, in the order of the methods."""
  out = [_row(config, workdir, method) for method in config.methods]
  _add_ratios(out, "train_equal_epochs", "ratio_equal_epochs")
  if config.equal_seconds:
    _add_ratios(out, "train_equal_seconds", "ratio_equal_seconds")
  adam = next((r for r in out if r["method"] == "adam"), None)
  for row in out if adam else ():
    mine, reference = _mean(row["step_ms"]), _mean(adam["step_ms"])
    both = mine is not None and reference is not None
    row["step_ratio_adam"] = mine / reference if both else None
  return out


def _figure(config, workdir: pathlib.Path, path) -> pathlib.Path:
  panels = [
    curves.Panel(
      LOSS, x="epoch", title="equal epochs", y_label="train loss", y_log=True
    )
  ]
  axes = [("epochs", "epoch")]
  if config.equal_seconds:
    axes.append(("seconds", "seconds"))
    panels.append(
      curves.Panel(
        LOSS,
        x="seconds",
        title="equal seconds",
        y_label="train loss",
        y_log=True,
      )
    )
  data = {}
  for i, (folder, x) in enumerate(axes):
    for method in config.methods:
      found = _runs(workdir, folder, method, config.seeds)
      pairs = [_series(r, x) for r in found if r is not None]
      if pairs:
        data[method, i] = curves.average(pairs)
  title = f"Deep autoencoder, {config.data.name}"
  methods = list(config.methods)
  ours = [m for m in methods if m.startswith("locoprop")]
  standing = curves.standing_out(data, methods, ours, mode="min")
  return curves.draw(
    data, methods, panels, path, title=title, emphasis=standing
  )


def _series(run: runs.Run, x: str):
  per_epoch = run.result["step"] / run.config["num_epochs"]
  return runs.series(run, LOSS, x=x, steps_per_epoch=per_epoch)


def write(made: study.Study) -> dict[str, Any]:
  """Writes table, figure, and the result file that the config names."""
  found = rows(made.config, made.workdir)
  columns = [c for c in _COLUMNS if any(r.get(c) is not None for r in found)]
  return made.write(
    found,
    columns,
    draw=lambda path: _figure(made.config, made.workdir, path),
    seeds=made.config.seeds,
  )
