"""One run of the loop in a folder, and what it ended with."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments.common import trained_on
from locojax.core import files, types
from locojax.train import (
  distributed,
  experiment,
  loop,
  profiling,
  sharding,
)
from locojax.train import folder as run_folder

DIVERGED = "diverged.json"


def changed(config: Any, **changes) -> Any:
  """A copy of a config in which some top-level values are replaced."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for name, value in changes.items():
      config[name] = value
  return config


def say(text: str) -> None:
  """Prints on process 0, at once."""
  if distributed.is_main():
    print(text, flush=True)


def fit(
  made: experiment.Experiment, config: Any, folder: pathlib.Path, **settings
) -> types.TrainState:
  """Trains `made` in a folder, from wherever that stands.

  Args:
    made: what to train.
    config: with `seed`, `mesh` and, if steps are to be profiled, `profile`
      (`start`, `num_steps`); it becomes the folder's `config.json`, with what
      `trained_on` knows of its data.
    folder: of the run.
    **settings: of `loop.fit` (`log_every`, `keep`, ...). `save_every` 0 or
      none saves twice, so that there is something to fall back to.

  Returns:
    The final state; `result` has the rest.

  Raises:
    What `loop.fit` raises.
  """
  half = max(1, -(-made.num_steps // 2))
  settings["save_every"] = settings.get("save_every") or half
  return loop.fit(
    made,
    folder,
    key=jax.random.key(config.seed),
    mesh=sharding.make_mesh(dict(config.mesh)),
    config=trained_on.marked(config),
    profile=profiling.window(dict(config.get("profile", {}))),
    **settings,
  )


def result(folder: pathlib.Path) -> dict[str, Any]:
  """`result.json` of a finished run, or why it diverged."""
  failed = folder / DIVERGED
  return files.read_json(
    failed if failed.exists() else folder / run_folder.RESULT
  )


def finished(
  config: Any, folder: pathlib.Path, *, may_differ: Sequence[str] = ()
) -> dict[str, Any] | None:
  """The result of a finished run of this config; None if it is not finished.

  Args:
    config: what is wanted.
    folder: of the run.
    may_differ: keys that do not count, besides `folder.MAY_DIFFER`.

  Raises:
    ValueError: the folder has a finished run of another config.
  """
  names = (run_folder.RESULT, DIVERGED)
  if not any((folder / name).exists() for name in names):
    return None
  run_folder.check_config(folder, trained_on.marked(config), may_differ)
  return result(folder)


def fit_or_diverge(
  made: experiment.Experiment, config: Any, folder: pathlib.Path, **settings
) -> dict[str, Any]:
  """`fit`, where a run that becomes non-finite is a result too.

  Returns:
    `result.json`, or `{"diverged": reason}`, which stays in `diverged.json`
    with the head of the run's journal, if it keeps one.
  """
  if (folder / DIVERGED).exists():
    may_differ = settings.get("may_differ", ())
    run_folder.check_config(folder, trained_on.marked(config), may_differ)
    return result(folder)
  try:
    fit(made, config, folder, **settings)
  except loop.NonFinite as error:
    if distributed.is_main():
      found = {"diverged": str(error)}
      if made.journal is not None:
        found["journal"] = made.journal.head()
      files.write_json(folder / DIVERGED, found)
    distributed.sync("diverged.json")
  return result(folder)


def fit_once(
  build: Callable[[Any], experiment.Experiment],
  config: Any,
  folder: pathlib.Path,
  **settings,
) -> dict[str, Any]:
  """`fit_or_diverge`, where a finished run builds nothing and is its result.

  Args:
    build: makes the experiment of a config.
    config: with `log_every` and `save_every`, and what `fit` needs.
    folder: of the run.
    **settings: of `loop.fit`, over these two; `may_differ` as in `finished`.

  Raises:
    ValueError: the folder has a finished run of another config.
  """
  may_differ = settings.get("may_differ", ())
  found = finished(config, folder, may_differ=may_differ)
  if found is not None:
    return found
  every = {k: config[k] for k in ("log_every", "save_every")}
  return fit_or_diverge(build(config), config, folder, **{**every, **settings})
