"""The accuracy matrix: the worked example, both kinds of forgetting, states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import metrics
from locojax.methods import continual

ROWS = np.array([[0.95, 0.90, 0.80], [0, 0.92, 0.93], [0, 0, 0.97]])


def _matrix(rows=ROWS):
  matrix = continual.AccuracyMatrix.empty(len(rows))
  for t in range(len(rows)):
    matrix = matrix.updated(t, rows[: t + 1, t])
  return matrix


def test_the_worked_example():
  matrix = _matrix()
  np.testing.assert_allclose(matrix.values, ROWS, rtol=1e-6)
  last = {k: float(v) for k, v in matrix.summary(2).items()}
  assert last == pytest.approx(
    {
      "average_accuracy": 0.90,
      "forgetting": 0.075,
      "forgetting_chaudhry": 0.07,
      "backward_transfer": -0.07,
      "learning_accuracy": (0.95 + 0.92 + 0.97) / 3,
    },
    abs=1e-6,
  )
  assert float(matrix.average_accuracy(1)) == pytest.approx(0.91)
  for found in (matrix.forgetting(1), continual.forgetting_chaudhry(matrix, 1)):
    assert float(found) == pytest.approx(0.05, abs=1e-6)


def test_it_works_inside_a_jitted_step_with_a_traced_task():
  @jax.jit
  def after(matrix, t, accuracies):
    matrix = matrix.updated(t, accuracies)
    return matrix, matrix.summary(t)

  traced = continual.AccuracyMatrix.empty(3)
  for t in range(3):
    traced, found = after(traced, jnp.int32(t), jnp.asarray(ROWS[:, t]))
    # What is given for later tasks is left out: a[i, t] = 0 for t < i.
    plain = _matrix()
    for name, value in plain.summary(t).items():
      np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
  np.testing.assert_allclose(traced.values, plain.values)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(traced))


def test_later_accuracies_are_left_out():
  full = continual.AccuracyMatrix.empty(3).updated(0, [0.5, 0.9, 0.9])
  np.testing.assert_array_equal(full.values[:, 0], np.float32([0.5, 0, 0]))


def test_official_forgetting_is_never_negative_and_the_other_may_be():
  rng = np.random.default_rng(0)
  below = False
  for _ in range(20):
    matrix = _matrix(np.triu(rng.random((4, 4))))
    for t in (1, 2, 3):
      official = float(matrix.forgetting(t))
      chaudhry = float(matrix.forgetting(t, "chaudhry"))
      assert official >= 0 and official >= chaudhry - 1e-6
      below |= chaudhry < 0
  assert below


def test_tasks_weigh_the_same_and_a_column_can_be_measured_again():
  matrix = _matrix().updated(2, [1.0, 0.0, 0.5])
  assert float(matrix.average_accuracy(2)) == pytest.approx(0.5)


def test_the_order_of_the_examples_does_not_matter():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(30, 4)), rng.integers(0, 4, 30)
  order = rng.permutation(30)
  accuracies = [
    metrics.accuracy(z, y).value()
    for z, y in ((logits, labels), (logits[order], labels[order]))
  ]
  assert accuracies[0] == accuracies[1]


def test_the_first_task_has_nothing_to_forget():
  matrix = _matrix()
  for name in ("forgetting", "backward_transfer"):
    assert np.isnan(getattr(matrix, name)(0))
  assert float(matrix.average_accuracy(0)) == pytest.approx(0.95)


def test_a_missing_column_is_named_or_nan():
  matrix = continual.AccuracyMatrix.empty(3).updated(0, [0.5])
  with pytest.raises(ValueError, match=r"t=2.*\[1, 2\]"):
    matrix.average_accuracy(2)
  found = jax.jit(lambda m, t: m.average_accuracy(t))(matrix, 2)
  assert np.isnan(found)


@pytest.mark.parametrize(
  ("t", "accuracies", "words"),
  [
    (3, [0.1] * 3, "t=3"),
    (-1, [0.1] * 3, "t=-1"),
    (1, [0.1], "accuracies has shape"),
    (1, [95.0, 90.0], "percent"),
    (1, [0.5, np.nan], "percent"),
  ],
)
def test_bad_updates_are_refused(t, accuracies, words):
  with pytest.raises(ValueError, match=words):
    continual.AccuracyMatrix.empty(3).updated(t, accuracies)


def test_bad_questions_are_refused():
  with pytest.raises(ValueError, match=r"kind='max'.*'official', 'chaudhry'"):
    _matrix().forgetting(2, "max")
  with pytest.raises(ValueError, match="num_tasks=0"):
    continual.AccuracyMatrix.empty(0)
