"""A page that shows what a model wrote, how it voted and what was right.

  python -m experiments.minerva.explore RUN --out DIR

RUN is a folder with `grades.jsonl` and `samples.jsonl`: a run, what
`experiments.minerva.grade` made (which knows its files of samples), or a whole
study with such folders in it. `DIR/index.html` opens in a browser as it is,
without a server or the network. Samples lie in files of about a megabyte, and a
file is read when a question of it is chosen.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.common import commands
from experiments.minerva import grading, katex_files, records
from locojax.core import checks, files

PAGE = pathlib.Path(__file__).with_name("explorer")
SAMPLES, SETTINGS = "samples.jsonl", "grading.json"
# As `explorer.js` has them.
KINDS = ("right", "wrong", "open", "none")
_PART = 2**20  # characters of a file of samples, about
_SHORT = 400  # characters of a question in the list
_OF = {"equal": "right", "unequal": "wrong", grading.INVALID: "none"}


class Entry(NamedTuple):
  """A question of the page.

  Attributes:
    row: of the list.
    found: all of it.
  """

  row: dict[str, Any]
  found: dict[str, Any]


def folders_of(run: pathlib.Path) -> list[pathlib.Path]:
  """The folders of a run that have grades, itself or in it.

  Raises:
    ValueError: there is none.
  """
  if (run / grading.GRADES).is_file():
    return [run]
  found = sorted(p.parent for p in run.rglob(grading.GRADES))
  if not found:
    checks.refuse(
      "RUN",
      str(run),
      f"a folder with {grading.GRADES}, or with such folders in it",
    )
  return found


def _samples_of(
  folder: pathlib.Path, given: Sequence[str], task: str
) -> dict[str, records.Question]:
  """The questions with their samples, by name."""
  paths = list(given)
  if not paths and (folder / SAMPLES).is_file():
    paths = [str(folder / SAMPLES)]
  if not paths and (folder / SETTINGS).is_file():
    paths = list(files.read_json(folder / SETTINGS)["samples"])
  if not paths:
    checks.refuse(
      "--samples", list(given), f"needed: {folder} has no {SAMPLES} of its own"
    )
  return {q.id: q for q in records.read(paths, task=task)}


def kind_of(outcome: str) -> str:
  """One of `KINDS` for an outcome of `grades.jsonl`."""
  return _OF.get(outcome, "open")


def _classes(grades: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Classes with the kind of each: not known if no sample of it is."""
  told = [set() for _ in grades["classes"]]
  for label, outcome in zip(grades["labels"], grades["outcomes"], strict=True):
    if label >= 0:
      told[label].add(kind_of(outcome))
  first = lambda kinds: next((k for k in KINDS if k in kinds), "open")
  return [
    {"answer": c["answer"], "count": c["count"], "kind": first(kinds)}
    for c, kinds in zip(grades["classes"], told, strict=True)
  ]


def _finite(value: float | None) -> float | None:
  """A number that JSON of a browser has, else None."""
  return value if value is not None and math.isfinite(value) else None


def entry(
  grades: Mapping[str, Any], question: records.Question, run: str
) -> Entry:
  """A question with its grades, as the page has it.

  Raises:
    ValueError: the grades are of other samples.
  """
  if len(grades["outcomes"]) != len(question.samples):
    raise ValueError(
      f"question {question.id!r} has {len(question.samples)} samples and "
      f"{len(grades['outcomes'])} grades: they do not belong together."
    )
  kinds = [kind_of(outcome) for outcome in grades["outcomes"]]
  classes = _classes(grades)
  best = max(classes, key=lambda c: c["count"], default=None)
  vote = "none"
  if grades["majority"] is not None:
    vote = next(c["kind"] for c in classes if c["answer"] == grades["majority"])
  asked = question.question or question.prompt or question.id
  row = {
    "id": question.id,
    "run": run,
    "task": grades["task"] or question.task,
    "subject": grades["subject"] or "",
    "level": grades["level"],
    "text": asked[:_SHORT],
    "vote": vote,
    "counts": [kinds.count(kind) for kind in KINDS],
    "top": best["count"] if best else 0,
  }
  samples = [
    {
      "text": sample.text,
      "kind": kind,
      "label": label,
      "log_prob": _finite(sample.log_prob),
      "num_tokens": sample.num_tokens,
    }
    for sample, kind, label in zip(
      question.samples, kinds, grades["labels"], strict=True
    )
  ]
  found = {
    "question": asked,
    "gold": question.gold,
    "classes": classes,
    "samples": samples,
  }
  return Entry(row, found)


