"""Meshes, rules, the FSDP rule, batches, tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from locojax.core import trees
from locojax.train import sharding, steps


def _params():
  return {
    "mlp": {
      "first": {"kernel": jnp.ones((8, 16)), "bias": jnp.zeros((16,))},
      "second": {"kernel": jnp.ones((16, 4)), "bias": jnp.zeros((4,))},
    }
  }


def _init(tx=None):
  tx = optax.adam(1e-3) if tx is None else tx
  return lambda key: steps.init_state(_params(), tx, key=key)


def _abstract(tx=None):
  return jax.eval_shape(_init(tx), jax.random.key(0))


def _specs(shardings):
  return {p: s.spec for p, s in trees.flatten(shardings).items()}


@pytest.fixture
def mesh():
  return sharding.make_mesh({"data": 4, "model": 2})


@pytest.mark.parametrize(
  ("axes", "sizes"),
  [
    ({}, (1, 1, 1)),
    ({"data": 8}, (8, 1, 1)),
    ({"model": 2, "data": -1}, (4, 1, 2)),
    ({"expert": 2, "data": 2, "model": 2}, (2, 2, 2)),
  ],
)
def test_mesh_has_three_axes_in_order(axes, sizes):
  devices = jax.devices() if axes else jax.devices()[:1]
  mesh = sharding.make_mesh(axes, devices)
  assert mesh.axis_names == ("data", "expert", "model")
  assert mesh.devices.shape == sizes
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  ("axes", "words"),
  [
    ({"dta": 8}, "did you mean 'data'"),
    ({"data": 3}, "do not fill 8 devices"),
    ({"data": 3, "model": -1}, "is 3 without the -1"),
    ({"data": -1, "model": -1}, "only one axis may be -1"),
    ({"data": 0}, "axes\\['data'\\]=0"),
    ({"data": 2.0}, "axes\\['data'\\]=2.0"),
    ({"data": 4}, "do not fill 8 devices"),
  ],
)
def test_bad_axes_are_refused(axes, words):
  with pytest.raises(ValueError, match=words):
    sharding.make_mesh(axes)


def test_abstract_mesh_reads_a_free_axis_as_one():
  assert dict(sharding.abstract_mesh({"data": -1, "model": 4}).shape) == {
    "data": 1,
    "expert": 1,
    "model": 4,
  }
  mesh = sharding.abstract_mesh({"data": -1, "model": 4}, 4096)
  assert mesh.shape["data"] == 1024


@pytest.mark.parametrize("regex", ["first/kernel$", "^params/.*first/kernel$"])
def test_one_rule_serves_parameter_and_moments(mesh, regex):
  specs = _specs(
    sharding.state_shardings(_abstract(), mesh, [(regex, P(None, "model"))])
  )
  laid_out = {p for p, s in specs.items() if s == P(None, "model")}
  assert laid_out == {
    "params/mlp/first/kernel",
    "opt_state/0/mu/mlp/first/kernel",
    "opt_state/0/nu/mlp/first/kernel",
  }
  assert all(s == P() for p, s in specs.items() if p not in laid_out)


def test_first_hit_wins_and_optimizer_state_can_differ(mesh):
  rules = [
    ("^opt_state/.*second/kernel", P("data")),
    ("kernel", P(None, "model")),
  ]
  specs = _specs(sharding.state_shardings(_abstract(), mesh, rules))
  assert specs["params/mlp/second/kernel"] == P(None, "model")
  assert specs["opt_state/0/mu/mlp/second/kernel"] == P("data")
  assert specs["opt_state/0/mu/mlp/first/kernel"] == P(None, "model")


def test_step_key_and_counts_are_left_alone_by_a_catch_all(mesh):
  rules = [(".*", sharding.fsdp(min_size=0))]
  specs = _specs(sharding.state_shardings(_abstract(), mesh, rules))
  for path in ("step", "key", "opt_state/0/count"):
    assert specs[path] == P()
  assert specs["params/mlp/first/kernel"] == P(None, "data")
  assert specs["opt_state/0/nu/mlp/first/kernel"] == P(None, "data")


def test_factored_moments_do_not_take_the_spec_of_the_parameter(mesh):
  tx = optax.adafactor(1e-3, min_dim_size_to_factor=4)
  state = _abstract(tx)
  rules = [("kernel", P(None, "model"))]
  specs = _specs(sharding.state_shardings(state, mesh, rules))
  shapes = {p: x.shape for p, x in trees.flatten(state).items()}
  factored = [
    p
    for p in specs
    if p.startswith("opt_state") and "kernel" in p and len(shapes[p]) == 1
  ]
  assert len(factored) >= 4
  assert all(specs[p] == P() for p in factored)
  explicit = [("v_row/mlp/first/kernel", P("data")), *rules]
  specs = _specs(sharding.state_shardings(state, mesh, explicit))
  row = next(p for p in specs if p.endswith("v_row/mlp/first/kernel"))
  assert specs[row] == P("data")


@pytest.mark.parametrize(
  ("rules", "words"),
  [
    ([("kernle", P())], "hits nothing in the state; paths are params/mlp"),
    ([("kernel", P()), ("first/kernel", P())], "earlier rules took"),
    ([("second/bias", P(("data", "model")))], r"second/bias .*\(4,\).*of 8"),
    ([("first/kernel", P("model", "model"))], "'model' is used twice"),
    ([("first/kernel", P("dat"))], "no axis 'dat' in the mesh"),
    ([("first/bias", P(None, "model"))], "more entries than dimensions"),
    ([("(", P())], "is no regex"),
    ([("kernel", ("data",))], "must be a PartitionSpec"),
  ],
)
def test_bad_rules_are_refused(mesh, rules, words):
  with pytest.raises(ValueError, match=words):
    sharding.state_shardings(_abstract(), mesh, rules)


def test_indivisible_names_path_shape_axis_and_sizes():
  mesh = sharding.abstract_mesh({"data": 3})
  with pytest.raises(ValueError) as caught:
    sharding.state_shardings(_abstract(), mesh, [("first/kernel", P("data"))])
  for word in ("params/mlp/first/kernel", "(8, 16)", "size 8", "'data': 3"):
    assert word in str(caught.value)


@pytest.mark.parametrize(
  ("shape", "kwargs", "spec"),
  [
    ((512, 1024), {}, P(None, "data")),
    ((1024, 512), {}, P("data", None)),
    ((512, 512), {}, P(None, "data")),
    ((512, 511), {}, P()),
    ((1022, 1024), {}, P(None, "data")),
    ((1024, 1023), {}, P("data", None)),
    ((1022, 1023), {}, P(None, None)),
    ((8,), {"min_size": 8}, P("data")),
    (
      (64, 32),
      {"min_size": 0, "axis": ("data", "model")},
      P(("data", "model")),
    ),
    (
      (1024, 4096),
      {"base": P(None, "model")},
      P("data", "model"),
    ),
    ((4,), {"base": P(None, "model")}, P(None, "model")),
    ((), {"min_size": 0}, P()),
  ],
)
def test_fsdp_shards_the_largest_divisible_dimension(mesh, shape, kwargs, spec):
  found = sharding.fsdp(**kwargs)(shape, mesh)
  pad = lambda s: tuple(s) + (None,) * (len(shape) - len(s))
  assert pad(found) == pad(spec)


def test_rules_work_on_an_abstract_mesh_without_devices():
  mesh = sharding.abstract_mesh({"data": 256, "model": 16})
  state = jax.eval_shape(
    lambda key: steps.init_state(
      {"w": jnp.zeros((4096, 8192))}, optax.adam(1.0), key=key
    ),
    jax.random.key(0),
  )
  rules = [("w", sharding.fsdp(base=P(None, "model")))]
  shardings = sharding.state_shardings(state, mesh, rules)
  assert sharding.device_bytes(state.params, shardings.params) == (
    4096 * 8192 * 4 // (256 * 16)
  )


def test_batch_spec_is_cut_to_rank(mesh):
  batch = {
    "image": jax.ShapeDtypeStruct((8, 4, 4), jnp.float32),
    "label": jax.ShapeDtypeStruct((8,), jnp.int32),
    "temperature": jax.ShapeDtypeStruct((), jnp.float32),
  }
  specs = _specs(sharding.batch_shardings(batch, mesh, P("data", "model")))
  assert specs["image"] == P("data", "model")
  assert specs["label"] == P("data")
  assert specs["temperature"] == P()
  batch["label"] = jax.ShapeDtypeStruct((6,), jnp.int32)
  with pytest.raises(ValueError, match=r"batch/label with shape \(6,\)"):
    sharding.batch_shardings(batch, mesh, P("data"))


def test_table_counts_bytes_per_device(mesh):
  state = _abstract()
  rules = [("kernel", P(None, "model"))]
  text = sharding.table(state, sharding.state_shardings(state, mesh, rules))
  lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
  assert lines["params/mlp/first/kernel"][1:3] == ["8x16", "float32"]
  assert lines["params/mlp/first/kernel"][-1] == "256"
  assert lines["params/mlp/first/bias"][-1] == "64"
  kernels, biases = 4 * (8 * 16 + 16 * 4), 4 * (16 + 4)
  assert lines["params"][1:] == [
    "212",
    f"{kernels + biases}",
    f"{kernels // 2 + biases}",
  ]
  assert "key<fry>" in text


def _drawn(key):
  """Parameters at which no unit is saturated."""
  leaves, structure = jax.tree.flatten(_params())
  keys = jax.random.split(key, len(leaves))
  drawn = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
  return jax.tree.unflatten(structure, drawn)


def test_a_sharded_step_equals_an_unsharded_one(mesh):
  def loss_fn(params, model_state, batch, key):
    x = batch["x"]
    for name in ("first", "second"):
      layer = params["mlp"][name]
      x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return jnp.mean((x - batch["y"]) ** 2), ({}, model_state)

  tx = optax.adam(1e-2)
  init = lambda key: steps.init_state(_drawn(key), tx, key=key)
  step = steps.from_loss(loss_fn, tx)
  rng = np.random.default_rng(0)
  batch = {
    "x": rng.normal(size=(16, 8)).astype(np.float32),
    "y": rng.normal(size=(16, 4)).astype(np.float32),
  }
  key = jax.random.key(1)
  plain = jax.jit(init)(key)
  for _ in range(3):
    plain, _ = jax.jit(step)(plain, batch)
  rules = [("bias", P("model")), ("kernel", sharding.fsdp(min_size=0))]
  layout = sharding.state_shardings(jax.eval_shape(init, key), mesh, rules)
  placed = jax.device_put(
    batch, sharding.batch_shardings(batch, mesh, P("data"))
  )
  state = jax.jit(init, out_shardings=layout)(key)
  run = jax.jit(step, out_shardings=(layout, None), donate_argnums=0)
  for _ in range(3):
    state, _ = run(state, placed)
  assert state.params["mlp"]["first"]["kernel"].sharding.spec == P(None, "data")
  assert state.opt_state[0].mu["mlp"]["first"]["bias"].sharding.spec == P(
    "model"
  )
  # Adam magnifies the rounding of a gradient of 0: all are far from that.
  grads = [np.abs(g) for g in jax.tree.leaves(plain.opt_state[0].mu)]
  assert min(g.min() for g in grads) > 1e-6
  for part in ("params", "opt_state"):
    for a, b in zip(
      *(jax.tree.leaves(getattr(s, part)) for s in (plain, state))
    ):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
