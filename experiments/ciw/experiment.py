"""Classification of images with noisy labels: CIW and what it is compared to.

`build` makes one trial of one method: all noise levels of `config.noise` and
all seeds side by side, each seed with noise, initialisation, order and mixup of
its own. `run` trains the trials of all methods, chooses among them by noisy
validation accuracy, and writes table and figure (`noise_report.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import PartitionSpec

from experiments.ciw import (
  methods,
  noise_report,
  noisy_images,
  search,
  settings,
)
from experiments.common import programs, stages, study
from locojax.core import checks, files, types
from locojax.data import image, pipeline
from locojax.methods.ciw import diagnostics
from locojax.nn import mlp, resnet
from locojax.train import (
  distributed,
  experiment,
  optimizers,
  replicas,
  steps,
  variation,
)

Experiment = experiment.Experiment
check, check_run = settings.check, settings.check_run
Cell = noise_report.Cell
_VARY = ("init", "order", "dropout")
# What does not change a run: which others there are.
_NOT_IN_A_RUN = ("methods", "noises", "noise_together", "num_trials")


def _network(model: Mapping[str, Any], classes: int):
  kind = checks.one_of("model.kind", model["kind"], ("mlp", "resnet"))
  if kind == "mlp":
    return mlp.MLP((*model["hidden"], classes))
  return resnet.PreActResNet(
    classes,
    stage_sizes=tuple(model["stage_sizes"]),
    width=model["width"],
    dtype=jnp.dtype(model["dtype"]),
  )


@dataclasses.dataclass(frozen=True)
class Net:
  """A network on images in [0, 255].

  Attributes:
    module: an MLP or a PreActResNet.
    mean, std: of the channels, in units of [0, 1].
  """

  module: Any
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def normalize(self, images: jax.Array) -> jax.Array:
    """uint8 images as the network sees them, float32."""
    mean, std = (jnp.asarray(v, jnp.float32) for v in (self.mean, self.std))
    return (images.astype(jnp.float32) / 255.0 - mean) / std

  def init(self, key: jax.Array, shape) -> tuple[types.PyTree, types.PyTree]:
    """Parameters, and batch statistics if there are any."""
    images = jnp.zeros((1, *shape), jnp.float32)
    found = dict(self.module.init(key, self._input(images), train=False))
    return found.pop("params"), found

  def _input(self, images):
    if isinstance(self.module, mlp.MLP):
      return images.reshape(images.shape[0], -1)
    return images

  def train(self, params, state, images):
    """Logits of normalised images, and the new batch statistics."""
    logits, new = self.module.apply(
      {"params": params, **state},
      self._input(images),
      train=True,
      mutable=["batch_stats"],
    )
    return logits, dict(new)

  def predict(self, params, state, images) -> jax.Array:
    """Logits `[n, K]` float32 of uint8 images."""
    images = self._input(self.normalize(images))
    out = self.module.apply({"params": params, **state}, images, train=False)
    return out.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a config makes of its numbers.

  Attributes:
    net: the network.
    method: what is made of a batch.
    cells: noise and number of the seed of each replica.
    num_train: examples in the training part.
    per_epoch: updates in an epoch.
    grouped: updates in a step of the loop.
    num_updates: of the run.
  """

  net: Net
  method: methods.Method
  cells: tuple[Cell, ...]
  num_train: int
  per_epoch: int
  grouped: int
  num_updates: int

  @property
  def steps_per_epoch(self) -> int:
    """Steps of the loop in an epoch."""
    return self.per_epoch // self.grouped


def cells(config) -> tuple[Cell, ...]:
  """Noise and number of the seed of each replica."""
  pairs = itertools.product(config.noise, range(config.num_seeds))
  return tuple(Cell(*pair) for pair in pairs)


