"""What the settings of Two Moons may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.ciw.baselines import losses
from experiments.common import settings
from locojax.core import checks
from locojax.methods.ciw import loss as ciw_loss

_INSTANCE = settings.group(
  {
    "lam": checks.positive,
    **dict.fromkeys(("divergence", "alpha", "normalize"), settings.anything),
    "groups": checks.positive_int,
  },
  required=("lam",),
)
_CLASSES = settings.group(
  {"divergence": settings.anything, "gamma": checks.nonnegative},
  required=("gamma",),
)
METHOD_OPTIONS = ("loss", "loss_options", "instance", "classes")
RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "data.num_train": settings.within(2, 2**31, whole=True),
  "data.num_test": settings.within(2, 2**31, whole=True),
  "data.noise": checks.nonnegative,
  "data.flips": settings.share,
  "hidden": checks.sizes,
  "batch_size": checks.positive_int,
  "num_epochs": checks.positive_int,
  "learning_rate": checks.positive,
  "momentum": settings.decay,
  "burnin_epochs": checks.nonnegative_int,
  "anneal_epochs": checks.nonnegative_int,
  "table": settings.table(
    settings.group(
      {
        "loss": settings.choice(losses.LOSSES),
        "loss_options": settings.table(settings.anything, least=0),
        "instance": settings.either({}, _INSTANCE),
        "classes": settings.either({}, _CLASSES),
      }
    )
  ),
  "methods": settings.several(checks.text, what="methods"),
  "method": checks.text,
  "burnin_method": checks.text,
  "burnin_sweep": settings.several(
    checks.nonnegative_int, least=0, what="epochs"
  ),
  "eval_every": checks.positive_int,
  "pictured": settings.several(checks.text, least=0, what="methods"),
  "pictured_replica": checks.nonnegative_int,
  "num_frames": checks.nonnegative_int,
  "num_replicas": checks.positive_int,
  "save_every": checks.nonnegative_int,
}


def check(config) -> None:
  """Refuses what Two Moons cannot run with.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  settings.check(config, RULES)
  num_train = config.data.num_train
  settings.at_most(config, "batch_size", num_train, "data.num_train")
  table = config.table.to_dict()
  checks.one_of("method", config.method, table)
  for key in ("methods", "pictured"):
    known = settings.several(settings.choice(table), least=0)
    known(key, tuple(config[key]))
  checks.one_of("burnin_method", config.burnin_method, table)
  for name, options in table.items():
    _check_method(f"table.{name}", options)
  if config.pictured_replica >= config.num_replicas:
    checks.refuse(
      "pictured_replica",
      config.pictured_replica,
      f"below num_replicas={config.num_replicas}",
    )


def _check_method(key: str, options: Mapping[str, Any]) -> None:
  """One entry of the table; makes its loss and weights, which check more."""
  loss = options.get("loss", "cross_entropy")
  given = options.get("loss_options", {})
  settings.made(f"{key}.loss_options", losses.make, loss, **given)
  for name, make in (
    ("instance", ciw_loss.InstanceConfig),
    ("classes", ciw_loss.ClassConfig),
  ):
    if options.get(name):
      settings.made(f"{key}.{name}", make, **options[name])


def check_run(config) -> None:
  """What the study needs besides: what is drawn is trained.

  Raises:
    ValueError: names the key.
  """
  known = settings.several(settings.choice(config.methods), least=0)
  known("pictured", tuple(config.pictured))
  if config.burnin_sweep:
    checks.one_of("burnin_method", config.burnin_method, config.methods)
