"""How a student is pre-trained: labels, loss, and what is compared to it.

  scratch          not at all
  images           not at all, from weights of images (for clips)
  weak, teacher    by one of the two labels
  agreement        by the weak label, where the teacher agrees
  distillation     by the teacher's probabilities
  two_heads        by both labels, a head each: no pairs
  data_parameters  by the weak label, with learned temperatures
  weak_ciw         by the weak label, with instance weights of CIW
  spl_raw, ...     by pairs of both labels, see `locojax.methods.spl`
  random_pairs     pairs of which the predictions are exchanged among the clips
                   of a weak label: as many classes, as large, and no sense

A name may end in `@epochs`: a method that drops clips then makes as many passes
over those that are left as the others over all, instead of as many updates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks, metrics, types
from locojax.core import labels as labels_lib
from locojax.methods import ciw, spl

EPOCHS = "@epochs"
_SHUFFLE = 0x5B1


@dataclasses.dataclass(frozen=True)
class Method:
  """What makes a method.

  Attributes:
    space: of `spl.build_label_space`; empty without pre-training.
    loss: a key of `LOSSES`.
    shuffled: whether predictions are exchanged among the clips of a label.
    start: 'config' is the config's start, 'fresh' or 'images' is its own.
  """

  space: str = ""
  loss: str = "labels"
  shuffled: bool = False
  start: str = "config"


METHODS: dict[str, Method] = {
  "scratch": Method(start="fresh"),
  "images": Method(start="images"),
  "weak": Method("weak"),
  "teacher": Method("teacher"),
  "agreement": Method("agreement"),
  "distillation": Method("teacher", loss="distillation"),
  "two_heads": Method("weak", loss="two_heads"),
  "data_parameters": Method("weak", loss="data_parameters"),
  "weak_ciw": Method("weak", loss="ciw"),
  "spl_raw": Method("raw"),
  "spl_b": Method("spl_b"),
  "spl_top_k": Method("top_k"),
  "spl_min_count": Method("min_count"),
  "spl_cluster": Method("cluster"),
  "random_pairs": Method("raw", shuffled=True),
  "random_top_k": Method("top_k", shuffled=True),
}
# Those whose fall-back may drop clips.
_DROPS = ("agreement", "spl_top_k", "spl_min_count", "spl_cluster")


def parse(name: str) -> tuple[Method, bool]:
  """A method by its name, and whether epochs instead of updates are equal.

  Raises:
    ValueError: an unknown name, or `@epochs` of a method that drops nothing.
  """
  plain, epochs, rest = str(name).partition(EPOCHS)
  method = checks.lookup("method", plain, METHODS)
  if rest or (epochs and plain not in _DROPS):
    checks.refuse(
      "method", name, f"without {EPOCHS!r}, or one of {_DROPS} with it"
    )
  return method, bool(epochs)


def rule(name: str, found: str) -> str:
  """The rule of a setting that names a method."""
  try:
    parse(found)
  except ValueError as error:
    raise ValueError(f"{name}={found!r} is not allowed: {error}") from error
  return found


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What a teacher says of the weak clips.

  Attributes:
    probs: `[n, N]` float32.
    label: `[n]` int32, -1 where it is not sure.
    embeddings: `[N, F]` float32, the rows of its last layer.
  """

  probs: np.ndarray
  label: np.ndarray
  embeddings: np.ndarray


@dataclasses.dataclass(frozen=True)
class Labels:
  """What a student is trained on.

  Attributes:
    space: the label space.
    columns: of the batches, `[n, ...]`; `label` among them.
    rows: the clips that are kept.
    num_outputs: of the student's last layer.
  """

  space: spl.LabelSpace
  columns: Mapping[str, np.ndarray]
  rows: np.ndarray
  num_outputs: int

  def train(self) -> dict[str, np.ndarray]:
    """The columns of the clips that are kept, with their places among them."""
    out = {k: v[self.rows] for k, v in self.columns.items()}
    return {**out, "index": np.arange(len(self.rows), dtype=np.int32)}


