"""Residual networks of bottlenecks: shapes, parameters, strides, masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import trees
from locojax.nn import resnet_v1


def _shapes(side, **settings):
  net = resnet_v1.ResNet(**settings)
  images = jnp.zeros((1, side, side, 3))
  return jax.eval_shape(net.init_with_output, jax.random.key(0), images)


def test_resnet50_has_the_parameters_of_the_paper():
  """25,557,032 with the head of 1000 classes, 2049 x 1000."""
  _, variables = _shapes(64)
  assert trees.num_params(variables["params"]) == 25_557_032 - 2_049_000


@pytest.mark.parametrize(
  ("variant", "channels"),
  [("standard", 256), ("c4", 128), ("dc5", 256), ("c3", 64)],
)
def test_variants_have_their_stride(variant, channels):
  for side in (64, 70):
    out, _ = _shapes(side, variant=variant, width=8, stage_sizes=(1, 1, 1, 2))
    grid = -(-side // resnet_v1.VARIANTS[variant])
    assert out.shape == (1, grid, grid, channels)


def test_dilation_sees_further_with_the_same_parameters():
  standard, dilated = (
    _shapes(64, variant=v, width=4, stage_sizes=(1, 1, 1, 2))[1]["params"]
    for v in ("standard", "dc5")
  )
  assert jax.tree.map(jnp.shape, standard) == jax.tree.map(jnp.shape, dilated)


@functools.cache
def _made():
  net = resnet_v1.ResNet(variant="c4", width=4, stage_sizes=(1, 1, 2, 1))
  images = jnp.float32(np.random.default_rng(0).normal(size=(4, 32, 32, 3)))
  init = jax.jit(functools.partial(net.init, jax.random.key(0)))
  apply = functools.partial(net.apply, train=True, mutable=["batch_stats"])
  return net, images, init(images), jax.jit(apply)


def test_blocks_begin_as_the_identity():
  """The last norm of each block is 0, so a block is its shortcut."""
  _, _, variables, _ = _made()
  for name, block in variables["params"].items():
    if name.startswith("stage"):
      assert not np.any(block["expand"]["norm"]["scale"])
      assert np.all(block["reduce"]["norm"]["scale"] == 1)
      assert ("shortcut" in block) == name.endswith("block_0")
  params = jax.tree.map(jnp.array, variables["params"])
  kernel = params["stage_2_block_1"]["expand"]["conv"]["kernel"]
  params["stage_2_block_1"]["expand"]["conv"]["kernel"] = kernel + 1
  net, images, _, _ = _made()
  one = jax.jit(net.apply)(variables, images)
  other = jax.jit(net.apply)({**variables, "params": params}, images)
  np.testing.assert_array_equal(one, other)


def test_masked_images_leave_no_trace():
  _, images, variables, apply = _made()
  mask = jnp.array([1, 1, 0, 0])
  out, new = apply(variables, images.at[2:].set(np.nan), mask=mask)
  twice = jnp.concatenate([images[:2]] * 2)
  wanted, wanted_new = apply(variables, twice, mask=jnp.ones(4, int))
  np.testing.assert_allclose(out[:2], wanted[:2], atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new, wanted_new
  )
  assert np.isfinite(out).all()
  _, still = apply(variables, images, mask=jnp.zeros(4, int))
  jax.tree.map(
    np.testing.assert_array_equal,
    still["batch_stats"],
    variables["batch_stats"],
  )


def test_momentum_is_that_of_the_running_means():
  """An input of constant channels: the running mean moves by a tenth."""
  _, images, variables, apply = _made()
  _, new = apply(variables, images, mask=jnp.ones(4, int))
  conv = variables["params"]["stem"]["conv"]["kernel"]
  y = jax.lax.conv_general_dilated(
    images,
    conv,
    (2, 2),
    ((3, 3), (3, 3)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  wanted = 0.1 * y.mean(axis=(0, 1, 2))
  found = new["batch_stats"]["stem"]["norm"]["mean"]
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_bad_settings_are_named():
  for settings, text in (
    ({"variant": "c5"}, "variant='c5'.*dc5"),
    ({"depth": 18}, "depth=18"),
    ({"stage_sizes": (1, 1)}, "stage_sizes=.*four"),
    ({"width": 0}, "width=0"),
    ({"variant": "c3", "width": 3}, "width=3"),
  ):
    with pytest.raises(ValueError, match=text):
      _shapes(32, **settings)
  with pytest.raises(ValueError, match="floats"):
    jax.eval_shape(
      resnet_v1.ResNet().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3), int)
    )
