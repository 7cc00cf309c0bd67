"""Ranking metrics: against scikit-learn, by hand, streams, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from locojax.methods.smelu import differences, ranking


def _data(num_examples=300, decimals=2, seed=0):
  rng = np.random.default_rng(seed)
  scores = np.round(rng.random(num_examples), decimals)
  labels = (rng.random(num_examples) < 0.3 + 0.4 * scores).astype(int)
  return scores, labels, rng.random(num_examples), rng.integers(0, 40, 300)


@pytest.mark.parametrize("decimals", [1, 2, 12])
@pytest.mark.parametrize("weighted", [False, True])
def test_auc_is_that_of_sklearn(decimals, weighted):
  scores, labels, weights, _ = _data(decimals=decimals)
  weights = weights if weighted else None
  expected = sklearn_metrics.roc_auc_score(
    labels, scores, sample_weight=weights
  )
  found = ranking.auc(scores, labels, weights)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  np.testing.assert_allclose(
    ranking.ranking_loss(scores, labels, weights=weights), 1 - expected
  )


@pytest.mark.parametrize("average", ranking.AVERAGES)
def test_query_auc_is_the_mean_over_queries(average):
  scores, labels, weights, queries = _data()
  values, sizes = [], []
  for query in np.unique(queries):
    mine = queries == query
    if 0 < labels[mine].sum() < mine.sum():
      values.append(
        sklearn_metrics.roc_auc_score(
          labels[mine], scores[mine], sample_weight=weights[mine]
        )
      )
      sizes.append(weights[mine].sum() if average == "weights" else 1.0)
  found = ranking.query_auc(scores, labels, queries, weights, average=average)
  np.testing.assert_allclose(found, np.average(values, weights=sizes))


def test_one_query_is_plain_auc():
  scores, labels, weights, _ = _data()
  names = np.full(300, "q")
  np.testing.assert_allclose(
    ranking.ranking_loss(scores, labels, names, weights),
    1 - ranking.auc(scores, labels, weights),
  )


def test_monotone_transforms_and_reversal():
  scores, labels, weights, _ = _data()
  value = ranking.auc(scores, labels, weights)
  np.testing.assert_allclose(
    ranking.auc(np.exp(3 * scores), labels, weights), value
  )
  np.testing.assert_allclose(ranking.auc(-scores, labels, weights), 1 - value)
  np.testing.assert_allclose(ranking.auc(0 * scores, labels, weights), 0.5)


def test_models_are_rows():
  scores, labels, weights, queries = _data()
  both = np.stack([scores, -scores])
  np.testing.assert_allclose(
    ranking.auc(both, labels), [ranking.auc(row, labels) for row in both]
  )
  assert ranking.query_auc(both, labels, queries, weights).shape == (2,)


def test_one_class_has_no_auc():
  assert np.isnan(ranking.auc([0.1, 0.2], [1, 1]))
  assert np.isnan(ranking.auc([0.1, 0.2], [1, 0], [1, 0]))
  assert np.isnan(ranking.auc([0.1, 0.2], [1, 0], [0, 0]))
  assert np.isnan(ranking.query_auc([0.1, 0.2], [1, 0], [1, 2]))


def _holed(scores, labels):
  keep = np.arange(len(labels)) % 4 != 0
  holed, wrong = scores.copy(), labels.astype(float)
  holed[~keep], wrong[~keep] = np.nan, np.nan
  return keep, holed, wrong


def test_masked_is_removed():
  scores, labels, _, queries = _data()
  keep, holed, wrong = _holed(scores, labels)
  np.testing.assert_allclose(
    ranking.auc(holed, wrong, keep), ranking.auc(scores[keep], labels[keep])
  )
  np.testing.assert_allclose(
    ranking.query_auc(holed, wrong, queries, keep),
    ranking.query_auc(scores[keep], labels[keep], queries[keep]),
  )
  histogram = ranking.HistogramAUC.init(64)
  np.testing.assert_allclose(
    histogram.update(holed, wrong, keep).compute(),
    histogram.update(scores[keep], labels[keep]).compute(),
    rtol=1e-5,
  )


def test_histogram_is_exact_on_its_bins():
  scores, labels, weights, _ = _data()
  found = ranking.HistogramAUC.init(10).update(scores, labels, weights)
  binned = np.floor(scores * 10).clip(0, 9)
  np.testing.assert_allclose(
    found.compute(), ranking.auc(binned, labels, weights), rtol=1e-5
  )
  gap = abs(float(found.compute()) - ranking.auc(scores, labels, weights))
  assert gap <= float(found.max_error()) + 1e-6
  assert float(found.max_error()) < 0.06


def test_histogram_streams_merges_and_shards():
  scores, labels, weights, _ = _data()
  empty = ranking.HistogramAUC.init(256)
  whole = empty.update(scores, labels, weights)
  update = jax.jit(lambda h, *batch: h.update(*batch))
  halves = [
    update(empty, scores[part], labels[part], weights[part])
    for part in np.split(np.arange(300), 2)
  ]
  merged = halves[0].merge(halves[1])
  np.testing.assert_allclose(merged.compute(), whole.compute(), rtol=1e-6)
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  laid = jax.device_put(
    [jnp.asarray(x[:296]) for x in (scores, labels, weights)],
    jax.NamedSharding(mesh, jax.P("data")),
  )
  np.testing.assert_allclose(
    update(empty, *laid).compute(),
    empty.update(scores[:296], labels[:296], weights[:296]).compute(),
    rtol=1e-5,
  )
  assert np.isnan(empty.compute())
  assert np.isnan(empty.update([0.1, np.nan], [0, 1]).compute())
  with pytest.raises(ValueError, match="do not merge"):
    empty.merge(ranking.HistogramAUC.init(256, high=2.0))


def test_a_histogram_counts_beyond_2_to_the_24():
  """In float32 one example more is lost there, and the AUC stands still."""
  bins = ranking.HistogramAUC.init(2)
  start = bins.update([0.1, 0.9, 0.1], [1, 1, 0], [2.0**24, 2.0**24, 2.0**24])

  def more(histogram, _):
    return histogram.update([0.1, 0.9], [0, 0], [1.0, 1.0]), None

  run = jax.jit(lambda h: jax.lax.scan(more, h, length=1001)[0])
  found = run(start)
  counted = np.float64(found.negatives) + np.float64(found.negatives_rest)
  np.testing.assert_array_equal(counted, [2**24 + 1001, 1001])
  both = found.merge(run(bins))
  counted = np.float64(both.negatives) + np.float64(both.negatives_rest)
  np.testing.assert_array_equal(counted, [2**24 + 2002, 2002])


def test_swap_rate_worked_example():
  queries = np.array([7, 7, 7, 3, 3, 3, 5])
  scores = np.array(
    [
      [0.9, 0.5, 0.1, 0.2, 0.3, 0.4, 0.5],
      [0.5, 0.9, 0.1, 0.2, 0.3, 0.4, 0.9],  # Query 7: first two exchanged.
      [0.9, 0.1, 0.5, 0.9, 0.3, 0.4, 0.1],  # 7: second changed; 3: first.
    ]
  )
  one = ranking.swap_rate(scores, queries, n=1, reduce="pairs")
  np.testing.assert_allclose(one["top_item"], [1 / 3, 1 / 3, 2 / 3])
  np.testing.assert_allclose(one["top_set"], one["top_item"])
  two = ranking.swap_rate(scores, queries, n=2, reduce="pairs")
  np.testing.assert_allclose(two["top_set"], [0, 2 / 3, 2 / 3])
  np.testing.assert_allclose(two["top_item"], one["top_item"])
  assert ranking.swap_rate(scores, queries, n=2)["top_set"] == pytest.approx(
    4 / 9
  )
  assert ranking.swap_rate(scores, queries, n=3)["top_set"] == 0


def test_swap_rate_against_plain_loops():
  rng = np.random.default_rng(2)
  scores = np.round(rng.random((3, 200)), 1)  # With ties.
  queries, n = rng.integers(0, 30, 200), 3
  sets, items = [], []
  for i, j in zip(*differences.pair_indices(3)):
    for query in np.unique(queries):
      rows = np.flatnonzero(queries == query)
      a, b = (
        rows[np.argsort(-s[rows], kind="stable")]
        for s in (scores[i], scores[j])
      )
      sets.append(set(a[:n]) != set(b[:n]))
      items.append(a[0] != b[0])
  found = ranking.swap_rate(scores, queries, n)
  np.testing.assert_allclose(found["top_set"], np.mean(sets))
  np.testing.assert_allclose(found["top_item"], np.mean(items))


def test_swap_rate_invariants():
  scores, _, _, queries = _data(decimals=12)
  both = np.stack([scores, np.exp(scores)])
  assert set(ranking.swap_rate(both, queries, 5).values()) == {0.0}
  other = np.stack([scores, scores[::-1]])
  keep, holed, _ = _holed(other.T, queries)
  masked = ranking.swap_rate(holed.T, queries, 2, mask=keep[: len(queries)])
  assert masked == ranking.swap_rate(other[:, keep], queries[keep], 2)


def test_log_loss_is_that_of_sklearn():
  rng = np.random.default_rng(0)
  preds = rng.dirichlet(np.ones(4), (2, 50))
  labels, weights = rng.integers(0, 4, 50), rng.random(50)
  expected = [
    sklearn_metrics.log_loss(labels, row, sample_weight=weights)
    for row in preds
  ]
  found = ranking.log_loss(preds, labels, weights)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  binary = ranking.log_loss(preds[..., 0], labels == 0)
  np.testing.assert_allclose(
    binary,
    [sklearn_metrics.log_loss(labels == 0, row) for row in preds[..., 0]],
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    ranking.log_loss([[0.0]], [1]), -np.log(ranking.LOSS_EPS), rtol=1e-6
  )


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: ranking.auc([[[0.1]]], [1]), "scores has shape"),
    (lambda: ranking.auc([0.1, 0.2], [1]), "labels has shape"),
    (lambda: ranking.auc([0.1, 0.2], [1, 2]), "labels holds 2"),
    (lambda: ranking.auc([0.1, np.nan], [1, 0]), "NaN"),
    (lambda: ranking.auc([0.1, 0.2], [1, 0], [1, -1]), "weights"),
    (lambda: ranking.query_auc([0.1], [1], [1, 2]), "query_ids has shape"),
    (lambda: ranking.query_auc([0.1], [1], [1], average="x"), "average='x'"),
    (lambda: ranking.swap_rate([[0.1, 0.2]], [0, 0]), "two models"),
    (lambda: ranking.swap_rate([[0.1], [0.2]], [0], 0), "n=0"),
    (lambda: ranking.swap_rate([[0.1], [np.nan]], [0]), "NaN"),
    (lambda: ranking.swap_rate([[0.1], [0.2]], [0], mask=[0]), "a row"),
    (lambda: ranking.HistogramAUC.init(0), "num_bins=0"),
    (lambda: ranking.log_loss([[0.5]], [2]), "labels holds 2"),
  ],
)
def test_bad_arguments_are_refused(call, words):
  with pytest.raises(ValueError, match=words):
    call()
