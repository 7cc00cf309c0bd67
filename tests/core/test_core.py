"""The words that all rooms use: checks, trees, metrics, types, mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import arrays, checks, mesh, metrics, trees, types


@pytest.mark.parametrize(
  "check, value, allowed",
  [
    (checks.positive, 0, "above 0"),
    (checks.positive, float("nan"), "above 0"),
    (checks.positive, True, "above 0"),
    (checks.positive, "1", "above 0"),
    (checks.nonnegative, -1e-9, "0 or more"),
    (checks.nonnegative, float("inf"), "0 or more"),
    (checks.positive_int, 1.5, "integer"),
    (checks.positive_int, 0, "integer"),
    (checks.positive_int, True, "integer"),
    (checks.positive_int, np.True_, "integer"),
    (checks.nonnegative_int, -1, "integer, 0 or more"),
    (checks.boolean, 1, "True or False"),
    (checks.text, 3, "a text"),
    (checks.sizes, (2, 0), "each 1 or more"),
    (checks.sizes, "22", "each 1 or more"),
    (checks.sizes, 3, "each 1 or more"),
    (checks.float_dtype, "float33", "'bfloat16'"),
    (checks.float_dtype, "int32", "'bfloat16'"),
  ],
)
def test_checks_name_value_and_what_is_allowed(check, value, allowed):
  with pytest.raises(ValueError, match=f"size=.*{allowed}") as error:
    check("size", value)
  assert repr(value) in str(error.value)


def test_checks_return_the_value():
  assert checks.positive("x", 0.5) == 0.5
  assert checks.nonnegative("x", 0) == 0
  assert checks.positive_int("x", np.int64(3)) == 3
  assert checks.nonnegative_int("x", 0) == 0
  assert checks.int_in_range("x", 2, 1, 2) == 2
  assert checks.below("x", 0, 0, 1) == 0
  assert checks.between("x", 0.5, 0, 1) == 0.5
  assert checks.boolean("x", False) is False
  assert checks.text("x", "") == ""
  assert checks.sizes("x", [2, 3]) == (2, 3) and checks.sizes("x", ()) == ()
  assert checks.float_dtype("x", jnp.bfloat16) is jnp.bfloat16
  assert checks.float_dtype("x", None) is None
  assert checks.in_range("x", 1, 0, 1) == 1
  assert checks.one_of("x", "a", ("a", "b")) == "a"
  assert checks.lookup("x", "b", {"a": 1, "b": 2}) == 2
  assert checks.divisible("n", 6, "k", 3) == 6


def test_checks_of_choices_and_shapes():
  with pytest.raises(ValueError, match=r"\[0, 1\]"):
    checks.in_range("rate", 1.5, 0, 1)
  with pytest.raises(ValueError, match=r"an integer in \[1, 2\]"):
    checks.int_in_range("n", 3, 1, 2)
  with pytest.raises(ValueError, match=r"momentum=1 .*\[0, 1\)"):
    checks.below("momentum", 1, 0, 1)
  with pytest.raises(ValueError, match=r"delta=0 .*\(0, 1\)"):
    checks.between("delta", 0, 0, 1)
  with pytest.raises(ValueError, match="'alpha', 'beta'.*mean 'alpha'"):
    checks.one_of("name", "alhpa", ("alpha", "beta"))
  with pytest.raises(ValueError, match=r"a has shape \(2,\) and b .*\(3,\)"):
    checks.same_shape("a", (2,), "b", [3])
  with pytest.raises(ValueError, match="batch=7.*multiple of devices=2"):
    checks.divisible("batch", 7, "devices", 2)


TREE = {
  "a": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)},
  "b": [np.ones(1)],
}


def test_paths():
  flat = trees.flatten(TREE)
  assert list(flat) == ["a/bias", "a/kernel", "b/0"]
  assert trees.flatten_nested({"x/y": TREE["a"], "": {"z": 1}}).keys() == {
    "x/y/bias",
    "x/y/kernel",
    "z",
  }
  assert trees.mask(TREE, "kernel$") == {
    "a": {"kernel": True, "bias": False},
    "b": [False],
  }
  assert trees.matches("a/kernel", ("x", "^a/"))
  doubled = trees.map_with_path(
    lambda p, x, y: x + y if p == "b/0" else x, TREE, TREE
  )
  assert doubled["b"][0] == 2 and doubled["a"]["kernel"][0, 0] == 1
  with pytest.raises(ValueError, match="'a/b'"):
    trees.flatten({"a": {"b": 1}, "a/b": 2})


def test_sizes():
  tree = {**TREE, "key": jax.random.key(0)}
  assert trees.num_params(TREE) == 10
  assert trees.num_bytes(tree) == 80


def test_per_example_norm():
  rng = np.random.default_rng(0)
  tree = {"a": rng.normal(size=(5, 2, 3)), "b": rng.normal(size=(5, 4))}
  flat = np.concatenate([tree["a"].reshape(5, -1), tree["b"]], axis=1)
  norms = trees.per_example_norm(jax.tree.map(jnp.asarray, tree))
  np.testing.assert_allclose(norms, np.linalg.norm(flat, axis=1), rtol=1e-6)
  assert norms.dtype == jnp.float32


def test_masked_is_removed():
  values = np.array([[1.0, 2.0], [np.nan, 5.0], [3.0, 4.0]], np.float32)
  keep = np.array([1, 0, 1])
  masked = metrics.mean(values, keep)
  removed = metrics.mean(values[keep == 1])
  assert masked.value() == removed.value() == 2.5
  assert masked.weight == removed.weight == 4
  # The gradient of what is masked is zero, not NaN.
  grad = jax.grad(lambda v: metrics.mean(v, keep).value())(values)
  np.testing.assert_array_equal(grad[1], 0.0)


def test_merged_parts_are_the_whole():
  rng = np.random.default_rng(0)
  values, weights = rng.random(11, np.float32), rng.random(11, np.float32)
  parts = [
    {"loss": metrics.mean(values[i], weights[i])}
    for i in (slice(0, 2), slice(2, 7), slice(7, 11))
  ]
  total = metrics.merge(metrics.merge(*parts[:2]), parts[2])
  expected = np.average(values, weights=weights)
  np.testing.assert_allclose(metrics.values(total)["loss"], expected, rtol=1e-6)
  with pytest.raises(ValueError, match=r"\['loss'\] and \['other'\]"):
    metrics.merge(parts[0], {"other": parts[1]["loss"]})


def test_values_of_scalars_and_of_nothing():
  empty = metrics.mean(np.ones(3), np.zeros(3))
  out = metrics.values({"x": jnp.float32(2.0), "none": empty})
  assert out["x"] == 2.0 and np.isnan(out["none"])


def test_accuracies():
  logits = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.3], [0.2, 0.3, 0.1]])
  labels = np.array([1, 2, 0])
  assert metrics.accuracy(logits, labels).value() == pytest.approx(1 / 3)
  assert metrics.accuracy(logits, [1, 2, 7], [1, 1, 0]).value() == 0.5
  top = metrics.top_k_accuracy(logits, [1, 2, 2], 2)
  assert top.value() == pytest.approx(2 / 3)


def _state():
  return types.TrainState(
    step=jnp.int32(3),
    params={"w": jnp.ones(2, jnp.bfloat16)},
    model_state={},
    opt_state=(),
    key=jax.random.key(5),
  )


def test_state_advances_and_keeps_dtypes():
  new = _state().advance({"w": jnp.full(2, 0.5)}, (1,), {"m": 2})
  assert int(new.step) == 4 and new.opt_state == (1,)
  assert new.params["w"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(new.params["w"], [1.5, 1.5])
  assert new.model_state == {"m": 2}


def test_state_paths_and_key():
  state = _state()
  assert set(trees.flatten(state)) == {"step", "params/w", "key"}
  expected = jax.random.fold_in(jax.random.key(5), 3)
  assert jax.random.key_data(state.step_key()).tolist() == (
    jax.random.key_data(expected).tolist()
  )


def test_only_traced_values_cannot_be_looked_at():
  found = []
  jax.jit(lambda x: found.append(arrays.is_concrete(1, x)))(2.0)
  assert found == [False]
  assert arrays.is_concrete(jnp.ones(2), np.ones(2), 3, None)


def test_constrain():
  x = jnp.ones((8, 4))
  assert mesh.constrain(x, "data") is x
  made = jax.make_mesh(
    (4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  with jax.set_mesh(made):
    f = jax.jit(lambda x: mesh.constrain(x, ("data", "absent"), "model"))
    assert f(x).sharding.spec == jax.P("data", "model")
    g = jax.jit(lambda x: mesh.constrain(x, "absent", None))
    assert g(x).sharding.is_fully_replicated
