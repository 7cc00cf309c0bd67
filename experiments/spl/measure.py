"""What networks and labels are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.spl import methods, networks, sets
from locojax.methods import spl

# Added to the squares of features, of variance 1 and as many as there are.
_RIDGE = 1e-2


def predictor(net: networks.Net) -> Callable[..., tuple[Any, Any]]:
  """`(variables, batches) -> (logits, features)` of all clips."""
  run = jax.jit(net.predict)

  def predict(variables, batches: Iterable[Mapping[str, Any]]):
    found = []
    for batch in batches:
      out = run(variables, batch["clip"])
      found.append([np.asarray(x)[batch["mask"] != 0] for x in out])
    return tuple(np.concatenate(x) for x in zip(*found))

  return predict


def by_video(logits: np.ndarray, part: sets.Part) -> tuple[Any, np.ndarray]:
  """Probabilities averaged over the clips of each video, and its labels."""
  z = logits.astype(np.float64)
  probs = np.exp(z - z.max(axis=1, keepdims=True))
  probs /= probs.sum(axis=1, keepdims=True)
  videos, first, back = np.unique(
    part.video, return_index=True, return_inverse=True
  )
  mean = np.zeros((len(videos), probs.shape[1]))
  np.add.at(mean, back, probs)
  return mean / np.bincount(back)[:, None], part.label[first]


def evaluation(net: networks.Net):
  """`(part, batches, state) -> {name: value}`: accuracies of a run.

  Args:
    net: the network, compiled once for all parts.
  """
  predict = predictor(net)

  def run(part: sets.Part, batches: Callable[[], Iterable], state):
    variables = {"params": state.params["net"], **state.model_state["net"]}
    logits, _ = predict(variables, batches())
    return scores(logits, part)

  return run


def scores(logits: np.ndarray, part: sets.Part) -> dict[str, float]:
  """Top-1 and top-5 accuracy of videos, and their cross-entropy."""
  probs, labels = by_video(logits, part)
  order = np.argsort(-probs, axis=1, kind="stable")
  own = probs[np.arange(len(labels)), labels]
  return {
    "accuracy": float(np.mean(order[:, 0] == labels)),
    "top5": float(np.mean((order[:, :5] == labels[:, None]).any(axis=1))),
    "loss": float(-np.mean(np.log(np.maximum(own, 1e-12)))),
  }


def linear_probe(train, train_labels, test, test_part: sets.Part) -> float:
  """Accuracy of ridge regression on frozen features.

  Args:
    train: `[n, F]` features.
    train_labels: `[n]` integers.
    test: `[m, F]`.
    test_part: with labels and videos.
  """
  mean, scale = train.mean(axis=0), train.std(axis=0) + 1e-6
  x, z = ((np.float64(f) - mean) / scale for f in (train, test))
  num = int(max(train_labels.max(), test_part.label.max())) + 1
  y = np.eye(num)[train_labels]
  offset = y.mean(axis=0)
  square = x.T @ x / len(x) + _RIDGE * np.eye(x.shape[1])
  weights = np.linalg.solve(square, x.T @ (y - offset) / len(x))
  out = z @ weights + offset
  mean_of = np.zeros((test_part.video.max() + 1, num))
  np.add.at(mean_of, test_part.video, out)
  videos, first = np.unique(test_part.video, return_index=True)
  hits = mean_of[videos].argmax(axis=1) == test_part.label[first]
  return float(hits.mean())


def of_labels(
  weak: sets.Part, found: methods.Predictions, labels: methods.Labels
) -> dict[str, Any]:
  """What a label space is, and how right the two labels are."""
  stats = labels.space.stats()
  teacher = found.probs.argmax(axis=1)
  out = {k: v for k, v in stats.items() if k != "top_pairs"}
  out["top_pairs"] = stats["top_pairs"]
  out["agreement"] = float(spl.agreement_mask(weak.label, teacher).mean())
  if weak.truth is not None:
    kept = weak.truth[labels.rows]
    out["weak_right"] = float(np.mean(weak.label == weak.truth))
    out["teacher_right"] = float(np.mean(teacher == weak.truth))
    out["kept_right"] = float(np.mean(weak.label[labels.rows] == kept))
  return out