def plan(config) -> Plan:
  """The plan of a config; looks at no data."""
  data = config.data
  for noise in config.noise:
    noisy_images.parse_noise(noise)
  num_train = data.num_train - noisy_images.num_validation(data)
  per_epoch = pipeline.steps_per_epoch(num_train, config.batch_size)
  grouped = config.updates_per_step or per_epoch
  checks.divisible(
    "updates in an epoch", per_epoch, "updates_per_step", grouped
  )
  num_updates = config.num_epochs * per_epoch
  classes = noisy_images.num_classes(data)
  net = Net(_network(config.model, classes), tuple(data.mean), tuple(data.std))
  setup = methods.Setup(
    net.train, classes, num_train, num_updates, config.mixup_groups
  )
  options = {k: v for k, v in config.options.items() if k != "rate"}
  return Plan(
    net=net,
    method=methods.make(config.method, setup, **options),
    cells=cells(config),
    num_train=num_train,
    per_epoch=per_epoch,
    grouped=grouped,
    num_updates=num_updates,
  )


def _schedule(config, made: Plan) -> optax.Schedule:
  """The schedule of the learning rate; `drops` are epochs of a tenth each."""
  peak = config.learning_rate * config.options.get("rate", 1.0)
  if config.schedule != "steps":
    return optimizers.schedule(
      config.schedule,
      learning_rate=peak,
      num_steps=made.num_updates,
      warmup_steps=min(config.warmup_updates, made.num_updates),
    )
  drops = {round(e * made.per_epoch): 0.1 for e in config.drops}
  return optax.piecewise_constant_schedule(peak, drops)


def _optimizer(config, made: Plan) -> optax.GradientTransformation:
  return optimizers.make(
    "nesterov",
    learning_rate=_schedule(config, made),
    weight_decay=config.weight_decay,
    decay_paths="kernel$",
    momentum=config.momentum,
  )


def _parts(config, cell: Cell) -> dict[str, noisy_images.Part]:
  """The data of a cell; the seed of the noise does not depend on its rate."""
  seed = variation.replica_seed(config.seed, cell.seed)
  return noisy_images.make(config.data.to_dict(), cell.noise, seed)


def _augment(config):
  """Crop and flip of whole batches, or None."""
  if not config.crop_pad:
    return None
  crop = functools.partial(image.random_crop, pad=config.crop_pad)
  return image.chain(crop, image.random_flip)


