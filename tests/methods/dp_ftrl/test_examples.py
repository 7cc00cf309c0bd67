"""Sums of clipped gradients of single examples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import dp_ftrl

BATCH = {
  "x": jnp.array(
    [[1.0, 0.0], [0.0, 3.0], [2.0, 1.0], [0.0, 0.0], [jnp.nan, 1]]
  ),
  "y": jnp.array([1.0, -1.0, 0.5, 2.0, 0.0]),
}
PARAMS = {"w": jnp.array([0.5, -0.25]), "b": jnp.float32(0.1)}


def _loss(params, example):
  out = example["x"] @ params["w"] + params["b"]
  return 0.5 * (out - example["y"]) ** 2


def _by_hand(rows, clip_norm):
  """Sum, norms: the gradient of an example is (out - y) (x, 1)."""
  total, norms = np.zeros(3), []
  for i in rows:
    x = np.append(np.asarray(BATCH["x"][i], np.float64), 1.0)
    out = x @ np.array([0.5, -0.25, 0.1])
    grad = (out - float(BATCH["y"][i])) * x
    norms.append(np.linalg.norm(grad))
    total += grad * min(1.0, clip_norm / norms[-1])
  return total, np.array(norms)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5, 9])
def test_each_example_counts_with_a_norm_of_at_most_c(chunk_size):
  sums, told = jax.jit(
    lambda params, batch: dp_ftrl.clipped_grad_sum(
      _loss, params, batch, clip_norm=0.7, chunk_size=chunk_size
    )
  )(PARAMS, BATCH)
  total, norms = _by_hand(range(4), 0.7)
  np.testing.assert_allclose(sums["w"], total[:2], rtol=1e-5)
  np.testing.assert_allclose(sums["b"], total[2], rtol=1e-5)
  assert told["norm"] == pytest.approx(norms.mean(), rel=1e-5)
  assert told["clipped"] == pytest.approx((norms > 0.7).mean())
  assert told["not_finite"] == 1


def test_masked_is_removed():
  mask = jnp.array([1, 0, 1, 0, 0])
  both = [
    dp_ftrl.clipped_grad_sum(_loss, PARAMS, batch, clip_norm=0.7, mask=m)
    for batch, m in (
      (BATCH, mask),
      (jax.tree.map(lambda x: x[jnp.array([0, 2])], BATCH), None),
    )
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *both)


def test_params_of_16_bits_are_summed_in_float32():
  narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
  sums, _ = dp_ftrl.clipped_grad_sum(_loss, narrow, BATCH, clip_norm=0.7)
  assert {x.dtype for x in jax.tree.leaves(sums)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"clip_norm": 0.0}, "clip_norm"),
    ({"chunk_size": 0}, "chunk_size"),
    ({"mask": jnp.ones(3)}, "mask"),
    ({"batch": {**BATCH, "y": jnp.ones(4)}}, r"\(4,\), \(5,\)"),
    ({"batch": jax.tree.map(lambda x: x[:0], BATCH)}, r"\(0,\)"),
  ],
)
def test_bad_arguments_are_named(changes, said):
  settings = {"batch": BATCH, "clip_norm": 1.0, **changes}
  with pytest.raises(ValueError, match=said):
    dp_ftrl.clipped_grad_sum(_loss, PARAMS, **settings)
