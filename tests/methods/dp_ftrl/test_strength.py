"""The size of the noise beside what it hides."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import dp_ftrl


@pytest.mark.parametrize("independent", [True, False])
def test_it_is_what_the_noise_is(independent):
  """Against the sum of noise that the optimiser adds, in many coordinates."""
  size, num, m, z, clip = 4000, 8, 5.0, 0.7, 2.0
  tx = dp_ftrl.dp_ftrl(
    1.0,
    noise_multiplier=z,
    clip_norm=clip,
    num_clients=m,
    key=jax.random.key(0),
    max_rounds=num,
    mechanism="independent" if independent else "tree",
    estimator="basic",
  )
  params = {"w": jnp.zeros(size)}
  zeros, state, norms = {"w": jnp.zeros(size)}, tx.init(params), []
  update, total = jax.jit(tx.update), np.zeros(size)
  for _ in range(num):
    updates, state = update(zeros, state, params)
    total += np.asarray(updates["w"])
    norms.append(np.linalg.norm(total))
  found = dp_ftrl.noise_strength(
    size,
    noise_multiplier=z,
    num_clients=m,
    num_rounds=num,
    independent=independent,
  )
  assert norms[0] / clip == pytest.approx(found.round, rel=0.05)
  if independent:
    assert norms[-1] / (clip * num) == pytest.approx(found.run, rel=0.05)
  else:  # The nodes of 8 rounds are 1, of 7 rounds 3; the mean of all is used.
    ends = np.array(norms) / clip
    low, high = ends[-1] / num, ends[-2] / num
    assert low < found.run < high


@pytest.mark.parametrize(
  "changes",
  [
    {"num_params": 0},
    {"num_rounds": 0},
    {"num_clients": 0},
    {"noise_multiplier": -1.0},
  ],
)
def test_bad_sizes_are_named(changes):
  settings = {"num_params": 5, "num_rounds": 2, "num_clients": 3}
  settings = {**settings, "noise_multiplier": 1.0, **changes}
  with pytest.raises(ValueError, match=next(iter(changes))):
    dp_ftrl.noise_strength(**settings)
