"""The mechanisms that are compared, at equal rho.

none            no noise
independent     fresh noise in every round (DP-FedAvg without amplification)
amplified       the same with Poisson cohorts and the eps of the others
tree_basic, tree_honaker      tree aggregation (DP-FTRL)
tree_honaker_restart          the same, a fresh tree every so many rounds
tree_honaker_adaptive         the same restarts, and where a tree starts the
                              clipping norm becomes a private estimate of a
                              quantile; its count is paid out of the same rho
sqrt_toeplitz, blt            matrix mechanisms

How a method clips belongs to its name, not to a switch of the config: adaptive
clipping needs restarts and a share of the noise, so it is another mechanism,
and one table then has it next to fixed norms. `config.clip` and
`config.restart` have the settings of those methods alone.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from locojax.core import checks
from locojax.methods import dp_ftrl
from locojax.methods.dp_ftrl import matrix, sensitivity

METHODS = (
  "none",
  "independent",
  "amplified",
  "tree_basic",
  "tree_honaker",
  "tree_honaker_restart",
  "tree_honaker_adaptive",
  "sqrt_toeplitz",
  "blt",
)


@dataclasses.dataclass(frozen=True)
class Participation:
  """The setting in which privacy is stated.

  Attributes:
    num_rounds: T.
    max_participations, min_sep: rounds that one user is in at most, and the
      least difference of two of them (k and b of the literature).
    rate: share of the clients in a round, for Poisson cohorts.
    delta: of eps.
    restart: when trees restart, for the methods that do; None: every `min_sep`
      rounds, so that each client is at most once in each tree.
    num_clients: m, clients of a round, for adaptive clipping.
    count_stddev: of the noise on its count; None takes m / 20.
  """

  num_rounds: int
  max_participations: int
  min_sep: int
  rate: float
  delta: float
  restart: dp_ftrl.RestartPolicy | None = None
  num_clients: float = 0
  count_stddev: float | None = None


@dataclasses.dataclass(frozen=True)
class Mechanism:
  """A mechanism at its noise.

  Attributes:
    name: of `METHODS`.
    noise_multiplier: z of the updates.
    squared_sensitivity: zeta^2; None for `amplified` and `none`.
    settings: `mechanism`, `estimator`, `restart` of `dp_ftrl.dp_ftrl`.
    poisson: whether cohorts are Poisson samples.
    count_multiplier: noise multiplier of the count of adaptive clipping; None
      for a fixed norm.
  """

  name: str
  noise_multiplier: float
  squared_sensitivity: float | None
  settings: dict
  poisson: bool = False
  count_multiplier: float | None = None

  @property
  def total_multiplier(self) -> float:
    """z of all that a round releases."""
    return dp_ftrl.total_noise_multiplier(
      self.noise_multiplier, self.count_multiplier
    )

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
    c, num_rounds=num, max_participations=k, min_sep=b
  )
  return strategy, squared


def _restarted(name: str, setting: Participation, rho: float) -> Mechanism:
  """Trees after one another, with a fixed or an adaptive norm.

  Each tree is charged for as often as a client can be in it: once, if none is
  longer than `min_sep`.
  """
  policy = setting.restart or dp_ftrl.RestartPolicy(setting.min_sep)
  lengths, b = policy.lengths(setting.num_rounds), setting.min_sep
  if max(lengths) <= b:
    squared = dp_ftrl.restart_squared_sensitivity(lengths)
  else:
    most = lambda n: sensitivity.feasible(n, setting.max_participations, b)
    squared = sum(
      dp_ftrl.tree_squared_sensitivity(n, most(n), b) for n in lengths
    )
  z, count = dp_ftrl.noise_multiplier_for(squared, rho=rho), None
  if name.endswith("_adaptive"):
    z, count = dp_ftrl.split_noise_multiplier(
      z, setting.num_clients, count_stddev=setting.count_stddev
    )
  estimator = name.split("_")[1]
  settings = {"mechanism": "tree", "estimator": estimator, "restart": policy}
  return Mechanism(name, z, squared, settings, count_multiplier=count)


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
  if name.endswith(("_restart", "_adaptive")):
    return _restarted(name, setting, rho)
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
