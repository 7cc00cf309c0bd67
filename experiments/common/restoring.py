"""A finished run taken up again, to be asked instead of trained."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from locojax.core import files, types
from locojax.train import experiment, loop, sharding
from locojax.train import folder as run_folder

_REMEDY = "it must be as the run wrote it"


def read_json(folder: pathlib.Path, name: str, *, such_as: str) -> Any:
  """A file of a run folder.

  Args:
    folder: of the run.
    name: of the file.
    such_as: a folder as it might be, for the message.

  Raises:
    ValueError: it is not there.
  """
  path = folder / name
  if not path.is_file():
    raise ValueError(
      f"run={str(folder)!r} is not allowed: it has no {name}; it must be the "
      f"folder of a finished run, such as {such_as}."
    )
  return files.read_json(path, remedy=_REMEDY)


def config_of(found: dict[str, Any], **changes: Any) -> ConfigDict:
  """The config of a run folder, with changes and without its data's digest.

  Args:
    found: `config.json`, whose lists become tuples.
    **changes: of top-level values; those of a dict are changes of its entries.
  """
  found = {k: v for k, v in found.items() if k != run_folder.DATA}
  for name, value in changes.items():
    inner = isinstance(value, dict) and isinstance(found.get(name), dict)
    found[name] = {**found[name], **value} if inner else value
  return ConfigDict(_tuples(found))


def _tuples(node: Any) -> Any:
  """JSON has lists where a config has tuples."""
  if isinstance(node, dict):
    return {k: _tuples(v) for k, v in node.items()}
  return tuple(map(_tuples, node)) if isinstance(node, list) else node


def state_of(
  made: experiment.Experiment, folder: pathlib.Path
) -> types.TrainState:
  """The newest state of a run, on one device.

  Raises:
    ValueError: there is none, or it does not fit.
  """
  kept = []

  def keep(state):
    kept.append(state)
    return {}

  made = dataclasses.replace(made, evals={"kept": experiment.Eval(1, keep)})
  mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
  loop.evaluate(made, folder, mesh=mesh, key=jax.random.key(0))
  return kept[0]
