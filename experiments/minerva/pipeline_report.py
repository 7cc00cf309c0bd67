"""What became of every document: counts, reasons, questions found, tokens."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.minerva import pipeline_inputs as inputs
from experiments.minerva import pipeline_work as work
from locojax.core import files
from locojax.data import contamination, html_text
from locojax.report import tables

REPORT, TABLE = "report.json", "report.md"


def _documents(
  shards: Sequence[inputs.Shard], settings: work.Settings, out: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[list[str]]]:
  """Rows of fates and of formulas, and every dropped document."""
  fates: dict[str, collections.Counter] = {}
  kept, lost = collections.Counter(), collections.Counter()
  dropped = []
  for shard in shards:
    for row, reason in work.fates(shard, settings, out):
      told = fates.setdefault(row["kind"], collections.Counter())
      told[reason or "kept"] += 1
      (lost if reason else kept).update(row["counts"])
      if reason:
        dropped.append([row["id"], row["source"], reason])
  rows = []
  for kind, told in sorted(fates.items()):
    reasons = {name: told[name] for name in work.REASONS if told[name]}
    rows.append(
      {"kind": kind, "documents": told.total(), "kept": told["kept"], **reasons}
    )
  formulas = [
    {"formulas": name, "in kept texts": kept[name], "in dropped": lost[name]}
    for name in html_text.COUNTS
    if kept[name] or lost[name]
  ]
  return rows, formulas, dropped


def _questions(
  shards: Sequence[inputs.Shard], settings: work.Settings, out: str
) -> list[dict[str, Any]]:
  if not settings.questions:
    return []
  index, sets = work.index_of(settings.questions, settings.ngram)
  best: dict[str, float] = {}
  for shard in shards:
    found = files.read_json(work.path_of(out, work.OVERLAPS, shard))
    for told in found.values():
      for name, share in told:
        best[name] = max(share, best.get(name, 0.0))
  return contamination.table(index, best, sets)


def _tokens(out: str) -> dict[str, int]:
  folder = pathlib.Path(out) / work.TOKENS
  told = [
    files.read_json(p) for p in sorted(folder.glob("*.array_record.json"))
  ]
  about = files.read_json(folder / "records.json")
  rows = sum(t["rows"] for t in told)
  return {
    "texts": sum(t["texts"] for t in told),
    "rows": rows,
    "tokens": rows * about["seq_len"],
    "left over": sum(t["rest"] for t in told),
    "vocabulary": about["vocab_size"],
  }


def write(
  shards: Sequence[inputs.Shard], settings: work.Settings, out: str
) -> Mapping[str, Any]:
  """Writes `report.json` and `report.md`, and gives the former.

  Every document is kept, or dropped for one reason.
  """
  documents, formulas, dropped = _documents(shards, settings, out)
  report = {
    "documents": documents,
    "formulas": formulas,
    "questions": _questions(shards, settings, out),
    "tokens": _tokens(out),
    "dropped": dropped,
  }
  files.write_json(pathlib.Path(out) / REPORT, report)
  parts = [documents, formulas, report["questions"], [report["tokens"]]]
  text = "\n\n".join(tables.render(part, digits=4) for part in parts if part)
  files.write_text(pathlib.Path(out) / TABLE, text + "\n")
  return {**report, "table": text}
