"""Data, model and loss of the deep-autoencoder benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import datasets
from locojax.core import checks, metrics, types
from locojax.data import curves
from locojax.methods.locoprop import matching
from locojax.nn import mlp

ACTIVATIONS = ("tanh", "sigmoid", "relu", "leaky_relu", "elu", "softplus")


def load(
  name: str,
  *,
  size: int | None = None,
  num_train: int | None = None,
  num_test: int | None = None,
  data_dir: str | None = None,
) -> dict[str, np.ndarray]:
  """Flat images in [0, 1] by split.

  Args:
    name: 'curves', or a data set of `experiments.common.datasets`.
    size: height and width; photographs are averaged down to it, which it must
      divide. None keeps theirs (28 for curves).
    num_train, num_test: the first so many; None takes all (20000 and 10000
      for curves).
    data_dir: of tfds.

  Returns:
    'train' and 'test', float32 `[n, size * size]`.
  """
  counts = {"train": num_train, "test": num_test}
  if name == "curves":
    default = {"train": 20_000, "test": 10_000}
    return {
      split: curves.curves(
        counts[split] or default[split],
        rng=np.random.default_rng([0, i]),
        size=size or 28,
      ).reshape(counts[split] or default[split], -1)
      for i, split in enumerate(("train", "test"))
    }
  splits = datasets.load(name, data_dir=data_dir or None)
  return {
    split: _flat(arrays["image"][: counts[split]], size)
    for split, arrays in splits.items()
  }


def _flat(images: np.ndarray, size: int | None) -> np.ndarray:
  images = images.astype(np.float32) / 255.0
  side = images.shape[1]
  if size:
    checks.divisible("side of the images", side, "data.size", size)
    k = side // size
    shape = (len(images), size, k, size, k, -1)
    images = images.reshape(shape).mean((2, 4))
  return images.reshape(len(images), -1)


@dataclasses.dataclass(frozen=True)
class Task:
  """The autoencoder and its losses.

  Attributes:
    model: logits from images.
    transfers: transfer functions by regex of the layer path.
  """

  model: mlp.Autoencoder
  transfers: Mapping[str, str]

  def init(self, key: jax.Array) -> types.PyTree:
    """Parameters; weights and biases glorot uniform."""
    x = jnp.zeros((1, self.model.num_inputs))
    return self.model.init(key, x)["params"]

  def loss(self, params, model_state, batch, key):
    """Sigmoid cross-entropy, summed over pixels, mean over examples."""
    logits = self.model.apply({"params": params}, batch["image"])
    value = _cross_entropy(logits, batch["image"])
    return value.value(), ({"loss": value}, model_state)

  def sampled_loss(self, params, model_state, batch, key):
    """The same with pixels drawn from the model's own Bernoullis."""
    logits = self.model.apply({"params": params}, batch["image"])
    rate = jax.nn.sigmoid(jax.lax.stop_gradient(logits))
    labels = jax.random.bernoulli(key, rate).astype(logits.dtype)
    value = _cross_entropy(logits, labels)
    return value.value(), ({"loss": value}, model_state)


def _cross_entropy(logits, labels) -> metrics.Mean:
  each = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels)
  return metrics.mean(jnp.sum(each, axis=-1))


def task(
  *,
  num_inputs: int,
  hidden: Sequence[int],
  code_size: int,
  activation: str,
  dtype: Any = None,
) -> Task:
  """The task for images of `num_inputs` pixels."""
  checks.one_of("model.activation", activation, ACTIVATIONS)
  model = mlp.Autoencoder(
    num_inputs=num_inputs,
    hidden=tuple(hidden),
    code_size=code_size,
    activation=matching.get(activation).transfer,
    dtype=dtype,
  )
  transfers = {"^code$": "linear", "^output$": "sigmoid", ".*": activation}
  return Task(model, transfers)


def evaluator(task: Task, arrays: Mapping[str, np.ndarray], chunk: int):
  """`TrainState -> {'train_loss', 'test_loss'}` over the whole splits."""

  @jax.jit
  def total(params, images, mask):
    def one(sums, part):
      image, keep = part
      logits = task.model.apply({"params": params}, image)
      each = optax.sigmoid_binary_cross_entropy(logits, image)
      return sums + jnp.sum(jnp.sum(each, axis=-1) * keep), None

    return jax.lax.scan(one, jnp.float32(0), (images, mask))[0]

  chunked = {split: _chunks(x, chunk) for split, x in arrays.items()}

  def run(state: types.TrainState) -> dict[str, float]:
    return {
      f"{split}_loss": float(total(state.params, *chunked[split])) / len(x)
      for split, x in arrays.items()
    }

  return run


def _chunks(x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """`[n, d]` to `[m, size, d]` and a mask `[m, size]` of the real rows."""
  size = min(size, len(x))
  num = -(-len(x) // size)
  padded = np.zeros((num * size, *x.shape[1:]), x.dtype)
  padded[: len(x)] = x
  mask = (np.arange(num * size) < len(x)).astype(np.float32)
  return padded.reshape(num, size, -1), mask.reshape(num, size)
