"""Table and figures of LIMoE's conditions, from their run folders."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import study
from experiments.limoe import questions
from locojax.methods import limoe
from locojax.report import curves, figures, runs
from locojax.train import distributed

EXPERTS = "experts.png"
COLOURS = {"image": "#4878cf", "text": "#d65f5f"}
# Steps at the end over which the success rates are averaged.
LAST = 50
_SUCCESS = {
  "train/success_image": "image success",
  "train/success_text": "text success",
}


def folder(workdir: pathlib.Path, condition: str, seed: int) -> pathlib.Path:
  """Where a run lives."""
  return pathlib.Path(workdir) / condition / f"seed_{seed}"


def _percent(values: Sequence[float | None]) -> list[float | None]:
  return [None if v is None else 100 * v for v in values]


def _mean_of(run: runs.Run, key: str, since: int) -> float | None:
  """Mean of a metric over the logged steps above `since`."""
  if key not in set(run.keys()):
    return None
  x, y = runs.series(run, key)
  return float(y[x > since].mean())


def _row(config, workdir, condition, probes) -> dict[str, Any]:
  found = [runs.load(folder(workdir, condition, s)) for s in config.seeds]
  ends = [r.result["values"] if r.finished else {} for r in found]
  row: dict[str, Any] = {"condition": condition}
  names = sorted({k for e in ends for k in e if k.startswith("test/")})
  for name in names:
    short = name.removeprefix("test/").replace("/", "_")
    row[short] = _percent([e.get(name) for e in ends])
  for test in sorted({t for p in probes if p for t in p}):
    row[f"{test}_probe"] = _percent([(p or {}).get(test) for p in probes])
  for key in _SUCCESS:
    row[key.removeprefix("train/")] = _percent(
      [_mean_of(r, key, config.num_steps - LAST) for r in found]
    )
  row["success_text_whole_run"] = _percent(
    [_mean_of(r, "train/success_text", 0) for r in found]
  )
  row["in_batch_accuracy"] = _percent(
    [_mean_of(r, "train/image_to_text", config.num_steps - LAST) for r in found]
  )
  row["minutes"] = [
    round(r.result["seconds"] / 60, 2) if r.finished else None for r in found
  ]
  return {
    k: v
    for k, v in row.items()
    if not isinstance(v, list) or any(x is not None for x in v)
  }


def _figure(config, workdir, path: pathlib.Path) -> pathlib.Path:
  """Success rates over the run, and the first test's accuracy."""
  found = {
    c: [runs.load(folder(workdir, c, s)) for s in config.seeds]
    for c in config.conditions
  }
  found = {c: [r for r in own if r.finished] for c, own in found.items()}
  keys = set().union(*(r.keys() for own in found.values() for r in own))
  accuracy = sorted(k for k in keys if k.endswith("/zero_shot"))
  panels = [
    curves.Panel(key=k, title=t, y_label="share of tokens kept")
    for k, t in _SUCCESS.items()
    if k in keys
  ]
  panels += [
    curves.Panel(
      key=k, title=k.split("/")[1].replace("_", " "), y_label="zero-shot top-1"
    )
    for k in accuracy
  ]
  data = curves.averages(found, panels, partial=True)
  return curves.draw(data, list(found), panels, path)


def _modalities(ax, table: np.ndarray, title: str) -> None:
  """Share of each modality's tokens among an expert's, as stacked bars."""
  share = table / np.maximum(table.sum(axis=0), 1)
  x, below = np.arange(table.shape[1]), np.zeros(table.shape[1])
  for name, row in zip(limoe.MODALITIES, share):
    ax.bar(x, row, bottom=below, color=COLOURS[name], label=name, zorder=2)
    below = below + row
  for e, total in enumerate(table.sum(axis=0)):
    ax.text(e, 1.01, f"{total:.0f}", ha="center", fontsize=7)
  ax.set(
    title=title, xlabel="expert (tokens above)", ylabel="share of its tokens"
  )
  ax.set_ylim(0, 1.08)
  ax.set_xticks(x)
  figures.plain(ax)


