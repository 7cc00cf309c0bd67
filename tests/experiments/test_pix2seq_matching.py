"""Set prediction: worked numbers, the matching against SciPy's, masks."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from experiments.pix2seq import matching

WHOLE, FIRST, LAST = (
  np.array(b, np.float32)
  for b in ((0.5, 0.5, 1, 1), (0.25, 0.25, 0.5, 0.5), (0.75, 0.75, 0.5, 0.5))
)


def test_generalised_overlap_of_worked_boxes():
  of = lambda a, b: float(matching.generalised_iou(jnp.array(a), jnp.array(b)))
  assert of(WHOLE, WHOLE) == pytest.approx(1, abs=1e-6)
  assert of(WHOLE, FIRST) == pytest.approx(0.25, abs=1e-6)
  # They meet in a corner: half of the hull is empty.
  assert of(FIRST, LAST) == pytest.approx(-0.5, abs=1e-6)
  empty = np.array((0.5, 0.5, 0, 0), np.float32)
  assert np.isfinite(of(empty, empty))


def test_the_loss_of_worked_slots():
  """Two slots of equal logits: ln 2; the second one answers, 0.1 too wide."""
  logits = jnp.zeros((1, 2, 2))
  boxes = jnp.array([[FIRST, LAST]])
  truth = jnp.array([[(0.75, 0.75, 0.5, 0.4)]])
  labels, valid = jnp.array([[1]]), jnp.array([[True]])
  loss, parts = matching.set_loss(logits, boxes, labels, truth, valid)
  found = {k: float(v) for k, v in parts.items()}
  assert found["label_loss"] == pytest.approx(math.log(2), rel=1e-6)
  assert found["l1"] == pytest.approx(0.1, rel=1e-5)
  assert found["giou_loss"] == pytest.approx(0.2, rel=1e-5)
  want = math.log(2) + 5 * 0.1 + 2 * 0.2
  assert float(loss) == pytest.approx(want, rel=1e-5)
  cost = matching.costs(logits[0], boxes[0], labels[0], truth[0], valid[0])
  assert float(cost[1, 0]) == pytest.approx(-0.5 + 0.5 - 1.6, rel=1e-5)
  assert int(matching.match(cost)[0]) == 1


def _made(seed: int, num_slots: int, num: int, classes: int = 3):
  rng = np.random.default_rng(seed)
  box = lambda n: np.concatenate(
    [rng.uniform(0.2, 0.8, (n, 2)), rng.uniform(0.05, 0.4, (n, 2))], axis=1
  ).astype(np.float32)
  return (
    rng.normal(size=(num_slots, classes + 1)).astype(np.float32),
    box(num_slots),
    rng.integers(1, classes + 1, num).astype(np.int32),
    box(num),
    rng.random(num) < 0.7,
  )


def test_matching_is_the_cheapest():
  match = jax.jit(jax.vmap(matching.match))
  several = [_made(seed, 5, 4) for seed in range(20)]
  cost = np.stack([np.asarray(matching.costs(*m)) for m in several])
  slots = np.asarray(match(jnp.asarray(cost)))
  for one, slot, made in zip(cost, slots, several):
    assert len(set(slot.tolist())) == 4
    valid = made[-1]
    of = lambda s, one=one: float(one[s, range(4)].sum())
    rows, columns = optimize.linear_sum_assignment(one)
    assert of(slot) == pytest.approx(float(one[rows, columns].sum()), rel=1e-5)
    least = min(of(list(s)) for s in itertools.permutations(range(5), 4))
    assert of(slot) == pytest.approx(least, rel=1e-5)
    assert np.all(one[:, ~valid] == 0)


@pytest.fixture(scope="module")
def loss():
  several = [np.stack(x) for x in zip(*[_made(s, 5, 4) for s in range(3)])]

  def of(logits, boxes, truth, labels, valid):
    return matching.set_loss(logits, boxes, labels, truth, valid)[0]

  run = jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2)))
  logits, boxes, labels, truth, valid = several
  return run, logits, boxes, truth, labels, valid


def test_the_order_of_slots_and_objects_does_not_matter(loss):
  run, logits, boxes, truth, labels, valid = loss
  value, grads = run(logits, boxes, truth, labels, valid)
  slots, objects = [3, 0, 4, 1, 2], [2, 0, 3, 1]
  other, moved = run(
    *(x[:, slots] for x in (logits, boxes)),
    *(x[:, objects] for x in (truth, labels, valid)),
  )
  np.testing.assert_allclose(other, value, rtol=1e-5)
  np.testing.assert_allclose(moved[0], grads[0][:, slots], atol=1e-6)
  np.testing.assert_allclose(moved[1], grads[1][:, slots], atol=1e-5)


def test_what_is_no_object_is_removed(loss):
  run, logits, boxes, truth, labels, valid = loss
  value, grads = run(logits, boxes, truth, labels, valid)
  spoilt = np.where(valid[..., None], truth, np.nan)
  wrong = np.where(valid, labels, 77)
  other, after = run(logits, boxes, spoilt, wrong, valid)
  np.testing.assert_array_equal(other, value)
  for a, b in zip(after[:2], grads[:2]):
    np.testing.assert_array_equal(a, b)
  assert np.all(np.asarray(after[2])[~valid] == 0)
  none, flat = run(logits, boxes, spoilt, wrong, np.zeros_like(valid))
  assert np.isfinite(none) and np.all(np.asarray(flat[1]) == 0)


def test_more_objects_than_slots_are_refused():
  with pytest.raises(ValueError, match="objects=3"):
    matching.match(jnp.zeros((2, 3)))


def test_the_gradient_of_boxes_is_that_of_finite_differences(loss):
  run, logits, boxes, truth, labels, valid = loss
  _, grads = run(logits, boxes, truth, labels, valid)
  of = functools.partial(run, logits)
  rng = np.random.default_rng(0)
  step = rng.normal(size=boxes.shape).astype(np.float32)
  # So near that the matching stays.
  by = lambda h: float(of(boxes + h * step, truth, labels, valid)[0])
  slope = (by(1e-4) - by(-1e-4)) / 2e-4
  assert float((grads[1] * step).sum()) == pytest.approx(slope, rel=2e-2)
