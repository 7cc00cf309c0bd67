"""Label noise: matrices, counts, alignment, instance noise, errors."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from sklearn import datasets

from locojax.data import image, label_noise, two_moons

N = 20_000
NUM_CLASSES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}


def _rng(seed=0):
  return np.random.default_rng(seed)


def _matrix(kind, rate=0.4):
  return label_noise.transition_matrix(kind, rate, NUM_CLASSES.get(kind, 5))


def _labels(num_classes, n=N, dtype=np.int32):
  return _rng(9).integers(0, num_classes, n).astype(dtype)


@pytest.mark.parametrize("module", [image, label_noise, two_moons])
def test_examples_of_the_docstrings(module):
  result = doctest.testmod(module)
  assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", label_noise.KINDS)
def test_rows_are_distributions(kind, rate):
  matrix = _matrix(kind, rate)
  np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
  assert matrix.min() >= 0
  if rate == 0:
    np.testing.assert_array_equal(matrix, np.eye(len(matrix)))


def test_worked_matrices():
  symmetric, inclusive, after = (
    _matrix(k) for k in ("symmetric", "symmetric_inclusive", "next")
  )
  off = ~np.eye(5, dtype=bool)
  np.testing.assert_allclose(np.diag(symmetric), 0.6)
  np.testing.assert_allclose(symmetric[off], 0.1)
  np.testing.assert_allclose(np.diag(inclusive), 0.6 + 0.08)
  np.testing.assert_allclose(inclusive[off], 0.08)
  assert after[4, 0] == after[1, 2] == 0.4 and after[1, 0] == 0


@pytest.mark.parametrize(
  ("kind", "pairs"),
  [
    ("cifar10", {(9, 1), (2, 0), (4, 7), (3, 5), (5, 3)}),
    ("mnist", {(7, 1), (2, 7), (5, 6), (6, 5), (3, 8)}),
    ("fashion_mnist", {(9, 7), (7, 5), (2, 6), (4, 3), (3, 4)}),
  ],
)
def test_pairs_of_like_classes(kind, pairs):
  matrix = _matrix(kind)
  np.fill_diagonal(matrix, 0)
  assert set(zip(*(x.tolist() for x in np.nonzero(matrix)))) == pairs
  np.testing.assert_allclose(matrix[matrix > 0], 0.4)
  # Half of the classes flip.
  assert matrix.sum() / 10 == pytest.approx(0.2)


# Superclass of each class of CIFAR-100, as the data set gives it.
COARSE = (
  "4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 "
  "1 10 12 14 16 9 11 5 5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 "
  "3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 "
  "1 2 15 6 0 17 8 14 13"
)


def test_superclasses_of_cifar100():
  coarse = np.array(COARSE.split(), int)
  assert np.bincount(coarse).tolist() == [5] * 20
  matrix = _matrix("cifar100")
  same = (coarse[:, None] == coarse) & ~np.eye(100, dtype=bool)
  np.testing.assert_allclose(matrix, 0.6 * np.eye(100) + 0.1 * same)


@pytest.mark.parametrize("kind", label_noise.KINDS)
def test_realised_matrix_is_that_asked_for(kind):
  matrix = _matrix(kind)
  num_classes = len(matrix)
  labels = _labels(num_classes)
  noisy = label_noise.corrupt(labels, matrix, rng=_rng())
  found = label_noise.empirical_matrix(labels, noisy, num_classes)
  counts = np.bincount(labels)[:, None]
  # Within 5 standard deviations of a binomial share, and 0 where T is 0.
  bound = 5 * np.sqrt(matrix * (1 - matrix) / counts)
  assert np.all(np.abs(found - matrix) <= bound + 1e-12)
  expected = 1 - np.mean(np.diag(matrix)[labels])
  rate = label_noise.noise_rate(labels, noisy)
  assert abs(rate - expected) < 5 * np.sqrt(0.25 / N)


@pytest.mark.parametrize("kind", label_noise.KINDS)
@pytest.mark.parametrize("n", [1, 137, 5000])
def test_exact_counts(kind, n):
  matrix = _matrix(kind, 0.37)
  labels = _labels(len(matrix), n)
  noisy = label_noise.corrupt(labels, matrix, rng=_rng(), exact=True)
  counts = np.zeros(matrix.shape)
  np.add.at(counts, (labels, noisy), 1)
  wanted = np.bincount(labels, minlength=len(matrix))[:, None] * matrix
  assert np.abs(counts - wanted).max() < 1
  assert counts[matrix == 0].sum() == 0


def test_whole_counts_are_met():
  labels = np.repeat(np.arange(10), 500)
  matrix = label_noise.transition_matrix("symmetric", 0.18, 10)
  noisy = label_noise.corrupt(labels, matrix, rng=_rng(), exact=True)
  assert label_noise.noise_rate(labels, noisy) == pytest.approx(0.18)
  found = label_noise.empirical_matrix(labels, noisy, 10)
  np.testing.assert_allclose(found, matrix, atol=1e-12)


def test_exact_rounds_without_preference():
  labels = np.zeros(2, np.int64)
  matrix = np.array([[0, 1 / 3, 1 / 3, 1 / 3], *np.eye(4)[1:]])
  total = np.zeros(4)
  for seed in range(600):
    noisy = label_noise.corrupt(labels, matrix, rng=_rng(seed), exact=True)
    np.add.at(total, noisy, 1)
  assert total[0] == 0
  assert np.abs(total[1:] - 400).max() < 5 * np.sqrt(1200 * 2 / 9)


@pytest.mark.parametrize("exact", [False, True])
def test_noise_is_a_function_of_the_seed_and_keeps_the_dtype(exact):
  matrix = _matrix("symmetric")
  labels = _labels(5, 300, np.uint8)
  kept = labels.copy()
  make = lambda s: label_noise.corrupt(labels, matrix, rng=_rng(s), exact=exact)
  np.testing.assert_array_equal(make(1), make(1))
  assert (make(1) != make(2)).any()
  assert make(1).dtype == np.uint8
  np.testing.assert_array_equal(labels, kept)


def test_noise_is_aligned_with_the_order_of_the_data():
  """Label i has draw i: it does not depend on the labels after or before."""
  matrix = _matrix("symmetric")
  labels = _labels(5, 300)
  noisy = label_noise.corrupt(labels, matrix, rng=_rng())
  start = label_noise.corrupt(labels[:100], matrix, rng=_rng())
  np.testing.assert_array_equal(noisy[:100], start)
  changed = labels.copy()
  changed[7] = (changed[7] + 1) % 5
  other = label_noise.corrupt(changed, matrix, rng=_rng())
  rest = np.arange(300) != 7
  np.testing.assert_array_equal(other[rest], noisy[rest])
  # A class at a time, so an array that was shuffled on its way would show.
  sure = label_noise.corrupt(labels, _matrix("next", 1.0), rng=_rng())
  np.testing.assert_array_equal(sure, (labels + 1) % 5)


def test_sample_never_draws_what_is_impossible():
  rows = np.tile([0.1] * 10 + [0.0], (5000, 1))
  drawn = label_noise.sample(rows, rng=_rng())
  assert drawn.max() == 9 and drawn.dtype == np.int64

  class Last:
    random = staticmethod(lambda n: np.full(n, np.nextafter(1.0, 0.0)))

  assert label_noise.sample(rows, rng=Last()).max() == 9


def _instance(images, labels, seed=0, **kwargs):
  kwargs = {"rate": 0.3, "num_classes": 5, **kwargs}
  return label_noise.instance_probabilities(
    images, labels, rng=_rng(seed), **kwargs
  )


def _pictures(n=3000):
  return _rng(4).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)


def test_instance_noise_has_the_flip_rates_asked_for():
  labels = _labels(5, 3000)
  rows = _instance(_pictures(), labels)
  np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-12)
  flip = 1 - rows[np.arange(3000), labels]
  assert abs(flip.mean() - 0.3) < 5 * 0.1 / np.sqrt(3000)
  assert abs(flip.std() - 0.1) < 0.01
  noisy = label_noise.sample(rows, rng=_rng(1))
  assert abs(label_noise.noise_rate(labels, noisy) - 0.3) < 0.045
  edge = _instance(_pictures(), labels, rate=0.0)
  flip = 1 - edge[np.arange(3000), labels]
  assert flip.min() >= 0  # Half a normal distribution.
  assert abs(flip.mean() - 0.1 * np.sqrt(2 / np.pi)) < 0.01


def test_instance_noise_follows_the_image():
  labels = _labels(5, 3000)
  images = _pictures()
  images[1] = images[0]
  labels[:2] = 3
  rows = _instance(images, labels, std=0.0)
  np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
  share = rows / 0.3
  share[np.arange(3000), labels] = 0
  # One target for most images, but not the same for all images of a class.
  assert np.median(share.max(axis=1)) > 0.9
  targets = np.bincount(share[labels == 3].argmax(axis=1), minlength=5)
  assert np.sort(targets)[1] > 0.05 * targets.sum()
  flat = _instance(images, labels, std=0.0, temperature=1e6)
  expected = label_noise.transition_matrix("symmetric", 0.3, 5)[labels]
  np.testing.assert_allclose(flat, expected, atol=1e-4)


def test_instance_noise_does_not_depend_on_the_scale_of_the_pixels():
  labels = _labels(5, 3000)
  whole = _instance(_pictures(), labels)
  np.testing.assert_array_equal(whole, _instance(_pictures(), labels))
  scaled = _instance(_pictures() / 255.0, labels)
  np.testing.assert_allclose(whole, scaled, atol=1e-3)
  assert (whole != _instance(_pictures(), labels, seed=1)).any()


def test_instance_noise_of_equal_pixels_and_absent_classes():
  rows = _instance(np.ones((3, 2, 2, 1)), np.int32([1, 1, 3]), std=0.0)
  expected = label_noise.transition_matrix("symmetric", 0.3, 5)[[1, 1, 3]]
  np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_row_of_an_absent_class_is_zero():
  found = label_noise.empirical_matrix([0, 0], [0, 2], 3)
  np.testing.assert_array_equal(found, [[0.5, 0, 0.5], [0] * 3, [0] * 3])


def _corrupt(labels, transition=None):
  transition = np.eye(3) if transition is None else transition
  return label_noise.corrupt(labels, transition, rng=_rng())


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: _matrix("symetric"), "did you mean 'symmetric'"),
    (lambda: _matrix("symmetric", 1.1), r"rate=1.1.*\[0, 1\]"),
    (lambda: _matrix("symmetric", np.nan), "rate=nan"),
    (
      lambda: label_noise.transition_matrix("next", 0.1, 1),
      "num_classes=1 is not allowed",
    ),
    (
      lambda: label_noise.transition_matrix("cifar10", 0.1, 5),
      "num_classes for kind='cifar10'=5",
    ),
    (lambda: label_noise.flip_matrix({0: 3}, 0.1, 3), r"flips\[0\]=3.*0\.\.2"),
    (lambda: label_noise.flip_matrix({1: 1}, 0.1, 3), r"flips\[1\]=1"),
    (lambda: label_noise.flip_matrix({1: []}, 0.1, 3), r"flips\[1\]=\[\]"),
    (lambda: _corrupt([0, 3]), r"from 0 to 3.*0\.\.2"),
    (lambda: _corrupt([-1, 0]), "from -1 to 0"),
    (lambda: _corrupt([0.0, 1.0]), "dtype float64"),
    (lambda: _corrupt([[0, 1]]), r"shape \(1, 2\)"),
    (lambda: _corrupt([]), r"shape \(0,\)"),
    (lambda: _corrupt([0], np.ones((3, 3))), r"transition\[0\]=.*sum to 1"),
    (lambda: _corrupt([0], [[1.5, -0.5], [0, 1]]), "nonnegative"),
    (lambda: _corrupt([0], [[np.nan, 1], [0, 1]]), r"transition\[0\]"),
    (lambda: _corrupt([0], np.eye(3)[:2]), "number of rows of transition=2"),
    (lambda: label_noise.noise_rate([0, 1], [0]), "noisy has shape"),
    (lambda: label_noise.noise_rate([], []), "number of labels=0"),
    (
      lambda: label_noise.empirical_matrix([0], [0, 1], 2),
      "noisy has shape",
    ),
    (lambda: _instance(np.ones((3, 2)), [0, 1]), "labels has shape"),
    (lambda: _instance(np.ones((1, 2)), [0], std=2.0), "std=2.0"),
    (lambda: _instance(np.ones((1, 2)), [0], rate=-0.1), "rate=-0.1"),
    (lambda: _instance(np.ones((1, 2)), [0], temperature=0), "temperature=0"),
    (lambda: _instance(np.ones((1, 2)), [5]), "from 5 to 5"),
  ],
)
def test_bad_arguments(call, words):
  with pytest.raises(ValueError, match=words):
    call()


@pytest.mark.parametrize("n", [2, 7, 100])
def test_two_moons_have_the_geometry_of_scikit_learn(n):
  points, labels = two_moons.two_moons(n, rng=_rng())
  expected, classes = datasets.make_moons(n, shuffle=False, noise=None)
  np.testing.assert_allclose(points, expected, atol=1e-6)
  np.testing.assert_array_equal(labels, classes)
  assert points.dtype == np.float32 and labels.dtype == np.int32


def test_noise_of_two_moons():
  make = lambda s: two_moons.two_moons(2000, rng=_rng(s), noise=0.1)[0]
  clean, _ = two_moons.two_moons(2000, rng=_rng())
  np.testing.assert_array_equal(make(1), make(1))
  np.testing.assert_allclose((make(1) - clean).std(axis=0), 0.1, rtol=0.08)
  with pytest.raises(ValueError, match="num_examples=1"):
    two_moons.two_moons(1, rng=_rng())
  with pytest.raises(ValueError, match="noise=-1"):
    two_moons.two_moons(4, rng=_rng(), noise=-1)
