"""Sums over clients, and what their dtype does to noise and to parameters.

A sum of a round is float32 or wider. In 16 bits a client's addition is rounded
in steps that depend on all the others, so that the clip norm bounds nothing,
and noise below a step is lost. Parameters may be of 16 bits: what they cannot
hold is carried on from round to round.
"""

from __future__ import annotations

import optax

from locojax.core import narrow, trees, types

# Clients by noise multiplier: beyond, one step of float32 at the largest sum,
# m C, is over a quarter of the noise, z C.
_MAX_CLIENTS = 2.0**21


class RoundedAway(ValueError):
  """Noise would be lost in the rounding of the sums that it is added to."""


def check_wide(sums: types.PyTree) -> None:
  """Refuses sums over clients of fewer than 32 bits.

  What a client adds is rounded there in steps that depend on all the others,
  so that the clip norm does not bound it, and noise below a step is lost.

  Raises:
    RoundedAway: names the array and its dtype.
  """
  for path, x in trees.flatten(sums).items():
    if narrow.is_narrow(x):
      raise RoundedAway(
        f"the sum {path!r} of dtype {x.dtype} is not allowed: noise, and what "
        "a client adds, would be rounded away beside the sum of the others. It "
        "must be float32 or wider, whatever the dtype of the parameters."
      )


def check_clients(num_clients: float, noise_multiplier: float) -> None:
  """Refuses noise that float32 cannot keep beside a sum of m clients.

  Raises:
    RoundedAway: names both numbers and how many clients there may be.
  """
  most = _MAX_CLIENTS * noise_multiplier
  if num_clients > most > 0:
    raise RoundedAway(
      f"num_clients={num_clients} with noise_multiplier={noise_multiplier} is "
      "not allowed: beside a sum of so many clients float32 rounds their noise "
      f"away. At most {most:.6g}."
    )


def on_sums(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """A server's `tx` on sums of 32 bits or more, parameters of any dtype.

  See `narrow.carried`; sums of 16 bits are refused, not widened.
  """
  tx = optax.with_extra_args_support(tx)
  init, update = narrow.carried(tx.init, tx.update)

  def checked(updates, state, params=None, **extra):
    check_wide(updates)
    return update(updates, state, params, **extra)

  return optax.GradientTransformationExtraArgs(init, checked)
