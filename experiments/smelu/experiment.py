"""Prediction difference against loss, by activation and source of randomness.

`build` makes one point: a setting (activation, ensemble, warm start) under a
condition (what varies between replicas, how far the data are shuffled). `run`
tunes the learning rate of each activation on validation loss, trains the
replicas of all points, keeps what they predict, and writes table and figure.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.common import stages, study
from experiments.smelu import plane, settings, tasks
from locojax.core import checks, files, types
from locojax.data import pipeline
from locojax.train import (
  distributed,
  experiment,
  optimizers,
  replicas,
  steps,
)

Experiment = experiment.Experiment
Setting, parse_setting = settings.Setting, settings.parse_setting
check, check_run = settings.check, settings.check_run
PREDICTIONS = "predictions.npz"
# What does not change a run: which others there are.
_LISTS = ("grid",)


def _task(config, activation: str) -> tasks.Task:
  task = tasks.make(dict(config.data), dict(config.model), activation)
  return tasks.validation(task, config.validation) if config.tuning else task


def _condition(config) -> dict[str, Any]:
  table = {k: dict(v) for k, v in config.conditions.items()}
  return checks.lookup("condition", config.condition, table)


def _rate(config, activation: str) -> float:
  """The learning rate: the config's, else the tuned one of the activation."""
  if config.learning_rate:
    return config.learning_rate
  found = dict(config.tuned).get(activation.replace(".", "_"))
  if found is None:
    raise ValueError(
      f"config.learning_rate=0 is not allowed for {activation!r}, which "
      "config.tuned does not have: give a rate, or let `run` tune one."
    )
  return found


def build(config, warm: types.PyTree | None = None) -> Experiment:
  """The replicas of one point: `config.setting` under `config.condition`.

  Args:
    config: of `configs/plane.py`.
    warm: parameters that all replicas start from, for a warm start.
  """
  check(config)
  setting = parse_setting(config.setting)
  task = _task(config, setting.activation)
  plain = _plain(config, setting, task, warm)
  count = config.num_replicas * setting.ensemble
  if count == 1:
    return plain
  condition = _condition(config)
  return replicas.from_experiment(
    plain,
    num_replicas=count,
    vary=tuple(condition["vary"]),
    batches=_batches(config, task, condition["window"]),
    order_seed=config.seed,
    rounding_ulps=config.rounding_ulps,
    num_classes=task.num_classes or None,
  )


def _num_steps(config, task: tasks.Task) -> int:
  if not task.train:
    return config.num_steps
  num = len(task.train["label"])
  return config.num_epochs * pipeline.steps_per_epoch(num, config.batch_size)


def _plain(config, setting, task: tasks.Task, warm) -> Experiment:
  """One model."""
  num_steps = _num_steps(config, task)
  tx = optimizers.make(
    config.optimizer,
    learning_rate=_rate(config, setting.activation),
    **dict(config.optimizer_options),
  )

  def init(key):
    init_key, run_key = jax.random.split(key)
    params, model_state = task.init(init_key)
    params = params if warm is None else warm
    return steps.init_state(params, tx, key=run_key, model_state=model_state)

  seeded = _batches(config, task, _condition(config)["window"])
  return Experiment(
    init=init,
    step=steps.from_loss(task.loss, tx),
    batches=seeded(config.seed) if task.train else lambda start: iter(()),
    num_steps=num_steps,
    batch_shapes=task.batch_shapes(config.batch_size),
    rules=task.rules,
    examples_per_step=config.batch_size,
  )


