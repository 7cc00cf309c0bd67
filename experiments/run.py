"""Launches an experiment.

  python -m experiments.run --config FILE[:variant] --workdir DIR
    [--mode run|check|eval] [--config.name=value ...]

`run` trains, or goes on where the folder stands; after SIGTERM (exit code 0),
Ctrl-C or a crash the same command goes on. `check` looks at shapes, shardings
and memory without data; `eval` evaluates the newest checkpoint and prints JSON.
The same command, started once on each host, is a run of many hosts (see
`locojax.train.distributed`).

A config names its module in `config.experiment`; that module has
`build(config) -> Experiment` and `run(config, workdir) -> dict`, and
`evaluate(config, workdir) -> dict` if it is a pipeline of several runs.
"""

from __future__ import annotations

import json
import logging
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from experiments.common import commands, launch, trained_on
from locojax.core import checks
from locojax.train import distributed, loop, sharding

MODES = ("run", "check", "eval")

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, with `:variant` behind it.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder.")
_MODE = flags.DEFINE_string("mode", "run", f"One of {', '.join(MODES)}.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

# What a user's mistake raises; anything else is a fault and shows itself.
_MISTAKES = (
  flags.Error,
  ValueError,
  KeyError,
  AttributeError,
  TypeError,
  ImportError,
  OSError,
  FloatingPointError,
)


def _config_file(args: Sequence[str]) -> pathlib.Path | None:
  """The file that `--config` names, with the variant cut off."""
  for i, arg in enumerate(args):
    name, equals, value = arg.partition("=")
    if name in ("--config", "-config"):
      value = value if equals else (list(args) + [""])[i + 1]
      return pathlib.Path(value.rpartition(":")[0] or value)
  return None


def parse(args: Sequence[str]) -> list[str]:
  """Parses the flags; leaves with exit code 2 and one line on a mistake."""
  path = _config_file(args[1:])
  if path is not None and not path.is_file():
    sys.exit(commands.refuse(f"--config: there is no file {str(path)!r}."))
  debug = "--debug" in args
  try:
    rest = flags.FLAGS(args)
    checks.one_of("--mode", _MODE.value, MODES)
  except _MISTAKES as error:
    sys.exit(commands.refuse(error, debug=debug))
  if rest[1:]:
    sys.exit(
      commands.refuse(f"arguments not understood: {rest[1:]}.", debug=debug)
    )
  return rest


def _evaluate(module: Any, config: Any, workdir: str) -> Mapping[str, Any]:
  trained_on.check(config, pathlib.Path(workdir))
  if hasattr(module, "evaluate"):
    return module.evaluate(config, workdir)
  return loop.evaluate(
    module.build(config),
    workdir,
    mesh=sharding.make_mesh(dict(config.mesh)),
    key=jax.random.key(0),
  )


def _launch(config: Any, mode: str, workdir: str | None) -> None:
  if config is None:
    raise ValueError("--config is missing: it must name a config file.")
  if not workdir:
    raise ValueError(f"--workdir is missing: --mode={mode} needs a folder.")
  launch.check_workdir(workdir, mode=mode)
  launch.check_settings(config, mode=mode, num_devices=jax.device_count())
  module = launch.module_of(config)
  if mode == "run":
    module.run(config, workdir)
    return
  results = dict(_evaluate(module, config, workdir))
  if distributed.is_main():
    print(json.dumps(results, indent=2))


def _check(config: Any) -> int:
  """Looks at a config without data and devices; the exit code."""
  try:
    if config is None:
      raise ValueError("--config is missing: it must name a config file.")
    launch.check_settings(config, mode="check")
    print(launch.check_report(config).text)
    for name, report in launch.more_check_reports(config).items():
      print(f"\n{name}\n\n{report.text}")
  except commands.MISTAKES as error:
    commands.refuse(error, debug=_DEBUG.value)
    return 1
  return 0


def main(_: Sequence[str]) -> int:
  """Launches what the flags say; the exit code."""
  absl_logging.set_verbosity(absl_logging.WARNING)  # orbax tells a lot
  logging.getLogger("locojax").setLevel(logging.INFO)
  config, mode = _CONFIG.value, _MODE.value
  if mode == "check":
    return _check(config)
  return commands.run(
    lambda: _launch(config, mode, _WORKDIR.value), debug=_DEBUG.value
  )


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
