"""From a config to its experiment; no flags, so that anything may import it."""

from __future__ import annotations

import importlib
from typing import Any

from locojax.core import checks

CHECK_SETTINGS = (
  "topology",
  "hbm_bytes",
  "num_devices",
  "allowed_collectives",
)


def module_of(config: Any) -> Any:
  """The experiment module that a config names.

  Raises:
    ValueError: it names none, or one without `build` and `run`.
  """
  if not config.get("experiment"):
    raise ValueError(
      "config.experiment is missing: it must name a module that has `build` "
      "and `run`, such as 'experiments.locoprop.experiment'."
    )
  try:
    module = importlib.import_module(config.experiment)
  except ModuleNotFoundError as error:
    if not config.experiment.startswith(str(error.name)):
      raise
    raise ValueError(
      f"config.experiment={config.experiment!r} is not allowed: {error}."
    ) from error
  missing = [name for name in ("build", "run") if not hasattr(module, name)]
  if missing:
    raise ValueError(
      f"config.experiment={config.experiment!r} is not allowed: the module "
      f"has no {' and no '.join(missing)}."
    )
  return module


def check_report(config: Any) -> Any:
  """What `--mode=check` finds of a config, a `locojax.train.check.Report`.

  Raises:
    ValueError: a setting of `config.check` that there is not; and all of
      `locojax.train.check.run`.
  """
  from locojax.train import check  # only this mode compiles for other devices

  module = module_of(config)
  settings = dict(config.get("check", {}))
  for name in settings:
    checks.one_of("config.check", name, CHECK_SETTINGS)
  return check.run(
    module.build(config),
    axes=dict(config.mesh),
    topology=settings.pop("topology", None) or None,
    **{name: value or None for name, value in settings.items()},
  )
