"""The runs that a student is made of, each an `Experiment` for the one loop.

images     a network for images, whose weights begin those for clips
teacher    the network on the target's clean clips
pretrain   a student on the weak clips, by the labels of a method
finetune   a student with a new head on the target's clean clips
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from experiments.common import datasets, pictures
from experiments.spl import measure, methods, networks, sets
from locojax.core import metrics, types
from locojax.data import image, pipeline, video
from locojax.methods import spl
from locojax.train import experiment, optimizers, steps

Experiment = experiment.Experiment
PHASES = ("images", "teacher", "pretrain", "finetune")
# The last layer is spread over the `model` axis of a mesh that has one.
RULES = (
  (r"head/kernel$", PartitionSpec(None, "model")),
  (r"head/bias$", PartitionSpec("model")),
)


def _frames_beside(clips: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
  """`[..., T, H, W, C]` as images `[..., H, W, T C]`, whose frames go along."""
  shape = clips.shape
  moved = np.moveaxis(clips, -4, -2)
  return moved.reshape(*moved.shape[:-2], shape[-4] * shape[-1]), shape


def _frames_apart(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  moved = images.reshape(*images.shape[:-1], shape[-4], shape[-1])
  return np.ascontiguousarray(np.moveaxis(moved, -2, -4))


class Augment:
  """Crops and flips, one for all frames of a clip; picklable.

  Args:
    settings: `crop_pad`, `flip` and `resized_crop` of the config.
    size: of the clips that come out.
    clips: whether there are frames.
  """

  def __init__(self, settings: Mapping[str, Any], size: int, *, clips: bool):
    self._settings, self._size, self._clips = dict(settings), size, clips

  def __call__(self, example, rng: np.random.Generator):
    clips, settings = example["clip"], self._settings
    if settings["resized_crop"]:
      clips = video.random_resized_crop_clip(clips, rng, size=self._size)
    shape = None
    if self._clips:
      clips, shape = _frames_beside(clips)
    if settings["crop_pad"]:
      clips = image.random_crop(
        clips, rng, pad=settings["crop_pad"], mode="edge"
      )
    if settings["flip"]:
      clips = image.random_flip(clips, rng)
    if shape is not None:
      clips = _frames_apart(clips, shape)
    return {**example, "clip": clips}

  @property
  def does_something(self) -> bool:
    """Whether anything is on."""
    return any(bool(v) for v in self._settings.values())


def centred(clip: np.ndarray, size: int) -> np.ndarray:
  """The square in the middle of each frame."""
  return video.centre_crop_clip(clip, size=size)


def _centre(example, size: int):
  return {**example, "clip": centred(example["clip"], size)}


def batches_of(
  config, part: sets.Part, columns: Mapping[str, np.ndarray]
) -> Callable:
  """`start -> iterator` of shuffled batches of clips with columns.

  A batch that an epoch cannot fill goes on with the next one: of few clips,
  that a label space may leave, batches are as large as of many.
  """
  augment = Augment(
    config.augment.to_dict(),
    config.data.size,
    clips=config.data.name in sets.VIDEOS,
  )
  shared = {
    "batch_size": config.batch_size,
    "seed": config.seed,
    "remainder": "carry",
    "random_map": augment if augment.does_something else None,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
  }
  if part.in_memory:
    arrays = {"clip": part.clips, **columns}
    return pipeline.array_batches(arrays, **shared)
  return pipeline.batches(
    sets.Columns(part.clips, columns),
    num_workers=config.data.num_workers,
    map=None
    if config.augment.resized_crop
    else functools.partial(_centre, size=config.data.size),
    **shared,
  )


def ordered(config, part: sets.Part):
  """Padded batches of all clips of a part, in order."""
  size = config.eval_batch_size
  if part.in_memory:
    return pipeline.padded_batches({"clip": part.clips}, batch_size=size)
  numbers = {"number": np.arange(len(part), dtype=np.int32)}
  return pipeline.padded_batches(
    sets.Columns(part.clips, numbers),
    batch_size=size,
    map=functools.partial(_centre, size=config.data.size),
  )


@dataclasses.dataclass(frozen=True)
class Task:
  """One run, before it has data.

  Attributes:
    net: the network.
    loss: a key of `methods.LOSSES`.
    setup: of the loss.
    settings: of the phase: `num_epochs`, `learning_rate`.
    columns: shapes and dtypes of what a batch has besides clips.
    num_clips: of the training set, for temperatures of clips.
  """

  net: networks.Net
  loss: str
  setup: methods.Setup
  settings: Mapping[str, Any]
  columns: Mapping[str, tuple[tuple[int, ...], Any]]
  num_clips: int = 0


def _loss(task: Task) -> types.LossFn:
  each = methods.LOSSES[task.loss]

  @steps.couples_examples  # by batch norm
  def loss_fn(params, model_state, batch, key):
    logits, state = task.net.train(
      params["net"], model_state["net"], batch["clip"], key
    )
    logits = logits.astype(jnp.float32)
    loss = each(task.setup, logits, batch, params)
    found = {
      "loss": metrics.Mean(loss, jnp.float32(1.0)),
      "accuracy": methods.accuracy(task.loss, task.setup, logits, batch),
    }
    return loss, (found, {**model_state, "net": state})

  return loss_fn


def _optimizer(config, task: Task, num_steps: int):
  rate = optimizers.schedule(
    "cosine",
    learning_rate=task.settings["learning_rate"],
    num_steps=num_steps,
    warmup_steps=round(config.warmup * num_steps),
  )
  net = optimizers.make(
    "nesterov",
    learning_rate=rate,
    weight_decay=config.weight_decay,
    decay_paths="kernel$",
    clip_norm=config.clip_norm or None,
    momentum=config.momentum,
  )
  if task.loss != "data_parameters":
    return net
  return optax.multi_transform(
    {"net": net, "data": spl.data_parameter_optimizer(config.losses.data_rate)},
    {"net": "net", "data": "data"},
  )


def make(config, task: Task, num_steps: int) -> Experiment:
  """A run without data: shapes, initialisation and step."""
  tx = _optimizer(config, task, num_steps)
  shape = sets.clip_shape(config.data.to_dict())
  rows = config.batch_size

  def init(key):
    init_key, run_key = jax.random.split(key)
    found = task.net.init(init_key, shape)
    params = {"net": found.pop("params")}
    if task.loss == "data_parameters":
      params["data"] = spl.init_data_parameters(
        num_classes=task.setup.num_weak, num_clips=task.num_clips
      )
    return steps.init_state(params, tx, key=run_key, model_state={"net": found})

  shapes = {"clip": jax.ShapeDtypeStruct((rows, *shape), jnp.uint8)}
  for name, (tail, dtype) in task.columns.items():
    shapes[name] = jax.ShapeDtypeStruct((rows, *tail), dtype)
  return Experiment(
    init=init,
    step=steps.from_loss(_loss(task), tx),
    batches=lambda start: iter(()),
    num_steps=num_steps,
    batch_shapes=shapes,
    rules=RULES,
    examples_per_step=rows,
  )


@dataclasses.dataclass(frozen=True)
class Run:
  """A task with its data.

  Attributes:
    task: what is trained.
    num_steps: updates.
    part: training clips.
    columns: what a batch has besides them, `[n, ...]`.
    evaluated: parts on which accuracy is told, by name.
  """

  task: Task
  num_steps: int
  part: sets.Part
  columns: Mapping[str, np.ndarray]
  evaluated: Mapping[str, sets.Part] = dataclasses.field(default_factory=dict)

  @property
  def key(self) -> tuple:
    """Equal for runs that differ in their clips and labels alone."""
    task = self.task
    settings = tuple(sorted(task.settings.items()))
    count = task.num_clips if task.loss == "data_parameters" else 0
    return (task.net, task.loss, settings, count, self.num_steps)


def experiment_of(
  config, run: Run, kept: dict[Any, Experiment] | None = None
) -> Experiment:
  """A run with its clips and evaluations.

  Args:
    config: of the run.
    run: what is trained.
    kept: experiments that were made before, whose compiled programs serve
      runs that differ in clips and labels alone; this one joins them.
  """
  kept = {} if kept is None else kept
  if run.key not in kept:
    kept[run.key] = _with_evals(config, run)
  batches = batches_of(config, run.part, run.columns)
  return dataclasses.replace(kept[run.key], batches=batches)


def _with_evals(config, run: Run) -> Experiment:
  made = make(config, run.task, run.num_steps)
  tell, evals = measure.evaluation(run.task.net), {}
  for name, part in run.evaluated.items():
    each = functools.partial(ordered, config, part)
    one = functools.partial(tell, part, each)
    evals[name] = experiment.Eval(run.num_steps, one)
  return dataclasses.replace(made, evals=evals)


def num_steps(config, settings, num: int) -> int:
  """Updates of so many epochs over `num` clips."""
  return settings["num_epochs"] * max(1, num // config.batch_size)


def _setup(config, num_weak: int) -> methods.Setup:
  return methods.Setup(num_weak, config.losses.to_dict())


LABEL = {"label": ((), jnp.int32)}


def clean_task(config, settings) -> Task:
  """The network on clean clips of the target: teacher, and fine-tuning."""
  num = sets.num_classes(config.data.to_dict())
  net = networks.make(config, num)
  return Task(net, "labels", _setup(config, num), settings, LABEL)


def clean(config, settings, data: sets.Data) -> Run:
  """Training on the target's clean clips."""
  return Run(
    clean_task(config, settings),
    num_steps(config, settings, len(data.train)),
    data.train,
    {"label": data.train.label},
    {"valid": data.valid, "test": data.test},
  )


