"""Data, model and loss by name: click prediction and image classification."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import datasets, tabular, trained_on
from locojax.core import checks, labels, metrics, types
from locojax.methods.smelu import activations, recommender
from locojax.nn import mlp

IMAGES = ("digits", "mnist", "fashion_mnist")
CLICKS = ("synthetic_ctr", "movielens", "adult")


@dataclasses.dataclass(frozen=True)
class Task:
  """What is trained.

  Attributes:
    init: `key -> (params, model_state)`.
    loss: a `LossFn`.
    predict: `(params, model_state, batch) -> [B]` probabilities of a click, or
      `[B, K]` of classes; float32.
    train, test: arrays by name, a batch's names; empty without data.
    extra: arrays of the test examples that no model sees (`query`).
    batch_shapes: leading size B -> shapes of a batch.
    num_classes: K; 0 for clicks.
    rules: shardings of the parameters.
  """

  init: Callable[[jax.Array], tuple[types.PyTree, types.PyTree]]
  loss: types.LossFn
  predict: Callable[..., jax.Array]
  train: Mapping[str, np.ndarray]
  test: Mapping[str, np.ndarray]
  extra: Mapping[str, np.ndarray]
  batch_shapes: Callable[[int], Any]
  num_classes: int = 0
  rules: tuple = ()


def _first(arrays: Mapping[str, np.ndarray], count: int | None):
  return {k: v[: count or None] for k, v in arrays.items()}


def _named(name, data_dir, *sizes) -> dict[str, Any]:
  del sizes
  return {"name": name, "data_dir": data_dir}


@trained_on.cached(_named)
def _clicks(name, data_dir, num_train, num_test):
  options = {}
  if name == "synthetic_ctr":
    options = {"num_train": num_train, "num_test": num_test}
  found = tabular.load(name, data_dir=data_dir or None, **options)
  names = ("categorical", "numeric", "label")
  sizes = {"train": num_train, "test": num_test}
  splits = {}
  for split, count in sizes.items():
    arrays = getattr(found, split)
    splits[split] = _first({k: arrays[k] for k in names}, count)
  query = found.test.get("query")
  splits["extra"] = {} if query is None else _first({"query": query}, num_test)
  return splits, found


def _click_model(vocab_sizes, activation, model, **options):
  options = {**recommender.PRESETS[model["preset"]], **options}
  if model["hidden"]:
    options["hidden"] = tuple(model["hidden"])
  if vocab_sizes:
    options["vocab_sizes"] = tuple(vocab_sizes)
  return recommender.CTRModel(
    activation=activations.get_activation(activation),
    normalization=model["normalization"] or None,
    dropout_rate=model["dropout_rate"],
    **options,
  )


def _click_shapes(num_slots: int, num_numeric: int):
  def shapes(size: int):
    return {
      "categorical": jax.ShapeDtypeStruct((size, num_slots), jnp.int32),
      "numeric": jax.ShapeDtypeStruct((size, num_numeric), jnp.float32),
      "label": jax.ShapeDtypeStruct((size,), jnp.float32),
    }

  return shapes


def clicks(data: Mapping[str, Any], model: Mapping[str, Any], activation: str):
  """Click prediction on one of `CLICKS`.

  Args:
    data: `name`, `data_dir`, `num_train`, `num_test` (0 for all).
    model: `preset` of the recommender, `hidden` (empty for the preset's),
      `normalization`, `dropout_rate`.
    activation: a name of `activations.get_activation`.
  """
  splits, found = _clicks(
    *(data[k] for k in ("name", "data_dir", "num_train", "num_test"))
  )
  net = _click_model(
    found.vocab_sizes, activation, model, widths=tuple(found.widths)
  )
  num_slots = splits["train"]["categorical"].shape[1]
  num_numeric = splits["train"]["numeric"].shape[1]
  return Task(
    init=lambda key: recommender.init(net, key=key, num_numeric=num_numeric),
    loss=recommender.make_loss(net),
    predict=recommender.make_predict(net),
    batch_shapes=_click_shapes(num_slots, num_numeric),
    **splits,
  )


def criteo(data: Mapping[str, Any], model: Mapping[str, Any], activation: str):
  """A model of the size of the Criteo sets; shapes only, no data."""
  del data
  net = _click_model((), activation, model)
  num_numeric = recommender.NUM_NUMERIC_CRITEO
  return Task(
    init=lambda key: recommender.init(net, key=key, num_numeric=num_numeric),
    loss=recommender.make_loss(net),
    predict=recommender.make_predict(net),
    train={},
    test={},
    extra={},
    batch_shapes=_click_shapes(len(net.vocab_sizes), num_numeric),
    rules=recommender.RULES_ALL_DEVICES,
  )


@trained_on.cached(_named)
def _images(name, data_dir, num_train, num_test):
  found = datasets.load(name, data_dir=data_dir or None)
  sizes = {"train": num_train, "test": num_test}

  def flat(arrays, count):
    image = arrays["image"][: count or None].astype(np.float32) / 255.0
    label = arrays["label"][: count or None]
    return {"image": image.reshape(len(image), -1), "label": label}

  return {split: flat(found[split], count) for split, count in sizes.items()}


def images(data: Mapping[str, Any], model: Mapping[str, Any], activation: str):
  """Classification of one of `IMAGES` by a dense network; see `clicks`."""
  splits = _images(
    *(data[k] for k in ("name", "data_dir", "num_train", "num_test"))
  )
  num_inputs, num_classes = splits["train"]["image"].shape[1], 10
  net = mlp.MLP(
    (*model["hidden"], num_classes),
    activation=activations.get_activation(activation),
    normalization=model["normalization"] or None,
    dropout_rate=model["dropout_rate"],
  )
  return Task(
    init=lambda key: (net.init(key, jnp.zeros((1, num_inputs)))["params"], {}),
    loss=_class_loss(net),
    predict=_class_probabilities(net),
    extra={},
    batch_shapes=lambda size: {
      "image": jax.ShapeDtypeStruct((size, num_inputs), jnp.float32),
      "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    },
    num_classes=num_classes,
    **splits,
  )


def _class_loss(net: mlp.MLP) -> types.LossFn:
  if net.normalization == "batch":
    raise ValueError(
      "model.normalization='batch' is not allowed for images: one of '', "
      "'layer', 'weight'."
    )

  def loss_fn(params, model_state, batch, key):
    mask = batch.get("mask")
    logits = net.apply(
      {"params": params},
      batch["image"],
      train=True,
      mask=mask,
      rngs={"dropout": key},
    )
    each = labels.cross_entropy(logits, batch["label"], mask)
    out = {
      "loss": metrics.mean(each, mask),
      "accuracy": metrics.accuracy(logits, batch["label"], mask),
    }
    return out["loss"].loss(), (out, model_state)

  return loss_fn


def _class_probabilities(net: mlp.MLP):
  def predict(params, model_state, batch):
    del model_state
    logits = net.apply({"params": params}, batch["image"])
    return jax.nn.softmax(logits.astype(jnp.float32))

  return predict


TASKS: dict[str, Callable[..., Task]] = {
  **dict.fromkeys(CLICKS, clicks),
  **dict.fromkeys(IMAGES, images),
  "criteo": criteo,
}


def make(
  data: Mapping[str, Any], model: Mapping[str, Any], activation: str
) -> Task:
  """The task of a data set, with an activation by name.

  Raises:
    ValueError: an unknown data set or activation; the known ones are listed.
    FileNotFoundError: the data are not there; says how to get them.
  """
  builder = checks.lookup("data.name", data["name"], TASKS)
  return builder(data, model, activation)


def validation(task: Task, share: float) -> Task:
  """The task with the last part of the training data in place of the test."""
  num = len(next(iter(task.train.values())))
  checks.between("share", share, 0.0, 1.0)
  cut = num - max(1, round(share * num))
  return dataclasses.replace(
    task,
    train={k: v[:cut] for k, v in task.train.items()},
    test={k: v[cut:] for k, v in task.train.items()},
    extra={},
  )
