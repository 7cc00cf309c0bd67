"""Trees of noise: the card's worked numbers, variances, restarts, FTRL."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.methods.dp_ftrl import keys, matrix, noise, tree

KEY = jax.random.key(7)
SMALL = {
  **{(0, i): v for i, v in enumerate((1.0, -2.0, 0.5, 3.0))},
  **{(1, 0): 4.0, (1, 1): -1.0, (2, 0): 2.0},
}


def _given(table):
  """Noise of nodes from a dict, also where level and index are traced."""
  levels = 1 + max(k for k, _ in table)
  width = 1 + max(i for _, i in table)
  values = np.zeros((levels, width))
  for at, value in table.items():
    values[at] = value
  return lambda level, index: jnp.asarray(values, jnp.float32)[level, index]


def _prefixes(draw, num, estimator, shape=()):
  buffers = jnp.zeros((tree.num_levels(num), *shape))
  out = []
  for t in range(num):
    buffers, _ = tree.advance(buffers, t, draw, estimator)
    out.append(tree.prefix(buffers, t + 1, estimator))
  return np.array(out)


@pytest.mark.parametrize(
  "estimator, expected",
  [
    ("basic", [1.0, 4.0, 4.5, 2.0]),
    ("honaker", [1.0, 2.3333333333, 2.8333333333, 2.3571428571]),
  ],
)
def test_small_tree(estimator, expected):
  found = _prefixes(_given(SMALL), 4, estimator)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
  "estimator, beta, expected",
  [
    ("basic", 0.0, [0.8, 0.3, 0.35, 0.55]),
    ("basic", 0.9, [0.8, 0.12, -0.442, -0.7478]),
    ("honaker", 0.0, [0.8, 0.4666666667, 0.5166666667, 0.5142857143]),
    ("honaker", 0.9, [0.8, 0.2866666667, -0.1253333333, -0.4985142857]),
  ],
)
def test_ftrl_is_sgd_on_residuals(estimator, beta, expected):
  gradients = np.array([1.0, 2.0, -1.0, 0.5])
  totals = _prefixes(_given(SMALL), 4, estimator)
  residuals = np.diff(totals, prepend=0.0) + gradients
  tx = optax.sgd(0.1, momentum=beta or None)
  w = jnp.array(1.0)
  state, path = tx.init(w), []
  for g in residuals:
    updates, state = tx.update(jnp.float32(g), state)
    w = optax.apply_updates(w, updates)
    path.append(float(w))
  np.testing.assert_allclose(path, expected, rtol=2e-5)
  # The same on noisy prefix sums, as the paper states it.
  v, other = 0.0, []
  for total in np.cumsum(gradients) + totals:
    v = beta * v + total
    other.append(1.0 - 0.1 * v)
  np.testing.assert_allclose(path, other, rtol=2e-5)


def test_unbiased_where_nodes_are_sums():
  draw = lambda level, index: jnp.float32(2.0) ** level
  for estimator in tree.ESTIMATORS:
    found = _prefixes(draw, 16, estimator)
    np.testing.assert_allclose(found, np.arange(1, 17), rtol=1e-6)


def test_nodes_of_one():
  ones = lambda level, index: jnp.float32(1.0)
  basic = _prefixes(ones, 12, "basic")
  np.testing.assert_array_equal(basic, [t.bit_count() for t in range(1, 13)])
  assert _prefixes(ones, 2, "honaker")[1] == pytest.approx(4 / 3)


def _factor(num, estimator):
  """`[num, nodes]`: what each node counts in each prefix."""
  nodes = [(k, i) for k in range(5) for i in range(num >> k)]
  place = np.zeros((5, num), int)
  for n, node in enumerate(nodes):
    place[node] = n
  place = jnp.asarray(place)
  draw = lambda level, index: jax.nn.one_hot(place[level, index], len(nodes))
  return _prefixes(draw, num, estimator, (len(nodes),))


@functools.cache
def _factors(estimator):
  return _factor(16, estimator)


def test_variances_of_prefixes():
  var = (_factors("honaker") ** 2).sum(axis=1)
  expected = [1, 2 / 3, 5 / 3, 4 / 7, 11 / 7, 26 / 21, 47 / 21, 8 / 15]
  np.testing.assert_allclose(var[:8], expected, rtol=1e-5)
  assert var[15] == pytest.approx(16 / 31, rel=1e-5)
  basic = (_factors("basic") ** 2).sum(axis=1)
  np.testing.assert_allclose(basic, [t.bit_count() for t in range(1, 17)])


def test_variances_of_residuals():
  for estimator, by_zeros in (
    ("basic", [1, 2, 3, 4, 5]),
    ("honaker", [1, 1, 29 / 21, 193 / 105, 2517 / 1085]),
  ):
    steps = np.diff(_factors(estimator), axis=0, prepend=0.0)
    var = (steps**2).sum(axis=1)
    zeros = [(t & -t).bit_length() - 1 for t in range(1, 17)]
    np.testing.assert_allclose(var, [by_zeros[z] for z in zeros], rtol=1e-5)


PARAMS = {"a": {"kernel": jnp.zeros((3, 2))}, "b": jnp.zeros(4)}


def _added(tx, num, params=PARAMS, state=None, jit=True):
  """The noise of each round, `[rounds, ...]`, and the last state."""
  state = tx.init(params) if state is None else state
  update = jax.jit(tx.update) if jit else tx.update
  out = []
  for _ in range(num):
    updates, state = update(jax.tree.map(jnp.zeros_like, params), state)
    out.append(updates)
  return jax.tree.map(lambda *x: np.stack(x), *out), state


def _noise(num=32, **settings):
  shared = {"key": KEY, "max_rounds": num, **settings}
  return noise.add_tree_noise(1.5, 2.0, **shared)


@pytest.mark.parametrize("estimator", tree.ESTIMATORS)
def test_covariance_is_the_closed_form(estimator):
  params = jnp.zeros(40_000)
  tx = _noise(16, estimator=estimator)
  added, _ = _added(tx, 16, params)
  sums = np.cumsum(added, axis=0)
  found = sums @ sums.T / 40_000 / 9.0
  factor = _factors(estimator)
  np.testing.assert_allclose(found, factor @ factor.T, atol=0.09)


def test_eager_jit_and_scan_are_equal():
  tx = _noise()
  jitted, _ = _added(tx, 4)
  eager, _ = _added(tx, 4, jit=False)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)

  def body(state, _):
    updates, state = tx.update(zeros, state)
    return state, updates

  _, scanned = jax.jit(lambda s: jax.lax.scan(body, s, None, length=4))(
    tx.init(PARAMS)
  )
  jax.tree.map(np.testing.assert_array_equal, scanned, jitted)
  close = functools.partial(np.testing.assert_allclose, atol=2e-6)
  jax.tree.map(close, eager, jitted)


def test_order_of_the_tree_and_neighbours_do_not_matter():
  alone, _ = _added(_noise(), 4, {"b": PARAMS["b"]})
  both, _ = _added(_noise(), 4)
  np.testing.assert_array_equal(alone["b"], both["b"])
  assert not np.allclose(both["a"]["kernel"][0].ravel()[:4], both["b"][0])


def test_sharded_is_unsharded():
  params = {"w": jnp.zeros((16, 8))}
  mesh = jax.make_mesh(
    (8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  tx = _noise()
  plain, _ = _added(tx, 5, params)
  put = lambda x: jax.device_put(
    x,
    jax.NamedSharding(
      mesh, jax.P(*(None,) * (x.ndim - 2), "model") if x.ndim > 1 else jax.P()
    ),
  )
  state = tx.init(params)
  state = state._replace(buffers=jax.tree.map(put, state.buffers))
  sharded, last = _added(tx, 5, jax.tree.map(put, params), state)
  np.testing.assert_array_equal(sharded["w"], plain["w"])
  assert last.buffers["w"].sharding.spec[1] == "model"


def test_resumed_at_every_round_is_uninterrupted():
  tx = _noise(restart=tree.RestartPolicy(5))
  whole, _ = _added(tx, 12)
  state, parts = tx.init(PARAMS), []
  for _ in range(12):
    saved = jax.tree.map(
      lambda x: (
        x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.array(x)
      ),
      state,
    )
    one, state = _added(tx, 1, state=saved)
    parts.append(one)
  joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_the_state_is_as_many_models_as_levels():
  state = _noise(2000).init(PARAMS)
  assert state.buffers["b"].shape == (11, 4)
  assert _noise(2000, restart=tree.RestartPolicy(334)).init(PARAMS).buffers[
    "b"
  ].shape == (9, 4)


def test_restarted_trees_are_independent_and_sums_stay():
  tx = _noise(8, restart=tree.RestartPolicy(4), estimator="basic")
  params = jnp.zeros(30_000)
  added, state = _added(tx, 8, params)
  assert int(state.tree_id) == 1 and int(state.leaves) == 4
  sums = np.cumsum(added, axis=0) / 3.0
  # N_4 of the first tree stays as a constant: variances 1, 1, 2, 1 and on top.
  var = sums.var(axis=1)
  np.testing.assert_allclose(var, [1, 1, 2, 1, 2, 2, 3, 2], rtol=0.06)
  first, second = added[:4], added[4:]
  assert np.abs((first * second).mean(axis=1) / 9).max() < 0.03


@pytest.mark.parametrize("period, warmup", [(3, 0), (5, 3)])
def test_completion_leaves_the_noise_of_one_node(period, warmup):
  policy = tree.RestartPolicy(period, warmup=warmup, completion=True)
  for estimator, last in (("basic", 1.0), ("honaker", 4 / 7)):
    tx = _noise(6, restart=policy, estimator=estimator)
    added, _ = _added(tx, 4, jnp.zeros(30_000))
    sums = np.cumsum(added, axis=0) / 3.0
    # After round 4: one node of four leaves, and one fresh leaf.
    assert sums[3].var() == pytest.approx(last + 1, rel=0.05)
    before = sums[2].var()
    assert before == pytest.approx(2.0 if estimator == "basic" else 5 / 3, 0.05)


def test_restart_policies():
  policy = tree.RestartPolicy(4)
  assert policy.lengths(10) == (4, 4, 2)
  assert [t for t in range(12) if policy.starts_tree(t)] == [0, 4, 8]
  warm = tree.RestartPolicy(4, warmup=3)
  assert warm.lengths(10) == (3, 4, 3)
  assert [t for t in range(12) if warm.starts_tree(t)] == [0, 3, 7, 11]


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_the_host_knows_the_tree_of_a_round(warmup):
  policy = tree.RestartPolicy(4, warmup=warmup)
  tx = _noise(14, restart=policy)
  state, update = tx.init(PARAMS), jax.jit(tx.update)
  for t in range(14):
    _, state = update(PARAMS, state)
    number, first = policy.tree_of(t)
    assert (number, t - first + 1) == (int(state.tree_id), int(state.leaves))
    assert bool(policy.starts_tree(t)) == (t == first)
  with pytest.raises(ValueError, match="step=-1"):
    policy.tree_of(-1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_reset_behaviour_differs_by_momentum_alone(momentum):
  def path(behaviour):
    tx = noise.dp_ftrl(
      0.1,
      noise_multiplier=1.0,
      clip_norm=1.0,
      num_clients=10,
      key=KEY,
      max_rounds=8,
      momentum=momentum,
      restart=tree.RestartPolicy(3, behaviour=behaviour),
    )
    return np.cumsum(_added(tx, 8)[0]["b"], axis=0)

  kept, reset = path("residual"), path("reset")
  np.testing.assert_array_equal(kept[:3], reset[:3])
  assert np.allclose(kept, reset) == (momentum == 0)


def _path_as_the_paper_says(x, tx, beta, nesterov, behaviour):
  """Parameters by noisy prefix sums; trees of 3 rounds.

  `residual` (PyTorch's code): what a tree ended with stays in the sum, start
  and momentum are kept. `reset` (`restart_dp_tree` of TFF): the parameters
  become the start, sum and momentum zero.
  """
  added, _ = _added(tx, len(x), jnp.zeros(()))
  start = w = kept = total = v = 0.0
  path = []
  for t, noise_of_round in enumerate(added):
    if t % 3 == 0:
      kept, total = kept + total, 0.0
      if behaviour == "reset":
        start, kept, v = w, 0.0, 0.0
    total = total + x[t] + noise_of_round
    v = beta * v + kept + total
    w = start - 0.1 * ((beta * v + kept + total) if nesterov else v)
    path.append(w)
  return path


@pytest.mark.parametrize("behaviour", tree.BEHAVIOURS)
@pytest.mark.parametrize(
  "beta, nesterov", [(0.0, False), (0.9, False), (0.9, True)]
)
def test_restarts_are_those_of_the_official_codes(behaviour, beta, nesterov):
  restart = tree.RestartPolicy(3, behaviour=behaviour)
  shared = dict(key=KEY, max_rounds=8, restart=restart)
  tx = noise.dp_ftrl(
    0.1,
    noise_multiplier=1.0,
    clip_norm=1.0,
    num_clients=1,
    momentum=beta,
    nesterov=nesterov,
    **shared,
  )
  x = np.random.default_rng(0).normal(size=8).astype(np.float32)
  w, state, path = jnp.zeros(()), tx.init(jnp.zeros(())), []
  for g in x:
    updates, state = tx.update(jnp.asarray(g), state, w)
    w = optax.apply_updates(w, updates)
    path.append(float(w))
  plain = noise.add_tree_noise(1.0, 1.0, **shared)
  expected = _path_as_the_paper_says(x, plain, beta, nesterov, behaviour)
  np.testing.assert_allclose(path, expected, rtol=1e-4, atol=1e-5)


def test_no_noise_is_plain_sgd():
  tx = noise.dp_ftrl(
    0.1,
    noise_multiplier=0.0,
    clip_norm=1.0,
    num_clients=4,
    key=KEY,
    max_rounds=8,
    momentum=0.9,
    allow_no_privacy=True,
  )
  sgd = optax.sgd(0.1, momentum=0.9)
  w = {"x": jnp.array([1.0, -2.0])}
  a, b = tx.init(w), sgd.init(w)
  for _ in range(4):
    g = {"x": jnp.array([0.4, 1.0])}
    u, a = tx.update(jax.tree.map(lambda x: 4 * x, g), a, w)
    v, b = sgd.update(g, b)
    np.testing.assert_allclose(u["x"], v["x"], rtol=1e-6)


def test_the_clip_norm_is_read_where_a_tree_starts():
  tx = _noise(9, restart=tree.RestartPolicy(3))
  zeros = jnp.zeros(20_000)
  state, found = tx.init(zeros), []
  for norm in (1.0, 0.5, 1.0, 4.0, 4.0, 2.0):
    updates, state = tx.update(zeros, state, clip_norm=jnp.float32(norm))
    found.append(updates.std())
  assert found[0] == pytest.approx(1.5, rel=0.03)
  assert found[3] == pytest.approx(6.0, rel=0.03)
  np.testing.assert_allclose(found[1:3], [1.5, 1.5], rtol=0.03)
  # One that is larger than the noise of the tree was made for closes it.
  tx.update(zeros, tx.init(zeros), clip_norm=jnp.float32(9.0))
  state = state._replace(step=jnp.int32(7))
  noise.check_open({"state": state})
  for norm in (4.1, 1.0, 1.0):
    updates, state = tx.update(zeros, state, clip_norm=jnp.float32(norm))
    assert np.isnan(updates).all()
  with pytest.raises(noise.Closed, match="closed in round 7"):
    noise.check_open({"state": state})


@pytest.mark.parametrize("kind", ["matrix", "secure"])
def test_noise_of_one_size_refuses_a_norm_that_can_change(kind):
  shared = {"key": KEY, "max_rounds": 4}
  if kind == "matrix":
    tx = noise.add_matrix_noise(matrix.identity(), 1.0, 2.0, **shared)
  else:
    tx = noise.add_tree_noise(
      1.0, 2.0, estimator="basic", secure=True, grid=0.1, **shared
    )
  state = tx.init(PARAMS)
  tx.update(PARAMS, state, clip_norm=2.0)
  with pytest.raises(ValueError, match="clip_norm=2.5"):
    tx.update(PARAMS, state, clip_norm=2.5)
  with pytest.raises(ValueError, match="can change is not allowed"):
    tx.update(PARAMS, state, clip_norm=jnp.float32(1.0))


def test_arrays_whose_paths_share_a_hash_are_refused(monkeypatch):
  monkeypatch.setattr(keys, "path_hash", lambda path: 7)
  with pytest.raises(ValueError, match="'a/kernel' and 'b'"):
    _noise().init(PARAMS)


def test_noise_of_arrays_leaves_and_trees_is_independent():
  num = 40_000
  params = {"a": jnp.zeros(num), "b": jnp.zeros(num)}
  tx = _noise(8, restart=tree.RestartPolicy(4), estimator="basic")
  added, _ = _added(tx, 8, params)
  sums = {
    n: np.concatenate([np.cumsum(x[:4], 0), np.cumsum(x[4:], 0)])
    for n, x in added.items()
  }
  # N_1, N_2, N_4 and N_3 - N_2 of both arrays in both trees.
  rows = [
    x
    for s in sums.values()
    for t in (0, 4)
    for x in (s[t], s[t + 1], s[t + 3], s[t + 2] - s[t + 1])
  ]
  found = np.corrcoef(np.stack(rows))
  np.testing.assert_allclose(found, np.eye(len(rows)), atol=0.025)


def test_closed_after_the_last_round():
  tx = _noise(3)
  added, state = _added(tx, 4)
  assert np.isfinite(added["b"][:3]).all() and np.isnan(added["b"][3]).all()
  with pytest.raises(noise.Closed, match="round 3 .*max_rounds=3"):
    noise.check_rounds(state, 3)
  with pytest.raises(noise.Closed, match="closed in round 3"):
    noise.check_open(state)


def test_other_keys_other_noise_and_fingerprints():
  a, b = keys.from_entropy(), keys.from_entropy()
  assert keys.fingerprint(a) != keys.fingerprint(b)
  assert len(keys.fingerprint(a)) == 16
  one, _ = _added(_noise(key=a), 1)
  two, _ = _added(_noise(key=b), 1)
  assert not np.array_equal(one["b"], two["b"])


@pytest.mark.parametrize(
  "change, words",
  [
    ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
    ({"noise_multiplier": 0.0}, "allow_no_privacy"),
    ({"clip_norm": 0.0}, "clip_norm=0.0"),
    ({"max_rounds": 0}, "max_rounds=0"),
    ({"num_clients": 0}, "num_clients=0"),
    ({"momentum": 1.0}, "momentum=1.0"),
    ({"nesterov": True}, "nesterov=True"),
    ({"mechanism": "trees"}, "mechanism='trees'"),
    ({"estimator": "full"}, "estimator='full'"),
    ({"key": jax.random.PRNGKey(0)}, "typed key"),
    ({"key": jax.random.key(0, impl="rbg")}, "typed key"),
  ],
)
def test_mistakes_are_named(change, words):
  settings = {
    "noise_multiplier": 1.0,
    "clip_norm": 1.0,
    "num_clients": 10,
    "key": KEY,
    "max_rounds": 8,
  }
  with pytest.raises(ValueError, match=words):
    noise.dp_ftrl(0.1, **{**settings, **change})


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"period": 0}, "period=0"),
    ({"period": 4, "warmup": 4}, "warmup=4"),
    ({"period": 4, "behaviour": "other"}, "behaviour='other'"),
  ],
)
def test_policies_that_are_none(settings, words):
  with pytest.raises(ValueError, match=words):
    tree.RestartPolicy(**settings)


def test_integers_have_no_noise():
  with pytest.raises(ValueError, match="'n' of dtype int32"):
    _noise().init({"n": jnp.zeros(3, jnp.int32)})


def test_the_grid_keeps_sums_and_noise_whole():
  grid = 0.125
  tx = noise.add_tree_noise(
    4.0,
    1.0,
    key=KEY,
    max_rounds=8,
    estimator="basic",
    secure=True,
    grid=grid,
  )
  update = {"w": jnp.linspace(-1, 1, 50_000)}
  onto = noise.quantize(update, grid, key=jax.random.key(3))
  np.testing.assert_array_equal(np.round(onto["w"] / grid), onto["w"] / grid)
  assert float(jnp.mean(onto["w"] - update["w"])) == pytest.approx(0, abs=2e-3)
  assert float(jnp.abs(onto["w"] - update["w"]).max()) < grid
  state, sums = tx.init(update), 0.0
  for _ in range(4):
    noisy, state = tx.update(onto, state)
    cells = np.asarray(noisy["w"]) / grid
    np.testing.assert_array_equal(np.round(cells), cells)
    sums = sums + np.asarray(noisy["w"] - onto["w"])
  assert sums.std() == pytest.approx(4.0, rel=0.02)  # N_4 is one node
  with pytest.raises(ValueError, match="basic"):
    noise.add_tree_noise(1.0, 1.0, key=KEY, max_rounds=8, secure=True, grid=0.1)
