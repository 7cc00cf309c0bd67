"""The decoder of PaLM under LocoProp's step, and with SmeLU in its gate."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.minerva import experiment
from locojax.methods import locoprop, minerva, smelu
from locojax.train import steps

KEY = jax.random.key(0)
TOKENS = jax.random.randint(KEY, (4, 9), 0, 13)
SIZES = {
  "vocab_size": 13,
  "num_layers": 1,
  "d_model": 8,
  "num_heads": 2,
  "head_dim": 4,
  "d_ff": 16,
  "max_len": 8,
}


@functools.cache
def _made(activation=jax.nn.swish):
  """A loss, and where the parameters begin."""
  config = minerva.PaLMConfig(**SIZES, activation=activation)
  model = minerva.palm_model(config)
  params = jax.jit(model.init)(KEY, TOKENS[:, :-1])["params"]
  return experiment.loss_fn(model, z_loss=1e-4), params


def _trained(loss_fn, params, tx, build, num=8):
  state = steps.init_state(params, tx, key=KEY)
  step = jax.jit(build(loss_fn, tx))
  losses = []
  for _ in range(num):
    state, told = step(state, {"tokens": TOKENS})
    losses.append(float(told["loss"].value()))
  return losses, state


def test_locoprop_trains_the_decoder():
  """All dense layers are linear, for the gate is between them.

  The embedding is the output as well, so it and the norms take the fallback.
  """
  loss_fn, params = _made()
  tx = locoprop.locoprop(
    1e-2, transfers={"^decoder/": "linear"}, fallback=optax.adam(1e-2)
  )
  build = functools.partial(
    locoprop.make_step, filter=lambda path: path.startswith("decoder/")
  )
  losses, state = _trained(loss_fn, params, tx, build)
  assert losses[-1] < losses[0] - 0.1
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), params, state.params
  )
  assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize("beta", [0.5])
def test_smelu_stands_in_the_gate(beta):
  gate = functools.partial(smelu.smelu, beta=beta)
  loss_fn, params = _made(gate)
  tx = minerva.palm_adafactor(0.05)
  losses, state = _trained(loss_fn, params, tx, steps.from_loss)
  assert losses[-1] < losses[0] - 0.1
  other, _ = _made()
  both = [
    f(state.params, {}, {"tokens": TOKENS}, None)[0] for f in (loss_fn, other)
  ]
  assert abs(float(both[0]) - float(both[1])) > 1e-3
  assert np.isfinite(float(both[1]))
