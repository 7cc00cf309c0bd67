"""Prompts trained by steps of other methods: private rounds, CIW weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.core import metrics
from locojax.methods import ciw, dp_ftrl, l2p
from locojax.nn import vit
from locojax.train import steps

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
CLIENTS, CHUNK = 4, 2
IMAGES = RNG.normal(size=(CLIENTS, 1, 3, 8, 8, 1)).astype(np.float32)
LABELS = RNG.integers(0, 3, (CLIENTS, 1, 3))
MODEL = l2p.PromptedViT(
  vit.ViT(4, 8, 1, 2, 12),
  3,
  l2p.PromptPoolConfig(
    pool_size=5, length=2, top_k=2, prompt_init="uniform", key_init="uniform"
  ),
)


@functools.cache
def _state():
  """What is trained, and the model state."""
  params = jax.jit(MODEL.init)(KEY, IMAGES[0, 0])["params"]
  trained, frozen = l2p.freeze(params, MODEL.trainable)
  kernel = jax.random.normal(KEY, trained["head"]["kernel"].shape)
  trained["head"]["kernel"] = kernel
  return trained, {"frozen": frozen, **l2p.init_pool_state(MODEL)}


def _shapes(jaxpr):
  """Shapes of all that a program computes, in its inner programs too."""
  out = set()
  for eqn in jaxpr.eqns:
    out |= {getattr(v.aval, "shape", ()) for v in eqn.outvars}
    for inner in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        out |= _shapes(inner)
  return out


def _round(loss_fn):
  server = dp_ftrl.server_sgd(0.5, num_clients=CLIENTS)
  clip = dp_ftrl.Clip(0.3)
  step = dp_ftrl.make_step(
    loss_fn,
    server,
    client_tx=optax.sgd(1.0),
    clip=clip,
    clients_per_chunk=CHUNK,
  )
  trained, model_state = _state()
  state = dp_ftrl.init_state(
    trained, server, clip=clip, key=KEY, model_state=model_state
  )
  return step, state


def test_a_private_round_of_prompts():
  loss_fn = l2p.make_loss_fn(MODEL)
  step, state = _round(loss_fn)
  mask = np.ones(LABELS.shape, np.float32)
  mask[1, :, 2] = 0
  batch = {"image": IMAGES, "label": LABELS, "mask": mask}
  new, found = jax.jit(step)(state, batch)
  trained, model_state = _state()
  grad_fn = jax.jit(jax.grad(lambda *a: loss_fn(*a)[0]))
  total = jax.tree.map(jnp.zeros_like, trained)
  for i in range(CLIENTS):
    client = {n: x[i, 0] for n, x in batch.items()}
    grads = grad_fn(trained, model_state, client, KEY)
    scale = min(1.0, 0.3 / float(optax.tree.norm(grads)))
    total = optax.tree.add_scale(total, scale, grads)
  jax.tree.map(
    lambda a, p, t: np.testing.assert_allclose(
      a, p - 0.5 * t / CLIENTS, atol=2e-6
    ),
    new.params,
    trained,
    total,
  )
  same = jax.tree.map(
    lambda a, b: bool((a == b).all()), new.model_state, model_state
  )
  assert all(jax.tree.leaves(same))  # counts of private data stay inside
  assert np.isfinite(metrics.values(found)["loss"])
  # The frozen weights are there once, not once a client.
  shapes = _shapes(jax.make_jaxpr(step)(state, batch).jaxpr)
  kernels = {x.shape for x in jax.tree.leaves(model_state["frozen"])}
  assert not {(CHUNK, *s) for s in kernels if len(s) > 1} & shapes


def test_prompts_with_ciw_weights():
  config = ciw.InstanceConfig(lam=0.5)
  losses_fn = l2p.make_losses_fn(MODEL)
  trained, model_state = _state()
  batch = {
    "image": IMAGES.reshape(-1, 8, 8, 1),
    "label": LABELS.reshape(-1),
    "mask": np.array([1.0] * 10 + [0.0] * 2),
  }
  loss_fn = ciw.reweight(losses_fn, config)
  tx = optax.sgd(0.1)
  state = steps.init_state(trained, tx, key=KEY, model_state=model_state)
  new, found = jax.jit(steps.from_loss(loss_fn, tx))(state, batch)

  @jax.jit
  def expected(trained):
    losses, _ = losses_fn(trained, model_state, batch, KEY)
    fixed = jax.lax.stop_gradient(losses)
    weights = jnp.where(batch["mask"] != 0, jnp.exp(-fixed / 0.5), 0)
    return jnp.sum(losses * weights / weights.sum()), weights

  (loss, weights), grads = jax.value_and_grad(expected, has_aux=True)(trained)
  assert metrics.values(found)["loss"] == pytest.approx(float(loss), abs=1e-5)
  jax.tree.map(
    lambda a, p, g: np.testing.assert_allclose(a, p - 0.1 * g, atol=1e-5),
    new.params,
    trained,
    grads,
  )
  kept = weights[:10]
  assert kept.max() > 1.2 * kept.min()
  assert int(new.model_state["l2p"]["counts"].sum()) == 20
  assert {"ess", "reduce_sim", "pool_alive"} <= set(found)