def student_task(config, method: methods.Method, num_outputs, num_clips):
  """A student before it has data."""
  num = sets.num_classes(config.data.to_dict())
  shapes = {
    **LABEL,
    "probs": ((num,), jnp.float32),
    "teacher": ((), jnp.int32),
    "index": ((), jnp.int32),
  }
  columns = {k: shapes[k] for k in methods.COLUMNS[method.loss]}
  net = networks.make(config, num_outputs)
  setup = _setup(config, num)
  settings = config.pretrain.to_dict()
  return Task(net, method.loss, setup, settings, columns, num_clips)


def student(
  config, method, by_epochs: bool, data: sets.Data, labels: methods.Labels
) -> Run:
  """The pre-training of a student on the clips that its labels keep."""
  kept = len(labels.rows)
  task = student_task(config, method, labels.num_outputs, kept)
  num = kept if by_epochs else len(data.weak)
  columns = labels.train()
  return Run(
    task,
    num_steps(config, task.settings, num),
    data.weak.take(labels.rows),
    {k: columns[k] for k in task.columns},
  )


def student_shape(config, name: str) -> Experiment:
  """A student without data: its label space as large as it can be."""
  method, _ = methods.parse(name)
  num = sets.num_classes(config.data.to_dict())
  sizes = {
    "raw": num * num,
    "spl_b": 2 * num,
    "top_k": config.space.k,
    "cluster": config.space.k,
    "min_count": num * num,
  }
  outputs = sizes.get(method.space, num)
  outputs += num if method.loss == "two_heads" else 0
  task = student_task(config, method, outputs, config.data.num_videos)
  return make(config, task, 1)


