"""Rows, table and figures of a study of streams."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import study
from experiments.l2p import learners, tasks
from locojax.core import files
from locojax.methods import continual
from locojax.report import curves, figures, runs

MEASURED = "measured.json"
COLUMNS = {
  "method": "method",
  "trained": "trained",
  "kept": "examples kept a class",
  "accuracy": "accuracy (%)",
  "forgetting": "forgetting (points)",
  "learning_accuracy": "accuracy when learned (%)",
  "accuracy_own": "accuracy among the task's classes (%)",
  "accuracy_batchwise": "accuracy, batch votes (%)",
  "leak": "the vote's leak (points)",
  "alive": "prompts alive",
}
HISTOGRAMS = "selection.png"


def folder(
  workdir: pathlib.Path, method: str, seed: int, task: int
) -> pathlib.Path:
  """The run folder of a task of a method with a seed."""
  return pathlib.Path(workdir) / method / f"seed_{seed}" / f"task_{task}"


def _stages(stream: tasks.Stream, method: str) -> range:
  last = stream.num_stages
  whole = learners.LEARNERS[method].whole
  return range(last - 1 if whole else 0, last)


def measured(
  workdir: pathlib.Path, method: str, seed: int, stream: tasks.Stream
) -> list[Mapping[str, Any]]:
  """What was measured after each stage, in order.

  Raises:
    FileNotFoundError: a stage is not finished.
  """
  places = [
    folder(workdir, method, seed, task) for task in _stages(stream, method)
  ]
  remedy = "remove it, and run the study again"
  return [files.read_json(p / MEASURED, remedy=remedy) for p in places]


def matrix(
  found: Sequence[Mapping[str, Any]], kind: str
) -> continual.AccuracyMatrix:
  """The accuracy matrix of a method with boundaries."""
  out = continual.AccuracyMatrix.empty(len(found))
  for t, one in enumerate(found):
    out = out.updated(t, one[kind][: t + 1])
  return out


def _numbers(found: Sequence[Mapping[str, Any]], stream) -> dict[str, float]:
  """The numbers of one method with one seed, in percent."""
  last = found[-1]
  out = {
    "accuracy": 100 * float(np.mean(last["all"])),
  }
  if stream.boundaries and len(found) == len(stream.trains) > 1:
    t = len(found) - 1
    summary = matrix(found, "all").summary(t)
    names = ("forgetting", "learning_accuracy", "backward_transfer")
    out |= {n: 100 * float(summary[n]) for n in names}
    out["forgetting_chaudhry"] = 100 * float(summary["forgetting_chaudhry"])
    out["accuracy_own"] = 100 * float(np.mean(last["own"]))
  if "batchwise" in last:
    out["accuracy_batchwise"] = 100 * float(np.mean(last["batchwise"]))
    out["leak"] = out["accuracy_batchwise"] - out["accuracy"]
    out["alive"] = int((np.sum(last["histogram"], axis=0) > 0).sum())
  return out


def rows(
  config, workdir: pathlib.Path, stream: tasks.Stream
) -> list[dict[str, Any]]:
  """A row for each method, a list over seeds for each number."""
  out = []
  for method in config.methods:
    found = [
      _numbers(measured(workdir, method, seed, stream), stream)
      for seed in config.seeds
    ]
    learner = learners.LEARNERS[method]
    kept = config.buffer_per_class
    rehearses = learner.replays or learner.scratch
    row: dict[str, Any] = {
      "method": method,
      "trained": learner.trains,
      "kept": kept if rehearses else 0,
    }
    row |= {n: [round(f[n], 3) for f in found] for n in found[0]}
    out.append(row)
  return out


def _curve(workdir, method: str, config, stream) -> curves.Curve | None:
  """Mean accuracy on the tasks so far, after each of them."""
  pairs = []
  for seed in config.seeds:
    found = measured(workdir, method, seed, stream)
    if len(found) < 2:
      return None
    each = matrix(found, "all")
    y = [100 * float(each.average_accuracy(t)) for t in range(len(found))]
    pairs.append((np.arange(1, len(found) + 1), np.array(y)))
  return curves.average(pairs)


def draw(config, workdir, stream, path: pathlib.Path) -> pathlib.Path:
  """Accuracy after each task; without boundaries, at the end alone."""
  found = {m: _curve(workdir, m, config, stream) for m in config.methods}
  found = {m: c for m, c in found.items() if c is not None}
  if found:
    panel = curves.Panel(
      key="accuracy",
      title="accuracy on the tasks so far",
      x_label="tasks learned",
      x_whole=True,
      y_label="accuracy (%)",
    )
    data = {(m, 0): c for m, c in found.items()}
    claim = ("l2p", "ft_seq", "ewc")
    standing = curves.standing_out(data, list(found), claim, num_peers=1)
    return curves.draw(data, list(found), [panel], path, emphasis=standing)
  return _bars(config, workdir, stream, path)


def _bars(config, workdir, stream, path):
  """Accuracy at the end, a bar for each method."""
  every = rows(config, workdir, stream)
  figure, grid = figures.axes(1, width=7.0)
  ax = grid[0][0]
  for i, row in enumerate(every):
    value = row["accuracy"]
    ax.barh(i, np.mean(value), color=curves.COLOURS[0], zorder=2)
    ax.plot(value, [i] * len(value), "k.", ms=4, zorder=3)
  ax.set_yticks(range(len(every)), [r["method"] for r in every])
  ax.invert_yaxis()
  ax.set_xlabel("accuracy at the end (%), points are seeds")
  figures.plain(ax)
  return figures.save(figure, path)


def _pooled(config) -> list[str]:
  """Methods with a pool of prompts."""
  return [m for m in config.methods if "l2p" in m or m == "dualprompt"]


def draw_histograms(config, workdir, stream, path) -> pathlib.Path | None:
  """Which prompts each task's test examples choose, of the first seed."""
  methods = _pooled(config)
  if not methods:
    return None
  found = {}
  for method in methods:
    last = measured(workdir, method, config.seeds[0], stream)[-1]
    found[method] = np.array(last["histogram"], np.float64)
  num = np.array([[len(test["label"])] for test in stream.tests])
  figure, grid = figures.axes(len(methods), width=3.6, height=3.2)
  short = [
    name if len(name) < 19 else name[:17] + ".." for name in stream.names
  ]
  for ax, method in zip(grid[0], methods):
    counts = found[method]
    image = ax.imshow(counts / num, aspect="auto", vmin=0, vmax=1)
    alive = int((counts.sum(axis=0) > 0).sum())
    ax.set_title(
      f"{method}: {alive} of {counts.shape[1]} chosen at all", fontsize=9
    )
    ax.set_xlabel("prompt")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_yticks(range(len(short)), short, fontsize=7)
  what = "task" if stream.boundaries else "class"
  grid[0][0].set_ylabel(f"{what} (seed {config.seeds[0]})")
  bar = figure.colorbar(image, ax=list(grid[0]), shrink=0.9)
  bar.set_label("share of images that choose it")
  return figures.save(figure, path)


