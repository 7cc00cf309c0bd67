"""What the settings of the study may be."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.common import places, settings, tabular
from experiments.smelu import tasks
from locojax.core import checks
from locojax.methods.smelu import activations, recommender
from locojax.train import optimizers, variation

NORMALIZATIONS = ("", "layer", "weight", "batch")
# Panels of fewer points are not drawn.
LEAST_POINTS = 3


@dataclasses.dataclass(frozen=True)
class Setting:
  """`relu`, `smelu:0.5`, `relu*3` (ensembles of 3), `relu+warm`.

  Attributes:
    activation: a name of the activations.
    ensemble: models whose mean prediction counts as one.
    warm: whether the replicas go on from one trained model.
  """

  activation: str
  ensemble: int = 1
  warm: bool = False


def parse_setting(text: str) -> Setting:
  """A setting from its text.

  Raises:
    ValueError: it cannot be read.
  """
  name, plus, warm = text.partition("+")
  name, times, number = name.partition("*")
  if (plus and warm != "warm") or (times and not number.isdigit()):
    raise ValueError(
      f"setting={text!r} is not allowed: it must be an activation, with '*k' "
      "behind it for ensembles of k, or '+warm' for a warm start."
    )
  ensemble = checks.positive_int("ensemble", int(number or 1))
  return Setting(name, ensemble, bool(plus))


def _setting(name: str, found: str) -> str:
  """The rule of a setting: it can be read, and its activation is known."""
  checks.text(name, found)
  try:
    activations.get_activation(parse_setting(found).activation)
  except ValueError as error:
    raise ValueError(f"{name}={found!r} is not allowed: {error}") from error
  return found


def _window(name: str, found: Any) -> Any:
  """Of the shuffle, in examples."""
  return settings.either("full", checks.nonnegative_int)(name, found)


_CONDITION = settings.group(
  {
    "vary": settings.several(settings.choice(variation.SOURCES), least=0),
    "window": _window,
  },
  required=("vary", "window"),
)
RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "data.name": settings.choice(tasks.TASKS),
  "data.data_dir": places.there,
  "data.num_train": checks.nonnegative_int,
  "data.num_test": checks.nonnegative_int,
  "model.preset": settings.choice(recommender.PRESETS),
  "model.hidden": checks.sizes,
  "model.normalization": settings.choice(NORMALIZATIONS),
  "model.dropout_rate": settings.decay,
  "optimizer": settings.choice(optimizers.OPTIMIZERS),
  "optimizer_options": settings.anything,
  "learning_rates": settings.several(checks.positive, what="rates"),
  "learning_rate": checks.nonnegative,
  "tuned": settings.table(checks.positive, least=0),
  "tuning": checks.boolean,
  "validation": lambda name, found: checks.between(name, found, 0.0, 1.0),
  "tuning_condition": checks.text,
  "batch_size": checks.positive_int,
  "num_epochs": checks.positive_int,
  "num_steps": checks.nonnegative_int,
  "eval_batch_size": checks.positive_int,
  "num_replicas": checks.positive_int,
  "rounding_ulps": checks.nonnegative,
  "conditions": settings.table(_CONDITION),
  "setting": _setting,
  "condition": checks.text,
  "grid": settings.table(settings.several(_setting, least=0, what="settings")),
  "pd_floor": settings.share,
}


def check(config) -> None:
  """Refuses what the study cannot run with.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  settings.check(config, RULES)
  settings.optimizer_options(
    "optimizer_options",
    config.optimizer,
    config.optimizer_options.to_dict(),
    more=("weight_decay", "clip_norm"),
  )
  for key in ("condition", "tuning_condition"):
    checks.one_of(key, config[key], config.conditions.to_dict())
  for name in config.grid:
    checks.one_of("condition in grid", name, config.conditions.to_dict())
  _check_model(config)
  _check_data(config)
  _check_condition(config, config.condition)
  settings.divides_mesh(config, "batch_size")


def check_run(config) -> None:
  """What the whole grid needs besides.

  Raises:
    ValueError: names the key.
  """
  if config.data.name == "criteo":
    checks.refuse(
      "data.name", "criteo", "another one: it is for --mode=check alone"
    )
  if config.num_replicas < 2:
    checks.refuse(
      "num_replicas", config.num_replicas, "2 or more, to have pairs to compare"
    )
  most = max(map(len, config.grid.values()), default=0)
  if most < LEAST_POINTS:
    checks.refuse(
      "grid",
      config.grid.to_dict(),
      f"of {LEAST_POINTS} or more settings under a condition, else there is "
      "nothing to plot",
    )
  for name, several in config.grid.items():
    if several:
      _check_condition(config, name)
  num = config.data.num_train
  if num and not config.learning_rate:
    least = num - max(1, round(config.validation * num))
    why = "what validation leaves for tuning"
    settings.at_most(config, "batch_size", least, why)


def _check_model(config) -> None:
  images = config.data.name in tasks.IMAGES
  if images and config.model.normalization == "batch":
    allowed = [n for n in NORMALIZATIONS if n != "batch"]
    checks.refuse(
      "model.normalization", "batch", f"for images one of {allowed}"
    )


def _check_condition(config, name: str) -> None:
  """Something can vary: classes for their labels, a rate for dropout."""
  vary = config.conditions[name].vary
  images = config.data.name in tasks.IMAGES
  if "labels" in vary and not images:
    checks.refuse(
      f"conditions.{name}.vary",
      vary,
      "without 'labels': clicks have no classes",
    )
  if "dropout" in vary and not config.model.dropout_rate:
    checks.refuse(
      "model.dropout_rate", 0.0, f"above 0 with the condition {name!r}"
    )


def _check_data(config) -> None:
  """The data are there, and hold a batch."""
  data = config.data
  settings.image_counts(config)
  if data.name == "synthetic_ctr":
    checks.positive_int("data.num_train", data.num_train)
    checks.positive_int("data.num_test", data.num_test)
  if data.num_train:
    settings.at_most(config, "batch_size", data.num_train, "data.num_train")
  if data.name in tasks.IMAGES:
    places.data_set("data.name", data.name, data.data_dir)
  elif data.name in tabular.FOLDERS:
    tabular_set = tabular.folder_of(data.name, data.data_dir or None)
    if not tabular_set.is_dir():
      raise ValueError(
        f"data.name={data.name!r} is not allowed here: "
        f"{tabular.absent(data.name, [tabular_set])}"
      )
