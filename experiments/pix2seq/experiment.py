"""Object detection as a sequence of tokens, and what it is compared to.

`build` makes one run: a method (`CONDITIONS`) with a seed, or the pre-training
on canvases that it begins with. `run` trains all methods over all seeds, writes
the detections of each as COCO's results, asks the finished models in other ways
(`config.sweeps`), and writes table and figures (`report.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common import programs, stages, study
from experiments.common import settings as common_settings
from experiments.pix2seq import (
  asking,
  conditions,
  detectors,
  networks,
  report,
  scoring,
  sets,
  settings,
)
from locojax.core import types
from locojax.data import box_transforms, pipeline
from locojax.methods import pix2seq
from locojax.train import distributed, experiment, steps

Experiment = experiment.Experiment
check, check_run = settings.check, settings.check_run
# What does not change a run: which others there are, who reads its data, and
# what it is asked later.
_NOT_IN_A_RUN = (
  *("methods", "seeds", "num_workers"),
  *("sweeps", "num_pictures", "score_shown"),
)
_KEYS = ("image", "boxes", "labels", "valid")
# What both stages have of their own.
_OF_A_STAGE = ("num_steps", "batch_size", "learning_rate", "warmup_steps")


def data_of(config) -> dict[str, Any]:
  """The `data` of a run: that of the config, or canvases to pre-train on."""
  data = config.data.to_dict()
  if config.stage == "detect":
    return data
  pretrain = config.pretrain
  name = data["name"] if data["name"] in sets.CANVASES else "shapes"
  return {
    **data,
    "name": name,
    "num_train": pretrain.num_images,
    "objects": tuple(pretrain.objects),
    "sides": tuple(pretrain.sides),
    "missing": 0.0,
    "num_test": min(data["num_test"], 100),
  }


def load(config) -> sets.Sets:
  """The sets of a run."""
  zoom = config.augment.high if config.stage == "detect" else 1.0
  return sets.load(data_of(config), zoom=zoom)


def num_classes(config) -> int:
  """Classes of the vocabulary: of the data, and of canvases to begin with."""
  if config.data.num_classes:
    return config.data.num_classes
  found = [len(load(stages.changed(config, stage="detect")).classes)]
  if config.pretrain.num_steps:
    before = stages.changed(config, stage="pretrain")
    found.append(sets.canvas_classes(data_of(before)))
  return max(found)


def _settings(config) -> Mapping[str, Any]:
  """Steps, batch, rate and warm-up of a run."""
  place = config if config.stage == "detect" else config.pretrain
  return {name: place[name] for name in _OF_A_STAGE}


def _optimizer(config):
  of, options = _settings(config), config.optimizer.to_dict()
  options["clip_norm"] = options["clip_norm"] or None
  return pix2seq.pix2seq_adamw(
    of["learning_rate"], of["num_steps"], of["warmup_steps"], **options
  )


def _pick(example: Mapping[str, Any], rng=None) -> dict[str, Any]:
  del rng
  return {k: example[k] for k in _KEYS}


def batches(config, start: int):
  """Augmented batches from `start` on."""
  data, augment = data_of(config), config.augment
  found, side = load(config), config.data.image_size
  canvases = config.stage == "pretrain"
  change = box_transforms.training(
    (side, side),
    networks.sequence(config)["max_objects"],
    low=1.0 if canvases else augment.low,
    high=1.0 if canvases else augment.high,
    flip_probability=augment.flip,
    colour_strength=augment.colour,
    missing=data["missing"],
  )
  return pipeline.batches(
    found.train,
    batch_size=_settings(config)["batch_size"],
    seed=config.seed,
    random_map=box_transforms.chain(change, _pick),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    num_workers=config.num_workers,
  )(start)


def _shapes(config):
  rows, side = _settings(config)["batch_size"], config.data.image_size
  num = networks.sequence(config)["max_objects"]
  return {
    "image": jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8),
    "boxes": jax.ShapeDtypeStruct((rows, num, 4), jnp.float32),
    "labels": jax.ShapeDtypeStruct((rows, num), jnp.int32),
    "valid": jax.ShapeDtypeStruct((rows, num), jnp.bool_),
  }


def build(config) -> Experiment:
  """One run: `config.method` with `config.seed`, or its pre-training."""
  check(config)
  detector = detectors.make(config, num_classes(config))
  tx, of = _optimizer(config), _settings(config)

  def init(key):
    begin_key, run_key = jax.random.split(key)
    params, model_state = detector.begin(begin_key)
    return steps.init_state(params, tx, key=run_key, model_state=model_state)

  evals = {}
  if config.needs_data:
    every = max(1, of["num_steps"] // config.num_evals)
    asker = detectors.Asker(config, detector)
    run_eval = functools.partial(_evaluate, config, asker)
    evals["test"] = experiment.Eval(every, run_eval)
  return Experiment(
    init=init,
    step=steps.from_loss(detector.loss, tx),
    batches=functools.partial(batches, config),
    num_steps=of["num_steps"],
    batch_shapes=_shapes(config),
    evals=evals,
    examples_per_step=of["batch_size"],
  )


def build_decoding(config) -> Experiment:
  """Detection itself as a step that changes nothing, for `--mode=check`.

  Its batch is that of evaluation, and what it finds are its metrics.
  """
  check(config)
  common_settings.divides_mesh(config, "eval_batch_size")
  detector = detectors.make(config, num_classes(config))
  asked = detectors.Asker(config, detector).default()
  rows, side = config.eval_batch_size, config.data.image_size

  def init(key):
    begin_key, run_key = jax.random.split(key)
    params, model_state = detector.begin(begin_key)
    return types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      model_state=model_state,
      opt_state=(),
      key=run_key,
    )

  def step(state, batch):
    found = detector.find(
      state.params,
      state.model_state,
      batch["image"],
      batch["row"],
      state.step_key(),
      asked,
    )
    out = {"loss": -found.scores.sum(), **found._asdict()}
    return dataclasses.replace(state, step=state.step + 1), out

  return Experiment(
    init=init,
    step=step,
    batches=lambda start: iter(()),
    num_steps=1,
    batch_shapes={
      "image": jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8),
      "row": jax.ShapeDtypeStruct((rows,), jnp.int32),
    },
    examples_per_step=rows,
  )


def checked(config) -> dict[str, Experiment]:
  """What `--mode=check` looks at besides the step, by name."""
  return {"detection": build_decoding(config)}


def _evaluate(config, asker, state) -> dict[str, float]:
  found = load(config)
  dets = asking.detections(config, found, asker.on(state))
  return scoring.score(found.truth, dets)


def _begin(config, workdir: pathlib.Path):
  """`fresh state -> state` with the weights of the pre-training, or None."""
  kept = conditions.CONDITIONS[config.method].pretrained
  if config.stage != "detect" or not config.pretrain.num_steps or not kept:
    return None

  def begin(fresh: types.TrainState) -> types.TrainState:
    before = pretraining(config)
    state = fit_state(before, report.pretraining(workdir, config.method))
    return fresh.replace(params=state.params, model_state=state.model_state)

  return begin


def pretraining(config):
  """The config of the pre-training of a method, one for all seeds.

  What follows it may be changed without another pre-training.
  """
  own = {name: config.pretrain[name] for name in _OF_A_STAGE}
  return stages.changed(config, stage="pretrain", seed=config.data.seed, **own)


def fit_state(config, folder: pathlib.Path, *, begin=None) -> types.TrainState:
  """One run to its end; the final state of a finished one.

  Args:
    config: of the run.
    folder: of the run.
    begin: as in `loop.fit`.

  Raises:
    ValueError: the folder has a run of another config.
  """
  return stages.fit(
    build(config),
    config,
    folder,
    begin=begin,
    log_every=config.log_every,
    save_every=config.save_every,
    may_differ=_NOT_IN_A_RUN,
  )


def fit(config, folder: pathlib.Path, *, begin=None) -> Mapping[str, Any]:
  """One run; its result, or why it diverged.

  Raises:
    ValueError: the folder has a finished run of another config.
  """
  return stages.fit_once(
    build, config, folder, begin=begin, may_differ=_NOT_IN_A_RUN
  )


def _pretrained(config) -> list[str]:
  """Methods of a study that begin with a pre-training."""
  if not config.pretrain.num_steps:
    return []
  return [m for m in config.methods if conditions.CONDITIONS[m].pretrained]


def _cell(made: study.Study, method: str, seed: int) -> None:
  """Trains a method with a seed, and asks what came out."""
  one = stages.changed(made.config, method=method, seed=seed)
  where = report.folder(made.workdir, method, seed)
  begin = _begin(one, made.workdir)
  train = functools.partial(fit, one, where, begin=begin)
  found = made.cell(f"{method}, seed {seed}", where, train)
  if "diverged" not in found:
    final = functools.partial(fit_state, one, where)
    asking.ask(one, where, final, load(one), num_classes(one))


def run(config, workdir: str) -> dict[str, Any]:
  """All methods over all seeds; resumes.

  Returns:
    The rows of the table and the paths of what was written.
  """
  before = _pretrained(config)
  cells = len(config.methods) * len(config.seeds) + len(before)
  settings.check_sets(config, load(config))
  with (
    study.opened(
      config, workdir, num_cells=cells, may_differ=_NOT_IN_A_RUN
    ) as made,
    programs.kept(made.workdir),
  ):
    for method in before:
      one = pretraining(stages.changed(config, method=method))
      where = report.pretraining(made.workdir, method)
      train = functools.partial(fit, one, where)
      made.cell(f"pre-training of {method}", where, train, typical=False)
    for method in config.methods:
      for seed in config.seeds:
        _cell(made, method, seed)
    distributed.sync("asked")
    return report.write(made, load(config), num_classes(config))
