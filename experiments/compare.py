"""Compares runs: a table, and their curves.

  python -m experiments.compare runs/a runs/b --out compared
  python -m experiments.compare runs/study --by method --metric test/accuracy

Each argument is a run folder or holds some, at any depth: those of a study, of
a sweep, or single runs, finished or not. Runs that differ in nothing but their
seed are one row, named by the settings in which the rows differ; `--by` names
these settings instead. The table is printed; `--out` keeps it (`table.md`) with
the figure (`curves.png`).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import commands
from locojax.core import checks, files
from locojax.report import curves, runs, tables
from locojax.train import folder

TABLE, FIGURE = "table.md", "curves.png"
# What says nothing about how a run trains.
_APART = ("seed", "seeds", *folder.MAY_DIFFER)
_MOST_PANELS = 4


def _kept(run: runs.Run) -> dict[str, Any]:
  """The flat config, less what is no setting of the training."""
  return {
    key: json.dumps(value) if isinstance(value, list) else value
    for key, value in runs.flat_config(run).items()
    if not {key, key.partition(".")[0], key.split(".")[-1]} & set(_APART)
  }


def _text(key: str, value: Any) -> str:
  short = key.removeprefix("config.")
  return f"{short}={value}"


def labelled(
  found: Sequence[runs.Run], by: Sequence[str] = ()
) -> dict[str, list[runs.Run]]:
  """Runs by what tells them apart.

  Args:
    found: runs.
    by: dotted names in the config; empty takes all in which the runs differ,
      save the seed and what does not change the training. Runs that differ in
      nothing, and are of one seed, are told apart by their folders.

  Returns:
    Label -> runs, in order of appearance.

  Raises:
    ValueError: a run's config lacks a name of `by`.
  """
  configs = [_kept(run) for run in found]
  keys = tuple(by)
  if not keys:
    every = list(dict.fromkeys(key for c in configs for key in c))
    keys = tuple(k for k in every if len({c.get(k, "–") for c in configs}) > 1)
  else:
    for run in found:
      flat = runs.flat_config(run)
      for key in keys:
        checks.lookup("--by", key, flat)
  out: dict[str, list[runs.Run]] = {}
  for run, config in zip(found, configs):
    flat = {**runs.flat_config(run), **config}
    parts = [_text(k, flat.get(k, "–")) for k in keys]
    out.setdefault(", ".join(parts), []).append(run)
  return {
    name: group
    for label, same in out.items()
    for name, group in _by_folder(label, same).items()
  }


def _by_folder(
  label: str, same: Sequence[runs.Run]
) -> dict[str, list[runs.Run]]:
  """One row of runs whose seeds differ; else one for each folder."""
  seeds = [runs.flat_config(run).get("seed") for run in same]
  if len(set(seeds)) == len(seeds) and (label or len(same) > 1):
    return {label or "all": list(same)}
  names = [str(run.path) for run in same]
  return {f"{label} ({n})" if label else n: [r] for n, r in zip(names, same)}


def _lines(group: Sequence[runs.Run]) -> list[Mapping[str, Any]]:
  return [line for run in group for line in run.metrics]


def metrics_of(
  groups: Mapping[str, Sequence[runs.Run]], asked: Sequence[str] = ()
) -> list[str]:
  """The metrics to show: those asked for, or all of a test, or the loss.

  Raises:
    ValueError: no run has one that was asked for.
  """
  every = {
    k for group in groups.values() for line in _lines(group) for k in line
  }
  for name in asked:
    checks.one_of("--metric", name, sorted(every - {"step", "seconds"}))
  if asked:
    return list(asked)
  test = sorted(k for k in every if k.startswith("test/"))
  return test or sorted(k for k in every if k.endswith("loss"))


def _last(run: runs.Run, metric: str) -> float | None:
  return runs.final(run, metric) if metric in set(run.keys()) else None


def _cell(values: Sequence[Any]) -> Any:
  return values[0] if len(values) == 1 else list(values)


def rows_of(
  groups: Mapping[str, Sequence[runs.Run]], metrics: Sequence[str]
) -> list[dict[str, Any]]:
  """A row for each label: its last values, steps and seconds."""
  return [
    {
      "run": label,
      "runs": len(group),
      "finished": sum(run.finished for run in group),
      **{m: _cell([_last(run, m) for run in group]) for m in metrics},
      "steps": _cell([_last(run, "step") for run in group]),
      "seconds": _cell([_last(run, "seconds") for run in group]),
    }
    for label, group in groups.items()
  ]


def compare(
  paths: Sequence[str],
  *,
  by: Sequence[str] = (),
  metrics: Sequence[str] = (),
  x: str = "step",
  out: str | None = None,
) -> str:
  """The table of runs, also written to `out` with a figure.

  Args:
    paths: folders.
    by: see `labelled`.
    metrics: see `metrics_of`.
    x: of the curves: `step`, `seconds` or a name logged in the same lines.
    out: a folder; None writes nothing.

  Raises:
    ValueError: a folder without runs, a name that no run has.
  """
  try:
    found = runs.load_all(paths)
  except FileNotFoundError as error:
    raise ValueError(str(error)) from error
  groups = labelled([run for run in found if run.metrics], by)
  if not groups:
    raise ValueError(f"no run in or below {list(paths)} has logged anything.")
  shown = metrics_of(groups, metrics)
  table = tables.render(rows_of(groups, shown))
  if out:
    where = pathlib.Path(out)
    panels = [curves.Panel(key=m, x=x) for m in shown[:_MOST_PANELS]]
    data = curves.averages(groups, panels, partial=True)
    curves.draw(data, list(groups), panels, where / FIGURE)
    files.write_text(where / TABLE, table + "\n")
  return table


def parser() -> argparse.ArgumentParser:
  """Of the command line."""
  made = argparse.ArgumentParser(
    prog="python -m experiments.compare", description=__doc__.splitlines()[0]
  )
  made.add_argument("paths", nargs="+", metavar="RUN")
  made.add_argument("--by", nargs="+", default=(), help="settings to group by")
  made.add_argument("--metric", nargs="+", default=(), help="what to show")
  made.add_argument("--x", default="step", help="step, seconds or a metric")
  made.add_argument("--out", help="folder for the table and the figure")
  return made


def main(argv: Sequence[str]) -> None:
  """Prints the table."""
  args = parser().parse_args(argv)
  print(
    compare(args.paths, by=args.by, metrics=args.metric, x=args.x, out=args.out)
  )
  if args.out:
    print(f"\ntable:  {pathlib.Path(args.out) / TABLE}")
    print(f"figure: {pathlib.Path(args.out) / FIGURE}")


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
