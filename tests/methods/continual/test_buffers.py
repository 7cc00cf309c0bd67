"""Buffers: uniform inclusion, rings, balance, masks, exactness."""

from __future__ import annotations

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods import continual

EXAMPLE = {"x": np.float32(0), "label": np.int32(0)}
KEY = jax.random.key(3)


@jax.jit
def _insert(buffer, examples, key, mask):
  labels = examples["label"]
  return continual.insert(buffer, examples, key=key, labels=labels, mask=mask)


def _stream(labels):
  labels = np.asarray(labels, np.int32)
  return {"x": np.arange(len(labels), dtype=np.float32), "label": labels}


def _fill(buffer, stream, *, batch, mask=None, key=KEY):
  num = len(stream["label"])
  mask = np.ones(num, np.float32) if mask is None else mask
  for i in range(0, num, batch):
    piece = {k: v[i : i + batch] for k, v in stream.items()}
    buffer = _insert(buffer, piece, key, mask[i : i + batch])
  return buffer


def _make(kind, capacity=6, num_classes=3):
  if kind == "reservoir":
    return continual.reservoir(EXAMPLE, capacity=capacity)
  if kind == "ring":
    per_class = capacity // num_classes
    return continual.per_class_ring(
      EXAMPLE, per_class=per_class, num_classes=num_classes
    )
  return continual.balanced(EXAMPLE, capacity=capacity, num_classes=num_classes)


KINDS = pytest.mark.parametrize("kind", ["reservoir", "ring", "balanced"])
LABELS = np.random.default_rng(0).integers(0, 3, 24)


def _same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@KINDS
def test_the_cut_into_batches_does_not_matter(kind):
  whole = _fill(_make(kind), _stream(LABELS), batch=24)
  for batch in (1, 8):
    _same(whole, _fill(_make(kind), _stream(LABELS), batch=batch))


@KINDS
def test_masked_examples_are_as_good_as_absent(kind):
  mask = np.float32(np.arange(24) % 3 != 1)
  kept = {k: v[mask != 0] for k, v in _stream(LABELS).items()}
  want = _fill(_make(kind), kept, batch=8)
  stream = _stream(LABELS)
  stream["x"] = np.where(mask != 0, stream["x"], np.nan)
  _same(want, _fill(_make(kind), stream, batch=8, mask=mask))


@KINDS
def test_a_buffer_saved_midway_goes_on_as_if_it_had_not_been(kind):
  stream = _stream(LABELS)
  first = {k: v[:8] for k, v in stream.items()}
  rest = {k: v[8:] for k, v in stream.items()}
  buffer = _fill(_make(kind), first, batch=8)
  leaves, shape = jax.tree.flatten(buffer)
  saved = [np.array(x) for x in leaves]
  buffer = jax.tree.unflatten(shape, [jnp.asarray(x) for x in saved])
  _same(_fill(_make(kind), stream, batch=8), _fill(buffer, rest, batch=8))


def test_a_reservoir_follows_algorithm_r():
  capacity, num = 5, 40
  found = _fill(_make("reservoir", capacity), _stream([0] * num), batch=8)
  slots = []
  for n in range(num):
    if n < capacity:
      slots.append(float(n))
      continue
    draw = jax.random.randint(jax.random.fold_in(KEY, n), (), 0, n + 1)
    if draw < capacity:
      slots[int(draw)] = float(n)
  assert found.examples["x"].tolist() == slots
  assert int(found.num_seen) == num and int(found.num_filled) == capacity


def test_a_reservoir_holds_each_example_with_the_same_probability():
  capacity, num, runs = 4, 16, 2000
  empty = _make("reservoir", capacity)
  mask = np.ones(num, np.float32)
  many = jax.jit(
    jax.vmap(lambda key: _insert(empty, _stream([0] * num), key, mask))
  )(jax.random.split(jax.random.key(0), runs))
  counts = np.bincount(np.asarray(many.examples["x"]).astype(int).ravel())
  share = capacity / num
  deviation = np.sqrt(runs * share * (1 - share))
  assert np.abs(counts - runs * share).max() < 4 * deviation
  # Chi-squared with 15 degrees, as the examples of a reservoir differ: the
  # statistic is divided by 1 - share; 37.7 is exceeded once in a thousand.
  chi = np.sum((counts - runs * share) ** 2) / (runs * share * (1 - share))
  assert chi * (num - 1) / num < 37.7
  # No example is twice in a buffer.
  assert all(len(set(row)) == capacity for row in many.examples["x"].tolist())


def test_a_ring_keeps_the_latest_of_each_class():
  buffer = _fill(_make("ring"), _stream(LABELS), batch=8)
  for label in range(3):
    latest = np.flatnonzero(label == LABELS)[-2:]
    inside = np.asarray(buffer.examples["x"])[
      np.asarray(buffer.classes) == label
    ]
    assert sorted(inside.tolist()) == latest.tolist()
  assert buffer.counts.tolist() == np.bincount(LABELS).tolist()
  # It needs no key.
  continual.insert(buffer, _stream([0]), labels=[0])


def test_one_batch_may_go_round_a_ring():
  buffer = _fill(_make("ring"), _stream([1] * 7), batch=7)
  inside = np.asarray(buffer.examples["x"])[np.asarray(buffer.classes) == 1]
  assert sorted(inside.tolist()) == [5, 6]


