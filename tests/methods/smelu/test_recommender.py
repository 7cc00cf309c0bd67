"""The click model: hashing, embeddings, loss, sharding."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from locojax.core import metrics, trees
from locojax.methods.smelu import recommender
from locojax.train import sharding, steps

SIZES = (5, 3, 40)


def _chi_square(counts) -> float:
  """Standardised chi-square of counts against equal shares; about N(0, 1)."""
  counts = np.asarray(counts, np.float64).ravel()
  expected = counts.sum() / counts.size
  statistic = np.sum((counts - expected) ** 2) / expected
  return (statistic - (counts.size - 1)) / (2 * (counts.size - 1)) ** 0.5


@pytest.mark.parametrize("num_buckets", [7, 64, 1000])
@pytest.mark.parametrize(
  "pattern",
  [
    lambda i: i,
    lambda i: i * 64,
    lambda i: i * 1000,
    lambda i: i << 15,
    lambda i: 2**31 - 1 - i,
    lambda i: i**2,
  ],
)
@pytest.mark.parametrize("salt", [0, 25])
def test_hashes_are_uniform(pattern, num_buckets, salt):
  ids = pattern(np.arange(40_000, dtype=np.int64))
  out = recommender.hash_ids(ids, salt=salt, num_buckets=num_buckets)
  assert out.dtype == jnp.int32 and out.shape == ids.shape
  assert int(out.min()) >= 0 and int(out.max()) < num_buckets
  counts = np.bincount(out, minlength=num_buckets)
  assert abs(_chi_square(counts)) < 5


def test_salts_give_unrelated_hashes():
  ids = np.arange(200_000)
  a, b = (
    np.asarray(recommender.hash_ids(ids, salt=s, num_buckets=16))
    for s in (3, 4)
  )
  assert abs(_chi_square(np.bincount(16 * a + b, minlength=256))) < 5
  same_a = a[:-1] == a[1:]
  assert abs(np.mean(b[:-1][same_a] == b[1:][same_a]) - 1 / 16) < 0.01


def _reference_hash(i: int, salt: int, num_buckets: int) -> int:
  """The formula of the docstring in Python's integers."""

  def mix(x):
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
    return x ^ (x >> 16)

  seed = mix((salt + 0x9E3779B9) % 2**32)
  return mix(mix((i + seed) % 2**32)) % num_buckets


def test_hash_is_the_formula_on_the_low_32_bits():
  ids = np.array([0, 1, 77, 2**31 - 1, 2**32 - 1, 2**40 + 5, -1])
  out = recommender.hash_ids(ids, salt=9, num_buckets=10**6 + 3)
  expected = [_reference_hash(int(i) % 2**32, 9, 10**6 + 3) for i in ids]
  assert out.tolist() == expected
  hashed = jax.jit(recommender.hash_ids)(
    jnp.arange(9), salt=2, num_buckets=jnp.int32(50)
  )
  np.testing.assert_array_equal(
    hashed, recommender.hash_ids(range(9), salt=2, num_buckets=50)
  )


@pytest.mark.parametrize(
  ("ids", "num_buckets", "words"),
  [([1.5], 3, "must be integers"), ([1], 0, "num_buckets=0")],
)
def test_bad_hash_arguments(ids, num_buckets, words):
  with pytest.raises(ValueError, match=words):
    recommender.hash_ids(ids, salt=0, num_buckets=num_buckets)


def _tower(ids, x=None, **options):
  """Output, table, and rows of a tower for ids and numeric features."""
  tower = recommender.EmbeddingTower(SIZES, dim=4, **options)
  ids = jnp.asarray(ids)
  out, variables = jax.jit(tower.init_with_output)(jax.random.key(0), ids, x)
  table = variables["params"]["table"]
  return np.asarray(out), np.asarray(table), tower.rows(ids)


def test_each_field_reads_its_own_rows():
  ids = [[0, 0, 0], [4, 2, 39], [1, 1, 7]]
  out, table, rows = _tower(ids)
  assert table.shape == (recommender.ROW_MULTIPLE, 4)
  np.testing.assert_array_equal(rows, [[0, 5, 8], [4, 7, 47], [1, 6, 15]])
  np.testing.assert_array_equal(out, table[np.asarray(rows)].reshape(3, -1))