def entries(run: pathlib.Path, given: Sequence[str] = ()) -> Iterator[Entry]:
  """All questions of a run, or of all runs of a study.

  Args:
    run: the folder.
    given: files of samples; none takes those that the folder knows.

  Raises:
    ValueError: no grades, or samples that do not belong to them.
  """
  found = folders_of(run)
  for folder in found:
    name = "" if len(found) == 1 else folder.relative_to(run).as_posix()
    rows = {
      row["id"]: row for _, row in files.read_lines(folder / grading.GRADES)
    }
    tasks = {row["task"] for row in rows.values()}
    asked = _samples_of(folder, given, next(iter(tasks), ""))
    for key, question in asked.items():
      if key in rows:
        yield entry(rows.pop(key), question, name)
    for key in sorted(rows)[:1]:
      raise ValueError(
        f"{folder} has grades of {key!r}, which the samples lack: name the "
        "right files by --samples."
      )


def script_of(call: str, value: Any) -> bytes:
  """A script that gives a value, as JSON text, to a function of the page.

  The text can end neither the script nor the literal, wherever it stands.
  """
  text = json.dumps(json.dumps(value))
  for sign in "<>&\u2028\u2029":
    text = text.replace(sign, f"\\u{ord(sign):04x}")
  return f"{call}{text});\n".encode()


def _write(path: pathlib.Path, content: bytes) -> None:
  files.write(path, lambda file: file.write(content))


def build(
  run: pathlib.Path,
  out: pathlib.Path,
  *,
  given: Sequence[str] = (),
  katex: str = "",
) -> int:
  """Writes the page; the number of questions.

  Args:
    run: the folder of `entries`.
    out: the folder of the page.
    given: files of samples.
    katex: as of `katex_files.package`.

  Raises:
    ValueError: nothing to show, or grades and samples that do not fit.
    FileNotFoundError: KaTeX is not there.
  """
  katex_files.unpack(katex_files.package(katex), out / "katex")
  for path in PAGE.iterdir():
    _write(out / path.name, path.read_bytes())
  rows, part, size, number = [], [], 0, 0
  name = lambda i: out / "data" / f"part-{i:05d}.js"
  for one in entries(run, given):
    rows.append({**one.row, "part": number, "place": len(part)})
    part.append(one.found)
    size += sum(len(s["text"]) for s in one.found["samples"])
    if size > _PART:
      _write(name(number), script_of(f"explorerPart({number},", part))
      part, size, number = [], 0, number + 1
  if part:
    _write(name(number), script_of(f"explorerPart({number},", part))
  if not rows:
    checks.refuse("RUN", str(run), "a run with questions")
  told = {"title": f"Samples of {run.resolve().name}", "rows": rows}
  _write(out / "data" / "index.js", script_of("explorerIndex(", told))
  return len(rows)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("run", help="folder with grades.jsonl, or of a study")
  parser.add_argument("--out", required=True, help="folder of the page")
  parser.add_argument("--samples", nargs="+", default=[], help="their files")
  parser.add_argument("--katex", default="", help="npm package of KaTeX")
  return parser


def main(argv: list[str]) -> None:
  """Writes the page that the command line names."""
  args = _parser().parse_args(argv)
  run, out = pathlib.Path(args.run), pathlib.Path(args.out)
  if not run.is_dir():
    checks.refuse("RUN", args.run, "a folder")
  try:
    num = build(run, out, given=args.samples, katex=args.katex)
  except FileNotFoundError as error:
    raise ValueError(str(error)) from error
  print(f"{num} questions: {out / 'index.html'}")


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
