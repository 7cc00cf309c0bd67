"""Shampoo, SOAP and K-FAC against float64 NumPy and their own invariants."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from experiments.locoprop.baselines import kfac, linalg, shampoo, soap
from locojax.core import types
from locojax.methods.locoprop import taps

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
  return {"kernel": jnp.asarray(rng.normal(size=(5, 5))), "bias": jnp.ones(5)}


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
  params = tree()
  tx = MAKERS[name](0.1)
  mapped = optax.tree.map_params(tx, lambda x: x * 0, tx.init(params))
  assert jax.tree.structure(mapped) == jax.tree.structure(tx.init(params))


@pytest.mark.parametrize("name", MAKERS)
def test_masked_parameters_are_left_alone(name):
  params, grads = tree(), tree(1)
  mask = {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}}
  tx = optax.masked(MAKERS[name](0.1), mask)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_array_equal(updates["a"]["bias"], grads["a"]["bias"])


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


# -------------------------------------------------------------------- K-FAC


class Net(nn.Module):
  """Two dense layers; the second without bias, and a scale beside them."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(4, name="first", param_dtype=x.dtype)(x))
    scale = self.param("scale", nn.initializers.ones, (4,), x.dtype)
    return nn.Dense(3, use_bias=False, name="second", param_dtype=x.dtype)(
      x * scale
    )


def losses(model):
  """Sigmoid cross-entropy, on the labels and on labels of the model's own."""

  def mean(logits, labels):
    each = optax.sigmoid_binary_cross_entropy(logits, labels)
    return jnp.mean(jnp.sum(each, axis=-1))

  def loss_fn(params, model_state, batch, key):
    logits = model.apply({"params": params}, batch["x"])
    return mean(logits, batch["y"]), ({}, model_state)

  def sampled_loss_fn(params, model_state, batch, key):
    logits = model.apply({"params": params}, batch["x"])
    chance = jax.lax.stop_gradient(nn.sigmoid(logits))
    drawn = jax.random.bernoulli(key, chance).astype(logits.dtype)
    return mean(logits, drawn), ({}, model_state)

  return loss_fn, sampled_loss_fn


def problem(dtype, batch=7):
  rng = np.random.default_rng(3)
  x = jnp.asarray(rng.normal(size=(batch, 5)), dtype)
  y = jnp.asarray(rng.integers(0, 2, size=(batch, 3)), dtype)
  params = Net().init(jax.random.key(0), x)["params"]
  return params, {"x": x, "y": y}


def state_of(params, tx):
  return types.TrainState(
    step=jnp.int32(0),
    params=params,
    model_state={},
    opt_state=tx.init(params),
    key=jax.random.key(5),
  )


def np_kfac(params, batch, drawn, labels, damping):
  """Factors and directions of `Net` (scale one) from labels and drawn ones."""
  x, w1 = batch["x"], params["first"]["kernel"]
  w2 = params["second"]["kernel"]
  ones = np.ones((len(x), 1))
  hidden = np.tanh(x @ w1 + params["first"]["bias"])
  chance = 1 / (1 + np.exp(-hidden @ w2))
  out = {}
  for name, inputs in (("first", np.hstack([x, ones])), ("second", hidden)):
    pair = []
    for target in (labels, drawn):
      g = chance - target
      pair.append(g if name == "second" else (g @ w2.T) * (1 - hidden**2))
    a = inputs.T @ inputs / len(x)
    s = pair[1].T @ pair[1] / len(x)
    pi = np.sqrt(np.trace(a) / len(a) / (np.trace(s) / len(s)))
    grad = inputs.T @ pair[0] / len(x)
    left = np.linalg.inv(a + pi * np.sqrt(damping) * np.eye(len(a)))
    right = np.linalg.inv(s + np.sqrt(damping) / pi * np.eye(len(s)))
    out[name] = (a, s, left @ grad @ right)
  return out


def test_kfac_factors_and_step_equal_reference():
  with jax.enable_x64(True):
    params, batch = problem(jnp.float64)
    tx = kfac.kfac(0.5, damping=1e-2, momentum=0.0)
    step = jax.jit(kfac.make_step(*losses(Net()), tx))
    state = state_of(params, tx)
    new, metrics = step(state, batch)
    key = jax.random.fold_in(state.step_key(), 1)
    logits = Net().apply({"params": params}, batch["x"])
    drawn = jax.random.bernoulli(key, nn.sigmoid(logits))
    host = jax.tree.map(np.asarray, (params, batch, drawn))
  want = np_kfac(*host, host[1]["y"], 1e-2)
  factors = optax.tree.get(new.opt_state, "factors")
  for name, (a, s, direction) in want.items():
    np.testing.assert_allclose(factors[name].inputs, a, rtol=1e-10)
    np.testing.assert_allclose(factors[name].outputs, s, rtol=1e-10)
    moved = jax.tree.map(np.subtract, params[name], new.params[name])
    rows = moved["kernel"].shape[0]
    np.testing.assert_allclose(
      moved["kernel"], 0.5 * direction[:rows], rtol=1e-8
    )
    if "bias" in moved:
      np.testing.assert_allclose(
        moved["bias"], 0.5 * direction[rows], rtol=1e-8
      )
  assert np.isfinite(metrics["loss"])


