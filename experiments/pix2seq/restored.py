"""A finished run taken up again to find objects in other images.

Its training data are not needed: the folder knows what its labels are called.
"""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.common import restoring
from experiments.pix2seq import asking, detectors, experiment
from locojax.core import types
from locojax.train import folder as run_folder


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


def _without_data(found: dict[str, Any], num_classes: int) -> ConfigDict:
  """The config of a run, on what devices there are and without its data."""
  return restoring.config_of(
    found,
    needs_data=False,
    mesh={"data": -1, "model": 1},
    data={"num_classes": num_classes, "data_dir": "", "path": ""},
  )


def load(run: str | os.PathLike) -> Restored:
  """A run from its folder.

  Args:
    run: the folder of one run, with `config.json`, `classes.json` and `ckpt`.

  Raises:
    ValueError: it is none, or its checkpoint does not fit.
  """
  folder = pathlib.Path(run).expanduser()
  read = functools.partial(
    restoring.read_json, folder, such_as="RUNS/augmented/seed_0"
  )
  told = read(asking.CLASSES)
  config = _without_data(read(run_folder.CONFIG), told["num_classes"])
  return Restored(
    config=config,
    detector=detectors.make(config, told["num_classes"]),
    state=restoring.state_of(experiment.build(config), folder),
    classes=tuple(told["classes"]),
    category_ids=np.array(told["category_ids"]),
  )
