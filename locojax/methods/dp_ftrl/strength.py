"""How large the noise is beside what it hides, before anything is trained."""

from __future__ import annotations

import math
from typing import NamedTuple

from locojax.core import checks


class Strength(NamedTuple):
  """Norm of the noise over the largest that updates could be.

  Attributes:
    round: of one release: z sqrt(d) / m. Noise far above the update is usual,
      and averages out.
    run: of the sum of all rounds, if every client's update had the norm C and
      all pointed the same way. Above 1 the trained model is noise.
  """

  round: float
  run: float


def noise_strength(
  num_params: int,
  *,
  noise_multiplier: float,
  num_clients: float,
  num_rounds: int,
  independent: bool = False,
) -> Strength:
  """Compares the noise with the updates that it is added to.

  The noise of a round has the expected norm z C sqrt(d), a sum of m clipped
  updates a norm of at most m C. Over T rounds sums of updates grow as T;
  independent noise as sqrt(T), that of a tree as the square root of the nodes
  in a prefix, half of log2(T) + 1 on average (arXiv 2103.00039, section 3).
  Matrix mechanisms are below trees.

  Args:
    num_params: d, of the model.
    noise_multiplier: z.
    num_clients: m, of a round.
    num_rounds: T.
    independent: whether the noise of the rounds is.

  Raises:
    ValueError: a size that is not positive, or a negative multiplier.

  >>> settings = {"noise_multiplier": 1.0, "num_clients": 50}
  >>> noise_strength(10_000, num_rounds=64, **settings).round
  2.0
  """
  checks.positive_int("num_params", num_params)
  checks.positive_int("num_rounds", num_rounds)
  checks.nonnegative("noise_multiplier", noise_multiplier)
  checks.positive("num_clients", num_clients)
  one = noise_multiplier * math.sqrt(num_params) / num_clients
  nodes = num_rounds if independent else num_rounds.bit_length() / 2
  return Strength(one, one * math.sqrt(nodes) / num_rounds)
