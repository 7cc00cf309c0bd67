import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import toy

from locojax.core import metrics
from locojax.data import pipeline
from locojax.methods import locoprop
from locojax.nn import mlp
from locojax.train import experiment, loop, replicas, sharding, steps

R, B, N, D, K = 4, 8, 40, 6, 3
KEY = jax.random.key(5)
ALL = replicas.SOURCES
RNG = np.random.default_rng(0)
DATA = {
  "x": RNG.normal(size=(N, D)).astype(np.float32),
  "label": RNG.integers(0, K, N).astype(np.int32),
}
PARTS = ("params", "model_state", "opt_state")


class Net(nn.Module):
  """Two dense layers, with dropout between them."""

  rate: float

  @nn.compact
  def __call__(self, x):
    x = jnp.tanh(nn.Dense(7, name="one")(x))
    x = nn.Dropout(self.rate, deterministic=not self.has_rng("dropout"))(x)
    return nn.Dense(K, name="two")(x)


NET = Net(0.5)


def _loss(params, model_state, batch, key):
  logits = NET.apply({"params": params}, batch["x"], rngs={"dropout": key})
  each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
  right = metrics.accuracy(logits, batch["label"])
  return each.mean(), ({"accuracy": right}, model_state)


def _batches(seed):
  return pipeline.array_batches(DATA, batch_size=B, seed=seed, window=20)


def _predict(state, batch):
  return NET.apply({"params": state.params}, batch["x"])


def _make(kind="adam", **changes):
  """An experiment on the net, with one of several kinds of step."""
  tx = optax.adam(1e-2)
  step = steps.from_loss(_loss, tx)
  after = lambda state: state
  if kind == "ema":
    step, after = steps.with_ema(step, decay=0.9), steps.init_ema
  if kind == "locoprop":
    tx = locoprop.locoprop(
      1e-2, transfers={"one": "tanh", ".*": "softmax"}, num_local_iters=2
    )
    step = locoprop.make_step(_loss, tx)

  def init(key):
    params = NET.init(key, DATA["x"][:1])["params"]
    return after(steps.init_state(params, tx, key=jax.random.fold_in(key, 9)))

  settings = {
    "init": init,
    "step": step,
    "batches": _batches(1),
    "num_steps": 4,
    "batch_shapes": jax.eval_shape(lambda: next(_batches(1)(0))),
    "examples_per_step": B,
  }
  return experiment.Experiment(**{**settings, **changes})


def _settings(*vary):
  """The settings that these sources need."""
  out = {"vary": set(vary), "batches": _batches, "order_seed": 2}
  return {**out, "num_classes": K} if "labels" in vary else out


def _several(made, *vary, **settings):
  return replicas.from_experiment(
    made, num_replicas=R, **{**_settings(*vary), **settings}
  )


def _run(made, num_steps=3):
  """The states from the first to the last, and the last metrics."""
  states, step = [jax.jit(made.init)(KEY)], jax.jit(made.step)
  data, values = made.batches(0), None
  for _ in range(num_steps):
    state, values = step(states[-1], next(data))
    states.append(state)
  return states, values


def _last(made, num_steps=3):
  return _run(made, num_steps)[0][-1]


def _apart(state, parts=PARTS):
  """Whether each replica differs from replica 0 in these parts."""
  tree = {name: getattr(state, name) for name in parts}
  leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
  return [any((x[r] != x[0]).any() for x in leaves) for r in range(1, R)]


def _slice(state, r):
  return state.replace(
    **{n: jax.tree.map(lambda x: x[r], getattr(state, n)) for n in PARTS},
    key=state.key[r],
  )


@pytest.mark.parametrize("how", replicas.HOW)
def test_with_nothing_to_vary_all_are_equal(how):
  state = _last(_several(_make(), how=how))
  assert _apart(state) == [False] * (R - 1)
  predict = replicas.predictor(_predict, how=how)
  out = predict(state, pipeline.padded_batches(DATA, 16))
  assert out.shape == (R, N, K)
  np.testing.assert_array_equal(out, np.broadcast_to(out[:1], out.shape))


@pytest.mark.parametrize("source", replicas.SOURCES)
def test_each_source_changes_what_it_should(source):
  made = _several(_make(), source)
  (start, after), _ = _run(made, 1)
  assert _apart(start) == [source == "init"] * (R - 1)
  # Two of the few orders of three labels may be equal.
  assert (any if source == "labels" else all)(_apart(after))
  keys = np.asarray(jax.random.key_data(start.key))
  streams = {"dropout": 0, "rounding": 1, "labels": 2}
  for name, i in streams.items():
    assert (len(np.unique(keys[:, i], axis=0)) == R) == (name == source)
  assert after.step.shape == () and int(after.step) == 1


