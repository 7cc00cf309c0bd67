"""Tables and figures of detection, from the run folders of a study."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import stages, study
from experiments.pix2seq import (
  asking,
  networks,
  pictures,
  scoring,
  sets,
)
from locojax.core import files
from locojax.report import curves, runs, tables
from locojax.train import distributed

PICTURES, CURVES = "detections.png", "precision_recall.png"
SWEEPS, SWEEP_TABLE = "sweeps.png", "sweeps.md"
_FIGURES = (PICTURES, CURVES, SWEEPS)
_SHOWN = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")
_PANELS = {"test/AP": "AP", "test/AR100": "AR of 100"}


def folder(workdir: pathlib.Path, method: str, seed: int) -> pathlib.Path:
  """Where a run lives."""
  return pathlib.Path(workdir) / method / f"seed_{seed}"


def pretraining(workdir: pathlib.Path, method: str) -> pathlib.Path:
  """Where the pre-training of a method lives."""
  return pathlib.Path(workdir) / "pretrain" / method


def _found(config, workdir, method: str) -> list[runs.Run]:
  return [runs.load(folder(workdir, method, s)) for s in config.seeds]


def _row(config, workdir, method: str) -> dict[str, Any]:
  found = _found(config, workdir, method)
  ends = [r.result["values"] if r.finished else {} for r in found]
  seconds = [r.result["seconds"] if r.finished else None for r in found]
  share = lambda x, by: None if x is None else x / by
  return {
    "method": method,
    **{name: [e.get(f"test/{name}") for e in ends] for name in _SHOWN},
    "minutes": [share(s, 60) for s in seconds],
    "ms_per_step": [share(s, config.num_steps / 1e3) for s in seconds],
  }


def _present(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Rows without columns that no row has."""
  some = lambda v: not isinstance(v, list) or any(x is not None for x in v)
  keep = [k for k in rows[0] if any(some(r[k]) for r in rows)]
  return [{k: r[k] for k in keep} for r in rows]


def _default(config, row, setting: str, value: float) -> dict[str, Any]:
  """The row of a sweep that the study itself is."""
  return {
    "method": row["method"],
    "setting": setting,
    "value": value,
    **{k: row.get(k) for k in ("AP", "AP50", "AR100")},
  }


def sweep_rows(config, workdir, rows) -> list[dict[str, Any]]:
  """A row for each method, setting and value; lists over seeds."""
  out = []
  for row in rows:
    each = [
      asking.read(folder(workdir, row["method"], s)).get("sweeps", [])
      for s in config.seeds
    ]
    if not all(each):
      continue
    at = [{(r["setting"], r["value"]): r for r in one} for one in each]
    names = list(dict.fromkeys(name for name, _ in at[0]))
    for name in names:
      value = 0.0 if name == "top_p" else float(config.decode[name])
      out.append(_default(config, row, name, value))
      out += _of_setting(row["method"], name, at)
  return sorted(out, key=lambda r: (r["method"], r["setting"], r["value"]))


def _of_setting(method: str, name: str, at) -> list[dict[str, Any]]:
  common = [k for k in at[0] if k[0] == name and all(k in a for a in at)]
  keys = ("AP", "AP50", "AR100", "detections")
  return [
    {
      "method": method,
      "setting": name,
      "value": key[1],
      **{k: [a[key].get(k) for a in at] for k in keys},
    }
    for key in common
  ]


def _figure(config, workdir, path: pathlib.Path) -> pathlib.Path:
  """AP and AR over the runs."""
  found = {m: _found(config, workdir, m) for m in config.methods}
  found = {m: [r for r in own if r.finished] for m, own in found.items()}
  panels = [
    curves.Panel(key=k, title=title, y_label=title, y_limits=(0, None))
    for k, title in _PANELS.items()
  ]
  data = curves.averages(found, panels, partial=True)
  return curves.draw(data, list(found), panels, path)


