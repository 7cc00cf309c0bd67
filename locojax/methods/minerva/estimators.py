"""What k of n samples would give: exact maj1@k and pass@k, with intervals.

A question has n samples: class sizes c_1, ..., c_m of equal answers, of which
one may be correct, and b invalid ones. The estimators are expectations over all
C(n, k) subsets of k samples, unbiased for k samples of the model; taking the
first k of n is one draw of what they average.

    pass@k = 1 - C(n - s, k) / C(n, k)                 (Chen et al., 2107.03374)
    maj1@k = E[correct class has strictly most votes + 1 / ties where it ties]

maj1@k without enumeration: with t votes for the correct class, no other may
have more, and ties of j classes give 1 / (j + 1), which is the integral of y^j
over [0, 1]. So for each t the generating function

    prod_i (sum_{u < t} p_i(u) z^u + y p_i(t) z^t) * (invalid ones)

is needed at z^(k - t), with p_i binomial: every sample is kept with probability
k / n, on condition that k are kept. The coefficient comes from a Fourier
transform, the integral from Gauss-Legendre nodes that are exact for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from locojax.core import checks

METHODS = ("exact", "mc")
_MAX_SAMPLES = 4096
_NEGLIGIBLE = 1e-22
_REMEMBERED = 48  # the largest class whose part is kept between calls


def pass_at_k(n: int, c: int, k: int) -> float:
  """Probability that one of k of n samples is correct, c of which are.

  Args:
    n: samples, 1 or more.
    c: correct ones, 0 to n.
    k: 1 to n.

  Returns:
    1 - C(n - c, k) / C(n, k).

  Raises:
    ValueError: not in these ranges.
  """
  checks.positive_int("n", n)
  checks.int_in_range("c", c, 0, n)
  checks.int_in_range("k", k, 1, n)
  if n - c < k:
    return 1.0
  factors = 1.0 - k / np.arange(n - c + 1, n + 1, dtype=np.float64)
  return float(1.0 - np.prod(factors))


def _counts(counts: Sequence[int], correct: int | None) -> np.ndarray:
  values = checks.integers("class_counts", counts, np.int64)
  if values.ndim != 1 or (values < 1).any():
    raise ValueError(
      f"class_counts={counts!r} is not allowed: it must be a list of integers, "
      "each 1 or more."
    )
  if correct is not None:
    checks.int_in_range("correct", correct, 0, len(values) - 1)
  return values


def maj_at_k(
  class_counts: Sequence[int],
  correct: int | None,
  invalid: int,
  k: int,
  *,
  n: int = 1,
  method: str = "exact",
  rng: np.random.Generator | None = None,
  num: int = 10_000,
) -> float:
  """Probability that the majority of k samples is correct: maj1@k, majn@k.

  Ties are broken uniformly. With n above 1, the correct class must be among
  the n largest; where it ties for the last places, it gets its share of them.

  Args:
    class_counts: samples in each class of equal answers, each 1 or more.
    correct: which class is correct; None if none of the samples is.
    invalid: samples without an answer, which have no vote.
    k: samples in a vote, 1 to all.
    n: how many answers may be given.
    method: `exact`, or `mc` for the mean of `num` random subsets.
    rng: for `mc`.
    num: subsets for `mc`.

  Returns:
    The expectation over all subsets of k samples; `exact` to about 1e-12.

  Raises:
    ValueError: a bad argument, or more than 4,096 samples.
  """
  values = _counts(class_counts, correct)
  checks.nonnegative_int("invalid", invalid)
  total = int(values.sum()) + invalid
  if total > _MAX_SAMPLES:
    checks.refuse("class_counts", total, f"of at most {_MAX_SAMPLES} samples")
  checks.int_in_range("k", k, 1, total)
  checks.positive_int("n", n)
  checks.one_of("method", method, METHODS)
  if method == "mc":
    return _by_subsets(values, correct, invalid, k, n, rng, num)
  if correct is None:
    return 0.0
  others = np.delete(values, correct)
  if k == total:
    return _share(int(values[correct]), others, n)
  if n == 1:
    return _first_of_k(int(values[correct]), others, invalid, k)
  return _among_first(int(values[correct]), others, invalid, k, n)


def _share(votes: int, others: np.ndarray, n: int) -> float:
  """Credit of a class with some votes: its share of the first n places."""
  if votes == 0:
    return 0.0
  larger = int((others > votes).sum())
  tied = int((others == votes).sum()) + 1
  return min(max((n - larger) / tied, 0.0), 1.0)


def _by_subsets(values, correct, invalid, k, n, rng, num) -> float:
  if not isinstance(rng, np.random.Generator):
    checks.refuse("rng", rng, "a numpy.random.Generator")
  checks.positive_int("num", num)
  if correct is None:
    return 0.0
  drawn = rng.multivariate_hypergeometric(
    np.append(values, invalid), k, size=num
  )[:, :-1]
  votes = drawn[:, [correct]]
  larger = (drawn > votes).sum(axis=1)
  tied = (drawn == votes).sum(axis=1)
  share = np.clip((n - larger) / tied, 0.0, 1.0)
  return float(np.where(votes[:, 0] > 0, share, 0.0).mean())


@functools.lru_cache(4096)
def _binomial(size: int, probability: float) -> np.ndarray:
  """Probabilities of 0 to `size` successes, float64 [size + 1]."""
  u = np.arange(size + 1)
  logs = (
    _log_factorials(size)[size]
    - _log_factorials(size)
    - _log_factorials(size)[::-1]
  )
  return np.exp(
    logs + u * math.log(probability) + (size - u) * math.log1p(-probability)
  )


@functools.lru_cache(4096)
def _log_factorials(size: int) -> np.ndarray:
  return np.cumsum(np.log(np.maximum(np.arange(size + 1), 1.0)))


@functools.lru_cache(64)
def _circle(total: int) -> tuple[np.ndarray, int]:
  """Powers of points on half of the unit circle, [total + 1, points].

  There are enough that nothing comes round: what is beyond k by as many as the
  whole circle has is at most exp(-2 N^2 / n) of all (Hoeffding), below 1e-15.

  Returns:
    z^u, and how many points the whole circle has.
  """
  num = min(total + 1, math.ceil(math.sqrt(17.5 * total)) + 1)
  steps = np.outer(np.arange(total + 1), np.arange(num // 2 + 1)) % num
  return np.exp(2j * np.pi * np.arange(num) / num)[steps], num


@functools.lru_cache(512)
def _nodes(degree: int) -> tuple[np.ndarray, np.ndarray]:
  """Nodes and weights on [0, 1] that are exact for polynomials of a degree."""
  x, w = np.polynomial.legendre.leggauss(degree // 2 + 1)
  return (x + 1) / 2, w / 2


def _coefficient(
  values: np.ndarray, powers: np.ndarray, at: np.ndarray, num: int
) -> np.ndarray:
  """Coefficients of z^at of real polynomials, from half of the circle.

  Args:
    values: of each polynomial at the points, [rows, points].
    powers: of the points, as of `_circle`.
    at: which coefficient of each row.
    num: points of the whole circle.
  """
  weights = np.full(values.shape[1], 2.0 / num)
  weights[0] = 1.0 / num
  if num % 2 == 0:
    weights[-1] = 1.0 / num
  return (values * powers[at].conj()).real @ weights


def _raised(values: np.ndarray, times: int) -> np.ndarray:
  """values ** times for a small whole number, by squaring."""
  out = None
  while times:
    if times & 1:
      out = values if out is None else out * values
    times >>= 1
    values = values * values if times else values
  return out


def _votes(s: int, k: int, p: float) -> np.ndarray:
  """Numbers of votes for the correct class that are not too unlikely."""
  votes = np.arange(1, min(s, k) + 1)
  return votes[_binomial(s, p)[votes] > _NEGLIGIBLE]


def _first_of_k(s: int, others: np.ndarray, invalid: int, k: int) -> float:
  """maj1@k by generating functions; see the head of this file."""
  total = s + int(others.sum()) + invalid
  p = k / total
  powers, num = _circle(total)
  votes = _votes(s, k, p)
  if not len(votes):
    return 0.0
  sizes, multiple = np.unique(others, return_counts=True)
  votes = votes[_possible(votes, sizes, multiple, invalid, k)]
  ties = (sizes >= votes[:, None]) @ multiple
  rules = [_nodes(j) for j in np.minimum(ties, k // votes).tolist()]
  t = np.repeat(votes, [len(x) for x, _ in rules])
  y = np.concatenate([np.empty(0), *(x for x, _ in rules)])[:, None]
  weights = np.concatenate([np.empty(0), *(w for _, w in rules)])
  if not len(t):
    return 0.0
  # Of classes below t nothing is cut off: they are like the invalid ones.
  free = invalid + (sizes < t[:, None]) @ (sizes * multiple)
  product = _base_powers(total, k)[free]
  ends = t.searchsorted(sizes, side="right").tolist()
  spare = np.empty((2, *product.shape), np.complex128)
  for size, times, end in zip(sizes.tolist(), multiple.tolist(), ends):
    if end:
      value = _at_most(size, total, k, t[:end], y[:end], spare[:, :end])
      product[:end] *= _raised(value, times)
  found = _coefficient(product, powers, k - t, num)
  chance = float(np.sum(weights * _binomial(s, p)[t] * found))
  return min(max(chance / float(_binomial(total, p)[k]), 0.0), 1.0)


def _possible(votes, sizes, multiple, invalid: int, k: int) -> np.ndarray:
  """Which numbers of votes leave k samples, with no class above them."""
  room = np.minimum(sizes, votes[:, None]) @ multiple
  return votes + room + invalid >= k


@functools.lru_cache(16)
def _base_powers(total: int, k: int) -> np.ndarray:
  """(1 - p + p z)^u, u samples that nothing bounds; [total + 1, points]."""
  z = _circle(total)[0][1]
  base = 1 - k / total + k / total * z
  out = np.ones((total + 1, len(z)), np.complex128)
  np.cumprod(np.broadcast_to(base, (total, len(z))), axis=0, out=out[1:])
  return out


@functools.lru_cache(512)
def _terms(size: int, total: int, k: int) -> tuple[np.ndarray, np.ndarray]:
  """p(u) z^u of a class, and their sums over all below; [size + 1, points]."""
  powers, _ = _circle(total)
  terms = _binomial(size, k / total)[:, None] * powers[: size + 1]
  below = np.zeros_like(terms)
  np.cumsum(terms[:-1], axis=0, out=below[1:])
  return terms, below


def _at_most(size: int, total: int, k: int, t, y, spare) -> np.ndarray:
  """A class with fewer than t <= size votes, or y times with t."""
  known = _terms if size <= _REMEMBERED else _terms.__wrapped__
  terms, below = known(size, total, k)
  value = terms.take(t, axis=0, out=spare[0], mode="clip")
  value *= y
  value += below.take(t, axis=0, out=spare[1], mode="clip")
  return value


def _among_first(
  s: int, others: np.ndarray, invalid: int, k: int, n: int
) -> float:
  """majn@k: the classes with more votes and those with as many are counted."""
  total = s + int(others.sum()) + invalid
  p = k / total
  powers, num = _circle(total)
  z = powers[1]
  free = _raised(1 - p + p * z, invalid) if invalid else np.ones_like(z)
  chance = 0.0
  for t in _votes(s, k, p).tolist():
    table = {(0, 0): free}
    for size in others.tolist():
      terms = _binomial(size, p)[:, None] * powers[: size + 1]
      parts = terms[:t].sum(axis=0), terms[t : t + 1].sum(axis=0)
      ways = (*parts, terms[t + 1 :].sum(axis=0))
      table = _counted(table, ways, n, size - t, k // t - 1)
    for (larger, tied), value in table.items():
      share = min((n - larger) / (tied + 1), 1.0)
      found = _coefficient(value[None], powers, np.array([k - t]), num)[0]
      chance += share * _binomial(s, p)[t] * found
  return min(max(float(chance / _binomial(total, p)[k]), 0.0), 1.0)


def _counted(table: dict, ways: tuple, n: int, spare: int, room: int) -> dict:
  """One more class: fewer, as many, or more votes than the correct one.

  Args:
    table: by how many classes have more and how many as many.
    ways: the class's part for fewer, as many and more.
    n: classes with more than n - 1 others above them have no credit.
    spare: samples of the class beyond the votes of the correct one.
    room: how many classes can have that many votes.
  """
  out: dict[tuple[int, int], np.ndarray] = {}
  for (larger, tied), value in table.items():
    moves = [((larger, tied), ways[0])]
    more = larger + tied < room
    if more and spare >= 0:
      moves.append(((larger, tied + 1), ways[1]))
    if more and spare > 0 and larger + 1 < n:
      moves.append(((larger + 1, tied), ways[2]))
    for key, factor in moves:
      term = value * factor
      out[key] = out[key] + term if key in out else term
  return out


def rerank_at_k(
  correct: Sequence[bool],
  log_probs: Sequence[float],
  k: int,
  *,
  valid: Sequence[bool] | None = None,
) -> float:
  """Probability that the likeliest of k of n samples is correct.

  Of samples in the order of their log-probabilities, number i (from 0) is the
  best of k with probability C(n - 1 - i, k - 1) / C(n, k).

  Args:
    correct: of each sample, [n].
    log_probs: sums or means over tokens, [n]; equally likely samples share.
    k: 1 to n.
    valid: which samples have an answer, [n]; the others are passed over, and
      k of them alone are wrong. None has all.

  Returns:
    The expectation over all subsets of k samples, exact.

  Raises:
    ValueError: sizes that differ, NaN, or a bad k.
  """
  scores = np.asarray(log_probs, np.float64)
  right = np.asarray(correct, bool)
  there = (
    np.ones(len(right), bool) if valid is None else np.asarray(valid, bool)
  )
  checks.same_shape("log_probs", scores.shape, "correct", right.shape)
  checks.same_shape("valid", there.shape, "correct", right.shape)
  if right.ndim != 1 or np.isnan(scores).any():
    checks.refuse("log_probs", log_probs, "a list of numbers")
  num = len(right)
  checks.int_in_range("k", k, 1, num)
  i = np.arange(num)
  later = np.clip((num - i[:-1] - k) / np.maximum(num - i[:-1] - 1, 1), 0, None)
  chance = k / num * np.concatenate([[1.0], np.cumprod(later)])
  levels, group = np.unique(-scores[there], return_inverse=True)
  group = group.reshape(-1)
  size = np.bincount(group, minlength=len(levels))
  share = np.bincount(group, right[there], len(levels)) / np.maximum(size, 1)
  order = np.repeat(np.arange(len(levels)), size)
  return float(chance[: len(order)] @ share[order])


def maj_limit(class_counts: Sequence[int], correct: int | None) -> float:
  """maj1@k for k to infinity, of a model with these frequencies.

  1 if the correct answer is its only most frequent one, 0 if another is more
  frequent, and the share of ties else.
  """
  values = _counts(class_counts, correct)
  if correct is None:
    return 0.0
  return _share(int(values[correct]), np.delete(values, correct), 1)


def bootstrap_ci(
  values: Sequence[float],
  *,
  rng: np.random.Generator,
  level: float = 0.95,
  num: int = 10_000,
) -> tuple[float, float]:
  """An interval for the mean over questions, by resampling questions.

  Args:
    values: one for each question, such as maj1@k; [questions].
    rng: draws the questions.
    level: of the interval, in (0, 1).
    num: resamples.

  Returns:
    The quantiles (1 - level) / 2 and (1 + level) / 2 of resampled means.
  """
  found = np.asarray(values, np.float64)
  if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
    checks.refuse("values", values, "a list of finite numbers, one or more")
  checks.between("level", level, 0.0, 1.0)
  checks.positive_int("num", num)
  if not isinstance(rng, np.random.Generator):
    checks.refuse("rng", rng, "a numpy.random.Generator")
  counts = rng.multinomial(len(found), np.full(len(found), 1 / len(found)), num)
  low, high = (1 - level) / 2, (1 + level) / 2
  means = counts @ found / len(found)
  return tuple(float(q) for q in np.quantile(means, (low, high)))


def wilson_interval(
  correct: int, total: int, *, level: float = 0.95
) -> tuple[float, float]:
  """Wilson's interval for a share of correct answers (Wilson, 1927).

  Args:
    correct: 0 to total.
    total: 1 or more.
    level: in (0, 1).
  """
  checks.positive_int("total", total)
  checks.int_in_range("correct", correct, 0, total)
  checks.between("level", level, 0.0, 1.0)
  from scipy import special

  z = float(special.ndtri((1 + level) / 2))
  share, spread = correct / total, z * z / total
  middle = (share + spread / 2) / (1 + spread)
  half = (
    z
    / (1 + spread)
    * math.sqrt(share * (1 - share) / total + spread / (4 * total))
  )
  return max(middle - half, 0.0), min(middle + half, 1.0)
