"""Contrastive losses and zero-shot readings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.methods import limoe

KEY = jax.random.key(0)
LOG10 = float(np.log(10))


def _pairs(num=16, size=6):
  z = jax.random.normal(KEY, (2, num, size))
  return limoe.unit_norm(z[0]), limoe.unit_norm(z[1])


def test_softmax_has_its_worked_value():
  texts = jnp.array([(0.8, 0.6), (0.6, 0.8)])
  loss, found = limoe.contrastive_softmax_loss(jnp.eye(2), texts, LOG10)
  # Sums of size 8 in float32 have an error of 5e-7 each.
  assert float(loss) == pytest.approx(0.126928011043, abs=1e-6)
  assert float(found["image_to_text"].value()) == 1


def test_sigmoid_is_the_sum_over_pairs():
  images, texts = _pairs()
  loss, _ = limoe.contrastive_sigmoid_loss(images, texts, 1.0, -2.0)
  s = np.exp(1.0) * np.asarray(images, np.float64) @ np.asarray(texts).T - 2.0
  y = 2 * np.eye(16) - 1
  expected = np.log1p(np.exp(-y * s)).sum() / 16
  assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_cap_holds_and_stops_the_gradient():
  images, texts = _pairs()
  loss = lambda t, cap: limoe.contrastive_softmax_loss(
    images, texts, t, max_scale=cap
  )[0]
  assert float(loss(9.0, 10.0)) == pytest.approx(float(loss(LOG10, None)))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_gradient_at_the_cap_points_back_alone(kind):
  images, texts = _pairs()

  def loss(t, sign, cap=10.0):
    a, b = images, sign * images if kind == "softmax" else texts
    if kind == "softmax":
      return limoe.contrastive_softmax_loss(a, b, t, max_scale=cap)[0]
    # A bias of 50 makes the loss linear: only the sign of the products counts.
    out, _ = limoe.contrastive_sigmoid_loss(a, b, t, 50.0, max_scale=cap)
    return sign * out

  run = jax.jit(jax.value_and_grad(loss))
  below, above = np.float32(LOG10 - 1e-4), np.float32(LOG10)
  signs = sorted((1.0, -1.0), key=lambda sign: float(run(below, sign)[1]))
  at = lambda t, sign: tuple(map(float, run(np.float32(t), sign)))
  (_, up), (_, down) = (at(below, sign) for sign in signs)
  assert up < 0 < down
  for t in (above, 9.0, 89.0, 1e4, 3e38):
    value, g = at(t, signs[0])
    assert g == 0 and value == pytest.approx(at(above, signs[0])[0], rel=1e-6)
    value, g = at(t, signs[1])
    assert g == pytest.approx(down, rel=1e-3)
    assert value == pytest.approx(at(above, signs[1])[0], rel=1e-6)
  for t in (-3e38, -100.0):
    assert np.isfinite(at(t, 1.0)).all()


def test_without_a_cap_the_loss_is_finite_for_any_temperature():
  images, texts = _pairs()
  run = jax.jit(
    jax.value_and_grad(
      lambda t: limoe.contrastive_softmax_loss(images, texts, t)[0]
    )
  )
  for t in (-3e38, 88.0, 89.0, 3e38):
    assert np.isfinite(run(np.float32(t))).all()


@pytest.mark.parametrize("start", [4.0, 89.0])
def test_a_temperature_beyond_the_cap_comes_back(start):
  """With wrong pairs the best temperature is low; Adam finds it from above."""
  images, _ = _pairs()
  tx = optax.adam(0.5)
  loss = lambda t: limoe.contrastive_softmax_loss(
    images, -images, t, max_scale=20.0
  )[0]

  def step(carry, _):
    t, state = carry
    updates, state = tx.update(jax.grad(loss)(t), state)
    return (t + updates, state), t

  t = jnp.float32(start)
  (t, _), seen = jax.lax.scan(step, (t, tx.init(t)), length=300)
  assert np.isfinite(seen).all() and t < 1


def test_shards_decide_alike_at_the_cap():
  """Parts of the gradient differ in sign; their sum decides for all."""
  images, texts = _pairs()
  loss = lambda a, b, t, name=None: limoe.contrastive_softmax_loss(
    a, b, t, axis_name=name, max_scale=2.0
  )[0]
  mesh = jax.make_mesh(
    (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharded = jax.shard_map(
    lambda *a: loss(*a, "data"),
    mesh=mesh,
    in_specs=(jax.P("data"), jax.P("data"), jax.P()),
    out_specs=jax.P(),
    check_vma=False,
  )
  grads = [
    jax.jit(jax.grad(f, argnums=2))(images, y, jnp.float32(3.0))
    for f in (sharded, loss)
    for y in (texts, images)
  ]
  np.testing.assert_allclose(grads[:2], grads[2:], rtol=1e-4, atol=1e-6)
  assert grads[2] > 0 == grads[3]


@pytest.mark.parametrize("shards", [2, 4, 8])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_shards_give_value_and_gradient_of_the_whole(shards, kind):
  images, texts = _pairs()

  def loss(z_img, z_txt, t, axis_name=None):
    if kind == "softmax":
      return limoe.contrastive_softmax_loss(
        z_img, z_txt, t, axis_name=axis_name
      )[0]
    return limoe.contrastive_sigmoid_loss(
      z_img, z_txt, t, -1.0, axis_name=axis_name
    )[0]

  mesh = jax.make_mesh(
    (shards,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )

  def sharded(z_img, z_txt, t):
    return jax.shard_map(
      lambda *a: loss(*a, axis_name="data"),
      mesh=mesh,
      in_specs=(jax.P("data"), jax.P("data"), jax.P()),
      out_specs=jax.P(),
      check_vma=False,
    )(z_img, z_txt, t)

  run = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(
    images, texts, 1.0
  )
  for a, b in zip(jax.tree.leaves(run(sharded)), jax.tree.leaves(run(loss))):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_zero_vector_has_no_direction_and_a_finite_gradient():
  z = jnp.zeros((1, 3))
  assert not limoe.unit_norm(z).any()
  assert np.isfinite(jax.grad(lambda z: limoe.unit_norm(z).sum())(z)).all()


def test_prompts_are_averaged_and_made_unit():
  table = {"a cat": (1.0, 0.0), "cat": (0.0, 1.0)}
  table |= {"a dog": (-1.0, 0.0), "dog": (0.0, -1.0)}
  embed = lambda texts: jnp.array([table[t] for t in texts])
  z = limoe.class_embeddings(embed, ["Cat", "dog, hound"], ("a {}", "{}"))
  np.testing.assert_allclose(
    z, [(0.5**0.5,) * 2, (-(0.5**0.5),) * 2], atol=1e-6
  )
  assert limoe.classify(jnp.array([(0.0, 0.1)]), z).tolist() == [0]
  with pytest.raises(ValueError, match="needs one"):
    limoe.class_embeddings(embed, ["cat"], ("photo",))


def test_recall_counts_any_caption():
  found = np.eye(4)
  query = np.array([(1.0, 0.9, 0, 0), (0.1, 0.2, 0.3, 0.4)])
  relevant = np.array([(0, 1, 0, 1), (1, 0, 0, 0)])
  recall = limoe.retrieval_recall(query, found, relevant, (1, 2, 4))
  assert recall == {1: 0.0, 2: 0.5, 4: 1.0}
  with pytest.raises(ValueError, match="k=5"):
    limoe.retrieval_recall(query, found, relevant, (5,))
  query = np.concatenate([query, np.full((1, 4), np.nan)])
  relevant = np.concatenate([relevant, relevant[:1]])
  recall = limoe.retrieval_recall(
    query, found, relevant, (1, 2, 4), mask=[1, 1, 0]
  )
  assert recall == {1: 0.0, 2: 0.5, 4: 1.0}
  with pytest.raises(ValueError, match="z_query is not finite"):
    limoe.retrieval_recall(query, found, relevant, (1,))
  assert limoe.classify(query, found).tolist() == [0, 3, -1]


def test_pairs_must_match():
  with pytest.raises(ValueError, match="z_txt"):
    limoe.contrastive_softmax_loss(jnp.eye(2), jnp.eye(3), 1.0)