def shown(
  config, found: sets.Sets, num_classes: int, said: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """What `pictures.detections` draws.

  Args:
    config: of a run.
    found: its sets.
    num_classes: of its vocabulary.
    said: of the first images, as `asked.json` has it.
  """
  batch = scoring.first(config, found.test)
  sides = np.tile(batch["image"].shape[1:3], 2)
  classes = [*found.classes]
  classes += [f"class {i + 1}" for i in range(len(classes), num_classes)]
  out = []
  for i, one in enumerate(said[: config.num_pictures]):
    inside = np.tile(batch["unpadded"][i], 2) / sides
    keep = np.array(one["scores"]) >= config.score_shown
    out.append(
      {
        "image": batch["image"][i],
        "true_boxes": found.test[i]["boxes"] * inside,
        "boxes": np.array(one["boxes"])[keep],
        "labels": np.array(one["labels"])[keep],
        "scores": np.array(one["scores"])[keep],
        "classes": classes,
        "lines": _lines(config, num_classes, one, classes),
      }
    )
  return out


def _lines(config, num_classes: int, one, classes):
  """The sequence of an image; slots of set prediction have none."""
  if not one["tokens"]:
    return []
  vocab = networks.vocabulary(config, num_classes)
  return pictures.lines(
    one["tokens"], vocab, classes, one["scores"], config.score_shown
  )


def _said(made: study.Study, found, num_classes: int) -> list[dict[str, Any]]:
  """What the first seed of the first method says of the first images."""
  config = made.config
  one = stages.changed(config, method=config.methods[0], seed=config.seeds[0])
  said = asking.read(folder(made.workdir, one.method, one.seed))
  return shown(one, found, num_classes, said.get("shown", ()))


def _curves(made: study.Study) -> dict[str, list[Mapping[str, Any]]]:
  """Precision at all recalls, by method, of each seed."""
  config = made.config
  read = lambda m, s: asking.read(folder(made.workdir, m, s)).get("curves")
  found = {
    m: [c for c in (read(m, s) for s in config.seeds) if c]
    for m in config.methods
  }
  return {m: own for m, own in found.items() if own}


def _notes(config) -> str:
  missing = ""
  if config.data.missing:
    missing = f" Each box missed with probability {config.data.missing:g}."
  return (
    f"{config.num_steps} steps of {config.batch_size} images of "
    f"{config.data.image_size} pixels ({config.data.name}).{missing} COCO's "
    "numbers of the whole test set, at the end of the run. ms per step: with "
    "evaluations left out."
  )


def write(
  made: study.Study, found: sets.Sets, num_classes: int
) -> dict[str, Any]:
  """Tables and figures, and what config.results names."""
  config = made.config
  rows = [_row(config, made.workdir, m) for m in config.methods]
  swept = sweep_rows(config, made.workdir, rows)
  rows = _present(rows)
  names = {k: made.workdir / k for k in _FIGURES}
  if distributed.is_main():
    parts = (_said(made, found, num_classes), _curves(made), swept)
    _draw_all(*parts, names)
    _write_sweeps(made, swept)
    if config.results:
      _beside(made, *parts)
  out = made.write(
    rows,
    {k: k.replace("_", " ") for k in rows[0]},
    draw=lambda path: _figure(config, made.workdir, path),
    seeds=config.seeds,
    notes=_notes(config),
    digits=3,
  )
  return {**out, "sweeps": swept, "pictures": str(names[PICTURES])}


def _write_sweeps(made: study.Study, swept) -> None:
  if swept:
    text = tables.render(swept, list(swept[0]), digits=3)
    files.write_text(made.workdir / SWEEP_TABLE, text + "\n")


def _draw_all(said, precision, swept, names) -> None:
  """All figures besides that of the study, as far as there is something."""
  if said:
    pictures.detections(said, names[PICTURES])
  if precision:
    pictures.precision_recall(precision, names[CURVES])
  if swept:
    pictures.sweeps(swept, names[SWEEPS])


def _shown_rows(said) -> list[dict[str, Any]]:
  """The sequences of `detections.png`, a row for each object said."""
  return [
    {"image": i, "object": k, "line": text, "believed": bool(believed)}
    for i, one in enumerate(said)
    for k, (text, believed) in enumerate(one["lines"])
  ]


def _curve_rows(precision) -> list[dict[str, Any]]:
  """Precision at every tenth recall; lists over seeds."""
  return [
    {
      "method": method,
      "overlap_percent": int(name),
      "recall": round(i / 100, 2),
      "precision": [one[name][i] for one in seeds],
    }
    for method, seeds in precision.items()
    for name in seeds[0]
    for i in range(0, 101, 10)
  ]


def _beside(made, said, precision, swept) -> None:
  """Figures and what they show beside the result file."""
  path, seeds = pathlib.Path(made.config.results), made.config.seeds
  name = lambda kind: path.with_name(f"{path.stem}_{kind}")
  _draw_all(said, precision, swept, {k: name(k) for k in _FIGURES})
  whole = [m for m in precision.values() if len(m) == len(seeds)]
  rows = {
    PICTURES: (_shown_rows(said), "Of the first seed of the first method."),
    CURVES: (
      _curve_rows(precision) if len(whole) == len(precision) else [],
      "Precision, a mean over the classes, at some recalls.",
    ),
    SWEEPS: (
      swept,
      "Finished runs asked in other ways. top_p 0: the best token, as in the "
      "table; others are drawn at temperature 1. detections: an image, of "
      f"score {made.config.score_shown:g} or more.",
    ),
  }
  for kind, (found, notes) in rows.items():
    if found:
      made.save(
        name(kind).with_suffix(".json"), found, seeds=seeds, notes=notes
      )
