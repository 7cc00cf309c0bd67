"""What the settings of the deep-autoencoder benchmark may be."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from experiments.common import datasets, places, settings
from experiments.locoprop import autoencoder, optimizers
from locojax.core import checks
from locojax.methods import locoprop

SCHEDULES = ("linear", "notebook")
AXES = ("epochs", "seconds")
# The schedule of the official code divides by the epochs after these.
_NOTEBOOK_EPOCHS = 5

RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "data.name": settings.choice(("curves", *datasets.DATASETS)),
  "data.size": checks.positive_int,
  "data.num_train": checks.positive_int,
  "data.num_test": checks.positive_int,
  "data.data_dir": places.there,
  "needs_data": checks.boolean,
  "num_train": checks.positive_int,
  "num_inputs": checks.positive_int,
  "model.hidden": checks.sizes,
  "model.code_size": checks.positive_int,
  "model.activation": settings.choice(autoencoder.ACTIVATIONS),
  "batch_size": checks.positive_int,
  "num_epochs": checks.positive_int,
  "num_evals": checks.positive_int,
  "schedule": settings.choice(SCHEDULES),
  "warmup": settings.share,
  "schedule_epochs": checks.positive_int,
  "optimizers": settings.table(settings.anything),
  "tuned_for_seconds": settings.table(settings.anything, least=0),
  "rate_factor": checks.positive,
  "rate_factors": settings.several(checks.positive, least=0),
  "axis": settings.choice(AXES),
  "methods": settings.several(checks.text, least=0, what="methods"),
  "method": checks.text,
  "reference": checks.text,
  "equal_seconds": checks.boolean,
  "save_every": checks.nonnegative_int,
}


def check(config) -> None:
  """Refuses what the benchmark cannot run with.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  settings.check(config, RULES)
  _check_data(config)
  _check_methods(config)
  for name, options in config.optimizers.to_dict().items():
    _check_optimizer(f"optimizers.{name}", options)
  for name, changes in config.tuned_for_seconds.to_dict().items():
    table = config.optimizers.to_dict()
    checks.one_of("name in tuned_for_seconds", name, table)
    _check_optimizer(f"tuned_for_seconds.{name}", {**table[name], **changes})
  if config.schedule == "notebook":
    _check_notebook(config)


def check_run(config) -> None:
  """What training needs besides: data.

  Raises:
    ValueError: names the key.
  """
  settings.must_read_data(config)


def _check_data(config) -> None:
  data, num_train = config.data, config.num_train
  if config.needs_data:
    num_train = data.num_train
    settings.image_counts(config)
    if data.name != "curves":
      settings.image_sides(config, "data.size", settings.SIDES[data.name])
      places.data_set("data.name", data.name, data.data_dir)
  settings.at_most(config, "batch_size", num_train, "the training examples")
  settings.divides_mesh(config, "batch_size")


def _check_methods(config) -> None:
  table = config.optimizers.to_dict()
  checks.one_of("method", config.method, table)
  known = settings.choice(table)
  settings.several(known, least=0)("methods", tuple(config.methods))
  if config.methods and config.equal_seconds:
    checks.one_of("reference", config.reference, config.methods)


def _check_optimizer(key: str, options: Mapping[str, Any]) -> None:
  """One entry of the table: its kind and the options of that kind."""
  settings.group(
    {**dict.fromkeys(options, settings.anything)},
    required=("kind", "learning_rate"),
  )(key, options)
  options = dict(options)
  kind = settings.choice(optimizers.KINDS)(f"{key}.kind", options.pop("kind"))
  checks.positive(f"{key}.learning_rate", options.pop("learning_rate"))
  if kind in (*optimizers.FIRST_ORDER, "muon"):
    settings.optimizer_options(key, kind, options)
  if kind == "locoprop":
    _check_inner(key, options)
  settings.made(key, _made, kind, **options)


def _no_loss(*args):
  """Stands for a loss where only the settings are looked at."""
  raise AssertionError(
    "an optimiser was made to check its settings, not to run"
  )


def _made(kind: str, **options: Any) -> None:
  """Makes the optimiser, which checks what its kind takes."""
  optimizers.make(
    kind,
    schedule=lambda count: 0.0,
    loss_fn=_no_loss,
    sampled_loss_fn=_no_loss,
    transfers={".*": "tanh"},
    options=options,
  )


def _check_inner(key: str, options: Mapping[str, Any]) -> None:
  """The inner optimiser, which is only made with the parameters."""
  name = options.get("inner", "rmsprop")
  inner = checks.lookup(f"{key}.inner", name, locoprop.INNER)
  given = options.get("inner_options") or {}
  settings.numbers(f"{key}.inner_options", given)
  settings.made(f"{key}.inner_options", functools.partial(inner, 1.0), **given)


def _check_notebook(config) -> None:
  """Its rate is zero at the end of `schedule_epochs` and negative after it."""
  if config.schedule_epochs <= _NOTEBOOK_EPOCHS:
    checks.refuse(
      "schedule_epochs",
      config.schedule_epochs,
      f"above {_NOTEBOOK_EPOCHS} with schedule='notebook'",
    )
  why = "the schedule_epochs of schedule='notebook'"
  settings.at_most(config, "num_epochs", config.schedule_epochs, why)
  if config.methods and config.equal_seconds:
    checks.refuse("equal_seconds", True, "False with schedule='notebook'")
