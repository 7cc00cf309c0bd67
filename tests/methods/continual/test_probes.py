"""Heads on frozen features: nearest class mean, linear probe."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods import continual

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 60)
CENTRES = np.array([[0, 0], [3, 0], [0, 3]])
FEATURES = (CENTRES[LABELS] + RNG.normal(size=(60, 2))).astype(np.float32)


@jax.jit
def _updated(model, features, labels, mask):
  return model.updated(features, labels, mask=mask)


def test_the_means_are_those_of_the_whole_however_it_is_cut():
  mask = np.arange(60) % 4 != 0
  model = continual.ncm(4, 2)
  for i in range(0, 60, 15):
    rows = slice(i, i + 15)
    holed = np.where(mask[rows, None], FEATURES[rows], np.nan)
    model = _updated(model, holed, LABELS[rows], mask[rows])
  for label in range(3):
    rows = mask & (label == LABELS)
    assert int(model.counts[label]) == rows.sum()
    want = np.float64(FEATURES[rows]).mean(axis=0)
    np.testing.assert_allclose(model.means[label], want, rtol=1e-4, atol=1e-6)
  assert model.counts.tolist()[3] == 0


def test_scores_are_distances_and_unseen_classes_never_win():
  model = continual.ncm(4, 2).updated(FEATURES, LABELS)
  found = model.logits(FEATURES)
  gaps = FEATURES[:, None] - np.asarray(model.means)[:3]
  want = -np.square(gaps).sum(axis=-1)
  np.testing.assert_allclose(found[:, :3], want, rtol=1e-4, atol=1e-4)
  assert np.isneginf(found[:, 3]).all()
  cosine = model.logits(FEATURES, distance="cosine")
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  want = unit(FEATURES) @ unit(np.asarray(model.means)[:3]).T
  np.testing.assert_allclose(cosine[:, :3], want, rtol=1e-4, atol=1e-5)


def test_a_long_stream_far_from_zero_keeps_its_digits():
  """A sum in float32 would have lost them: 2^24 ones are 2^24."""
  model = continual.ncm(1, 1)
  ones = np.full((1, 1), 1.0, np.float32)
  model = continual.NearestClassMean(
    model.means.at[0, 0].set(1.0), model.counts.at[0].set(2**25)
  )
  for _ in range(3):
    model = _updated(model, ones, np.array([0]), np.ones(1))
  assert model.means.tolist() == [[1.0]] and model.counts.tolist() == [
    2**25 + 3
  ]


def test_labels_outside_the_classes_count_nowhere():
  model = continual.ncm(2, 1).updated([[1.0], [5.0], [7.0]], [0, 9, -1])
  assert model.means.tolist() == [[1.0], [0.0]]
  assert model.counts.tolist() == [1, 0]


def test_the_probe_is_at_the_minimum_of_its_cost():
  fit = jax.jit(
    functools.partial(continual.linear_probe, num_classes=3, l2=1e-2)
  )
  head = fit(FEATURES, jnp.asarray(LABELS))

  def cost(head):
    logits = FEATURES @ head["kernel"] + head["bias"]
    loss, _ = continual.masked_cross_entropy(logits, jnp.asarray(LABELS))
    return loss + 0.5e-2 * jnp.sum(jnp.square(head["kernel"]))

  grads = jax.jit(jax.grad(cost))(head)
  assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) < 1e-4
  hits = np.argmax(FEATURES @ head["kernel"] + head["bias"], axis=1) == LABELS
  assert hits.mean() > 0.85


def test_the_probe_heeds_masks_of_examples_and_of_classes():
  mask = np.arange(60) % 3 != 0
  fit = jax.jit(
    functools.partial(
      continual.linear_probe,
      num_classes=5,
      l2=1e-2,
      classes=np.array([0, 1, 2]),
    )
  )
  wrong = np.where(mask, LABELS, 4)
  head = fit(FEATURES, jnp.asarray(wrong), mask=jnp.asarray(mask))
  kept = fit(
    FEATURES[mask], jnp.asarray(LABELS[mask]), mask=jnp.ones(mask.sum())
  )
  np.testing.assert_allclose(head["kernel"], kept["kernel"], atol=2e-3)
  np.testing.assert_array_equal(np.asarray(head["kernel"])[:, 3:], 0)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="num_classes=0"):
    continual.ncm(0, 2)
  with pytest.raises(ValueError, match="dtype"):
    continual.ncm(2, 2, dtype=jnp.bfloat16)
  with pytest.raises(ValueError, match="features has shape"):
    continual.ncm(2, 2).updated([[1.0]], [0])
  with pytest.raises(ValueError, match="distance='l1'"):
    continual.ncm(2, 2).logits([[1.0, 1.0]], distance="l1")
  with pytest.raises(ValueError, match="l2=0"):
    continual.linear_probe(FEATURES, LABELS, num_classes=3, l2=0)
  with pytest.raises(ValueError, match=r"labels holds 2\b.*in \[0, 1\]"):
    continual.linear_probe(FEATURES, LABELS, num_classes=2)
