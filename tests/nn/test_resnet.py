"""Residual networks: size, shapes, statistics, masks, dtypes, sharding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from locojax.core import trees
from locojax.nn import resnet
from locojax.train import sharding

SMALL = functools.partial(
  resnet.PreActResNet,
  num_classes=4,
  stage_sizes=(1, 1),
  width=4,
  group_size=4,
)


@functools.cache
def _images(num=8, size=8):
  return jax.random.normal(jax.random.key(1), (num, size, size, 3))


def _init(model, images=None):
  """Variables as `init` makes them, but drawn by NumPy: no compilation."""
  images = _images() if images is None else images
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), images)
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    if path.endswith("kernel"):
      std = (2 / np.prod(leaf.shape[:-1])) ** 0.5
      return jnp.float32(rng.normal(0, std, leaf.shape))
    return jnp.full(leaf.shape, float(path.endswith(("scale", "var"))))

  return trees.map_with_path(fill, shapes)


def _apply(model, variables, images, **kwargs):
  """Logits and features."""
  apply = functools.partial(model.apply, return_features=True, **kwargs)
  return jax.jit(apply)(variables, images)


def _train(model, variables, images, mask=None):
  """(Logits, features), and the new state."""
  return _apply(
    model, variables, images, train=True, mask=mask, mutable=["batch_stats"]
  )


def _close(a, b, **kwargs):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **kwargs), a, b)


def _abstract(model):
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), images)


@pytest.mark.parametrize(
  ("num_classes", "expected"), [(10, 11_172_298), (100, 11_218_468)]
)
def test_resnet18_has_the_parameters_of_the_paper(num_classes, expected):
  variables = _abstract(resnet.PreActResNet18(num_classes=num_classes))
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert count(variables["params"]) == expected
  kernels = {
    path: leaf.shape
    for path, leaf in trees.flatten(variables["params"]).items()
    if path.endswith("kernel")
  }
  # 1 stem, 16 in blocks, 3 shortcuts where the shape changes, 1 head.
  assert len(kernels) == 21
  assert sum("shortcut" in path for path in kernels) == 3
  assert kernels["stage_3_block_0/shortcut/kernel"] == (1, 1, 256, 512)
  assert kernels["head/kernel"] == (512, num_classes)
  assert expected == 11_159_232 + 2 * 3968 + 513 * num_classes
  # A mean and a variance for each channel of 2 + 2 * 8 norms.
  assert count(variables["batch_stats"]) == 2 * 3968
  assert len(jax.tree.leaves(variables["batch_stats"])) == 2 * 18


@pytest.mark.parametrize("shortcut", resnet.SHORTCUTS)
@pytest.mark.parametrize(
  ("norm", "sizes", "size"), [("batch", (2, 1), 7), ("group", (1, 1, 1), 8)]
)
def test_shapes_and_dtypes(norm, sizes, size, shortcut):
  images = _images(3, size)
  model = SMALL(stage_sizes=sizes, norm=norm, shortcut=shortcut)
  variables = _init(model, images)
  assert ("batch_stats" in variables) == (norm == "batch")
  logits, features = _apply(model, variables, images, train=False)
  assert logits.shape == (3, 4)
  assert features.shape == (3, 4 * 2 ** (len(sizes) - 1))
  assert logits.dtype == features.dtype == jnp.float32
  head = variables["params"]["head"]
  np.testing.assert_allclose(
    logits, features @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-6
  )
  plain = jax.eval_shape(
    functools.partial(model.apply, train=False), variables, images
  )
  assert plain.shape == logits.shape and plain.dtype == logits.dtype


def test_initial_values():
  model = SMALL(stage_sizes=(1,), width=64, num_classes=100)
  init = jax.jit(functools.partial(model.init, train=False))
  variables = init(jax.random.key(0), _images())
  leaves = trees.flatten(variables["params"])
  for path, expected in (
    ("stem/kernel", (2 / 27) ** 0.5),
    ("stage_0_block_0/conv_0/kernel", (2 / 576) ** 0.5),
    ("head/kernel", 0.01),
  ):
    np.testing.assert_allclose(np.std(leaves[path]), expected, rtol=0.06)
  drawn = _init(model)
  assert jax.tree.structure(drawn) == jax.tree.structure(variables)
  for (path, leaf), other in zip(
    trees.flatten(variables).items(), jax.tree.leaves(drawn)
  ):
    assert path.endswith("kernel") or np.array_equal(leaf, other)


def _reference(params, x, shortcut):
  """One block of stride 1 in training, in NumPy-like steps."""

  def norm(x, p):
    p = p["batch"]
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    x = (x - mean) / jnp.sqrt(var + 1e-5) * p["scale"] + p["bias"]
    return jnp.maximum(x, 0)

  def conv(x, p):
    return jax.lax.conv_general_dilated(
      x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  x = norm(conv(x, params["stem"]), params["stem_norm"])
  block = params["stage_0_block_0"]
  y = norm(x, block["norm_0"])
  skip = y if shortcut == "activated" else x
  y = conv(norm(conv(y, block["conv_0"]), block["norm_1"]), block["conv_1"])
  x = norm(y + skip, params["norm"]).mean((1, 2))
  return x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize("shortcut", resnet.SHORTCUTS)
def test_equals_its_formula(shortcut):
  model = SMALL(stage_sizes=(1,), shortcut=shortcut)
  variables = _init(model)
  # Scales and biases that are not 1 and 0.
  params = jax.tree.map(
    lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape),
    variables["params"],
  )
  (logits, _), _ = _train(model, {**variables, "params": params}, _images())
  expected = _reference(params, _images(), shortcut)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_running_statistics():
  model = SMALL()
  variables = _init(model)
  _, new = _train(model, variables, _images())
  stem = variables["params"]["stem"]["kernel"]
  x = jax.lax.conv_general_dilated(
    _images(), stem, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  stats = new["batch_stats"]["stem_norm"]["batch"]
  np.testing.assert_allclose(stats["mean"], 0.1 * x.mean((0, 1, 2)), atol=1e-6)
  expected = 0.9 + 0.1 * x.var((0, 1, 2))
  np.testing.assert_allclose(stats["var"], expected, rtol=1e-5)
  _, same = _apply(
    model, variables, _images(), train=False, mutable=["batch_stats"]
  )
  _close(same["batch_stats"], variables["batch_stats"], rtol=0)


def test_masked_examples_stay_out_of_the_statistics():
  model = SMALL()
  variables = _init(model)
  mask = jnp.arange(8) < 5
  images = jnp.where(mask[:, None, None, None], _images(), 1e3)
  (logits, _), new = _train(model, variables, images, mask)
  (short, _), expected = _train(model, variables, _images()[:5])
  np.testing.assert_allclose(logits[:5], short, rtol=1e-4, atol=1e-6)
  _close(new, expected, rtol=1e-4, atol=1e-6)


def test_group_norm_keeps_examples_apart():
  model = SMALL(norm="group")
  variables = _init(model)
  (whole, _), state = _train(model, variables, _images())
  assert not state
  alone, _ = _apply(model, variables, _images()[:1], train=True)
  np.testing.assert_allclose(whole[:1], alone, rtol=1e-4, atol=1e-6)


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
  exact, model = SMALL(), SMALL(dtype=jnp.bfloat16)
  variables = _init(model)
  (logits, features), new = _train(model, variables, _images())
  leaves = jax.tree.leaves((variables, new, logits, features))
  assert {x.dtype for x in leaves} == {jnp.dtype("float32")}
  (_, expected), stats = _train(exact, variables, _images())
  assert np.abs(features - expected).max() > 0  # It did compute in bfloat16.
  np.testing.assert_allclose(features, expected, atol=0.05)
  _close(new, stats, atol=0.02)


def test_activation_is_an_argument():
  model = SMALL(activation=jnp.tanh)
  _, features = _apply(model, _init(model), _images(), train=False)
  assert features.min() < 0 and np.abs(features).max() <= 1


def _loss(model, params, stats, images, labels):
  (logits, _), new = _train(model, {"params": params, **stats}, images)
  log_p = jax.nn.log_softmax(logits)
  return -jnp.mean(log_p[jnp.arange(len(labels)), labels]), new


def test_sharded_equals_unsharded():
  model, labels = SMALL(stage_sizes=(1,)), jnp.arange(8) % 4
  # Images of very different scale, so that statistics of a shard are not those
  # of the batch.
  images = _images() * (1 + jnp.arange(8))[:, None, None, None]
  variables = dict(_init(model))
  params = variables.pop("params")
  grad = jax.jit(
    jax.value_and_grad(functools.partial(_loss, model), has_aux=True)
  )
  expected = grad(params, variables, images, labels)
  mesh = sharding.make_mesh({"data": 8})
  place = lambda x: jax.device_put(x, jax.NamedSharding(mesh, P("data")))
  copy = jax.device_put((params, variables), jax.NamedSharding(mesh, P()))
  out = grad(*copy, place(images), place(labels))
  _close(out, expected, rtol=2e-3, atol=1e-5)
  alone, _ = grad(params, variables, images[:1], labels[:1])
  assert abs(float(alone[0]) - float(expected[0][0])) > 1e-4


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"norm": "layer"}, "norm='layer'.*'batch', 'group'"),
    ({"shortcut": "none"}, "shortcut='none'"),
    ({"stage_sizes": ()}, "number of stages=0"),
    ({"stage_sizes": (1, 0)}, r"stage_sizes\[1\]=0"),
    ({"width": 0}, "width=0"),
    ({"num_classes": 0}, "num_classes=0"),
    ({"norm": "group", "width": 6}, "channels=6.*group_size=4"),
  ],
)
def test_bad_settings(settings, words):
  with pytest.raises(ValueError, match=words):
    _abstract(SMALL(**settings))


def test_bad_inputs():
  model = SMALL()
  with pytest.raises(ValueError, match="uint8.*floats"):
    _init(model, jnp.zeros((2, 8, 8, 3), jnp.uint8))
  with pytest.raises(ValueError, match=r"shape \(8, 8, 3\)"):
    _init(model, jnp.zeros((8, 8, 3)))
  with pytest.raises(ValueError, match="mask has shape"):
    _train(model, _init(model), _images(), mask=jnp.ones((3,)))
