"""CURVES: images of a smooth curve through three random points.

A synthetic set in the manner of Hinton and Salakhutdinov (2006), whose exact
rendering is not documented. Ours: three points uniform in the middle of the
plane, the quadratic through them at t = 0, 1/2, 1, and a pixel value
exp(-d^2 / (2 sigma^2)) of its distance d to the nearest of the samples.
"""

from __future__ import annotations

import numpy as np

from locojax.core import checks

_CHUNK = 256


def render(
  points: np.ndarray, *, size: int, sigma: float = 0.8, num_samples: int = 100
) -> np.ndarray:
  """Draws the curves through the given points.

  Args:
    points: `[n, 3, 2]` (row, column) in pixels.
    size: height and width of the image.
    sigma: width of the stroke in pixels.
    num_samples: samples of t in [0, 1].

  Returns:
    `[n, size, size]` float32 in [0, 1].
  """
  checks.positive_int("size", size)
  checks.positive("sigma", sigma)
  t = np.linspace(0.0, 1.0, num_samples)
  # Lagrange polynomials for nodes 0, 1/2, 1.
  basis = np.stack(
    [(2 * t - 1) * (t - 1), 4 * t * (1 - t), t * (2 * t - 1)], axis=1
  )
  rows = np.arange(size, dtype=np.float64)
  images = np.empty((len(points), size, size), np.float32)
  for start in range(0, len(points), _CHUNK):
    chunk = points[start : start + _CHUNK]
    curve = np.einsum("tp,npc->ntc", basis, chunk)
    dr = np.square(rows[None, None] - curve[..., :1])
    dc = np.square(rows[None, None] - curve[..., 1:])
    nearest = np.full((len(chunk), size, size), np.inf)
    for i in range(num_samples):
      np.minimum(nearest, dr[:, i, :, None] + dc[:, i, None], out=nearest)
    images[start : start + _CHUNK] = np.exp(-nearest / (2 * sigma**2))
  return images


def curves(
  num_examples: int,
  *,
  rng: np.random.Generator,
  size: int = 28,
  sigma: float = 0.8,
) -> np.ndarray:
  """Draws curves through random points.

  Args:
    num_examples: how many.
    rng: source of the points, uniform in [0.2, 0.8] * size.
    size: height and width of the image.
    sigma: width of the stroke in pixels.

  Returns:
    `[num_examples, size, size]` float32 in [0, 1].
  """
  checks.positive_int("num_examples", num_examples)
  points = rng.uniform(0.2, 0.8, (num_examples, 3, 2)) * size
  return render(points, size=size, sigma=sigma)
