"""The optimiser of Pix2Seq: worked rates, updates, what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax import pix2seq


def _rates(steps, **settings):
  rate = pix2seq.pix2seq_schedule(3e-5, 110, 10, **settings)
  return [float(rate(k)) for k in steps]


def test_worked_rates():
  found = _rates((0, 5, 10, 60, 110, 500))
  wanted = [0, 1.5e-5, 3e-5, 1.515e-5, 3e-7, 3e-7]
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
  ("decay", "middle", "last"),
  [
    ("cosine", 0.505, 0.01),
    ("cosine@0.5", 0.01 + 0.99 * (1 + 2**-0.5) / 2, 0.505),
    ("exp@0.1", 0.1**0.5, 0.1),
    ("none", 1.0, 1.0),
  ],
)
def test_other_decays(decay, middle, last):
  found = _rates((5, 10, 60, 110), decay=decay)
  wanted = 3e-5 * np.array([0.5, 1, middle, last])
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def _params():
  leaf = lambda x: jnp.full((2,), x, jnp.float32)
  return {"a": {"kernel": leaf(2.0), "bias": leaf(3.0)}, "norm": leaf(4.0)}


@pytest.mark.parametrize("decay_mask", pix2seq.DECAY_MASKS)
def test_updates_are_those_of_the_formula(decay_mask):
  tx = pix2seq.pix2seq_adamw(
    0.1, 100, decay_mask=decay_mask, decay="none", weight_decay=0.5
  )
  params, m, v = _params(), 0.0, 0.0
  state = tx.init(params)
  for k, g in enumerate((1.0, -3.0), start=1):
    grads = jax.tree.map(lambda x, g=g: jnp.full_like(x, g), params)
    updates, state = tx.update(grads, state, params)
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    adam = m / (1 - 0.9**k) / (np.sqrt(v / (1 - 0.95**k)) + 1e-8)
    for path, x in (
      ("kernel", params["a"]["kernel"]),
      ("norm", params["norm"]),
    ):
      decays = path == "kernel" or decay_mask == "all"
      update = updates["a"][path] if path == "kernel" else updates[path]
      wanted = -0.1 * (adam + 0.5 * x * decays)
      np.testing.assert_allclose(update, wanted, rtol=1e-5)
    params = optax.apply_updates(params, updates)


def test_parameters_of_16_bits_move():
  tx = pix2seq.pix2seq_adamw(1e-4, 10, weight_decay=0.0, decay="none")
  params = {"kernel": jnp.ones((2,), jnp.bfloat16)}
  state = tx.init(params)
  for _ in range(60):
    grads = {"kernel": jnp.ones((2,), jnp.bfloat16)}
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(
    np.asarray(params["kernel"], np.float32), 0.994, atol=2e-3
  )


def test_bad_settings_are_named():
  make = pix2seq.pix2seq_adamw
  for arguments, text in (
    (dict(lr=-1.0), "lr=-1.0"),
    (dict(total_steps=0), "total_steps=0"),
    (dict(warmup_steps=11), "warmup_steps=11"),
    (dict(decay_mask="matrices"), "decay_mask='matrices'.*kernels"),
    (dict(decay="cos"), "decay='cos'.*linear"),
    (dict(decay="cosine@2"), r"decay='cosine@2'.*\(0, 1\]"),
    (dict(decay="exp@"), "decay='exp@'"),
    (dict(decay="linear@1"), "decay='linear@1'"),
    (dict(end=2), "end=2"),
    (dict(weight_decay=-1), "weight_decay=-1"),
    (dict(b1=1.0), "b1=1.0"),
    (dict(eps=0), "eps=0"),
    (dict(clip_norm=0), "clip_norm=0"),
  ):
    with pytest.raises(ValueError, match=text):
      make(**{"lr": 1.0, "total_steps": 10, **arguments})