def test_sources_do_not_depend_on_each_other():
  init = lambda *vary: jax.jit(_several(_make(), *vary).init)(KEY)
  both, plain = init("init", "dropout", "labels"), init()
  assert toy.bits(both.params) == toy.bits(init("init").params)
  assert (both.key[:, 0] == init("dropout").key[:, 0]).all()
  # Replica 0 is that of the shared sources.
  assert toy.bits(_slice(both, 0)) == toy.bits(_slice(plain, 0))
  alone = [
    next(replicas.single(_make(), replica=0, **_settings(*vary)).batches(0))
    for vary in ((), ("order",))
  ]
  np.testing.assert_array_equal(alone[0]["x"], alone[1]["x"])


def test_order_gives_each_replica_its_own_stream_of_batches():
  made = _several(_make(), "order")
  batch = next(made.batches(3))
  assert batch["x"].shape == (R, B, D)
  assert made.batch_shapes["label"].shape == (R, B)
  for r in range(R):
    alone = replicas.single(_make(), replica=r, **_settings("order"))
    np.testing.assert_array_equal(batch["x"][r], next(alone.batches(3))["x"])
  assert made.examples_per_step == R * B
  assert _several(_make()).batch_shapes["x"].shape == (B, D)


@pytest.mark.parametrize("ulps", [0.0, 8.0])
def test_rounding_noise_is_bounded_by_ulps(ulps):
  (start, plain), _ = _run(_several(_make()), 1)
  noisy = _last(_several(_make(), "rounding", rounding_ulps=ulps), 1)
  assert _apart(noisy, ["params"]) == [ulps > 0] * (R - 1)
  eps = np.finfo(np.float32).eps
  for a, b, c in zip(
    *(jax.tree.leaves(s.params) for s in (start, plain, noisy))
  ):
    noise = ulps * eps * np.abs(b - a)
    # One more unit, for the sum with the old weight is rounded.
    assert (np.abs(c - b) <= noise + (ulps > 0) * np.spacing(np.abs(b))).all()
  assert toy.bits(plain.opt_state) == toy.bits(noisy.opt_state)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding_noise_has_the_mean_of_its_formula(dtype):
  old, new = jnp.full(40_000, 1.0, dtype), jnp.full(40_000, 1.5, dtype)
  made = _make(
    init=lambda key: steps.init_state({"w": old}, optax.sgd(1.0), key=key),
    step=lambda s, b: (s.replace(step=s.step + 1, params={"w": new}), {}),
  )
  made = replicas.single(made, replica=3, vary={"rounding"}, rounding_ulps=0.5)
  state = _last(made, 1)
  gap = float(jnp.finfo(dtype).eps)
  moved = (np.asarray(state.params["w"], np.float64) - 1.5) / gap
  assert set(np.unique(moved)) == {-1.0, 0.0, 1.0}
  # The change is 0.5 ulp of an update of half the weight, times U(-1, 1).
  np.testing.assert_allclose(np.abs(moved).mean(), 0.125, atol=0.01)
  np.testing.assert_allclose(moved.mean(), 0.0, atol=0.01)


def test_labels_are_renumbered_and_predictions_brought_back():
  seen = []

  def step(state, batch):
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), batch["label"])
    return state.replace(step=state.step + 1), {"loss": jnp.float32(0)}

  labels = np.array([0, 1, 2, -1, 7, 1, 1, 0], np.int32)
  made = _make(step=step, batches=lambda start: iter([{"label": labels}]))
  made = dataclasses.replace(
    made, batch_shapes={"label": jax.ShapeDtypeStruct((8,), jnp.int32)}
  )
  made = replicas.from_experiment(
    made, num_replicas=R, vary={"labels"}, num_classes=K, how="map"
  )
  state = _last(made, 1)
  jax.effects_barrier()
  orders = replicas.label_permutations(state, num_classes=K)
  assert len(np.unique(orders, axis=0)) > 1
  for order in orders:
    expected = np.where((labels >= 0) & (labels < K), order[labels % K], labels)
    assert any((x == expected).all() for x in seen)
  one_hot = np.eye(K)[orders[:, [2, 0, 1]]]  # what a perfect replica says
  back = replicas.unpermute(one_hot, orders)
  np.testing.assert_array_equal(back.argmax(-1), [[2, 0, 1]] * R)