def _batches(config, made: Plan, cell: Cell, seed: int):
  """`start -> iterator` of the steps of the loop of a cell."""

  def one_by_one():
    part = _parts(config, cell)["train"]
    index = np.arange(len(part.label), dtype=np.int32)
    return pipeline.array_batches(
      {"image": part.image, "label": part.label, "index": index},
      batch_size=config.batch_size,
      seed=seed,
      random_map=_augment(config),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def iterate(start):
    rows = one_by_one()(start * made.grouped)
    while several := list(itertools.islice(rows, made.grouped)):
      yield jax.tree.map(lambda *x: np.stack(x), *several)

  return iterate


def _seeded(config, made: Plan) -> Callable:
  """The batches of a replica by its seed."""
  seeds = {
    variation.replica_seed(config.seed, r): cell
    for r, cell in enumerate(made.cells)
  }
  return lambda seed: _batches(config, made, seeds[seed], seed)


def _step(config, made: Plan, tx) -> types.StepFn:
  """Several updates, and what is due at the end of an epoch."""
  net = made.net

  def loss(params, model_state, batch, key):
    batch = {**batch, "image": net.normalize(batch["image"])}
    return made.method.loss(params, model_state, batch, key)

  one = steps.from_loss(loss, tx)
  many = steps.scanned(steps.with_update(one), made.grouped)
  if not made.method.remembers:
    return many
  every = made.steps_per_epoch

  def with_end(state, batch):
    state, found = many(state, batch)
    due = True if every == 1 else state.step % every == 0
    new = methods.end_of_epoch(state.model_state, due)
    return state.replace(model_state=new), found

  return with_end


def _shapes(config, made: Plan):
  rows = (made.grouped, config.batch_size)
  shape = noisy_images.image_shape(config.data)
  return {
    "image": jax.ShapeDtypeStruct((*rows, *shape), jnp.uint8),
    "label": jax.ShapeDtypeStruct(rows, jnp.int32),
    "index": jax.ShapeDtypeStruct(rows, jnp.int32),
  }


def build(config) -> Experiment:
  """One trial: `config.method` with `config.options`, under `config.noise`."""
  check(config)
  config = noisy_images.resolved(config)
  made = plan(config)
  tx = _optimizer(config, made)
  shape = noisy_images.image_shape(config.data)

  def init(key):
    init_key, run_key = jax.random.split(key)
    params, net = made.net.init(init_key, shape)
    model_state = made.method.model_state(net, made.num_train)
    return steps.init_state(params, tx, key=run_key, model_state=model_state)

  seeded = _seeded(config, made)
  single = Experiment(
    init=init,
    step=_step(config, made, tx),
    batches=seeded(variation.replica_seed(config.seed, 0)),
    num_steps=config.num_epochs * made.steps_per_epoch,
    batch_shapes=_shapes(config, made),
    batch_spec=PartitionSpec(None, "data"),
    examples_per_step=made.grouped * config.batch_size,
  )
  several = single
  if len(made.cells) > 1:
    several = replicas.from_experiment(
      single,
      num_replicas=len(made.cells),
      vary=_VARY,
      batches=seeded,
      order_seed=config.seed,
      how=config.how,
    )
  return dataclasses.replace(several, evals=_evals(config, made))


def _predictor(config, made: Plan):
  """`(state, images) -> [replicas, n, K]` logits."""
  one = lambda params, model_state, batch: made.net.predict(
    params, model_state["net"], batch["image"]
  )
  plain = jax.jit(one)
  several = replicas.predictor(
    lambda state, batch: one(state.params, state.model_state, batch),
    how=config.how,
  )

  def run(state, images) -> np.ndarray:
    batches = pipeline.padded_batches(
      {"image": images}, batch_size=config.eval_batch_size
    )
    if len(made.cells) > 1:
      return several(state, batches)
    parts = [
      np.asarray(plain(state.params, state.model_state, b))[b["mask"] != 0]
      for b in batches
    ]
    return np.concatenate(parts)[None]

  return run


def _named(made: Plan, values: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Means over replicas, and the values of each."""
  out = {name: float(np.mean(v)) for name, v in values.items()}
  for name, v in values.items():
    out |= {
      f"{noise_report.replica(r)}/{name}": float(x) for r, x in enumerate(v)
    }
  return out


def _evals(config, made: Plan) -> dict[str, experiment.Eval]:
  """Accuracies on noisy validation and clean test data, and detection."""
  predict = _predictor(config, made)

  def accuracy(part: str):
    def run(state):
      several = [_parts(config, cell)[part] for cell in made.cells]
      logits = predict(state, several[0].image)
      labels = np.stack([p.label for p in several])
      hits = (logits.argmax(-1) == labels).mean(axis=1)
      return _named(made, {"accuracy": hits})

    return run

  every = lambda epochs: max(1, round(epochs * made.steps_per_epoch))
  out = {
    part: experiment.Eval(every(config.eval_epochs), accuracy(part))
    for part in ("valid", "test")
  }
  if made.method.weights is not None:
    run = _detection(config, made, predict)
    out["detection"] = experiment.Eval(every(config.detect_epochs), run)
  return out


def _detection(config, made: Plan, predict):
  """How well low weights tell wrong labels, in the whole training part."""
  weights = jax.jit(jax.vmap(made.method.weights, in_axes=(0, 0, None, 0)))

  def run(state):
    several = [_parts(config, cell)["train"] for cell in made.cells]
    logits = predict(state, several[0].image)
    labels = np.stack([p.label for p in several])
    model_state = state.model_state
    if len(made.cells) == 1:
      model_state = jax.tree.map(lambda x: x[None], model_state)
    update = state.step * made.grouped
    found = np.asarray(weights(logits, labels, update, model_state))
    auc = [
      diagnostics.noise_detection_auc(w, p.wrong)
      for w, p in zip(found, several)
    ]
    return _named(made, {"auc": np.nan_to_num(auc, nan=0.5)})

  return run


def trials(config) -> dict[noise_report.Trial, Any]:
  """The config of every trial of the study."""
  together = config.noise_together
  groups = [config.noises] if together else [(n,) for n in config.noises]
  return {
    noise_report.Trial(tuple(group), method, number): stages.changed(
      config, noise=tuple(group), method=method, options=options
    )
    for group in groups
    for method in config.methods
    for number, options in enumerate(search.trials(method, config.num_trials))
  }


def fit(config, folder: pathlib.Path) -> Mapping[str, Any]:
  """Trains one trial, unless its folder is finished; its result."""
  found = stages.finished(config, folder, may_differ=_NOT_IN_A_RUN)
  if found is not None:
    return found
  made = build(config)
  return stages.fit_or_diverge(
    made,
    config,
    folder,
    log_every=max(1, made.num_steps // 10),
    save_every=config.save_every,
    may_differ=_NOT_IN_A_RUN,
  )


def _write_noise(config, workdir: pathlib.Path) -> None:
  """`noise.json`: realised rates and transition matrices of all seeds."""
  if not distributed.is_main():
    return
  classes = noisy_images.num_classes(config.data)
  found = {
    noise: [
      noisy_images.describe(_parts(config, Cell(noise, seed))["train"], classes)
      for seed in range(config.num_seeds)
    ]
    for noise in config.noises
  }
  files.write_json(workdir / noise_report.NOISE, found)


def run(config, workdir: str) -> dict[str, Any]:
  """All trials of all methods, then table and figure; resumes.

  Returns:
    The rows of the table and the paths of what was written.
  """
  config = noisy_images.resolved(config)
  for name in config.methods:
    search.trials(name, config.num_trials)
  every = trials(config)
  with study.opened(
    config, workdir, num_cells=len(every), may_differ=_NOT_IN_A_RUN
  ) as made:
    _write_noise(config, made.workdir)
    with programs.kept(made.workdir):
      for trial, one in every.items():
        where = trial.folder(made.workdir)
        made.cell(trial.name, where, functools.partial(fit, one, where))
    distributed.sync("trials")
    return noise_report.write(made)


def evaluate(config, workdir: str) -> Mapping[str, Any]:
  """The rows of the table of a finished folder."""
  config = noisy_images.resolved(config)
  return {"rows": noise_report.rows(config, pathlib.Path(workdir))}


def training_set(folder: pathlib.Path, replica: int = 0) -> dict[str, Any]:
  """The noisy training set of a finished trial, and what its network says.

  Args:
    folder: of the trial.
    replica: noise and seed, in the order of `cells`.

  Returns:
    `images`, `labels` as given, `is_noisy`, `probabilities` `[n, K]`.

  Raises:
    ValueError: the trial is not finished, or has no such replica.
  """
  if not (folder / "result.json").exists():
    raise ValueError(
      f"{folder} is not allowed: it must be a finished trial of the study, "
      "with `config.json`, `ckpt` and `result.json`."
    )
  config = _saved_config(folder)
  made = plan(config)
  cell = made.cells[checks.one_of("replica", replica, range(len(made.cells)))]
  part = _parts(config, cell)["train"]
  state = stages.fit(
    build(config), config, folder, may_differ=_NOT_IN_A_RUN
  )  # trains nothing
  logits = _predictor(config, made)(state, part.image)[replica]
  return {
    "images": part.image,
    "labels": part.label,
    "is_noisy": part.wrong,
    "probabilities": np.asarray(jax.nn.softmax(logits)),
  }


def _saved_config(folder: pathlib.Path) -> ml_collections.ConfigDict:
  """`config.json` as the config it was, with tuples for lists."""

  def restored(value):
    if isinstance(value, dict):
      return {k: restored(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value

  found = files.read_json(folder / "config.json", remedy="train again")
  return ml_collections.ConfigDict(restored(found))
