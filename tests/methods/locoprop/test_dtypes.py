"""Every inner optimiser and solver in every dtype, with and without x64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from locojax.core import trees
from locojax.methods import locoprop
from locojax.methods.locoprop import matching
from locojax.train import steps

TRANSFERS = {"embed|last": "linear", ".*": "tanh"}
DENSE = ("first", "second", "last")


class Model(nn.Module):
  """An embedding, a convolution, and a chain of dense layers, two equal."""

  dtype: str | None = None
  param_dtype: str = "float32"

  @nn.compact
  def __call__(self, tokens, image):
    kwargs = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    e = nn.Embed(7, 4, name="embed", **kwargs)(tokens)
    x = jnp.tanh(nn.Conv(4, (2, 2), name="conv", **kwargs)(image))
    x = x.mean((1, 2)) + e
    for name in DENSE[:2]:
      x = jnp.tanh(nn.Dense(4, name=name, **kwargs)(x))
    return nn.Dense(3, name="last", **kwargs)(x)


def _batch(dtype=np.float32):
  rng = np.random.default_rng(0)
  return {
    "tokens": rng.integers(0, 7, 10).astype(np.int32),
    "image": rng.normal(size=(10, 3, 3, 2)).astype(dtype),
  }


def _loss(model):
  def loss_fn(params, model_state, batch, key):
    out = model.apply({"params": params}, **batch)
    out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
    return jnp.mean(jnp.sum((out - 1.0) ** 2, -1)), ({}, model_state)

  return loss_fn


EXACT = {"variant": "squared", "solver": "exact", "gamma": 3.0}
REST = {"fallback": optax.sgd(1e-2)}
CASES = {
  **{name: {"inner": name} for name in locoprop.INNER},
  "squared": {"inner": "adam", "variant": "squared"},
  "sampled rows": {"inner": "sgd", "max_rows": 3},
  "stacked": {"inner": "sgd", "stack_equal_shapes": True},
  "other target": {"inner": "sgd", "target": "gd", "reg": 0.1},
  "reset": {"inner": "momentum", "persist_inner_state": False},
  "local mean": {"inner": "sgd", "local_reduction": "mean"},
  "exact": {"layers": DENSE, **EXACT, **REST},
  "gauss_seidel": {
    "inner": "sgd",
    "layers": DENSE,
    "order": "gauss_seidel",
    **REST,
  },
}


def _tx(settings):
  return locoprop.locoprop(
    2e-2, **{"transfers": TRANSFERS, "num_local_iters": 3, **settings}
  )


@jax.jit
def _updates(params, grads, tape):
  """Updates of all cases, with their states before and after."""
  out = {}
  for name, settings in CASES.items():
    tx = _tx(settings)
    state = tx.init(params)
    updates, after = tx.update(grads, state, params, tape=tape)
    out[name] = (updates, state, after)
  return out


@functools.cache
def _captured():
  """Parameters, gradients and tape in float64, as NumPy arrays."""
  with jax.enable_x64(True):
    model, batch = Model(param_dtype="float64"), _batch(np.float64)
    params = model.init(jax.random.key(0), **batch)["params"]
    capture = jax.jit(locoprop.capture(_loss(model)))
    _, grads, tape = capture(params, {}, batch, jax.random.key(0))
    return jax.tree.map(np.asarray, (params, grads, tape))


def _rounded(tree, dtype):
  def one(x):
    return x.astype(dtype) if x.dtype == np.float64 else x

  return jax.tree.map(one, tree)


def _wide(tree):
  def one(x):
    return np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, float) else x

  return jax.tree.map(lambda x: one(np.asarray(x)), tree)


# Dtypes of the parameters and of what is on the tape, tolerance.
DTYPES = {
  "bfloat16": (jnp.bfloat16, jnp.bfloat16, 2**-8),
  "float16": (jnp.float16, jnp.float16, 2**-10),
  "float32": (jnp.float32, jnp.float32, 2e-5),
  "mixed": (jnp.bfloat16, jnp.float32, 2**-8),
}
TABLE = [
  ("bfloat16", False),
  ("float32", True),
  ("float64", True),
  *(
    pytest.param(*case, marks=pytest.mark.slow)
    for case in [
      ("bfloat16", True),
      ("float16", False),
      ("float16", True),
      ("float32", False),
      ("mixed", False),
      ("mixed", True),
    ]
  ),
]
FLOAT64 = (np.float64, np.float64, 1e-10)


@functools.cache
def _computed(name, x64):
  """Updates as they come and of the same values in float64."""
  dtype, on_tape, _ = {**DTYPES, "float64": FLOAT64}[name]
  params, grads, tape = _captured()
  params, grads = _rounded((params, grads), dtype)
  tape = _rounded(tape, on_tape)
  with jax.enable_x64(x64):
    got = jax.device_get(_updates(params, grads, tape))
  with jax.enable_x64(True):
    expected = jax.device_get(_updates(*_wide((params, grads, tape))))
  return params, got, expected


@pytest.mark.parametrize("name, x64", TABLE)
def test_updates_in_the_accuracy_of_the_dtype(name, x64):
  tolerance = {**DTYPES, "float64": FLOAT64}[name][2]
  params, got, expected = _computed(name, x64)
  leaves = trees.flatten(params)
  for case in CASES:
    updates, before, after = got[case]
    reference = trees.flatten(expected[case][0])
    for path, u in trees.flatten(updates).items():
      assert u.dtype == leaves[path].dtype, (case, path)
      u = u.astype(np.float64)
      off = np.linalg.norm(u - reference[path])
      size = np.linalg.norm(reference[path])
      assert off < tolerance * size, (case, path, off / size)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
      assert a.dtype == b.dtype, case
    # Averages are kept in a dtype that can hold them.
    moments = [x for x in jax.tree.leaves(after.inner) if np.ndim(x)]
    assert all(x.dtype.itemsize >= 4 for x in moments), case


def test_float64_is_the_definition():
  """Three steps of gradient descent by hand, on one layer."""
  _, got, _ = _computed("float64", True)
  params, _, tape = _captured()
  record, own = tape.records["second"], params["second"]
  x, a, g = record.inputs[0], record.preact, record.preact_grad
  w, b = own["kernel"], own["bias"]
  target = np.tanh(a) - 10.0 * g
  for t in range(3):
    residual = np.tanh(x @ w + b) - target
    rate = 2e-2 * max(1 - t / 3, 0.25)
    w, b = w - rate * x.T @ residual, b - rate * residual.sum(0)
  update = got["sgd"][0]["second"]
  np.testing.assert_allclose(own["kernel"] + update["kernel"], w, rtol=1e-12)
  np.testing.assert_allclose(own["bias"] + update["bias"], b, atol=1e-13)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize(
  "dtype, param_dtype, x64",
  [
    (None, "bfloat16", False),
    ("float16", "float16", False),
    ("float16", "float32", True),
    (None, "float64", True),
  ],
)
def test_a_step_keeps_the_dtypes(dtype, param_dtype, x64, jit):
  model, batch = Model(dtype, param_dtype), _batch()
  with jax.enable_x64(x64):
    params = model.init(jax.random.key(0), **batch)["params"]
    tx = optax.chain(optax.scale(0.5), _tx({"inner": "adam"}), optax.scale(1.0))
    state = steps.init_state(params, tx, key=jax.random.key(0))
    step = locoprop.make_step(_loss(model), tx)
    after, measured = (jax.jit(step) if jit else step)(state, batch)
    assert np.isfinite(measured["loss"].value())
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after)):
      assert a.dtype == b.dtype
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(after.params)):
      assert a.dtype == param_dtype and bool((a != b).any())
      assert bool(jnp.isfinite(b).all())


@pytest.mark.parametrize("name", matching.names())
def test_transfer_functions_keep_the_dtype(name):
  loss = matching.get(name)
  with jax.enable_x64(True):
    for dtype in ("bfloat16", "float16", "float32", "float64"):
      x = jnp.linspace(-2, 2, 5).astype(dtype)
      assert jax.eval_shape(loss.transfer, x).dtype == dtype
