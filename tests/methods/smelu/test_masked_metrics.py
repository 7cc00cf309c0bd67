"""Masked rows are removed from the metrics of the host, whatever they hold."""

from __future__ import annotations

import numpy as np

from locojax.methods import smelu


def test_metrics_of_the_host_look_at_no_masked_row():
  scores = np.array([0.1, 0.7, 0.4, np.nan, np.inf])
  y, weights = np.array([0, 1, 1, -7, 10**6]), np.array([1, 2, 1, 0, 0])
  queries = np.array([0, 0, 0, 1, 1])
  live = slice(0, 3)
  assert smelu.auc(scores, y, weights) == smelu.auc(
    scores[live], y[live], weights[live]
  )
  assert smelu.query_auc(scores, y, queries, weights) == smelu.query_auc(
    scores[live], y[live], queries[live], weights[live]
  )
  two = np.stack([scores, -scores])
  assert smelu.swap_rate(two, queries, mask=weights) == smelu.swap_rate(
    two[:, live], queries[live]
  )
  assert np.isnan(smelu.auc(scores, y, 0 * weights))
