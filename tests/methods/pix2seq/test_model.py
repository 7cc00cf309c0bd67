"""The model of Pix2Seq: sizes, positions, causality, cache."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import pix2seq
from locojax.core import trees
from locojax.nn import lm
from tests.methods.pix2seq import small


def test_position_code_of_a_line():
  code = pix2seq.position_code(1, 3, 4)[0]
  wanted = [
    [0, 0, 1, 1],
    [0, 0.03141076, -1, 0.99950656],
    [0, 0.06279052, 1, 0.99802673],
  ]
  np.testing.assert_allclose(code, wanted, atol=2e-7)
  column = pix2seq.position_code(3, 1, 4)[:, 0]
  np.testing.assert_array_equal(column, code)


def test_position_code_of_a_grid_is_y_then_x():
  """By the formula of the released code, number by number."""
  h, w, d = 3, 2, 8
  code = pix2seq.position_code(h, w, d)
  assert code.shape == (h, w, d) and code.dtype == np.float32

  def line(i, n):
    angles = [
      i / (n - 1) * 6.2831852 / 10_000 ** (2 * (k // 2) / (d // 2))
      for k in range(d // 2)
    ]
    sines = [math.sin(a) for a in angles[::2]]
    return sines + [math.cos(a) for a in angles[1::2]]

  for i in range(h):
    for j in range(w):
      np.testing.assert_allclose(code[i, j], line(i, h) + line(j, w), atol=1e-6)


def test_one_place_has_a_code():
  np.testing.assert_array_equal(
    pix2seq.position_code(1, 1, 4), [[[0, 0, 1, 1]]]
  )
  with pytest.raises(ValueError, match="size=6 .*multiple of"):
    pix2seq.position_code(2, 2, 6)


@pytest.mark.parametrize(
  ("name", "number"),
  [
    ("resnet", 36_587_768),
    ("resnet_c", 84_697_592),
    ("vit_b", 115_169_976),
    ("vit_l", 341_161_912),
  ],
)
def test_presets_have_the_parameters_of_the_released_models(name, number):
  net = pix2seq.preset(name, 3000, scan=True)
  tokens = jnp.zeros((1, 5), jnp.int32)
  init = functools.partial(net.init, jax.random.key(0))
  shapes = jax.eval_shape(init, jnp.zeros((1, 64, 64, 3)), tokens)
  assert trees.num_params(shapes["params"]) == number


def _shapes(net, side=32):
  images = jnp.zeros((2, side, side, 3))
  return jax.eval_shape(
    lambda: net.init_with_output(jax.random.key(0), images)[0]
  )


@pytest.mark.parametrize(
  ("variant", "grid"), [("standard", 2), ("c4", 4), ("dc5", 4), ("c3", 8)]
)
def test_variants_of_the_residual_network(variant, grid):
  net = pix2seq.ResNetEncoder(
    8, 1, 2, 16, variant=variant, stage_sizes=(1, 1, 1, 2), resnet_width=4
  )
  assert _shapes(net, 64).shape == (2, grid, grid, 8)


def test_sides_that_the_patch_does_not_divide_are_refused_with_the_nearest():
  for stem in pix2seq.STEMS:
    net = pix2seq.ViTEncoder(8, 1, 2, 16, patch_size=8, stem=stem)
    assert _shapes(net, 24).shape == (2, 3, 3, 8)
    with pytest.raises(ValueError, match=r"height of images=20 .*16 and 24"):
      _shapes(net, 20)
  with pytest.raises(ValueError, match=r"nearest: 8\)"):
    _shapes(net, 5)


def test_bad_settings_are_named():
  for settings, text in (
    ({"bridge_mode": "conv"}, "bridge='conv'"),
    ({"dropout": 1.0}, "dropout=1.0"),
    ({"drop_path": -0.1}, "drop_path=-0.1"),
    ({"encoder": {"stem": "pixels"}}, "stem='pixels'"),
    ({"encoder": {"patch_size": 6}}, "patch_size=6|height of images=16"),
    ({"encoder": {"num_heads": 3}}, "width=8"),
  ):
    with pytest.raises(ValueError, match=text):
      net = small.model(**settings)
      jax.eval_shape(
        net.init, jax.random.key(0), small.images(), small.tokens()
      )
  with pytest.raises(ValueError, match="preset='vit_h'"):
    pix2seq.preset("vit_h", 3000)


@pytest.mark.parametrize("mode", pix2seq.BRIDGES)
def test_parameters_of_the_bridge(mode):
  net = small.model(bridge_mode=mode)
  shapes = jax.eval_shape(
    net.init, jax.random.key(0), small.images(), small.tokens()
  )
  names = {"projection", "norm"}
  if mode == "mlp":
    names |= {"feed_forward", "feed_forward_norm"}
  assert set(shapes["params"]["bridge"]) == names


@functools.cache
def _made():
  net = small.model()
  params, _ = small.drawn(net)
  apply = lambda images, tokens: net.apply({"params": params}, images, tokens)
  return net, params, jax.jit(apply)


def test_logits_do_not_see_later_tokens():
  _, _, apply = _made()
  tokens = small.tokens()
  logits = apply(small.images(), tokens)
  changed = tokens.at[:, 6:].set((tokens[:, 6:] + 5) % small.VOCAB.size)
  other = apply(small.images(), changed)
  np.testing.assert_allclose(other[:, :6], logits[:, :6], atol=1e-6)
  assert np.abs(other[:, 6:] - logits[:, 6:]).max(axis=(0, 2)).min() > 1e-3


def test_logits_see_the_image_and_no_companion():
  _, _, apply = _made()
  images, tokens = small.images(), small.tokens()
  logits = apply(images, tokens)
  other = apply(images.at[1:].set(1 - images[1:]), tokens)
  np.testing.assert_allclose(other[0], logits[0], atol=1e-5)
  assert np.abs(other[1:] - logits[1:]).max(axis=(1, 2)).min() > 1e-3


def test_cached_logits_are_those_of_the_whole_sequence():
  net, params, apply = _made()
  images, tokens = small.images(), small.tokens()
  wanted = apply(images, tokens)

  @jax.jit
  def one_by_one(images, tokens):
    memory = net.apply({"params": params}, images, method="encode")
    decoder, own = net.decoder.clone(cache_len=10), params["decoder"]
    cache, kept, first = lm.prefill(
      decoder, own, tokens[:, :1], memory=memory, reserve=9
    )
    step = lm.next_token(decoder, own, kept)
    body = lambda cache, token: step(cache, token[:, None])
    _, rest = jax.lax.scan(body, cache, tokens[:, 1:].T)
    return jnp.concatenate([first[:, None], jnp.moveaxis(rest, 0, 1)], axis=1)

  found = one_by_one(images, tokens)
  np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4)


def test_greedy_tokens_are_those_of_the_official_way():
  """Which computes all tokens again for each new one."""
  net, params, apply = _made()
  images = small.images()
  generate = functools.partial(
    pix2seq.generate, net, vocab=small.VOCAB, max_objects=2, top_k=1
  )
  found = jax.jit(generate)(params, images=images)
  tokens = np.zeros((small.NUM, 10), np.int32)
  tokens[:, 0] = small.VOCAB.prompt()
  logits = []
  for t in range(10):
    logits.append(np.asarray(apply(images, tokens))[:, t])
    if t < 9:
      tokens[:, t + 1] = logits[-1].argmax(axis=-1)
  logits = np.stack(logits, axis=1)
  said = np.concatenate([tokens[:, 1:], logits[:, -1:].argmax(-1)], axis=1)
  np.testing.assert_array_equal(found.tokens, said)
  read = pix2seq.sequences_to_boxes(said, logits[:, 4::5], small.VOCAB)
  np.testing.assert_array_equal(found.classes, read.classes)
  np.testing.assert_allclose(found.scores, read.scores, rtol=1e-4)
  np.testing.assert_array_equal(found.boxes, read.boxes)
