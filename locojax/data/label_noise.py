"""Label noise: transition matrices, corruption, and what was realised.

A transition matrix T has T[i, j] = P(noisy label = j | true label = i). All
randomness comes from the `rng` given, so the noise is a function of its seed
and of the order of the labels: corrupt before any shuffling, and keep the noisy
labels beside the images they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from locojax.core import checks

# Pairs of like classes, as is usual since Patrini et al. (2017, arXiv
# 1609.03683): 7 -> 1, 2 -> 7, 5 <-> 6, 3 -> 8. They serve any set of digits.
MNIST_FLIPS = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
# Ankle boot -> sneaker -> sandal, pullover -> shirt, coat <-> dress (Zhang and
# Sabuncu 2018, arXiv 1805.07836).
FASHION_MNIST_FLIPS = {9: 7, 7: 5, 2: 6, 4: 3, 3: 4}
# Truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog.
CIFAR10_FLIPS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
# The superclasses of CIFAR-100; its classes are numbered in the order of names.
CIFAR100_SUPERCLASSES = (
  "beaver dolphin otter seal whale",
  "aquarium_fish flatfish ray shark trout",
  "orchid poppy rose sunflower tulip",
  "bottle bowl can cup plate",
  "apple mushroom orange pear sweet_pepper",
  "clock keyboard lamp telephone television",
  "bed chair couch table wardrobe",
  "bee beetle butterfly caterpillar cockroach",
  "bear leopard lion tiger wolf",
  "bridge castle house road skyscraper",
  "cloud forest mountain plain sea",
  "camel cattle chimpanzee elephant kangaroo",
  "fox porcupine possum raccoon skunk",
  "crab lobster snail spider worm",
  "baby boy girl man woman",
  "crocodile dinosaur lizard snake turtle",
  "hamster mouse rabbit shrew squirrel",
  "maple_tree oak_tree palm_tree pine_tree willow_tree",
  "bicycle bus motorcycle pickup_truck train",
  "lawn_mower rocket streetcar tank tractor",
)


def cifar100_flips() -> dict[int, list[int]]:
  """Each class of CIFAR-100 -> the four others of its superclass."""
  groups = [names.split() for names in CIFAR100_SUPERCLASSES]
  order = {n: i for i, n in enumerate(sorted(sum(groups, [])))}
  return {
    order[name]: [order[other] for other in group if other != name]
    for group in groups
    for name in group
  }


_FLIPS = {
  "mnist": (10, lambda: MNIST_FLIPS),
  "fashion_mnist": (10, lambda: FASHION_MNIST_FLIPS),
  "cifar10": (10, lambda: CIFAR10_FLIPS),
  "cifar100": (100, cifar100_flips),
}
KINDS = ("symmetric", "symmetric_inclusive", "next", *_FLIPS)


def transition_matrix(kind: str, rate: float, num_classes: int) -> np.ndarray:
  """The transition matrix of a named kind of noise.

  Args:
    kind: `symmetric`: with probability `rate` one of the K - 1 other classes,
      uniformly. `symmetric_inclusive`: one of all K classes, so that only
      rate (K - 1) / K of the labels are wrong. `next`: class y becomes y + 1
      modulo K. `mnist` (or other digits), `fashion_mnist`, `cifar10`: like
      classes, and only those of the table in this file; the other classes stay
      clean, so the noise over all classes is less than `rate` (half of it for
      balanced sets). `cifar100`: another class of the superclass, uniformly.
    rate: in [0, 1].
    num_classes: K, 2 or more; 10 or 100 for the named sets.

  Returns:
    `[K, K]` float64; rows sum to 1.

  Raises:
    ValueError: an unknown kind, a rate outside [0, 1], a bad number of classes.

  >>> transition_matrix("symmetric", 0.5, 3).tolist()
  [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]
  """
  checks.one_of("kind", kind, KINDS)
  checks.in_range("rate", rate, 0, 1)
  _check_classes(num_classes)
  eye = np.eye(num_classes)
  if kind == "symmetric":
    return (1 - rate) * eye + rate * (1 - eye) / (num_classes - 1)
  if kind == "symmetric_inclusive":
    return (1 - rate) * eye + rate / num_classes
  if kind == "next":
    return (1 - rate) * eye + rate * np.roll(eye, 1, axis=1)
  expected, flips = _FLIPS[kind]
  checks.one_of(f"num_classes for kind={kind!r}", num_classes, [expected])
  return flip_matrix(flips(), rate, num_classes)


def _check_classes(num_classes: int) -> None:
  checks.positive_int("num_classes", num_classes)
  checks.in_range("num_classes", num_classes, 2, np.inf)


def flip_matrix(
  flips: Mapping[int, int | Sequence[int]], rate: float, num_classes: int
) -> np.ndarray:
  """The transition matrix of your own table of class-dependent flips.

  Args:
    flips: class -> the class it becomes, or several, equally likely. Classes
      that are not in it stay as they are.
    rate: probability that a label of a class in `flips` changes, in [0, 1].
    num_classes: K, 2 or more.

  Returns:
    `[K, K]` float64; rows sum to 1.

  Raises:
    ValueError: a class outside 0..K-1, one that becomes itself, or no target.

  >>> flip_matrix({0: 1}, 0.25, 2).tolist()
  [[0.75, 0.25], [0.0, 1.0]]
  """
  checks.in_range("rate", rate, 0, 1)
  _check_classes(num_classes)
  matrix = np.eye(num_classes)
  for source, target in flips.items():
    targets = np.unique(np.atleast_1d(target))
    classes = np.append(targets, source)
    if (
      not targets.size
      or source in targets
      or not _are_classes(classes, num_classes)
    ):
      raise ValueError(
        f"flips[{source!r}]={target!r} is not allowed: both must be classes in "
        f"0..{num_classes - 1}, and different."
      )
    matrix[source, source] = 1 - rate
    matrix[source, targets] = rate / targets.size
  return matrix


def _are_classes(labels: np.ndarray, num_classes: int) -> bool:
  whole = np.issubdtype(labels.dtype, np.integer)
  return bool(whole and np.all((labels >= 0) & (labels < num_classes)))


def _check_labels(name: str, labels, num_classes: int) -> np.ndarray:
  labels = np.asarray(labels)
  if labels.ndim != 1 or not labels.size:
    raise ValueError(
      f"{name} of shape {labels.shape} are not allowed: they must be [n], with "
      "n at least 1."
    )
  if not _are_classes(labels, num_classes):
    raise ValueError(
      f"{name} of dtype {labels.dtype} from {labels.min()} to {labels.max()} "
      f"are not allowed: they must be integers in 0..{num_classes - 1}."
    )
  return labels


def _check_rows(name: str, rows) -> np.ndarray:
  """`[n, K]` float64 of which each row is a distribution."""
  rows = np.asarray(rows, np.float64)
  if rows.ndim != 2 or rows.shape[1] < 2:
    raise ValueError(
      f"{name} of shape {rows.shape} is not allowed: it must be [rows, "
      "classes], with 2 classes or more."
    )
  bad = ~(rows >= 0).all(axis=1) | ~(np.abs(rows.sum(axis=1) - 1) <= 1e-6)
  if bad.any():
    first = int(np.flatnonzero(bad)[0])
    raise ValueError(
      f"{name}[{first}]={rows[first].tolist()} is not allowed: every row must "
      "be nonnegative and sum to 1."
    )
  return rows


def sample(probabilities, *, rng: np.random.Generator) -> np.ndarray:
  """One class for each row of probabilities.

  Args:
    probabilities: `[n, classes]`; rows sum to 1.
    rng: one uniform number is drawn for each row, in order.

  Returns:
    `[n]` int64.

  Raises:
    ValueError: a row that is no distribution.
  """
  return _sample(_check_rows("probabilities", probabilities), rng)


def _sample(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  # Divided by its last entry, which rounding may leave a little off 1; so a
  # class of probability 0 is never drawn.
  cumulative = np.cumsum(rows, axis=1)
  cumulative /= cumulative[:, -1:]
  return (rng.random(len(rows))[:, None] >= cumulative).sum(axis=1)


def corrupt(
  labels,
  transition,
  *,
  rng: np.random.Generator,
  exact: bool = False,
) -> np.ndarray:
  """Noisy labels, drawn by a transition matrix.

  Args:
    labels: `[n]` integers in [0, K), the true labels in the order of the data.
    transition: `[K, K]`, see `transition_matrix`.
    rng: source of the noise.
    exact: False draws each label by itself. True fixes the counts: of the n_i
      examples of class i, those that become j are n_i T[i, j], rounded down or
      up (drawn at random, so that they sum to n_i); which ones is random.

  Returns:
    `[n]`, dtype of `labels`, in the same order.

  Raises:
    ValueError: labels out of range, or a row of T that is no distribution.

  >>> matrix = transition_matrix("next", 1.0, 3)
  >>> corrupt([0, 1, 2, 2], matrix, rng=np.random.default_rng(0)).tolist()
  [1, 2, 0, 0]
  """
  transition = _check_rows("transition", transition)
  checks.one_of("number of rows of transition", *_square(transition))
  labels = _check_labels("labels", labels, len(transition))
  if not exact:
    return _sample(transition[labels], rng).astype(labels.dtype)
  noisy = np.empty_like(labels)
  for true, row in enumerate(transition):
    where = np.flatnonzero(labels == true)
    classes = np.repeat(np.arange(len(row)), _counts(row, len(where), rng))
    noisy[rng.permutation(where)] = classes
  return noisy


def _square(matrix: np.ndarray) -> tuple[int, list[int]]:
  return matrix.shape[0], [matrix.shape[1]]


def _counts(row: np.ndarray, total: int, rng) -> np.ndarray:
  """Integers that sum to `total`, each within 1 of `total * row`.

  What rounding down leaves goes to the largest remainders; ties are broken at
  random.
  """
  # 1e-9: a whole number that rounding error has put just below itself.
  wanted = total * row / row.sum()
  counts = np.floor(wanted + 1e-9).astype(np.int64)
  order = rng.permutation(len(row))
  remainders = np.round(wanted - counts, 9)[order]
  largest = order[np.argsort(-remainders, kind="stable")]
  counts[largest[: total - counts.sum()]] += 1
  return counts


def instance_probabilities(
  images,
  labels,
  *,
  rate: float,
  num_classes: int,
  rng: np.random.Generator,
  std: float = 0.1,
  temperature: float = 1.0,
) -> np.ndarray:
  """Instance-dependent noise: a distribution of the noisy label per example.

  After Xia et al. (2020, arXiv 2006.07836, Algorithm 2): example n, with pixels
  x_n (the whole set scaled to mean 0 and variance 1) and true class y, flips
  with probability q_n ~ N(rate, std^2), truncated to [0, 1]. If it does, the
  class is drawn from softmax(W_y x_n / temperature) without class y, where the
  entries of W_y are N(0, 1). With many pixels and temperature 1 this is nearly
  one class, which the image decides.

  Args:
    images: `[n, ...]`, any numbers.
    labels: `[n]` integers in [0, K), the true labels.
    rate: mean of the flip rate before truncation, in [0, 1]; near 0 and 1 the
      truncation moves the mean inwards.
    num_classes: K, 2 or more.
    rng: source of rates and projections.
    std: spread of the flip rates, in [0, 1]; 0 gives all the same one.
    temperature: above 0; large values make all wrong classes equally likely.

  Returns:
    `[n, K]` float64, rows sum to 1; for `sample`.

  Raises:
    ValueError: a bad argument, or numbers of images and labels that differ.
  """
  checks.in_range("rate", rate, 0, 1)
  checks.in_range("std", std, 0, 1)
  checks.positive("temperature", temperature)
  _check_classes(num_classes)
  labels = _check_labels("labels", labels, num_classes)
  images = np.asarray(images)
  checks.same_shape("labels", labels.shape, "images[:, 0]", images.shape[:1])
  images = images.reshape(len(images), -1)
  mean, scale = images.mean(dtype=np.float64), images.std(dtype=np.float64)
  flip = _truncated_normal(rate, std, len(labels), rng)
  rows = np.empty((len(labels), num_classes))
  for true in range(num_classes):
    weights = rng.standard_normal((images.shape[1], num_classes))
    where = np.flatnonzero(labels == true)
    pixels = (images[where] - np.float32(mean)) / np.float32(scale or 1.0)
    scores = (pixels @ weights.astype(np.float32)) / temperature
    rows[where] = _flip_rows(scores.astype(np.float64), true, flip[where])
  return rows


def _flip_rows(scores: np.ndarray, true: int, flip: np.ndarray) -> np.ndarray:
  """`flip` times the softmax over the wrong classes; the rest on `true`."""
  scores[:, true] = -np.inf
  scores -= scores.max(axis=1, keepdims=True, initial=-np.inf)
  weights = np.exp(scores)
  rows = flip[:, None] * weights / weights.sum(axis=1, keepdims=True)
  rows[:, true] = 1 - flip
  return rows


def _truncated_normal(mean, std, size, rng) -> np.ndarray:
  """Normal in [0, 1]: what falls outside is drawn again."""
  out = rng.normal(mean, std, size)
  while (outside := (out < 0) | (out > 1)).any():
    out[outside] = rng.normal(mean, std, outside.sum())
  return out


def noise_rate(clean, noisy) -> float:
  """The share of labels that differ.

  Raises:
    ValueError: shapes that differ, or no labels.

  >>> noise_rate([0, 1, 2, 2], [0, 1, 2, 1])
  0.25
  """
  clean, noisy = np.asarray(clean), np.asarray(noisy)
  checks.same_shape("noisy", noisy.shape, "clean", clean.shape)
  checks.positive_int("number of labels", clean.size)
  return float(np.mean(clean != noisy))


def empirical_matrix(clean, noisy, num_classes: int) -> np.ndarray:
  """The transition matrix that was realised.

  Args:
    clean, noisy: `[n]` integers in [0, K).
    num_classes: K.

  Returns:
    `[K, K]` float64; rows sum to 1, but the row of a class without examples is
    0.

  Raises:
    ValueError: labels out of range, or shapes that differ.

  >>> empirical_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
  [[0.5, 0.5], [0.0, 1.0]]
  """
  _check_classes(num_classes)
  clean = _check_labels("clean", clean, num_classes)
  noisy = _check_labels("noisy", noisy, num_classes)
  checks.same_shape("noisy", noisy.shape, "clean", clean.shape)
  counts = np.zeros((num_classes, num_classes))
  np.add.at(counts, (clean, noisy), 1)
  return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
