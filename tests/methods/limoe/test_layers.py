"""Scanned towers: what unrolled ones are, with stacked parameters."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import trees
from locojax.methods import limoe
from locojax.methods.limoe import layers
from locojax.methods.limoe import model as model_lib

KEY = jax.random.key(0)
RNGS = {"params": KEY, "gating": jax.random.key(1)}
IMAGES = jax.random.normal(KEY, (16, 8, 8, 3))
TEXT = jax.random.randint(KEY, (16, 5), 2, 20)
AUX = limoe.limoe_aux(4, {"image": 4, "text": 5}, weight=1.0)
LIKE_S = dict(num_layers=2, moe_layers=(0, 1))
# A dense layer, then units of a dense one and one with experts.
LIKE_H = dict(num_layers=5, moe_layers=(2, 4))


def _model(of=model_lib.OneTower, *, experts=(), **changes):
  own = {"num_experts": 4, "share_init": False, "noise_std": 0.0}
  settings = dict(
    width=8,
    num_heads=2,
    hidden_size=12,
    patch_size=4,
    vocab_size=20,
    max_text_len=6,
    experts={**own, **dict(experts)},
    group_examples=2,
  )
  return of(**{**settings, **changes})


def _variables(model):
  """Of the unrolled model; drawn scanned, which compiles faster."""

  def init(rngs):
    found = model.clone(scan=True).init(rngs, IMAGES, TEXT)
    return {n: limoe.unstack_layers(v, model) for n, v in found.items()}

  return jax.jit(init)(RNGS)


def _stack(tree, model):
  """`stack_layers` as one program."""
  return jax.jit(lambda t: limoe.stack_layers(t, model))(tree)


def _run(model, variables, images=IMAGES, text=TEXT):
  """`(gradients, (outputs, model state))` of a training step."""
  params = variables["params"]
  rest = {k: v for k, v in variables.items() if k != "params"}

  def loss(params, rest, images, text):
    out, new = model.apply(
      {"params": params, **rest},
      images,
      text,
      train=True,
      rngs=RNGS,
      mutable=list(rest),
    )
    value, _ = limoe.contrastive_softmax_loss(
      out.z_image, out.z_text, out.log_scale
    )
    if not model.separate:
      extra, _ = limoe.auxiliary_loss(out.infos, out.modality, AUX)
      value = value + extra
    return value, (value, out, dict(new))

  return jax.jit(jax.grad(loss, has_aux=True))(params, rest, images, text)


def _close(a, b, atol=2e-5):
  a, b = trees.flatten(a), trees.flatten(b)
  assert set(a) == set(b)
  for path, x in a.items():
    np.testing.assert_allclose(x, b[path], atol=atol, err_msg=path)


@pytest.mark.parametrize(
  "kinds", ["", "a", "ab", "abc", "aab", "abab", "aababcc", "abcabcabd", "abba"]
)
def test_runs_cover_the_layers_in_order(kinds):
  place = 0
  for run in layers.runs(kinds):
    assert run.first == place and (run.repeats > 1 or run.size == 1)
    for k in range(run.size):
      assert len({kinds[i] for i in run.members(k)}) == 1
    place += run.size * run.repeats
  assert place == len(kinds)


def test_runs_of_the_presets():
  assert [tuple(r) for r in layers.tower_runs(24, range(24))] == [(0, 1, 24)]
  found = layers.tower_runs(32, range(9, 32, 2))
  assert [tuple(r) for r in found] == [(0, 1, 8), (8, 2, 12)]
  assert sum(r.size for r in layers.runs("abcd")) == 4


@pytest.mark.parametrize(
  ("of", "changes"),
  [
    (model_lib.OneTower, LIKE_S),
    (model_lib.OneTower, {**LIKE_H, "remat": True}),
    (model_lib.TwoTower, LIKE_S),
  ],
)
def test_scanned_is_unrolled(of, changes):
  """Outputs, routing, loss, gradients and the bias that balances."""
  changes = {"experts": {"balance_rate": 0.1}, **changes}
  model = _model(of, **changes)
  scanned = _model(of, scan=True, **changes)
  variables = _variables(model)
  stacked = {n: _stack(v, model) for n, v in variables.items()}
  shapes = jax.eval_shape(lambda: dict(model.init(RNGS, IMAGES, TEXT)))
  _shapes_equal(variables, shapes)
  grads, (loss, out, state) = _run(model, variables)
  there, (found, other, moved) = _run(scanned, stacked)
  assert float(found) == pytest.approx(float(loss), rel=1e-5)
  assert (
    len(out.infos)
    == len(other.infos)
    == len(model.moe_layers) * (1 + model.separate)
  )
  _close(out._asdict(), other._asdict())
  _close(_stack(grads, model), there)
  _close(_stack(state["balance"], model), moved["balance"])
  assert any(np.any(x) for x in jax.tree.leaves(moved))


def _shapes_equal(a, b):
  of = lambda tree: {p: x.shape for p, x in trees.flatten(tree).items()}
  assert of(a) == of(b)


def test_conversion_goes_round():
  model = _model(**LIKE_H, experts={"balance_rate": 0.1})
  for tree in _variables(model).values():
    stacked = _stack(tree, model)
    paths = [p for p in trees.flatten(stacked) if "block_" in p]
    alone = [p for p in paths if not re.search(limoe.STACKED, p)]
    assert all(p.startswith("tower/block_0/") for p in alone)
    assert len(alone) < len(paths)
    back = jax.jit(lambda t: limoe.unstack_layers(t, model))(stacked)
    _close(back, tree, atol=0)
  assert limoe.scanned_layers(5, (2, 4)) == (1, 2, 3, 4)


def test_upcycled_blocks_fit_a_scanned_model():
  dense = _model(num_layers=2).clone(experts=None)
  params = dict(_variables(dense)["params"])
  tower = dict(params["tower"])
  for i in range(2):
    block = dict(tower[f"block_{i}"])
    block["moe"] = limoe.upcycle(
      block.pop("feed_forward"), num_experts=4, key=KEY
    )
    tower[f"block_{i}"] = block
  # All experts are copies: their mixture is the dense block.
  sparse = _model(**LIKE_S, scan=True, experts={"top_k": 4})
  stacked = _stack({**params, "tower": tower}, sparse)
  run = lambda m, p: jax.jit(m.apply)({"params": p}, IMAGES, TEXT)
  wanted, found = run(dense, params), run(sparse, stacked)
  assert len(found.infos) == 2 and wanted.infos == ()
  assert all(i.kept.all() for i in found.infos)
  for name in ("z_image", "z_text"):
    a, b = getattr(found, name), getattr(wanted, name)
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
  ("convert", "tree"),
  [
    (limoe.stack_layers, {"tower": {"norm": 1, "block_0": {"a": jnp.ones(1)}}}),
    (limoe.stack_layers, {"tower": {"norm": 1, "units_0": {}}}),
    (limoe.unstack_layers, {"tower": {"norm": 1, "block_0": {}}}),
  ],
)
def test_missing_layers_are_named(convert, tree):
  with pytest.raises(ValueError, match="a tower of tree has the names"):
    convert(tree, _model(**LIKE_S))


def test_layers_draw_noise_of_their_own():
  model = _model(**LIKE_S, scan=True, experts={"noise_std": 1.0})
  variables = jax.jit(lambda k: model.init(k, IMAGES, TEXT))(RNGS)
  run = lambda v: model.apply(v, IMAGES, TEXT, train=True, rngs=RNGS).infos
  first, second = jax.jit(run)(variables)
  noise = lambda i: np.asarray(i.noisy_logits - i.logits)
  assert noise(first).std() > 0.1
  assert (
    abs(np.corrcoef(noise(first).ravel(), noise(second).ravel())[0, 1]) < 0.5
  )
  one, two = variables["params"]["tower"]["units_0"]["block_0"]["moe"][
    "experts"
  ]["up_kernel"]
  assert np.abs(one - two).max() > 0.1


def test_scanned_on_a_mesh_is_scanned_on_one_device():
  model = _model(**LIKE_S, scan=True, remat=True)
  params = _stack(_variables(_model(**LIKE_S))["params"], model)
  grads, (loss, _, _) = _run(model, {"params": params})
  mesh = jax.make_mesh(
    (2, 4), ("data", "expert"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )

  def put(path, x):
    spec = jax.P(None, "expert") if "/experts/" in path else jax.P()
    return jax.device_put(x, jax.NamedSharding(mesh, spec))

  rows = jax.NamedSharding(mesh, jax.P(("data", "expert")))
  with jax.set_mesh(mesh):
    there, (found, _, _) = _run(
      model,
      {"params": trees.map_with_path(put, params)},
      jax.device_put(IMAGES, rows),
      jax.device_put(TEXT, rows),
    )
  assert float(found) == pytest.approx(float(loss), rel=1e-5)
  _close(there, grads)


@pytest.mark.parametrize("preset", ["S/32", "H/14"])
def test_counts_are_those_of_the_unrolled_model(preset):
  def count(**settings):
    model = model_lib.limoe_model(preset, **settings)
    inputs = jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 16), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(RNGS, *inputs))
    return model_lib.count_params(shapes["params"])

  found = count(scan=True)
  if preset == "H/14":
    assert found["total"] == pytest.approx(5.55e9, rel=0.005)
    assert found["active"] == pytest.approx(675.7e6, rel=0.01)
  else:
    assert found == count()
