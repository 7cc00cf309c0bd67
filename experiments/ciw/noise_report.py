"""Choice of the trials, table and figure of the study of noisy labels.

Trials are chosen by accuracies on noisy validation labels; `validation` reads
nothing else. Test accuracies and detection are read for the chosen ones alone.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.ciw import search
from experiments.common import study
from locojax.core import files
from locojax.report import curves, figures, runs, tables
from locojax.train import distributed

COLUMNS = {
  "noise": "noise",
  "realised_percent": "wrong labels (%)",
  "method": "method",
  "accuracy_last": "test accuracy, last epoch (%)",
  "accuracy_best": "test accuracy at best noisy validation (%)",
  "detection_auc": "AUC of wrong against right, last",
  "setting": "chosen",
}
NOISE = "noise.json"
NOTES = (
  "Noise, initialisation and order differ between seeds, and are the same for "
  "all methods of a seed. Time: sum over trials, without compilation and "
  "evaluations."
)


class Cell(NamedTuple):
  """One replica: its noise, and the number of its seed."""

  noise: str
  seed: int


def replica(number: int) -> str:
  """The name of a replica in the metrics."""
  return f"replica_{number}"


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run of the study.

  Attributes:
    noises: that are side by side in it.
    method: its name.
    number: of its hyperparameters in `search.SPACES`.
  """

  noises: tuple[str, ...]
  method: str
  number: int

  @property
  def name(self) -> str:
    """As it is told on the way."""
    return f"{'+'.join(self.noises)}, {self.method}, trial {self.number}"

  def folder(self, workdir: pathlib.Path) -> pathlib.Path:
    """Where it lives."""
    group = "_".join(self.noises).replace(":", "-")
    return workdir / "trials" / group / self.method / str(self.number)


@functools.lru_cache(maxsize=512)
def _run(folder: pathlib.Path, stamp: int) -> runs.Run:
  del stamp  # of the metrics: a changed file is read again
  return runs.load(folder)


def _load(folder: pathlib.Path) -> runs.Run:
  return _run(folder, (folder / runs.METRICS).stat().st_mtime_ns)


def _replicas(config, trial: Trial, noise: str) -> list[int]:
  """The replicas of a noise in a trial, in the order of the seeds."""
  first = trial.noises.index(noise) * config.num_seeds
  return list(range(first, first + config.num_seeds))


def _series(config, folder, trial, noise, name) -> tuple[Any, np.ndarray]:
  """Steps, and values `[seeds, evaluations]` after step 0."""
  kind, metric = name.split("/")
  run = _load(folder)
  pairs = [
    runs.series(run, f"{kind}/{replica(r)}/{metric}")
    for r in _replicas(config, trial, noise)
  ]
  return pairs[0][0][1:], np.stack([y for _, y in pairs])[:, 1:]


def _validations(config, workdir, trial: Trial, noise: str) -> np.ndarray:
  """`[seeds]`, best accuracies on noisy validation labels; -1 if diverged."""
  folder = trial.folder(workdir)
  if (folder / "diverged.json").exists():
    return np.full(config.num_seeds, -1.0)
  _, valid = _series(config, folder, trial, noise, "valid/accuracy")
  return valid.max(axis=1)


def validation(config, workdir: pathlib.Path, trial: Trial, noise: str):
  """Best accuracy on noisy validation labels, mean over seeds; -1 if diverged.

  All that the choice of hyperparameters looks at.
  """
  return float(_validations(config, workdir, trial, noise).mean())


def _group(config, noise: str) -> tuple[str, ...]:
  return tuple(config.noises) if config.noise_together else (noise,)


def _several(config, noise: str, method: str) -> list[Trial]:
  group = _group(config, noise)
  return [Trial(group, method, n) for n in range(config.num_trials)]


def choose(config, workdir: pathlib.Path, noise: str, method: str) -> Trial:
  """The trial of the best noisy validation accuracy; the first of equals."""
  several = _several(config, noise, method)
  scores = [validation(config, workdir, t, noise) for t in several]
  return several[int(np.argmax(scores))]


def searched(config, workdir: pathlib.Path) -> list[dict[str, Any]]:
  """A row for each noise, method and trial: what the choice has looked at."""
  out = []
  for noise in config.noises:
    for method in config.methods:
      settings = search.trials(method, config.num_trials)
      chosen = choose(config, workdir, noise, method)
      for trial in _several(config, noise, method):
        scores = 100 * _validations(config, workdir, trial, noise)
        row = {
          "data": config.data.name,
          "noise": noise,
          "method": method,
          "trial": trial.number,
          "setting": search.text(settings[trial.number]),
          "noisy_validation": list(scores) if scores.min() >= 0 else None,
          "chosen": "yes" if trial == chosen else "",
        }
        out.append(row)
  return out


