"""Grad-CAM: worked numbers, the closed form, pairs, what is refused."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

from locojax.methods import spl
from locojax.nn import grad_cam, resnet, resnet_3d
from tests import programs

KEY = jax.random.key(0)
FEATURES = np.float32([[[1, 2], [0, -1]], [[3, 0], [-2, 1]]])
HEAD = np.float32([[0.5, -1], [2, 0.25]])


class _Same(nn.Module):
  def __call__(self, x):
    return x + 0.0


class _Net(nn.Module):
  """Its input as features, their mean, a dense layer."""

  @nn.compact
  def __call__(self, x):
    x = _Same(name="features")(x)
    y = x.mean(axis=tuple(range(1, x.ndim - 1)))
    return nn.Dense(HEAD.shape[1], name="head")(y)


VARIABLES = {"params": {"head": {"kernel": HEAD, "bias": np.zeros(2)}}}


@jax.jit
def _run(classes):
  clip = FEATURES[None, :, :, None]
  return grad_cam.grad_cam(
    _Net().apply, VARIABLES, clip, classes, normalize=False
  )


def _maps(classes):
  return np.asarray(_run(classes))[0, :, :, 0]


def test_worked_maps():
  np.testing.assert_allclose(_maps(0), [[1.125, 0], [0.375, 0.25]], atol=1e-6)
  np.testing.assert_allclose(_maps(1), [[0, 0], [0, 0.5625]], atol=1e-6)
  clip = FEATURES[None, :, :, None]
  run = jax.jit(
    lambda c: grad_cam.grad_cam(_Net().apply, VARIABLES, clip, c)[0, ..., 0]
  )
  np.testing.assert_allclose(run(0), _maps(0) / 1.125, atol=1e-6)
  # A map of zeros stays one.
  zero = jax.tree.map(np.zeros_like, VARIABLES)
  run = jax.jit(lambda v: grad_cam.grad_cam(_Net().apply, v, clip, 0))
  assert not np.any(run(zero))


def test_several_classes_at_once():
  """log sum_k b_k exp z_k: the gradient is that of its softmax."""
  z = FEATURES.mean(axis=(0, 1)) @ HEAD
  for b in (np.array([1.0, 1.0]), np.array([0.25, 2.0])):
    p = b * np.exp(z) / (b * np.exp(z)).sum()
    alpha = (HEAD * p).sum(1) / 4
    wanted = np.maximum((FEATURES * alpha).sum(-1), 0)
    np.testing.assert_allclose(_maps(b), wanted, rtol=1e-5)
  only = np.array([False, True])
  np.testing.assert_allclose(_maps(only), _maps(1), atol=1e-6)


def test_a_3d_network_and_its_pairs():
  net = resnet_3d.ResNet3D(4, stage_sizes=(1, 1), width=4)
  clips = np.float32(np.random.default_rng(0).normal(size=(3, 4, 8, 8, 3)))
  variables = programs.init(net, KEY, clips[:1], train=False)
  apply = functools.partial(net.apply, train=False)
  found = grad_cam.layers(apply, variables, clips)
  assert list(found)[-1] == "stage_1_block_0"
  assert "stage_1_block_0/gate" in found and "head" not in found
  classes, last = np.array([2, 0, 1]), "stage_1_block_0"
  space = spl.build_label_space([[4, 2], [1, 3]], "raw")
  # Four pairs of two labels: the marginals are those of rows and columns.
  rows = np.float32([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]])
  columns = np.float32([[1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]])

  @jax.jit
  def run(variables, clips):
    maps = functools.partial(grad_cam.grad_cam, apply, variables)
    seen = net.apply(
      variables,
      clips,
      train=False,
      capture_intermediates=lambda m, _: m.name == last,
    )[1]
    large = maps(clips, classes, upsample_to=(8, 16, 16))
    wanted = [maps(clips, c, normalize=False) for c in (classes, rows, columns)]
    pairs = spl.pair_grad_cam(
      apply, variables, clips, [1, 0, 0], [0, 0, 1], space, normalize=False
    )
    alone = maps(clips[1:2], 0, last, normalize=False)
    return large, wanted, pairs, alone, jax.tree.leaves(seen)

  large, wanted, pairs, alone, (features,) = run(variables, clips)
  assert large.shape == (3, 8, 16, 16)
  assert np.all(large >= 0) and np.isfinite(large).all()
  for name, maps in zip(("pair", "weak", "teacher"), wanted):
    assert maps.max() > 0
    np.testing.assert_allclose(pairs[name], maps, rtol=1e-4, atol=1e-7)
  # Each example for itself, and by the closed form: alpha is the head's.
  np.testing.assert_allclose(wanted[0][1:2], alone, rtol=1e-4, atol=1e-7)
  alpha = np.asarray(variables["params"]["head"]["kernel"])[:, classes].T
  alpha = alpha / np.prod(features.shape[1:4])
  closed = np.maximum(np.einsum("bthwc,bc->bthw", features, alpha), 0)
  np.testing.assert_allclose(wanted[0], closed, rtol=1e-3, atol=1e-7)


def test_a_network_for_images():
  net = resnet.PreActResNet(3, stage_sizes=(1, 1), width=4)
  images = np.float32(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
  variables = programs.init(net, KEY, images, train=False)
  apply = functools.partial(net.apply, train=False)
  run = functools.partial(grad_cam.grad_cam, apply, upsample_to=(8, 8))
  maps = jax.jit(run)(variables, images, 1)
  assert (
    maps.shape == (2, 8, 8)
    and list(grad_cam.layers(apply, variables, images))[-1] == "norm"
  )


class _Twice(nn.Module):
  @nn.compact
  def __call__(self, x):
    layer = _Same(name="features")
    return layer(layer(x)).mean(axis=(1, 2, 3))


def _refused(*args, net=None, variables=VARIABLES, **settings):
  clip = FEATURES[None, :, :, None]
  net = net or _Net()
  return lambda: grad_cam.grad_cam(
    net.apply, variables, clip, *args, **settings
  )


REFUSED = [
  (_refused(2), "classes holds 2"),
  (_refused(np.array([0, 1])), "classes has shape (2,)"),
  (_refused(np.ones(3)), "classes has shape (3,)"),
  (_refused(0, "body"), "layer='body'"),
  (_refused(0, "head"), "one of 'features'"),
  (_refused(0, upsample_to=(2, 2)), "upsample_to=(2, 2)"),
  (_refused(0, net=_Twice()), "no layer of the network"),
  (_refused(0, net=_Same(), variables={}), "no layer of the network"),
  (
    lambda: spl.pair_grad_cam(
      None, None, None, [0], [1], spl.build_label_space(np.eye(2), "occupied")
    ),
    "the pair (0, 1) is dropped",
  ),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_what_is_refused(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value), str(error.value)
