"""The backbone: pre-trained here on other data than the stream, or loaded.

All methods and seeds of a study share it. A checkpoint of the user's takes the
place of the pre-training.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import places, stages, study
from experiments.l2p import networks, sets
from locojax.core import checks, class_masks, metrics, types
from locojax.data import image, pipeline
from locojax.nn import transformer, vit, vit_weights
from locojax.train import distributed, experiment, optimizers, steps

FOLDER, FILE = "backbone", "vit.npz"
# What is compared does not change it.
_OF_OTHERS = ("methods", "method", "seeds", "task")


class Backbone(NamedTuple):
  """A module and its weights.

  Attributes:
    net: the vision transformer.
    params: nested dict of arrays.
  """

  net: vit.ViT
  params: Any


def _splits(config) -> dict[str, sets.Split]:
  data = config.data.to_dict()
  load = functools.partial(
    sets.load, data=data, train=data["backbone_per_class"], test=0
  )
  found = [load(name) for name in data["backbone"]]
  return {s: sets.joined([f[s] for f in found]) for s in ("train", "test")}


def num_classes(config) -> int:
  """Classes of all sets together."""
  return sum(sets.num_classes(name) for name in config.data.backbone)


def _loss(model):
  def loss(params, model_state, batch, key):
    del key
    out = model.apply({"params": params}, networks.prepared(batch["image"]))
    logits, labels = out["logits"], batch["label"]
    losses, _ = class_masks.masked_cross_entropy(logits, labels)
    found = {
      "loss": metrics.mean(losses),
      "accuracy": metrics.accuracy(logits, labels),
    }
    return losses.mean(), (found, model_state)

  return loss


def _optimizer(config):
  settings = config.pretrain
  rate = optimizers.schedule(
    "cosine",
    learning_rate=settings.learning_rate,
    num_steps=settings.num_steps,
    warmup_steps=settings.warmup_steps,
  )
  return optimizers.make(
    "adamw",
    learning_rate=rate,
    weight_decay=settings.weight_decay,
    decay_paths="kernel$",
    clip_norm=1.0,
  )


def _accuracy(config, model):
  @jax.jit
  def hits(params, batch):
    out = model.apply({"params": params}, networks.prepared(batch["image"]))
    return out["logits"].argmax(-1) == batch["label"]

  def run(state):
    test = _splits(config)["test"]
    batches = pipeline.padded_batches(test, batch_size=config.eval_batch_size)
    found = [np.asarray(hits(state.params, b))[b["mask"] != 0] for b in batches]
    return {"accuracy": float(np.concatenate(found).mean())}

  return run


def build(config) -> experiment.Experiment:
  """The pre-training: plain classification of all its sets together."""
  data, settings = config.data, config.pretrain
  model = networks.plain(networks.backbone(config), num_classes(config))
  tx = _optimizer(config)
  shape = (data.image_size, data.image_size, data.channels)

  def init(key):
    init_key, run_key = jax.random.split(key)
    params = model.init(init_key, jnp.zeros((1, *shape)))["params"]
    return steps.init_state(params, tx, key=run_key)

  def batches(start):
    crop = functools.partial(image.random_crop, pad=settings.crop_pad)
    return pipeline.array_batches(
      _splits(config)["train"],
      batch_size=settings.batch_size,
      seed=config.seed,
      random_map=image.chain(crop) if settings.crop_pad else None,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )(start)

  evals = {}
  if config.needs_data:
    every = max(1, settings.num_steps // 4)
    evals["test"] = experiment.Eval(every, _accuracy(config, model))
  rows = settings.batch_size
  return experiment.Experiment(
    init=init,
    step=steps.from_loss(_loss(model), tx),
    batches=batches,
    num_steps=settings.num_steps,
    batch_shapes={
      "image": jax.ShapeDtypeStruct((rows, *shape), jnp.uint8),
      "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
    },
    evals=evals,
    examples_per_step=rows,
  )


def load(config) -> Backbone:
  """The backbone of the user's checkpoint.

  Raises:
    ValueError: a file that is no vision transformer for these images.
  """
  data = config.data
  try:
    found = vit_weights.load_vit(
      places.expanded(data.checkpoint),
      format=data.format or None,
      image_size=data.image_size,
      num_heads=data.num_heads or None,
    )
  except ValueError as error:
    raise ValueError(
      f"data.checkpoint={data.checkpoint!r}: {error} (data.format and "
      "data.num_heads say what the file does not.)"
    ) from error
  net, params = networks.backbone(config, found.settings), found.params
  checks.divisible(
    "data.image_size", data.image_size, "patches of the file", net.patch_size
  )
  channels = params["patches"]["projection"]["kernel"].shape[2]
  if channels != data.channels:
    checks.refuse("data.channels", data.channels, f"{channels}, of the file")
  return Backbone(net, _in_layers(params, net))


def _in_layers(params, net: vit.ViT):
  """Unrolled blocks as the module wants them."""
  if not net.scan:
    return params
  return {**params, "encoder": transformer.stack_blocks(params["encoder"])}


def get(made: study.Study) -> Backbone:
  """Loads the backbone, or trains it in its folder; resumes."""
  config = made.config
  if config.data.checkpoint:
    return load(config)
  one = stages.changed(config, stage="backbone", seed=config.data.seed)
  where = made.workdir / FOLDER
  state: types.TrainState = made.cell(
    "backbone", where, functools.partial(_fit, one, where), typical=False
  )
  net = networks.backbone(config)
  params = jax.tree.map(np.asarray, state.params["backbone"])
  if distributed.is_main() and not (made.workdir / FILE).exists():
    kept = params
    if net.scan:
      blocks = transformer.unstack_blocks(params["encoder"])
      kept = {**params, "encoder": blocks}
    vit_weights.save_vit_npz(made.workdir / FILE, kept, num_heads=net.num_heads)
  return Backbone(net, params)


def _fit(config, where: pathlib.Path) -> types.TrainState:
  return stages.fit(
    build(config),
    config,
    where,
    log_every=max(1, config.pretrain.num_steps // 20),
    may_differ=_OF_OTHERS,
  )
