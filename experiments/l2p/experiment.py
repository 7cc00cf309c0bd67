"""Continual learning on a frozen backbone: L2P and what it is compared to.

`build` makes one run: the backbone, or one task of `config.method`. `run`
pre-trains the backbone (or loads it), trains all methods over all seeds, task
after task, each from the state of the one before, and writes table and figures
(`report.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import programs, stages, study
from experiments.l2p import (
  backbone,
  learners,
  measure,
  networks,
  report,
  settings,
  tasks,
)
from locojax.core import files, types
from locojax.data import image, pipeline
from locojax.methods import l2p
from locojax.train import distributed, experiment, optimizers, steps

Experiment = experiment.Experiment
check, check_run = settings.check, settings.check_run
# What does not change a run: which others there are.
_NOT_IN_A_RUN = ("methods", "seeds")
_VALID_STREAM = 0xB1C


def _setup(config, net, stream: tasks.Stream | None) -> learners.Setup:
  if stream is not None:
    return learners.Setup(
      config, net, stream.class_ids, stream.num_classes, stream.boundaries
    )
  groups = tasks.class_groups(config.data.to_dict())
  num = 1 + max(c for g in groups for c in g)
  return learners.Setup(config, net, groups, num, _has_boundaries(config))


def _has_boundaries(config) -> bool:
  return config.data.kind != "gaussian"


@dataclasses.dataclass(frozen=True)
class Stage:
  """The data of one task of a learner.

  Attributes:
    arrays: `image`, `label`, and what else a batch has, `[n, ...]`.
    in_order: whether the arrays are in the order of the stream.
    num_steps: updates.
    valid: examples of all tasks so far that are not trained on; only BiC's.
  """

  arrays: tasks.Arrays
  in_order: bool
  num_steps: int
  valid: tasks.Arrays | None = None


def _num_steps(config, num: int, in_order: bool) -> int:
  """Whole epochs; a stream in its order is seen once."""
  epochs = 1 if in_order else config.num_epochs
  return epochs * max(1, num // config.batch_size)


class Queried:
  """The sets of a stream with the frozen features of their images.

  Args:
    stream: its tasks.
    base: the backbone.
    batch_size: in which they are computed.
  """

  def __init__(self, stream: tasks.Stream, base, batch_size: int):
    self.stream, self._size = stream, batch_size
    run = networks.features(base.net)
    self._features = functools.partial(run, base.params)

  def _with_queries(self, arrays: tasks.Arrays) -> tasks.Arrays:
    images = {"image": arrays["image"]}
    batches = pipeline.padded_batches(images, batch_size=self._size)
    found = [
      np.asarray(self._features(b["image"]))[b["mask"] != 0] for b in batches
    ]
    return {**arrays, "query": np.concatenate(found)}

  @functools.cached_property
  def trains(self) -> tuple[tasks.Arrays, ...]:
    """Training sets of all stages."""
    return tuple(map(self._with_queries, self.stream.trains))

  @functools.cached_property
  def tests(self) -> list[tasks.Arrays]:
    """Test sets of all tasks."""
    return list(map(self._with_queries, self.stream.tests))


class Data:
  """Data of all stages of one seed.

  Args:
    config: of the run.
    queried: its stream.
  """

  def __init__(self, config, queried: Queried):
    self._config, self._stream = config, queried.stream
    self.queried = queried

  def _is_valid(self, task: int) -> np.ndarray:
    """A tenth of the examples of a task."""
    labels = self._stream.trains[task]["label"]
    rng = np.random.default_rng([self._config.seed, _VALID_STREAM, task])
    return rng.permutation(len(labels)) < max(1, len(labels) // 10)

  def _valid(self, task: int) -> tasks.Arrays:
    """The same number of examples of each class seen, never trained on."""
    per_class = max(1, self._config.buffer_per_class // 10)
    parts = []
    for t in range(task + 1):
      rows = np.flatnonzero(self._is_valid(t))
      labels = self._stream.trains[t]["label"][rows]
      keep = [rows[labels == c][:per_class] for c in np.unique(labels)]
      keep = np.concatenate(keep)
      parts.append({k: v[keep] for k, v in self._stream.trains[t].items()})
    return tasks.union(tuple(parts))

  def _allowed(self, arrays: tasks.Arrays, task: int) -> tasks.Arrays:
    """With a row of classes for each example: those of the task."""
    if "class_mask" in arrays:  # of a stream without boundaries
      return arrays
    allowed = np.zeros(self._stream.num_classes, bool)
    allowed[list(self._stream.class_ids[task])] = True
    shape = (len(arrays["label"]), len(allowed))
    return {**arrays, "class_mask": np.broadcast_to(allowed, shape)}

  def stage(self, learner: learners.Learner, task: int) -> Stage:
    """What a learner trains on as task `task`."""
    trains = self.queried.trains
    arrays, in_order = trains[task], not self._stream.boundaries
    num_steps = _num_steps(self._config, len(arrays["label"]), in_order)
    if learner.whole:
      arrays, in_order = tasks.union(trains), False
      num_steps = _num_steps(self._config, len(arrays["label"]), in_order)
    elif isinstance(learner, learners.GreedyReplay):
      key = jax.random.key(self._config.seed)
      arrays, in_order = learner.kept(trains[: task + 1], key), False
    elif isinstance(learner, learners.BiasCorrection):
      return self._with_valid(arrays, task)
    if learner.masked:
      arrays = self._allowed(arrays, task)
    if learner.trains == "nothing":
      num_steps = 0
    return Stage(arrays, in_order, num_steps)

  def _with_valid(self, arrays: tasks.Arrays, task: int) -> Stage:
    """A tenth of the task, one example or more, is for validation."""
    train = ~self._is_valid(task)
    if not train.any():
      raise ValueError(
        f"methods: bic is not allowed with one training image in task {task}: "
        "it keeps one back for validation."
      )
    arrays = {k: v[train] for k, v in arrays.items()}
    num_steps = _num_steps(self._config, int(train.sum()), False)
    return Stage(arrays, False, num_steps, self._valid(task))


def _names(learner: learners.Learner, config) -> tuple[str, ...]:
  """Entries of a batch."""
  out = ["image", "label"]
  if learner.model.pool is not None and config.cache_queries:
    out.append("query")
  if learner.masked:
    out.append("class_mask")
  return tuple(out)


def _batches(config, learner, stage: Stage) -> Callable[[int], Iterator]:
  """`start -> iterator`; what is kept is offered in the last epoch.

  So every example is offered once, and logits kept are of a model that has
  learned it.
  """
  num = len(stage.arrays["label"])
  size = min(config.batch_size, num)
  arrays = {n: stage.arrays[n] for n in _names(learner, config)}
  crop = functools.partial(image.random_crop, pad=config.crop_pad)
  each = pipeline.array_batches(
    arrays,
    batch_size=size,
    seed=config.seed,
    shuffle=not stage.in_order,
    random_map=image.chain(crop) if config.crop_pad else None,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  if not learner.replays:
    return each

  def iterate(start):
    for k, batch in enumerate(each(start), start=start):
      rows = len(batch["label"])
      last = k >= stage.num_steps - num // size
      new = np.full(rows, last, np.float32)
      yield {**batch, "insert": new}

  return iterate


def _optimizer(config, learner) -> optax.GradientTransformation:
  whole = learner.trains == "all"
  rate = config.learning_rate_all if whole else config.learning_rate
  if config.clip_scope == "all" and not whole:
    return l2p.optimizer(
      optax.adam(rate),
      learner.trainable,
      clip_norm=config.clip_norm,
      clip_scope="all",
    )
  return optimizers.make(
    "adam", learning_rate=rate, clip_norm=config.clip_norm or None
  )


def _shapes(config, learner, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
  data, num = config.data, learner.setup.num_classes
  side, width = data.image_size, learner.setup.net.width
  shapes = {
    "image": jax.ShapeDtypeStruct((rows, side, side, data.channels), jnp.uint8),
    "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
    "query": jax.ShapeDtypeStruct((rows, width), jnp.float32),
    "class_mask": jax.ShapeDtypeStruct((rows, num), jnp.bool_),
  }
  found = {n: shapes[n] for n in _names(learner, config)}
  if learner.replays:
    found["insert"] = jax.ShapeDtypeStruct((rows,), jnp.float32)
  return found


def _frozen_apart(config, learner) -> bool:
  return learner.trains != "all" and config.clip_scope == "trained"


def _init(config, learner, tx, key: jax.Array) -> types.TrainState:
  """Fresh weights everywhere; `begin` puts the backbone in its place."""
  init_key, keep_key, run_key = jax.random.split(key, 3)
  data = config.data
  shape = (1, data.image_size, data.image_size, data.channels)
  params = learner.model.init(init_key, jnp.zeros(shape))["params"]
  model_state: dict[str, Any] = {}
  if _frozen_apart(config, learner):
    params, frozen = l2p.freeze(params, learner.trainable)
    model_state["frozen"] = frozen
  model_state |= learner.extras(params, keep_key)
  return steps.init_state(params, tx, key=run_key, model_state=model_state)


def stage_experiment(
  config, learner: learners.Learner, stage: Stage | None
) -> Experiment:
  """One task of a learner as the loop wants it; without data only its shape."""
  tx = _optimizer(config, learner)
  rows = config.batch_size
  if stage is not None:
    rows = min(rows, len(stage.arrays["label"]))
  made = Experiment(
    init=functools.partial(_init, config, learner, tx),
    step=learner.wrap(steps.from_loss(learner.loss(), tx)),
    batches=lambda start: iter(()),
    num_steps=1,
    batch_shapes=_shapes(config, learner, rows),
    examples_per_step=rows,
  )
  if stage is None:
    return made
  return dataclasses.replace(
    made, batches=_batches(config, learner, stage), num_steps=stage.num_steps
  )


def build(config) -> Experiment:
  """One run: the backbone, or a task of `config.method` with `config.seed`."""
  check(config)
  if config.stage == "backbone":
    return backbone.build(config)
  stream = tasks.load(config) if config.needs_data else None
  net = networks.backbone(config)
  learner = learners.LEARNERS[config.method](_setup(config, net, stream))
  stage = None
  if stream is not None:
    key = jax.random.key(config.seed)
    shape = (1, config.data.image_size, config.data.image_size)
    images = jnp.zeros((*shape, config.data.channels))
    params = net.init(key, images)["params"]
    base = backbone.Backbone(net, params)
    queried = Queried(stream, base, config.eval_batch_size)
    stage = Data(config, queried).stage(learner, config.task)
  return stage_experiment(config, learner, stage)


def _with_backbone(state: types.TrainState, weights) -> types.TrainState:
  """The state with the weights of the backbone, where it has them."""
  if "backbone" in state.params:
    return state.replace(params={**state.params, "backbone": weights})
  frozen = {**state.model_state["frozen"], "backbone": weights}
  return state.replace(model_state={**state.model_state, "frozen": frozen})


def _begin(learner, weights, before, task: int, arrays):
  """`fresh state -> state` at the start of a task.

  Args:
    learner: any.
    weights: of the backbone.
    before: gives the finished state of the task before, or None.
    task: its number.
    arrays: its training set.
  """

  def begin(fresh: types.TrainState) -> types.TrainState:
    state = _with_backbone(fresh, weights)
    last = before()
    if last is not None and not learner.scratch:
      state = state.replace(params=last.params, model_state=last.model_state)
    return learner.begin(state, task, arrays)

  return begin


def fit(
  config, folder: pathlib.Path, *, made: Experiment | None = None, begin=None
) -> types.TrainState:
  """One task; its final state.

  Args:
    config: of the task.
    folder: of the run.
    made: the run; None builds it.
    begin: as in `loop.fit`.

  Raises:
    ValueError: the folder has a run of another config.
  """
  return stages.fit(
    build(config) if made is None else made,
    config,
    folder,
    begin=begin,
    log_every=config.log_every,
    save_every=config.save_every,
    may_differ=_NOT_IN_A_RUN,
  )


class Method:
  """A learner, compiled once for all seeds and tasks.

  Args:
    config: of the method, with any seed.
    net: the backbone.
    stream: its tasks.
  """

  def __init__(self, config, net, stream: tasks.Stream):
    self._config = config
    self.learner = learners.LEARNERS[config.method](_setup(config, net, stream))
    self.predictor = measure.Predictor(self.learner, config.eval_batch_size)
    self._made: dict[int, Experiment] = {}

  def experiment(self, config, stage: Stage) -> Experiment:
    """One task, with the steps of the tasks before it."""
    rows = min(config.batch_size, len(stage.arrays["label"]))
    if rows not in self._made:
      self._made[rows] = stage_experiment(config, self.learner, stage)
    return dataclasses.replace(
      self._made[rows],
      batches=_batches(config, self.learner, stage),
      num_steps=stage.num_steps,
    )


class Line:
  """One method with one seed: its tasks one after the other.

  Args:
    made: the study.
    config: of the method and the seed.
    base: the backbone.
    data: of the seed.
    method: compiled.
  """

  def __init__(
    self, made: study.Study, config, base, data: Data, method: Method
  ):
    self._study, self._config, self._base = made, config, base
    self._data, self._stream = data, data.queried.stream
    self._method, self.learner = method, method.learner

  def _finished(self, state, task: int, stage: Stage):
    """The state after a task, with what is done at its end."""
    if not (self._stream.boundaries or self.learner.trains == "nothing"):
      return state
    arrays = stage.arrays
    if stage.valid is not None:
      arrays = {**arrays, "valid": stage.valid}
    return self.learner.finish(state, task, arrays)

  def _task(self, task: int, before: Callable[[], Any]) -> Callable[[], Any]:
    """Trains a task and measures it; gives its finished state when asked."""
    config = stages.changed(self._config, task=task)
    where = report.folder(self._study.workdir, config.method, config.seed, task)
    stage = self._data.stage(self.learner, task)
    begin = _begin(self.learner, self._base.params, before, task, stage.arrays)
    made = self._method.experiment(config, stage)
    train = functools.partial(fit, config, where, made=made, begin=begin)
    name = f"{config.method}, seed {config.seed}, task {task + 1}"
    state = self._study.cell(name, where, train)
    after = functools.cache(lambda: self._finished(state, task, stage))
    self._measure(where, task, after)
    return after

  def _measure(self, where: pathlib.Path, task: int, after) -> None:
    path = where / report.MEASURED
    if path.exists():
      files.read_json(path, remedy="remove it, to measure again")
      return
    found = measure.after(
      self._method.predictor,
      after(),
      self._data.queried.tests,
      self._stream.class_ids,
      self._seen(task),
      self._stream.num_classes,
    )
    if distributed.is_main():
      files.write_json(path, found)

  def _seen(self, task: int) -> int:
    """The last task whose classes were trained."""
    whole = self.learner.whole or not self._stream.boundaries
    return len(self._stream.class_ids) - 1 if whole else task

  def run(self) -> None:
    """All tasks, or the only stage of a learner that sees them at once."""
    last = self._stream.num_stages
    before = lambda: None
    for task in range(last - 1 if self.learner.whole else 0, last):
      before = self._task(task, before)


def num_stages(config, method: str, num_tasks: int) -> int:
  """How many runs a method with a seed has."""
  whole = learners.LEARNERS[method].whole
  return 1 if whole or not _has_boundaries(config) else num_tasks


def _num_cells(config, stream: tasks.Stream) -> int:
  each = [num_stages(config, m, stream.num_stages) for m in config.methods]
  pretrained = 0 if config.data.checkpoint else 1
  return sum(each) * len(config.seeds) + pretrained


def run(config, workdir: str) -> dict[str, Any]:
  """The backbone, then all methods over all seeds; resumes.

  Returns:
    The rows of the table and the paths of what was written.
  """
  stream = tasks.load(config)
  with (
    study.opened(
      config,
      workdir,
      num_cells=_num_cells(config, stream),
      may_differ=_NOT_IN_A_RUN,
    ) as made,
    programs.kept(made.workdir),
  ):
    base, queried = backbone.get(made), None
    methods: dict[Any, Method] = {}
    for seed in config.seeds:
      one = stages.changed(config, seed=seed)
      stream = tasks.load(one)
      if queried is None or queried.stream is not stream:
        queried = Queried(stream, base, config.eval_batch_size)
      for method in config.methods:
        own = stages.changed(one, method=method)
        key = (method, stream.class_ids)
        if key not in methods:
          methods[key] = Method(own, base.net, stream)
        Line(made, own, base, Data(own, queried), methods[key]).run()
    distributed.sync("tasks")
    return report.write(made, stream)


def evaluate(config, workdir: str) -> Mapping[str, Any]:
  """The rows of the table of a finished folder."""
  stream = tasks.load(config)
  return {"rows": report.rows(config, pathlib.Path(workdir), stream)}
