"""Federated tasks: clients, model, loss, test data."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sysconfig
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import datasets, places, trained_on
from locojax.core import checks, labels, metrics, types
from locojax.data import client_texts, clients, words
from locojax.methods import dp_ftrl
from locojax.nn import mlp

KINDS = ("classification", "next_word")


@dataclasses.dataclass(frozen=True)
class Task:
  """A task.

  Attributes:
    init: key -> parameters.
    loss: of a batch.
    metric: the metric of the loss that is reported.
    clients: the client data set, or None for a check without data.
    test: arrays of the test set.
    example: shape and dtype of one example by name.
  """

  init: Callable[[jax.Array], types.PyTree]
  loss: types.LossFn
  metric: str
  clients: clients.ClientData | None
  test: Mapping[str, np.ndarray]
  example: Mapping[str, jax.ShapeDtypeStruct]


def _pooled(images: np.ndarray, pool: int) -> np.ndarray:
  n, height, width, _ = images.shape
  cells = (n, height // pool, pool, width // pool, pool, -1)
  small = images.astype(np.float32).reshape(cells).mean(axis=(2, 4))
  return small.reshape(n, -1)


def _scale(images: np.ndarray) -> np.ndarray:
  return (images / max(images.max(), 1e-6) - 0.3).astype(np.float32)


@trained_on.cached(dict)
def _writers(items: tuple):
  """Client data set of pseudo-writers, and the test arrays."""
  data = dict(items)
  splits = datasets.load(data["name"], data_dir=data["data_dir"] or None)
  arrays = {
    split: {
      "image": _scale(_pooled(found["image"], data["pool"])),
      "label": found["label"].astype(np.int32),
    }
    for split, found in splits.items()
  }
  parts = clients.from_labels(
    arrays["train"],
    num_clients=data["num_clients"],
    examples_per_client=data["examples_per_client"],
    alpha=data["alpha"],
    rng=np.random.default_rng(data["seed"]),
  )
  return parts, arrays["test"]


def classification(
  data: Mapping[str, Any], model: Mapping[str, Any], *, needs_data: bool
) -> Task:
  """Images of pseudo-writers, cut by label with a Dirichlet distribution."""
  parts, width = None, data["num_inputs"]
  test = {"image": np.zeros((0, width), np.float32)}
  if needs_data:
    parts, test = _writers(tuple(sorted(data.items())))
    width = test["image"].shape[1]
  net = mlp.MLP((*model["hidden"], 10), activation=jnp.tanh)

  def loss(params, model_state, batch, key):
    del key
    mask = batch.get("mask")
    logits = net.apply({"params": params}, batch["image"], mask=mask)
    each = labels.cross_entropy(logits, batch["label"], mask)
    mean = metrics.mean(each, mask)
    value = mean.total / jnp.maximum(mean.weight, 1.0)
    accuracy = metrics.accuracy(logits, batch["label"], mask)
    return value, ({"loss": mean, "accuracy": accuracy}, model_state)

  return Task(
    init=lambda key: net.init(key, jnp.zeros((1, width)))["params"],
    loss=loss,
    metric="accuracy",
    clients=parts,
    test=test,
    example={
      "image": jax.ShapeDtypeStruct((width,), jnp.float32),
      "label": jax.ShapeDtypeStruct((), jnp.int32),
    },
  )


def _texts(data: Mapping[str, Any]) -> client_texts.Texts:
  """Texts by client: Python's own library, Shakespeare, or any folder."""
  if data["name"] == "stdlib":
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = sorted(root.glob("*.py"))
    return {f.name: [f.read_text("utf-8", "ignore")] for f in files}
  if not data["path"]:
    raise ValueError(
      f"data.path='' is not allowed with data.name={data['name']!r}: it must "
      "be a folder of text files, or JSON lines with a row for each role."
    )
  path = places.expanded(data["path"])
  if checks.one_of("data.name", data["name"], ("roles", "folder")) == "roles":
    return client_texts.shakespeare_by_role(path)
  return client_texts.texts_of_folder(path, clients=data["unit"])


@trained_on.cached(dict)
def _next_word_data(items: tuple):
  """Vocabulary of the held-out clients, training clients, test sentences.

  The vocabulary stands for a public one: it sees no training client.
  """
  data = dict(items)
  texts = {k: v for k, v in _texts(data).items() if any(map(str.strip, v))}
  names = sorted(texts)
  order = np.random.default_rng(data["seed"]).permutation(len(names))
  held = {names[i] for i in order[: data["num_held_out"]]}
  public = [t for name in sorted(held) for t in texts[name]]
  vocabulary = words.build_vocabulary(public, size=data["num_words"])
  make = functools.partial(
    client_texts.from_texts,
    vocabulary=vocabulary,
    length=data["length"],
    max_sentences=data["max_sentences"],
    min_sentences=data["min_sentences"],
  )
  train = make({n: t for n, t in texts.items() if n not in held})
  test = make({n: texts[n] for n in sorted(held)})
  return len(vocabulary.words), train, test.arrays["tokens"]


def next_word(
  data: Mapping[str, Any], model: Mapping[str, Any], *, needs_data: bool
) -> Task:
  """Next-word prediction; test sentences are those of held-out clients."""
  changes = {k: v for k, v in model.items() if k not in ("preset", "hidden")}
  train, test = None, np.zeros((0, data["length"] + 1), np.int32)
  if needs_data:
    size, train, test = _next_word_data(tuple(sorted(data.items())))
    changes["vocab_size"] = size
  net = dp_ftrl.next_word_model(model["preset"], **changes)
  tokens = jnp.zeros((1, data["length"]), jnp.int32)
  return Task(
    init=lambda key: net.init(key, tokens)["params"],
    loss=dp_ftrl.next_word_loss(net),
    metric="accuracy_no_oov_or_eos",
    clients=train,
    test={"tokens": test[: data["num_test"]]},
    example={"tokens": jax.ShapeDtypeStruct((data["length"] + 1,), jnp.int32)},
  )


def make(config) -> Task:
  """The task of a config."""
  data, model = dict(config.data), dict(config.model)
  kind = checks.one_of("task", config.task, KINDS)
  if kind == "next_word":
    return next_word(data, model, needs_data=config.needs_data)
  return classification(data, model, needs_data=config.needs_data)
