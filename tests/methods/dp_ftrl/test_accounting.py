"""Sensitivities against brute force, conversions against worked numbers."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest

from locojax.methods.dp_ftrl import accounting, matrix, sensitivity


def _patterns(num, k, b):
  for size in range(1, k + 1):
    for rounds in itertools.combinations(range(num), size):
      if all(y - x >= b for x, y in itertools.pairwise(rounds)):
        yield rounds


def _brute(num, k, b):
  return max(sensitivity.pattern(u, num) for u in _patterns(num, k, b))


@pytest.mark.parametrize(
  "case, expected",
  [
    ((8, 1, 8), 4),
    ((9, 3, 4), 11),
    ((7, 3, 3), 9),
    ((24, 8, 3), 88),
    ((12, 3, 3), 20),
    ((16, 2, 4), 14),
    ((16, 4, 4), 36),
    ((8, 8, 1), 120),
    ((2000, 6, 314), 79),
    ((2000, 7, 314), 87),
    ((1600, 1, 1), 11),
  ],
)
def test_worked_sensitivities(case, expected):
  assert sensitivity.tree(*case) == expected


@pytest.mark.filterwarnings("ignore:max_participations")
def test_the_programme_is_brute_force():
  rng = np.random.default_rng(0)
  for _ in range(60):
    num, k, b = rng.integers(1, [15, 6, 6])
    case = tuple(map(int, (num, k, b)))
    assert sensitivity.tree(*case) == _brute(*case), case


@pytest.mark.filterwarnings("ignore:max_participations")
def test_monotone_in_all_arguments():
  values = {
    (t, k, b): sensitivity.tree(t, k, b)
    for t in (5, 8, 13, 21)
    for k in (1, 2, 3)
    for b in (1, 2, 4)
  }
  for (t, k, b), value in values.items():
    for other in ((t + 8, k, b), (t, k + 1, b), (t, k, b // 2)):
      if other in values:
        assert values[other] >= value


def test_participations_that_do_not_fit_are_told():
  with pytest.warns(UserWarning, match="min_sep=314: 7 are counted"):
    assert sensitivity.tree(2000, 9, 314) == 87
  with pytest.warns(UserWarning, match="=5 does not fit into 4 .*: 2 are"):
    sensitivity.toeplitz(
      np.ones(4), num_rounds=4, max_participations=5, min_sep=2
    )


def test_every_round_and_single():
  for num in range(1, 20):
    assert sensitivity.every_round(num) == sensitivity.pattern(range(num), num)
    assert sensitivity.single(num) == max(
      sensitivity.pattern([i], num) for i in range(num)
    )


def test_fixed_order_and_restarts():
  assert sensitivity.fixed_order(100, 20, num_trees=5, virtual=48) == 4129
  assert sensitivity.fixed_order(100, 20, num_trees=5) == 2125
  assert sensitivity.restarts([8, 8, 5]) == 4 + 4 + 3
  assert sensitivity.restarts([8, 5], participations="one_in_all") == 4
  assert sensitivity.restarts([334] * 5 + [330], completed=True) == 59


def test_trees_are_a_matrix_mechanism():
  # C has a row for each node; zeta^2 is max u^T C^T C u.
  num, k, b = 11, 3, 3
  rows = [
    [1.0 if i >> level == n else 0.0 for i in range(num)]
    for level in range(num.bit_length())
    for n in range(num >> level)
  ]
  c = np.array(rows)
  found = max(sensitivity.matrix_pattern(c, u) for u in _patterns(num, k, b))
  assert found == sensitivity.tree(num, k, b)


@pytest.mark.parametrize("k, b", [(1, 1), (2, 3), (3, 2), (4, 3)])
def test_toeplitz_is_the_worst_pattern(k, b):
  c = matrix.sqrt_coefficients(10)
  dense = matrix.toeplitz_matrix(c, 10)
  found = max(sensitivity.matrix_pattern(dense, u) for u in _patterns(10, k, b))
  allowed = {"num_rounds": 10, "max_participations": k, "min_sep": b}
  exact = sensitivity.toeplitz(c, **allowed)
  assert exact == pytest.approx(found, rel=1e-12)
  jagged = c * np.where(np.arange(10) % 2, 1.0, -0.5)
  bound = sensitivity.toeplitz(jagged, **allowed)
  dense = matrix.toeplitz_matrix(jagged, 10)
  for u in _patterns(10, k, b):
    assert bound >= sensitivity.matrix_pattern(dense, u) - 1e-12


@pytest.mark.parametrize("bands", [[1.0], [1.0, 0.5, 0.25], [2.0, 2.0, 1.0]])
@pytest.mark.parametrize("k, b", [(1, 1), (2, 2), (3, 2), (4, 3), (3, 5)])
def test_bands_lose_in_all_rounds(bands, k, b):
  """Bands alone do not tell where the rounds end."""
  for num in range(len(bands), 11):
    if -(-num // b) < k:
      continue
    dense = matrix.toeplitz_matrix(bands, num)
    worst = max(
      sensitivity.matrix_pattern(dense, u) for u in _patterns(num, k, b)
    )
    found = sensitivity.toeplitz(
      bands, num_rounds=num, max_participations=k, min_sep=b
    )
    assert found == pytest.approx(worst, rel=1e-12)


def test_worked_losses_of_bands():
  loss = functools.partial(
    sensitivity.toeplitz, [1, 0.5, 0.25], max_participations=2, min_sep=2
  )
  # Columns 0 and 2 of C: 1, .5, .25 + 1, .5, .25; three rounds cut off the end.
  assert loss(num_rounds=10) == 1 + 0.25 + 1.5625 + 0.25 + 0.0625
  assert loss(num_rounds=3) == 1 + 0.25 + 1.5625
  with pytest.raises(ValueError, match="num_rounds=2 .* at least 3, the num"):
    loss(num_rounds=2)
  with pytest.raises(TypeError, match="num_rounds"):
    loss()


def _tree_loss(num, estimator):
  """Prefix variances at unit noise by the closed form."""
  weight = lambda k: 1.0 if estimator == "basic" else 1 / (2 - 2.0**-k)
  digits = lambda t: [d for d in range(t.bit_length()) if t >> d & 1]
  return np.array([sum(map(weight, digits(t))) for t in range(1, num + 1)])


@pytest.mark.parametrize(
  "num, k, b, name, zeta, mean, worst, last",
  [
    (2000, 6, 314, "independent", 6, 6003.0, 12000, 12000),
    (2000, 6, 314, "basic", 79, 429.365, 790.0, 474.0),
    (2000, 6, 314, "honaker", 79, 246.391, 458.426, 238.875),
    (2000, 6, 314, "sqrt", 38.47287, 121.876, 134.104, 134.104),
    (1600, 1, 1, "independent", 1, 800.5, 1600, 1600),
    (1600, 1, 1, "basic", 11, 56.781, 110.0, None),
    (1600, 1, 1, "honaker", 11, 32.805, 63.831, None),
    (1600, 1, 1, "sqrt", 3.41464, 10.575, 11.660, None),
  ],
)
def test_losses_of_mechanisms(num, k, b, name, zeta, mean, worst, last):
  if name in ("basic", "honaker"):
    squared, variance = sensitivity.tree(num, k, b), _tree_loss(num, name)
  else:
    c = np.eye(1, num)[0]
    if name == "sqrt":
      c = matrix.sqrt_coefficients(num)
    squared = sensitivity.toeplitz(
      c, num_rounds=num, max_participations=k, min_sep=b
    )
    variance = np.cumsum(c**2) if name == "sqrt" else np.arange(1, num + 1.0)
  assert squared == pytest.approx(zeta, rel=1e-6)
  loss = squared * variance
  assert loss.mean() == pytest.approx(mean, rel=1e-4)
  assert loss.max() == pytest.approx(worst, rel=1e-4)
  if last is not None:
    assert loss[-1] == pytest.approx(last, rel=1e-4)


def test_conversions_of_the_production_run():
  rho = accounting.zcdp(79, 7.0)
  assert rho == pytest.approx(0.8061224490, rel=1e-9)
  eps = lambda **kwargs: accounting.zcdp_to_eps(rho, 1e-10, **kwargs)
  assert eps(method="simple") == pytest.approx(9.4227704, abs=1e-7)
  grid = eps(method="rdp", orders=accounting.BLOG_ORDERS)
  assert grid == pytest.approx(8.8986050, abs=1e-7)
  assert eps(method="rdp") == pytest.approx(8.8984622, abs=1e-7)
  assert eps() == pytest.approx(8.5260934, abs=1e-7)


def test_other_conversions():
  simple = lambda z: accounting.zcdp_to_eps(
    accounting.zcdp(11, z), 1e-6, method="simple"
  )
  assert simple(1.13) == pytest.approx(19.7355, abs=1e-4)
  assert simple(8.83) == pytest.approx(2.0449, abs=1e-4)
  small = lambda **kwargs: accounting.zcdp_to_eps(1e-4, 1e-5, **kwargs)
  grid = small(method="rdp", orders=accounting.BLOG_ORDERS)
  assert grid == pytest.approx(0.1092, abs=1e-4)
  assert small(method="rdp") == pytest.approx(0.0450, abs=1e-4)
  assert small() == pytest.approx(0.0400, abs=1e-4)
  for rho, exact, rdp in ((0.81, 8.549, 8.922), (2.63, 16.742, 17.431)):
    found = accounting.zcdp_to_eps(rho, 1e-10)
    assert found == pytest.approx(exact, abs=1e-3)
    found = accounting.zcdp_to_eps(
      rho, 1e-10, method="rdp", orders=accounting.BLOG_ORDERS
    )
    assert found == pytest.approx(rdp, abs=1e-3)
  cifar = accounting.zcdp(4129, 46.3)
  found = accounting.zcdp_to_eps(cifar, 1e-5, method="rdp")
  assert found == pytest.approx(6.92, abs=0.01)


@pytest.mark.parametrize("rho", [0.01, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-10])
def test_methods_are_ordered(rho, delta):
  exact, rdp, simple = (
    accounting.zcdp_to_eps(rho, delta, method=m)
    for m in ("exact", "rdp", "simple")
  )
  assert exact <= rdp <= simple + 1e-9


@pytest.mark.parametrize("method", accounting.METHODS)
def test_the_way_back(method):
  z = accounting.noise_multiplier_for(79, eps=4.0, delta=1e-8, method=method)
  rho = accounting.zcdp(79, z)
  found = accounting.zcdp_to_eps(rho, 1e-8, method=method)
  assert found == pytest.approx(4.0, rel=1e-6)


def test_two_multipliers_are_one():
  total = accounting.total_noise_multiplier
  assert total(7.0004059525, 650.0) == pytest.approx(7.0, rel=1e-9)
  assert total(1.0050378153, 10.0) == pytest.approx(1.0, rel=1e-9)
  assert total(3.0, None) == 3.0 and total(0.0, 5.0) == total(5.0, 0.0) == 0.0
  # As two mechanisms of the same sensitivity: rho adds.
  both = accounting.zcdp(5, 2.0) + accounting.zcdp(5, 3.0)
  assert accounting.zcdp(5, total(2.0, 3.0)) == pytest.approx(both)


def test_extremes():
  assert math.isinf(accounting.zcdp(79, 0.0))
  assert math.isinf(accounting.zcdp_to_eps(math.inf, 1e-10))
  assert accounting.zcdp_to_eps(0.0, 1e-10) == 0.0
  assert accounting.zcdp_to_eps(1e-12, 1e-2) == 0.0


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: sensitivity.tree(0, 1, 1), "num_rounds=0"),
    (lambda: sensitivity.tree(8, 0, 1), "max_participations=0"),
    (lambda: sensitivity.tree(8, 1, 0), "min_sep=0"),
    (lambda: sensitivity.pattern([8], 8), r"must be in \[0, 8\)"),
    (lambda: sensitivity.restarts([]), "lengths"),
    (lambda: accounting.zcdp_to_eps(1.0, 1.0), "delta=1.0"),
    (lambda: accounting.zcdp_to_eps(-1.0, 0.1), "rho=-1.0"),
    (lambda: accounting.zcdp_to_eps(1.0, 0.1, method="pld"), "method='pld'"),
    (lambda: accounting.noise_multiplier_for(79), "rho=None"),
    (lambda: accounting.noise_multiplier_for(79, eps=1.0), "delta=None"),
  ],
)
def test_mistakes_are_named(call, words):
  with pytest.raises(ValueError, match=words):
    call()


def test_events_of_dp_accounting():
  import dp_accounting
  from dp_accounting import pld

  relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
  accountant = pld.PLDAccountant(neighboring_relation=relation)
  accountant.compose(accounting.dp_event(79, 7.0))
  assert accountant.get_epsilon(1e-10) == pytest.approx(8.526, abs=2e-3)
  # Without sampling the amplified mechanism is T Gaussian releases.
  rho = accounting.zcdp(4, 2.0)
  plain = accounting.zcdp_to_eps(rho, 1e-5)
  assert accounting.poisson_eps(2.0, 1.0, 4, 1e-5) == pytest.approx(
    plain, rel=1e-2
  )
