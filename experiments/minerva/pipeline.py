"""From web pages and papers to rows of tokens, with Apache Beam.

  python -m experiments.minerva.pipeline --out DIR \\
    --html pages.jsonl.gz --html site/ --tex papers/ \\
    --questions gsm8k_test.jsonl.gz

`--html` is a file of JSON lines with `html` in each, or a folder of pages;
`--tex` a folder with a folder for each paper (with a `metadata.json` of its
`title` and `abstract`, if they are known). In the folder then stand

  clean/     texts with their formulas in LaTeX, and why others were dropped
  near/      which of them repeat others
  overlaps/  which questions of the evaluations they hold
  pieces.model   the SentencePiece tokenizer
  tokens/    rows of equal length, read by `sources.from_token_records`
  report.md, report.json   what became of every document, and what was found

A program that was stopped goes on by the same command; what is done is not done
again. Results are the same to the byte however many work: `--direct_num_workers
2 --direct_running_mode multi_processing`, or `--runner` and flags of another
runner of Beam, whose workers must see the folders.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.common import commands
from experiments.minerva import pipeline_inputs as inputs
from experiments.minerva import pipeline_work as work
from locojax.core import checks, files
from locojax.data import digests, near_duplicates, pieces
from locojax.train import lock, stopping

SETTINGS = "pipeline.json"
_CHUNK = 2000  # characters of a sentence that the tokenizer is trained on


def check(settings: work.Settings) -> None:
  """Refuses bad settings.

  Raises:
    ValueError: names it.
  """
  for name in (
    "min_formulas",
    "min_chars",
  ):
    checks.nonnegative_int(f"--{name}", getattr(settings, name))
  for name in (
    "max_tokens",
    "shingle",
    "permutations",
    "bands",
    "ngram",
    "vocab_size",
    "train_chars",
    "seq_len",
    "num_files",
    "docs_per_shard",
  ):
    checks.positive_int(f"--{name}", getattr(settings, name))
  checks.positive("--max_tokens_per_char", settings.max_tokens_per_char)
  checks.in_range("--threshold", settings.threshold, 0, 1)
  checks.divisible(
    "--permutations", settings.permutations, "--bands", settings.bands
  )
  checks.seed("--seed", settings.seed)
  for path in settings.questions:
    if not pathlib.Path(path).is_file():
      checks.refuse("--questions", path, "a file of JSON lines")
  given = settings.tokenizer
  if given not in ("", "bytes") and not pathlib.Path(given).is_file():
    checks.refuse("--tokenizer", given, "'bytes' or a SentencePiece file")


def _belongs(
  folder: pathlib.Path,
  settings: work.Settings,
  given: Sequence[tuple[str, str]],
) -> None:
  """A folder has the result of one set of inputs and settings.

  Raises:
    ValueError: it has another.
  """
  digest = lambda path: digests.of_files(pathlib.Path(path))
  plain = {**dataclasses.asdict(settings), "questions": None}
  wanted = {
    **plain,
    "questions": [digest(path) for path in settings.questions],
    "inputs": [[kind, digest(path)] for kind, path in given],
  }
  path = folder / SETTINGS
  if not path.exists():
    files.write_json(path, wanted)
    return
  known = files.read_json(path)
  for key, value in wanted.items():
    if known.get(key) != value:
      raise ValueError(
        f"--out={str(folder)!r} is not allowed: it was made with {key} "
        f"{known.get(key)!r}, and this is {value!r}. Take another folder."
      )


def _sample(
  shards: Sequence[inputs.Shard], settings: work.Settings, out: str
) -> Iterator[str]:
  """Parts of texts for the tokenizer, of documents chosen by their names."""
  sizes = {}
  for shard in shards:
    for row, reason in work.fates(shard, settings, out):
      if reason is None:
        place = near_duplicates.hash_text(f"{settings.seed}/{row['id']}")
        sizes[row["id"]] = (place, len(row["text"]))
  chosen, total = set(), 0
  for name in sorted(sizes, key=lambda n: (sizes[n][0], n)):
    if total >= settings.train_chars:
      break
    chosen.add(name)
    total += sizes[name][1]
  for shard in shards:
    for row, _ in work.fates(shard, settings, out):
      if row["id"] in chosen:
        text = row["text"]
        yield from (text[i : i + _CHUNK] for i in range(0, len(text), _CHUNK))


def _tokenizer(
  shards: Sequence[inputs.Shard], settings: work.Settings, out: str
) -> None:
  """Makes the tokenizer, unless it is there or needs no making."""
  path = pathlib.Path(out) / work.TOKENIZER
  if settings.tokenizer == "bytes" or path.exists():
    return
  if settings.tokenizer:
    made = pieces.load(settings.tokenizer, lower_case=False)
  else:
    made = pieces.train(
      _sample(shards, settings, out),
      vocab_size=settings.vocab_size,
      lower_case=False,
      exact=True,
    )
  made.save(path)


def run(
  given: Sequence[tuple[str, str]],
  settings: work.Settings,
  out: str,
  flags: Sequence[str] = (),
) -> Mapping[str, Any]:
  """Makes, or goes on with, the result of a folder.

  Args:
    given: kind (`html` or `tex`) and path of each input.
    settings: of the texts.
    out: the folder.
    flags: of Beam.

  Returns:
    The report.

  Raises:
    ValueError: bad settings, inputs or flags; a folder of something else.
    ImportError: Beam is not installed.
  """
  check(settings)
  if not given:
    raise ValueError("there is no input: give --html or --tex, once or more.")
  from experiments.minerva import pipeline_report, pipeline_stages

  shards = inputs.plan(given, docs_per_shard=settings.docs_per_shard)
  options = pipeline_stages.options_of(flags)
  folder = pathlib.Path(out).absolute()
  out = str(folder)
  with lock.hold(folder):
    _belongs(folder, settings, given)
    stages = {"clean": pipeline_stages.clean, "near": pipeline_stages.near}
    if settings.questions:
      work.index_of(settings.questions, settings.ngram)
      stages["overlaps"] = pipeline_stages.overlaps
    for name, stage in stages.items():
      done = stage(shards, settings, out, options)
      print(f"{name}: {done} of {len(shards)} shards", flush=True)
      stopping.stop_if_due(f"after {name}; run again to go on")
    _tokenizer(shards, settings, out)
    stopping.stop_if_due("after the tokenizer; run again to go on")
    done = pipeline_stages.pack(shards, settings, out, options)
    print(f"pack: {done} of {settings.num_files} files", flush=True)
    return pipeline_report.write(shards, settings, out)


class _Input(argparse.Action):
  """Keeps inputs of all kinds in the order in which they were given."""

  def __call__(self, parser, namespace, values, option_string=None):
    found = list(getattr(namespace, "inputs", None) or [])
    kind = option_string.lstrip("-")
    namespace.inputs = [*found, *((kind, value) for value in values)]


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    epilog="Other flags are those of Apache Beam.",
    allow_abbrev=False,
  )
  parser.add_argument("--out", required=True, help="folder of the result")
  for kind in inputs.KINDS:
    parser.add_argument(f"--{kind}", action=_Input, nargs="+", help="inputs")
  default = work.Settings()
  for field in dataclasses.fields(work.Settings):
    value = getattr(default, field.name)
    flag = f"--{field.name}"
    if isinstance(value, bool):
      parser.add_argument(flag, action="store_true")
    elif isinstance(value, tuple):
      parser.add_argument(flag, nargs="+", default=list(value))
    else:
      parser.add_argument(flag, type=type(value), default=value)
  return parser


def main(argv: list[str]) -> None:
  """Makes what the command line names, and prints the report."""
  args, flags = _parser().parse_known_args(argv)
  names = [field.name for field in dataclasses.fields(work.Settings)]
  found = {name: getattr(args, name) for name in names}
  found["questions"] = tuple(found["questions"])
  report = run(
    getattr(args, "inputs", None) or [],
    work.Settings(**found),
    args.out,
    flags,
  )
  print(f"\n{report['table']}")


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
