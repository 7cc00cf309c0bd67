"""Deep-autoencoder benchmark: LocoProp against first and second order.

`build` makes one run: a method, a seed, a number of epochs. `run` makes the
benchmark: every method for equal epochs, then every method for the seconds
that the reference method took, then a table and a figure.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import stages, study, trained_on
from experiments.locoprop import autoencoder, optimizers, settings, summary
from locojax.core import checks, files
from locojax.data import pipeline
from locojax.methods import locoprop
from locojax.train import (
  distributed,
  experiment,
  flops,
  loop,
  profiling,
  sharding,
  steps,
)

Experiment = experiment.Experiment
check, check_run = settings.check, settings.check_run
# What a benchmark may be taken up with otherwise, and what is not of a run.
_LISTS = ("methods", "seeds", "rate_factors", "equal_seconds")
_NOT_IN_A_RUN = (*_LISTS, "reference")


@trained_on.cached(dict)
def _arrays(items: tuple) -> dict[str, np.ndarray]:
  return autoencoder.load(**dict(items))


def _data(config) -> dict[str, np.ndarray]:
  return _arrays(tuple(sorted(dict(config.data).items())))


def _notebook_schedule(peak: float, steps_per_epoch: int, num_epochs: int):
  """Constant within an epoch: e/5 of the peak, then linear (official code).

  The first epoch has rate 0.
  """

  def schedule(count):
    epoch = count // steps_per_epoch
    decay = 1 - (epoch + 1 - 5) / (num_epochs - 5)
    return peak * jnp.where(epoch < 5, epoch / 5, decay)

  return schedule


def _schedule(config, peak: float, steps_per_epoch: int, num_epochs: int):
  num_steps = steps_per_epoch * num_epochs
  kind = checks.one_of("schedule", config.schedule, ("linear", "notebook"))
  if kind == "notebook":
    return _notebook_schedule(peak, steps_per_epoch, config.schedule_epochs)
  warmup = min(int(config.warmup * num_steps), num_steps - 1)
  return locoprop.linear_warmup_decay(
    peak, warmup_steps=warmup, num_steps=num_steps
  )


def _method(config) -> tuple[str, dict[str, Any]]:
  """Kind and options of `config.method`, as tuned for `config.axis`."""
  table = config.optimizers.to_dict()
  options = dict(checks.lookup("method", config.method, table))
  if checks.one_of("axis", config.axis, ("epochs", "seconds")) == "seconds":
    options |= config.tuned_for_seconds.to_dict().get(config.method, {})
  return options.pop("kind"), options


def build(config) -> Experiment:
  """One run: `config.method` for `config.num_epochs` from `config.seed`."""
  check(config)
  arrays = None
  num_train, num_inputs = config.num_train, config.num_inputs
  if config.needs_data:
    arrays = _data(config)
    num_train, num_inputs = arrays["train"].shape
  task = autoencoder.task(num_inputs=num_inputs, **config.model)
  per_epoch = pipeline.steps_per_epoch(num_train, config.batch_size)
  kind, options = _method(config)
  peak = options.pop("learning_rate") * config.rate_factor
  tx, step = optimizers.make(
    kind,
    schedule=_schedule(config, peak, per_epoch, config.num_epochs),
    loss_fn=task.loss,
    sampled_loss_fn=task.sampled_loss,
    transfers=task.transfers,
    options=options,
  )

  def init(key):
    init_key, run_key = jax.random.split(key)
    return steps.init_state(task.init(init_key), tx, key=run_key)

  shape = (config.batch_size, num_inputs)
  batch_shapes = {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}
  return Experiment(
    init=init,
    step=step,
    batches=_batches(config, arrays),
    num_steps=per_epoch * config.num_epochs,
    batch_shapes=batch_shapes,
    rules=tuple((r, jax.P(*spec)) for r, spec in config.rules),
    evals=_evals(config, task, arrays, per_epoch),
    examples_per_step=config.batch_size,
    flops_per_step=_flops(init, step, batch_shapes),
  )


def _batches(config, arrays):
  """Batches of images; made when the loop asks, so a check needs no data."""

  def start_at(start):
    return pipeline.array_batches(
      {"image": arrays["train"]},
      batch_size=config.batch_size,
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )(start)

  return start_at


def _evals(config, task, arrays, per_epoch):
  if arrays is None:
    return {}
  every = max(1, config.num_epochs // config.num_evals) * per_epoch
  run = autoencoder.evaluator(task, arrays, chunk=1000)
  return {"eval": experiment.Eval(every, run)}


def _flops(init, step, batch_shapes) -> float | None:
  """Analytic operations of a step, where MFU can be told."""
  if profiling.peak_flops(jax.devices()[0].device_kind) is None:
    return None
  state = jax.eval_shape(init, jax.random.key(0))
  return flops.count_flops(step, state, batch_shapes)


def fit(config, workdir: pathlib.Path) -> Mapping[str, Any]:
  """Trains one run; its `result.json`, or the reason why it diverged."""
  found = stages.finished(config, workdir, may_differ=_NOT_IN_A_RUN)
  if found is not None:
    return found
  made = build(config)
  return stages.fit_or_diverge(
    made,
    config,
    workdir,
    log_every=max(1, made.num_steps // 20),
    save_every=config.save_every,
    keep=config.keep,
    may_differ=_NOT_IN_A_RUN,
  )


def _rate_factors(made: study.Study) -> dict[str, float]:
  """By method: of `config.rate_factors`, the one with the least train loss."""
  config = made.config
  chosen = dict.fromkeys(config.methods, config.rate_factor)
  for method in config.methods if config.rate_factors else ():
    losses = {}
    for factor in config.rate_factors:
      one = stages.changed(
        config, method=method, rate_factor=factor, num_evals=1
      )
      where = made.workdir / "factors" / method / f"{factor:g}"
      name = f"tuning {method}, learning rate x {factor:g}"
      result = made.cell(name, where, functools.partial(fit, one, where))
      values = result.get("values", {summary.LOSS: math.inf})
      losses[factor] = values[summary.LOSS]
    chosen[method] = min(losses, key=losses.get)
    stages.say(f"{method}: learning rate x {chosen[method]:g} of {losses}")
  return chosen


def _fit_all(made: study.Study, axis: str, epochs: Mapping[str, int], factors):
  """One run for each method and seed; seconds per epoch by method."""
  cost: dict[str, list[float]] = {}
  for method, num_epochs in epochs.items():
    for seed in made.config.seeds:
      one = stages.changed(
        made.config,
        method=method,
        seed=seed,
        num_epochs=num_epochs,
        axis=axis,
        rate_factor=factors[method],
      )
      where = made.workdir / axis / method / f"seed_{seed}"
      name = f"equal {axis}: {method}, seed {seed}, {num_epochs} epochs"
      result = made.cell(name, where, functools.partial(fit, one, where))
      if "diverged" not in result:
        cost.setdefault(method, []).append(result["seconds"] / num_epochs)
  return {m: float(np.median(v)) for m, v in cost.items()}


def _equal_seconds(config, cost: Mapping[str, float]) -> dict[str, int]:
  """Epochs that each method can do in the time of the reference method."""
  reference = config.reference
  if reference not in cost:
    raise ValueError(
      f"reference={reference!r} is not allowed: it must be a method that ran; "
      f"those are {sorted(cost)}."
    )
  budget = cost[reference] * config.num_epochs
  return {m: max(1, round(budget / c)) for m, c in cost.items()}


def _num_cells(config) -> int:
  """Runs of the benchmark: tuning, equal epochs, equal seconds."""
  rounds = len(config.seeds) * (2 if config.equal_seconds else 1)
  return len(config.methods) * (len(config.rate_factors) + rounds)


def run(config, workdir: str) -> dict[str, Any]:
  """The benchmark, or one run if `config.methods` is empty.

  Resumes: finished runs are not run again.

  Returns:
    The rows of the table and the paths of what was written.
  """
  if not config.methods:
    return dict(fit(config, pathlib.Path(workdir).absolute()))
  for method in config.methods:
    checks.one_of("methods", method, config.optimizers.to_dict())
  cells = _num_cells(config)
  with study.opened(
    config, workdir, num_cells=cells, may_differ=_LISTS
  ) as made:
    epochs = dict.fromkeys(config.methods, config.num_epochs)
    factors = _rate_factors(made)
    cost = _fit_all(made, "epochs", epochs, factors)
    if config.equal_seconds:
      plan = _plan(made.workdir, _equal_seconds(config, cost))
      made.skip((len(config.methods) - len(plan)) * len(config.seeds))
      _fit_all(made, "seconds", plan, factors)
    return summary.write(made)


def _plan(workdir: pathlib.Path, plan: dict[str, int]) -> dict[str, int]:
  """The plan as first made, so that a resumed benchmark keeps to it."""
  path = workdir / "equal_seconds.json"
  known = files.read_json(path) if path.exists() else {}
  plan = {m: known.get(m, n) for m, n in plan.items()}
  if distributed.is_main():
    files.write_json(path, {**known, **plan})
  distributed.sync("equal seconds")
  known = files.read_json(path)
  return {m: known[m] for m in plan}


def evaluate(config, workdir: str) -> dict[str, float]:
  """Evaluates the newest checkpoint of one run."""
  return loop.evaluate(
    build(config),
    workdir,
    key=jax.random.key(config.seed),
    mesh=sharding.make_mesh(dict(config.mesh)),
  )
