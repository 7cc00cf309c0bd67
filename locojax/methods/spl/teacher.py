"""Predictions of a teacher for every clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks, types

VIEWS = ("mean_probs", "mean_logits")
# (variables, batch) -> logits
ApplyFn = Callable[[types.PyTree, Any], jax.Array]


class Predictions(NamedTuple):
  """What a teacher says.

  Attributes:
    label: `[n]` int32, the most probable class, the first one of several; -1
      where the teacher is not sure.
    confidence: `[n]` float32, its probability, unsure clips included.
  """

  label: np.ndarray
  confidence: np.ndarray


def _probabilities(logits: jax.Array, views: str) -> jax.Array:
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  if logits.ndim == 3 and views == "mean_logits":
    logits = logits.mean(axis=1)
  probs = jax.nn.softmax(logits, axis=-1)
  return probs.mean(axis=1) if probs.ndim == 3 else probs


def batch_probabilities(
  apply_fn: ApplyFn,
  variables: types.PyTree,
  batches: Iterable[Any],
  *,
  views: str = "mean_probs",
) -> Iterator[np.ndarray]:
  """Class probabilities of clips, batch by batch.

  Args:
    apply_fn: a network in evaluation (running statistics of batch norm):
      logits `[b, N]`, or `[b, V, N]` of V views of each clip. Give it jitted.
    variables: its first argument.
    batches: its second argument, one after the other. What a dict has as
      `mask` `[b]` is kept back: rows where it is zero are padding and left out.
    views: 'mean_probs' averages the probabilities of the views of a clip,
      'mean_logits' their logits.

  Yields:
    `[b, N]` float32 or float64.

  Raises:
    ValueError: unknown views; logits of another rank or that are not finite.

  >>> apply_fn = lambda scale, clips: scale * clips  # any network
  >>> batches = [np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[0.1, 0.0]])]
  >>> [p.shape for p in batch_probabilities(apply_fn, 1.0, batches)]
  [(2, 2), (1, 2)]
  """
  checks.one_of("views", views, VIEWS)
  finish = jax.jit(lambda logits: _probabilities(logits, views))
  for batch in batches:
    mask = None
    if isinstance(batch, dict) and "mask" in batch:
      mask = np.asarray(batch["mask"]) != 0
      batch = {k: v for k, v in batch.items() if k != "mask"}
    logits = apply_fn(variables, batch)
    if logits.ndim not in (2, 3):
      raise ValueError(
        f"logits of shape {logits.shape} are not allowed: apply_fn must give "
        "[clips, classes] or [clips, views, classes]."
      )
    probs = np.asarray(finish(logits))
    probs = probs if mask is None else probs[mask]
    if not np.isfinite(probs).all():
      raise ValueError(
        "the teacher's logits are not finite, which is not allowed: they must "
        "be, for every clip."
      )
    yield probs


def teacher_probs(
  apply_fn: ApplyFn,
  variables: types.PyTree,
  batches: Iterable[Any],
  *,
  views: str = "mean_probs",
) -> np.ndarray:
  """Class probabilities of all clips, `[n, N]`; see `batch_probabilities`.

  Raises:
    ValueError: as there; no clip.

  >>> apply_fn = lambda scale, clips: scale * clips  # any network
  >>> batches = [np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[0.1, 0.0]])]
  >>> teacher_probs(apply_fn, 1.0, batches).shape
  (3, 2)
  """
  found = list(batch_probabilities(apply_fn, variables, batches, views=views))
  if not sum(map(len, found)):
    raise ValueError("batches hold no clip, which is not allowed.")
  return np.concatenate(found)


def predict_teacher(
  apply_fn: ApplyFn,
  variables: types.PyTree,
  batches: Iterable[Any],
  *,
  views: str = "mean_probs",
  min_confidence: float = 0.0,
) -> Predictions:
  """The teacher's label of every clip, one decision for each.

  Args:
    apply_fn, variables, batches, views: see `batch_probabilities`.
    min_confidence: in [0, 1]; below it the label is -1, which `relabel` drops
      and `confusion_matrix` leaves out by `weights=label >= 0`.

  Returns:
    Labels and their probabilities, in the order of the batches.

  Raises:
    ValueError: as `batch_probabilities`; a bad `min_confidence`; no clip.

  >>> apply_fn = lambda scale, clips: scale * clips  # any network
  >>> batches = [np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[0.1, 0.0]])]
  >>> predict_teacher(apply_fn, 1.0, batches, min_confidence=0.6).label.tolist()
  [0, 1, -1]
  """
  checks.in_range("min_confidence", min_confidence, 0.0, 1.0)
  found = batch_probabilities(apply_fn, variables, batches, views=views)
  pairs = [(p.argmax(axis=1), p.max(axis=1)) for p in found]
  if not sum(len(label) for label, _ in pairs):
    raise ValueError("batches hold no clip, which is not allowed.")
  label, confidence = (np.concatenate(x) for x in zip(*pairs))
  label = np.where(confidence >= min_confidence, label, -1)
  return Predictions(label.astype(np.int32), confidence.astype(np.float32))
