"""Dense stacks and the deep autoencoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import trees
from locojax.nn import mlp


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
  params = model.init(jax.random.key(0), x)["params"]
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
  return model.init(jax.random.key(0), x)["params"]


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
