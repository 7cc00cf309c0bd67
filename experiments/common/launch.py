"""From a config to its experiment; no flags, so that anything may import it."""

from __future__ import annotations

import importlib
import pathlib
from typing import Any

from experiments.common import places, settings, stages
from locojax.core import checks
from locojax.train import sharding

MODES = ("run", "check", "eval")
CHECK_SETTINGS = tuple(settings.CHECK_RULES)


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
  checks.text("config.experiment", config.experiment)
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


def check_settings(
  config: Any, *, mode: str = "run", num_devices: int | None = None
) -> None:
  """Refuses bad settings before anything is written, compiled or trained.

  What holds for all experiments, then the `check(config)` of the module, and,
  where something is to be trained, its `check_run(config)`.

  Args:
    config: of an experiment; it is not changed.
    mode: `run`, `check` or `eval`; only `run` needs what a whole study needs.
    num_devices: of the mesh, as in `jax.device_count()` of a process that has
      joined the others; None leaves an axis of -1 open.

  Raises:
    ValueError: names the key as the user wrote it, its value, what is allowed.
    ImportError: a package that the settings need is missing.
  """
  checks.one_of("mode", mode, MODES)
  module = module_of(config)
  settings.check(config, settings.COMMON)
  if config.get("results"):
    places.results("results", config.results)
  if num_devices is not None:
    config = stages.changed(config, mesh=_mesh(config, num_devices))
  if hasattr(module, "check"):
    module.check(config)
  if mode == "run" and hasattr(module, "check_run"):
    module.check_run(config)


def _mesh(config: Any, num_devices: int) -> dict[str, int]:
  """The sizes of the mesh axes, none of them -1."""
  try:
    return sharding.resolve_axes(dict(config.mesh), num_devices)
  except ValueError as error:
    given = dict(config.mesh)
    raise ValueError(f"mesh={given!r} is not allowed: {error}") from error


def check_workdir(path: str, *, mode: str = "run") -> None:
  """Refuses a run folder that cannot be one; leaves nothing behind.

  Args:
    path: of `--workdir`.
    mode: `eval` reads a folder that is there; `run` makes or writes one.

  Raises:
    ValueError: it is a file or missing, or it, or what it would be made in,
      cannot be written.
  """
  folder = pathlib.Path(path).absolute()
  if mode == "eval":
    if not folder.is_dir():
      checks.refuse("--workdir", str(path), "the folder of a run")
    return
  places.writable("--workdir", str(path), folder)


def check_report(config: Any) -> Any:
  """What `--mode=check` finds of a config, a `locojax.train.check.Report`.

  Raises:
    ValueError: a setting of `config.check` that there is not; and all of
      `locojax.train.check.run`.
  """
  return _check_report(config, module_of(config).build(config))


def more_check_reports(config: Any) -> dict[str, Any]:
  """The same of what the module has besides its step, by name.

  A module may have `checked(config) -> {name: Experiment}`: programs that are
  as large as a step, such as generation, in the form of one.

  Raises:
    ValueError: as `check_report`.
  """
  checked = getattr(module_of(config), "checked", None)
  found = {} if checked is None else checked(config)
  return {name: _check_report(config, made) for name, made in found.items()}


def _check_report(config: Any, made: Any) -> Any:
  from locojax.train import check  # only this mode compiles for other devices

  settings = dict(config.get("check", {}))
  for name in settings:
    checks.one_of("config.check", name, CHECK_SETTINGS)
  return check.run(
    made,
    axes=dict(config.mesh),
    topology=settings.pop("topology", None) or None,
    **{name: value or None for name, value in settings.items()},
  )
