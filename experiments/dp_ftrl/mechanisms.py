"""The mechanisms that are compared, at equal rho.

none            no noise
independent     fresh noise in every round (DP-FedAvg without amplification)
amplified       the same with Poisson cohorts and the eps of the others
tree_basic, tree_honaker      tree aggregation (DP-FTRL)
sqrt_toeplitz, blt            matrix mechanisms
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from locojax.core import checks
from locojax.methods import dp_ftrl
from locojax.methods.dp_ftrl import matrix

METHODS = (
  "none",
  "independent",
  "amplified",
  "tree_basic",
  "tree_honaker",
  "sqrt_toeplitz",
  "blt",
)


@dataclasses.dataclass(frozen=True)
class Participation:
  """The setting in which privacy is stated.

  Attributes:
    num_rounds: T.
    max_participations, min_sep: k and b.
    rate: share of the clients in a round, for Poisson cohorts.
    delta: of eps.
  """

  num_rounds: int
  max_participations: int
  min_sep: int
  rate: float
  delta: float


@dataclasses.dataclass(frozen=True)
class Mechanism:
  """A mechanism at its noise.

  Attributes:
    name: of `METHODS`.
    noise_multiplier: z.
    squared_sensitivity: zeta^2; None for `amplified` and `none`.
    settings: `mechanism`, `estimator` of `dp_ftrl.dp_ftrl`.
    poisson: whether cohorts are Poisson samples.
  """

  name: str
  noise_multiplier: float
  squared_sensitivity: float | None
  settings: dict
  poisson: bool = False

  @property
  def kind(self) -> str:
    """As the ledger names it."""
    return "tree" if self.name.startswith("tree_") else self.name


@functools.lru_cache(maxsize=16)
def _blt(num_rounds: int, k: int, b: int):
  return dp_ftrl.fit_blt(
    num_rounds, num_buffers=3, max_participations=k, min_sep=b
  )


def _toeplitz(name: str, setting: Participation):
  """The strategy and its squared sensitivity."""
  num, k, b = (
    setting.num_rounds,
    setting.max_participations,
    setting.min_sep,
  )
  if name == "independent":
    strategy, c = matrix.identity(), np.eye(1, num)[0]
  elif name == "sqrt_toeplitz":
    strategy, c = matrix.sqrt_toeplitz(num), matrix.sqrt_coefficients(num)
  else:
    theta, omega = _blt(num, k, b)
    strategy = matrix.blt(theta, omega)
    c = matrix.blt_coefficients(theta, omega, num)
  squared = dp_ftrl.toeplitz_squared_sensitivity(
    c, max_participations=k, min_sep=b
  )
  return strategy, squared


def make(name: str, setting: Participation, rho: float) -> Mechanism:
  """A mechanism whose privacy is `rho` (for `amplified`: the eps of it).

  Raises:
    ValueError: an unknown name.
  """
  checks.one_of("method", name, METHODS)
  if name == "none":
    return Mechanism(name, 0.0, None, {"mechanism": "none"})
  checks.positive("rho", rho)
  if name == "amplified":
    eps = dp_ftrl.zcdp_to_eps(rho, setting.delta)
    z = dp_ftrl.poisson_noise_multiplier(
      eps, setting.delta, setting.rate, setting.num_rounds
    )
    return Mechanism(name, z, None, {"mechanism": "independent"}, True)
  if name.startswith("tree_"):
    squared = dp_ftrl.tree_squared_sensitivity(
      setting.num_rounds, setting.max_participations, setting.min_sep
    )
    settings = {"mechanism": "tree", "estimator": name.removeprefix("tree_")}
  else:
    strategy, squared = _toeplitz(name, setting)
    settings = {"mechanism": strategy}
  z = dp_ftrl.noise_multiplier_for(squared, rho=rho)
  return Mechanism(name, z, squared, settings)
