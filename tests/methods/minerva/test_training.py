"""Loss, schedule and optimiser of PaLM."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.methods import minerva

LOGITS = jnp.array([2.0, 1.0, 0.5, 0.0, -1.0])


def test_loss_is_cross_entropy_and_the_square_of_log_z():
  found = minerva.lm_loss(LOGITS[None], jnp.array([0]))
  assert float(found.nll.value()) == pytest.approx(0.5744379396278, rel=1e-6)
  square = float(found.z.value())
  assert 1e-4 * square == pytest.approx(6.627730704995e-4, rel=1e-6)
  assert float(found.value) == pytest.approx(0.575100712698, rel=1e-6)
  assert float(found.accuracy.value()) == 1.0


def test_the_gradient_of_the_loss_is_that_of_finite_differences():
  with jax.enable_x64(True):
    logits = jax.random.normal(jax.random.key(0), (3, 5), jnp.float64)
    weights = jnp.array([1.0, 0.0, 2.0])
    targets = jnp.array([0, 4, 2])
    f = lambda x: minerva.lm_loss(x, targets, weights, z_loss=0.3).value
    got, step = jax.grad(f)(logits), 1e-5
    move = np.zeros((3, 5))
    move[2, 1] = step
    want = (f(logits + move) - f(logits - move)) / (2 * step)
    assert float(got[2, 1]) == pytest.approx(float(want), rel=1e-6)
    assert not np.any(got[1])


@pytest.mark.parametrize(
  "step, rate",
  [
    (0, 1e-2),
    (10_000, 1e-2),
    (40_000, 5e-3),
    (1_000_000, 1e-3),
    (1_599_999, 7.905696621e-4),
    (1_600_000, 7.905694150e-5),
    (1_623_999, 7.847064e-5),
  ],
)
def test_the_schedule_of_the_8b_model(step, rate):
  """A million steps of PaLM, 600,000 and 24,000 of Minerva."""
  schedule = minerva.rsqrt_schedule(num_steps=624_000, start_step=1_000_000)
  whole = minerva.rsqrt_schedule(num_steps=10**9, final_fraction=0.0)
  own = schedule(step - 1_000_000) if step >= 1_000_000 else whole(step)
  assert float(own) == pytest.approx(rate, rel=1e-5)


def test_adafactor_is_its_formula():
  """Three steps against NumPy."""
  rate = lambda k: 0.05 / (1 + k)
  tx = minerva.palm_adafactor(rate, clip_norm=1.0)
  params = {"w": jnp.array([[0.5, -2.0], [1.0, 0.25]]), "z": jnp.zeros((2,))}
  p = {k: np.asarray(v, np.float64) for k, v in params.items()}
  m = {k: np.zeros_like(v) for k, v in p.items()}
  v = {k: np.zeros_like(x) for k, x in p.items()}
  state = tx.init(params)
  rng = np.random.default_rng(0)
  for k in range(3):
    g = {n: rng.normal(size=x.shape) for n, x in p.items()}
    updates, state = tx.update(
      {n: jnp.asarray(x, jnp.float32) for n, x in g.items()}, state, params
    )
    params = optax.apply_updates(params, updates)
    norm = np.sqrt(sum((x**2).sum() for x in g.values()))
    b2 = 1 - (k + 1.0) ** -0.8
    for n in p:
      clipped = g[n] / max(norm, 1.0)
      v[n] = b2 * v[n] + (1 - b2) * clipped**2
      scale = max(np.sqrt((p[n] ** 2).mean()), 1e-3)
      u = rate(k) * scale * clipped / np.sqrt(v[n])
      m[n] = 0.9 * m[n] + 0.1 * u
      p[n] = (1 - rate(k) ** 2) * p[n] - m[n]
    for n, want in p.items():
      np.testing.assert_allclose(params[n], want, rtol=2e-5)
  shapes = [x.shape for x in jax.tree.leaves(state) if x.ndim == 2]
  assert shapes.count((2, 2)) == 2  # second moment and momentum, whole


@pytest.mark.parametrize(
  "make, words",
  [
    (lambda: minerva.rsqrt_schedule(num_steps=0), "num_steps=0"),
    (
      lambda: minerva.rsqrt_schedule(num_steps=9, final_fraction=1.0),
      "final_fraction=1.0",
    ),
    (lambda: minerva.palm_adafactor(0.0), "learning_rate=0.0"),
    (lambda: minerva.palm_adafactor(0.1, clip_norm=0.0), "clip_norm=0.0"),
    (lambda: minerva.palm_adafactor(0.1, momentum=1.0), "momentum=1.0"),
    (lambda: minerva.lm_loss(LOGITS, 9), "targets|labels"),
    (lambda: minerva.lm_loss(LOGITS, 1, z_loss=-1.0), "z_loss=-1.0"),
  ],
)
def test_bad_values_are_refused(make, words):
  with pytest.raises(ValueError, match=words):
    make()
