"""Losses of what sub-pseudo labels are compared to.

With sub-pseudo labels themselves the loss is plain cross-entropy
(`core.labels.cross_entropy`).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from locojax.core import arrays, checks, metrics, types
from locojax.core import labels as labels_lib

# Temperatures of data parameters stay within these.
LEAST, MOST = 0.05, 20.0


def distillation_loss(
  logits: ArrayLike,
  teacher_logits: ArrayLike,
  *,
  temperature: float = 1.0,
  mask: ArrayLike | None = None,
) -> jax.Array:
  """Cross-entropy with the teacher's softmax (Hinton et al. 2015).

    - tau^2 mean_i sum_c p_c(tau) log q_c(tau),  softmax of logits over tau

  arXiv 1503.02531.

  Args:
    logits: `[n, N]`; computed in float32 or wider.
    teacher_logits: `[n, N]`, or the logarithm of its probabilities, minus
      infinity allowed; no gradient flows there.
    temperature: tau, above 0.
    mask: `[n]`, zero at padding.

  Returns:
    `[]`; 0 if the mask leaves nothing.

  Raises:
    ValueError: shapes that differ, or a bad temperature.

  >>> loss = distillation_loss([[0.0, 0.0]], [[5.0, 1.0]])
  >>> round(float(loss), 4)
  0.6931
  """
  tau = checks.positive("temperature", temperature)
  logits = arrays.kept(arrays.as_float(logits), mask)
  teacher = arrays.kept(arrays.as_float(teacher_logits), mask)
  checks.same_shape("logits", logits.shape, "teacher_logits", teacher.shape)
  target = jax.lax.stop_gradient(jax.nn.softmax(teacher / tau, axis=-1))
  log_q = jax.nn.log_softmax(logits / tau, axis=-1)
  # A class that the teacher rules out counts nothing, however unlikely.
  each = -jnp.sum(jnp.where(target > 0, target * log_q, 0.0), axis=-1)
  return metrics.mean(each * tau**2, mask).loss()


def two_head_loss(
  weak_logits: ArrayLike,
  teacher_logits: ArrayLike,
  weak: ArrayLike,
  teacher: ArrayLike,
  *,
  weight: float = 1.0,
  mask: ArrayLike | None = None,
) -> jax.Array:
  """CE(weak label) + weight CE(prediction): two heads on one network.

  The control of sub-pseudo labels: both labels, but no interaction of them.

  Args:
    weak_logits: `[n, W]` of the head for weak labels.
    teacher_logits: `[n, T]` of the head for predictions.
    weak: `[n]` integers in [0, W).
    teacher: `[n]` integers in [0, T).
    weight: 0 or more.
    mask: `[n]`, zero at padding.

  Returns:
    `[]`; 0 if the mask leaves nothing.

  Raises:
    ValueError: shapes that differ, a bad weight; labels by the rule of
      `core.labels`.

  >>> flat = jnp.zeros((2, 4))
  >>> weak, teacher = jnp.array([0, 1]), jnp.array([3, 1])
  >>> round(float(two_head_loss(flat, flat, weak, teacher)), 4)  # 2 log(4)
  2.7726
  """
  checks.nonnegative("weight", weight)
  first = labels_lib.cross_entropy(weak_logits, weak, mask)
  second = labels_lib.cross_entropy(teacher_logits, teacher, mask)
  checks.same_shape("weak", first.shape, "teacher", second.shape)
  return metrics.mean(first + weight * second, mask).loss()


def init_data_parameters(
  *, num_classes: int | None = None, num_clips: int | None = None
) -> dict[str, jax.Array]:
  """Logarithms of temperatures, 0, for `data_parameter_loss`.

  Args:
    num_classes: of labels; None: no temperatures of classes.
    num_clips: in the training set; None: none of clips.

  Returns:
    `class` `[num_classes]` and `clip` `[num_clips]` float32, as asked for.

  Raises:
    ValueError: neither, or a number below 1.

  >>> data = init_data_parameters(num_classes=3, num_clips=5)
  >>> {name: x.shape for name, x in sorted(data.items())}
  {'class': (3,), 'clip': (5,)}
  """
  out = {}
  for name, key, num in (
    ("num_classes", "class", num_classes),
    ("num_clips", "clip", num_clips),
  ):
    if num is not None:
      out[key] = jnp.zeros(checks.positive_int(name, num), jnp.float32)
  if not out:
    raise ValueError(
      "num_classes=None and num_clips=None are not allowed: one must be given."
    )
  return out


def data_parameter_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  data: types.PyTree,
  *,
  index: ArrayLike | None = None,
  weight_decay: float = 0.0,
  mask: ArrayLike | None = None,
) -> jax.Array:
  """Cross-entropy of logits over learned temperatures of class and clip.

    mean_i CE(z_i / sigma_i, y_i) + weight_decay / 2 mean_i sum s^2,
    sigma_i = exp(s_class[y_i] + s_clip[i])

  After Saxena, Tuzel, DeCoste, "Data Parameters: A New Family of Parameters
  for Learning a Differentiable Curriculum", NeurIPS 2019. Defined here: that
  both temperatures multiply, and that the decay is of the clips of a batch
  alone. A high temperature makes a class or clip count less. Train `data` by
  `data_parameter_optimizer`.

  Args:
    logits: `[n, N]`.
    labels: `[n]` integers in [0, N).
    data: of `init_data_parameters`, trained along.
    index: `[n]` places of the clips in the training set, for `clip`.
    weight_decay: 0 or more.
    mask: `[n]`, zero at padding.

  Returns:
    `[]`; 0 if the mask leaves nothing.

  Raises:
    ValueError: no temperatures or unknown ones; `clip` without index; a bad
      decay; labels and index by the rule of `core.labels`.

  >>> data = init_data_parameters(num_classes=4)
  >>> logits, labels = jnp.zeros((2, 4)), jnp.array([0, 3])
  >>> round(float(data_parameter_loss(logits, labels, data)), 4)  # log(4)
  1.3863
  """
  checks.nonnegative("weight_decay", weight_decay)
  logits = arrays.kept(arrays.as_float(logits), mask)
  each, bad = [], jnp.zeros(logits.shape[:1], bool)
  for name, s in sorted(data.items()):
    checks.one_of("entry of data", name, ("class", "clip"))
    ids = labels if name == "class" else index
    if ids is None:
      checks.refuse("index", None, "[n] integers where data has 'clip'")
    found = labels_lib.check(
      "labels" if name == "class" else "index", ids, len(s), mask
    )
    each.append(s[found.index])
    bad = bad | found.bad
  if not each:
    checks.refuse("data", dict(data), "of init_data_parameters")
  log_sigma = arrays.kept(sum(each), mask).astype(logits.dtype)
  scaled = logits * jnp.exp(-log_sigma)[:, None]
  losses = labels_lib.cross_entropy(scaled, labels, mask)
  decay = sum(jnp.square(arrays.kept(s, mask)) for s in each)
  losses = losses + weight_decay / 2 * decay.astype(losses.dtype)
  return metrics.mean(labels_lib.spoil(losses, bad), mask).loss()


def data_parameter_optimizer(
  learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformation:
  """Plain gradient descent that keeps temperatures in [0.05, 20].

  At a bound, a gradient that leads back is followed as any other.

  >>> data = init_data_parameters(num_classes=1)
  >>> tx = data_parameter_optimizer(1.0)
  >>> grads = {"class": jnp.array([-99.0])}
  >>> updates, _ = tx.update(grads, tx.init(data), data)
  >>> round(float(jnp.exp(data["class"] + updates["class"])[0]), 3)
  20.0
  """
  low, high = math.log(LEAST), math.log(MOST)
  inner = optax.sgd(learning_rate)

  def update(updates, state, params=None):
    if params is None:
      raise ValueError("data_parameter_optimizer needs params in update.")
    updates, state = inner.update(updates, state, params)
    moved = lambda u, p: jnp.clip(p + u, low, high) - p
    return jax.tree.map(moved, updates, params), state

  return optax.GradientTransformation(inner.init, update)
