"""Matrix mechanisms beyond trees, as streams of correlated noise.

A is the lower triangle of ones (prefix sums), A = B C. Instead of x_t the
server sees x_t + (C^-1 Z)_t, Z rows of independent noise, and the prefix sums
have the noise B Z. A strategy gives C; `next` makes row t of C^-1 Z from row t
of Z and the rows before. Sensitivities: `sensitivity.toeplitz`,
`sensitivity.matrix_pattern`.

Denisov et al. 2022, arXiv 2202.08312; banded: Choquette-Choo et al. 2023, arXiv
2306.08153; square root and BLT: McMahan, Xu, Zhang 2024, arXiv 2408.08868, and
Dvijotham et al., arXiv 2404.16706.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locojax.core import checks, types


@dataclasses.dataclass(frozen=True)
class Strategy:
  """C of a matrix mechanism, as a stream.

  Attributes:
    name: for tables.
    num_rounds: rows that it has; None for any number.
    init: arrays of a round -> state.
    next: (row of Z, state, round) -> (row of C^-1 Z, state).
    matrix: n -> C `[n, n]` float64, for accounting and tests; None if it cannot
      be told.
    num_buffers: copies of the model that the state holds.
  """

  name: str
  num_rounds: int | None
  init: Callable[[types.PyTree], Any]
  next: Callable[[types.PyTree, Any, jax.Array], tuple[types.PyTree, Any]]
  matrix: Callable[[int], np.ndarray] | None
  num_buffers: int


def unzip(
  like: types.PyTree, pairs: types.PyTree
) -> tuple[types.PyTree, types.PyTree]:
  """A tree of pairs, of the structure of `like`, as a pair of trees."""
  return jax.tree.transpose(
    jax.tree.structure(like), jax.tree.structure((0, 0)), pairs
  )


def identity() -> Strategy:
  """Independent noise, as in DP-FedAvg and DP-SGD: C = 1."""
  return Strategy(
    "identity",
    None,
    lambda x: (),
    lambda z, state, t: (z, state),
    np.eye,
    0,
  )


def sqrt_coefficients(num: int) -> np.ndarray:
  """First column of the square root of A: 1, 1/2, 3/8, ... `[num]` float64.

  c_j = c_{j-1} (2 j - 1) / (2 j).

  >>> sqrt_coefficients(4).tolist()
  [1.0, 0.5, 0.375, 0.3125]
  """
  j = np.arange(1, checks.positive_int("num", num), dtype=np.float64)
  return np.concatenate([[1.0], np.cumprod((2 * j - 1) / (2 * j))])


def toeplitz_matrix(coefficients: Sequence[float], num: int) -> np.ndarray:
  """Lower triangular Toeplitz matrix, zero beyond the given coefficients."""
  c = np.zeros(num)
  kept = np.asarray(coefficients, np.float64)[:num]
  c[: len(kept)] = kept
  lag = np.subtract.outer(np.arange(num), np.arange(num))
  return np.where(lag >= 0, c[np.maximum(lag, 0)], 0.0)


def _weighed(weight: jax.Array, rows: jax.Array) -> jax.Array:
  """sum_i weight_i rows_i of `[n]` and `[n, ...]`, in full float32.

  A product is many times faster on CPU than the sum written out; with less than
  the highest precision an accelerator would round the noise.
  """
  highest = jax.lax.Precision.HIGHEST
  return jnp.einsum("i,i...->...", weight, rows, precision=highest)


def banded(
  coefficients: Sequence[float], *, num_rounds: int | None = None
) -> Strategy:
  """C is lower triangular Toeplitz with these first entries of its column.

  Args:
    coefficients: `[bands]`, finite, the first above 0.
    num_rounds: rounds for which the coefficients are meant; None for any, where
      zeros follow the last one.

  Raises:
    ValueError: coefficients that are none.
  """
  c = np.asarray(coefficients, np.float64)
  if c.ndim != 1 or not c.size or not np.isfinite(c).all() or c[0] <= 0:
    raise ValueError(
      f"coefficients={c.tolist()!r:.60} are not allowed: they must be finite, "
      "in one dimension, and the first above 0."
    )
  bands = len(c)

  def init(x):
    past = lambda a: jnp.zeros((bands - 1, *a.shape), jnp.float32)
    return jax.tree.map(past, x)

  # Row i of the buffer is i rounds into its ring; its age tells its weight.
  # One product with all rows: the program's size does not grow with bands.
  table = jnp.asarray(c[1:], jnp.float32)

  def step(z, state, t):
    age = (t - 1 - jnp.arange(bands - 1)) % max(bands - 1, 1)
    weight = jnp.where(age < t, table[age], 0.0)

    def one(z, past):
      if bands == 1:
        return z / jnp.float32(c[0]), past
      out = (z - _weighed(weight, past)) / jnp.float32(c[0])
      return out, past.at[t % (bands - 1)].set(out)

    made = jax.tree.map(one, z, state)
    return unzip(z, made)

  return Strategy(
    f"banded({bands})",
    num_rounds,
    init,
    step,
    lambda n: toeplitz_matrix(c, n),
    bands - 1,
  )


def sqrt_toeplitz(num_rounds: int) -> Strategy:
  """The square root of A: nearly optimal, but it remembers every round."""
  made = banded(sqrt_coefficients(num_rounds), num_rounds=num_rounds)
  return dataclasses.replace(made, name="sqrt_toeplitz")


def blt_coefficients(
  theta: Sequence[float], omega: Sequence[float], num: int
) -> np.ndarray:
  """First column of a BLT: c_0 = 1, c_j = sum_r omega_r theta_r^(j-1)."""
  theta, omega = (np.asarray(v, np.float64) for v in (theta, omega))
  powers = theta[None] ** np.arange(num - 1)[:, None]
  return np.concatenate([[1.0], powers @ omega])


def blt(theta: Sequence[float], omega: Sequence[float]) -> Strategy:
  """Buffered linear Toeplitz: C has c_0 = 1, c_j = sum_r omega_r theta_r^(j-1).

    out = z - sum_r omega_r buffer_r,    buffer_r <- theta_r buffer_r + out

  Args:
    theta: `[buffers]` decays, in (0, 1).
    omega: `[buffers]` weights. Parameters come from an optimiser, such as that
      of `jax_privacy.matrix_factorization.buffered_toeplitz`, or `fit_blt`.

  Raises:
    ValueError: shapes or decays out of range.
  """
  theta_, omega_ = (np.asarray(v, np.float64) for v in (theta, omega))
  if theta_.ndim != 1 or theta_.shape != omega_.shape or not theta_.size:
    raise ValueError(
      f"theta of shape {theta_.shape} and omega of shape {omega_.shape} are "
      "not allowed: both must be [buffers]."
    )
  for value in theta_:
    if not 0 < value < 1:
      raise ValueError(f"theta={theta_} is not allowed: it must be in (0, 1).")
  count = len(theta_)

  def init(x):
    return jax.tree.map(lambda a: jnp.zeros((count, *a.shape), jnp.float32), x)

  def step(z, state, t):
    del t

    def one(z, buffers):
      out = z
      for r in range(count):
        out -= jnp.float32(omega_[r]) * buffers[r]
      rows = [jnp.float32(theta_[r]) * buffers[r] + out for r in range(count)]
      return out, jnp.stack(rows)

    made = jax.tree.map(one, z, state)
    return unzip(z, made)

  return Strategy(
    f"blt({count})",
    None,
    init,
    step,
    lambda n: toeplitz_matrix(blt_coefficients(theta_, omega_, n), n),
    count,
  )


def from_buffered_toeplitz(found: Any) -> Strategy:
  """A `BufferedToeplitz` of `jax_privacy`: its C, as `blt` makes it.

  Its optimiser gives numbers in float64, which its own evaluation takes only
  where `jax_enable_x64` is set. Here decays and weights are float64 whatever
  that setting is.

  Args:
    found: with `buf_decay` and `output_scale`, `[buffers]`.

  Raises:
    ValueError: it has not these, or `blt` refuses them.
  """
  for name in ("buf_decay", "output_scale"):
    if not hasattr(found, name):
      raise ValueError(
        f"found={found!r:.80} has no {name}: it must be a BufferedToeplitz."
      )
  return blt(np.asarray(found.buf_decay), np.asarray(found.output_scale))


def blt_inverse(
  theta: Sequence[float], omega: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """The BLT that is C^-1: eigenvalues of diag(theta) - omega 1^T.

  Returns:
    Its decays and weights, float64, decays descending.

  >>> theta, omega = blt_inverse([0.9], [0.4])
  >>> round(float(theta[0]), 10), round(float(omega[0]), 10)
  (0.5, -0.4)
  """
  theta, omega = (np.asarray(v, np.float64) for v in (theta, omega))
  values, vectors = np.linalg.eig(
    np.diag(theta) - np.outer(omega, 1.0 + 0 * omega)
  )
  weights = -vectors.sum(axis=0) * np.linalg.solve(vectors, omega)
  order = np.argsort(-values.real)
  return values.real[order], weights.real[order]


def dense(matrix: Any) -> Strategy:
  """Any lower triangular C; remembers every round.

  Args:
    matrix: `[n, n]`, lower triangular, its diagonal above 0.

  Raises:
    ValueError: not square, not lower triangular, or a diagonal that is not
      positive.
  """
  c = np.asarray(matrix, np.float64)
  if c.ndim != 2 or c.shape[0] != c.shape[1] or np.triu(c, 1).any():
    raise ValueError(
      f"matrix of shape {c.shape} is not allowed: it must be square and lower "
      "triangular."
    )
  if not (np.diag(c) > 0).all():
    raise ValueError("matrix: its diagonal must be above 0.")
  num = len(c)
  table = jnp.asarray(c, jnp.float32)

  def init(x):
    return jax.tree.map(lambda a: jnp.zeros((num, *a.shape), jnp.float32), x)

  def step(z, state, t):
    row = table[jnp.minimum(t, num - 1)]
    row_before = jnp.where(jnp.arange(num) < t, row, 0.0)

    def one(z, past):
      out = (z - _weighed(row_before, past)) / row[jnp.minimum(t, num - 1)]
      return out, past.at[jnp.minimum(t, num - 1)].set(out)

    made = jax.tree.map(one, z, state)
    return unzip(z, made)

  return Strategy("dense", num, init, step, lambda n: c[:n, :n], num)


def from_streaming(noising: Any, *, num_rounds: int | None = None) -> Strategy:
  """A `StreamingMatrix` of `jax_privacy`, which must be the *noising* matrix.

  Args:
    noising: C^-1, with `init_multiply(value)` and `multiply_next(value, state)`
      (`inverse_as_streaming_matrix` of `jax_privacy.matrix_factorization`).
    num_rounds: rounds for which it is meant; past its last row a dense one
      would repeat itself.

  Raises:
    ValueError: it has not these functions.
  """
  for name in ("init_multiply", "multiply_next"):
    if not callable(getattr(noising, name, None)):
      raise ValueError(
        f"noising={noising!r:.80} has no {name}: it must be a StreamingMatrix."
      )

  def step(z, state, t):
    del t
    return noising.multiply_next(z, state)

  return Strategy("streaming", num_rounds, noising.init_multiply, step, None, 0)


def prefix_variances(matrix: np.ndarray) -> np.ndarray:
  """Var_t = |row t of A C^-1|^2 of noisy prefix sums at unit noise, `[n]`."""
  prefix = np.cumsum(np.linalg.inv(matrix), axis=0)
  return np.sum(prefix**2, axis=1)


def _powers(x: np.ndarray, num: int) -> np.ndarray:
  """x^0, ..., x^(num - 1) of each entry, `[n, num]`; by doubling."""
  out = np.ones((len(x), num))
  size, factor = 1, np.array(x, np.float64)
  while size < num:
    part = out[:, size : 2 * size]
    part[:] = out[:, : part.shape[1]] * factor[:, None]
    size, factor = 2 * size, factor * factor
  return out


def _blt_inverse_coefficients(theta, omega, num: int) -> np.ndarray:
  """First column of C^-1, for weights of 0 or more.

  It is 1, -s^T M^(j-1) s with s = sqrt(omega) and the symmetric M = diag(theta)
  - s s^T, so that equal decays are no special case.
  """
  s = np.sqrt(omega)
  values, vectors = np.linalg.eigh(np.diag(theta) - np.outer(s, s))
  rest = (vectors.T @ s) ** 2 @ _powers(values, num - 1)
  return np.concatenate([[1.0], -rest])


def _blt_loss(theta, omega, num, k, b, objective: str) -> float:
  """Squared sensitivity times the mean or largest prefix variance."""
  if omega.sum() > 1:  # C would rise below its diagonal
    return 1e12
  c = np.concatenate([[1.0], omega @ _powers(theta, num - 1)])
  total = np.zeros(num)
  for i in range(k):
    total[i * b :] += c[: num - i * b]
  noise = np.cumsum(_blt_inverse_coefficients(theta, omega, num))
  variance = np.cumsum(noise**2)  # the last one is the largest
  return (
    total @ total * (variance.mean() if objective == "mean" else variance[-1])
  )


def _blt_starts(num: int, num_buffers: int) -> list[np.ndarray]:
  """Where searches begin: logits of decays, logs of weights.

  One with short memories, which grow by a fixed factor; and three that spread
  them from some rounds to about as many as there are.
  """
  first = np.log(0.4 / 3.0 ** np.arange(num_buffers))
  out = [np.concatenate([3.0 + 2.5 * np.arange(num_buffers), first])]
  longest = math.log(max(num, 2))
  ends = ((0.0, longest), (-0.5, 0.7 * longest), (1.0, longest + 2.0))
  for low, high in ends:
    share = np.linspace(0, 1, num_buffers) if num_buffers > 1 else 0.5
    logits = low + (high - low) * np.broadcast_to(share, (num_buffers,))
    weights = np.exp(-logits / 2)
    weights *= 0.5 / weights.sum()
    out.append(np.concatenate([logits, np.log(weights)]))
  return out


def fit_blt(
  num_rounds: int,
  *,
  num_buffers: int = 2,
  max_participations: int = 1,
  min_sep: int = 1,
  objective: str = "mean",
) -> tuple[np.ndarray, np.ndarray]:
  """BLT parameters of the least loss, squared sensitivity times variance.

  Nelder-Mead searches over decays and weights in float64 (`scipy`, which jax
  needs anyway), from several starts, of which the best is taken: the loss has
  local minima where two buffers are equal. Nothing is random; seconds for some
  thousand rounds.

  Args:
    num_rounds: T.
    num_buffers: 1 to 4.
    max_participations, min_sep: rounds that one user is in at most (k), and the
      least difference of two of them (b); a k that does not fit is cut
      (`sensitivity.feasible`).
    objective: `mean` or `max` of the prefix variances.

  Returns:
    theta, omega `[num_buffers]`, decays descending.

  Raises:
    ValueError: a bad setting.
  """
  from scipy import optimize

  from locojax.methods.dp_ftrl import sensitivity

  checks.int_in_range("num_buffers", num_buffers, 1, 4)
  checks.one_of("objective", objective, ("mean", "max"))
  k = sensitivity.feasible(num_rounds, max_participations, min_sep)

  def unpack(x):
    logits = np.clip(x[:num_buffers], -12.0, 12.0)
    theta = 1 / (1 + np.exp(-logits))
    return theta, np.exp(np.clip(x[num_buffers:], -30.0, 5.0))

  def loss(x):
    return _blt_loss(*unpack(x), num_rounds, k, min_sep, objective)

  options = {"maxiter": 4000, "xatol": 1e-6, "fatol": 1e-9, "adaptive": True}
  found = [
    optimize.minimize(loss, start, method="Nelder-Mead", options=options)
    for start in _blt_starts(num_rounds, num_buffers)
  ]
  theta, omega = unpack(min(found, key=lambda f: f.fun).x)
  order = np.argsort(-theta, kind="stable")
  return theta[order], omega[order]
