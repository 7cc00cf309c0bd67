"""One rule for labels that are no class, over all that takes labels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import class_masks, labels, metrics
from locojax.methods import ciw, continual, minerva, smelu, spl
from locojax.methods.smelu import accumulator, recommender

N, K = 6, 3
KEY = jax.random.key(0)
LOGITS = jax.random.normal(KEY, (N, K))
PREDS = jax.nn.softmax(jax.random.normal(KEY, (2, N, K)))
TWO = jax.nn.sigmoid(LOGITS[:, :2]).T
TEMPERATURES = spl.init_data_parameters(num_classes=K)
CONFIG = ciw.InstanceConfig(lam=0.5)
CTR = recommender.CTRModel((4,), dim=2, hidden=(2,))
PARAMS, _ = recommender.init(CTR, key=KEY)


def _ctr(y, mask):
  batch = {"categorical": jnp.zeros((N, 1), jnp.int32), "label": y}
  batch |= {} if mask is None else {"mask": mask}
  return recommender.make_loss(CTR)(PARAMS, {}, batch, KEY)[0]


def _accumulated(y, mask):
  found = smelu.PDAccumulator.init(2, num_classes=K, labelled=True)
  rows = found.update(PREDS, y, weights=mask).rows()
  return {n: x for n, x in rows.items() if "label" in n or n in LABELLED}


LABELLED = accumulator.PER_MODEL


def _mixup(y, mask):
  weights = jnp.ones(N)
  mixed = ciw.ciw_mixup(
    KEY, LOGITS, y, weights, mode="weight", num_classes=K, mask=mask
  )
  return mixed.labels


# What takes labels and a mask: the mean or sum over examples.
MASKED = {
  "cross_entropy": (K, lambda y, m: labels.cross_entropy(LOGITS, y, m).sum()),
  "lm_loss": (K, lambda y, m: minerva.lm_loss(LOGITS, y, m).value),
  "accuracy": (K, lambda y, m: metrics.accuracy(LOGITS, y, m).total),
  "top_k": (K, lambda y, m: metrics.top_k_accuracy(LOGITS, y, 2, m).total),
  "class_masks": (
    K,
    lambda y, m: class_masks.masked_cross_entropy(LOGITS, y, mask=m)[0].sum(),
  ),
  "continual": (
    K,
    lambda y, m: continual.masked_cross_entropy(LOGITS, y, mask=m)[0],
  ),
  "ciw_loss": (
    K,
    lambda y, m: ciw.ciw_loss(
      LOGITS, y, instance=CONFIG, class_=ciw.ClassConfig(), mask=m
    )[0],
  ),
  "ciw_loss_l2": (
    K,
    lambda y, m: ciw.ciw_loss(
      LOGITS, y, instance=CONFIG, class_=ciw.ClassConfig("l2"), mask=m
    )[0],
  ),
  "ciw_binary": (
    2,
    lambda y, m: ciw.ciw_binary_loss(LOGITS[:, 0], y, instance=CONFIG, mask=m)[
      0
    ],
  ),
  "ciw_mixup": (K, lambda y, m: _mixup(y, m).sum()),
  "log_loss": (K, lambda y, m: smelu.log_loss(PREDS, y, m)),
  "log_loss_binary": (2, lambda y, m: smelu.log_loss(TWO, y, m)),
  "label_pd": (
    K,
    lambda y, m: smelu.label_prediction_difference(PREDS, y, weights=m),
  ),
  "relative_label_pd": (
    2,
    lambda y, m: smelu.relative_label_prediction_difference(TWO, y, weights=m),
  ),
  "accumulator": (K, _accumulated),
  "histogram": (
    2,
    lambda y, m: smelu.HistogramAUC.init(8).update(TWO[0], y, m).compute(),
  ),
  "clicks": (2, _ctr),
  "two_heads": (
    K,
    lambda y, m: spl.two_head_loss(LOGITS, LOGITS, y, y, mask=m),
  ),
  "data_parameters": (
    K,
    lambda y, m: spl.data_parameter_loss(LOGITS, y, TEMPERATURES, mask=m),
  ),
}
# Without a mask, example by example.
EACH = {
  "class_weights": lambda z, y: ciw.class_weights(z, y, gamma=0.1).sum(axis=1),
  "inner_losses": lambda z, y: ciw.inner_losses(z, y, gamma=0.1),
  "cross_entropy": labels.cross_entropy,
}
HOST = {
  "auc": lambda y, m: smelu.auc(TWO[0], y, m),
  "query_auc": lambda y, m: smelu.query_auc(TWO[0], y, [0] * N, m),
  "ranking_loss": lambda y, m: smelu.ranking_loss(TWO[0], y, None, m),
  "pd_report": lambda y, m: smelu.pd_report(TWO, y, weights=m)["log_loss"],
}


def _bad(num: int) -> list[np.ndarray]:
  """Labels whose fourth is no class."""
  good = np.arange(N) % num
  made = []
  for wrong, dtype in (
    (-1, np.int32),
    (num, np.int32),
    (200, np.uint8),
    (2**31 - 1, np.int32),
    (-(2**31), np.int32),
  ):
    y = good.astype(dtype)
    y[3] = wrong
    made.append(y)
  return made


@pytest.mark.parametrize("name", MASKED)
def test_a_bad_label_is_refused_or_nan_and_removed_by_a_mask(name):
  num, f = MASKED[name]
  mask = np.ones(N, np.float32)
  good = (np.arange(N) % num).astype(np.int32)
  run = jax.jit(f)
  everywhere = jax.tree.leaves(run(good, mask))
  assert all(np.isfinite(x).all() for x in everywhere)
  without = np.where(np.arange(N) == 3, 0, mask).astype(np.float32)
  wanted = jax.tree.leaves(run(good, without))
  for y in _bad(num):
    with pytest.raises(
      ValueError, match=rf"labels? holds {y[3]}\b.*{num - 1}\]"
    ):
      f(y, None)
    with pytest.raises(ValueError, match="holds"):
      f(jnp.asarray(y), mask)
    for x in jax.tree.leaves(run(y, mask)):
      assert np.isnan(x).all(), y[3]
    for found, x in zip(jax.tree.leaves(run(y, without)), wanted):
      np.testing.assert_allclose(found, x, rtol=1e-6)


@pytest.mark.parametrize("name", EACH)
def test_only_the_example_with_the_bad_label_is_nan(name):
  f = functools.partial(EACH[name], LOGITS)
  for y in _bad(K):
    found = np.asarray(jax.jit(f)(y))
    np.testing.assert_array_equal(np.isnan(found), np.arange(N) == 3)
    with pytest.raises(ValueError, match=f"labels holds {y[3]}"):
      f(y)


@pytest.mark.parametrize("name", HOST)
def test_metrics_of_the_host_refuse_it(name):
  without = np.where(np.arange(N) == 3, 0, 1)
  for y in _bad(2):
    with pytest.raises(ValueError, match=f"labels holds {y[3]}"):
      HOST[name](y, None)
    assert np.isfinite(HOST[name](y, without))


def test_no_gradient_says_that_a_bad_label_was_a_class():
  f = lambda z, y: labels.cross_entropy(z, y).sum()
  g = jax.jit(jax.grad(f))(LOGITS, np.array([0, 1, 2, -1, 1, 2]))
  assert np.isnan(g[3]).all() and np.isfinite(np.delete(g, 3, axis=0)).all()


def test_bad_soft_labels_follow_the_rule():
  rows = np.array(jax.nn.softmax(LOGITS))
  rows[3] *= 2
  f = lambda y: ciw.class_weights(LOGITS, y, gamma=0.1).sum(axis=1)
  assert np.isnan(jax.jit(f)(rows)).tolist() == (np.arange(N) == 3).tolist()
  with pytest.raises(ValueError, match="soft labels must be 0 or more"):
    f(rows)


def test_floats_and_booleans_are_labels_if_they_are_whole():
  y, bad = labels.check("y", np.array([0.0, 2.0, 1.0]), 3)
  assert y.dtype == jnp.int32 and y.tolist() == [0, 2, 1] and not bad.any()
  assert labels.check("y", np.array([True, False]), 2).index.tolist() == [1, 0]
  for wrong in (0.5, np.nan, np.inf, -1.0, 1e30):
    with pytest.raises(ValueError, match="y holds"):
      labels.check("y", np.array([wrong, 1.0]), 3)
    _, bad = jax.jit(lambda y: labels.check("y", y, 3))(np.array([wrong, 1.0]))
    assert bad.tolist() == [True, False]
  # What a mask removes may even be beyond what JAX holds.
  far = np.array([1, 2**40])
  assert labels.check("y", far, 3, [1, 0]).index.tolist() == [1, 0]


def test_float_labels_of_clicks_are_probabilities():
  y = np.float32([0, 1, 0.5, 2, 0, 1])
  with pytest.raises(ValueError, match="label=2.0"):
    _ctr(y, None)
  assert np.isnan(jax.jit(_ctr)(y, np.ones(N, np.float32)))
