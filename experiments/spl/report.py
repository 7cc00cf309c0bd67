"""Rows, table and figures of a study of weak labels."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import stages, study
from experiments.spl import methods
from locojax.core import files
from locojax.methods import spl
from locojax.report import curves, figures

_PAIRS = ("spl_", "agreement")
SPACE, MEASURED = "label_space.json", "measured.json"
MATRICES = "label_spaces.png"
_NUMBERED = 12  # classes of a matrix that has room for its numbers
COLUMNS = {
  "method": "method",
  "clips": "clips a video",
  "classes": "classes",
  "effective": "effective classes",
  "kept": "clips kept (%)",
  "updates": "updates",
  "accuracy": "accuracy (%)",
  "top5": "top-5 (%)",
  "over_scratch": "over scratch",
  "over_weak": "over weak",
  "probe": "linear probe (%)",
}


def seed_folder(workdir: pathlib.Path, seed: int) -> pathlib.Path:
  """The folder of a seed."""
  return pathlib.Path(workdir) / f"seed_{seed}"


def clips_folder(root: pathlib.Path, per_video: int) -> pathlib.Path:
  """Of a seed's folder, that of a number of clips a video."""
  return root / f"clips_{per_video}"


def folder(
  root: pathlib.Path, per_video: int | None, name: str
) -> pathlib.Path:
  """Of a seed's folder, that of a method; None: without weak clips."""
  name = name.replace("@", "_at_")
  return (root if per_video is None else clips_folder(root, per_video)) / name


def finetuned(rate: float) -> str:
  """The name of the folder of a fine-tuning."""
  return f"finetune_{rate:g}"


def _conditions(config) -> list[tuple[str, int | None]]:
  """Method and clips a video of each row."""
  out: list[tuple[str, int | None]] = []
  for name in config.methods:
    if methods.parse(name)[0].space:
      out += [(name, c) for c in config.clips_per_video]
    else:
      out.append((name, None))
  return out


def _evals(config, workdir, name, per_video, seed, rate) -> dict[str, float]:
  root = folder(seed_folder(workdir, seed), per_video, name)
  return stages.result(root / finetuned(rate))["values"]


def best_rate(config, workdir, name: str, per_video: int | None) -> float:
  """The learning rate of the best mean accuracy on validation clips."""
  scores = {}
  for rate in config.finetune.learning_rates:
    found = [
      _evals(config, workdir, name, per_video, seed, rate)
      for seed in config.seeds
    ]
    scores[rate] = (
      np.mean([f["valid/accuracy"] for f in found]),
      -np.mean([f["valid/loss"] for f in found]),
    )
  return max(scores, key=scores.get)


def _measured(config, workdir, name, per_video, seed) -> Mapping[str, Any]:
  root = folder(seed_folder(workdir, seed), per_video, name)
  return files.read_json(root / MEASURED, remedy="run the study again")


def _row(config, workdir, name: str, per_video: int | None) -> dict[str, Any]:
  rate = best_rate(config, workdir, name, per_video)
  found = [
    _evals(config, workdir, name, per_video, seed, rate)
    for seed in config.seeds
  ]
  percent = lambda values: [round(100 * v, 3) for v in values]
  row: dict[str, Any] = {"method": name, "clips": per_video, "rate": rate}
  row["accuracy"] = percent(f["test/accuracy"] for f in found)
  row["top5"] = percent(f["test/top5"] for f in found)
  if per_video is None:
    return row
  told = [
    _measured(config, workdir, name, per_video, seed) for seed in config.seeds
  ]
  row["classes"] = [t["num_classes"] for t in told]
  row["effective"] = [round(t["effective_classes"], 2) for t in told]
  row["kept"] = percent(t["share_kept"] for t in told)
  row["probe"] = percent(t["probe"] for t in told)
  row["updates"] = [
    stages.result(
      folder(seed_folder(workdir, seed), per_video, name) / "pretrain"
    )["step"]
    for seed in config.seeds
  ]
  return row


def rows(config, workdir: pathlib.Path) -> list[dict[str, Any]]:
  """A row for each method and number of clips, a list over seeds each."""
  out = [_row(config, workdir, *c) for c in _conditions(config)]
  accuracy = {(r["method"], r["clips"]): r["accuracy"] for r in out}
  for row in out:
    for column, other in (
      ("over_scratch", ("scratch", None)),
      ("over_weak", ("weak", row["clips"])),
    ):
      if other in accuracy and row["method"] != other[0]:
        pairs = zip(row["accuracy"], accuracy[other])
        row[column] = [round(a - b, 3) for a, b in pairs]
  return out


def _names_of(config) -> list[str]:
  """Methods with weak clips, in order."""
  return [m for m in config.methods if methods.parse(m)[0].space]


def draw(config, workdir, path: pathlib.Path) -> pathlib.Path:
  """Accuracy by method; with several numbers of clips, along these."""
  every = rows(config, workdir)
  if len(config.clips_per_video) == 1:
    return _dots(every, path)
  data = {}
  for name in _names_of(config):
    own = [r for r in every if r["method"] == name]
    pairs = [
      (np.array([r["clips"] for r in own]), np.array(seed))
      for seed in zip(*(r["accuracy"] for r in own))
    ]
    data[(name, 0)] = curves.average(pairs)
  panel = curves.Panel(
    key="accuracy",
    title="accuracy after fine-tuning",
    x_label="clips a video",
    y_label="%",
    x_log=True,
  )
  return curves.draw(data, _names_of(config), [panel], path)


