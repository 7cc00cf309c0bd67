"""3D residual networks: parameters, gates, groups of batch norm, inflation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from locojax.core import trees
from locojax.nn import inflation, norms, resnet_3d, resnet_v1
from locojax.train import sharding
from tests import programs

KEY = jax.random.key(0)
SMALL = {"stage_sizes": (1, 2), "width": 4, "dropout": 0.0}


def _shapes(frames, side, classes=200, **settings):
  net = resnet_3d.ResNet3D(classes, **settings)
  clips = jnp.zeros((1, frames, side, side, 3))
  run = functools.partial(net.init_with_output, train=False)
  return jax.eval_shape(run, KEY, clips)


def _random(module, *inputs, **settings):
  """Variables with numbers of size 1, none of them zeros or all ones."""
  rng = np.random.default_rng(0)
  init = functools.partial(module.init, **settings)
  tree = jax.eval_shape(init, KEY, *inputs)

  def one(path, x):
    found = rng.normal(size=x.shape).astype(np.float32)
    if path.endswith("kernel"):
      return found / np.float32(np.sqrt(np.prod(x.shape[:-1])))
    return 1 + 0.3 * np.abs(found) if path.endswith(("scale", "var")) else found

  return trees.map_with_path(one, tree)


def _clips(batch=4, frames=4, side=16):
  rng = np.random.default_rng(1)
  return np.float32(rng.normal(size=(batch, frames, side, side, 3)))


@pytest.mark.parametrize(
  ("gating", "wanted"), [(True, 33_208_072), (False, 27_633_672)]
)
def test_parameters_of_the_3d_resnet_50(gating, wanted):
  logits, variables = _shapes(64, 224, self_gating=gating)
  assert trees.num_params(variables["params"]) == wanted
  assert logits.shape == (1, 200)
  gates = [p for p in trees.flatten(variables["params"]) if "gate/" in p]
  assert len(gates) == (8 if gating else 0)


def test_depth_101_and_the_tiny_one():
  kernels = resnet_3d.alternating(resnet_3d.DEPTHS[101])
  assert kernels[0] == (3, 3, 3) and kernels[1] == (3, 1, 3, 1)
  assert kernels[2] == (3, 1) * 11 + (3,) and kernels[3] == (1, 3, 1)
  net = resnet_3d.ResNet3DTiny(10)
  run = functools.partial(net.init, train=False)
  found = jax.eval_shape(run, KEY, jnp.zeros((1, 16, 32, 32, 3)))
  assert 100_000 < trees.num_params(found["params"]) < 200_000


def test_a_gate_by_its_numbers():
  gate = resnet_3d.SelfGating()
  kernel = np.float32([[0.5, -1.0], [0.25, 0.75]])
  bias = np.float32([0.1, -0.2])
  params = {"dense": {"kernel": kernel, "bias": bias}}
  run = jax.jit(lambda x: gate.apply({"params": params}, x))
  x = np.float32([1.0, -2.0])
  found = run(x[None, None, None, None])
  wanted = np.array([0.52497919, 0.06297336]) * np.array([1, -2])
  np.testing.assert_allclose(found[0, 0, 0, 0], wanted, atol=1e-7)
  # The mean over places decides.
  both = np.stack([x + 1, x - 1])[None, :, None, None]
  found = run(both)
  np.testing.assert_allclose(
    found[0, :, 0, 0], both[0, :, 0, 0] * (wanted / [1, -2]), rtol=1e-5
  )


@pytest.mark.parametrize("padding", resnet_3d.PADDINGS)
@pytest.mark.parametrize(
  ("size", "strides"),
  [
    ((1, 3, 3), (1, 2, 2)),
    ((3, 1, 1), (2, 1, 1)),
    ((3, 1, 1), (1, 2, 2)),
    ((1, 1, 1), (2, 2, 2)),
    ((3, 3, 3), (2, 2, 1)),
  ],
)
def test_folded_convolutions_are_convolutions(size, strides, padding):
  x = _clips(2, 5, 6)
  rng = np.random.default_rng(2)
  kernel = np.float32(rng.normal(size=(*size, 3, 2)))
  found = resnet_3d.conv_3d(x, kernel, strides=strides, padding=padding)
  half = [((k - 1) // 2,) * 2 for k in size]
  wanted = jax.lax.conv_general_dilated(
    x,
    kernel,
    strides,
    "SAME" if padding == "same" else half,
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )
  np.testing.assert_allclose(found, wanted, atol=1e-5)


@functools.cache
def _small():
  net = resnet_3d.ResNet3D(3, **SMALL)
  return net, _random(net, _clips()[:1], train=False)


def _train(net):
  return jax.jit(
    lambda v, x, m: net.apply(v, x, train=True, mask=m, mutable=["batch_stats"])
  )


def test_masked_clips_leave_no_trace_and_groups_are_groups():
  net, variables = _small()
  clips, all_of_them = _clips(), np.ones(4, bool)
  run = _train(net)
  halves = [run(variables, clips[i : i + 2], all_of_them[:2]) for i in (0, 2)]
  # Two groups are two batches; the running means are the means of both.
  grouped = _train(net.clone(bn_group_size=2))
  out, new = grouped(variables, clips, all_of_them)
  for i, (wanted, _) in enumerate(halves):
    np.testing.assert_allclose(out[2 * i : 2 * i + 2], wanted, atol=1e-4)
  jax.tree.map(
    lambda a, *b: np.testing.assert_allclose(a, sum(b) / 2, atol=1e-5),
    new,
    *(h[1] for h in halves),
  )
  # A group of which the mask leaves nothing counts nowhere.
  mask = np.array([1, 1, 0, 0], bool)
  bad = np.where(mask[:, None, None, None, None], clips, np.nan)
  out, new = grouped(variables, bad, mask)
  np.testing.assert_allclose(out[:2], halves[0][0], atol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    new,
    halves[0][1],
  )
  # One group of all is batch norm as flax has it.
  whole = _train(net.clone(bn_group_size=4))
  for x, m in ((clips, all_of_them), (bad, mask)):
    found, wanted = whole(variables, x, m), run(variables, x, m)
    np.testing.assert_allclose(found[0][:2], wanted[0][:2], atol=1e-4)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
      found[1],
      wanted[1],
    )
  _, still = grouped(variables, bad, np.zeros(4, bool))
  jax.tree.map(
    np.testing.assert_array_equal,
    still["batch_stats"],
    variables["batch_stats"],
  )


def test_sharded_batch_norm_is_that_of_one_device():
  clips, mask = _clips(8, side=8), np.ones(8, bool)
  net = resnet_3d.ResNet3D(3, stage_sizes=(1,), width=4, dropout=0.0)
  variables = _random(net, clips[:1], train=False)
  mesh = sharding.make_mesh({"data": 4}, jax.devices()[:4])
  rows = NamedSharding(mesh, PartitionSpec("data"))
  for changed in (net, net.clone(bn_group_size=2)):

    def loss(params, stats, x, m, changed=changed):
      v = {"params": params, "batch_stats": stats}
      y, new = changed.apply(v, x, train=True, mask=m, mutable=["batch_stats"])
      return jnp.sum(jnp.sin(y)), new

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    given = (variables["params"], variables["batch_stats"])
    one = run(*given, clips, mask)
    several = run(*given, *jax.device_put((clips, mask), rows))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
      one,
      several,
    )


def test_computing_again_changes_nothing():
  net, variables = _small()
  clips = _clips(2, side=8)

  def grads(net):
    def loss(params):
      v = {**variables, "params": params}
      y, _ = net.apply(v, clips, train=True, mutable=["batch_stats"])
      return jnp.sum(jnp.sin(y))

    return jax.jit(jax.grad(loss))

  kept, again = grads(net), grads(net.clone(remat=True))
  given = variables["params"]
  assert "checkpoint" in again.lower(given).as_text(debug_info=True)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    kept(given),
    again(given),
  )


def test_dropout_and_dtype():
  net = resnet_3d.ResNet3D(3, **{**SMALL, "dropout": 0.5}, dtype=jnp.bfloat16)
  _, variables = _small()
  run = lambda key: net.apply(
    variables,
    _clips(2, side=8),
    train=True,
    mutable=["batch_stats"],
    rngs={"dropout": key},
  )
  run = jax.jit(run)
  one, new = run(KEY)
  other, _ = run(jax.random.key(1))
  assert one.dtype == jnp.float32 and np.any(one != other)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(new))


def test_inflated_by_the_centre_equals_the_images_network():
  images = _clips(2, 1, 32)[:, 0]
  flat_net = resnet_v1.ResNet(variant="c4", width=4, stage_sizes=(1, 1, 1, 1))
  flat = _random(flat_net, images)
  wanted = jax.jit(flat_net.apply)(flat, images).mean(axis=(1, 2))
  net = resnet_3d.ResNet3D(
    3,
    stage_sizes=(1, 1, 1),
    width=4,
    self_gating=False,
    padding="symmetric",
  )
  clips = np.repeat(images[:, None], 8, axis=1)
  fresh = _random(net, clips[:1], train=False)
  run = jax.jit(
    lambda v: net.apply(v, clips, train=False, return_features=True)[1]
  )
  made = inflation.inflate_resnet2d(flat, fresh)
  scale = np.abs(wanted).max()
  assert scale > 0.1
  np.testing.assert_allclose(run(made) / scale, wanted / scale, atol=1e-5)
  head = made["params"]["head"]["kernel"]
  np.testing.assert_array_equal(head, fresh["params"]["head"]["kernel"])
  # The mean is right inside, and off where a clip ends.
  averaged = run(inflation.inflate_resnet2d(flat, fresh, mode="mean"))
  assert np.abs(averaged - wanted).max() / scale > 1e-3


def test_inflated_kernels():
  kernel = np.float32(np.random.default_rng(0).normal(size=(3, 3, 2, 4)))
  mean = inflation.inflate_kernel(kernel, 5, mode="mean")
  np.testing.assert_allclose(mean.sum(0), kernel, rtol=1e-6)
  assert np.ptp(mean, axis=0).max() == 0
  centre = inflation.inflate_kernel(kernel[None], 5)
  np.testing.assert_array_equal(centre[2], kernel)
  assert not centre[[0, 1, 3, 4]].any() and centre.dtype == np.float32


def test_frames_alone_are_a_network_for_images():
  """Pre-trained on single frames with kernels of 1, then inflated: exact."""
  settings = {"stage_sizes": (1, 1), "width": 4, "self_gating": False}
  plain = resnet_3d.ResNet3D(
    3,
    temporal_kernel_sizes=((1,), (1,)),
    stem_temporal=(1, 1, 1),
    **settings,
  )
  net = resnet_3d.ResNet3D(3, **settings)
  frames = _clips(2, 1, 16)
  flat = _random(plain, frames, train=False)
  fresh = _random(net, _clips(1, 8), train=False)
  made = inflation.inflate_resnet2d(flat, fresh)
  clips = np.repeat(frames, 8, axis=1)
  wanted = programs.apply(plain, flat, frames, train=False)
  found = programs.apply(net, made, clips, train=False)
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


REFUSED = [
  (lambda: _shapes(4, 8, depth=18), "depth=18"),
  (lambda: _shapes(4, 8, stage_sizes=()), "number of stages=0"),
  (lambda: _shapes(4, 8, stage_sizes=(0,)), "stage_sizes=(0,)"),
  (
    lambda: _shapes(4, 8, stage_sizes=(2,), temporal_kernel_sizes=((3,),)),
    "temporal_kernel_sizes=((3,),)",
  ),
  (lambda: _shapes(4, 8, classes=0), "num_classes=0"),
  (lambda: _shapes(4, 8, width=0), "width=0"),
  (lambda: _shapes(4, 8, stem_temporal=(5, 2)), "stem_temporal=(5, 2)"),
  (lambda: _shapes(4, 8, dropout=1.0), "dropout=1.0"),
  (lambda: _shapes(4, 8, bn_group_size=0), "bn_group_size=0"),
  (lambda: _shapes(4, 8, padding="valid"), "padding='valid'"),
  (lambda: _shapes(4, 8, dtype="int8"), "dtype='int8'"),
  (lambda: resnet_3d.check_clips(jnp.zeros((1, 8, 8, 3)), None), "clips of"),
  (
    lambda: resnet_3d.check_clips(jnp.zeros((1, 2, 8, 8, 3), int), None),
    "floats",
  ),
  (
    lambda: resnet_3d.check_clips(jnp.zeros((1, 2, 8, 8, 3)), jnp.ones(2)),
    "mask",
  ),
  (
    lambda: jax.eval_shape(
      lambda x: norms.GroupBatchNorm(2).init(KEY, x, False), jnp.zeros((3, 4))
    ),
    "batch=3",
  ),
  (lambda: inflation.inflate_kernel(np.ones((3, 3)), 2), "shape (3, 3)"),
  (
    lambda: inflation.inflate_kernel(np.ones((2, 3, 3, 1, 1)), 2),
    "shape (2, 3, 3, 1, 1)",
  ),
  (
    lambda: inflation.inflate_kernel(np.ones((3, 3, 1, 1)), 2, mode="center"),
    "mode='center'",
  ),
  (
    lambda: inflation.inflate_resnet2d({"params": {"a": 1.0}}, {"params": {}}),
    "'params/a'",
  ),
  (
    lambda: inflation.inflate_resnet2d(
      {"params": {"a": np.ones(2)}}, {"params": {"a": np.ones(3)}}
    ),
    "params/a has shape (2,)",
  ),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_what_is_refused(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value), str(error.value)
