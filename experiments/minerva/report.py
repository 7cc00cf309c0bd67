"""Table and figure of the conditions."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import stages, study
from experiments.minerva import grading, measures
from locojax.core import files
from locojax.report import curves, figures

NAMES = {
  measures.VOTE: "vote of k",
  measures.PASS: "any of k",
  measures.RERANK: "likeliest of k",
}


def folder(workdir: pathlib.Path, condition: str, seed: int) -> pathlib.Path:
  """Of a run."""
  return workdir / condition / f"seed_{seed}"


def _grades(where: pathlib.Path) -> list[dict[str, Any]] | None:
  """Of a run; None if it diverged."""
  if "diverged" in stages.result(where):
    return None
  return [row for _, row in files.read_lines(where / grading.GRADES)]


def _cells(made: study.Study, condition: str) -> list:
  return [
    _grades(folder(made.workdir, condition, seed)) for seed in made.config.seeds
  ]


def _value(where: pathlib.Path, name: str) -> float | None:
  return stages.result(where).get("values", {}).get(name)


def _row(made: study.Study, condition: str, ks: Sequence[int]) -> dict:
  """A condition, a number for each seed."""
  config, found = made.config, _cells(made, condition)
  row: dict[str, Any] = {"condition": condition}
  row["test_nll"] = [
    _value(folder(made.workdir, condition, s), "eval/test_nll")
    for s in config.seeds
  ]
  each = [None if g is None else _numbers(g, ks) for g in found]
  names = next((list(e) for e in each if e is not None), [])
  for name in names:
    row[name] = [None if e is None else e[name] for e in each]
  return row


def _numbers(rows: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> dict:
  """What the table says of one run's grades, in %."""
  found = measures.summary(rows, ks)
  last = ks[-1]
  kept = {"invalid": found["invalid"], "mode_right": found["mode_right"]}
  for name in NAMES:
    for k in dict.fromkeys((ks[0], last)):
      if f"{name}@{k}" in found:
        kept[f"{name}@{k}"] = found[f"{name}@{k}"]
  kept |= measures.bent(rows, last)
  return {n: 100 * v for n, v in kept.items()}


def _kinds(made: study.Study, condition: str, ks) -> dict[str, np.ndarray]:
  """By estimator, `[seeds, ks]`."""
  several = [
    measures.curves(g, ks) for g in _cells(made, condition) if g is not None
  ]
  names = several[0] if several else ()
  return {n: np.array([c[n] for c in several]) for n in names}


def _draw(made: study.Study, path: pathlib.Path) -> pathlib.Path:
  """Votes, passes and reranking against k, a panel for each condition."""
  config, ks = made.config, tuple(made.config.ks)
  figure, grid = figures.axes(len(config.conditions), width=3.6)
  colours = curves.colour_map(list(NAMES.values()))
  for ax, condition in zip(np.ravel(grid), config.conditions):
    for name, values in _kinds(made, condition, ks).items():
      colour, dash = colours[NAMES[name]]
      told = {"color": colour, "linestyle": dash, "label": NAMES[name]}
      ax.plot(ks, 100 * values.mean(axis=0), **told)
      low, high = 100 * values.min(axis=0), 100 * values.max(axis=0)
      ax.fill_between(ks, low, high, color=colour, alpha=0.15, lw=0)
    ax.set(title=condition.replace("_", " "), xlabel="samples k")
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.set_ylim(0, 100)
    figures.plain(ax)
  first = np.ravel(grid)[0]
  first.set_ylabel("problems solved, %")
  first.legend(fontsize=8)
  return figures.save(figure, path)


def _notes(config) -> str:
  tokens = config.num_steps * config.batch_size * config.model.max_len
  return (
    f"{tokens / 1e6:.1f} million tokens each, {config.data.num_test} problems "
    f"of the test, {config.sampling.num_samples} samples at temperature "
    f"{config.sampling.temperature:g} and top-p {config.sampling.top_p:g}; all "
    "but test_nll in %. maj1, pass, rerank: exact expectations over subsets of "
    "k samples. mode_right: problems whose most frequent answer is right; "
    "wrong_mode_maj1: votes won with the others. Where texts are stripped, "
    "an answer counts that is right but for what was stripped."
  )


def write(made: study.Study) -> dict[str, Any]:
  """Table, figure, and what config.results names."""
  ks = tuple(made.config.ks)
  rows = [_row(made, c, ks) for c in made.config.conditions]
  columns = {k: k.replace("_", " ") for row in rows for k in row}
  return made.write(
    [{k: row.get(k) for k in columns} for row in rows],
    columns,
    draw=lambda path: _draw(made, path),
    seeds=made.config.seeds,
    notes=_notes(made.config),
    digits=3,
  )
