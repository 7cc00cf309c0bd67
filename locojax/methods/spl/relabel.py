"""Clips relabelled by a label space, and probabilities taken back from it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from locojax.core import arrays, checks
from locojax.methods.spl import counts as counts_lib
from locojax.methods.spl import label_space


def relabel(
  weak: ArrayLike, teacher: ArrayLike, space: label_space.LabelSpace
) -> tuple[np.ndarray, np.ndarray]:
  """New labels of clips, on the host.

  Args:
    weak: `[n]` integers in [0, W).
    teacher: `[n]` integers in [0, T), or -1 where a teacher was not sure
      (`predict_teacher`), which drops the clip.
    space: of the training clips.

  Returns:
    `[n]` int32 in [0, K), -1 where the clip is dropped; and `[n]` bool, which
    are kept.

  Raises:
    ValueError: labels of other numbers or dtypes or out of range; no clip.

  >>> from locojax.methods import spl
  >>> space = spl.build_label_space([[2, 1], [0, 3]], "agreement")
  >>> relabel([0, 0, 1], [0, 1, 1], space)[0].tolist()
  [0, -1, 1]
  """
  counts_lib.same_clips(weak, teacher)
  weak = counts_lib.check_ids("weak", weak, space.num_weak)
  sure = _sure(teacher)
  teacher = counts_lib.check_ids("teacher", teacher, space.num_teacher, sure)
  labels = np.where(sure, space.lookup[weak, teacher], -1)
  return labels.astype(np.int32), labels >= 0


def _sure(teacher: ArrayLike) -> np.ndarray:
  found = np.asarray(teacher)
  return found != -1 if found.dtype.kind == "i" else np.ones(found.shape, bool)


def agreement_mask(
  weak: ArrayLike,
  teacher: ArrayLike,
  *,
  weak_to_teacher: ArrayLike | None = None,
) -> np.ndarray:
  """Which clips have a prediction that agrees with their weak label.

  Args:
    weak: `[n]` integers, 0 or more.
    teacher: `[n]` integers, 0 or more, or -1, which agrees with nothing.
    weak_to_teacher: `[W]` the prediction that agrees with each weak label; by
      default the same number.

  Returns:
    `[n]` bool.

  Raises:
    ValueError: labels of other numbers or dtypes, or out of range; no clip.

  >>> agreement_mask([0, 1, 2], [0, 2, 2]).tolist()
  [True, False, True]
  """
  counts_lib.same_clips(weak, teacher)
  if weak_to_teacher is not None:
    mapped = np.asarray(weak_to_teacher)
    weak = mapped[counts_lib.check_ids("weak", weak, len(mapped))]
  most = np.iinfo(np.int32).max
  weak = counts_lib.check_ids("weak", weak, most)
  sure = _sure(teacher)
  return sure & (counts_lib.check_ids("teacher", teacher, most, sure) == weak)


def shuffled_teacher(
  weak: ArrayLike, teacher: ArrayLike, *, rng: np.random.Generator
) -> np.ndarray:
  """Predictions exchanged among the clips of each weak label: a control.

  The confusion matrix, and with it every label space and the size of every
  class, stays as it is; what a pair says about its clip is gone.

  Args:
    weak: `[n]` integers, 0 or more.
    teacher: `[n]` integers.
    rng: source of the order.

  Returns:
    `[n]` of the dtype of `teacher`.

  Raises:
    ValueError: labels of other numbers or dtypes; no clip.

  >>> weak, teacher = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 1, 1, 0])
  >>> found = shuffled_teacher(weak, teacher, rng=np.random.default_rng(0))
  >>> sorted(found[weak == 0].tolist()), sorted(found[weak == 1].tolist())
  ([0, 1, 1], [0, 1])
  """
  counts_lib.same_clips(weak, teacher)
  weak = counts_lib.check_ids("weak", weak, np.iinfo(np.int32).max)
  out = np.array(teacher)
  for label in np.unique(weak):
    rows = np.flatnonzero(weak == label)
    out[rows] = out[rng.permutation(rows)]
  return out


def marginal_matrix(space: label_space.LabelSpace, axis: str) -> np.ndarray:
  """How much of each class belongs to each weak label or prediction.

  A class whose pairs share the label belongs to it wholly; another one is
  divided by the training clips of its pairs (evenly, if it has none).

  Args:
    space: K classes.
    axis: 'weak' or 'teacher'.

  Returns:
    `[K, W]` or `[K, T]` float64 whose rows sum to 1; a class without pairs is
    spread over all.

  Raises:
    ValueError: an unknown axis.

  >>> from locojax import spl
  >>> confusion = np.array([[4, 2], [1, 3]])
  >>> space = spl.build_label_space(confusion, "raw")
  >>> marginal_matrix(space, "weak").tolist()
  [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
  """
  place = ("weak", "teacher").index(
    checks.one_of("axis", axis, ("weak", "teacher"))
  )
  out = np.zeros((space.num_classes, space.lookup.shape[place]))
  for k, pairs in enumerate(space.pairs):
    counts = np.array([space.confusion[p] for p in pairs], np.float64)
    if not counts.sum():
      counts = np.ones(len(pairs))
    for pair, count in zip(pairs, counts):
      out[k, pair[place]] += count / counts.sum()
    if not pairs:
      out[k] = 1 / out.shape[1]
  return out


def marginal_probs(
  probs: ArrayLike, space: label_space.LabelSpace, axis: str = "weak"
) -> jax.Array:
  """Probabilities of weak labels, or of predictions, from those of pairs.

  p(w) = sum_t p(w, t), p(t) = sum_w p(w, t), where a class of several pairs is
  divided as `marginal_matrix` says.

  Args:
    probs: `[..., K]`; may be traced.
    space: K classes.
    axis: 'weak' or 'teacher'.

  Returns:
    `[..., W]` or `[..., T]`, float32 or float64.

  Raises:
    ValueError: an unknown axis, or another number of classes.

  >>> from locojax import spl
  >>> confusion = np.array([[4, 2], [1, 3]])
  >>> space = spl.build_label_space(confusion, "raw")
  >>> probs = jnp.array([0.25, 0.25, 0.5, 0.0])  # (0, 0), (0, 1), (1, 0), ...
  >>> marginal_probs(probs, space).tolist()
  [0.5, 0.5]
  >>> marginal_probs(probs, space, "teacher").tolist()
  [0.75, 0.25]
  """
  matrix = marginal_matrix(space, axis)
  probs = arrays.as_float(probs)
  if not probs.ndim or probs.shape[-1] != space.num_classes:
    raise ValueError(
      f"probs of shape {probs.shape} are not allowed: the last axis must be "
      f"the {space.num_classes} classes of the label space."
    )
  return jnp.matmul(
    probs, jnp.asarray(matrix, probs.dtype), precision="highest"
  )
