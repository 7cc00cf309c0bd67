"""One run of the loop in a folder, and what it ended with."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from locojax.core import types
from locojax.train import (
  distributed,
  experiment,
  loop,
  profiling,
  sharding,
)
from locojax.train import folder as run_folder


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
      (`start`, `num_steps`); it becomes the folder's `config.json`.
    folder: of the run.
    **settings: of `loop.fit` (`log_every`, `save_every`, `keep`, ...).

  Returns:
    The final state; `result` has the rest.

  Raises:
    What `loop.fit` raises.
  """
  return loop.fit(
    made,
    folder,
    key=jax.random.key(config.seed),
    mesh=sharding.make_mesh(dict(config.mesh)),
    config=config.to_dict(),
    profile=profiling.window(dict(config.get("profile", {}))),
    **settings,
  )


def result(folder: pathlib.Path) -> dict[str, Any]:
  """`result.json` of a finished run."""
  return json.loads((folder / "result.json").read_text())


def check_config(
  config: Any, folder: pathlib.Path, *, ignored: Sequence[str] = ()
) -> None:
  """Refuses a folder whose run had another config.

  Args:
    config: what is wanted.
    folder: of a run, with `config.json`.
    ignored: keys that may differ.

  Raises:
    ValueError: it differs; names the keys.
  """
  found = run_folder.changed_keys(folder, config.to_dict())
  keys = [k for k in found if k not in ignored]
  if keys:
    raise ValueError(
      f"{folder} has a finished run of another config: {', '.join(keys)} "
      "differ. Take another --workdir, or remove that folder."
    )


def finished(
  config: Any, folder: pathlib.Path, *, ignored: Sequence[str] = ()
) -> dict[str, Any] | None:
  """The result of a finished run of this config; None if it is not finished.

  Raises:
    ValueError: the folder has a finished run of another config.
  """
  if not (folder / "result.json").exists():
    return None
  check_config(config, folder, ignored=ignored)
  return result(folder)


def fit_or_diverge(
  made: experiment.Experiment, config: Any, folder: pathlib.Path, **settings
) -> dict[str, Any]:
  """`fit`, where a run that becomes non-finite is a result too.

  Returns:
    `result.json`, or `{"diverged": reason}`, which stays in `diverged.json`.
  """
  failed = folder / "diverged.json"
  if failed.exists():
    return json.loads(failed.read_text())
  try:
    fit(made, config, folder, **settings)
  except loop.NonFinite as error:
    out = {"diverged": str(error)}
    if distributed.is_main():
      failed.write_text(json.dumps(out))
    distributed.sync("diverged.json")
    return out
  return result(folder)
