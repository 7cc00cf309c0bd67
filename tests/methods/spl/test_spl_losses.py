"""Teachers, losses of the baselines, and the change of heads."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from locojax.core import labels as labels_lib
from locojax.methods import spl

KEY = jax.random.key(0)
LOGITS = np.float32(np.random.default_rng(0).normal(size=(5, 3)))
LABELS = np.array([0, 2, 1, 1, 0])


def _cross_entropy(logits):
  """The mean, in NumPy."""
  rows = special.log_softmax(np.float64(logits), axis=1)
  return -rows[np.arange(5), LABELS].mean()


def _linear(variables, batch):
  x = batch["clip"] if isinstance(batch, dict) else batch
  return x @ variables


def test_predictions_confidence_and_padding():
  clips = np.array([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0], [9.0, 9.0]])
  weights = np.eye(2)
  batches = [
    {"clip": clips[:2], "mask": np.array([1, 1])},
    {"clip": clips[2:], "mask": np.array([1, 0])},
  ]
  found = spl.predict_teacher(_linear, weights, batches)
  assert found.label.tolist() == [0, 1, 0]  # the first of two equal ones
  assert found.label.dtype == np.int32
  wanted = jax.nn.softmax(clips[:3]).max(1)
  np.testing.assert_allclose(found.confidence, wanted, rtol=1e-6)
  unsure = spl.predict_teacher(_linear, weights, batches, min_confidence=0.8)
  assert unsure.label.tolist() == [-1, 1, -1]
  np.testing.assert_array_equal(unsure.confidence, found.confidence)
  probs = spl.teacher_probs(_linear, weights, [clips])
  np.testing.assert_allclose(probs, jax.nn.softmax(clips), rtol=1e-6)


def test_views_of_a_clip_are_averaged():
  views = np.array([[[4.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
  apply = lambda variables, batch: jnp.asarray(batch)
  probs = np.asarray(jax.nn.softmax(views))
  found = spl.teacher_probs(apply, None, [views])
  np.testing.assert_allclose(found, probs.mean(1), rtol=1e-6)
  found = spl.teacher_probs(apply, None, [views], views="mean_logits")
  np.testing.assert_allclose(found, jax.nn.softmax(views.mean(1)), rtol=1e-6)


def test_distillation():
  teacher = np.float32(np.random.default_rng(1).normal(size=(5, 3)))
  run = functools.partial(spl.distillation_loss, LOGITS, temperature=3.0)
  run = jax.jit(jax.value_and_grad(run))
  p, q = special.softmax(teacher / 3, 1), special.log_softmax(LOGITS / 3, 1)
  found, grads = run(teacher)
  np.testing.assert_allclose(found, -9 * np.mean(np.sum(p * q, 1)), rtol=1e-5)
  assert not np.any(grads)  # the teacher learns nothing
  # Logarithms of probabilities serve as well, minus infinity among them.
  hard = np.where(np.eye(3)[LABELS] > 0, 0.0, -np.inf)
  run = jax.jit(jax.value_and_grad(lambda z: spl.distillation_loss(z, hard)))
  found, grads = run(LOGITS)
  np.testing.assert_allclose(found, _cross_entropy(LOGITS), rtol=1e-6)
  wanted = special.softmax(LOGITS, 1) - np.eye(3)[LABELS]
  np.testing.assert_allclose(grads, wanted / 5, atol=1e-7)


def test_two_heads_are_two_losses():
  other = LOGITS[:, :2]
  one = _cross_entropy(LOGITS)
  two = labels_lib.cross_entropy(other, LABELS % 2).mean()
  found = spl.two_head_loss(LOGITS, other, LABELS, LABELS % 2, weight=0.5)
  np.testing.assert_allclose(found, one + 0.5 * two, rtol=1e-6)


def test_data_parameters():
  data = spl.init_data_parameters(num_classes=3, num_clips=8)
  index = np.array([7, 0, 3, 4, 5])
  loss = lambda d, decay: spl.data_parameter_loss(
    LOGITS, LABELS, d, index=index, weight_decay=decay
  )
  run = jax.jit(jax.value_and_grad(functools.partial(loss, decay=0.0)))
  found, _ = run(data)
  np.testing.assert_allclose(found, _cross_entropy(LOGITS), rtol=1e-6)
  data = {
    "class": jnp.array([0.1, -0.2, 0.3]),
    "clip": jnp.linspace(-1.0, 1.0, 8),
  }
  s = np.asarray(data["class"])[LABELS] + np.asarray(data["clip"])[index]
  scaled = LOGITS * np.exp(-s)[:, None]
  value, found = run(data)
  np.testing.assert_allclose(value, _cross_entropy(scaled), rtol=1e-6)
  # dL/ds_i = sum_k (y - p)_k z_k / sigma_i, over n.
  y = np.eye(3)[LABELS]
  each = ((y - special.softmax(scaled, 1)) * scaled).sum(1) / 5
  np.testing.assert_allclose(found["clip"][index], each, atol=1e-7)
  assert not np.any(np.delete(np.asarray(found["clip"]), index))
  by_class = [each[c == LABELS].sum() for c in range(3)]
  np.testing.assert_allclose(found["class"], by_class, atol=1e-7)
  squares = np.square(np.asarray(data["class"])[LABELS])
  squares = squares + np.square(np.asarray(data["clip"])[index])
  decayed = jax.jit(functools.partial(loss, decay=0.2))(data)
  np.testing.assert_allclose(decayed, value + 0.1 * squares.mean(), rtol=1e-6)


def test_temperatures_stop_at_their_bounds_and_come_back():
  tx = spl.data_parameter_optimizer(1.0)
  params = {"class": jnp.zeros(2)}
  state = tx.init(params)
  move = lambda g: tx.update({"class": jnp.array(g)}, state, params)[0]
  params = optax.apply_updates(params, move([9.0, -9.0]))
  np.testing.assert_allclose(jnp.exp(params["class"]), [0.05, 20], rtol=1e-6)
  params = optax.apply_updates(params, move([9.0, 0.5]))
  np.testing.assert_allclose(
    params["class"], np.log([0.05, 20]) - [0, 0.5], rtol=1e-6
  )


def test_the_head_is_changed_and_all_else_kept():
  variables = {
    "params": {
      "stem": {"kernel": jnp.ones((3, 4))},
      "top": {"head": {"kernel": jnp.ones((4, 9)), "bias": jnp.ones(9)}},
    },
    "batch_stats": {"stem": {"mean": jnp.arange(4.0)}},
  }
  new = spl.finetune_from(variables, 2, key=KEY, head="top/head")
  head = new["params"]["top"]["head"]
  assert head["kernel"].shape == (4, 2) and head["bias"].tolist() == [0, 0]
  assert 0 < np.abs(head["kernel"]).max() < 0.1
  assert new["params"]["stem"] is variables["params"]["stem"]
  assert new["batch_stats"] is variables["batch_stats"]
  assert variables["params"]["top"]["head"]["bias"].shape == (9,)
  other = spl.finetune_from(
    variables, 2, key=jax.random.key(1), head="top/head"
  )
  assert np.any(other["params"]["top"]["head"]["kernel"] != head["kernel"])


VARIABLES = {"params": {"a": {"kernel": jnp.ones((2, 2, 2))}, "b": jnp.ones(2)}}
REFUSED = [
  (lambda: spl.distillation_loss(LOGITS, LOGITS[:2]), "shape"),
  (
    lambda: spl.distillation_loss(LOGITS, LOGITS, temperature=0),
    "temperature=0",
  ),
  (
    lambda: spl.two_head_loss(LOGITS, LOGITS, LABELS, LABELS, weight=-1),
    "weight=-1",
  ),
  (
    lambda: spl.two_head_loss(LOGITS, LOGITS, LABELS, LABELS + 1),
    "labels holds 3",
  ),
  (lambda: spl.init_data_parameters(), "num_classes=None"),
  (lambda: spl.init_data_parameters(num_clips=0), "num_clips=0"),
  (lambda: spl.data_parameter_loss(LOGITS, LABELS, {}), "data={}"),
  (
    lambda: spl.data_parameter_loss(LOGITS, LABELS, {"clip": jnp.zeros(5)}),
    "index=None",
  ),
  (
    lambda: spl.data_parameter_loss(LOGITS, LABELS, {"clips": jnp.zeros(5)}),
    "'clips'",
  ),
  (
    lambda: spl.data_parameter_loss(
      LOGITS, LABELS, {"clip": jnp.zeros(4)}, index=np.arange(5)
    ),
    "index holds 4",
  ),
  (lambda: spl.predict_teacher(_linear, np.eye(2), []), "no clip"),
  (
    lambda: spl.predict_teacher(
      _linear, np.eye(2), [np.ones((1, 2))], views="both"
    ),
    "views='both'",
  ),
  (
    lambda: spl.predict_teacher(
      _linear, np.eye(2), [np.ones((1, 2))], min_confidence=2
    ),
    "min_confidence=2",
  ),
  (
    lambda: spl.predict_teacher(_linear, np.eye(2), [np.full((1, 2), np.nan)]),
    "not finite",
  ),
  (
    lambda: spl.teacher_probs(lambda v, x: jnp.asarray(x), None, [np.ones(3)]),
    "logits of shape (3,)",
  ),
  (lambda: spl.finetune_from({}, 2, key=KEY), "keys of pretrained"),
  (lambda: spl.finetune_from(VARIABLES, 2, key=KEY), "head='head'"),
  (lambda: spl.finetune_from(VARIABLES, 2, key=KEY, head="a"), "layer 'a'"),
  (lambda: spl.finetune_from(VARIABLES, 2, key=KEY, head="b"), "head='b'"),
  (
    lambda: spl.finetune_from(VARIABLES, 0, key=KEY, head="a"),
    "num_classes=0",
  ),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_what_is_refused(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value), str(error.value)
