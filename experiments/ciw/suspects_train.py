"""Trains a small network a fold with CICW; what each says of what it left out.

The networks of all folds are the replicas of one run. Each has batches, order
and initialisation of its own, and after some of the epochs leaves what it says
of the examples of its fold.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments.ciw import experiment as noise
from experiments.ciw import methods, search, suspects_data
from experiments.common import stages
from locojax.core import checks, files
from locojax.data import digests, pipeline
from locojax.nn import mlp, resnet
from locojax.train import experiment, folder, replicas, steps, variation

MODELS = ("mlp", "resnet")
# Few images make few updates an epoch: then more epochs are taken, and the
# weights wait until the network has learnt something.
LEAST_EPOCHS, LEAST_UPDATES, LEAST_BURNIN = 20, 500, 100
_COLLECTED = 8  # times
SETTINGS = {
  "model": "mlp",
  "width": 16,
  "num_epochs": None,
  "batch_size": 64,
  "learning_rate": 0.05,
  "seed": 0,
}


def _module(model: str, width: int, classes: int):
  checks.one_of("model", model, MODELS)
  if model == "mlp":
    return mlp.MLP((8 * width, 8 * width, classes))
  return resnet.PreActResNet(classes, stage_sizes=(1, 1, 1), width=width)


def _net(config, images: np.ndarray) -> noise.Net:
  pixels = images.reshape(-1, images.shape[-1]) / 255.0
  mean, std = pixels.mean(axis=0), np.maximum(pixels.std(axis=0), 1e-3)
  module = _module(config.model, config.width, config.num_classes)
  return noise.Net(module, tuple(mean.tolist()), tuple(std.tolist()))


def burnin(num_updates: int) -> float:
  """The share of a run before the weights differ.

  That of the study of noise, but `LEAST_BURNIN` updates at least, or half of
  what there is.
  """
  share = search.SPACES["cicw"][0]["burnin"]
  return max(share, min(LEAST_BURNIN / num_updates, 0.5))


def epochs(per_epoch: int) -> int:
  """How many epochs are trained if nobody says."""
  return max(LEAST_EPOCHS, -(-LEAST_UPDATES // per_epoch))


def _collector(
  config, net: noise.Net, images, folds, where: pathlib.Path
) -> Callable:
  """An evaluation that writes the probabilities out of fold to a file."""

  def probabilities(state, batch):
    net_state = state.model_state["net"]
    logits = net.predict(state.params, net_state, batch["image"])
    return jax.nn.softmax(logits)

  predict = replicas.predictor(probabilities, how=_how(config))

  def run(state) -> dict[str, float]:
    found = predict(
      state, pipeline.padded_batches({"image": images}, batch_size=500)
    )
    p = np.asarray(found, np.float32)[folds, np.arange(len(folds))]
    files.write_array(where / f"{int(state.step):08d}.npy", p)
    return {"confidence": float(p.max(axis=-1).mean())}

  return run


def _how(config) -> str:
  """XLA's convolutions under vmap or in loops are slow on CPUs."""
  return "unroll" if config.model == "resnet" else "vmap"


