"""Logits of some classes only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import class_masks

LOGITS = jnp.array([[1.0, 2.0, 3.0, 0.5]])


def _loss(logits, classes):
  losses, _ = class_masks.masked_cross_entropy(logits, [1], classes)
  return losses[0]


def test_the_worked_numbers():
  masked, grad = jax.value_and_grad(_loss)(LOGITS, [0, 1])
  assert float(masked) == pytest.approx(0.3132616875, abs=1e-7)
  assert float(_loss(LOGITS, None)) == pytest.approx(1.4607734892, abs=1e-6)
  expected = [0.2689414214, -0.2689414214, 0, 0]
  np.testing.assert_allclose(grad[0], expected, atol=1e-7)
  assert (grad[0, 2:] == 0).all()


def test_ids_a_mask_and_a_mask_of_rows_are_the_same():
  mask = np.array([True, True, False, False])
  by_ids = class_masks.mask_logits(LOGITS, np.array([1, 0]))
  for other in (mask, mask[None], mask.tolist()):
    assert (class_masks.mask_logits(LOGITS, other) == by_ids).all()
  assert (by_ids[0, 2:] == -np.inf).all() and by_ids[0, :2].tolist() == [1, 2]
  assert class_masks.mask_logits(LOGITS.astype("bfloat16"), mask).dtype == (
    jnp.bfloat16
  )


def test_rows_have_classes_of_their_own():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(3, 4)), np.array([0, 3, 2])
  mask = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]], bool)
  losses, counts = class_masks.masked_cross_entropy(logits, labels, mask)
  for i in range(3):
    kept = logits[i][mask[i]]
    expected = np.log(np.exp(kept).sum()) - logits[i, labels[i]]
    assert float(losses[i]) == pytest.approx(expected, abs=1e-6)
  assert counts.all()


def test_a_label_outside_is_an_error_or_counted():
  logits = jnp.stack([LOGITS[0]] * 3)
  labels = np.array([1, 2, 3])
  with pytest.raises(ValueError, match=r"labels has \[2, 3\]"):
    class_masks.masked_cross_entropy(logits, labels, [0, 1])
  with pytest.raises(ValueError, match="labels holds 99"):
    class_masks.masked_cross_entropy(logits, np.array([1, 2, 99]), [0, 1])

  @jax.jit
  def total(logits, labels):
    losses, counts = class_masks.masked_cross_entropy(logits, labels, [0, 1])
    return losses.sum(), counts

  (value, counts), grad = jax.value_and_grad(total, has_aux=True)(
    logits, labels
  )
  assert counts.tolist() == [True, False, False]
  assert float(value) == pytest.approx(0.3132616875, abs=1e-6)
  assert (grad[1:] == 0).all()


def test_padding_may_have_any_label():
  losses, counts = class_masks.masked_cross_entropy(
    jnp.stack([LOGITS[0]] * 2), [1, 77], [0, 1], mask=[1, 0]
  )
  assert counts.tolist() == [True, False] and float(losses[1]) == 0


@pytest.mark.parametrize(
  ("classes", "words"),
  [
    ([], "names no class"),
    (np.zeros(4, bool), "names no class"),
    (np.array([[1, 0, 0, 0], [0, 0, 0, 0]], bool), "names no class"),
    ([0, 4], r"ids \[4\]"),
    ([-1], r"ids \[-1\]"),
    ([True, False], r"must be \[..., 4\]"),
    ([0.5], "must be"),
    ([[0, 1]], "must be"),
  ],
)
def test_bad_classes(classes, words):
  with pytest.raises(ValueError, match=words):
    class_masks.mask_logits(LOGITS, classes)


def test_bad_labels():
  with pytest.raises(ValueError, match="one-hot"):
    class_masks.masked_cross_entropy(LOGITS, [[0.0, 1, 0, 0]], [0, 1])
  with pytest.raises(ValueError, match="must be integers"):
    class_masks.masked_cross_entropy(LOGITS, [1.0], [0, 1])
  with pytest.raises(ValueError, match="labels has shape"):
    class_masks.masked_cross_entropy(LOGITS, [1, 1], [0, 1])