def test_empty_slots_and_unknown_ids_give_zeros():
  out, table, rows = _tower([[-1, 3, 5], [5, 2, 40], [0, -7, 1000]])
  np.testing.assert_array_equal(rows, [[-1, -1, 13], [-1, 7, -1], [0, -1, -1]])
  out = out.reshape(3, 3, 4)
  np.testing.assert_array_equal(out[np.asarray(rows) < 0], 0)
  np.testing.assert_array_equal(out[1, 1], table[7])


def test_hashed_fields_take_any_id_and_stay_in_their_rows():
  ids = np.random.default_rng(0).integers(0, 2**31 - 1, (500, 3))
  ids[:, 1] %= 3
  ids[0] = -1
  *_, rows = _tower(ids, hashing=(True, False, True))
  rows = np.asarray(rows)
  assert (rows[0] == -1).all()
  assert set(rows[1:, 0]) == set(range(5)) and set(rows[1:, 1]) == {5, 6, 7}
  assert rows[1:, 2].min() >= 8 and rows[1:, 2].max() < 48
  expected = recommender.hash_ids(ids[1:, 2], salt=2, num_buckets=40) + 8
  np.testing.assert_array_equal(rows[1:, 2], expected)


@pytest.mark.parametrize("combiner", ["sum", ("mean", "mean", "mean")])
def test_slots_of_multi_hot_fields_are_combined(combiner):
  ids = [[1, 0, -1, 2, 3, 4, 5], [2, -1, -1, -1, 39, -1, 0]]
  out, table, _ = _tower(ids, widths=(1, 3, 3), combiner=combiner)
  reduce = np.sum if combiner == "sum" else np.mean
  zero = np.zeros(4)
  expected = [
    [table[1], reduce(table[[5, 7]], 0), reduce(table[[11, 12, 13]], 0)],
    [table[2], zero, reduce(table[[47, 8]], 0)],
  ]
  np.testing.assert_allclose(
    out.reshape(2, 3, 4), np.asarray(expected), rtol=1e-6
  )


@pytest.mark.parametrize("numeric", ["identity", "log1p"])
def test_numeric_features_follow_the_embeddings(numeric):
  x = np.array([[0.0, -3.0], [1e6, 0.5]], np.float32)
  out, *_ = _tower([[0, 0, 0], [1, 1, 1]], x, numeric=numeric)
  expected = np.sign(x) * np.log1p(np.abs(x)) if numeric == "log1p" else x
  np.testing.assert_allclose(out[:, 12:], expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"combiner": "max"}, "combiner='max'"),
    ({"combiner": ("sum", "mean")}, "2 entries for 3 fields"),
    ({"hashing": (True,)}, "1 entries for 3 fields"),
    ({"widths": (1, 0, 1)}, "widths=0"),
    ({"widths": (1, 2, 1)}, r"\(3,\) and sum of widths has shape \(4,\)"),
    ({"vocab_sizes": (4, 0, 2)}, "vocab_sizes=0"),
    ({"vocab_sizes": (2**30, 2**30, 7)}, "below 2.31"),
    ({"dim": 0}, "dim=0"),
    ({"numeric": "log"}, "numeric='log'.*'log1p'"),
  ],
)
def test_bad_settings_are_named(options, words):
  tower = recommender.EmbeddingTower(**{"vocab_sizes": SIZES, **options})
  with pytest.raises(ValueError, match=words):
    tower.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))


def _batch(num=16, sizes=SIZES, num_numeric=2, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "categorical": rng.integers(0, sizes, (num, len(sizes)), np.int32),
    "numeric": rng.normal(size=(num, num_numeric)).astype(np.float32),
    "label": rng.integers(0, 2, num).astype(np.float32),
    "mask": np.ones(num, np.float32),
  }


def _model(**options):
  model = recommender.CTRModel(SIZES, **{"dim": 4, "hidden": (8, 6), **options})
  init = jax.jit(lambda key: recommender.init(model, key=key, num_numeric=2))
  return model, *init(jax.random.key(0))


