"""Orders, noise objects and sequences: worked numbers and invariants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax import pix2seq

OFFICIAL = pix2seq.Vocabulary(90, 1000, layout="official")
VOCAB = pix2seq.Vocabulary(4, 64)
BOXES = np.array(
  [[0.1, 0.2, 0.55, 0.6], [0.3, 0.35, 0.9, 0.95], [0.05, 0.05, 0.15, 0.25]]
)


def _objects(num, seed=0, slots=None):
  """Proper boxes with labels 1 to 4 in `slots` slots."""
  slots = num if slots is None else slots
  rng = np.random.default_rng(seed)
  low = rng.uniform(0, 0.6, (slots, 2))
  boxes = np.concatenate([low, low + rng.uniform(0.1, 0.4, (slots, 2))], 1)
  labels = rng.integers(1, 5, slots)
  return boxes.astype(np.float32), labels, np.arange(slots) < num


def test_worked_sequence():
  batch = pix2seq.build_sequences(
    BOXES,
    np.array([3, 17, 0]),
    np.array([False, False, True]),
    np.ones(3, bool),
    OFFICIAL,
    corruption="none",
  )
  wanted = [
    *(1100, 1200, 1549, 1599, 103),
    *(1300, 1350, 1899, 1949, 117),
    *(1050, 1050, 1150, 1250, 30),
  ]
  assert batch.targets.tolist() == wanted
  assert batch.inputs.tolist() == [10, *wanted[:-1]]
  assert batch.weights.tolist() == [1.0] * 10 + [0, 0, 0, 0, 1]


def test_empty_slots_are_padding_with_the_weight_of_the_end():
  boxes, labels, valid = _objects(2, slots=4)
  none = np.zeros(4, bool)
  batch = pix2seq.build_sequences(
    *(boxes, labels, none, valid, VOCAB),
    key=jax.random.key(0),
    noise_weight=0.7,
    eos_weight=0.25,
  )
  assert (np.asarray(batch.targets[10:]) == 0).all()
  assert (np.asarray(batch.inputs[11:]) == 0).all()
  assert batch.weights.tolist() == [1.0] * 10 + [0.25] * 10
  noisy = pix2seq.build_sequences(
    *(boxes, labels, valid, np.ones(4, bool), VOCAB),
    key=jax.random.key(0),
    noise_weight=0.7,
  )
  np.testing.assert_allclose(noisy.weights[:5], [0, 0, 0, 0, 0.7])
  assert noisy.weights[10:].tolist() == [1.0] * 10


def _shown(corruption, **settings):
  """Class tokens that are fed for 4 objects, two of them noise, 2000 times."""
  boxes, labels, valid = _objects(4)
  labels = np.array([1, 2, 3, 4])
  noise = np.array([False, False, True, True])
  build = lambda key: pix2seq.build_sequences(
    *(boxes, labels, noise, valid, OFFICIAL),
    corruption=corruption,
    key=key,
    **settings,
  )
  keys = jax.random.split(jax.random.key(1), 2000)
  batch = jax.jit(jax.vmap(build))(keys)
  slots = np.asarray(batch.inputs)[:, 1:]
  slots = np.concatenate([slots, np.zeros((2000, 1), int)], 1).reshape(-1, 4, 5)
  targets = np.asarray(batch.targets).reshape(-1, 4, 5)
  np.testing.assert_array_equal(slots[..., :4], targets[..., :4])
  assert (targets[..., 4] == [101, 102, 30, 30]).all()
  return slots[:, :3, 4]


SHARES = {  # of the true class, noise, any class; for real objects
  "none": (1, 0, 0),
  "rand_cls": (0, 0, 1),
  "real_n_fake_cls": (0.5, 0.5, 0),
  "rand_n_fake_cls": (0, 0.5, 0.5),
  "real_n_rand_n_fake_cls": (0.5, 0.25, 0.25),
}


@pytest.mark.parametrize("corruption", pix2seq.CORRUPTIONS)
def test_what_is_fed_has_the_shares_of_the_corruption(corruption):
  true, fake, any_ = SHARES[corruption]
  shown = _shown(corruption)
  by_chance = any_ / 90
  assert abs((shown[:, 0] == 101).mean() - true - by_chance) < 0.04
  assert abs((shown[:, 0] == 30).mean() - fake) < 0.04
  # Noise is corrupted as well: its true class is the noise token.
  assert abs((shown[:, 2] == 30).mean() - fake - true) < 0.04
  real = shown[shown != 30]
  assert real.min() >= 101 and real.max() <= 190
  # Objects of one image draw by themselves.
  if any_:
    assert (shown[:, 0] != shown[:, 1]).any()


def test_random_classes_may_be_those_of_the_official_range():
  shown = _shown("rand_cls", random_classes="layout")
  assert shown.min() < 110 and shown.max() > 900 and shown.max() < 1000


def test_the_way_there_and_back_is_within_half_a_bin():
  boxes, labels, valid = _objects(6)
  none = np.zeros(6, bool)
  batch = pix2seq.build_sequences(
    *(boxes, labels, none, valid, VOCAB), corruption="none"
  )
  logits = jax.nn.one_hot(batch.targets[4::5], VOCAB.size)
  found = pix2seq.sequences_to_boxes(batch.targets, logits, VOCAB)
  assert np.abs(found.boxes - boxes).max() <= 0.5 / 63 + 1e-6
  np.testing.assert_array_equal(found.classes, labels)


def test_batches_are_their_images():
  many = [_objects(3, seed) for seed in range(3)]
  boxes, labels, valid = (np.stack(part) for part in zip(*many))
  none = np.zeros_like(valid)
  build = functools.partial(
    pix2seq.build_sequences, vocab=VOCAB, corruption="none"
  )
  whole = build(boxes, labels, none, valid)
  for i in range(3):
    one = build(boxes[i], labels[i], none[i], valid[i])
    for a, b in zip(whole, one):
      np.testing.assert_array_equal(a[i], b)


def _keys_of(ordered, kind):
  height, width = (
    ordered.boxes[:, i + 2] - ordered.boxes[:, i] for i in (0, 1)
  )
  return {
    "area": -height * width,
    "dist2ori": ordered.boxes[:, 0] ** 2 + ordered.boxes[:, 1] ** 2,
  }[kind]


@pytest.mark.parametrize("order", pix2seq.ORDERS)
def test_orders(order):
  boxes, labels, valid = _objects(6, slots=9)
  valid = np.roll(valid, 2)
  run = functools.partial(pix2seq.order_objects, boxes, labels, valid, order)
  found = run(jax.random.key(0))
  assert found.valid.tolist() == [True] * 6 + [False] * 3
  rows = lambda b, l: sorted(map(tuple, np.c_[b, l].tolist()))
  assert rows(found.boxes[:6], found.labels[:6]) == rows(
    boxes[valid], labels[valid]
  )
  first = pix2seq.Ordered(*(np.asarray(a)[:6] for a in found))
  by_class = order.startswith("class_")
  if by_class:
    assert (np.diff(first.labels) >= 0).all()
  kind = order.removeprefix("class_")
  if kind in ("area", "dist2ori"):
    key = _keys_of(first, kind)
    step = np.diff(key)
    assert (step[np.diff(first.labels) == 0] >= 0).all() and key.size
    assert by_class or (step >= 0).all()
  if kind == "none":
    np.testing.assert_array_equal(first.boxes, boxes[valid])
  if kind == "random":
    again, other = run(jax.random.key(0)), run(jax.random.key(7))
    np.testing.assert_array_equal(found.boxes, again.boxes)
    assert not np.array_equal(found.boxes, other.boxes)
    with pytest.raises(ValueError, match="key=None"):
      run()


def test_orders_that_are_no_orders_in_the_official_code():
  # There areas below 1 become 0, and distances are taken axis by axis.
  boxes = np.array(
    [[0, 0.5, 0.1, 0.6], [0.2, 0.2, 0.9, 0.9], [0.4, 0, 0.6, 0.1]]
  )
  labels, valid = np.array([1, 2, 3]), np.ones(3, bool)
  by = lambda order: pix2seq.order_objects(boxes, labels, valid, order)
  assert by("area").labels.tolist() == [2, 3, 1]
  assert by("dist2ori").labels.tolist() == [2, 3, 1]


@functools.lru_cache
def _injected(num, slots=5, max_objects=12, many=400, **settings):
  boxes, labels, valid = _objects(num, slots=slots)
  inject = functools.partial(
    pix2seq.inject_noise_objects, max_objects=max_objects, **settings
  )
  keys = jax.random.split(jax.random.key(2), many)
  run = jax.jit(jax.vmap(inject, in_axes=(0, None, None, None)))
  found = jax.tree.map(np.asarray, run(keys, boxes, labels, valid))
  return found, boxes, labels


@pytest.mark.parametrize("num", [0, 3, 5])
def test_noise_fills_the_slots_behind_the_real_objects(num):
  found, boxes, labels = _injected(num)
  assert found.boxes.shape == (400, 12, 4) and found.valid.all()
  assert (found.is_noise == (np.arange(12) >= num)).all()
  np.testing.assert_array_equal(found.boxes[:, :num], [boxes[:num]] * 400)
  np.testing.assert_array_equal(found.labels[:, :num], [labels[:num]] * 400)
  assert (found.labels[:, num:] == 0).all()
  assert found.boxes.min() >= 0 and found.boxes.max() <= 1
  assert (found.boxes[..., :2] <= found.boxes[..., 2:]).all()
  assert len({b.tobytes() for b in found.boxes}) == 400


def test_more_objects_than_slots_are_cut():
  found, boxes, _ = _injected(5, max_objects=3, many=2)
  np.testing.assert_array_equal(found.boxes, [boxes[:3]] * 2)
  assert not found.is_noise.any()


def _near(found, boxes, num):
  """Which noise objects are copies of real ones, edge by edge within 10 %."""
  size = np.tile(boxes[:num, 2:] - boxes[:num, :2], 2)
  far = np.abs(found.boxes[:, num:, None] - boxes[:num])
  return (far <= 0.1 * size + 1e-6).all(-1)


def test_copies_are_near_and_their_number_uniform():
  num, free = 3, 9
  found, boxes, _ = _injected(num)
  copies = _near(found, boxes, num).any(-1).sum(1)
  # U{0..9} has mean 4.5; boxes moved by chance onto a real one are few.
  assert abs(copies.mean() - 4.5) < 0.6
  assert copies.min() == 0 and copies.max() == free
  some, boxes, _ = _injected(num, dup=0.0)
  assert _near(some, boxes, num).any(-1).mean() < 0.03
  every, boxes, _ = _injected(num, dup=1.0)
  near = _near(every, boxes, num)
  assert near.any(-1).all()
  # Drawn without replacement from 4 tiles of 3: none more than 4 times.
  assert near.sum(1).max() <= 4


def test_bad_boxes_are_moved_or_random_half_each():
  found, boxes, _ = _injected(3, dup=0.0)
  noise = found.boxes[:, 3:]
  inside = ((noise > 0) & (noise < 1)).all(-1)
  size = noise[..., 2:] - noise[..., :2]
  known = boxes[:3, 2:] - boxes[:3, :2]
  kept = (np.abs(size[:, :, None] - known) < 1e-5).all(-1).any(-1)
  # Of those that were not clipped, about half have the size of a real one;
  # small ones are clipped less, so only the range is held.
  assert 0.3 < kept[inside].mean() < 0.9
  empty, _, _ = _injected(0, dup="uniform")
  assert empty.is_noise.all()


def test_mixed_noise_comes_between_and_copies_last():
  found, boxes, labels = _injected(3, mix_rate=1.0, dup=0.5)
  assert (found.is_noise.sum(1) == 9).all()
  assert not (found.is_noise == (np.arange(12) >= 3)).all(1).all()
  assert found.is_noise[:, -4:].all()  # round(0.5 * 9) copies
  far = np.abs(found.boxes[:, -4:, None] - boxes[:3]).max(-1).min(-1)
  assert far.max() < 0.05
  shown = np.sort(found.labels, axis=1)[:, -3:]
  np.testing.assert_array_equal(shown, [np.sort(labels[:3])] * 400)


def test_a_key_decides_and_images_of_a_batch_differ():
  boxes, labels, valid = _objects(2, slots=3)
  twice = [np.stack([a, a]) for a in (boxes, labels, valid)]
  inject = jax.jit(lambda key: pix2seq.inject_noise_objects(key, *twice, 6))
  run = lambda seed: inject(jax.random.key(seed))
  one, again, other = run(0), run(0), run(1)
  np.testing.assert_array_equal(one.boxes, again.boxes)
  assert not np.array_equal(one.boxes, other.boxes)
  assert not np.array_equal(one.boxes[0], one.boxes[1])


def test_permuting_noise_leaves_the_expected_loss():
  # Logits that do not depend on the place: the loss is a sum over objects.
  found, _, _ = _injected(3, many=1)
  objects = [a[0] for a in found]
  order = np.r_[:3, 3 + np.random.default_rng(0).permutation(9)]
  table = np.random.default_rng(1).normal(size=VOCAB.size)

  @jax.jit
  def loss(*objects):
    batch = pix2seq.build_sequences(*objects, VOCAB, corruption="none")
    logits = jnp.broadcast_to(table, (*batch.targets.shape, VOCAB.size))
    return pix2seq.token_loss(logits, batch.targets, batch.weights)

  np.testing.assert_allclose(
    loss(*objects), loss(*(a[order] for a in objects)), rtol=1e-6
  )


def test_the_printed_sequence():
  batch = pix2seq.build_sequences(
    BOXES,
    np.array([3, 4, 1]),
    np.array([False, False, True]),
    np.array([True, False, True]),
    VOCAB,
    corruption="none",
  )
  names = ["cat", "dog", "hen", "fox"]
  assert pix2seq.show(batch, VOCAB, names).splitlines() == [
    "prompt <detection>",
    "slot  fed              asked           weight",
    "0     6 13 35 38 hen   6 13 35 38 hen  1 1 1 1 1",
    "1     . . . . .        . . . . .       0.1 0.1 0.1 0.1 0.1",
    "2     3 3 9 16 (none)  3 3 9 16 noise  0 0 0 0 1",
  ]
  with pytest.raises(ValueError, match="4 names"):
    pix2seq.words([1], VOCAB, ["cat"])


def _build(boxes=BOXES, labels=(1, 2, 3), noise=None, **settings):
  noise = np.zeros(3, bool) if noise is None else noise
  settings = {"corruption": "none", **settings}
  return pix2seq.build_sequences(
    boxes, np.asarray(labels), noise, np.ones(3, bool), VOCAB, **settings
  )


BAD = [
  (lambda: _build(boxes=BOXES[:, :3]), "[..., 4]"),
  (lambda: _build(boxes=np.where(BOXES > 0.9, np.nan, BOXES)), "finite"),
  (lambda: _build(boxes=BOXES * 640), "normalised yxyx"),
  (lambda: _build(boxes=BOXES[:, [2, 1, 0, 3]]), "ymin <= ymax"),
  (lambda: _build(labels=(1, 0, 2)), "labels=0"),
  (lambda: _build(labels=(1, 5, 2)), "in [1, 4]"),
  (lambda: _build(labels=(1, 2)), "labels has shape (2,)"),
  (lambda: _build(labels=(1.0, 2.0, 3.0)), "integers"),
  (lambda: _build(noise=np.zeros(3)), "is_noise has dtype float64"),
  (lambda: _build(corruption="real_cls"), "real_n_fake_cls"),
  (lambda: _build(corruption="rand_cls"), "key=None"),
  (lambda: _build(eos_weight=-1), "eos_weight=-1"),
  (
    lambda: pix2seq.order_objects(
      BOXES, np.ones(3, int), np.ones(3, bool), "aera"
    ),
    "did you mean 'area'",
  ),
  (
    lambda: pix2seq.inject_noise_objects(
      jax.random.key(0), BOXES, np.ones(3, int), np.ones(3, bool), 0
    ),
    "max_objects=0",
  ),
  (
    lambda: pix2seq.inject_noise_objects(
      jax.random.key(0), BOXES, np.ones(3, int), np.ones(3, bool), 9, dup="all"
    ),
    "dup='all'",
  ),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_values_are_named(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value)