def _batches(config, images, labels, folds) -> Callable:
  """The batches of a replica by its seed: those of the other folds."""
  of = {
    variation.replica_seed(config.seed, r): r for r in range(config.num_folds)
  }

  def batches(seed):
    seen = np.flatnonzero(folds != of[seed])
    return pipeline.array_batches(
      {
        "image": images[seen],
        "label": checks.integers("labels", labels[seen]),
        "index": seen.astype(np.int32),
      },
      batch_size=config.batch_size,
      seed=seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  return batches


def _single(config, net: noise.Net, images, batches) -> experiment.Experiment:
  """The training of one network."""
  num_examples, num_steps = len(images), config.num_steps
  setup = methods.Setup(net.train, config.num_classes, num_examples, num_steps)
  options = {**search.SPACES["cicw"][0], "burnin": burnin(num_steps)}
  method = methods.make("cicw", setup, **options)
  schedule = optax.cosine_decay_schedule(config.learning_rate, num_steps)
  tx = optax.sgd(schedule, momentum=0.9, nesterov=True)

  def loss(params, model_state, batch, key):
    batch = {**batch, "image": net.normalize(batch["image"])}
    return method.loss(params, model_state, batch, key)

  def init(key):
    init_key, run_key = jax.random.split(key)
    params, state = net.init(init_key, images.shape[1:])
    model_state = method.model_state(state, num_examples)
    return steps.init_state(params, tx, key=run_key, model_state=model_state)

  rows = (config.batch_size,)
  return experiment.Experiment(
    init=init,
    step=steps.with_update(steps.from_loss(loss, tx)),
    batches=batches(variation.replica_seed(config.seed, 0)),
    num_steps=num_steps,
    batch_shapes={
      "image": jax.ShapeDtypeStruct((*rows, *images.shape[1:]), jnp.uint8),
      "label": jax.ShapeDtypeStruct(rows, jnp.int32),
      "index": jax.ShapeDtypeStruct(rows, jnp.int32),
    },
    examples_per_step=config.batch_size,
  )


def build(
  config,
  images: np.ndarray,
  labels: np.ndarray,
  folds: np.ndarray,
  where: pathlib.Path,
) -> experiment.Experiment:
  """CICW training of a network a fold; some epochs leave a file in the folder.

  Args:
    config: with the names of `SETTINGS`, `mesh`, `num_classes`, `num_folds`,
      `num_steps` and `collect_every`, in steps.
    images: uint8 `[n, height, width, channels]`.
    labels: int32 `[n]`.
    folds: `[n]`, of `suspects_folds.stratified`.
    where: the folder of the probabilities.
  """
  net = _net(config, images)
  batches = _batches(config, images, labels, folds)
  several = replicas.from_experiment(
    _single(config, net, images, batches),
    num_replicas=config.num_folds,
    vary=("init", "order", "dropout"),
    batches=batches,
    order_seed=config.seed,
    how=_how(config),
  )
  run = _collector(config, net, images, folds, where)
  evals = {"collect": experiment.Eval(config.collect_every, run)}
  return dataclasses.replace(several, evals=evals)


def _config(settings: Mapping[str, Any], folds) -> ml_collections.ConfigDict:
  """The settings with what follows from them, and from the sizes."""
  made = {**SETTINGS, **settings}
  checks.seed("seed", made["seed"])
  checks.positive_int("batch_size", made["batch_size"])
  num_folds = int(folds.max()) + 1
  least = len(folds) - int(np.bincount(folds).max())
  devices = jax.device_count()
  size = min(made["batch_size"], least)
  made["batch_size"] = max(1, size // devices) * devices
  per_epoch = pipeline.steps_per_epoch(least, made["batch_size"])
  if made["num_epochs"] is None:
    made["num_epochs"] = epochs(per_epoch)
  checks.positive_int("epochs", made["num_epochs"])
  every = max(1, made["num_epochs"] // _COLLECTED)
  return ml_collections.ConfigDict(
    {
      **made,
      "num_folds": num_folds,
      "num_steps": made["num_epochs"] * per_epoch,
      "collect_every": every * per_epoch,
      "mesh": {"data": -1},
    }
  )


def probabilities(
  images: np.ndarray,
  labels: np.ndarray,
  folds: Sequence[int],
  *,
  num_classes: int,
  workdir: pathlib.Path,
  **settings,
) -> np.ndarray:
  """What the networks say out of fold; resumes, and trains once.

  The folder belongs to these images and labels in this order, to these folds,
  and to these settings.

  Args:
    images: uint8 `[n, height, width, channels]`.
    labels: `[n]` integers.
    folds: `[n]`, of `suspects_folds.stratified`.
    num_classes: K.
    workdir: of the run.
    **settings: see `SETTINGS`.

  Returns:
    `[times, n, K]` float32, after some of the epochs.

  Raises:
    ValueError: bad labels or settings, or the folder has a run on other data
      or with other settings.
  """
  labels = suspects_data.check_labels(labels, num_classes)
  folds = np.asarray(folds)
  config = _config(settings, folds)
  config.num_classes = num_classes
  config[folder.DATA] = digests.of_arrays(
    {"images": images, "labels": labels, "folds": folds}
  )
  workdir = pathlib.Path(workdir).absolute()
  made = build(config, images, labels, folds, workdir / "epochs")
  every = config.collect_every
  stages.fit(made, config, workdir, log_every=every, save_every=every)
  found = sorted((workdir / "epochs").glob("*.npy"))[1:]  # without step 0
  return np.stack([files.read_array(f) for f in found])
