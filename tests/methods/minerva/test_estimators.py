"""Exact maj1@k and pass@k against enumeration, worked numbers, limits."""

from __future__ import annotations

import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest

from locojax.methods import minerva
from locojax.methods.minerva import estimators


def _enumerated(counts, correct, invalid, k, n):
  """The expectation over all subsets, exactly."""
  total = Fraction(0)
  for votes in itertools.product(*(range(min(c, k) + 1) for c in counts)):
    rest = k - sum(votes)
    if not 0 <= rest <= invalid or not votes[correct]:
      continue
    ways = math.comb(invalid, rest) * math.prod(
      math.comb(c, v) for c, v in zip(counts, votes, strict=True)
    )
    larger = sum(v > votes[correct] for v in votes)
    tied = sum(v == votes[correct] for v in votes)
    total += ways * min(max(Fraction(n - larger, tied), 0), 1)
  return float(total / math.comb(sum(counts) + invalid, k))


def test_exact_is_what_enumeration_gives():
  rng = np.random.default_rng(0)
  for _ in range(150):
    counts = rng.integers(1, 6, rng.integers(1, 6)).tolist()
    invalid = int(rng.integers(0, 4))
    k = int(rng.integers(1, sum(counts) + invalid + 1))
    correct, n = int(rng.integers(len(counts))), int(rng.integers(1, 4))
    found = minerva.maj_at_k(counts, correct, invalid, k, n=n)
    truth = _enumerated(counts, correct, invalid, k, n)
    assert abs(found - truth) < 1e-12


@pytest.mark.parametrize(
  ("counts", "correct", "k", "value"),
  [
    ((6, 4), 0, 1, 0.6),
    ((6, 4), 0, 3, 2 / 3),
    ((6, 4), 0, 5, 31 / 42),
    ((6, 4), 1, 1, 0.4),
    ((6, 4), 1, 3, 1 / 3),
    ((6, 4), 1, 5, 11 / 42),
  ],
)
def test_worked_numbers(counts, correct, k, value):
  assert abs(minerva.maj_at_k(counts, correct, 0, k) - value) < 1e-12


def test_many_samples_are_like_drawing_with_replacement():
  """p = (.4, .3, .2, .1) and two classes of .55, from the method's notes."""
  counts = (1600, 1200, 800, 400)
  for k, value in ((3, 0.44), (5, 0.49024), (9, 0.55619072)):
    assert abs(minerva.maj_at_k(counts, 0, 0, k) - value) < 2e-3
  for k, value in ((9, 0.6214209454), (65, 0.7914232311)):
    found = minerva.maj_at_k((2200, 1800), 0, 0, k)
    assert abs(found - value) < 3e-3


def test_ends_and_bounds():
  counts, invalid = (5, 3, 2), 4
  total = sum(counts) + invalid
  for correct in range(3):
    one = minerva.maj_at_k(counts, correct, invalid, 1)
    assert abs(one - counts[correct] / total) < 1e-12
    assert abs(one - minerva.pass_at_k(total, counts[correct], 1)) < 1e-12
    for k in range(1, total + 1):
      found = minerva.maj_at_k(counts, correct, invalid, k)
      assert found <= minerva.pass_at_k(total, counts[correct], k) + 1e-12
  assert minerva.maj_at_k(counts, 0, invalid, total) == 1.0
  assert minerva.maj_at_k(counts, 1, invalid, total) == 0.0
  assert minerva.maj_at_k((3, 3), 0, 0, 6) == 0.5
  assert minerva.maj_at_k(counts, None, invalid, 3) == 0.0
  two = [minerva.maj_at_k((6, 4), 0, 0, k) for k in (1, 2)]
  assert abs(two[0] - two[1]) < 1e-12


def test_shares_of_all_classes_add_up():
  """Somebody has the majority, unless all k samples are invalid."""
  counts, invalid, k = (60, 50, 20, 5, 5, 1, 1, 1), 30, 16
  total = sum(counts) + invalid
  found = sum(minerva.maj_at_k(counts, c, invalid, k) for c in range(8))
  none = math.comb(invalid, k) / math.comb(total, k)
  assert abs(found - (1 - none)) < 1e-11


@pytest.mark.parametrize(
  "counts", [(100, 80, 40, 20), (1,) * 240, (16,) * 15, tuple(range(1, 22))]
)
def test_random_subsets_agree(counts):
  rng = np.random.default_rng(1)
  for n in (1, 2) if len(counts) < 100 else (1,):
    found = minerva.maj_at_k(counts, 1, 9, 32, n=n)
    drawn = minerva.maj_at_k(
      counts, 1, 9, 32, n=n, method="mc", rng=rng, num=20_000
    )
    assert abs(found - drawn) < 5 * math.sqrt(found * (1 - found) / 2e4 + 1e-6)


