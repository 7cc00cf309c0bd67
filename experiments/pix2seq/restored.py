"""A finished run taken up again to find objects in other images.

Its training data are not needed: the folder knows what its labels are called.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.pix2seq import asking, detectors, experiment
from locojax.core import files, types
from locojax.train import experiment as experiment_lib
from locojax.train import folder as run_folder
from locojax.train import loop, sharding

_REMEDY = "it must be as the run wrote it"


class Restored(NamedTuple):
  """A run that can be asked.

  Attributes:
    config: of the run.
    detector: of it.
    state: its newest checkpoint.
    classes: names; label l is `classes[l - 1]`.
    category_ids: what its data set calls them, `[classes]`.
  """

  config: Any
  detector: detectors.Detector
  state: types.TrainState
  classes: tuple[str, ...]
  category_ids: np.ndarray


def _json(folder: pathlib.Path, name: str) -> Any:
  path = folder / name
  if not path.is_file():
    raise ValueError(
      f"run={str(folder)!r} is not allowed: it has no {name}; it must be the "
      "folder of a finished run, such as RUNS/augmented/seed_0."
    )
  return files.read_json(path, remedy=_REMEDY)


def _without_data(found: dict[str, Any], num_classes: int) -> ConfigDict:
  """The config of a run, on what devices there are and without its data."""
  found.pop(run_folder.DATA, None)
  found = {**found, "needs_data": False, "mesh": {"data": -1, "model": 1}}
  data = {"num_classes": num_classes, "data_dir": "", "path": ""}
  found["data"] = {**found["data"], **data}
  # JSON has lists where a config has tuples.
  return ConfigDict(_tuples(found))


def _tuples(node: Any) -> Any:
  if isinstance(node, dict):
    return {k: _tuples(v) for k, v in node.items()}
  return tuple(map(_tuples, node)) if isinstance(node, list) else node


def load(run: str | os.PathLike) -> Restored:
  """A run from its folder.

  Args:
    run: the folder of one run, with `config.json`, `classes.json` and `ckpt`.

  Raises:
    ValueError: it is none, or its checkpoint does not fit.
  """
  folder = pathlib.Path(run).expanduser()
  told = _json(folder, asking.CLASSES)
  config = _without_data(_json(folder, run_folder.CONFIG), told["num_classes"])
  made = experiment.build(config)
  kept = []

  def keep(state):
    kept.append(state)
    return {}

  made = dataclasses.replace(
    made, evals={"restored": experiment_lib.Eval(1, keep)}
  )
  mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
  loop.evaluate(made, folder, mesh=mesh, key=jax.random.key(0))
  return Restored(
    config=config,
    detector=detectors.make(config, told["num_classes"]),
    state=kept[0],
    classes=tuple(told["classes"]),
    category_ids=np.array(told["category_ids"]),
  )