@pytest.mark.parametrize("normalization", [None, "layer", "weight", "batch"])
def test_loss_is_the_log_loss_of_the_predictions(normalization):
  model, params, state = _model(normalization=normalization)
  batch = _batch()
  p = jax.jit(recommender.make_predict(model))(params, state, batch)
  assert p.shape == (16,) and p.dtype == jnp.float32
  loss_fn = recommender.make_loss(model, train=False)
  loss, (out, new_state) = jax.jit(loss_fn)(params, state, batch, None)
  p, y = np.asarray(p, np.float64), batch["label"]
  expected = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  found = metrics.values(out)
  np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
  np.testing.assert_allclose(found["prediction"], p.mean(), rtol=1e-5)
  np.testing.assert_allclose(found["label"], y.mean(), rtol=1e-6)
  np.testing.assert_allclose(found["accuracy"], np.mean((p > 0.5) == y))
  jax.tree.map(np.testing.assert_array_equal, state, new_state)


@pytest.mark.parametrize("normalization", ["layer", "weight", "batch"])
def test_masked_examples_count_nowhere(normalization):
  model, params, state = _model(normalization=normalization)
  value = jax.value_and_grad(recommender.make_loss(model), has_aux=True)
  value = jax.jit(value)
  batch = _batch()
  masked = {k: v.copy() for k, v in batch.items()}
  masked["mask"][10:] = 0
  masked["numeric"][10:] = 1e4
  masked["label"][10:] = np.nan
  kept = {k: v[:10] for k, v in batch.items()}
  key = jax.random.key(0)
  found, expected = (value(params, state, b, key) for b in (masked, kept))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    found,
    expected,
  )


def test_rows_that_no_example_reads_get_no_gradient():
  model, params, state = _model()
  batch = _batch(num=3)
  grads = jax.jit(jax.grad(recommender.make_loss(model), has_aux=True))
  grads = grads(params, state, batch, jax.random.key(0))[0]
  table = np.asarray(grads["embedding"]["table"])
  read = np.unique(recommender.EmbeddingTower(SIZES).rows(batch["categorical"]))
  rest = np.setdiff1d(np.arange(len(table)), read)
  assert (table[rest] == 0).all() and (table[read] != 0).any(axis=1).all()


def test_batch_norm_updates_its_state_and_couples_examples():
  model, params, state = _model(normalization="batch")
  loss_fn = recommender.make_loss(model)
  run = jax.jit(loss_fn)
  _, (_, new) = run(params, state, _batch(), jax.random.key(0))
  before, after = map(trees.flatten, (state, new))
  assert list(before) == list(after)
  assert all((before[k] != after[k]).any() for k in before)
  assert steps.is_coupled(loss_fn)
  for uncoupled in (
    recommender.make_loss(model, train=False),
    recommender.make_loss(_model()[0]),
  ):
    assert not steps.is_coupled(uncoupled)


def test_dropout_follows_the_key_and_only_in_training():
  model, params, state = _model(dropout_rate=0.5, hidden=(64, 32))
  batch = _batch()
  losses = {
    train: jax.jit(recommender.make_loss(model, train=train))
    for train in (True, False)
  }

  def run(train, seed):
    return float(losses[train](params, state, batch, jax.random.key(seed))[0])

  assert run(True, 0) == run(True, 0) != run(True, 1)
  assert run(False, 0) == run(False, 1)


