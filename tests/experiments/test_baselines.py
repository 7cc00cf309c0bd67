"""Shampoo and SOAP against float64 NumPy and their own invariants."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.locoprop.baselines import kfac, linalg, shampoo, soap

# ---------------------------------------------------------------- references


def np_power(stat, power, eps):
  """`(S + eps lambda_max I)^power`."""
  values, vectors = np.linalg.eigh(stat)
  values = np.maximum(values, 0) + eps * values[-1]
  return (vectors * values**power) @ vectors.T


def np_shampoo(grads, lr, b1, b2, eps, every, power, grafting, graft_b2, start):
  """Updates of one matrix, step by step."""
  m, n = grads[0].shape
  left, right, moment = np.zeros((m, m)), np.zeros((n, n)), np.zeros((m, n))
  mean, out = np.zeros((m, n)), []
  weight = 1 if b2 == 1 else 1 - b2
  for t, g in enumerate(grads, 1):
    left = b2 * left + weight * g @ g.T
    right = b2 * right + weight * g.T @ g
    correction = 1 if b2 == 1 else 1 - b2**t
    if t >= start and ((t - 1) % every == 0 or t == start):
      lroot = np_power(left / correction, power, eps)
      rroot = np_power(right / correction, power, eps)
    graft = g
    if grafting == "rmsprop":
      moment = graft_b2 * moment + (1 - graft_b2) * g**2
      graft = g / (np.sqrt(moment / (1 - graft_b2**t)) + 1e-8)
    if grafting == "adagrad":
      moment = moment + g**2
      graft = g / (np.sqrt(moment) + 1e-8)
    direction = graft
    if t >= start:
      direction = lroot @ g @ rroot
      if grafting:
        direction *= np.linalg.norm(graft) / np.linalg.norm(direction)
    mean = b1 * mean + (1 - b1) * direction
    out.append(-lr * mean / (1 - b1**t))
  return out


def np_soap(grads, lr, b1, b2, beta, eps, every):
  """Updates of one matrix; Algorithm 3 with the mean in the original space."""
  m, n = grads[0].shape
  left, right = np.zeros((m, m)), np.zeros((n, n))
  ql, qr = np.eye(m), np.eye(n)
  mean, square, out = np.zeros((m, n)), np.zeros((m, n)), []
  for t, g in enumerate(grads):
    update = np.zeros((m, n))
    if t:
      mean = b1 * mean + (1 - b1) * g
      square = b2 * square + (1 - b2) * (ql.T @ g @ qr) ** 2
      turned = ql.T @ mean @ qr / (1 - b1**t)
      turned /= np.sqrt(square / (1 - b2**t)) + eps
      update = ql @ turned @ qr.T
    out.append(-lr * update)
    left = beta * left + (1 - beta) * g @ g.T
    right = beta * right + (1 - beta) * g.T @ g
    if t == 0:
      ql = np.linalg.eigh(left)[1][:, ::-1]
      qr = np.linalg.eigh(right)[1][:, ::-1]
    elif t % every == 0:
      ol = np.argsort(-np.diag(ql.T @ left @ ql))
      orr = np.argsort(-np.diag(qr.T @ right @ qr))
      square = square[ol][:, orr]
      ql = np.linalg.qr(left @ ql[:, ol])[0]
      qr = np.linalg.qr(right @ qr[:, orr])[0]
  return out


def gradients(num, *shape, seed=0, dtype=np.float64):
  rng = np.random.default_rng(seed)
  scale = rng.uniform(0.2, 3.0, size=shape)
  return [(rng.normal(size=shape) * scale).astype(dtype) for _ in range(num)]


def run(tx, grads, params=None):
  """Updates of every step; one compilation."""
  params = grads[0] if params is None else params
  state = tx.init(params)
  update = jax.jit(lambda *args: tx.update(*args))
  out = []
  for g in grads:
    updates, state = update(g, state, params)
    out.append(updates)
  assert update._cache_size() == 1
  return out


# ------------------------------------------------------------------ Shampoo


@pytest.mark.parametrize("grafting", shampoo.GRAFTINGS)
@pytest.mark.parametrize("b2, every, start", [(0.9, 1, 1), (1.0, 3, 4)])
def test_shampoo_equals_reference(grafting, b2, every, start):
  grads = gradients(8, 5, 4)
  with jax.enable_x64(True):
    tx = shampoo.shampoo(
      0.1,
      b1=0.8,
      b2=b2,
      eps=1e-4,
      update_every=every,
      grafting=grafting,
      graft_b2=0.95,
      start_preconditioning_step=start,
    )
    got = run(tx, [jnp.asarray(g) for g in grads])
  want = np_shampoo(
    grads, 0.1, 0.8, b2, 1e-4, every, -0.25, grafting, 0.95, start
  )
  np.testing.assert_allclose(np.stack(got), np.stack(want), rtol=1e-8)


def test_shampoo_in_float32_is_close_to_reference():
  grads = gradients(6, 20, 12, dtype=np.float32)
  got = run(shampoo.shampoo(0.1, eps=1e-4), [jnp.asarray(g) for g in grads])
  wide = [g.astype(np.float64) for g in grads]
  want = np_shampoo(wide, 0.1, 0.9, 0.99, 1e-4, 1, -0.25, "rmsprop", 0.99, 1)
  for a, b in zip(got, want):
    assert np.linalg.norm(a - b) < 2e-3 * np.linalg.norm(b)


def test_shampoo_first_step_is_the_orthogonal_factor():
  # (G G^T)^(-1/4) G (G^T G)^(-1/4) = U V^T.
  (g,) = gradients(1, 6, 6)
  with jax.enable_x64(True):
    tx = shampoo.scale_by_shampoo(grafting=None, eps=0.0)
    (got,) = run(tx, [jnp.asarray(g)])
  u, _, vt = np.linalg.svd(g)
  np.testing.assert_allclose(got, u @ vt, atol=1e-7)


def test_shampoo_one_sided_takes_both_powers():
  (g,) = gradients(1, 9, 4)
  with jax.enable_x64(True):
    tx = shampoo.scale_by_shampoo(grafting=None, eps=0.0, max_dim=5)
    state = tx.init(jnp.asarray(g))
    assert linalg.is_absent(state.left) and state.right.shape == (4, 4)
    (got,) = run(tx, [jnp.asarray(g)])
  np.testing.assert_allclose(got, g @ np_power(g.T @ g, -0.5, 0), rtol=1e-8)


@pytest.mark.parametrize(
  "shape, max_dim", [((7,), None), ((), None), ((6, 7), 3)]
)
def test_shampoo_diagonal_is_adagrad_without_a_matrix(shape, max_dim):
  grads = [jnp.asarray(g, jnp.float32) for g in gradients(4, *shape)]
  tx = shampoo.scale_by_shampoo(
    b2=1.0, grafting=None, eps=1e-12, max_dim=max_dim
  )
  total = np.zeros(shape)
  for g, u in zip(grads, run(tx, grads)):
    total = total + np.square(g)
    np.testing.assert_allclose(u, g / np.sqrt(total), rtol=1e-5)


def test_shampoo_of_a_kernel_with_four_axes_is_that_of_its_matrix():
  with jax.enable_x64(True):
    grads = [jnp.asarray(g) for g in gradients(3, 3, 3, 2, 5)]
    tx = shampoo.shampoo(0.1)
    flat = run(tx, [g.reshape(18, 5) for g in grads])
    for a, b in zip(run(tx, grads), flat):
      np.testing.assert_allclose(a, np.reshape(b, a.shape), rtol=1e-6)


def test_shampoo_of_zero_gradients_is_zero():
  zero = jnp.zeros((4, 3))
  for u in run(shampoo.shampoo(0.1), [zero] * 3):
    np.testing.assert_array_equal(u, zero)


# --------------------------------------------------------------------- SOAP


@pytest.mark.parametrize("every", [1, 3])
def test_soap_equals_reference(every):
  grads = gradients(9, 5, 4)
  with jax.enable_x64(True):
    tx = soap.soap(
      0.1,
      b1=0.8,
      b2=0.9,
      shampoo_beta=0.7,
      eps=1e-3,
      precondition_frequency=every,
    )
    got = run(tx, [jnp.asarray(g) for g in grads])
  want = np_soap(grads, 0.1, 0.8, 0.9, 0.7, 1e-3, every)
  np.testing.assert_allclose(np.stack(got), np.stack(want), atol=1e-9)


def test_soap_without_bases_is_adam_from_the_second_call_on():
  grads = [
    {"kernel": jnp.asarray(g, jnp.float32), "bias": jnp.asarray(g[0])}
    for g in gradients(6, 5, 4, dtype=np.float32)
  ]
  got = run(soap.soap(0.1, b1=0.9, b2=0.99, max_dim=1), grads)
  want = run(optax.adam(0.1, b1=0.9, b2=0.99), grads[1:])
  assert all(not np.any(x) for x in jax.tree.leaves(got[0]))
  for a, b in zip(got[1:], want):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def test_soap_in_an_axis_aligned_eigenbasis_is_adam():
  # Diagonal gradients: the eigenbases are signed permutations.
  rng = np.random.default_rng(0)
  size = np.array([4.0, 3.0, 2.0, 1.0])
  grads = [np.diag(size * rng.uniform(0.9, 1.1, 4)) for _ in range(6)]
  grads = [jnp.asarray(g, jnp.float32) for g in grads]
  got = run(soap.soap(0.1, b1=0.9, b2=0.99, eps=1e-6), grads)
  want = run(optax.adam(0.1, b1=0.9, b2=0.99, eps=1e-6), grads[1:])
  for a, b in zip(got[1:], want):
    np.testing.assert_allclose(a, b, atol=1e-5)


def rotation(n, seed):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def adam_is_not():
  return optax.adam(0.1)


@pytest.mark.parametrize(
  "make, equivariant",
  [
    (lambda: soap.soap(0.1, precondition_frequency=1), True),
    (
      lambda: soap.soap(0.1, precondition_frequency=1, refresh="eigh"),
      True,
    ),
    (lambda: shampoo.shampoo(0.1, grafting="sgd"), True),
    (lambda: shampoo.shampoo(0.1, grafting=None), True),
    (adam_is_not, False),
  ],
)
def test_a_rotated_problem_has_rotated_updates(make, equivariant):
  grads = gradients(7, 5, 5)
  left, right = rotation(5, 1), rotation(5, 2)
  with jax.enable_x64(True):
    plain = run(make(), [jnp.asarray(g) for g in grads])
    turned = run(make(), [jnp.asarray(left @ g @ right) for g in grads])
  error = max(
    np.max(np.abs(left @ np.asarray(a) @ right - np.asarray(b)))
    for a, b in zip(plain, turned)
  )
  assert (error < 1e-6) == equivariant


# ------------------------------------------------- contract of transformations

MAKERS = {
  "shampoo": lambda lr, **kw: shampoo.shampoo(lr, update_every=2, **kw),
  "soap": lambda lr, **kw: soap.soap(lr, precondition_frequency=2, **kw),
}


def tree(seed=0, dtype=jnp.float32):
  shapes = {"a": {"kernel": (6, 4), "bias": (4,)}, "b": {"kernel": (4, 6)}}
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.normal(size=s), dtype),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_are_kept_and_statistics_are_float32(name, dtype):
  params = tree(dtype=dtype)
  tx = MAKERS[name](0.1, weight_decay=0.01)
  state = tx.init(params)
  for seed in range(3):
    updates, new = jax.jit(tx.update)(tree(seed, dtype), state, params)
    jax.tree.map(
      lambda u, p: u.dtype == p.dtype or pytest.fail(), updates, params
    )
    jax.tree.map(lambda a, b: a.dtype == b.dtype or pytest.fail(), state, new)
    state = new
  assert state[0].left["a"]["kernel"].dtype == jnp.float32


def assert_close(got, want):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8),
    got,
    want,
  )


# Square: a statistic without a null space has eigenvectors that rounding does
# not choose.
def square_tree(seed):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
  return {"kernel": draw(5, 5), "bias": draw(5)}


@pytest.mark.parametrize("name", MAKERS)
def test_jit_and_chain_change_nothing(name):
  with jax.enable_x64(True):
    params, grads = square_tree(0), [square_tree(s) for s in range(1, 5)]
    want = run(MAKERS[name](0.1), grads, params)
    double = optax.chain(MAKERS[name](0.1), optax.scale(2.0))
    halved = jax.tree.map(lambda x: 0.5 * x, run(double, grads, params))
    assert_close(halved, want)
    tx = MAKERS[name](0.1)
    state = tx.init(params)
    for g, w in zip(grads[:2], want):
      got, state = tx.update(g, state, params)
      assert_close(got, w)


@pytest.mark.parametrize(
  "factory, every",
  [(shampoo.shampoo, "update_every"), (soap.soap, "precondition_frequency")],
)
def test_hyperparameters_can_be_injected(factory, every):
  schedule = optax.linear_schedule(0.1, 0.3, 4)
  with jax.enable_x64(True):
    params, grads = square_tree(0), [square_tree(s) for s in range(1, 5)]
    want = run(factory(schedule, **{every: 2}), grads, params)
    injected = optax.inject_hyperparams(factory)
    got = run(injected(schedule, **{every: 2}), grads, params)
    assert_close(got, want)
    with pytest.raises(ValueError, match="static_args"):
      injected(0.1, max_dim=3).init(params)
    static = optax.inject_hyperparams(factory, static_args="max_dim")
    limited = factory(0.1, max_dim=3)
    assert_close(
      run(static(0.1, max_dim=3), grads, params), run(limited, grads, params)
    )


@pytest.mark.parametrize("name", MAKERS)
def test_no_decomposition_is_batched(name):
  # Batched LAPACK calls that run at the same time deadlock on CPU.
  params = {c: {"kernel": jnp.ones((6, 4))} for c in "abc"}
  tx = MAKERS[name](0.1)
  text = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
  # The last output: eigenvalues `[n]`, or an R `[n, n]`.
  values = re.findall(r"f32\[([\d,]+)\] = eigh\b", text)
  assert sorted(values) == ["4", "6"]
  triangles = re.findall(r"f32\[([\d,]+)\] = qr\b", text)
  assert sorted(triangles) == (["4,4", "6,6"] if name == "soap" else [])


@pytest.mark.parametrize("name", MAKERS)
def test_state_maps_over_parameters(name):
  tx = MAKERS[name](0.1)
  state = tx.init(tree())
  mapped = optax.tree.map_params(tx, lambda x: jnp.full_like(x, 7), state)
  assert jax.tree.structure(mapped) == jax.tree.structure(state)
  statistics = [x for x in jax.tree.leaves(mapped) if x.ndim and x.size]
  assert len(statistics) >= 4 and all(np.all(x == 7) for x in statistics)


@pytest.mark.parametrize("name", MAKERS)
def test_masked_parameters_are_left_alone(name):
  params, grads = tree(), tree(1)
  mask = {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}}
  tx = optax.masked(MAKERS[name](0.1), mask)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_array_equal(updates["a"]["bias"], grads["a"]["bias"])
  for layer in ("a", "b"):
    assert np.all(updates[layer]["kernel"] != grads[layer]["kernel"])


@pytest.mark.parametrize(
  "make, argument",
  [
    (lambda: shampoo.shampoo(-1.0), "learning_rate"),
    (lambda: shampoo.shampoo(0.1, b1=1.0), "b1"),
    (lambda: shampoo.shampoo(0.1, b2=1.5), "b2"),
    (lambda: shampoo.shampoo(0.1, eps=-1e-3), "eps"),
    (lambda: shampoo.shampoo(0.1, update_every=0), "update_every"),
    (lambda: shampoo.shampoo(0.1, exponent=0.5), "exponent"),
    (lambda: shampoo.shampoo(0.1, grafting="adam"), "grafting"),
    (lambda: shampoo.shampoo(0.1, graft_b2=1), "graft_b2"),
    (lambda: shampoo.shampoo(0.1, graft_eps=0), "graft_eps"),
    (lambda: shampoo.shampoo(0.1, weight_decay=-1), "weight_decay"),
    (
      lambda: shampoo.shampoo(0.1, start_preconditioning_step=0),
      "start_preconditioning_step",
    ),
    (lambda: shampoo.shampoo(0.1, max_dim=0).init(jnp.ones(2)), "max_dim"),
    (lambda: soap.soap(-0.1), "learning_rate"),
    (lambda: soap.soap(0.1, b1=1), "b1"),
    (lambda: soap.soap(0.1, b2=-0.1), "b2"),
    (lambda: soap.soap(0.1, shampoo_beta=2.0), "shampoo_beta"),
    (lambda: soap.soap(0.1, eps=-1), "eps"),
    (
      lambda: soap.soap(0.1, precondition_frequency=1.5),
      "precondition_frequency",
    ),
    (lambda: soap.soap(0.1, refresh="svd"), "refresh"),
    (lambda: soap.soap(0.1, max_dim=-3).init(jnp.ones(2)), "max_dim"),
    (lambda: kfac.kfac(-0.1), "learning_rate"),
    (lambda: kfac.kfac(0.1, damping=0.0), "damping"),
    (lambda: kfac.kfac(0.1, decay=1.0), "decay"),
    (lambda: kfac.kfac(0.1, update_every=0), "update_every"),
    (lambda: kfac.kfac(0.1, momentum=1.0), "momentum"),
    (lambda: kfac.kfac(0.1, kl_clip=0.0), "kl_clip"),
    (lambda: kfac.kfac(0.1, layers="none").init(tree()), "layers"),
    (lambda: kfac.make_step(None, None, None, stats_every=0), "stats_every"),
  ],
)
def test_bad_settings_are_named(make, argument):
  with pytest.raises(ValueError, match=argument):
    make()
