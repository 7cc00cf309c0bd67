"""The synthetic click data."""

from __future__ import annotations

import numpy as np
import pytest

from locojax.methods.smelu import synthetic


def _teacher(seed=0, **options):
  return synthetic.make_teacher(np.random.default_rng(seed), **options)


def _data(num=60_000, seed=1, teacher=None):
  rng = np.random.default_rng(seed)
  return synthetic.synthetic_ctr(rng, num, teacher=teacher or _teacher())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_click_rate_and_bayes_loss(seed):
  data = _data(teacher=_teacher(seed))
  p, y = data["probability"].astype(np.float64), data["label"]
  assert 0.135 < y.mean() < 0.155
  loss = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))
  assert 0.27 < loss < 0.295
  # The probabilities are the truth: calibrated in each tenth.
  for part in np.array_split(np.argsort(p), 10):
    spread = np.sqrt(np.sum(p[part] * (1 - p[part]))) / len(part)
    assert abs(y[part].mean() - p[part].mean()) < 5 * spread


def test_ids_are_heavy_tailed_and_in_range():
  ids = _data()["categorical"]
  assert ids.shape == (60_000, 8) and ids.dtype == np.int32
  assert ids.min() == 0 and ids.max() == 299
  # P(id = 0) = P(Lomax < 1/6), P(id = 299) = P(Lomax >= 299/6).
  np.testing.assert_allclose(np.mean(ids == 0), 1 - (7 / 6) ** -1.1, atol=0.005)
  np.testing.assert_allclose(
    np.mean(ids == 299), (1 + 299 / 6) ** -1.1, atol=0.002
  )


def test_logit_is_the_stated_formula():
  teacher = _teacher(num_fields=3, vocab_size=5, dim=2)
  ids = np.random.default_rng(2).integers(0, 5, (7, 3))
  expected = []
  for row in ids:
    e = [teacher.embeddings[f, i].astype(float) for f, i in enumerate(row)]
    pairs = e[0] @ e[1] + e[0] @ e[2] + e[1] @ e[2]
    first = sum(v[0] for v in e)
    score = (0.35 * pairs + 1.2 * first) / np.sqrt(3)
    expected.append(1.6 * (score - teacher.mean) / teacher.std - 2.5)
  np.testing.assert_allclose(teacher.logit(ids), expected, rtol=1e-6)


def test_teacher_is_shared_and_examples_are_not():
  teacher = _teacher()
  again = _teacher()
  np.testing.assert_array_equal(teacher.embeddings, again.embeddings)
  first, same, other = (
    _data(500, seed, t) for seed, t in ((1, teacher), (1, again), (2, teacher))
  )
  for name in first:
    np.testing.assert_array_equal(first[name], same[name])
  assert not np.array_equal(first["categorical"], other["categorical"])


def test_sizes_and_scale_are_arguments():
  teacher = _teacher(num_fields=4, vocab_size=1000, dim=6, offset=0.0)
  data = _data(20_000, teacher=teacher)
  assert data["categorical"].shape == (20_000, 4)
  assert data["numeric"].shape == (20_000, 0)
  assert data["categorical"].max() == 999
  assert 0.45 < data["label"].mean() < 0.55


def test_one_id_means_one_probability():
  data = _data(50, teacher=_teacher(vocab_size=1))
  assert len(np.unique(data["probability"])) == 1


@pytest.mark.parametrize(
  ("options", "words"),
  [({"num_fields": 0}, "num_fields=0"), ({"scale": 0.0}, "scale=0.0")],
)
def test_bad_settings_are_named(options, words):
  with pytest.raises(ValueError, match=words):
    _teacher(**options)
  with pytest.raises(ValueError, match="num_examples=0"):
    _data(0)