def test_kfac_factors_are_averaged_with_a_warm_start():
  rng = np.random.default_rng(0)
  params = {"kernel": jnp.zeros((3, 2))}
  tx = kfac.scale_by_kfac(decay=0.6, damping=1.0)
  state = tx.init(params)
  want = None
  for k in range(1, 6):
    a = rng.normal(size=(3, 3))
    pair = (jnp.asarray(a @ a.T, jnp.float32), jnp.eye(2))
    keep = min(1 - 1 / k, 0.6)
    want = pair[0] if want is None else keep * want + (1 - keep) * pair[0]
    _, state = tx.update(params, state, factors={"": pair})
    stale = {"": (jnp.full((3, 3), jnp.nan), jnp.eye(2))}
    _, state = tx.update(params, state, factors=stale, fresh=False)
  np.testing.assert_allclose(state.factors[""].inputs, want, rtol=1e-5)
  assert int(state.num_stats) == 5 and int(state.count) == 10


def test_kfac_lands_at_least_squares():
  # One linear layer, squared loss: the Gauss-Newton matrix is A (x) I, and a
  # step with learning rate 1 solves the problem whatever labels are drawn to
  # measure S, here exactly I.
  class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2, name="out")(x)

  rng = np.random.default_rng(1)
  x = rng.normal(size=(40, 3)).astype(np.float32)
  y = rng.normal(size=(40, 2)).astype(np.float32)
  noise = np.linalg.qr(rng.normal(size=(40, 2)))[0] * np.sqrt(40)

  def loss(params, state, batch, drawn):
    out = Linear().apply({"params": params}, batch["x"])
    target = batch["y"]
    if drawn:
      target = jax.lax.stop_gradient(out) + noise
    each = 0.5 * jnp.sum(jnp.square(out - target), axis=-1)
    return jnp.mean(each), ({}, state)

  params = Linear().init(jax.random.key(0), x)["params"]
  tx = kfac.kfac(1.0, damping=1e-9, momentum=0.0)
  step = kfac.make_step(
    lambda p, s, b, k: loss(p, s, b, False),
    lambda p, s, b, k: loss(p, s, b, True),
    tx,
  )
  new, _ = jax.jit(step)(state_of(params, tx), {"x": x, "y": y})
  full = np.hstack([x, np.ones((40, 1))])
  want = np.linalg.lstsq(full, y, rcond=None)[0]
  np.testing.assert_allclose(new.params["out"]["kernel"], want[:3], atol=2e-4)
  np.testing.assert_allclose(new.params["out"]["bias"], want[3], atol=2e-4)


def test_sampled_output_factor_is_an_unbiased_fisher():
  params, batch = problem(jnp.float32)
  _, sampled_loss_fn = losses(Net())
  captured = taps.capture(sampled_loss_fn)

  def one(key):
    return kfac.output_factors(captured(params, {}, batch, key)[2])

  keys = jax.random.split(jax.random.key(9), 20_000)
  drawn = jax.jit(lambda k: jax.lax.map(one, k, batch_size=2000))(keys)
  mean = jax.tree.map(lambda x: np.mean(x, axis=0), drawn)
  hidden = np.tanh(
    batch["x"] @ params["first"]["kernel"] + params["first"]["bias"]
  )
  chance = nn.sigmoid(hidden @ params["second"]["kernel"])
  # Independent labels: E[g g^T] = diag(p (1 - p)), pulled back to each layer.
  fisher = [np.diag(p * (1 - p)) for p in chance]
  back = [(params["second"]["kernel"] * (1 - h[:, None] ** 2)) for h in hidden]
  first = np.mean([j @ f @ j.T for j, f in zip(back, fisher)], axis=0)
  np.testing.assert_allclose(mean["second"], np.mean(fisher, 0), atol=3e-3)
  np.testing.assert_allclose(mean["first"], first, atol=3e-3)


def test_kfac_is_invariant_to_a_linear_change_of_inputs():
  # With next to no damping: inputs x M, kernel M^-1 W give the same outputs,
  # before and after the step.
  with jax.enable_x64(True):
    params, batch = problem(jnp.float64, batch=50)
    mix = np.random.default_rng(8).normal(size=(5, 5))
    other = {**params, "first": dict(params["first"])}
    other["first"]["kernel"] = np.linalg.solve(mix, params["first"]["kernel"])
    outs = []
    for p, x in ((params, batch["x"]), (other, batch["x"] @ mix)):
      tx = kfac.kfac(0.1, damping=1e-14, momentum=0.0)
      step = jax.jit(kfac.make_step(*losses(Net()), tx))
      new, _ = step(state_of(p, tx), {**batch, "x": x})
      outs.append(Net().apply({"params": new.params}, x))
  np.testing.assert_allclose(outs[0], outs[1], rtol=1e-4, atol=1e-6)


