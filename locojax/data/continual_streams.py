"""A continual stream without boundaries: classes that come and go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from locojax.core import checks
from locojax.data import continual, sources


def gaussian_presence(distance, *, std: float = 50.0):
  """exp(-d^2 / (2 std^2)): the probability that a class is present.

  Args:
    distance: batches between now and the peak of the class, any shape.
    std: in batches, above 0.

  >>> round(float(gaussian_presence(50)), 10)
  0.6065306597
  """
  checks.positive("std", std)
  return np.exp(-np.square(np.asarray(distance, np.float64) / std) / 2)


def gaussian_classes(
  num_classes: int,
  *,
  num_episodes: int = 200,
  steps_per_episode: int = 5,
  std: float = 50.0,
  seed: int,
) -> np.ndarray:
  """Which classes each episode of a boundary-free stream has.

  Shanahan et al. 2021, arXiv 2105.13327, as in the code of L2P. With L =
  num_episodes * steps_per_episode batches, class j peaks at batch
  (L // C) // 2 + j (L // C), and is in the episode that starts at batch b with
  the probability exp(-(b - peak_j)^2 / (2 std^2)), independently of others. An
  episode without any class is drawn again.

  Args:
    num_classes: C, at most L.
    num_episodes: micro-tasks.
    steps_per_episode: batches of each.
    std: in batches, above 0.
    seed: in [0, 2^32).

  Returns:
    `[num_episodes, C]` bool.

  Raises:
    ValueError: a bad number; more classes than batches; a std so small that an
      episode would have to wait for ever for a class.
  """
  checks.positive_int("num_classes", num_classes)
  checks.positive_int("num_episodes", num_episodes)
  checks.positive_int("steps_per_episode", steps_per_episode)
  checks.seed("seed", seed)
  length = num_episodes * steps_per_episode
  if num_classes > length:
    checks.refuse("num_classes", num_classes, f"at most {length} batches")
  between = length // num_classes
  peaks = between // 2 + between * np.arange(num_classes)
  starts = steps_per_episode * np.arange(num_episodes)
  chance = gaussian_presence(starts[:, None] - peaks, std=std)
  least = 1 - np.prod(1 - chance, axis=1)
  if least.min() < 1e-4:
    checks.refuse(
      "std", std, "large enough that each episode has a class sometimes"
    )
  rng = np.random.default_rng(seed)
  present = np.zeros(chance.shape, bool)
  for i, row in enumerate(chance):
    while not present[i].any():
      present[i] = rng.random(num_classes) < row
  return present


class StreamSource:
  """Rows of another source in the order of a stream, each with a class mask."""

  def __init__(self, source, rows: np.ndarray, masks: np.ndarray, each: int):
    self._source, self._rows = source, rows
    self._masks, self._each = masks, each

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> sources.Example:
    if not 0 <= index < len(self):
      raise IndexError(f"index {index} of a stream of {len(self)} examples.")
    example = self._source[int(self._rows[index])]
    return {**example, continual.CLASS_MASK: self._masks[index // self._each]}


def gaussian_schedule(
  train: sources.Source,
  test: sources.Source,
  *,
  batch_size: int,
  seed: int,
  num_episodes: int = 200,
  steps_per_episode: int = 5,
  std: float = 50.0,
  class_order: Sequence[int] | str | None = None,
  label: str = continual.LABEL,
) -> continual.Scenario:
  """A stream without boundaries, whose classes come and go; see
  `gaussian_classes`.

  The rows of an episode are drawn from the examples of its classes, all as
  likely; of a class they come in a random order, and again, in another order,
  when all were there. So a stream that is short enough is a single pass.

  Args:
    train, test: sources of examples with an integer label.
    batch_size: of the global batches in which it will be read.
    seed: of classes, rows and a random order, in [0, 2^32).
    num_episodes, steps_per_episode, std: see `gaussian_classes`.
    class_order: the classes in the order of their peaks: a permutation, None
      for their own order, or `random`.
    label: the name of the labels.

  Returns:
    A `Scenario` of one task with `task_id` None. Its train set has
    `num_episodes * steps_per_episode * batch_size` examples in the order of the
    stream, each with `class_mask` `[C]` bool, the classes of its episode: read
    it with `shuffle=False`.

  Raises:
    ValueError: a bad number or order, fewer batches than classes.
  """
  checks.positive_int("batch_size", batch_size)
  checks.seed("seed", seed)
  labels = continual.labels_of(train, label=label)
  classes = continual.classes_in("train", labels)
  random = isinstance(class_order, str)
  order = continual.class_sequence(
    class_order, classes, seed if random else None
  )
  present = gaussian_classes(
    len(classes),
    num_episodes=num_episodes,
    steps_per_episode=steps_per_episode,
    std=std,
    seed=seed,
  )
  each, num_classes = steps_per_episode * batch_size, int(classes.max()) + 1
  masks = np.zeros((num_episodes, num_classes), bool)
  masks[:, order] = present
  rows = _stream_rows(labels, masks, each, np.random.default_rng([seed, 1]))
  if isinstance(train, sources.ArraySource):
    rowwise = {continual.CLASS_MASK: np.repeat(masks, each, axis=0)}
    arrays = {k: v[rows] for k, v in train.arrays.items()}
    stream = sources.ArraySource({**arrays, **rowwise})
  else:
    stream = StreamSource(train, rows, masks, each)
  task = continual.Task(stream, test, tuple(classes.tolist()), None, "gaussian")
  return continual.Scenario((task,), num_classes)


def _stream_rows(labels, masks, each: int, rng) -> np.ndarray:
  """For each episode `each` rows of its classes, of a class in passes."""
  where = {c: np.flatnonzero(labels == c) for c in np.unique(labels).tolist()}
  queues = {c: np.empty(0, np.int64) for c in where}
  out = np.empty((len(masks), each), np.int64)
  for i, mask in enumerate(masks):
    ids = np.flatnonzero(mask)
    sizes = np.array([len(where[c]) for c in ids.tolist()], np.float64)
    drawn = ids[rng.choice(len(ids), size=each, p=sizes / sizes.sum())]
    for c in np.unique(drawn).tolist():
      places = np.flatnonzero(drawn == c)
      while len(queues[c]) < len(places):
        queues[c] = np.append(queues[c], rng.permutation(where[c]))
      out[i, places] = queues[c][: len(places)]
      queues[c] = queues[c][len(places) :]
  return out.reshape(-1)
