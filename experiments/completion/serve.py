"""A finished run as a language server, for editors and for a page of its own.

  python -m experiments.completion.serve --workdir RUNS/line/seed_0
  python -m experiments.completion.serve --workdir RUNS/line/seed_0 --page

The first speaks on standard streams, as editors start servers; the second
serves an editor (Monaco, by `scripts/install_monaco`) that speaks to it over a
websocket. Engines are started for the languages that are opened, where
installed. Needs the extra `serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from experiments.common import commands, programs
from experiments.completion import asking, restored
from experiments.completion.serving import backends
from experiments.completion.serving.assistant import Assistant, Settings
from locojax.core import checks

# Written by this program beside the run, so that the next start is quick.
_COMPILED = ".serving"


def load(workdir: str) -> Any:
  """The model of a run, with its compiled programs kept beside it."""
  with programs.kept(pathlib.Path(workdir).expanduser() / _COMPILED):
    completer = restored.load(workdir).completer
    completer.warm_up()
  return completer


def thresholds(workdir: str, language: str) -> tuple[float, ...]:
  """Thresholds of several lines that a run has learnt.

  Raises:
    ValueError: it has none for the language.
  """
  found = asking.read(pathlib.Path(workdir).expanduser())
  learnt = found.get(language, {}).get("several", {}).get("thresholds")
  if not learnt:
    checks.refuse("--lines", "more than 1", f"1: nothing learnt of {language}")
  return (*learnt, math.inf)


def settings(args: argparse.Namespace) -> Settings:
  """Settings of the command line."""
  learnt = thresholds(args.workdir, "python") if args.lines > 1 else ()
  return Settings(
    k=args.k,
    wait_ms=args.wait_ms,
    debounce_ms=args.debounce_ms,
    check_ms=args.check_ms,
    min_chars=args.min_chars,
    max_lines=args.lines,
    thresholds=learnt,
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m experiments.completion.serve",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  usual = Settings()
  add = parser.add_argument
  add("--workdir", required=True, help="folder of one run")
  add("--page", action="store_true", help="an editor at a local address")
  add("--root", default=".", help="folder that the page writes in")
  add("--host", default="127.0.0.1", help="of the page")
  add("--port", type=int, default=0, help="of the page; 0: a free one")
  add("--no_engine", action="store_true", help="the model alone")
  add(
    "--wait_for_model",
    action="store_true",
    help="says nothing before the model is there; otherwise lists are the "
    "engine's until then",
  )
  add("--k", type=int, default=usual.k, help="names moved to the top")
  add(
    "--wait_ms",
    type=float,
    default=usual.wait_ms,
    help="how long a list waits for the model after the engine's answer",
  )
  add("--debounce_ms", type=float, default=usual.debounce_ms)
  add("--check_ms", type=float, default=usual.check_ms)
  add("--min_chars", type=int, default=usual.min_chars)
  add("--lines", type=int, default=1, help="more need thresholds of the run")
  return parser


def main(argv: Sequence[str]) -> None:
  """Serves until its editor, or Ctrl-C, ends it."""
  args = _parser().parse_args(argv)
  from experiments.completion.serving import page, server

  logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
  # It warns of every answer that came before it was cancelled.
  logging.getLogger("pygls").setLevel(logging.ERROR)
  checks.int_in_range("--port", args.port, 0, 65535)
  given = settings(args)
  restored.check_folder(args.workdir)
  assistant = Assistant(
    functools.partial(load, args.workdir),
    backends.Backends(None if args.no_engine else backends.start),
    given,
  )
  try:
    if args.wait_for_model:
      assistant.loading.result()
    if args.page:
      asyncio.run(page.serve(assistant, args.root, args.host, args.port))
    else:
      out, sys.stdout = sys.stdout, sys.stderr  # for the protocol alone
      server.Server(assistant).start_io(stdout=out.buffer)
  finally:
    assistant.shutdown()


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