def _frames(config) -> dict[str, np.ndarray]:
  """Images for the network whose weights are inflated."""
  settings, data = config.images, config.data
  name = data.backbone[0]
  found = datasets.load(name, data_dir=data.data_dir or None)
  split = found["train"]
  count = settings.num_train or len(split["label"])
  images = pictures.resized(split["image"][:count], data.size, 3)
  return {"clip": images[:, None], "label": split["label"][:count]}


def images_net(config) -> networks.Net:
  """The network for single frames."""
  data = config.data
  made = networks.images_module(
    config.model.to_dict(), sets.IMAGES[data.backbone[0]]
  )
  return networks.Net(made, tuple(data.mean), tuple(data.std))


def images(config) -> Experiment:
  """The network for images, on another set than the target."""
  settings = config.images
  num = sets.IMAGES[config.data.backbone[0]]
  task = Task(
    images_net(config), "labels", _setup(config, num), settings.to_dict(), LABEL
  )
  single = config.copy_and_resolve_references()
  with single.unlocked():
    single.data.num_frames = 1
    single.augment.resized_crop = False  # of clips that are read one by one
  if not config.needs_data:
    return make(single, task, 1)
  arrays = _frames(config)
  count = num_steps(config, task.settings, len(arrays["label"]))
  part = sets.Part(arrays["clip"], arrays["label"], arrays["label"])
  columns = {"label": arrays["label"]}
  return experiment_of(single, Run(task, count, part, columns))


def begin(variables: types.PyTree | None) -> Callable:
  """What a fresh run starts with instead of its own network's variables."""

  def run(state: types.TrainState) -> types.TrainState:
    if variables is None:
      return state
    rest = {k: v for k, v in variables.items() if k != "params"}
    params = {**state.params, "net": variables["params"]}
    model_state = {**state.model_state, "net": rest}
    return state.replace(params=params, model_state=model_state)

  return run


def variables_of(state: types.TrainState) -> types.PyTree:
  """The variables of the network of a finished run, on the host."""
  found = {"params": state.params["net"], **state.model_state["net"]}
  return jax.tree.map(np.asarray, found)


def with_new_head(
  variables: types.PyTree, num_outputs: int, key: jax.Array
) -> types.PyTree:
  """The variables with a fresh head of so many outputs."""
  return spl.finetune_from(variables, num_outputs, key=key, head=networks.HEAD)
