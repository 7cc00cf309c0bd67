"""Synthetic click data with known click probabilities, in NumPy.

F fields, V ids in each, E size of the teacher's embeddings. Ids are heavy
tailed, `min(floor(6 Lomax(1.1)), V - 1)`. The teacher has embeddings e from
N(0, 1) for every id, and for an example with ids i_1..i_F the score

  s = 0.35 sum_{f<g} <e_f, e_g> / sqrt(F) + 1.2 sum_f e_f[0] / sqrt(F).

A click is a Bernoulli draw of `sigmoid(1.6 (s - mean) / std - 2.5)`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from locojax.core import checks

_TAIL, _SPREAD = 1.1, 6.0
_CALIBRATION = 200_000
_CHUNK = 2**16


@dataclasses.dataclass(frozen=True)
class Teacher:
  """The truth behind a synthetic data set.

  Attributes:
    embeddings: float32 `[F, V, E]`.
    mean, std: of the score, over a sample drawn with the teacher.
    scale, offset: of the standardised score, which make the logit.
  """

  embeddings: np.ndarray
  mean: float
  std: float
  scale: float
  offset: float

  def logit(self, ids: np.ndarray) -> np.ndarray:
    """True logits float64 `[n]` of ids `[n, F]`."""
    parts = [
      _score(self.embeddings, ids[start : start + _CHUNK])
      for start in range(0, len(ids), _CHUNK)
    ]
    score = np.concatenate(parts) if parts else np.zeros(0)
    return self.scale * (score - self.mean) / self.std + self.offset


def _score(embeddings: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """The score s; the sum over pairs is (|sum e|^2 - sum |e|^2) / 2."""
  num_fields = len(embeddings)
  vectors = embeddings[np.arange(num_fields), ids].astype(np.float64)
  total = vectors.sum(axis=1)
  pairs = (np.sum(total**2, axis=-1) - np.sum(vectors**2, axis=(1, 2))) / 2
  return (0.35 * pairs + 1.2 * total[:, 0]) / np.sqrt(num_fields)


def _draw_ids(
  rng: np.random.Generator, num_examples: int, num_fields: int, vocab_size: int
) -> np.ndarray:
  tail = _SPREAD * rng.pareto(_TAIL, (num_examples, num_fields))
  return np.minimum(tail, vocab_size - 1).astype(np.int32)


def make_teacher(
  rng: np.random.Generator,
  *,
  num_fields: int = 8,
  vocab_size: int = 300,
  dim: int = 4,
  scale: float = 1.6,
  offset: float = -2.5,
) -> Teacher:
  """Draws a teacher, to be shared by the training and the test data.

  Args:
    rng: the teacher's own generator.
    num_fields: F.
    vocab_size: V.
    dim: E.
    scale, offset: of the logit. A larger scale makes clicks more certain, a
      larger offset more frequent.

  Returns:
    A `Teacher`. With the defaults clicks are about 15 % and the log loss of the
    true probabilities about 0.29; both vary a little from teacher to teacher.

  Raises:
    ValueError: a size below 1, or a scale that is not positive.
  """
  checks.positive_int("num_fields", num_fields)
  checks.positive_int("vocab_size", vocab_size)
  checks.positive_int("dim", dim)
  checks.positive("scale", scale)
  shape = (num_fields, vocab_size, dim)
  embeddings = rng.standard_normal(shape, np.float32)
  ids = _draw_ids(rng, _CALIBRATION, num_fields, vocab_size)
  raw = Teacher(embeddings, 0.0, 1.0, 1.0, 0.0).logit(ids)
  # With one id there is one score; it then stays as it is.
  std = float(raw.std()) or 1.0
  return Teacher(embeddings, float(raw.mean()), std, scale, offset)


def synthetic_ctr(
  rng: np.random.Generator, num_examples: int, *, teacher: Teacher
) -> dict[str, np.ndarray]:
  """Examples with ids, clicks and true click probabilities.

  Args:
    rng: generator of the examples; use different ones for train and test.
    num_examples: n.
    teacher: of `make_teacher`.

  Returns:
    `categorical` int32 `[n, F]`, `numeric` float32 `[n, 0]`, `label` float32
    `[n]` in {0, 1}, `probability` float32 `[n]`.

  Raises:
    ValueError: `num_examples` below 1.

  >>> teacher = make_teacher(np.random.default_rng(0), vocab_size=50)
  >>> data = synthetic_ctr(np.random.default_rng(1), 100, teacher=teacher)
  >>> data["categorical"].shape, data["numeric"].shape
  ((100, 8), (100, 0))
  """
  checks.positive_int("num_examples", num_examples)
  num_fields, vocab_size, _ = teacher.embeddings.shape
  ids = _draw_ids(rng, num_examples, num_fields, vocab_size)
  probability = 1 / (1 + np.exp(-teacher.logit(ids)))
  label = rng.random(num_examples) < probability
  return {
    "categorical": ids,
    "numeric": np.zeros((num_examples, 0), np.float32),
    "label": label.astype(np.float32),
    "probability": probability.astype(np.float32),
  }