def test_kl_clip_bounds_the_step():
  params, batch = problem(jnp.float32)
  loose = kfac.scale_by_kfac(damping=1e-4)
  tight = kfac.scale_by_kfac(damping=1e-4, kl_clip=1e-4, learning_rate=0.5)
  loss_fn, sampled_loss_fn = losses(Net())
  args = (params, {}, batch, jax.random.key(0))
  _, grads, tape = taps.capture(loss_fn)(*args)
  grads = {k: grads[k] for k in ("first", "second")}
  first = kfac.input_factors(tape, params)
  second = kfac.output_factors(taps.capture(sampled_loss_fn)(*args)[2])
  factors = {p: (first[p], second[p]) for p in first}
  ups = [
    tx.update(grads, tx.init(grads), factors=factors)[0]
    for tx in (loose, tight)
  ]
  sizes = [float(optax.tree.vdot(u, grads)) for u in ups]
  assert 0.25 * sizes[0] > 1e-4
  ratio = np.asarray(ups[1]["first"]["bias"] / ups[0]["first"]["bias"])
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
  np.testing.assert_allclose(0.25 * sizes[0] * ratio[0] ** 2, 1e-4, rtol=1e-4)


@pytest.mark.parametrize("stats_every, update_every", [(1, 1), (3, 2)])
def test_kfac_learns_compiles_once_and_keeps_dtypes(stats_every, update_every):
  params, batch = problem(jnp.float32)
  tx = optax.chain(
    optax.clip_by_global_norm(100.0),
    optax.inject_hyperparams(kfac.kfac)(
      learning_rate=optax.constant_schedule(0.1),
      update_every=update_every,
      damping=1e-2,
      kl_clip=1e-1,
      layers="first|second",
      fallback=optax.adam(1e-2),
    ),
  )
  step = jax.jit(kfac.make_step(*losses(Net()), tx, stats_every=stats_every))
  state = state_of(params, tx)
  seen = []
  for _ in range(30):
    new, metrics = step(state, batch)
    jax.tree.map(
      lambda a, b: a.dtype == b.dtype or pytest.fail(), state.params, new.params
    )
    state = new
    seen.append(float(metrics["loss"]))
  assert step._cache_size() == 1
  assert seen[-1] < 0.5 * seen[0]
  assert np.any(np.asarray(state.params["scale"]) != 1)


def test_layers_left_out_take_the_fallback():
  params, batch = problem(jnp.float32)
  tx = kfac.kfac(0.1, layers="first", fallback=optax.sgd(0.25))
  loss_fn, sampled_loss_fn = losses(Net())
  step = kfac.make_step(loss_fn, sampled_loss_fn, tx)
  new, _ = step(state_of(params, tx), batch)
  grads = jax.grad(lambda p: loss_fn(p, {}, batch, None)[0])(params)
  np.testing.assert_allclose(
    new.params["second"]["kernel"],
    params["second"]["kernel"] - 0.25 * grads["second"]["kernel"],
    rtol=1e-5,
  )


def test_a_layer_without_factors_is_named():
  params, batch = problem(jnp.float32)
  tx = kfac.kfac(0.1)
  only_first = lambda path: path == "first"
  step = kfac.make_step(*losses(Net()), tx, filter=only_first)
  with pytest.raises(ValueError, match="second"):
    step(state_of(params, tx), batch)


def test_rows_of_all_leading_axes_count():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(4, 6, 5)), jnp.float32)
  model = nn.Dense(3)
  params = {"params": model.init(jax.random.key(0), x)["params"]}

  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name="inner")(x)

  def loss_fn(params, state, batch, key):
    out = Outer().apply({"params": params}, batch["x"])
    return jnp.mean(jnp.sum(out**2, axis=(1, 2))), ({}, state)

  params = Outer().init(jax.random.key(0), x)["params"]
  _, _, tape = taps.capture(loss_fn)(params, {}, {"x": x}, None)
  got = kfac.input_factors(tape, params)["inner"]
  full = np.concatenate([x.reshape(-1, 5), np.ones((24, 1))], axis=1)
  np.testing.assert_allclose(got, full.T @ full / 24, rtol=1e-5, atol=1e-6)
  out = 2 * Outer().apply({"params": params}, x).reshape(-1, 3)
  np.testing.assert_allclose(
    kfac.output_factors(tape)["inner"], out.T @ out / 4, rtol=1e-4
  )
