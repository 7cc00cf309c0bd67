"""Tunes the methods of the benchmark at equal effort.

  python -m experiments.locoprop.tune --workdir runs/tune --axis epochs \
    --config experiments/locoprop/configs/autoencoder.py:cpu

`--axis epochs` trains every trial for the config's epochs, `--axis seconds` for
about equal seconds (`search.EPOCHS_IN_EQUAL_SECONDS`, for the `cpu` variant).
Trials are run folders: an interrupted search resumes, and one that is done is
only collected into the file of `--report`.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.common import commands
from experiments.locoprop import experiment, search
from locojax.core import checks
from locojax.report import results, runs

_CONFIG = config_flags.DEFINE_config_file("config", None, "The benchmark.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the trials.")
_AXIS = flags.DEFINE_enum("axis", "epochs", ["epochs", "seconds"], "What for.")
_METHODS = flags.DEFINE_list("methods", [], "Some of the methods; else all.")
_REPORT = flags.DEFINE_string("report", "", "Result file to write.")
LOSS = "eval/train_loss"


def change(options: Mapping[str, Any], setting: Mapping[str, Any]) -> dict:
  """Options with a setting changed; a dot names an inner option."""
  options = {**options}
  for name, value in setting.items():
    outer, _, inner = name.partition(".")
    options[outer] = {**options[outer], inner: value} if inner else value
  return options


def trial(config, method, setting, num_epochs, folder) -> float | None:
  """Final train loss of one trial; None if it diverged."""
  made = config.copy_and_resolve_references()
  options = change(search.BASES[method], setting)
  with made.unlocked():
    del made.optimizers[method]
    made.optimizers[method] = options
    made.update(method=method, num_epochs=num_epochs, num_evals=1)
  result = experiment.fit(made, folder)
  return None if "diverged" in result else result["values"][LOSS]


def _name(setting: Mapping[str, Any]) -> str:
  return ",".join(f"{k}={v:g}" for k, v in setting.items())


def tune(config, method, num_epochs, workdir) -> None:
  """Runs all trials of a method, a folder each; `collect` reads them."""
  done: list[tuple[float, dict]] = []

  def attempt(setting):
    folder = workdir / method / _name(setting)
    loss = trial(config, method, setting, num_epochs, folder)
    print(f"{method} {_name(setting)}: {loss}", flush=True)
    done.append((float("inf") if loss is None else loss, setting))

  rates, changes = search.SPACES[method]
  for rate in rates[: search.NUM_RATES]:
    attempt({"learning_rate": rate})
  best = min(done, key=lambda d: d[0])[1]
  for setting in changes[: search.NUM_CHANGES]:
    attempt({**best, **setting})


def collect(folder: pathlib.Path) -> list[dict[str, Any]]:
  """One row for each trial in a folder, best first within its method."""
  rows = []
  for path in sorted(folder.glob("*/*")):
    run = runs.load(path)
    options = dict(run.config["optimizers"][path.parent.name])
    values = run.result["values"] if run.finished else {}
    loss = values.get(LOSS, math.nan)
    rows.append(
      {
        "method": path.parent.name,
        "setting": path.name,
        "epochs": run.config["num_epochs"],
        "train_loss": loss if math.isfinite(loss) else None,
        "options": json.dumps(options, sort_keys=True),
      }
    )
  worst = float("inf")
  order = lambda r: (r["method"], r["train_loss"] or worst)
  return sorted(rows, key=order)


def main(argv) -> None:
  """Runs the search and writes its report."""
  del argv
  logging.set_verbosity(logging.WARNING)
  config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  methods = _METHODS.value or list(search.SPACES)
  for method in methods:
    checks.one_of("--methods", method, search.SPACES)
  epochs = dict.fromkeys(search.SPACES, config.num_epochs)
  if _AXIS.value == "seconds":
    epochs = search.EPOCHS_IN_EQUAL_SECONDS
  folder = workdir / _AXIS.value
  for method in methods:
    tune(config, method, epochs[method], folder)
  if _REPORT.value:
    found = runs.load_all(folder)
    results.save(
      _REPORT.value,
      command="python -m experiments.locoprop.tune " + " ".join(sys.argv[1:]),
      seeds=[config.seed],
      rows=collect(folder),
      time_seconds=sum((r.result or {}).get("seconds", 0.0) for r in found),
    )


if __name__ == "__main__":
  app.run(lambda argv: commands.run(lambda: main(argv)))
