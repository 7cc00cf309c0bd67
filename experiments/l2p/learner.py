"""What every learner has: the setup, the state it starts with, its outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.l2p import networks
from locojax.core import types
from locojax.methods import continual, l2p
from locojax.nn import vit

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a learner is told.

  Attributes:
    config: of the experiment.
    net: the backbone.
    class_ids: classes of each task.
    num_classes: C.
    boundaries: whether tasks have an end that the learner is told of.
  """

  config: Any
  net: vit.ViT
  class_ids: tuple[tuple[int, ...], ...]
  num_classes: int
  boundaries: bool

  @property
  def num_tasks(self) -> int:
    """How many tasks the stream has."""
    return len(self.class_ids)


class Learner:
  """Sequential fine-tuning; others change what differs.

  Attributes:
    trains: `all` of the network, the `head`, or `prompts` and head; `nothing`
      takes no steps.
    masked: whether the softmax of training sees the task's classes alone.
    replays: whether examples are kept.
    rehearses: names of a batch that are kept with them.
    scratch: whether each task starts from the backbone again.
    whole: whether it sees all tasks at once, at the end.
    needs_boundaries: whether it must be told where tasks end.
  """

  trains = "all"
  masked = False
  replays = False
  scratch = False
  whole = False
  needs_boundaries = False

  def __init__(self, setup: Setup):
    self.setup = setup
    self.config = setup.config
    self.model = self.make_model()

  def make_model(self) -> l2p.PromptedViT:
    """The network."""
    return networks.plain(self.setup.net, self.setup.num_classes)

  @property
  def trainable(self) -> tuple[str, ...]:
    """Paths of what is trained."""
    if self.trains == "all":
      return ("backbone", "head")
    return self.model.trainable if self.trains == "prompts" else ("head",)

  # What differs between methods.

  def loss(self) -> types.LossFn:
    """The loss of a batch whose images are in [0, 255]."""
    return self._replayed(continual.cross_entropy(self.apply))

  def extras(self, params: types.PyTree, key: jax.Array) -> dict[str, Any]:
    """What the model state has at first, besides frozen weights."""
    del params
    return self._buffer(key) if self.replays else {}

  def begin(self, state: types.TrainState, task: int, data: Arrays):
    """The state at the start of a task."""
    del task, data
    return state

  def finish(self, state: types.TrainState, task: int, data: Arrays):
    """The state after a task; not told where there are no boundaries."""
    del task, data
    return state

  def wrap(self, step: types.StepFn) -> types.StepFn:
    """The step with what is done after it."""
    return step

  def logits(self, state: types.TrainState, batch: types.Batch) -> jax.Array:
    """Logits `[n, C]` at test, each example by itself."""
    return self.outputs(state, batch)["logits"]

  # What they share.

  def apply(self, params, model_state, batch, key):
    """The `ApplyFn` of the baselines."""
    del key
    images = networks.prepared(batch["image"])
    params = l2p.merged(params, model_state)
    return self.model.apply({"params": params}, images)["logits"], model_state

  def outputs(self, state, batch, **options) -> dict[str, Any]:
    """What the network says at test."""
    return self.model.apply(
      {"params": l2p.merged(state.params, state.model_state)},
      networks.prepared(batch["image"]),
      query=batch.get("query") if self.model.pool is not None else None,
      mask=batch.get("mask"),
      **options,
    )

  def _classes(self, task: int) -> jax.Array:
    ids = self.setup.class_ids[task]
    return continual.class_mask(np.asarray(ids), self.setup.num_classes)

  def _replayed(self, loss: types.LossFn) -> types.LossFn:
    return continual.er(loss) if self.replays else loss

  def _example(self) -> dict[str, np.ndarray]:
    """One example as the buffer keeps it."""
    data = self.config.data
    shape = (data.image_size, data.image_size, data.channels)
    example = {"image": np.zeros(shape, np.uint8), "label": np.int32(0)}
    if self.model.pool is not None and self.config.cache_queries:
      example["query"] = np.zeros(self.setup.net.width, np.float32)
    return example

  def _buffer(self, key: jax.Array) -> dict[str, Any]:
    size = self.config.buffer_per_class * self.setup.num_classes
    empty = continual.reservoir(self._example(), capacity=size)
    return continual.with_replay({}, empty, key)
