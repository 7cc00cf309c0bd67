"""Completion with parts of others: LocoProp, and DP-FTRL over repositories."""

from __future__ import annotations

import jax
import numpy as np
import optax

from locojax.core import trees
from locojax.methods import completion, dp_ftrl, locoprop
from locojax.train import steps
from tests.methods.completion import small

RNG = np.random.default_rng(0)


def _examples(num):
  return [
    completion.sample_example(small.TEXT, RNG, language="python")
    for _ in range(num)
  ]


def _batch(num):
  return completion.encoder_decoder_batch(
    _examples(num), small.tokenizer(), max_inputs=32, max_targets=12
  )


def _finite(params):
  return all(np.isfinite(x).all() for x in trees.flatten(params).values())


def test_locoprop_trains_the_encoder_decoder():
  """All dense layers are local problems, those of both stacks among them."""
  model, params = small.model()
  loss_fn = completion.make_loss_fn(model)
  dense = r"(attention/(query|key|value|out)|feed_forward/(up|gate|down))$"
  tx = locoprop.locoprop(
    3e-3,
    "adam",
    transfers={dense: "linear"},
    num_local_iters=2,
    fallback=optax.adam(3e-3),
  )
  step = jax.jit(
    locoprop.make_step(
      loss_fn, tx, filter=lambda path: trees.matches(path, dense)
    )
  )
  state = steps.init_state(params, tx, key=jax.random.key(1))
  batch, seen = _batch(8), []
  for _ in range(12):
    state, found = step(state, batch)
    seen.append(float(found["cross_entropy"].value()))
  assert _finite(state.params) and seen[-1] < 0.9 * seen[0]
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, params)
  kernels = {
    path: bool(m)
    for path, m in trees.flatten(moved).items()
    if "kernel" in path
  }
  assert any("cross_attention" in path for path in kernels)
  assert all(kernels.values())


def test_repositories_are_clients_of_dp_ftrl():
  """The unit of privacy is a repository: what one changes is clipped."""
  model, params = small.model()
  loss_fn = completion.make_loss_fn(model)
  clip = dp_ftrl.Clip(0.5)
  tx = dp_ftrl.dp_ftrl(
    1.0,
    noise_multiplier=0.3,
    clip_norm=0.5,
    num_clients=3,
    key=jax.random.key(2),
    max_rounds=4,
  )
  step = jax.jit(
    dp_ftrl.make_step(
      loss_fn,
      tx,
      client_tx=optax.sgd(0.1),
      clip=clip,
      clients_per_chunk=3,
    )
  )
  state = dp_ftrl.init_state(params, tx, clip=clip, key=jax.random.key(3))
  flat = _batch(3 * 2 * 4)
  cohort = {k: v.reshape(3, 2, 4, *v.shape[1:]) for k, v in flat.items()}
  cohort["mask"] = np.ones((3, 2, 4), np.float32)
  cohort["mask"][1, 1] = 0.0
  cohort["client_mask"] = np.array([1.0, 1.0, 0.0], np.float32)
  junk = {k: v.copy() for k, v in cohort.items()}
  junk["inputs"][2], junk["targets"][1, 1] = 9, 9
  states = [step(state, c)[0] for c in (cohort, junk)]
  for path, value in trees.flatten(states[0].params).items():
    np.testing.assert_array_equal(value, trees.flatten(states[1].params)[path])
  assert _finite(states[0].params)
