"""Has a trained model answer the questions of an evaluation.

  python -m experiments.minerva.answer --run RUNS/preserved/seed_0 \\
    --task gsm8k --out samples.jsonl
  python -m experiments.minerva.grade samples.jsonl --task gsm8k

Questions come with the prompts of the papers, of which the last tokens are kept
that the model has room for. Without `--task` they are as the model was trained:
`Q: ...`, of a file of your own (`--path`). A program that was stopped goes on
by the same command.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.common import commands, restoring
from experiments.minerva import (
  answering,
  experiment,
  records,
  tasks,
  texts,
)
from locojax.core import checks, types
from locojax.data import pieces
from locojax.methods import minerva
from locojax.train import folder as run_folder
from locojax.train import lock


class Restored(NamedTuple):
  """A run that can be asked.

  Attributes:
    config: of the run.
    state: its newest checkpoint.
    tokenizer: of its texts.
  """

  config: Any
  state: types.TrainState
  tokenizer: Any


def load(run: str) -> Restored:
  """A run from its folder; its data are not needed.

  Raises:
    ValueError: it is none, or its checkpoint does not fit.
  """
  folder = pathlib.Path(run).expanduser()
  read = functools.partial(
    restoring.read_json, folder, such_as="RUNS/preserved/seed_0"
  )
  config = restoring.config_of(
    read(run_folder.CONFIG),
    needs_data=False,
    mesh={"data": -1, "expert": 1, "model": 1},
    data={"data_dir": "", "path": ""},
  )
  tokenizer: Any = pieces.Bytes()
  if config.data.tokenizer == "pieces":
    path = folder / experiment.TOKENIZER
    if not path.is_file():
      raise ValueError(
        f"--run={run!r} is not allowed: it has no {path.name}, which a run "
        "writes before it is asked for the first time."
      )
    tokenizer = pieces.load(path, lower_case=False)
  state = restoring.state_of(experiment.build(config), folder)
  return Restored(config, state, tokenizer)


def questions_of(
  args: argparse.Namespace, config: Any
) -> Sequence[records.Question]:
  """What is asked."""
  if args.task:
    return tasks.load(
      args.task, path=args.path, split=args.split, data_dir=args.data_dir
    )
  if not args.path:
    checks.refuse("--path", args.path, "a file of questions, without --task")
  condition = checks.lookup("condition", config.condition, texts.CONDITIONS)
  return [
    texts.question_of(one, condition, f"{pathlib.Path(args.path).stem}/{i}")
    for i, one in enumerate(texts.read(args.path))
  ]


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--run", required=True, help="folder of a run")
  parser.add_argument("--out", required=True, help="file of samples to write")
  parser.add_argument("--task", default="", help=f"of {list(tasks.TASKS)}")
  parser.add_argument("--path", default="", help="your own questions")
  parser.add_argument("--split", default="test")
  parser.add_argument("--data_dir", default="", help="folder with text/")
  parser.add_argument("--num", type=int, default=0, help="the first so many")
  parser.add_argument("--num_samples", type=int, default=0)
  parser.add_argument("--max_new_tokens", type=int, default=0)
  parser.add_argument("--batch", type=int, default=0, help="questions at once")
  return parser


def run(args: argparse.Namespace) -> list[records.Question]:
  """Answers, and gives the questions with their samples."""
  if args.task:
    checks.one_of("--task", args.task, tasks.TASKS)
  names = ("num_samples", "max_new_tokens", "batch")
  for name in ("num", *names):
    checks.nonnegative_int(f"--{name}", getattr(args, name))
  found = load(args.run)
  asked = questions_of(args, found.config)
  asked = asked[: args.num or None]
  changes = {n: getattr(args, n) for n in names if getattr(args, n)}
  made = experiment.answerer(
    found.config,
    found.state,
    found.tokenizer,
    stop=minerva.STOPS.get(args.task, ""),
    **changes,
  )
  out = pathlib.Path(args.out)
  with lock.hold(out.absolute().parent):
    return answering.answer_all(
      made,
      asked,
      out,
      batch=changes.get("batch", found.config.sampling.batch),
      tell=lambda done, total: print(f"{done}/{total} questions", flush=True),
    )


def main(argv: list[str]) -> None:
  """Answers what the command line names."""
  args = _parser().parse_args(argv)
  run(args)
  print(f"samples: {args.out}")


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
