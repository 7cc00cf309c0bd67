"""Which errors each engine catches: engine x error x caught, and how fast.

  ./scripts/install_engines python typescript go cpp proto java syntax
  python -m experiments.completion.engine_table \\
    --results results/completion/engines.json

Every installed engine is given a correct program of its language
(`engine_samples.py`), which must have no error, then each error in it and the
correct one again. `caught`: an error that was not there before is in a line
that was changed; `kind_right`: and is of the right kind; `told`: where nothing
was caught, the report says that the engine did not look there. Milliseconds:
of the time from the edit to the report, over `--rounds`: the median (`ms`) and
the least, which other work on the machine touches less.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from experiments.common import commands
from experiments.completion import engine_samples
from experiments.completion.engine_samples import Sample
from locojax import engines
from locojax.core import checks, files
from locojax.engines import presets
from locojax.report import results, tables

_COMMAND = ("python", "-m", "experiments.completion.engine_table")
LANGUAGES = {
  **{name: s.language for name, s in presets.SERVERS.items()},
  "jedi": "python",
  "tree-sitter-kotlin": "kotlin",
  "tree-sitter-dart": "dart",
}


def prepare(name: str, root: pathlib.Path) -> tuple[Sample, str]:
  """Writes an engine's program and what it needs; the program and its URI."""
  sample = engine_samples.SAMPLES[LANGUAGES[name]]
  needed = engine_samples.FILES.get(name, {})
  for file, text in {**sample.files, **needed}.items():
    files.write_text(root / file, text)
  path = root / sample.file
  files.write_text(path, sample.text)
  return sample, engines.uri(path)


def broken(text: str, piece: str, new: str) -> tuple[engines.Edit, range]:
  """The edit that puts an error in, and the lines that it changes.

  Raises:
    ValueError: the piece is not in the text, or more than once.
  """
  if text.count(piece) != 1:
    checks.refuse("piece", piece, "in the text once")
  start = text.index(piece)
  end = start + len(piece)
  first = text.count("\n", 0, start)
  lines = range(first, first + new.rstrip("\n").count("\n") + 2)
  return engines.Edit(start, end, new), lines


def judge(
  report: engines.Report, before: engines.Report, lines: range, kind: str
) -> dict[str, Any]:
  """What a report makes of an error in some lines."""
  known = {(d.code, d.message) for d in before.errors}
  found = [
    d
    for d in report.errors
    if set(d.range.lines()) & set(lines) and (d.code, d.message) not in known
  ]
  right = [d for d in found if d.kind == kind]
  code = (right or found or [None])[0]
  told = not all(report.is_checked(line, kind) for line in lines[:1])
  return {
    "caught": "yes" if found else "no",
    "kind_right": "yes" if right else "no",
    "told": "yes" if told and not found else "no",
    "code": code.code if code else "",
  }


def measure(name: str, *, rounds: int) -> list[dict[str, Any]]:
  """The rows of one engine.

  Raises:
    ValueError: the engine finds an error in the correct program.
  """
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    sample, uri = prepare(name, root)
    with engines.start(name, root=root) as engine:
      engine.open(uri, sample.text)
      before = engine.diagnostics(uri, timeout=120)
      if before.errors:
        raise ValueError(f"{name} finds errors: {before.errors}")
      rows = []
      for place, table in (("seen", sample.errors), ("hidden", sample.hidden)):
        for error, case in table.items():
          found, ms = _case(engine, uri, before, case, rounds)
          row = {"engine": name, "language": engine.language, "error": error}
          rows.append({**row, "kind": case[0], "place": place, **found, **ms})
      version = getattr(engine, "version", "")
  return [{**row, "version": version} for row in rows]


def _case(
  engine: engines.Engine,
  uri: str,
  before: engines.Report,
  case: Sequence[str],
  rounds: int,
) -> tuple[dict[str, Any], dict[str, float]]:
  """Puts an error in and takes it out again, some times."""
  kind, piece, new = case
  text = engine.text(uri)
  edit, lines = broken(text, piece, new)
  back = engines.Edit(edit.start, edit.start + len(new), piece)
  times = []
  for _ in range(rounds):
    began = time.perf_counter()
    engine.change(uri, [edit])
    report = engine.diagnostics(uri, timeout=120)
    times.append(1000 * (time.perf_counter() - began))
    engine.change(uri, [back])
    again = engine.diagnostics(uri, timeout=120)
    if again.errors:
      raise ValueError(f"{engine.name} keeps errors: {again.errors}")
  times_ms = {"ms": statistics.median(times), "least_ms": min(times)}
  return judge(report, before, lines, kind), times_ms


def main(argv: Sequence[str]) -> None:
  """Measures, prints the table and writes the result file."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--engines", nargs="+", default=list(LANGUAGES))
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--results", default=None)
  arguments = parser.parse_args(argv)
  checks.positive_int("rounds", arguments.rounds)
  began, rows, absent = time.monotonic(), [], []
  for name in arguments.engines:
    checks.one_of("engines", name, list(LANGUAGES))
    if not engines.is_installed(name):
      absent.append(name)
      continue
    rows += measure(name, rounds=arguments.rounds)
  print(tables.render(rows))
  if absent:
    print(f"not installed: {', '.join(absent)}")
  if arguments.results:
    results.save(
      arguments.results,
      command=shlex.join([*_COMMAND, *argv]),
      seeds=[0],
      rows=rows,
      time_seconds=time.monotonic() - began,
      notes=f"not installed: {', '.join(absent)}" if absent else None,
    )


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