def _assert_close(first, second):
  """Equal but for the last bits of float32 sums, a few steps on."""
  for name in PARTS:
    one, two = getattr(first, name), getattr(second, name)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
      np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-7)
  assert toy.bits(first.key) == toy.bits(second.key)


@pytest.mark.parametrize(
  "kind, how, vary",
  [
    ("adam", "map", ALL),
    pytest.param("ema", "map", ("init",), marks=pytest.mark.slow),
    pytest.param("adam", "vmap", ("init",), marks=pytest.mark.slow),
    ("ema", "vmap", ("order", "dropout", "rounding")),
    ("locoprop", "vmap", ALL),
    pytest.param("locoprop", "map", ("dropout",), marks=pytest.mark.slow),
  ],
)
def test_replicas_are_single_runs(kind, how, vary):
  made = _make(kind)
  (*_, together), values = _run(_several(made, *vary, how=how))
  alone = _last(replicas.single(made, replica=2, **_settings(*vary)))
  _assert_close(alone, _slice(together, 2))
  # The body of `map` is the very program of one replica. LocoProp's own loop
  # within that loop is fused otherwise, by one unit in the last place.
  if how == "map" and kind != "locoprop":
    assert toy.bits(alone) == toy.bits(_slice(together, 2))
  assert values["loss"].total.shape == ()
  if "accuracy" in values:
    assert float(values["accuracy"].weight) == R * B


def test_slices_serve_where_the_plain_state_does():
  made = _make()
  state = _last(_several(made, "init", "dropout", how="map"))
  plain = replicas.slice_state(state, 2)
  shapes = jax.eval_shape(made.init, KEY)
  same = lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype)
  assert jax.tree.all(jax.tree.map(same, plain, shapes))
  assert (plain.key == state.key[2, 0]).all() and int(plain.step) == 3
  assert toy.bits(plain.params) == toy.bits(_slice(state, 2).params)
  each = replicas.predictor(_predict)(state, [DATA])
  np.testing.assert_allclose(each[2], _predict(plain, DATA), rtol=1e-5)


def _fit(made, folder, **settings):
  settings = {"log_every": 2, "save_every": 2, "writers": (), **settings}
  return loop.fit(made, folder, key=KEY, **settings)


@pytest.mark.parametrize(
  "vary, rules", [(ALL, ()), ((), (("kernel", jax.P("model")),))]
)
def test_sharded_is_unsharded(tmp_path, vary, rules):
  made = dataclasses.replace(_make(), rules=rules)
  make = functools.partial(
    replicas.from_experiment, made, num_replicas=8, **_settings(*vary)
  )
  expected = _fit(make(), tmp_path / "one", mesh=_one_device())
  mesh = sharding.make_mesh({"data": 8})
  state = _fit(make(replica_axis="data"), tmp_path / "eight", mesh=mesh)
  for leaf in jax.tree.leaves((state.params, state.opt_state)):
    assert leaf.sharding.shard_shape(leaf.shape)[0] == 1
  _assert_close(state, expected)
  for a, b in zip(toy.rows(tmp_path / "eight"), toy.rows(tmp_path / "one")):
    assert a == pytest.approx(b, rel=1e-5)
  predict = replicas.predictor(_predict)
  batches = list(pipeline.padded_batches(DATA, 16))
  np.testing.assert_allclose(
    predict(state, batches), predict(expected, batches), atol=1e-5
  )


def test_rules_of_the_experiment_hold_for_each_replica():
  made = dataclasses.replace(
    _make(), rules=(("one/kernel", jax.P("data", None)), (".*", jax.P()))
  )
  mesh = sharding.make_mesh({"data": 2, "model": 4})
  for axis in (None, "data", "model"):
    several = _several(made, "order", replica_axis=axis)
    state = jax.eval_shape(several.init, KEY)
    found = sharding.state_shardings(state, mesh, several.rules)
    inner = None if axis == "data" else "data"
    moments = found.opt_state[0].mu["one"]["kernel"]
    for s in (found.params["one"]["kernel"], moments):
      assert s.spec == jax.P(axis, inner, None)
    assert found.params["two"]["kernel"].spec == jax.P(axis)
    assert found.opt_state[0].count.spec == jax.P(axis)
    assert several.batch_spec == jax.P(axis, inner)


