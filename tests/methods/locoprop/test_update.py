"""Local problems: worked numbers, exact solutions, invariants."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from locojax.methods import locoprop
from locojax.methods.locoprop import changes, matching, taps, targets
from tests import programs

X = np.array([[1, 2], [0, -1], [0.5, 0.5]])
W = np.array([[0.3, -0.2], [0.1, 0.4]])
G = np.array([[0.1, -0.2], [0.05, 0.1], [-0.3, 0.2]])


def _kernel(params, x):
  return x @ params["kernel"]


def _apply(x=X, w=W, g=G, **settings):
  """One outer update of the worked layer; returns the new kernel."""
  x, w, g = (jnp.asarray(v, jnp.float32) for v in (x, w, g))
  record = taps.LayerRecord((x,), x @ w, g, "l", _kernel, "dense")
  defaults = dict(
    inner="sgd",
    gamma=2.0,
    num_local_iters=3,
    local_schedule=locoprop.constant_local(),
    transfers={".*": "tanh"},
  )
  tx = locoprop.locoprop(0.1, **{**defaults, **settings})
  params = {"l": {"kernel": w}}
  updates, _ = tx.update(
    {"l": {"kernel": x.T @ g}},
    tx.init(params),
    params,
    tape=locoprop.Tape({"l": record}),
  )
  return optax.apply_updates(params, updates)["l"]["kernel"]


@pytest.mark.parametrize(
  "settings, expected",
  [
    (dict(num_local_iters=1), [[0.31, -0.18], [0.1, 0.48]]),
    (
      dict(variant="squared", solver="exact"),
      [[0.3091591592, -0.1924924925], [0.0986486486, 0.4513513514]],
    ),
    (
      dict(variant="squared", gram=True),
      [[0.3269125, -0.188475], [0.0947125, 0.529525]],
    ),
    (
      dict(variant="squared", gram=False),
      [[0.3269125, -0.188475], [0.0947125, 0.529525]],
    ),
    (
      dict(),
      [[0.3273654827, -0.1748094103], [0.0955616454, 0.5596086741]],
    ),
    (
      dict(reg=0.5),
      [[0.3259923661, -0.1764840897], [0.0957414389, 0.5507535371]],
    ),
    (
      dict(clip_targets=1e-6),
      [[0.3273654827, -0.1748094103], [0.0955616454, 0.5596086741]],
    ),
  ],
)
def test_worked_layer(settings, expected):
  np.testing.assert_allclose(_apply(**settings), expected, atol=2e-7)


def test_worked_rmsprop_trace():
  tx = locoprop.notebook_rmsprop(0.01)
  w = jnp.float32(0.5)
  state, seen = tx.init(w), []
  for g in (0.4, -0.1, 0.2):
    updates, state = tx.update(jnp.float32(g), state)
    w = w + updates
    seen.append(float(w))
  np.testing.assert_allclose(
    seen, [0.4958206390, 0.4927461477, 0.4873604957], atol=1e-7
  )


CONVEX = [n for n in matching.names() if matching.get(n).convex]


@pytest.mark.parametrize("transfer", CONVEX)
def test_first_step_is_backprop(transfer):
  w = _apply(num_local_iters=1, transfers={".*": transfer})
  np.testing.assert_allclose(w, W - 0.1 * 2.0 * X.T @ G, atol=1e-6)


@pytest.mark.parametrize("solver", ["iterative", "exact"])
def test_no_gradient_no_change(solver):
  settings = {} if solver == "iterative" else {"variant": "squared"}
  w = _apply(g=0 * G, solver=solver, **settings)
  np.testing.assert_array_equal(w, W.astype(np.float32))


@pytest.mark.parametrize("transfer", ["tanh", "gelu", "softmax"])
def test_adam_does_not_move_what_has_no_gradient(transfer):
  """Not by the bit by which f(A) in the loop may differ from that before it."""
  rng = np.random.default_rng(0)
  x, w, g = (rng.normal(size=s) for s in ((32, 16), (16, 8), (32, 8)))
  run = functools.partial(
    _apply,
    x,
    w,
    inner="adam",
    transfers={".*": transfer},
    allow_nonconvex=True,
  )
  w = w.astype(np.float32)
  np.testing.assert_array_equal(run(0 * g), w)
  if transfer != "softmax":  # nor one unit beside others
    moved = run(g * (np.arange(8) != 3)) != w
    np.testing.assert_array_equal(moved.all(0), np.arange(8) != 3)
    np.testing.assert_array_equal(moved.any(0), np.arange(8) != 3)


def test_matching_is_squared_for_a_linear_transfer():
  m = _apply(transfers={".*": "linear"}, num_local_iters=7)
  s = _apply(variant="squared", num_local_iters=7)
  np.testing.assert_allclose(m, s, atol=1e-6)


@pytest.mark.parametrize("eta", [0.01, 0.3])
def test_squared_iterations_are_the_spectral_filter(eta):
  # W_T = W0 - gamma eta sum_{k<T} (I - eta C)^k dW.
  tx = functools.partial(_apply, variant="squared", num_local_iters=6)
  c, dw = X.T @ X, X.T @ G
  step = sum(np.linalg.matrix_power(np.eye(2) - eta * c, k) for k in range(6))
  schedule = lambda t, num: jnp.full(t.shape, eta / 0.1)
  np.testing.assert_allclose(
    tx(local_schedule=schedule), W - 2 * eta * step @ dw, atol=1e-5
  )


def test_proximal_descent_converges_to_the_exact_solution():
  # The proximal optimum with weight 1/eta, reached by many small steps.
  eta = 0.1
  w = _apply(
    variant="squared",
    reg=1 / eta,
    num_local_iters=400,
    local_schedule=lambda t, num: jnp.full(t.shape, 0.5),
  )
  expected = locoprop.exact_squared_update(X, G, W, gamma=2.0, eta=eta)
  np.testing.assert_allclose(w, expected, atol=1e-6)


@pytest.mark.parametrize("rows, inputs", [(3, 7), (9, 4)])
def test_both_exact_forms_agree(rows, inputs):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(rows, inputs))
  g, w = rng.normal(size=(rows, 2)), rng.normal(size=(inputs, 2))
  got = locoprop.exact_squared_update(
    jnp.asarray(x), jnp.asarray(g), jnp.asarray(w), gamma=1.5, eta=0.2
  )
  ridge = np.linalg.solve(x.T @ x + np.eye(inputs) / 0.2, x.T @ g)
  np.testing.assert_allclose(got, w - 1.5 * ridge, atol=2e-5)


@pytest.mark.parametrize("transfer", CONVEX)
def test_local_loss_falls_below_the_step_bound(transfer):
  loss = matching.get(transfer)
  x, w, g = (jnp.asarray(v, jnp.float32) for v in (X, W, 0.2 * G))
  y = loss.transfer(x @ w) - 2.0 * g

  def local(w):
    a = x @ w
    inner = jnp.sum(y * a, axis=-1) if loss.vector else y * a
    return jnp.sum(loss.potential(a) - inner)

  values = [local(w)]
  for num in range(1, 6):
    values.append(
      local(_apply(g=0.2 * G, num_local_iters=num, transfers={".*": transfer}))
    )
  assert np.all(np.diff(values) < 1e-6) and values[-1] < values[0] - 1e-3


def test_permuting_the_rows_changes_nothing():
  order = [2, 0, 1]
  np.testing.assert_allclose(
    _apply(x=X[order], g=G[order]), _apply(), atol=1e-6
  )


def test_local_mean_divides_by_the_rows():
  w = _apply(local_reduction="mean", num_local_iters=1)
  np.testing.assert_allclose(w, W - 0.1 * 2 * X.T @ G / 3, atol=1e-6)


@pytest.mark.parametrize(
  "settings, start",
  [
    (dict(target="gd"), np.tanh(X @ W) - np.tanh(X @ W - 2 * G)),
    (dict(target="post_gd"), 2 * G / (1 - np.tanh(X @ W) ** 2)),
    (
      dict(target="md", variant="squared"),
      X @ W - np.arctanh(np.clip(np.tanh(X @ W) - 2 * G, -0.9999, 0.9999)),
    ),
    (
      dict(clip_targets=0.5),
      np.tanh(X @ W) - np.clip(np.tanh(X @ W) - 2 * G, -0.5, 0.5),
    ),
  ],
)
def test_other_targets(settings, start):
  w = _apply(num_local_iters=1, **settings)
  np.testing.assert_allclose(w, W - 0.1 * X.T @ start, atol=1e-5)
  # Two iterations by hand, against the definition.
  square = settings.get("variant") == "squared"
  f = (lambda a: a) if square else np.tanh
  target = f(X @ W) - start
  by_hand = np.asarray(w) - 0.1 * X.T @ (f(X @ np.asarray(w)) - target)
  np.testing.assert_allclose(
    _apply(num_local_iters=2, **settings), by_hand, atol=1e-5
  )


def test_share_of_targets_outside_the_range():
  record = taps.LayerRecord(
    (X,),
    jnp.zeros((2, 2)),
    jnp.array([[0.2, 0], [0, -0.2]]),
    "l",
    None,
    "dense",
  )
  assert locoprop.target_outside(record, "tanh", 10.0) == 0.5
  assert locoprop.target_outside(record, "tanh", 4.0) == 0.0
  assert locoprop.target_outside(record, "linear", 10.0) == 0.0


def test_label_target_of_an_output_layer():
  # Sigmoid + cross-entropy, mean over B rows: gamma = B makes Y* the label.
  labels = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
  y = 1 / (1 + np.exp(-X @ W))
  g = (y - labels) / 3
  w1 = W - 0.1 * X.T @ (y - labels)
  w2 = w1 - 0.1 * X.T @ (1 / (1 + np.exp(-X @ w1)) - labels)
  got = _apply(
    g=g, gamma={"l": 3.0}, num_local_iters=2, transfers={".*": "sigmoid"}
  )
  np.testing.assert_allclose(got, w2, atol=1e-6)


def test_bias_is_a_column_of_ones():
  rng = np.random.default_rng(3)
  x, g = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
  w, b = rng.normal(size=(3, 2)), rng.normal(size=2)
  dense = nn.Dense(2)
  params = {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.asarray(b)}
  params = jax.tree.map(lambda v: v.astype(jnp.float32), params)
  x32, g32 = jnp.asarray(x, jnp.float32), jnp.asarray(g, jnp.float32)
  record = taps.LayerRecord(
    (x32,),
    x32 @ params["kernel"] + params["bias"],
    g32,
    "",
    taps._stock_affine(dense),
    "dense",
  )
  grads = {"kernel": x32.T @ g32, "bias": g32.sum(0)}
  ones = np.concatenate([x, np.ones((6, 1))], axis=1)
  for settings in (
    {},
    dict(variant="squared", gram=True),
    dict(variant="squared", gram=False),
    dict(variant="squared", solver="exact"),
  ):
    tx = locoprop.locoprop(
      0.05,
      "sgd",
      gamma=2.0,
      transfers={"": "tanh"},
      num_local_iters=4,
      local_schedule=locoprop.constant_local(),
      **settings,
    )
    updates, _ = tx.update(
      grads, tx.init(params), params, tape=locoprop.Tape({"": record})
    )
    folded = np.concatenate([updates["kernel"], updates["bias"][None]])
    schedule = lambda t, num: jnp.full(t.shape, 0.5)
    w_tilde = np.concatenate([w, b[None]])
    if settings.get("solver") == "exact":
      solve = np.linalg.solve(ones.T @ ones + np.eye(4) / 0.05, ones.T @ g)
      expected = -2.0 * solve
    else:
      expected = (
        _apply(
          x=ones,
          w=w_tilde,
          g=g,
          num_local_iters=4,
          local_schedule=schedule,
          **settings,
        )
        - w_tilde
      )
    np.testing.assert_allclose(folded, expected, atol=2e-5)


def test_row_sampling_is_exact_when_all_rows_are_alike():
  x, g = np.repeat(X[:1], 8, 0), np.repeat(G[:1], 8, 0)
  for rotate in (True, False):
    sampled = _apply(x=x, g=g, max_rows=2, rotate_rows=rotate)
    np.testing.assert_allclose(sampled, _apply(x=x, g=g), atol=1e-6)


def test_row_sampling_is_unbiased_over_the_offsets():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(12, 2)), jnp.float32)
  w = {"kernel": jnp.asarray(W, jnp.float32)}
  delta = {"kernel": jnp.asarray(0.3 * W[::-1], jnp.float32)}
  record = taps.LayerRecord((x,), x @ w["kernel"], x, "l", _kernel, "dense")
  tanh = matching.get("tanh")
  full = changes.gradient_change(record, w, tanh, targets.LocalOptions())
  some = changes.gradient_change(
    record, w, tanh, targets.LocalOptions(max_rows=4)
  )
  mean = sum(some(delta, t)["kernel"] for t in range(3)) / 3
  np.testing.assert_allclose(mean, full(delta, 0)["kernel"], rtol=1e-5)


def test_conv_is_dense_on_patches():
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.normal(size=(3, 5, 5, 2)), jnp.float32)
  conv = nn.Conv(4, (3, 3), padding="VALID")
  params = programs.init(conv, jax.random.key(0), image)["params"]
  preact = conv.apply({"params": params}, image)
  g = jnp.asarray(rng.normal(size=preact.shape), jnp.float32) * 0.1
  patches = jax.lax.conv_general_dilated_patches(
    image, (3, 3), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  ).reshape(-1, 18)
  matrix = params["kernel"].transpose(2, 0, 1, 3).reshape(18, 4)
  dense = nn.Dense(4)
  dense_params = {"kernel": matrix, "bias": params["bias"]}

  def solve(layer, params, x, a, g):
    record = taps.LayerRecord(
      (x,), a, g, "", taps._stock_affine(layer), type(layer).__name__.lower()
    )
    _, vjp = jax.vjp(lambda p: record.affine(p, x), params)
    tx = locoprop.locoprop(
      0.02, "momentum", gamma=2.0, transfers={"": "tanh"}, num_local_iters=5
    )
    updates, _ = tx.update(
      vjp(g)[0], tx.init(params), params, tape=locoprop.Tape({"": record})
    )
    return updates

  got = solve(conv, params, image, preact, g)
  flat = lambda v: v.reshape(-1, 4)
  expected = solve(dense, dense_params, patches, flat(preact), flat(g))
  np.testing.assert_allclose(
    got["kernel"].transpose(2, 0, 1, 3).reshape(18, 4),
    expected["kernel"],
    atol=1e-6,
  )
  np.testing.assert_allclose(got["bias"], expected["bias"], atol=1e-6)


def test_local_solve_is_the_transform_for_one_layer():
  x, w, g = (jnp.asarray(v, jnp.float32) for v in (X, W, G))
  record = taps.LayerRecord((x,), x @ w, g, "l", _kernel, "dense")
  params = {"kernel": w}
  delta, _ = locoprop.local_solve(
    [record],
    params,
    {"kernel": x.T @ g},
    transfer="tanh",
    inner=optax.sgd,
    inner_state=optax.sgd(1.0).init(params),
    learning_rates=jnp.full(3, 0.1),
    options=locoprop.LocalOptions(gamma=2.0),
  )
  np.testing.assert_allclose(w + delta["kernel"], _apply(), atol=1e-7)
