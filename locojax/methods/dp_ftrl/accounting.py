"""From sensitivity and noise to privacy statements.

zCDP: rho = zeta^2 / (2 z^2), with the squared sensitivity zeta^2 (of the module
`sensitivity`) and the noise multiplier z, the noise of a node over the clip
norm. The mechanisms here are Gaussian as a whole, and so mu-GDP with
mu = zeta / z as well, which the `exact` conversion uses. Privacy is that of one
user with all their data over all rounds, by replacement with zeros. Not
covered: hyperparameters tuned on private data, metrics released without noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from locojax.core import checks

METHODS = ("exact", "rdp", "simple")
# Orders of the blog's notebook; a grid that ends at 63 is loose for small rho.
BLOG_ORDERS = tuple(np.r_[np.arange(11, 110) / 10, np.arange(12, 64)].tolist())
US_CENSUS_2020_RHO = 2.63
EXTRA = "this needs dp-accounting: pip install 'locojax[dp]'"


def zcdp(squared_sensitivity: float, noise_multiplier: float) -> float:
  """rho of zero-concentrated differential privacy; infinite without noise.

  rho = squared sensitivity / (2 noise_multiplier^2).

  >>> round(zcdp(79, 7.0), 8)
  0.80612245
  """
  checks.positive("squared_sensitivity", squared_sensitivity)
  checks.nonnegative("noise_multiplier", noise_multiplier)
  if noise_multiplier == 0:
    return math.inf
  return squared_sensitivity / (2 * noise_multiplier**2)


def total_noise_multiplier(
  noise_multiplier: float, count_multiplier: float | None
) -> float:
  """z of the updates' and the count's mechanism together, in the same trees.

  z^-2 = z_value^-2 + z_count^-2: what `split_noise_multiplier` took apart.

  Args:
    noise_multiplier: of the updates, 0 or more.
    count_multiplier: of the count of adaptive clipping; None without it.

  >>> round(total_noise_multiplier(7.0004059525, 650.0), 8)
  7.0
  """
  checks.nonnegative("noise_multiplier", noise_multiplier)
  if count_multiplier is None:
    return noise_multiplier
  checks.nonnegative("count_multiplier", count_multiplier)
  if not noise_multiplier or not count_multiplier:
    return 0.0
  return 1 / math.sqrt(noise_multiplier**-2 + count_multiplier**-2)


def _check_delta(delta: float) -> float:
  return checks.between("delta", delta, 0, 1)


def _log_delta(eps: float, mu: float) -> float:
  """log of the delta of a mu-GDP mechanism at eps."""
  from scipy import special

  a = special.log_ndtr(-eps / mu + mu / 2)
  b = eps + special.log_ndtr(-eps / mu - mu / 2)
  return a + math.log1p(-math.exp(min(b - a, 0.0))) if b < a else -math.inf


def _exact(rho: float, delta: float) -> float:
  from scipy import optimize

  mu, target = math.sqrt(2 * rho), math.log(delta)
  gap = lambda eps: _log_delta(eps, mu) - target
  if gap(0.0) <= 0:
    return 0.0
  high = _simple(rho, delta) + 1.0
  return optimize.brentq(gap, 0.0, high, xtol=1e-12, rtol=1e-14)


def _simple(rho: float, delta: float) -> float:
  return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def _rdp_at(alpha: Any, rho: float, delta: float) -> Any:
  """Canonne, Kamath, Steinke 2020, arXiv 2004.00010, proposition 12."""
  alpha = np.asarray(alpha, np.float64)
  log_term = np.log(delta * alpha) / (alpha - 1)
  return alpha * rho + np.log1p(-1 / alpha) - log_term


def _rdp(rho: float, delta: float, orders: Sequence[float] | None) -> float:
  if orders is not None:
    orders = np.asarray(orders, np.float64)
    if not orders.size or (orders <= 1).any():
      raise ValueError("orders must be a list of numbers above 1.")
    return max(0.0, float(_rdp_at(orders, rho, delta).min()))
  from scipy import optimize

  f = lambda u: float(_rdp_at(1 + math.exp(u), rho, delta))
  grid = np.linspace(-12, 20, 200)
  start = grid[np.argmin([f(u) for u in grid])]
  found = optimize.minimize_scalar(
    f,
    bounds=(start - 0.5, start + 0.5),
    method="bounded",
    options={"xatol": 1e-12},
  )
  return max(0.0, float(found.fun))


def zcdp_to_eps(
  rho: float,
  delta: float,
  *,
  method: str = "exact",
  orders: Sequence[float] | None = None,
) -> float:
  """eps of a Gaussian mechanism of this rho at a delta.

  Never compare eps of different methods; `rdp` and `exact` are 4 % apart.

  Args:
    rho: zCDP, 0 or more.
    delta: in (0, 1).
    method: `exact`: the tightest, delta = Phi(-eps/mu + mu/2) -
      e^eps Phi(-eps/mu - mu/2). `rdp`: the best order of Renyi privacy.
      `simple`: rho + 2 sqrt(rho log(1/delta)).
    orders: for `rdp`: the orders to try, such as `BLOG_ORDERS`; None takes all.

  Raises:
    ValueError: an argument out of range.

  >>> round(zcdp_to_eps(79 / 98, 1e-10), 4)
  8.5261
  """
  if rho != math.inf:
    checks.nonnegative("rho", rho)
  _check_delta(delta)
  checks.one_of("method", method, METHODS)
  if orders is not None and method != "rdp":
    raise ValueError(f"orders are not allowed with method={method!r}.")
  if rho == 0:
    return 0.0
  if math.isinf(rho):
    return math.inf
  if method == "rdp":
    return _rdp(rho, delta, orders)
  return {"exact": _exact, "simple": _simple}[method](rho, delta)


def rho_for(eps: float, delta: float, *, method: str = "exact") -> float:
  """The largest rho whose eps at delta is at most the given one."""
  from scipy import optimize

  checks.positive("eps", eps)
  gap = lambda u: zcdp_to_eps(math.exp(u), delta, method=method) - eps
  low, high = -40.0, math.log(eps + 1.0)
  return math.exp(optimize.brentq(gap, low, high, xtol=1e-12))


def noise_multiplier_for(
  squared_sensitivity: float,
  *,
  rho: float | None = None,
  eps: float | None = None,
  delta: float | None = None,
  method: str = "exact",
) -> float:
  """The noise multiplier z that gives a wanted privacy.

  Args:
    squared_sensitivity: zeta^2, such as `tree_squared_sensitivity` gives.
    rho: zCDP wanted; or else
    eps, delta, method: as of `zcdp_to_eps`.

  Raises:
    ValueError: neither or both of rho and eps; eps without delta.

  >>> round(noise_multiplier_for(79, rho=79 / 98), 6)
  7.0
  """
  checks.positive("squared_sensitivity", squared_sensitivity)
  if (rho is None) == (eps is None) or (eps is None) != (delta is None):
    raise ValueError(
      f"rho={rho}, eps={eps}, delta={delta} are not allowed: give rho alone, "
      "or eps and delta."
    )
  if rho is None:
    rho = rho_for(eps, delta, method=method)
  return math.sqrt(squared_sensitivity / (2 * checks.positive("rho", rho)))


# Of everything here but `poisson_eps`, where a user is added or removed.
NEIGHBOURS = "all of one user's contributions replaced by zeros"


def dp_event(squared_sensitivity: float, noise_multiplier: float) -> Any:
  """The mechanism as a Gaussian event of `dp_accounting`.

  A PLD or RDP accountant with `NeighboringRelation.REPLACE_SPECIAL` takes it.

  Raises:
    ImportError: dp-accounting is not installed.
  """
  rho = zcdp(squared_sensitivity, noise_multiplier)
  try:
    import dp_accounting
  except ImportError as error:
    raise ImportError(EXTRA) from error
  return dp_accounting.GaussianDpEvent(1 / math.sqrt(2 * rho))


def poisson_eps(
  noise_multiplier: float, rate: float, num_rounds: int, delta: float
) -> float:
  """eps of DP-FedAvg or DP-SGD with amplification by Poisson sampling.

  Valid only where every user is drawn independently with the rate in each
  round, as devices that come when they like are not. By privacy loss
  distributions, add or remove a user.

  Args:
    noise_multiplier: z, above 0.
    rate: q, in (0, 1].
    num_rounds: T.
    delta: in (0, 1).

  Raises:
    ImportError: dp-accounting is not installed.
  """
  checks.positive("noise_multiplier", noise_multiplier)
  checks.positive("rate", checks.in_range("rate", rate, 0.0, 1.0))
  checks.positive_int("num_rounds", num_rounds)
  _check_delta(delta)
  try:
    import dp_accounting
    from dp_accounting import pld
  except ImportError as error:
    raise ImportError(EXTRA) from error
  event = dp_accounting.SelfComposedDpEvent(
    dp_accounting.PoissonSampledDpEvent(
      rate, dp_accounting.GaussianDpEvent(noise_multiplier)
    ),
    num_rounds,
  )
  return pld.PLDAccountant().compose(event).get_epsilon(delta)


def poisson_noise_multiplier(
  eps: float, delta: float, rate: float, num_rounds: int
) -> float:
  """z of amplified DP-SGD for a wanted eps; its eps is at most that.

  Arguments as of `poisson_eps`; z is at most 0.2 % too large.
  """
  from scipy import optimize

  checks.positive("eps", eps)
  gap = lambda u: math.log(
    max(poisson_eps(math.exp(u), rate, num_rounds, delta), 1e-9) / eps
  )
  low = high = 0.0
  while gap(low) < 0:
    low -= 1.0
  while gap(high) > 0:
    high += 1.0
  root = optimize.brentq(gap, low, high, xtol=5e-4) if low < high else low
  while gap(root) > 0:
    root += 5e-4
  return math.exp(root)


def statement(
  *,
  num_rounds: int,
  squared_sensitivity: float,
  noise_multiplier: float,
  delta: float,
) -> dict[str, Any]:
  """rho and eps by all methods, as a release would state them.

  With them the relation of runs that are neighbours, without which they say
  nothing: under another one the same noise has another eps. (In dp-accounting
  0.6 a Gaussian event under REPLACE_ONE has twice the sensitivity for one of
  its accountants and not for the other: RDP 3.07, PLD 6.17.)
  """
  rho = zcdp(squared_sensitivity, noise_multiplier)
  return {
    "neighbours": NEIGHBOURS,
    "num_rounds": checks.positive_int("num_rounds", num_rounds),
    "squared_sensitivity": squared_sensitivity,
    "noise_multiplier": noise_multiplier,
    "rho": rho,
    "delta": delta,
    "eps_exact": zcdp_to_eps(rho, delta),
    "eps_rdp": zcdp_to_eps(rho, delta, method="rdp"),
    "eps_rdp_grid": zcdp_to_eps(rho, delta, method="rdp", orders=BLOG_ORDERS),
    "eps_simple": zcdp_to_eps(rho, delta, method="simple"),
  }
