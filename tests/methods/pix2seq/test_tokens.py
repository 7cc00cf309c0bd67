"""Vocabulary and bins: the worked numbers of the method and its invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import pix2seq


def test_worked_bins():
  x = [0, 0.1234, 0.5, 0.9995, 1, 1.02, -0.01]
  found = pix2seq.quantize(np.array(x), 1000)
  assert found.tolist() == [0, 123, 500, 999, 999, 999, 0]
  np.testing.assert_allclose(
    pix2seq.dequantize(123, 1000), 0.12312312, atol=1e-8
  )
  halves = np.array([0.0625, 0.1875, 0.3125])
  assert pix2seq.quantize(halves, 9).tolist() == [0, 2, 2]
  assert pix2seq.quantize(np.array([0.0, 0.99, 1.0]), 11, "floor").tolist() == [
    *(0, 9, 10)
  ]


def test_bins_survive_the_way_there_and_back():
  # All k of all B up to 4096, with B as data: one program.
  def trip(num_bins):
    k = jnp.arange(4096)
    x = k.astype(jnp.float32) / (num_bins - 1).astype(jnp.float32)
    again = jnp.round(x * (num_bins - 1))
    return jnp.all(jnp.where(k < num_bins, again == k, True))

  sizes = jnp.arange(2, 4097)
  assert bool(jnp.all(jax.jit(jax.lax.map, static_argnums=0)(trip, sizes)))
  for num_bins in (2, 3, 64, 1000, 2000, 4096):
    k = np.arange(num_bins)
    again = pix2seq.quantize(pix2seq.dequantize(k, num_bins), num_bins)
    np.testing.assert_array_equal(again, k)


def test_bins_are_monotone_and_near():
  x = np.sort(np.random.default_rng(0).random(2000))
  for num_bins in (2, 37, 1000):
    q = np.asarray(pix2seq.quantize(x, num_bins))
    assert (np.diff(q) >= 0).all()
    far = np.abs(np.asarray(pix2seq.dequantize(q, num_bins)) - x).max()
    assert far <= 0.5 / (num_bins - 1) + 1e-6
  np.testing.assert_array_equal(
    jax.jit(jax.vmap(lambda v: pix2seq.quantize(v, 64)))(jnp.asarray(x)),
    pix2seq.quantize(x, 64),
  )


# Mean overlap of squares after the way there and back, on 640 pixels.
WORKED = {
  16: {100: 0.677, 200: 0.824, 500: 0.924, 1000: 0.961, 2000: 0.980},
  32: {100: 0.822, 200: 0.906, 500: 0.961, 1000: 0.980, 2000: 0.990},
  96: {100: 0.936, 200: 0.967, 500: 0.987, 1000: 0.993, 2000: 0.997},
}


def _mean_overlap(side, num_bins, mode):
  rng = np.random.default_rng(side)
  corner = rng.uniform(0, 640 - side, (20000, 2)) / 640
  boxes = np.concatenate([corner, corner + side / 640], axis=1)
  q = pix2seq.quantize(boxes, num_bins, mode)
  again = np.asarray(pix2seq.dequantize(q, num_bins), np.float64)
  xywh = [pix2seq.yxyx_to_xywh(b) for b in (again, boxes)]
  return pix2seq.iou_matrix(*xywh, np.zeros(len(boxes), bool)).mean()


@pytest.mark.parametrize("side", WORKED)
def test_worked_overlaps_of_rounded_boxes(side):
  for num_bins, wanted in WORKED[side].items():
    assert abs(_mean_overlap(side, num_bins, "round") - wanted) < 2e-3


def test_floor_costs_overlap():
  assert abs(_mean_overlap(16, 500, "floor") - 0.855) < 2e-3


def test_the_official_layout():
  vocab = pix2seq.Vocabulary(90, 1000, layout="official")
  assert (vocab.size, vocab.eos, vocab.noise) == (3000, 0, 30)
  assert vocab.prompt() == 10 and vocab.prompt("keypoints") == 12
  assert vocab.class_token(1) == 101 and vocab.coord_token(999) == 1999
  assert vocab.class_range == range(100, 1000)
  with_text = pix2seq.Vocabulary(
    90, 1000, layout="official", text_vocab_size=32000
  )
  assert (with_text.size, with_text.text_start) == (35000, 3000)
  types = vocab.token_type(
    [0, 10, 16, 30, 101, 190, 191, 999, 1000, 1999, 2000]
  )
  names = [pix2seq.TOKEN_TYPES[i] for i in types]
  assert names == [
    *("pad", "prompt", "prompt", "noise", "class", "class", "unused"),
    *("unused", "coord", "coord", "unused"),
  ]


def test_the_compact_layout_has_no_gaps():
  vocab = pix2seq.Vocabulary(3, 6, text_vocab_size=2)
  assert vocab.size == 14
  names = [pix2seq.TOKEN_TYPES[i] for i in vocab.token_type(np.arange(-1, 15))]
  assert names == [
    *("unused", "pad", "noise", "prompt", "class", "class", "class"),
    *(["coord"] * 6),
    *("text", "text", "unused"),
  ]
  assert pix2seq.Vocabulary(3, 6, num_special=8).class_token(1) == 8
  labels = np.array([[1, 2], [3, 1]])
  np.testing.assert_array_equal(vocab.class_token(labels), labels + 2)
  traced = jax.jit(vocab.class_token)(jnp.asarray(labels))
  np.testing.assert_array_equal(traced, labels + 2)
  assert hash(vocab) == hash(pix2seq.Vocabulary(3, 6, text_vocab_size=2))


BAD = [
  (lambda: pix2seq.Vocabulary(0, 9), "num_classes=0"),
  (lambda: pix2seq.Vocabulary(3, 1), "num_bins=1"),
  (lambda: pix2seq.Vocabulary(3, 9, layout="compakt"), "mean 'compact'"),
  (lambda: pix2seq.Vocabulary(3, 9, num_special=2), "num_special=2"),
  (lambda: pix2seq.Vocabulary(900, 9, layout="official"), "num_classes=900"),
  (lambda: pix2seq.Vocabulary(9, 2001, layout="official"), "num_bins=2001"),
  (lambda: pix2seq.Vocabulary(3, 9).class_token(0), "label=0"),
  (lambda: pix2seq.Vocabulary(3, 9).class_token(np.array([1, 4])), "label=4"),
  (lambda: pix2seq.Vocabulary(3, 9).coord_token(9), "q=9"),
  (lambda: pix2seq.Vocabulary(3, 9).prompt("keypoints"), "task='keypoints'"),
  (lambda: pix2seq.quantize(np.array([np.nan]), 9), "NaN"),
  (lambda: pix2seq.quantize(np.zeros(1), 1), "num_bins=1"),
  (lambda: pix2seq.quantize(np.zeros(1), 9, "trunc"), "'round', 'floor'"),
  (lambda: pix2seq.dequantize(np.zeros(1), 9), "must be integers"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_values_are_named(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value)
