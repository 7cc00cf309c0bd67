"""Trains a small network with CICW and keeps what it says after each epoch."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

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
from locojax.train import experiment, folder, steps

MODELS = ("auto", "mlp", "resnet")
SETTINGS = {
  "model": "auto",
  "width": 16,
  "num_epochs": 20,
  "batch_size": 64,
  "learning_rate": 0.05,
  "seed": 0,
}


def _module(model: str, width: int, shape: Sequence[int], classes: int):
  """A residual network for images of 16 pixels or more, else an MLP."""
  checks.one_of("model", model, MODELS)
  if model == "auto":
    model = "resnet" if min(shape[:2]) >= 16 else "mlp"
  if model == "mlp":
    return mlp.MLP((8 * width, 8 * width, classes))
  return resnet.PreActResNet(classes, stage_sizes=(1, 1, 1), width=width)


def _net(config, images: np.ndarray, classes: int) -> noise.Net:
  pixels = images.reshape(-1, images.shape[-1]) / 255.0
  mean, std = pixels.mean(axis=0), np.maximum(pixels.std(axis=0), 1e-3)
  module = _module(config.model, config.width, images.shape[1:], classes)
  return noise.Net(module, tuple(mean.tolist()), tuple(std.tolist()))


def _collector(net: noise.Net, images, where: pathlib.Path) -> Callable:
  """An evaluation that writes the probabilities of all images to a file."""

  @jax.jit
  def probabilities(params, state, batch):
    logits = net.predict(params, state["net"], batch["image"])
    return jax.nn.softmax(logits)

  def run(state) -> dict[str, float]:
    parts = []
    for batch in pipeline.padded_batches({"image": images}, batch_size=500):
      found = probabilities(state.params, state.model_state, batch)
      parts.append(np.asarray(found, np.float32)[batch["mask"] != 0])
    p = np.concatenate(parts)
    files.write_array(where / f"{int(state.step):08d}.npy", p)
    return {"confidence": float(p.max(axis=-1).mean())}

  return run


def build(
  config, images: np.ndarray, labels: np.ndarray, where: pathlib.Path
) -> experiment.Experiment:
  """CICW training on all examples; each epoch leaves a file in the folder.

  Args:
    config: with the names of `SETTINGS`, `mesh` and `num_classes`.
    images: uint8 `[n, height, width, channels]`.
    labels: int32 `[n]`.
    where: the folder of the probabilities.
  """
  per_epoch = pipeline.steps_per_epoch(len(labels), config.batch_size)
  num_steps = config.num_epochs * per_epoch
  net = _net(config, images, config.num_classes)
  setup = methods.Setup(net.train, config.num_classes, len(labels), num_steps)
  method = methods.make("cicw", setup, **search.SPACES["cicw"][0])
  tx = optax.sgd(
    optax.cosine_decay_schedule(config.learning_rate, num_steps),
    momentum=0.9,
    nesterov=True,
  )

  def loss(params, model_state, batch, key):
    batch = {**batch, "image": net.normalize(batch["image"])}
    return method.loss(params, model_state, batch, key)

  def init(key):
    init_key, run_key = jax.random.split(key)
    params, state = net.init(init_key, images.shape[1:])
    model_state = method.model_state(state, len(labels))
    return steps.init_state(params, tx, key=run_key, model_state=model_state)

  index = np.arange(len(labels), dtype=np.int32)
  batches = pipeline.array_batches(
    {
      "image": images,
      "label": checks.integers("labels", labels),
      "index": index,
    },
    batch_size=config.batch_size,
    seed=config.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  rows = (config.batch_size,)
  shapes = {
    "image": jax.ShapeDtypeStruct((*rows, *images.shape[1:]), jnp.uint8),
    "label": jax.ShapeDtypeStruct(rows, jnp.int32),
    "index": jax.ShapeDtypeStruct(rows, jnp.int32),
  }
  return experiment.Experiment(
    init=init,
    step=steps.with_update(steps.from_loss(loss, tx)),
    batches=batches,
    num_steps=num_steps,
    batch_shapes=shapes,
    evals={
      "collect": experiment.Eval(per_epoch, _collector(net, images, where))
    },
    examples_per_step=config.batch_size,
  )


def probabilities(
  images: np.ndarray,
  labels: np.ndarray,
  *,
  num_classes: int,
  workdir: pathlib.Path,
  **settings,
) -> np.ndarray:
  """What the network says after each epoch; resumes, and trains once.

  The folder belongs to these images and labels in this order, and to these
  settings.

  Args:
    images: uint8 `[n, height, width, channels]`.
    labels: `[n]` integers.
    num_classes: K.
    workdir: of the run.
    **settings: see `SETTINGS`.

  Returns:
    `[epochs, n, K]` float32.

  Raises:
    ValueError: bad labels or settings, or the folder has a run on other data
      or with other settings.
  """
  labels = suspects_data.check_labels(labels, num_classes)
  config = ml_collections.ConfigDict({**SETTINGS, **settings})
  checks.seed("seed", config.seed)
  config.num_classes, config.mesh = num_classes, {"data": -1}
  config[folder.DATA] = digests.of_arrays({"images": images, "labels": labels})
  devices = jax.device_count()
  config.batch_size = max(1, config.batch_size // devices) * devices
  workdir = pathlib.Path(workdir).absolute()
  made = build(config, images, labels, workdir / "epochs")
  per_epoch = made.num_steps // config.num_epochs
  stages.fit(made, config, workdir, log_every=per_epoch, save_every=per_epoch)
  found = sorted((workdir / "epochs").glob("*.npy"))[1:]  # without step 0
  return np.stack([files.read_array(f) for f in found])