def _notes(config, workdir) -> str:
  source = config.data.checkpoint or ", ".join(config.data.backbone)
  told = f"Backbone: {source}."
  place = pathlib.Path(workdir) / "backbone"
  if place.exists() and (trained := runs.load(place)).finished:
    top = trained.result.get("values", {}).get("test/accuracy")
    if top is not None:
      told += f" Its accuracy on its own test data: {100 * top:.1f} %."
  return (
    f"{told} Accuracy among all classes, each example by itself, after the "
    "last task, mean over tasks. When learned: the same, on a task right after "
    "it, mean over tasks. Among the task's classes: at the end, each task's "
    "examples among its own classes. Spread: over seeds of training; backbone, "
    "classes of a task and examples are the same in all. Batch votes: as the "
    "released code evaluates, "
    f"batches of {config.eval_batch_size} of one task. Kept: examples a class. "
    "Prompts alive: those that a test example chooses."
  )


def write(made: study.Study, stream: tasks.Stream) -> dict[str, Any]:
  """Table, figures, and what config.results names."""
  config, workdir = made.config, made.workdir
  every = rows(config, workdir, stream)
  shown = {k: v for k, v in COLUMNS.items() if any(k in r for r in every)}
  out = made.write(
    every,
    shown,
    draw=lambda path: draw(config, workdir, stream, path),
    seeds=config.seeds,
    notes=_notes(config, workdir),
  )
  where = workdir / HISTOGRAMS
  if draw_histograms(config, workdir, stream, where) is not None:
    out["histograms"] = str(where)
    if config.results:
      beside = pathlib.Path(config.results)
      name = f"{beside.stem}_{HISTOGRAMS}"
      draw_histograms(config, workdir, stream, beside.with_name(name))
  return out
