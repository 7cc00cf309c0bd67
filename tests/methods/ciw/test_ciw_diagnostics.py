"""Diagnostics: effective size, detection scores, suspects, histograms."""

from __future__ import annotations

import numpy as np
import pytest

from locojax.methods.ciw import diagnostics


def _example(n=200, seed=0):
  rng = np.random.default_rng(seed)
  is_noisy = rng.random(n) < 0.3
  # Rounded, so that there are ties.
  return np.round(rng.random(n) * np.where(is_noisy, 0.6, 1.0), 2), is_noisy


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_effective_sample_size(scale):
  weights = np.float32([0.5, 0.25, 0.25, 0.0]) * np.float32(scale)
  size = diagnostics.effective_sample_size(weights)
  np.testing.assert_allclose(size, 1 / 0.375, rtol=1e-6)
  assert float(diagnostics.effective_sample_size(np.zeros(3))) == 0


def test_auc_is_the_share_of_ordered_pairs():
  weights, is_noisy = _example()
  clean, noisy = weights[~is_noisy], weights[is_noisy]
  below = noisy[:, None] < clean
  ties = noisy[:, None] == clean
  assert ties.any()
  auc = diagnostics.noise_detection_auc(weights, is_noisy)
  np.testing.assert_allclose(auc, (below + ties / 2).mean(), rtol=1e-12)
  reverse = diagnostics.noise_detection_auc(-weights, is_noisy)
  np.testing.assert_allclose(auc + reverse, 1, rtol=1e-12)
  assert np.isnan(diagnostics.noise_detection_auc([1.0], [True]))


def test_detection_scores():
  weights, is_noisy = _example()
  scores = diagnostics.detection_scores(weights, is_noisy, threshold=0.3)
  flagged = weights < 0.3
  hits = (flagged & is_noisy).sum()
  np.testing.assert_allclose(scores["precision"], hits / flagged.sum())
  np.testing.assert_allclose(scores["recall"], hits / is_noisy.sum())
  p, r = scores["precision"], scores["recall"]
  np.testing.assert_allclose(scores["f1"], 2 * p * r / (p + r))
  # At the true rate as many are flagged as are noisy.
  at_rate = diagnostics.detection_scores(
    weights, is_noisy, rate=is_noisy.mean()
  )
  assert at_rate["precision"] == at_rate["recall"]
  none = diagnostics.detection_scores(weights, is_noisy, threshold=-1.0)
  assert np.isnan(none["precision"]) and none["recall"] == 0


def test_suspects():
  weights = [0.3, 0.1, 0.1, 0.9]
  assert diagnostics.suspects(weights).tolist() == [1, 2, 0, 3]
  losses = diagnostics.suspects(weights, kind="losses", k=2)
  assert losses.tolist() == [3, 0]
  assert diagnostics.suspects(weights, k=9).size == 4


def test_histograms_count_every_example():
  weights, is_noisy = _example()
  for edges in (None, [0.2, 0.4, 0.5]):
    found = diagnostics.weight_histograms(weights, is_noisy, edges=edges)
    assert found["clean"].sum() == (~is_noisy).sum()
    assert found["noisy"].sum() == is_noisy.sum()
  assert found["noisy"][0] == (is_noisy & (weights < 0.4)).sum()


def test_refusals():
  with pytest.raises(ValueError, match="is_noisy has shape"):
    diagnostics.noise_detection_auc([0.1, 0.2], [True])
  with pytest.raises(ValueError, match="NaN"):
    diagnostics.suspects([np.nan])
  with pytest.raises(ValueError, match="kind='loss'"):
    diagnostics.suspects([1.0], kind="loss")
  with pytest.raises(ValueError, match="exactly one"):
    diagnostics.detection_scores([0.1], [True])
  with pytest.raises(ValueError, match="rate=2"):
    diagnostics.detection_scores([0.1], [True], rate=2)
  with pytest.raises(ValueError, match="must increase"):
    diagnostics.weight_histograms([0.1], [True], edges=[1, 0])