def _dots(every: Sequence[Mapping[str, Any]], path) -> pathlib.Path:
  figure, grid = figures.axes(1, width=7.0, height=0.32 * len(every) + 1.2)
  ax = grid[0][0]
  for i, row in enumerate(every):
    value = row["accuracy"]
    ax.plot(np.mean(value), i, "D", color=curves.COLOURS[0], ms=7, zorder=2)
    ax.plot(value, [i] * len(value), "k.", ms=4, zorder=3)
  ax.grid(axis="y", color="0.9", zorder=0)
  ax.set_yticks(range(len(every)), [r["method"] for r in every])
  ax.set_ylim(len(every) - 0.5, -0.5)
  ax.set_xlabel("accuracy after fine-tuning (%): means, and each seed")
  figures.plain(ax)
  return figures.save(figure, path)


def spaces(config, workdir: pathlib.Path) -> dict[str, spl.LabelSpace]:
  """The label spaces of pairs of the first seed, by method."""
  out = {}
  root = seed_folder(workdir, config.seeds[0])
  for name in [m for m in _names_of(config) if m.startswith(_PAIRS)]:
    path = folder(root, config.clips_per_video[-1], name) / SPACE
    text = path.read_text(encoding="utf-8")
    out[name] = spl.LabelSpace.from_json(text)
  return out


def draw_spaces(
  found: Mapping[str, spl.LabelSpace], classes: Sequence[str], path
) -> pathlib.Path:
  """The confusion matrix, and what each space makes of its pairs.

  Pairs of one colour are one class; pale ones are dropped.
  """
  figure, grid = figures.axes(len(found) + 1, width=3.1, height=4.2)
  first = next(iter(found.values()))
  share = first.confusion / np.maximum(
    first.confusion.sum(axis=1, keepdims=True), 1
  )
  ax = grid[0][0]
  ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
  ax.set_title("clips\n(colour: share of the row)", fontsize=9)
  if len(classes) <= _NUMBERED:
    for (w, t), count in np.ndenumerate(first.confusion):
      colour = "white" if share[w, t] > 0.5 else "black"
      ax.text(t, w, count, ha="center", va="center", color=colour, fontsize=6)
  _ticks(ax, classes)
  for ax, (name, space) in zip(grid[0][1:], found.items()):
    ax.imshow(_coloured(space), interpolation="nearest", aspect="auto")
    used = int((space.counts > 0).sum())
    title = f"{name}\n{space.num_classes} classes, {used} with clips"
    ax.set_title(title, fontsize=9)
    _ticks(ax, classes, names=False)
  grid[0][0].set_ylabel("weak label")
  return figures.save(figure, path)


def _coloured(space: spl.LabelSpace) -> np.ndarray:
  """A colour for each class, `[W, T, 3]`; white where it is dropped."""
  rng = np.random.default_rng(0)
  colours = rng.permuted(np.linspace(0.15, 0.9, space.num_classes))
  hues = np.stack(
    [colours, rng.permuted(colours), rng.permuted(colours)], axis=1
  )
  image = hues[np.maximum(space.lookup, 0)]
  image[space.lookup < 0] = 1.0
  rare = (space.lookup >= 0) & (space.confusion == 0)
  image[rare] = 0.75 + 0.25 * image[rare]
  return image


def _ticks(ax, classes: Sequence[str], *, names: bool = True) -> None:
  shown = [c if names else "" for c in classes]
  if len(classes) > 24:
    ax.set_xticks([])
    ax.set_yticks([])
  else:
    ax.set_xticks(range(len(classes)), shown, rotation=90, fontsize=7)
    ax.set_yticks(range(len(classes)), shown, fontsize=7)
  ax.set_xlabel("prediction")


def _notes(config, workdir) -> str:
  seed = config.seeds
  names = _names_of(config)
  told = ""
  if names:
    found = [
      _measured(config, workdir, names[0], config.clips_per_video[-1], s)
      for s in seed
    ]
    told = f" Agreement {100 * np.mean([f['agreement'] for f in found]):.1f} %."
    if "weak_right" in found[0]:
      for key, name in (("weak_right", "Weak"), ("teacher_right", "Teacher")):
        share = 100 * np.mean([f[key] for f in found])
        told += f" {name} labels right: {share:.1f} % of the weak clips."
  teacher = [
    stages.result(seed_folder(workdir, s) / "teacher")["values"] for s in seed
  ]
  top = 100 * np.mean([t["test/accuracy"] for t in teacher])
  return (
    f"Accuracy of the teacher on the target's test clips: {top:.1f} %.{told} "
    "Differences are paired by seed; learning rates of fine-tuning are chosen "
    "on validation clips, for each row."
  )


def write(made: study.Study, classes: Sequence[str]) -> dict[str, Any]:
  """Table, figures, and what `config.results` names."""
  config, workdir = made.config, made.workdir
  every = rows(config, workdir)
  shown = {k: v for k, v in COLUMNS.items() if any(k in r for r in every)}
  out = made.write(
    every,
    shown,
    draw=lambda path: draw(config, workdir, path),
    seeds=config.seeds,
    notes=_notes(config, workdir),
    spread="ci95",
  )
  found = spaces(config, workdir)
  if found:
    where = workdir / MATRICES
    draw_spaces(found, classes, where)
    out["label_spaces"] = str(where)
    if config.results:
      beside = pathlib.Path(config.results)
      name = f"{beside.stem}_{MATRICES}"
      draw_spaces(found, classes, beside.with_name(name))
  return out
