"""Tables and figures of code completion, from the run folders of a study."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import study
from experiments.completion import asking, conditions
from locojax.report import curves, runs, tables

LOSS = "validation/cross_entropy"
TABLES = {
  "lines": (
    *("method", "language", "exact_match", "any_match", "edit_similarity"),
    *("name_mrr", "name_top1", "validation_loss", "minutes"),
  ),
  "ranks": (
    *("method", "language", "better", "worse", "accepted_better"),
    *("accepted_worse", "mrr_before", "mrr_after", "typed_before"),
    *("typed_after", "typed_before_visible", "typed_after_visible", "usable"),
  ),
  "checks": (
    *("method", "language", "bad_before", "filtered", "false_filtering"),
    *("bad_after", "truth_dropped", "suggestions"),
  ),
  "users": (
    *("method", "language", "arm", "cost_per_char", "difference", "low"),
    *("high", "typed_share", "acceptance"),
  ),
  "several": (
    *("method", "language", "coverage", "precision", "several_shown"),
    "target_precision",
  ),
}
_LEFT_OUT = ("asked", "curve", "thresholds")


def folder(
  workdir: pathlib.Path, method: str, language: str, seed: int
) -> pathlib.Path:
  """Where a run lives; the language is '' for one of all."""
  where = pathlib.Path(workdir) / method
  return (where / language if language else where) / f"seed_{seed}"


def seeds_of(config, method: str) -> tuple[int, ...]:
  """Seeds of a method; counting has none, and is done once."""
  once = conditions.CONDITIONS[method].kind == "ngram"
  return tuple(config.seeds[:1] if once else config.seeds)


def _places(config, workdir, method, language) -> list[pathlib.Path]:
  own = language if conditions.CONDITIONS[method].one_language else ""
  return [folder(workdir, method, own, s) for s in seeds_of(config, method)]


def _cell(values: Sequence[Any], num_seeds: int) -> Any:
  """Numbers over seeds; one number of what is done once; `none` for none."""
  if all(v is None for v in values):
    return "none"
  return list(values) if len(values) == num_seeds else values[0]


def _listed(
  found: Sequence[Mapping[str, Any]], num_seeds: int
) -> dict[str, Any]:
  names = [n for n in found[0] if n not in _LEFT_OUT and n != "arm"]
  return {n: _cell([f.get(n) for f in found], num_seeds) for n in names}


def _rows_of(config, workdir, method, language) -> list[dict[str, Any]]:
  """The rows of a method and language, all tables."""
  where = _places(config, workdir, method, language)
  asked = [asking.read(w).get(language, {}) for w in where]
  if not all(asked):
    return []
  head = {"method": method, "language": language}
  num, out = len(config.seeds), []
  for table in ("lines", "ranks", "checks", "several"):
    found = [a[table] for a in asked if table in a]
    if found:
      row = {"table": table, **head, **_listed(found, num)}
      more = _of_runs(where, num) if table == "lines" else {}
      out.append({**row, **more})
  for i, one in enumerate(asked[0].get("users", ())):
    found = [a["users"][i] for a in asked]
    row = {"table": "users", **head, "arm": one["arm"]}
    out.append({**row, **_listed(found, num)})
  return out


def _of_runs(where: Sequence[pathlib.Path], num_seeds: int) -> dict[str, Any]:
  """Loss of the validation part and minutes of training."""
  found = [
    runs.load(w).result or {} if (w / "config.json").exists() else {}
    for w in where
  ]
  minutes = [r["seconds"] / 60 if "seconds" in r else None for r in found]
  losses = [r.get("values", {}).get(LOSS) for r in found]
  return {
    "validation_loss": _cell(losses, num_seeds),
    "minutes": _cell(minutes, num_seeds),
  }


def rows(config, workdir, languages) -> list[dict[str, Any]]:
  """All rows; `table` says which each belongs to."""
  return [
    row
    for method in config.methods
    for language in languages
    for row in _rows_of(config, workdir, method, language)
  ]


def _markdown(found: Sequence[Mapping[str, Any]]) -> str:
  parts = []
  for table, columns in TABLES.items():
    own = [r for r in found if r["table"] == table]
    keep = [c for c in columns if any(r.get(c) not in (None, "") for r in own)]
    if own:
      filled = [{c: _shown(r.get(c)) for c in keep} for r in own]
      parts.append(f"{table}\n\n{tables.render(filled, keep)}")
  return "\n\n".join(parts)


def _shown(value: Any) -> Any:
  return "none" if value is None else value


def _draw(config, workdir, path: pathlib.Path) -> pathlib.Path:
  """Loss of the validation part over steps and seconds."""
  groups = {}
  for method in config.methods:
    every = pathlib.Path(workdir) / method
    found = [runs.load(p.parent) for p in sorted(every.glob("**/config.json"))]
    found = [r for r in found if r.finished]
    if found:
      groups[method] = found
  panels = [
    curves.Panel(LOSS, x=x, title=f"equal {x}", y_label="nats a token")
    for x in ("step", "seconds")
  ]
  data = curves.averages(groups, panels, partial=True)
  return curves.draw(data, list(groups), panels, path)


def _notes(config, languages, engines: Mapping[str, str]) -> str:
  told = ", ".join(f"{k} {v}" for k, v in engines.items()) or "none"
  return (
    f"{config.num_steps} steps of {config.batch_size} examples; code: "
    f"{config.data.name}, {', '.join(languages)}; engines: {told}; judge: "
    f"{config.eval.judge or 'the engine itself'}. Test files are of packages "
    "that training has nothing of."
  )


def write(made: study.Study, languages, engines) -> dict[str, Any]:
  """Tables and figure, and what config.results names."""
  config = made.config
  found = rows(config, made.workdir, languages)
  return made.write(
    found,
    ["table", "method"],
    draw=lambda path: _draw(config, made.workdir, path),
    seeds=config.seeds,
    notes=_notes(config, languages, engines),
    markdown=_markdown(found),
  )