def test_compute_dtype_leaves_parameters_and_logits_in_float32():
  model, params, state = _model(dtype=jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  batch = _batch()
  logits = jax.eval_shape(
    model.apply, {"params": params}, batch["categorical"], batch["numeric"]
  )
  assert logits.dtype == jnp.float32
  narrow, wide = (
    jax.jit(recommender.make_predict(m))(params, state, batch)
    for m in (model, _model()[0])
  )
  np.testing.assert_allclose(narrow, wide, atol=0.05)


class _Shift(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.relu(x + self.param("shift", nn.initializers.zeros, x.shape[-1:]))


def test_activation_may_be_a_module():
  _, params, _ = _model(activation=_Shift())
  shapes = {
    k: v.shape for k, v in trees.flatten(params).items() if "activation" in k
  }
  assert shapes == {
    "mlp/activation_0/shift": (8,),
    "mlp/activation_1/shift": (6,),
  }


def test_replicas_by_vmap_are_separate_models():
  model, *_ = _model(hashing=True)
  keys = jax.random.split(jax.random.key(3), 3)
  one = jax.jit(lambda key: recommender.init(model, key=key, num_numeric=2))
  params, state = jax.vmap(one)(keys)
  batch = _batch()
  predict = jax.jit(recommender.make_predict(model))
  together = jax.vmap(predict, in_axes=(0, 0, None))(params, state, batch)
  for i, key in enumerate(keys):
    np.testing.assert_allclose(
      together[i], predict(*one(key), batch), rtol=1e-5, atol=1e-6
    )


def _training(model):
  tx = optax.adagrad(0.05, initial_accumulator_value=0.1)

  def init(key):
    params, model_state = recommender.init(model, key=key, num_numeric=2)
    return steps.init_state(params, tx, key=key, model_state=model_state)

  return init, steps.from_loss(recommender.make_loss(model), tx)


def _collectives(text: str) -> dict[str, list[tuple[int, ...]]]:
  """Shapes of the results of the collectives in compiled code, by name."""
  names = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
  out: dict[str, list[tuple[int, ...]]] = {}
  for result, name in re.findall(rf"= (.*?) ({names})(?:-start)?\(", text):
    shapes = re.findall(r"\w+\[([\d,]*)\]", result)
    out.setdefault(name, []).extend(
      tuple(int(n) for n in shape.split(",") if n) for shape in shapes
    )
  return out


@pytest.mark.parametrize(
  ("rules", "ways"),
  [(recommender.RULES, 4), (recommender.RULES_ALL_DEVICES, 8)],
)
def test_sharded_table_is_never_gathered_and_changes_nothing(rules, ways):
  sizes, rows = (3000, 7, 1000), 4096
  model = recommender.CTRModel(
    sizes, dim=4, hidden=(8,), hashing=(True, False, True)
  )
  init, step = _training(model)
  state, batch = jax.jit(init)(jax.random.key(0)), _batch(32, sizes)
  assert state.params["embedding"]["table"].shape == (rows, 4)
  expected, expected_metrics = jax.jit(step)(state, batch)
  mesh = sharding.make_mesh({"data": 2, "model": 4})
  layout = sharding.state_shardings(state, mesh, rules)
  spread = jax.device_put(
    batch, sharding.batch_shardings(batch, mesh, jax.P("data"))
  )
  with jax.set_mesh(mesh):
    jitted = jax.jit(step, out_shardings=(layout, None))
    compiled = jitted.lower(jax.device_put(state, layout), spread).compile()
    out, out_metrics = compiled(jax.device_put(state, layout), spread)
  for tree in (out.params, out.opt_state):
    table = next(
      x for path, x in trees.flatten(tree).items() if path.endswith("table")
    )
    assert table.addressable_shards[0].data.shape == (rows // ways, 4)
  moved = _collectives(compiled.as_text())
  assert moved
  for name, shapes in moved.items():
    assert all(rows not in shape for shape in shapes), (name, shapes)
    if ways == 8:  # nor is the gradient of its rows summed over devices
      assert all(rows // ways not in shape for shape in shapes), (name, shapes)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    (out.params, out.opt_state, out_metrics),
    (expected.params, expected.opt_state, expected_metrics),
  )


def test_criteo_preset_has_the_stated_size_and_divides():
  model = recommender.CTRModel(**recommender.PRESETS["criteo"])
  num_numeric = recommender.NUM_NUMERIC_CRITEO
  params, _ = jax.eval_shape(
    lambda: recommender.init(
      model, key=jax.random.key(0), num_numeric=num_numeric
    )
  )
  assert len(model.vocab_sizes) == 26
  rows, dim = params["embedding"]["table"].shape
  assert 33.7e6 <= rows < 33.7e6 + recommender.ROW_MULTIPLE and dim == 16
  assert rows % 256 == 0
  assert params["mlp"]["layer_0"]["kernel"].shape == (26 * 16 + 13, 1024)
  for name in ("small", "base"):
    recommender.CTRModel(SIZES, **recommender.PRESETS[name])