def _greedy(labels, capacity, key):
  """GDumb's sampler, one example after the other, in plain Python."""
  slots, seen = [], set()
  for n, label in enumerate(labels.tolist()):
    seen.add(label)
    counts = collections.Counter(c for c, _ in slots)
    if counts[label] * len(seen) >= capacity:
      continue
    if len(slots) < capacity:
      slots.append((label, n))
      continue
    largest = min(counts, key=lambda c: (-counts[c], c))
    of_it = [i for i, (c, _) in enumerate(slots) if c == largest]
    draw = jax.random.randint(jax.random.fold_in(key, n), (), 0, len(of_it))
    slots[of_it[int(draw)]] = (label, n)
  return slots


def test_a_balanced_buffer_follows_the_greedy_sampler():
  labels = np.array([0] * 8 + [1] * 3 + [0] * 3 + [2] * 8 + [1] * 2)
  buffer = _fill(_make("balanced"), _stream(labels), batch=8)
  want = _greedy(labels, 6, KEY)
  got = zip(buffer.classes.tolist(), buffer.examples["x"].tolist())
  assert [(c, int(x)) for c, x in got] == want
  assert buffer.class_counts(3).tolist() == [2, 2, 2]


def test_a_balanced_buffer_uses_all_its_room_before_classes_come():
  buffer = _fill(_make("balanced"), _stream([0] * 8), batch=8)
  assert buffer.class_counts(3).tolist() == [6, 0, 0]
  buffer = _fill(buffer, _stream([2] * 8), batch=8)
  assert buffer.class_counts(3).tolist() == [3, 0, 3]


@KINDS
def test_labels_stay_with_their_examples(kind):
  buffer = _fill(_make(kind), _stream(LABELS), batch=8)
  held = continual.contents(buffer)
  np.testing.assert_array_equal(held["label"], LABELS[held["x"].astype(int)])


def test_a_sample_is_without_replacement_uniform_and_masked_when_empty():
  buffer = _make("reservoir")
  draw = jax.jit(functools.partial(continual.sample, num=4))
  _, mask = draw(buffer, KEY)
  assert mask.tolist() == [0] * 4
  buffer = _fill(buffer, _stream([0] * 6), batch=6)
  keys = jax.random.split(jax.random.key(1), 600)
  rows, mask = jax.vmap(lambda k: draw(buffer, k))(keys)
  assert mask.min() == 1
  rows = np.asarray(rows["x"]).astype(int)
  assert all(len(set(r)) == 4 for r in rows.tolist())
  counts = np.bincount(rows.ravel(), minlength=6)
  assert np.abs(counts - 400).max() < 4 * np.sqrt(600 * 2 / 9)


def test_a_sample_of_few_examples_repeats_them_evenly():
  buffer = _fill(_make("reservoir"), _stream([0] * 3), batch=3)
  rows, _ = continual.sample(buffer, KEY, 8)
  counts = np.bincount(np.asarray(rows["x"]).astype(int))
  assert sorted(counts.tolist()) == [2, 3, 3]


def test_any_tree_of_arrays_is_kept():
  example = {
    "image": np.zeros((2, 2, 1), np.uint8),
    "more": {"logits": jnp.ones(3)},
  }
  buffer = continual.reservoir(example, capacity=2)
  batch = jax.tree.map(lambda x: np.stack([x, x + 1]), example)
  batch = jax.tree.map(lambda x, e: x.astype(e.dtype), batch, example)
  buffer = continual.insert(buffer, batch, key=KEY)
  _same(buffer.examples, batch)


def test_counters_stop_at_the_end_of_int32():
  last = np.iinfo(np.int32).max - 1
  buffer = _fill(_make("reservoir"), _stream([0] * 6), batch=6)
  buffer = continual.ReplayBuffer(
    buffer.examples, buffer.classes, jnp.array([last - 2]), "reservoir"
  )
  after = _fill(buffer, _stream([0] * 8), batch=8)
  assert after.counts.tolist() == [last] and int(after.num_filled) == 6


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"key": None}, "key=None"),
    ({"labels": None}, "labels=None"),
    ({"labels": [0, 3]}, r"labels holds \[3\]"),
    ({"labels": [0]}, "labels has shape"),
    ({"mask": [1.0]}, "mask has shape"),
    ({"examples": {"x": np.zeros(2, np.float32)}}, "names"),
    (
      {"examples": {"x": np.zeros(2, np.float32), "label": np.zeros(3, int)}},
      "leading sizes",
    ),
    (
      {
        "examples": {
          "x": np.zeros((2, 1), "float32"),
          "label": np.zeros(2, int),
        }
      },
      "examples/x",
    ),
    (
      {"examples": {"x": np.zeros(2, np.uint8), "label": np.zeros(2, int)}},
      "dtype uint8",
    ),
  ],
)
def test_bad_insertions_are_refused(changes, words):
  settings = {"examples": _stream([0, 1]), "labels": [0, 1], "key": KEY}
  settings = {**settings, **changes}
  with pytest.raises(ValueError, match=words):
    continual.insert(_make("balanced"), settings.pop("examples"), **settings)


def test_bad_buffers_are_refused():
  with pytest.raises(ValueError, match="capacity=0"):
    continual.reservoir(EXAMPLE, capacity=0)
  with pytest.raises(ValueError, match=r"capacity=2.*\[3, "):
    continual.balanced(EXAMPLE, capacity=2, num_classes=3)
  with pytest.raises(ValueError, match="per_class=0"):
    continual.per_class_ring(EXAMPLE, per_class=0, num_classes=2)
  with pytest.raises(ValueError, match="no arrays"):
    continual.reservoir({}, capacity=2)
  with pytest.raises(ValueError, match="num=0"):
    continual.sample(_make("ring"), KEY, 0)
  with pytest.raises(ValueError, match="empty"):
    continual.contents(_make("ring"))
