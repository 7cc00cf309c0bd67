"""Two Moons: two half circles that reach into each other."""

from __future__ import annotations

import numpy as np

from locojax.core import checks


def two_moons(
  num_examples: int, *, rng: np.random.Generator, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
  """Points near two half circles, one a class.

  With t in [0, pi], equally spaced with both ends: class 0 lies at
  (cos t, sin t), class 1 at (1 - cos t, 1/2 - sin t); to each coordinate is
  added N(0, noise^2). The geometry is that of scikit-learn's `make_moons`.

  Args:
    num_examples: how many, 2 or more; class 0 has `num_examples // 2`.
    rng: source of the noise.
    noise: standard deviation, 0 or more.

  Returns:
    Points `[num_examples, 2]` float32 and labels `[num_examples]` int32, class
    0 first.

  Raises:
    ValueError: a bad size or noise.

  >>> points, labels = two_moons(4, rng=np.random.default_rng(0))
  >>> points.round(2).tolist()
  [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.5], [2.0, 0.5]]
  >>> labels.tolist()
  [0, 0, 1, 1]
  """
  checks.positive_int("num_examples", num_examples)
  checks.in_range("num_examples", num_examples, 2, np.inf)
  checks.nonnegative("noise", noise)
  first = num_examples // 2
  t = np.linspace(0.0, np.pi, first)
  s = np.linspace(0.0, np.pi, num_examples - first)
  outer = np.stack([np.cos(t), np.sin(t)], axis=1)
  inner = np.stack([1.0 - np.cos(s), 0.5 - np.sin(s)], axis=1)
  points = np.concatenate([outer, inner])
  points = points + rng.normal(0.0, noise, points.shape)
  labels = np.repeat(np.int32([0, 1]), [first, num_examples - first])
  return points.astype(np.float32), labels