def test_a_run_resumes_bitwise_and_its_log_has_numbers(tmp_path):
  made = _make(evals={"norm": experiment.Eval(2, _norm)})
  vary = ("init", "order", "dropout", "rounding")
  make = functools.partial(_several, made, *vary, each=True)
  whole = _fit(make(), tmp_path / "whole", mesh=_one_device())
  part = dataclasses.replace(make(), num_steps=2)
  _fit(part, tmp_path / "parts", mesh=_one_device())
  resumed = _fit(make(), tmp_path / "parts", mesh=_one_device())
  assert toy.bits(resumed) == toy.bits(whole)
  rows = toy.rows(tmp_path / "whole")
  last = {k: v for row in rows if row["step"] == 4 for k, v in row.items()}
  for name in ("train/loss", "train/accuracy", "norm/kernel"):
    start, end = name.split("/")
    each = [last[f"{start}/replica_{r}/{end}"] for r in range(R)]
    np.testing.assert_allclose(last[name], np.mean(each), rtol=1e-6)
    assert len(set(each)) > 1


def _norm(state):
  return {"kernel": float(jnp.linalg.norm(state.params["one"]["kernel"]))}


def _one_device():
  return sharding.make_mesh({}, jax.devices()[:1])


def test_a_step_of_ones_own_needs_no_advance():
  vary = {"init", "dropout", "rounding"}
  several = replicas.from_experiment(toy.make(), num_replicas=3, vary=vary)
  state = _last(several, 2)
  alone = _last(replicas.single(toy.make(), replica=1, vary=vary), 2)
  _assert_close(alone, _slice(state, 1))


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"vary": {"seed"}}, "vary='seed'.*'init', 'order', 'dropout'"),
    ({"vary": {"dropuot"}}, "did you mean 'dropout'"),
    ({"num_replicas": 0}, "num_replicas=0"),
    ({"vary": {"order"}}, "batches=None.*'order'"),
    ({"batches": _batches}, "order_seed=None"),
    ({"batches": _batches, "order_seed": -1}, "order_seed=-1"),
    ({"rounding_ulps": -1.0}, "rounding_ulps=-1.0"),
    ({"vary": {"labels"}}, "num_classes=None"),
    ({"vary": {"labels"}, "num_classes": 3, "label_name": "y"}, "'y'"),
    ({"vary": {"labels"}, "num_classes": 3, "label_name": "x"}, "float32"),
    ({"how": "pmap"}, "how='pmap'"),
    ({"replica_axis": "rows"}, "replica_axis='rows'"),
    ({"replica_axis": "data", "how": "map"}, "how='map'"),
  ],
)
def test_bad_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    replicas.from_experiment(
      _make(), **{"num_replicas": R, "vary": (), **settings}
    )


def test_bad_states():
  made = _make()
  with pytest.raises(ValueError, match="key has shape"):
    replicas.slice_state(made.init(KEY), 0)
  state = _several(made).init(KEY)
  with pytest.raises(ValueError, match="replica=4"):
    replicas.slice_state(state, 4)
  with pytest.raises(ValueError, match="batches are empty"):
    replicas.predictor(_predict)(state, [])
  with pytest.raises(ValueError, match="ends"):
    replicas.unpermute(np.zeros((2, 5, 3)), np.zeros((2, 4)))
  evals = {"norm": experiment.Eval(1, _norm)}
  with pytest.raises(ValueError, match=r"evals=\['norm'\]"):
    _several(_make(evals=evals), "labels")
  with pytest.raises(ValueError, match="journal is not allowed"):
    _several(_make(journal=object()))


def test_vmap_of_an_mlp_is_bitwise():
  model = mlp.MLP((64, 32, 1))
  x = RNG.normal(size=(128, 24)).astype(np.float32)

  def loss_fn(params, model_state, batch, key):
    out = model.apply({"params": params}, batch["x"])
    return jnp.square(out[:, 0] - batch["y"]).mean(), ({}, model_state)

  tx = optax.adagrad(0.05)
  batch = {"x": x, "y": x.sum(1)}
  made = experiment.Experiment(
    init=lambda key: steps.init_state(
      model.init(key, x)["params"], tx, key=key
    ),
    step=steps.from_loss(loss_fn, tx),
    batches=lambda start: iter([batch] * (9 - start)),
    num_steps=9,
    batch_shapes=jax.eval_shape(lambda: batch),
  )
  several = replicas.from_experiment(made, num_replicas=R, vary={"init"})
  alone = _last(replicas.single(made, replica=3, vary={"init"}), 9)
  assert toy.bits(alone) == toy.bits(_slice(_last(several, 9), 3))
