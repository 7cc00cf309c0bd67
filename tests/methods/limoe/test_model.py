"""Towers: sizes, streams that do not mix, and text that stands alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods import limoe
from locojax.methods.limoe import model as model_lib
from tests import programs

KEY = jax.random.key(0)
RNGS = {"params": KEY, "gating": jax.random.key(1)}
EXPERTS = {"num_experts": 4, "share_init": False}
IMAGES = jax.random.normal(KEY, (6, 8, 8, 3))
TEXT = jax.random.randint(KEY, (6, 5), 2, 20)
MASK = (jnp.arange(5) < 1 + jnp.arange(6)[:, None] % 5).astype(jnp.int32)


def _model(of=model_lib.OneTower, **changes):
  settings = dict(
    width=8,
    num_layers=2,
    num_heads=2,
    hidden_size=12,
    patch_size=4,
    vocab_size=20,
    max_text_len=6,
    moe_layers=(1,),
    experts=EXPERTS,
    group_examples=3,
  )
  return of(**{**settings, **changes})


def _init(model):
  return programs.init(model, RNGS, IMAGES, TEXT, MASK)


def _embed(model, variables, *inputs, **named):
  """The model as one program: op by op it takes many times as long."""
  run = jax.jit(lambda v, a, k: model.apply(v, *a, **k))
  return run(variables, inputs, named)


@pytest.mark.parametrize("order", model_lib.ORDERS)
def test_split_is_the_inverse_of_join(order):
  streams = {
    "image": jax.random.normal(KEY, (6, 4, 3)),
    "text": jax.random.normal(KEY, (6, 5, 3)),
  }
  joined = model_lib.join(streams, 2, order)
  assert joined.shape == (2, 27, 3)
  shapes = {n: x.shape[:2] for n, x in streams.items()}
  for n, x in model_lib.split(joined, shapes, order).items():
    np.testing.assert_array_equal(x, streams[n])


@pytest.mark.parametrize("of", [model_lib.OneTower, model_lib.TwoTower])
def test_embeddings_alone_are_those_of_pairs(of):
  model = _model(of)
  variables = _init(model)
  both = _embed(model, variables, IMAGES, TEXT, MASK)
  text = _embed(model, variables, text=TEXT[:1], text_mask=MASK[:1])
  image = _embed(model, variables, IMAGES[2:4])
  np.testing.assert_allclose(text.z_text, both.z_text[:1], atol=1e-5)
  np.testing.assert_allclose(image.z_image, both.z_image[2:4], atol=1e-5)
  np.testing.assert_allclose(jnp.linalg.norm(both.z_text, axis=1), 1, rtol=1e-5)
  assert image.z_text is None and text.z_image is None


def test_the_order_of_tokens_changes_nothing_without_capacity():
  variables = _init(_model())
  first, *others = (
    _embed(_model(order=o), variables, IMAGES, TEXT, MASK)
    for o in model_lib.ORDERS
  )
  for other in others:
    np.testing.assert_allclose(other.z_text, first.z_text, atol=1e-5)


def test_padding_moves_nothing():
  model = _model()
  variables = _init(model)
  other = jnp.where(MASK != 0, TEXT, 7)
  a = _embed(model, variables, IMAGES, TEXT, MASK).z_text
  b = _embed(model, variables, IMAGES, other, MASK).z_text
  np.testing.assert_allclose(a, b, atol=1e-6)
  short = _embed(model, variables, text=TEXT[:1, :1], text_mask=MASK[:1, :1])
  np.testing.assert_allclose(short.z_text, a[:1], atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_training_has_gradients_everywhere(remat):
  model = _model(remat=remat)
  variables = _init(model)
  aux = limoe.limoe_aux(4, {"image": 4, "text": 5})

  def loss(params):
    out = model.apply(
      {"params": params}, IMAGES, TEXT, MASK, train=True, rngs=RNGS
    )
    value, _ = limoe.contrastive_softmax_loss(
      out.z_image, out.z_text, out.log_scale
    )
    extra, _ = limoe.auxiliary_loss(out.infos, out.modality, aux, mask=out.mask)
    return value + extra

  grads = jax.jit(jax.grad(loss))(variables["params"])
  for path, g in jax.tree.leaves_with_path(grads):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    zero = name.endswith("bias") and ("key" in name or name == "bias")
    assert np.isfinite(g).all() and (zero or np.abs(g).max() > 0), name


def test_sizes_are_those_of_the_paper():
  def count(preset, **settings):
    model = model_lib.limoe_model(preset, **settings)
    side = 224
    shapes = jax.eval_shape(
      lambda: model.init(
        RNGS, jnp.zeros((1, side, side, 3)), jnp.zeros((1, 16), jnp.int32)
      )
    )
    return model_lib.count_params(shapes["params"])

  found = count("H/14")
  assert found["total"] == pytest.approx(5.55e9, rel=0.005)
  assert found["active"] == pytest.approx(675.7e6, rel=0.01)
  base = count("B/16")
  assert base["total"] == pytest.approx(0.51e9, rel=0.02)
  dense = count("B/16", kind="one_tower")
  routers = 12 * 768 * 8
  assert base["active"] == dense["total"] + routers
  two = count("B/16", kind="two_tower")
  assert two["total"] > 1.7 * dense["total"]


@pytest.mark.parametrize(
  ("inputs", "changes", "words"),
  [
    ((None, None), {}, "images=None and text=None"),
    ((IMAGES, TEXT[:3]), {}, "text has shape"),
    ((None, jnp.zeros((2, 9), jnp.int32)), {}, "max_text_len=6"),
    ((IMAGES, TEXT), dict(experts=None), "moe_layers"),
    ((IMAGES, TEXT), dict(moe_layers=(2,)), "moe_layers=2"),
    ((IMAGES, TEXT), dict(order="random"), "order"),
    ((IMAGES[:, :7], None), {}, "height=7"),
  ],
)
def test_bad_input_is_named(inputs, changes, words):
  with pytest.raises(ValueError, match=words):
    _model(**changes).init(RNGS, *inputs)


def test_groups_must_divide_a_training_batch():
  model = _model(group_examples=4)
  variables = _init(model)
  with pytest.raises(ValueError, match="group_examples=4"):
    programs.apply(model, variables, IMAGES, TEXT, train=True, rngs=RNGS)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2)])
def test_any_mesh_has_loss_and_gradients_of_one_device(sizes):
  images = jax.random.normal(KEY, (16, 8, 8, 3))
  text = jax.random.randint(KEY, (16, 5), 2, 20)
  model = _model(group_examples=2, moe_layers=(0, 1))
  params = programs.init(model, RNGS, images, text)["params"]
  aux = limoe.limoe_aux(4, {"image": 4, "text": 5}, weight=1.0)

  def loss(params, images, text):
    out = model.apply({"params": params}, images, text, train=True, rngs=RNGS)
    value, _ = limoe.contrastive_softmax_loss(
      out.z_image, out.z_text, out.log_scale
    )
    extra, _ = limoe.auxiliary_loss(out.infos, out.modality, aux, mask=out.mask)
    return value + extra

  run = jax.jit(jax.value_and_grad(loss))
  expected, grads = run(params, images, text)
  mesh = jax.make_mesh(
    sizes,
    ("data", "expert", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )

  def put(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    spec = jax.P()
    if "/experts/" in name:
      spec = jax.P("expert", None, "model")
      if name.endswith("bias"):
        spec = jax.P("expert")
    return jax.device_put(x, jax.NamedSharding(mesh, spec))

  rows = jax.NamedSharding(mesh, jax.P(("data", "expert")))
  with jax.set_mesh(mesh):
    found, there = run(
      jax.tree.map_with_path(put, params),
      jax.device_put(images, rows),
      jax.device_put(text, rows),
    )
  assert float(found) == pytest.approx(float(expected), rel=1e-5)
  for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(grads)):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("order", ["images_first", "interleaved"])
def test_soft_experts_tell_an_image_nothing_of_its_text(order):
  """Alone or in a pair, in training or not, in a batch of any size."""
  experts = {**EXPERTS, "router": "soft", "slots_per_expert": 2}
  model = _model(experts=experts, order=order)
  variables = _init(model)
  pair = _embed(model, variables, IMAGES, TEXT, MASK)
  whole = jax.jit(lambda v: model.apply(v, IMAGES, TEXT, MASK, train=True))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  close(whole(variables).z_image, pair.z_image)
  close(_embed(model, variables, IMAGES[:5]).z_image, pair.z_image[:5])
  close(_embed(model, variables, None, TEXT, MASK).z_text, pair.z_text)
  # The columns of the routers' reports are those of the joined tokens.
  (info,) = pair.infos
  text = np.asarray(pair.modality == 1)
  kept = np.asarray(info.kept[..., 0])
  np.testing.assert_array_equal(kept, np.asarray(pair.mask != 0))
  assert info.logits.shape[:2] == pair.modality.shape
  alone = _embed(model, variables, None, TEXT, MASK).infos[0].logits
  close(np.asarray(info.logits)[text], np.asarray(alone).reshape(-1, 4))
