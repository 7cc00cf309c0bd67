"""Class masks: worked numbers, gradients, labels outside, replay rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods import continual

LOGITS = jnp.array([[1.0, 2.0, 3.0, 0.5]])


def _loss(logits, labels, *args, **settings):
  return continual.masked_cross_entropy(logits, labels, *args, **settings)[0]


def test_the_worked_example():
  loss = lambda z: _loss(z, jnp.array([1]), [0, 1])
  value, grads = jax.value_and_grad(loss)(LOGITS)
  assert float(value) == pytest.approx(0.3132616875, rel=1e-6)
  assert float(_loss(LOGITS, [1])) == pytest.approx(1.4607734892, rel=1e-6)
  want = [[0.2689414214, -0.2689414214, 0, 0]]
  np.testing.assert_allclose(grads, want, rtol=1e-6)
  np.testing.assert_array_equal(np.asarray(grads)[0, 2:], 0)


@pytest.mark.parametrize("classes", [[0, 1], [True, True, False, False]])
def test_numbers_and_bools_are_the_same_mask(classes):
  found = continual.mask_logits(LOGITS, classes)
  np.testing.assert_array_equal(found, [[1.0, 2.0, -np.inf, -np.inf]])
  traced = jax.jit(continual.mask_logits)(LOGITS, jnp.asarray(classes))
  np.testing.assert_array_equal(traced, found)


def test_the_dtype_stays_and_losses_are_float32():
  low = LOGITS.astype(jnp.bfloat16)
  assert continual.mask_logits(low, [0]).dtype == jnp.bfloat16
  assert _loss(low, [1]).dtype == jnp.float32


def test_columns_of_masked_classes_do_not_move():
  rng = np.random.default_rng(0)
  x, labels = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), [0, 1, 1, 0, 0]
  head = jnp.zeros((3, 4))
  grads = jax.grad(lambda w: _loss(x @ w, labels, [0, 1]))(head)
  np.testing.assert_array_equal(np.asarray(grads)[:, 2:], 0)
  assert np.abs(grads[:, :2]).min() > 0


@pytest.mark.parametrize(
  ("classes", "words"),
  [
    ([], "names no class"),
    ([4], r"ids \[4\].*in .0, 3"),
    ([-1, 0], r"ids \[-1\].*in .0, 3"),
    ([[0, 1]], r"must be \[k\] integers"),
    ([False] * 4, "names no class"),
    ([True] * 3, r"a mask must be \[..., 4\]"),
    ([[True] * 4, [False] * 4], "each row of it"),
    ([0.5], "integers"),
  ],
)
def test_bad_masks_are_refused(classes, words):
  with pytest.raises(ValueError, match=f"classes.*{words}|{words}"):
    continual.mask_logits(LOGITS, classes)


def test_bad_masks_are_refused_inside_jit_where_they_are_known():
  for classes in ([], [4], np.zeros(4, bool)):
    with pytest.raises(ValueError, match="classes"):
      jax.jit(lambda z, c=classes: continual.mask_logits(z, c))(LOGITS)


def test_one_hot_labels_are_refused():
  with pytest.raises(ValueError, match="one-hot"):
    _loss(LOGITS, jnp.array([[0.0, 1.0, 0.0, 0.0]]), [0, 1])


def test_a_label_outside_is_refused_before_the_step():
  with pytest.raises(ValueError, match=r"labels has \[2\]"):
    _loss(LOGITS, [2], [0, 1])
  for label in (-1, 4):  # no class at all
    with pytest.raises(ValueError, match=rf"labels holds {label}"):
      _loss(LOGITS, [label], [0, 1])


def test_what_is_no_class_is_nan_where_it_is_traced():
  run = jax.jit(lambda y: continual.masked_cross_entropy(LOGITS, y, [0, 1])[0])
  assert np.isnan(run(jnp.array([-1]))) and np.isnan(run(jnp.array([4])))
  assert np.isfinite(run(jnp.array([1])))


def test_labels_outside_are_counted_where_they_are_traced():
  logits = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)))
  labels = jnp.array([0, 2, 1, 3, 2, 1])
  run = jax.jit(lambda z: continual.masked_cross_entropy(z, labels, [0, 1]))
  (loss, found), grads = run(logits), jax.grad(lambda z: run(z)[0])(logits)
  # As if they were not there.
  inside = jnp.array([0, 2, 5])
  want = _loss(logits[inside], labels[inside], [0, 1])
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  assert float(found["labels_outside"].total) == 3
  assert float(found["labels_outside"].value()) == 0.5
  assert np.isfinite(grads).all()
  np.testing.assert_array_equal(np.asarray(grads)[[1, 3, 4]], 0)


def test_masked_examples_are_as_good_as_absent():
  logits = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)))
  labels = jnp.array([0, 1, 99, 99])
  loss, found = continual.masked_cross_entropy(
    logits.at[2].set(jnp.nan), labels, mask=[1, 1, 0, 0]
  )
  np.testing.assert_allclose(loss, _loss(logits[:2], labels[:2]), rtol=1e-6)
  assert float(found["labels_outside"].total) == 0
  assert float(found["accuracy"].weight) == 2


def test_each_row_may_have_its_own_mask():
  logits = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3)))
  rows = jnp.array([[True, True, False], [False, True, True]])
  found = continual.masked_losses(logits, [0, 2], rows).values
  for i, ids in enumerate(([0, 1], [1, 2])):
    want = _loss(logits[i : i + 1], [[0, 2][i]], ids)
    np.testing.assert_allclose(found[i], want, rtol=1e-6)


def test_a_traced_row_without_classes_counts_nowhere():
  rows = jnp.array([[True, True, False], [False, False, False]])
  logits = jnp.array([[1.0, 2.0, 3.0]] * 2)
  loss = lambda z, m: _loss(z, jnp.array([0, 0]), m)
  value, grads = jax.jit(jax.value_and_grad(loss))(logits, rows)
  np.testing.assert_allclose(value, _loss(logits[:1], [0], [0, 1]), rtol=1e-6)
  assert np.isfinite(grads).all() and not np.asarray(grads)[1].any()


def test_replay_rows_see_all_classes_or_all_but_the_current_ones():
  mask, is_replay = jnp.array([True, True, False]), jnp.array([False, True])
  plain = continual.replay_no_mask(mask, is_replay)
  assert plain.tolist() == [[True, True, False], [True, True, True]]
  reverse = continual.replay_reverse_mask(mask, is_replay)
  assert reverse.tolist() == [[True, True, False], [False, False, True]]
  with pytest.raises(ValueError, match="no class in some rows"):
    continual.replay_reverse_mask(jnp.ones(3, bool), is_replay)


TASKS = [[0, 1], [4], [2, 3]]


def test_classes_seen_with_tasks_and_without():
  assert np.flatnonzero(continual.classes_seen(TASKS, 1, 5)).tolist() == [
    0,
    1,
    4,
  ]
  seen = continual.seen_in([0, 1, 1, 7, 2], 5, mask=[1, 1, 1, 1, 0])
  assert np.flatnonzero(seen).tolist() == [0, 1]
  seen = jax.jit(lambda s, y: continual.seen_in(y, 5, seen=s))(
    seen, jnp.array([4, 4])
  )
  assert np.flatnonzero(seen).tolist() == [0, 1, 4]


def test_what_an_evaluation_chooses_among():
  found = lambda *a, **k: np.flatnonzero(continual.eval_mask(*a, **k)).tolist()
  assert found("all", TASKS, 0, 5) == [0, 1, 2, 3, 4]
  assert found("seen", TASKS, 1, 5) == [0, 1, 4]
  assert found("task", TASKS, 2, 5, task=1) == [4]
  # An unseen class has logit 0 in a head of zeros, and wins over negative ones.
  logits = jnp.array([[-1.0, -2.0, 0.0, 0.0, -3.0]])
  seen = continual.mask_logits(logits, continual.eval_mask("seen", TASKS, 1, 5))
  assert int(jnp.argmax(logits)) == 2 and int(jnp.argmax(seen)) == 0
  with pytest.raises(ValueError, match=r"'some'.*'all', 'seen', 'task'"):
    continual.eval_mask("some", TASKS, 0, 5)
  with pytest.raises(ValueError, match="task=None"):
    continual.eval_mask("task", TASKS, 0, 5)
  with pytest.raises(ValueError, match="t=3"):
    continual.classes_seen(TASKS, 3, 5)


def test_a_batch_gets_its_mask():
  batch = continual.with_class_mask({"label": [0]}, [1, 2], 3, rows=2)
  assert batch["class_mask"].tolist() == [[False, True, True]] * 2