def space_settings(settings: Mapping[str, Any], space: str) -> dict[str, Any]:
  """The settings of a label space that it takes."""
  out = {"fallback": settings["fallback"]}
  if space in ("top_k", "cluster"):
    out["k"] = settings["k"]
  if space == "min_count":
    out["min_count"] = settings["min_count"]
  return out


def given(method: Method, weak, found: Predictions, seed: int):
  """Weak labels and predictions as the method takes them."""
  if method.space == "weak":
    return weak, found.probs.argmax(axis=1).astype(np.int32)
  if not method.shuffled:
    return weak, found.label
  rng = np.random.default_rng([_SHUFFLE, seed])
  return weak, spl.shuffled_teacher(weak, found.label, rng=rng)


def build_space(
  method: Method, weak, teacher, found: Predictions, settings
) -> spl.LabelSpace:
  """The label space of a method, of all clips of which the teacher is sure."""
  num = found.probs.shape[1]
  confusion = spl.confusion_matrix(
    weak, teacher, num, num, weights=teacher >= 0
  )
  options = space_settings(settings, method.space)
  if method.space == "cluster":
    options["embeddings"] = found.embeddings
    options["k"] = min(options["k"], int((confusion > 0).sum()))
  return spl.build_label_space(confusion, method.space, **options)


def make_labels(
  method: Method, space: spl.LabelSpace, weak, teacher, found: Predictions
) -> Labels:
  """What a student of this method is trained on."""
  labels, kept = spl.relabel(weak, teacher, space)
  columns: dict[str, np.ndarray] = {"label": labels}
  num = space.num_classes
  if method.loss == "distillation":
    columns["probs"] = found.probs
  if method.loss == "two_heads":
    columns["teacher"] = found.probs.argmax(axis=1).astype(np.int32)
    num += found.probs.shape[1]
  return Labels(space, columns, np.flatnonzero(kept), num)


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a loss is made for.

  Attributes:
    num_weak: weak classes.
    options: `temperature` of distillation, `weight` of the second head,
      `data_decay` of temperatures, `ciw_lambda`.
  """

  num_weak: int
  options: Mapping[str, float]


def _labels(setup, logits, batch, params):
  del setup, params
  return jnp.mean(labels_lib.cross_entropy(logits, batch["label"]))


def _distillation(setup, logits, batch, params):
  del params
  target = jnp.log(batch["probs"])
  tau = setup.options["temperature"]
  return spl.distillation_loss(logits, target, temperature=tau)


def _two_heads(setup, logits, batch, params):
  del params
  cut = setup.num_weak
  return spl.two_head_loss(
    logits[:, :cut],
    logits[:, cut:],
    batch["label"],
    batch["teacher"],
    weight=setup.options["weight"],
  )


def _data_parameters(setup, logits, batch, params):
  return spl.data_parameter_loss(
    logits,
    batch["label"],
    params["data"],
    index=batch["index"],
    weight_decay=setup.options["data_decay"],
  )


def _ciw(setup, logits, batch, params):
  del params
  instance = ciw.InstanceConfig("kl", lam=setup.options["ciw_lambda"])
  return ciw.ciw_loss(logits, batch["label"], instance=instance)[0]


# (setup, logits, batch, params) -> []
LOSSES: dict[str, Callable[..., jax.Array]] = {
  "labels": _labels,
  "distillation": _distillation,
  "two_heads": _two_heads,
  "data_parameters": _data_parameters,
  "ciw": _ciw,
}
# Columns of a batch besides the clips.
COLUMNS = {
  "labels": ("label",),
  "distillation": ("label", "probs"),
  "two_heads": ("label", "teacher"),
  "data_parameters": ("label", "index"),
  "ciw": ("label",),
}


def accuracy(
  loss: str, setup: Setup, logits: jax.Array, batch: types.Batch
) -> metrics.Mean:
  """How often the given label is the most probable one."""
  if loss == "two_heads":
    logits = logits[:, : setup.num_weak]
  return metrics.accuracy(logits, batch["label"])
