"""Dense stacks and the deep autoencoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from locojax.core import trees
from locojax.nn import mlp
from tests import programs


@pytest.mark.parametrize("size", [1, 30, 4096])
def test_glorot_bias_is_uniform_within_its_bound(size):
  bias = mlp.glorot_bias(jax.random.key(0), (size,))
  bound = (6.0 / (2 * size)) ** 0.5
  assert bias.shape == (size,) and bias.dtype == jnp.float32
  assert float(jnp.max(jnp.abs(bias))) <= bound
  if size > 1000:
    assert float(jnp.max(jnp.abs(bias))) > 0.99 * bound
    np.testing.assert_allclose(jnp.std(bias), bound / 3**0.5, rtol=0.03)


@pytest.mark.parametrize("lead", [(), (3,), (2, 5)])
def test_mlp_maps_the_last_axis_and_ends_without_activation(lead):
  model = mlp.MLP((8, 4), activation=jax.nn.relu)
  x = jax.random.normal(jax.random.key(1), (*lead, 6))
  params = programs.init(model, jax.random.key(0), x)["params"]
  assert list(params) == ["layer_0", "layer_1"]
  first, last = params["layer_0"], params["layer_1"]
  hidden = jax.nn.relu(x @ first["kernel"] + first["bias"])
  out = model.apply({"params": params}, x)
  assert out.shape == (*lead, 4)
  np.testing.assert_allclose(
    out, hidden @ last["kernel"] + last["bias"], rtol=1e-5, atol=1e-6
  )


def _autoencoder(**kwargs):
  return mlp.Autoencoder(12, (8, 6), 3, **kwargs)


def _params(model, dtype=jnp.float32):
  x = jnp.zeros((1, model.num_inputs), dtype)
  return programs.init(model, jax.random.key(0), x)["params"]


def test_autoencoder_has_mirrored_layers():
  shapes = {
    path: leaf.shape
    for path, leaf in trees.flatten(_params(_autoencoder())).items()
    if path.endswith("kernel")
  }
  assert shapes == {
    "encoder_0/kernel": (12, 8),
    "encoder_1/kernel": (8, 6),
    "code/kernel": (6, 3),
    "decoder_0/kernel": (3, 6),
    "decoder_1/kernel": (6, 8),
    "output/kernel": (8, 12),
  }


def test_deep_autoencoder_has_the_number_of_parameters_of_the_paper():
  model = mlp.Autoencoder(784, (1000, 500, 250), 30)
  shapes = jax.eval_shape(lambda: _params(model))
  assert trees.num_params(shapes) == 2_837_314


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu])
def test_code_and_output_are_linear_and_hidden_layers_are_not(activation):
  model = _autoencoder(activation=activation)
  params = _params(model)
  x = jax.random.normal(jax.random.key(1), (5, 12))
  logits, seen = model.apply(
    {"params": params}, x, capture_intermediates=True, mutable="intermediates"
  )
  outputs = {n: seen["intermediates"][n]["__call__"][0] for n in params}
  layer = lambda n, y: y @ params[n]["kernel"] + params[n]["bias"]
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  hidden = activation(outputs["encoder_1"])
  close(outputs["code"], layer("code", hidden))
  close(outputs["decoder_0"], layer("decoder_0", outputs["code"]))
  close(logits, layer("output", activation(outputs["decoder_1"])))
  assert float(jnp.min(outputs["code"])) < 0  # no activation that cuts it off


def test_autoencoder_biases_are_drawn_and_kernels_are_glorot():
  params = _params(mlp.Autoencoder(40, (30,), 5))
  for layer in params.values():
    rows, columns = layer["kernel"].shape
    bound = (6 / (rows + columns)) ** 0.5
    assert float(jnp.max(jnp.abs(layer["kernel"]))) <= bound
    assert float(jnp.max(jnp.abs(layer["bias"]))) <= (3 / columns) ** 0.5
    assert float(jnp.std(layer["bias"])) > 0


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
  model = _autoencoder(dtype=jnp.bfloat16)
  params = _params(model)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype("float32")
  }
  out = model.apply({"params": params}, jnp.ones((2, 12)))
  assert out.dtype == jnp.bfloat16 and out.shape == (2, 12)


def _variables(model, x, **kwargs):
  keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  return programs.init(model, keys, x, **kwargs)


@pytest.mark.parametrize("normalization", mlp.NORMALIZATIONS)
def test_hidden_layers_are_normalised_before_the_activation(normalization):
  model = mlp.MLP((16, 1), normalization=normalization)
  x = 7 * jax.random.normal(jax.random.key(2), (32, 6))
  variables = _variables(model, x)
  seen = []

  def relu(y):
    seen.append(y)
    return jax.nn.relu(y)

  model.clone(activation=relu).apply(
    variables, x, train=True, mutable="batch_stats"
  )
  before = variables["params"]["layer_0"]["kernel"]
  if normalization in ("layer", "batch"):
    axis = -1 if normalization == "layer" else 0
    np.testing.assert_allclose(jnp.mean(seen[0], axis), 0, atol=1e-4)
    np.testing.assert_allclose(jnp.std(seen[0], axis), 1, atol=1e-3)
  else:
    np.testing.assert_allclose(seen[0], x @ before, rtol=1e-4, atol=1e-5)
  assert set(variables) == (
    {"params", "batch_stats"} if normalization == "batch" else {"params"}
  )
  assert set(variables["params"]["layer_1"]) == {"kernel", "bias"}


def test_weight_norm_ignores_the_length_of_its_kernel():
  layer = mlp.WeightNormDense(5)
  x = jax.random.normal(jax.random.key(0), (3, 4))
  params = layer.init(jax.random.key(1), x)["params"]
  longer = {**params, "kernel": 3.0 * params["kernel"]}
  out = layer.apply({"params": params}, x)
  np.testing.assert_allclose(layer.apply({"params": longer}, x), out, rtol=1e-5)
  doubled = {**params, "scale": 2.0 * params["scale"]}
  np.testing.assert_allclose(
    layer.apply({"params": doubled}, x), 2 * out, rtol=1e-5
  )
  gradient = jax.grad(lambda p: jnp.sum(layer.apply({"params": p}, x) ** 2))(
    params
  )["kernel"]
  along = jnp.sum(gradient * params["kernel"], axis=0)
  np.testing.assert_allclose(along, 0, atol=1e-4)


def test_batch_norm_ignores_masked_examples():
  model = mlp.MLP((8, 2), normalization="batch")
  x = jax.random.normal(jax.random.key(0), (6, 4))
  variables = _variables(model, x)
  run = lambda x, mask: model.apply(
    variables, x, train=True, mask=mask, mutable="batch_stats"
  )
  mask = jnp.array([1.0, 1, 1, 1, 0, 0])
  out, state = run(x.at[4:].set(1e3), mask)
  expected, expected_state = run(x[:4], None)
  np.testing.assert_allclose(out[:4], expected, rtol=1e-5, atol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    state,
    expected_state,
  )


def test_dropout_takes_a_key_and_rests_outside_training():
  model = mlp.MLP((64, 3), dropout_rate=0.5)
  x = jnp.ones((4, 5))
  variables = _variables(model, x)
  run = lambda seed, train: model.apply(
    variables, x, train=train, rngs={"dropout": jax.random.key(seed)}
  )
  np.testing.assert_array_equal(run(0, False), run(1, False))
  np.testing.assert_array_equal(run(0, True), run(0, True))
  assert not np.array_equal(run(0, True), run(1, True))


class _Shift(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x + self.param("shift", nn.initializers.ones, x.shape[-1:])


def test_a_module_as_activation_has_parameters_in_each_layer():
  model = mlp.MLP((4, 3, 2), activation=_Shift())
  x = jnp.ones((2, 5))
  params = _variables(model, x)["params"]
  assert params["activation_0"]["shift"].shape == (4,)
  assert params["activation_1"]["shift"].shape == (3,)
  shift = params["activation_1"]["shift"]
  moved = {**params, "activation_1": {"shift": shift + 1}}
  first, second = (model.apply({"params": p}, x) for p in (params, moved))
  last = params["layer_2"]["kernel"]
  np.testing.assert_allclose(
    second - first, np.tile(jnp.sum(last, 0), (2, 1)), rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ({"normalization": "leyer"}, "did you mean 'layer'"),
    ({"dropout_rate": 1.5}, "dropout_rate=1.5"),
  ],
)
def test_bad_settings_are_named(wrong, words):
  with pytest.raises(ValueError, match=words):
    _variables(mlp.MLP((4, 2), **wrong), jnp.ones((2, 3)))