def test_256_samples_take_a_millisecond():
  """CPU time of the best of some, of likely classes and of 22 of all sizes."""
  likely = (120, 40, 20, 12, 10, 8, 6, 6, 4, 4, 3, 3, 2, 2) + (1,) * 10
  for counts, correct in ((likely, 0), (tuple(range(1, 23)), 21)):
    times = []
    for _ in range(15):
      start = time.thread_time()
      estimators.maj_at_k(counts, correct, 256 - sum(counts), 64)
      times.append(time.thread_time() - start)
    assert min(times) < 2e-3  # a busy machine; the benchmark has the number


def test_reranking_is_what_enumeration_gives():
  rng = np.random.default_rng(0)
  for _ in range(20):
    n = int(rng.integers(1, 7))
    right, valid = rng.random((2, n)) < 0.6
    scores = rng.integers(0, 4, n).astype(float)
    for k in range(1, n + 1):
      total = 0.0
      for some in itertools.combinations(range(n), k):
        there = [i for i in some if valid[i]]
        best = [i for i in there if scores[i] == max(scores[there])]
        total += np.mean(right[best]) if best else 0.0
      want = total / math.comb(n, k)
      found = minerva.rerank_at_k(right, scores, k, valid=valid)
      assert abs(found - want) < 1e-12
  assert minerva.rerank_at_k([True, False], [-1.0, -2.0], 2) == 1.0


def test_pass_at_k():
  assert abs(minerva.pass_at_k(20, 3, 5) - 0.600877192982) < 1e-12
  for n, c, k in itertools.product((1, 5, 30), (0, 1, 3), (1, 4)):
    if c <= n and k <= n:
      truth = 1 - math.comb(n - c, k) / math.comb(n, k)
      assert abs(minerva.pass_at_k(n, c, k) - truth) < 1e-12
  assert minerva.pass_at_k(100_000, 1, 1) == pytest.approx(1e-5)


def test_the_limit_is_the_mode():
  assert minerva.maj_limit((6, 4), 0) == 1.0
  assert minerva.maj_limit((6, 4), 1) == 0.0
  assert minerva.maj_limit((4, 4, 4, 1), 1) == pytest.approx(1 / 3)
  assert minerva.maj_limit((4,), None) == 0.0


def test_intervals_cover():
  rng = np.random.default_rng(0)
  hits = 0
  for _ in range(100):
    values = rng.random(50) < 0.3
    low, high = minerva.bootstrap_ci(values, rng=rng, num=300)
    hits += low <= 0.3 <= high
  assert 85 <= hits <= 100
  low, high = minerva.wilson_interval(0, 20)
  assert low == 0.0 and abs(high - 0.16113) < 1e-4
  low, high = minerva.wilson_interval(10, 20)
  assert abs(low - 0.29929) < 1e-4 and abs(low + high - 1) < 1e-12


@pytest.mark.parametrize(
  "call",
  [
    lambda: minerva.maj_at_k((1, 2), 0, 0, 4),
    lambda: minerva.maj_at_k((1, 2), 0, 0, 0),
    lambda: minerva.maj_at_k((1, -2), 0, 0, 1),
    lambda: minerva.maj_at_k((1, 0), 0, 0, 1),
    lambda: minerva.maj_at_k((1, 2), 2, 0, 1),
    lambda: minerva.maj_at_k((1, 2), 0, -1, 1),
    lambda: minerva.maj_at_k((1, 2), 0, 0, 1, n=0),
    lambda: minerva.maj_at_k((1, 2), 0, 0, 1, method="guess"),
    lambda: minerva.maj_at_k((1, 2), 0, 0, 1, method="mc"),
    lambda: minerva.maj_at_k((5000,), 0, 0, 1),
    lambda: minerva.pass_at_k(5, 6, 1),
    lambda: minerva.pass_at_k(5, 2, 6),
    lambda: minerva.pass_at_k(5, -1, 1),
    lambda: minerva.bootstrap_ci([], rng=np.random.default_rng(0)),
    lambda: minerva.bootstrap_ci([1.0], rng=0),
    lambda: minerva.wilson_interval(3, 2),
    lambda: minerva.rerank_at_k([True], [0.0], 2),
    lambda: minerva.rerank_at_k([True, False], [0.0, math.nan], 2),
  ],
)
def test_bad_arguments_are_named(call):
  with pytest.raises(ValueError, match="is not allowed"):
    call()