def _row(config, workdir, noise: str, method: str, realised) -> dict[str, Any]:
  """The chosen trial of a method under a noise; percent, one for each seed."""
  trial = choose(config, workdir, noise, method)
  setting = search.trials(method, config.num_trials)[trial.number]
  row = {
    "data": config.data.name,
    "noise": noise,
    "realised_percent": [100 * r for r in realised],
    "method": method,
    "trial": trial.number,
    "setting": search.text(setting),
  }
  folder = trial.folder(workdir)
  if (folder / "diverged.json").exists():
    return row
  read = functools.partial(_series, config, folder, trial, noise)
  _, valid = read("valid/accuracy")
  _, test = read("test/accuracy")
  best = valid.argmax(axis=1)
  at_best = np.take_along_axis(test, best[:, None], axis=1)[:, 0]
  row |= {
    "accuracy_last": list(100 * test[:, -1]),
    "accuracy_best": list(100 * at_best),
    "noisy_validation": list(100 * valid.max(axis=1)),
  }
  logged = _load(folder).keys()
  if f"detection/{replica(0)}/auc" in logged:
    row["detection_auc"] = list(read("detection/auc")[1][:, -1])
  return row


def rows(config, workdir: pathlib.Path) -> list[dict[str, Any]]:
  """A row for each noise and method."""
  found = files.read_json(workdir / NOISE)
  realised = {n: [one["rate"] for one in v] for n, v in found.items()}
  return [
    _row(config, workdir, noise, method, realised[noise])
    for noise in config.noises
    for method in config.methods
  ]


def _curve(made: Sequence[Mapping[str, Any]], name: str) -> curves.Curve:
  """A quantity against the share of wrong labels, over seeds."""
  x = [np.mean(row["realised_percent"]) for row in made]
  order = np.argsort(x)
  y = np.stack([made[i][name] for i in order])
  return curves.average([(np.sort(x), one) for one in y.T], band="std")


def _lines(config, made, path: pathlib.Path) -> pathlib.Path:
  titles = {
    "accuracy_last": "last epoch",
    "accuracy_best": "epoch of best noisy validation accuracy",
  }
  panels, data = [], {}
  for i, (name, title) in enumerate(titles.items()):
    panels.append(
      curves.Panel(
        key=name,
        title=title,
        x_label="wrong labels (%)",
        y_label="clean test accuracy (%)",
      )
    )
    for method in config.methods:
      own = [r for r in made if r["method"] == method and name in r]
      if own:
        data[method, i] = _curve(own, name)
  return curves.draw(data, config.methods, panels, path, title=config.data.name)


def _bars(config, made, path: pathlib.Path) -> pathlib.Path:
  """A panel for each noise: bars of each method, its last and best epoch."""
  high = 0.42 * len(config.methods) + 1.4
  figure, grid = figures.axes(len(config.noises), width=6.4, height=high)
  for ax, noise in zip(grid[0], config.noises):
    own = [r for r in made if r["noise"] == noise and "accuracy_last" in r]
    place = np.arange(len(own))
    for shift, name, label in (
      (-0.19, "accuracy_best", "best noisy validation"),
      (0.19, "accuracy_last", "last epoch"),
    ):
      values = [tables.summarize(row[name]) for row in own]
      ax.barh(
        place + shift,
        [v.mean for v in values],
        0.36,
        xerr=[np.nan_to_num(v.std) for v in values],
        label=label,
        color=curves.COLOURS[0 if shift < 0 else 1],
      )
    ax.set_yticks(place, [row["method"] for row in own])
    ax.invert_yaxis()
    ax.set_xlabel("clean test accuracy (%)")
    ax.set_title(f"{config.data.name}, {noise}", fontsize=11)
    figures.plain(ax)
  place = dict(loc="lower left", bbox_to_anchor=(0, 1.08), ncols=2)
  grid[0][0].legend(frameon=False, **place)
  return figures.save(figure, path)


def _draw(config, made, path: pathlib.Path) -> pathlib.Path:
  """Curves over the levels of one kind of noise; bars for several kinds."""
  kinds = {noise.partition(":")[0] for noise in config.noises}
  draw = _lines if len(kinds) == 1 < len(config.noises) else _bars
  return draw(config, made, path)


def write(made: study.Study) -> dict[str, Any]:
  """Writes table, figure and what `config.results` names.

  Beside the result file come the figure and all trials, `<name>_trials.json`.

  Returns:
    The rows, the table as markdown, and the paths.
  """
  config = made.config
  found = rows(config, made.workdir)
  best = {"accuracy_last": "max", "accuracy_best": "max"}
  # No method may weigh examples.
  known = {name for row in found for name in row}
  columns = {name: words for name, words in COLUMNS.items() if name in known}
  parts = []
  for noise in config.noises:
    own = [row for row in found if row["noise"] == noise]
    parts.append(tables.render(own, columns, digits=3, best=best))
  if config.results and distributed.is_main():
    _save_trials(made)
  return made.write(
    found,
    columns,
    draw=lambda path: _draw(config, found, path),
    seeds=range(config.num_seeds),
    notes=f"{config.num_trials} trials for each method and noise, chosen by "
    "the mean over seeds of the best accuracy on noisy validation labels. "
    + NOTES,
    markdown="\n\n".join(parts),
  )


def _save_trials(made: study.Study) -> None:
  """The file of all trials, beside the result file."""
  path = pathlib.Path(made.config.results)
  made.save(
    path.with_name(f"{path.stem}_trials.json"),
    searched(made.config, made.workdir),
    seeds=range(made.config.num_seeds),
    notes=f"Best accuracy on noisy validation labels of each trial. {NOTES}",
  )