def _batches(config, task: tasks.Task, window) -> Callable | None:
  """`seed -> start -> batches`, shuffled within the window."""
  if not task.train:
    return None
  return lambda seed: pipeline.array_batches(
    task.train,
    batch_size=config.batch_size,
    seed=seed,
    window=window,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def _fit(config, folder: pathlib.Path, warm=None) -> types.TrainState:
  """Trains a point, or finds it trained; its final state."""
  made = build(config, warm)
  return stages.fit(
    made,
    config,
    folder,
    log_every=max(1, made.num_steps // 4),
    may_differ=_LISTS,
  )


def _predictions(config, state, task: tasks.Task) -> np.ndarray:
  """`[models, N]` or `[models, N, K]` on the test set."""
  batches = pipeline.padded_batches(
    {k: v for k, v in task.test.items() if k != "label"},
    batch_size=config.eval_batch_size,
  )
  if state.key.ndim == 0:
    run = jax.jit(task.predict)
    keep = lambda batch: np.asarray(batch["mask"]) != 0
    parts = [
      np.asarray(run(state.params, state.model_state, b))[keep(b)]
      for b in batches
    ]
    return np.concatenate(parts)[None]
  out = replicas.predictor(
    lambda s, b: task.predict(s.params, s.model_state, b)
  )(state, batches)
  if "labels" in _condition(config)["vary"]:
    orders = replicas.label_permutations(state, num_classes=task.num_classes)
    out = replicas.unpermute(out, orders)
  return out


def _predicted(config, folder: pathlib.Path, warm=None) -> np.ndarray:
  """The predictions of a point: from its file, else after training it."""
  path = folder / PREDICTIONS
  if not path.exists() or (
    stages.finished(config, folder, may_differ=_LISTS) is None
  ):
    state = _fit(config, folder, warm)
    task = _task(config, parse_setting(config.setting).activation)
    found = _predictions(config, state, task)
    if distributed.is_main():
      arrays = {"replicas": found, "labels": task.test["label"]}
      if "query" in task.extra:
        arrays["query_ids"] = task.extra["query"]
      files.write_arrays(path, **arrays)
    distributed.sync("predictions")
  return files.read_arrays(path)["replicas"]


def _loss(preds: np.ndarray, labels: np.ndarray) -> float:
  return float(plane.log_losses(preds, labels).mean())


def _tune(made: study.Study, activation: str) -> float:
  """The learning rate with the least validation loss of a single model."""
  found = {}
  for rate in made.config.learning_rates:
    one = stages.changed(
      made.config,
      setting=activation,
      condition=made.config.tuning_condition,
      num_replicas=1,
      learning_rate=rate,
      tuning=True,
    )
    name = plane.folder_name(activation)
    folder = made.workdir / "tuning" / name / f"{rate:g}"
    preds = made.cell(
      f"tuning {activation}, learning rate {rate:g}",
      folder,
      functools.partial(_predicted, one, folder),
    )
    loss = _loss(preds, _task(one, activation).test["label"])
    found[rate] = loss if np.isfinite(loss) else np.inf
  best = min(found, key=found.get)
  stages.say(f"  {activation}: learning rate {best:g} of {found}")
  return best


def _activations(config) -> list[str]:
  """All activations of the grid, each once."""
  names = [parse_setting(s).activation for s in plane.settings(config)]
  return list(dict.fromkeys(names))


def _tuned(made: study.Study) -> dict[str, float]:
  """The learning rate of each activation; told in `learning_rates.json`."""
  given = made.config.learning_rate
  known = {
    name: given or _tune(made, name) for name in _activations(made.config)
  }
  if distributed.is_main():
    files.write_json(made.workdir / "learning_rates.json", known)
  return known


def _warm_params(config, workdir: pathlib.Path):
  """Parameters of one model trained on the same data, for warm starts."""
  one = stages.changed(config, num_replicas=1, setting=_cold(config.setting))
  folder = workdir / "warm" / plane.folder_name(one.setting)
  return _fit(one, folder).params


def _cold(setting: str) -> str:
  return setting.partition("+")[0].partition("*")[0]


def _point(config, workdir: pathlib.Path) -> None:
  """Trains one point and keeps its predictions."""
  folder = plane.folder(workdir, config.condition, config.setting)
  warm = None
  if parse_setting(config.setting).warm and not (folder / PREDICTIONS).exists():
    warm = _warm_params(config, workdir)
  _predicted(config, folder, warm)


def _num_cells(config) -> int:
  """Runs of a study: of tuning, and points of the grid."""
  tuning = 0
  if not config.learning_rate:
    tuning = len(_activations(config)) * len(config.learning_rates)
  return tuning + len(plane.points(config))


def run(config, workdir: str) -> dict[str, Any]:
  """All points of `config.grid`, then table and figure; resumes.

  Returns:
    The rows of the table and the paths of what was written.
  """
  with study.opened(
    config, workdir, num_cells=_num_cells(config), may_differ=_LISTS
  ) as made:
    rates = _tuned(made)
    for condition, setting in plane.points(config):
      rate = rates[parse_setting(setting).activation]
      one = stages.changed(
        config, condition=condition, setting=setting, learning_rate=float(rate)
      )
      made.cell(
        f"{condition}, {setting}",
        plane.folder(made.workdir, condition, setting),
        functools.partial(_point, one, made.workdir),
      )
    return plane.write(made, rates)


def evaluate(config, workdir: str) -> Mapping[str, Any]:
  """The rows of the table of a finished folder, from its predictions."""
  return {"rows": plane.rows(config, pathlib.Path(workdir), {})}


def predict(config, folder: str | pathlib.Path) -> None:
  """Writes what the final checkpoint of a run folder predicts, beside it.

  Args:
    config: that of the folder, as in its `config.json`.
    folder: of a finished run.

  Raises:
    ValueError: the run is not finished.
  """
  folder = pathlib.Path(folder).absolute()
  if not (folder / "result.json").exists():
    raise ValueError(f"{folder} has no result.json: its run is not finished.")
  _predicted(config, folder)
