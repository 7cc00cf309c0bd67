"""The loss of tokens, and boxes from tokens: worked numbers, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import pix2seq

LOGITS = np.array([[2, 0.5, -1, 0], [0.1, 0.2, 0.3, 0.4], [1, -1, 3, 0]])
TARGETS = np.array([0, 3, 2])
WEIGHTS = np.array([1, 0.1, 1])
WORKED = [
  ({}, (0.3423495824, 1.2425355295, 0.1851824526)),
  ({"label_smoothing": 0.1}, (0.5048495824, 1.2575355295, 0.4101824526)),
  (
    {"kind": "focal", "focal_gamma": 2.0},
    (0.0287717611, 0.6287438640, 0.0052919592),
  ),
]


@pytest.mark.parametrize(("settings", "wanted"), WORKED)
def test_worked_losses(settings, wanted):
  found = pix2seq.token_losses(LOGITS, TARGETS, **settings)
  np.testing.assert_allclose(found, wanted, atol=3e-7)


def test_worked_mean():
  found = pix2seq.token_loss(LOGITS, TARGETS, WEIGHTS)
  np.testing.assert_allclose(found, 0.3103740895, atol=1e-7)


def test_the_logistic_loss_is_a_sum_of_binary_ones():
  for shift, by in (("length", 3), ("vocabulary", 4), ("none", 1)):
    x = LOGITS - np.log(by)
    y = np.eye(4)[TARGETS]
    y = np.where(y > 0, 1 - 0.1, 0.1)
    p = 1 / (1 + np.exp(-x))
    wanted = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(-1)
    found = pix2seq.token_losses(
      LOGITS,
      TARGETS,
      kind="logistic",
      label_smoothing=0.1,
      logistic_shift=shift,
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_loss_is_in_float32_whatever_the_logits_are():
  found = pix2seq.token_losses(jnp.asarray(LOGITS, jnp.bfloat16), TARGETS)
  assert found.dtype == jnp.float32


def test_weights_of_zero_stop_loss_and_gradient():
  loss = functools.partial(pix2seq.token_loss, targets=TARGETS)
  grad = jax.jit(jax.grad(lambda x, w: loss(x, weights=w)))
  found = grad(LOGITS, jnp.asarray([1.0, 0.0, 1.0]))
  assert (found[1] == 0).all() and (found[0] != 0).any()
  nothing = jnp.zeros(3)
  assert loss(LOGITS, weights=nothing) == 0
  assert (grad(LOGITS, nothing) == 0).all()
  # What has no weight may even be infinite.
  wild = np.where(np.arange(3)[:, None] == 1, -np.inf, LOGITS)
  assert np.isfinite(loss(wild, weights=np.array([1.0, 0.0, 1.0])))


def test_noise_coordinates_have_no_gradient():
  vocab = pix2seq.Vocabulary(3, 16)
  boxes = np.array([[0.1, 0.1, 0.5, 0.5]] * 3)
  noise = np.array([False, True, True])
  batch = pix2seq.build_sequences(
    boxes,
    np.array([1, 1, 1]),
    noise,
    np.ones(3, bool),
    vocab,
    corruption="none",
  )
  logits = np.random.default_rng(0).normal(size=(15, vocab.size))
  grad = jax.grad(pix2seq.token_loss)(
    jnp.asarray(logits), batch.targets, batch.weights
  )
  flat = np.abs(grad).max(-1).reshape(3, 5)
  assert (flat[1:, :4] == 0).all()
  assert (flat[0] > 0).all() and (flat[1:, 4] > 0).all()


def test_a_sharded_batch_has_the_loss_of_the_whole():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(8, 5, 7)).astype(np.float32)
  targets = rng.integers(0, 7, (8, 5))
  weights = rng.random((8, 5)).astype(np.float32) * (np.arange(8)[:, None] % 3)
  whole = pix2seq.token_loss(logits, targets, weights)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
  spec = jax.sharding.PartitionSpec("data")
  place = jax.sharding.NamedSharding(mesh, spec)
  args = jax.device_put((logits, jnp.asarray(targets), weights), place)
  np.testing.assert_allclose(
    jax.jit(pix2seq.token_loss)(*args), whole, rtol=1e-6
  )
  named = jax.shard_map(
    functools.partial(pix2seq.token_loss, axis_name="data"),
    mesh=mesh,
    in_specs=spec,
    out_specs=jax.sharding.PartitionSpec(),
  )
  np.testing.assert_allclose(jax.jit(named)(*args), whole, rtol=1e-6)


def test_metrics_leave_padding_out():
  found = pix2seq.token_metrics(LOGITS, TARGETS, WEIGHTS)
  wanted = (1.2425355295 + 0.1851824526) / 2
  np.testing.assert_allclose(found["loss_notpad"], wanted, rtol=1e-6)
  assert found["accuracy_notpad"] == 1
  wrong = pix2seq.token_metrics(LOGITS, np.array([0, 1, 2]), WEIGHTS)
  np.testing.assert_allclose(wrong["accuracy_notpad"], 0.5, rtol=1e-6)


def _loss(targets=TARGETS, weights=WEIGHTS, **settings):
  return pix2seq.token_loss(LOGITS, targets, weights, **settings)


BAD = [
  (lambda: _loss(kind="xnet"), "did you mean 'xent'"),
  (lambda: _loss(kind="focal"), "focal_gamma=None"),
  (lambda: _loss(focal_gamma=2.0), "focal_gamma=2.0"),
  (
    lambda: _loss(kind="focal", focal_gamma=2.0, label_smoothing=0.1),
    "label_smoothing=0.1",
  ),
  (lambda: _loss(label_smoothing=1.0), "[0, 1)"),
  (lambda: _loss(targets=np.array([0, 4, 1])), "targets=4"),
  (lambda: _loss(targets=np.array([0, 1])), "targets has shape (2,)"),
  (lambda: _loss(weights=np.ones(2)), "weights has shape (2,)"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_values_are_named(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value)


def test_worked_score():
  vocab = pix2seq.Vocabulary(3, 6)  # 12 ids; 1 is noise, 3 to 5 the classes
  logits = np.full(12, -2.0)
  logits[[1, 3, 4, 5]] = [3, 1, 2, 0]
  tokens = np.array([vocab.coord_token(q) for q in (0, 1, 3, 5)] + [1])
  found = pix2seq.sequences_to_boxes(tokens, logits[None], vocab)
  assert found.classes.tolist() == [2]  # token 4
  np.testing.assert_allclose(found.scores, [0.22893659], atol=1e-7)
  np.testing.assert_allclose(found.boxes, [[0, 0.2, 0.6, 1]], atol=1e-6)
  p = np.exp(logits) / np.exp(logits).sum()
  np.testing.assert_allclose(p[1], 0.62231418, atol=1e-7)
  np.testing.assert_allclose(
    found.scores[0] / p[3:6].sum(), 0.66524096, atol=1e-6
  )


def test_stray_tokens_are_clipped_and_a_tail_is_cut():
  vocab = pix2seq.Vocabulary(3, 6, text_vocab_size=4)
  tokens = np.array([[0, 3, vocab.size - 1, 11, 4, 6, 7]] * 2)
  logits = np.zeros((2, 1, vocab.size))
  found = pix2seq.sequences_to_boxes(tokens, logits, vocab)
  np.testing.assert_array_equal(found.boxes, [[[0, 0, 1, 1]]] * 2)
  assert found.tokens.shape == (2, 5)


def test_the_official_range_reads_classes_that_nothing_uses():
  vocab = pix2seq.Vocabulary(90, 1000, layout="official")
  logits = np.zeros((1, 3000))
  logits[0, [102, 500]] = [1, 2]
  tokens = np.full(5, 1000)
  used = pix2seq.sequences_to_boxes(tokens, logits, vocab)
  every = pix2seq.sequences_to_boxes(tokens, logits, vocab, over="layout")
  assert used.classes.tolist() == [2] and every.classes.tolist() == [400]


def test_objects_before_the_end():
  vocab = pix2seq.Vocabulary(3, 6)
  tokens = np.array(
    [[6] * 4 + [3] + [0] * 5 + [6] * 5, [6] * 7 + [0] + [6] * 7]
  )
  found = pix2seq.before_eos(tokens, vocab)
  assert found.tolist() == [[True, False, False], [True, False, False]]


def test_boxes_in_pixels_of_the_original():
  sizes = dict(canvas=(64, 64), unpadded=(64, 32), original=(480, 240))
  found = pix2seq.rescale_boxes([[0.25, 0.25, 0.5, 0.75]], **sizes)
  # x 0.25 of the canvas is the middle of the image; 0.75 is in the padding.
  np.testing.assert_allclose(found, [[120, 120, 240, 240]])
  with pytest.raises(ValueError, match="canvas=.0, 3"):
    pix2seq.rescale_boxes([[0, 0, 1, 1]], **{**sizes, "canvas": (0, 3)})
  many = pix2seq.rescale_boxes(
    np.zeros((2, 3, 4)), **{**sizes, "original": np.array([[4, 4], [5, 5]])}
  )
  assert many.shape == (2, 3, 4)
