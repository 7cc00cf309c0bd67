"""Generated detection data: exact boxes, limits, the same at every call."""

import pickle

import numpy as np
import pytest

from locojax.data import boxes, canvases, sources

PLAIN = dict(clutter=0, noise=0.0)


def _pixels(example):
  found = example["boxes"] * np.tile(example["size"], 2)
  np.testing.assert_allclose(found, np.round(found), atol=1e-4)
  return np.round(found).astype(int)


def _seen_box(image):
  """The tightest box around what differs from the background."""
  ground = np.median(image.reshape(-1, 3), axis=0)
  seen = (image != ground).any(-1)
  rows, columns = (np.flatnonzero(seen.any(axis=a)) for a in (1, 0))
  return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


def test_boxes_of_shapes_are_exact():
  source = canvases.shapes(80, seed=0, objects=(1, 1), **PLAIN)
  labels = []
  for example in source:
    assert example["image"].shape == (48, 48, 3)
    assert _pixels(example).tolist() == [_seen_box(example["image"])]
    side = np.diff(_pixels(example)[0].reshape(2, 2), axis=0)[0]
    assert side[0] == side[1] and 9 <= side[0] <= 18
    assert example["area"][0] == side[0] ** 2
    labels += example["labels"].tolist()
  assert set(labels) == {1, 2, 3, 4}
  assert source.classes == ("square", "disc", "triangle", "cross")


def test_grounds_have_the_values_told():
  source = canvases.shapes(40, seed=0, ground=(10, 14), **PLAIN)
  found = {v for e in source for v in np.median(e["image"], (0, 1)).tolist()}
  assert found == set(range(10, 15))


@pytest.mark.parametrize("shape", canvases.SHAPES)
@pytest.mark.parametrize("side", [1, 2, 9, 18])
def test_masks_touch_all_sides(shape, side):
  mask = canvases._mask(shape, side)
  for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
    assert edge.any()
  np.testing.assert_array_equal(mask, mask[:, ::-1])


def _overlap(a, b):
  low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
  area = lambda c: np.prod(c[2:] - c[:2])
  return np.prod(np.maximum(high - low, 0)) / min(area(a), area(b))


def test_objects_are_as_many_as_told_and_overlap_little():
  source = canvases.shapes(60, seed=1, objects=(1, 5), overlap=0.2)
  number = [len(e["labels"]) for e in source]
  assert min(number) == 1 and max(number) >= 4
  for example in source:
    own = _pixels(example)
    assert own.min() >= 0 and own.max() <= 48
    pairs = [(a, b) for i, a in enumerate(own) for b in own[:i]]
    assert all(_overlap(a, b) <= 0.2 + 1e-6 for a, b in pairs)
  empty = canvases.shapes(2, seed=1, objects=(0, 0))[1]
  assert empty["boxes"].shape == (0, 4) and empty["area"].shape == (0,)


def test_example_i_is_a_function_of_seed_and_i():
  one = canvases.shapes(5, seed=3)
  again = pickle.loads(pickle.dumps(canvases.shapes(9, seed=3)))
  other = canvases.shapes(5, seed=4)
  for i in (4, 0, 2):
    for name, value in one[i].items():
      np.testing.assert_array_equal(value, again[i][name])
    assert not np.array_equal(one[i]["image"], other[i]["image"])
  sources.check(one)
  truth = boxes.ground_truth(one)
  assert truth["categories"].tolist() == [1, 2, 3, 4]
  assert truth["images"].tolist() == [1, 2, 3, 4, 5]


def _sprites():
  grey = np.zeros((10, 12), np.uint8)
  grey[2:9, 3:6] = 255
  colour = np.zeros((14, 9, 4), np.uint8)
  colour[1:13, 2:8] = [200, 30, 30, 255]
  return [grey, colour]


def test_boxes_of_pasted_objects_are_exact():
  source = canvases.pasted(
    _sprites(), [1, 2], 40, seed=0, objects=(1, 1), size=(40, 64), **PLAIN
  )
  for example in source:
    assert example["image"].shape == (40, 64, 3)
    own = _pixels(example)
    assert own.tolist() == [_seen_box(example["image"])]
    height, width = own[0, 2:] - own[0, :2]
    ratio = {1: 7 / 3, 2: 12 / 6}[int(example["labels"][0])]
    assert abs(height - ratio * width) <= ratio
    if example["labels"][0] == 2:  # Its colour, not mixed with transparency.
      top, left, bottom, right = own[0]
      inside = example["image"][top + 1 : bottom - 1, left + 1 : right - 1]
      assert np.abs(inside.astype(int) - [200, 30, 30]).max() <= 1
  assert source.classes == ("1", "2")


def test_pictures_without_a_visible_pixel_are_named():
  sprites = [_sprites()[0], np.zeros((4, 4), np.uint8)]
  assert canvases.visible(sprites).tolist() == [True, False]
  with pytest.raises(ValueError, match=r"sprites\[1\] has no visible pixel"):
    canvases.pasted(sprites, [1, 1], 3, seed=0)


@pytest.mark.real_data
def test_emoji_and_digits(data_dir):
  for name, key in (("emoji_pairs", None), ("mnist", "label")):
    real = sources.from_tfds(
      name, split="test[:30]", data_dir=data_dir / "tfds"
    )
    sprites = [real[i]["image"] for i in range(30)]
    labels = [1 if key is None else int(real[i][key]) + 1 for i in range(30)]
    keep = np.flatnonzero(canvases.visible(sprites))
    source = canvases.pasted(
      [sprites[i] for i in keep], [labels[i] for i in keep], 8, seed=0, **PLAIN
    )
    for example in source:
      assert 1 <= len(example["labels"]) <= 4
      own = _pixels(example)
      if len(own) == 1:
        assert own.tolist() == [_seen_box(example["image"])]


BAD = [
  (lambda: canvases.shapes(0, seed=0), "num=0"),
  (lambda: canvases.shapes(1, seed=-1), "seed=-1"),
  (lambda: canvases.shapes(1, seed=0, size=48), "size=48"),
  (lambda: canvases.shapes(1, seed=0, objects=(3, 1)), "(least, most)"),
  (lambda: canvases.shapes(1, seed=0, sides=(9, 49)), "sides[1]=49"),
  (lambda: canvases.shapes(1, seed=0, overlap=2), "overlap=2"),
  (lambda: canvases.shapes(1, seed=0, ground=(9, 256)), "ground[1]=256"),
  (lambda: canvases.pasted([], [], 1, seed=0), "len(sprites)=0"),
  (lambda: canvases.pasted(_sprites(), [1], 1, seed=0), "labels has shape"),
  (lambda: canvases.pasted(_sprites(), [0, 1], 1, seed=0), "labels=0"),
  (
    lambda: canvases.pasted(_sprites(), [1, 3], 1, seed=0, classes=["a", "b"]),
    "labels=3",
  ),
  (
    lambda: canvases.pasted([np.zeros((2, 2, 3), np.uint8)], [1], 1, seed=0),
    "sprites[0] has shape",
  ),
  (lambda: canvases.pasted([np.ones((2, 2))], [1], 1, seed=0), "dtype float64"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_values_are_named(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value)