def _overlay(ax, images: np.ndarray, experts: np.ndarray, title: str) -> None:
  """Images in a grid, with the expert's number on each patch."""
  from matplotlib import colormaps

  n, size = images.shape[:2]
  side = int(round(np.sqrt(experts.shape[1])))
  patch, columns = size // side, 4
  rows = -(-n // columns)
  canvas = np.full((rows * (size + 2), columns * (size + 2), 3), 255, np.uint8)
  colours = colormaps["tab10"]
  for i in range(n):
    top, left = (i // columns) * (size + 2), (i % columns) * (size + 2)
    canvas[top : top + size, left : left + size] = images[i]
    for t, e in enumerate(experts[i]):
      y, x = top + (t // side) * patch, left + (t % side) * patch
      ax.add_patch(_square(x, y, patch, colours(int(e) % 10)))
      ax.text(
        x + patch / 2 - 0.5,
        y + patch / 2 - 0.5,
        str(e),
        ha="center",
        va="center",
        fontsize=4.5,
        color="black",
      )
  ax.imshow(canvas)
  ax.set_title(title)
  ax.axis("off")


def _square(x, y, side, colour):
  from matplotlib import patches

  return patches.Rectangle(
    (x - 0.5, y - 0.5), side, side, facecolor=(*colour[:3], 0.35), lw=0
  )


def _words(ax, words, table: np.ndarray, title: str) -> None:
  """The most frequent pieces of the experts that get text."""
  lines = []
  for e in np.argsort(-table[1], kind="stable"):
    if table[1, e] > 0:
      top = "  ".join(p.replace("\u2581", "_") for p, _ in words[e])
      lines.append(f"{e} ({table[1, e]:.0f}): {top}")
  ax.text(0, 1, "\n\n".join(lines), va="top", fontsize=7, wrap=True)
  ax.set_title(title)
  ax.axis("off")


def experts_figure(looked: questions.Looked, path) -> pathlib.Path:
  """Modalities, image patches and text pieces of each layer's experts."""
  layers = len(looked.tables)
  figure, grid = figures.axes(3, num_rows=layers, width=5.0)
  for i, (table, row) in enumerate(zip(looked.tables, grid)):
    _modalities(row[0], table, f"layer {i}: who comes")
    _overlay(row[1], looked.images, looked.patches[i], "experts of patches")
    _words(row[2], looked.words[i], table, "text: expert (tokens): pieces")
  grid[0][0].legend(loc="lower right", fontsize=8)
  return figures.save(figure, path, dpi=170)


def _notes(config) -> str:
  return (
    f"{config.num_steps} steps of {config.batch_size} pairs, "
    f"{config.experts.num_experts} experts, capacity factor "
    f"{config.experts.capacity_factor:g}, {config.order.replace('_', ' ')} in "
    f"groups of {config.group_examples} pairs. Success rates and accuracy "
    f"within the batch: mean over the last {LAST} steps, in %. Tests are "
    "without capacity. Probe: ridge regression on embeddings of a few test "
    "images a class."
  )


def write(
  made: study.Study,
  probes: Mapping[str, Sequence[Mapping[str, float] | None]],
  looked: questions.Looked | None,
) -> dict[str, Any]:
  """Table, figure, `experts.png`, and what config.results names."""
  config = made.config
  found = [_row(config, made.workdir, c, probes[c]) for c in config.conditions]
  columns = {k: k.replace("_", " ") for row in found for k in row}
  if looked is not None and distributed.is_main():
    _write_experts(made, looked)
  out = made.write(
    [{k: row.get(k) for k in columns} for row in found],
    columns,
    draw=lambda path: _figure(config, made.workdir, path),
    seeds=config.seeds,
    notes=_notes(config),
    digits=3,
  )
  return {**out, "experts": str(made.workdir / EXPERTS)}


def _write_experts(made: study.Study, looked: questions.Looked) -> None:
  """`experts.png`, and what it shows beside the result file."""
  experts_figure(looked, made.workdir / EXPERTS)
  if not made.config.results:
    return
  path = pathlib.Path(made.config.results)
  seed = made.config.seeds[0]
  made.save(
    path.with_name(f"{path.stem}_experts.json"),
    questions.as_rows(looked),
    seeds=made.config.seeds,
    notes=f"256 pairs of the first test, routed without capacity; seed {seed} "
    "of the condition limoe. Pieces: the most frequent, with counts.",
  )
  experts_figure(looked, path.with_name(f"{path.stem}_experts.png"))
