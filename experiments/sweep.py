"""Runs an experiment at all combinations of listed settings, and compares.

  python -m experiments.sweep --workdir runs/rates \\
    --config experiments/limoe/configs/pairs.py:tiny \\
    --over learning_rate 1e-3 3e-3 --over seed 0 1 2

Each combination is `experiments.run` in a folder of its own below `--workdir`,
one after the other; what follows that the sweep does not know
(`--config.num_steps=100`) goes to all of them. A stopped sweep goes on with the
same command. One that fails does not end the others; the sweep then ends with
exit code 1. At the end all are compared (see `experiments.compare`).
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from experiments import compare
from experiments.common import commands, stages
from locojax.train import stopping, writers

_NAME = re.compile(r"[A-Za-z_][\w.]*")
Point = tuple[tuple[str, str], ...]


def points(over: Sequence[Sequence[str]]) -> list[Point]:
  """All combinations, the last setting first to change.

  Args:
    over: for each setting its name, with or without `config.`, and its values
      as text.

  Raises:
    ValueError: nothing is varied, a bad name, no value, one given twice.
  """
  if not over:
    raise ValueError("--over is missing: at least one setting must vary.")
  lists, seen = [], set()
  for name, *values in over:
    name = name.removeprefix("config.")
    if not _NAME.fullmatch(name):
      raise ValueError(f"--over={name!r} is not allowed: a dotted name first.")
    if name in seen or not values or len(set(values)) != len(values):
      raise ValueError(
        f"--over {name} {' '.join(values)} is not allowed: each setting once, "
        "with one value or more, none of them twice."
      )
    seen.add(name)
    lists.append([(name, value) for value in values])
  return list(itertools.product(*lists))


def folder_of(point: Point) -> str:
  """The name of the folder of a combination."""
  text = ",".join(f"{name}={value}" for name, value in point)
  return re.sub(r"[^\w.,=+-]+", "_", text)


def folders(made: Sequence[Point]) -> list[str]:
  """Names for all; a number is added where two would be the same."""
  out: list[str] = []
  for point in made:
    name, number = folder_of(point), 2
    while name in out:
      name, number = f"{folder_of(point)}_{number}", number + 1
    out.append(name)
  return out


def command_of(
  config: str, workdir: pathlib.Path, point: Point, rest: Sequence[str]
) -> list[str]:
  """The command that runs a combination."""
  head = [sys.executable, "-m", "experiments.run", "--config", config]
  settings = [f"--config.{name}={value}" for name, value in point]
  return [*head, "--workdir", str(workdir), *rest, *settings]


def _call(command: Sequence[str]) -> int:
  """Runs a command, which a signal ends too; its exit code."""
  process = subprocess.Popen(command)
  try:
    return process.wait()
  finally:
    if process.poll() is None:
      process.terminate()
      process.wait()


def sweep(
  config: str,
  workdir: str,
  made: Sequence[Point],
  rest: Sequence[str] = (),
  *,
  call: Callable[[Sequence[str]], int] = _call,
) -> dict[str, int]:
  """Runs all; the exit code of each folder.

  Args:
    config: `FILE` or `FILE:variant`.
    workdir: folder of the sweep.
    made: combinations.
    rest: further flags of every run.
    call: runs a command.
  """
  codes: dict[str, int] = {}
  started = time.monotonic()
  for name, point in zip(folders(made), made):
    command = command_of(config, pathlib.Path(workdir) / name, point, rest)
    stages.say(f"[{len(codes) + 1}/{len(made)}] {name}")
    codes[name] = call(command)
    stopping.stop_if_due(f"after {name}")
    if codes[name] == 130:
      raise KeyboardInterrupt("interrupted; run again to resume")
    if codes[name]:
      stages.say(f"{name} failed ({codes[name]}): {shlex.join(command)}")
    left = (time.monotonic() - started) * (len(made) / len(codes) - 1)
    if len(codes) < len(made):
      stages.say(f"at most {writers.duration(left)} left")
  return codes


def parser() -> argparse.ArgumentParser:
  """Of the command line."""
  made = argparse.ArgumentParser(
    prog="python -m experiments.sweep",
    description=__doc__.splitlines()[0],
    allow_abbrev=False,
  )
  made.add_argument("--config", required=True, metavar="FILE[:variant]")
  made.add_argument("--workdir", required=True, help="folder of the sweep")
  made.add_argument(
    "--over",
    nargs="+",
    action="append",
    default=[],
    metavar=("NAME", "VALUE"),
    help="a setting and its values; may be given several times",
  )
  made.add_argument("--metric", nargs="+", default=(), help="what to compare")
  return made


def main(argv: Sequence[str]) -> int:
  """Runs and compares; the exit code."""
  args, rest = parser().parse_known_args(argv)
  unknown = [word for word in rest if not word.startswith("--")]
  if unknown:
    raise ValueError(f"arguments not understood: {unknown}.")
  codes = sweep(args.config, args.workdir, points(args.over), rest)
  failed = [name for name, code in codes.items() if code]
  if len(failed) < len(codes):
    names = [name for name in codes if name not in failed]
    where = [str(pathlib.Path(args.workdir) / name) for name in names]
    out = args.workdir
    stages.say("\n" + compare.compare(where, metrics=args.metric, out=out))
    stages.say(f"\ntable:  {pathlib.Path(out) / compare.TABLE}")
    stages.say(f"figure: {pathlib.Path(out) / compare.FIGURE}")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
