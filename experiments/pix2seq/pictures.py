"""Figures of detection: boxes on images with their tokens, curves, sweeps."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from locojax.methods import pix2seq
from locojax.report import curves as curves_lib
from locojax.report import figures

_WORDS_A_LINE = pix2seq.PER_OBJECT
_MOST_LINES = 16


def colour(label: int) -> str:
  """Of a class, from 1, the same in all pictures."""
  return curves_lib.COLOURS[(label - 1) % len(curves_lib.COLOURS)]


def _box(ax, box: Sequence[float], **style: Any) -> None:
  from matplotlib import patches

  top, left, bottom, right = box
  ax.add_patch(
    patches.Rectangle(
      (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, **style
    )
  )


def draw_boxes(
  ax,
  image: np.ndarray,
  boxes: np.ndarray,
  labels: Sequence[int],
  classes: Sequence[str],
  *,
  scores: Sequence[float] | None = None,
  true_boxes: np.ndarray = (),
) -> None:
  """An image with what was found in colours, and true boxes in white.

  Args:
    ax: of matplotlib.
    image: `[h, w, 3]` uint8.
    boxes: `[n, 4]` yxyx, shares of the image.
    labels: `[n]` from 1.
    classes: names.
    scores: `[n]`, told beside the boxes.
    true_boxes: `[m, 4]`, dashed.
  """
  sides = np.tile(image.shape[:2], 2)
  ax.imshow(image, interpolation="nearest")
  for box in np.asarray(true_boxes).reshape(-1, 4) * sides:
    _box(ax, box, edgecolor="black", lw=2.6)
    _box(ax, box, edgecolor="white", lw=1.4, linestyle=(0, (3, 2)))
  boxes = np.asarray(boxes).reshape(-1, 4) * sides
  for i, (box, label) in enumerate(zip(boxes, labels)):
    _box(ax, box, edgecolor=colour(label), lw=1.8)
    told = "" if scores is None else f" {scores[i]:.2f}"
    ax.text(
      *(box[1], box[0] - 0.5, f"{classes[label - 1]}{told}"),
      fontsize=6.5,
      color="white",
      va="bottom",
      bbox={"facecolor": colour(label), "pad": 0.8, "lw": 0},
    )
  ax.axis("off")


def lines(
  tokens: Sequence[int],
  vocab: pix2seq.Vocabulary,
  classes: Sequence[str],
  scores: Sequence[float],
  least: float = 0.5,
) -> list[tuple[str, bool]]:
  """A sequence as lines, an object each, and which of them are believed.

  Args:
    tokens: `[T]`.
    vocab: the tokens.
    classes: names, `vocab.num_classes` or fewer.
    scores: `[T // 5]`; below 0 there is nothing.
    least: the score from which an object is believed.
  """
  names = [*classes, *(f"class {i}" for i in range(1, vocab.num_classes + 1))]
  words = pix2seq.words(tokens, vocab, names[: vocab.num_classes])
  out = []
  for i, score in enumerate(scores):
    part = words[i * _WORDS_A_LINE : (i + 1) * _WORDS_A_LINE]
    told = f"  {score:.2f}" if score >= 0 else ""
    coords = " ".join(f"{w:>4}" for w in part[:4])
    out.append((f"{coords}  {part[4]:<9}{told}", score >= least))
  return out


def detections(
  shown: Sequence[Mapping[str, Any]], path: str | pathlib.Path
) -> pathlib.Path:
  """Images with true and found boxes, and beside each its sequence.

  Args:
    shown: of each image: `image`, `true_boxes`, `boxes`, `labels`, `scores` of
      what is drawn, `classes`, and the `lines` of its sequence.
    path: of the PNG.
  """
  num_columns = 2 if len(shown) > 1 else 1
  num_rows = -(-len(shown) // num_columns)
  figure, grid = figures.axes(
    2 * num_columns,
    num_rows=num_rows,
    width=3.1,
    height=3.2,
    width_ratios=[1.25, 1.0] * num_columns,
  )
  cells = [row[i : i + 2] for row in grid for i in range(0, len(row), 2)]
  for cell in cells:
    for ax in cell:
      ax.axis("off")
  for (left, right), one in zip(cells, shown):
    draw_boxes(
      left,
      one["image"],
      one["boxes"],
      one["labels"],
      one["classes"],
      scores=one["scores"],
      true_boxes=one["true_boxes"],
    )
    _tokens(right, one["lines"])
  if cells:
    _legend(cells[0][0])
  return figures.save(figure, path, dpi=170)


def _legend(ax) -> None:
  """What the lines are, above the first image."""
  ax.set_title(
    "dashed: true boxes; in colours: found; grey lines: not believed",
    fontsize=6.5,
    loc="left",
    pad=10,
    color="#444444",
  )


def _tokens(ax, told: Sequence[tuple[str, bool]]) -> None:
  """Lines of a sequence, those that are believed in black."""
  ax.set_xlim(0, 1)
  ax.set_ylim(0, 1)
  head = "ymin xmin ymax xmax  class      score"
  rows = [(head, False), *told[:_MOST_LINES]]
  if len(told) > _MOST_LINES:
    rows.append((f"... {len(told) - _MOST_LINES} more", False))
  for i, (text, believed) in enumerate(rows):
    ax.text(
      *(0.0, 0.97 - i / (_MOST_LINES + 2), text),
      fontsize=6.2,
      family="monospace",
      va="top",
      color="#111111" if believed else "#9a9a9a",
    )


def precision_recall(
  found: Mapping[str, Sequence[Mapping[str, Sequence[float]]]],
  path: str | pathlib.Path,
) -> pathlib.Path:
  """Precision against recall, at overlaps of 50 and of 75 %.

  Args:
    found: label -> of each seed the `scoring.curves`.
    path: of the PNG.
  """
  panels = [
    curves_lib.Panel(
      key=name,
      title=f"overlap of {name} % or more",
      x_label="recall",
      y_label="precision, mean over classes",
      x_limits=(0, 1),
      y_limits=(0, 1.02),
    )
    for name in ("50", "75")
  ]
  data = {
    (label, i): curves_lib.average(
      [(pix2seq.RECALLS, np.array(one[panel.key])) for one in seeds]
    )
    for label, seeds in found.items()
    for i, panel in enumerate(panels)
    if seeds
  }
  return curves_lib.draw(data, list(found), panels, path)


def sweeps(
  rows: Sequence[Mapping[str, Any]], path: str | pathlib.Path
) -> pathlib.Path:
  """AP and AR against what was changed when finished runs were asked.

  Args:
    rows: with `method`, `setting`, `value`, `AP` and `AR100`, lists over seeds.
    path: of the PNG.
  """
  names = list(dict.fromkeys(r["setting"] for r in rows))
  panels = [
    curves_lib.Panel(
      key=key, title=f"{key} by {name}", x_label=name, y_label=key
    )
    for name in names
    for key in ("AP", "AR100")
  ]
  data = {}
  labels = list(dict.fromkeys(r["method"] for r in rows))
  for i, panel in enumerate(panels):
    for label in labels:
      own = [
        r
        for r in rows
        if r["method"] == label and r["setting"] == panel.x_label
      ]
      own.sort(key=lambda r: r["value"])
      if own:
        x = np.array([r["value"] for r in own])
        seeds = np.array([r[panel.key] for r in own], np.float64).T
        data[label, i] = curves_lib.average([(x, y) for y in seeds])
  return curves_lib.draw(data, labels, panels, path)
