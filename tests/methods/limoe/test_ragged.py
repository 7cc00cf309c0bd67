"""Dropless experts: the kernel, what it is on a slice, what is refused."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods import limoe
from locojax.methods.limoe import ragged
from locojax.train import check, experiment, steps

E, D, M, G, S = 8, 128, 256, 8, 64


@pytest.fixture(scope="module")
def operands():
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (200, 48))
  w = jax.random.normal(keys[1], (4, 48, 72)) / 7
  return x, w, jax.random.normal(keys[2], (200, 72))


@pytest.mark.parametrize(
  "sizes", [(50, 0, 130, 20), (0, 0, 0, 0), (3, 1, 0, 9)]
)
def test_the_kernel_is_a_product_by_groups(operands, sizes):
  x, w, weight = operands
  sizes = jnp.array(sizes, jnp.int32)
  inside = np.arange(len(x)) < int(sizes.sum())

  def loss(run, x, w):
    out = jnp.where(inside[:, None], run(x, w, sizes), 0)
    return jnp.sum(jnp.sin(out) * weight), out

  grads = lambda run: jax.jit(
    jax.value_and_grad(functools.partial(loss, run), (0, 1), has_aux=True)
  )(x, w)
  kernel = functools.partial(ragged._kernel, interpret=True)
  (_, out), found = grads(kernel)
  owner = np.repeat(np.arange(4), np.asarray(sizes))
  wanted = np.zeros_like(out)
  wanted[inside] = np.einsum("nd,ndm->nm", x[inside], np.asarray(w)[owner])
  np.testing.assert_allclose(out, wanted, atol=1e-4)
  (_, plain), there = grads(ragged.product)
  np.testing.assert_allclose(plain, wanted, atol=1e-4)
  dx, dw = (np.where(inside[:, None], found[0], 0), found[1])
  np.testing.assert_allclose(dx, there[0], atol=1e-4)
  np.testing.assert_allclose(dw, there[1], atol=1e-3)


def _experiment(dispatcher: str):
  layer = limoe.MoeMlp(
    E, M, top_k=2, dispatcher=dispatcher, capacity_factor=None, noise_std=0.0
  )
  shape = (G, S, D)

  def init(key):
    params = layer.init(key, jnp.zeros(shape), train=True)["params"]
    return steps.init_state(params, tx, key=key)

  def loss_fn(params, model_state, batch, key):
    y, _ = layer.apply({"params": params}, batch["x"], train=True)
    return jnp.mean(jnp.square(y - batch["x"])), ({}, model_state)

  import optax

  tx = optax.sgd(0.1)
  return experiment.Experiment(
    init=init,
    step=steps.from_loss(loss_fn, tx),
    batches=lambda start: iter(()),
    num_steps=1,
    batch_shapes={"x": jax.ShapeDtypeStruct(shape, jnp.float32)},
    batch_spec=jax.P(("data", "expert")),
    rules=(("experts", jax.P("expert")),),
  )


@pytest.mark.tpu_check
def test_on_a_slice_the_products_are_kernels_and_nothing_is_dense():
  axes = {"data": 2, "expert": 4}
  run = lambda name: check.run(
    _experiment(name), axes=axes, topology="v5e:2x4", max_operations=100
  )
  found = run("ragged").compiled
  # Two products, and three in the backward pass: the tokens are data.
  assert found.operations.kernels == 5
  # The router is all that is left of the counted operations.
  assert found.operations.total <= 3 * 2 * (G * S // 8) * D * E * 2
  sent = {(c.kind, c.axes) for c in found.collectives}
  assert ("all-gather", "expert") in sent
  weights = E * D * M * 4
  gathers = [c for c in found.collectives if c.kind == "all-gather"]
  assert all(c.bytes < weights / 4 for c in gathers)
  # Padded to the whole group for each expert, the products are E / K dearer.
  assert run("gather").compiled.operations_ratio < 1.5


def test_what_is_refused_on_a_mesh():
  mesh = jax.sharding.AbstractMesh((2, 4), ("data", "expert"))
  x = jnp.ones((8, 4, 5))

  def run(x, num_experts, experts):
    gates = jnp.ones((*x.shape[:2], num_experts)) / num_experts
    assignment = jax.vmap(lambda g: limoe.route_top_k(g, top_k=1, capacity=4))(
      gates
    )
    return limoe.apply_experts(
      x,
      assignment,
      experts,
      num_experts=num_experts,
      capacity=4,
      dispatcher="ragged",
    )

  made = lambda num: limoe.RaggedExperts(jnp.ones((num, 5)), lambda w, x, n: x)
  function = lambda rows, sizes: rows
  cases = (
    ((x, 6, made(6)), "num_experts=6 .* multiple of 4"),
    ((x[:6], 4, made(4)), "groups=6 .* multiple of 8"),
    ((x, 4, function), r"needs limoe\.RaggedExperts"),
  )
  for given, words in cases:
    with (
      jax.sharding.use_abstract_mesh(mesh),
      pytest.raises(ValueError, match=words),
    ):
      jax.eval_shape(functools.partial(run, *given))
  assert run(x, 4, function).shape == x.shape
