"""Augmentations of images with boxes: pixels follow their boxes."""

import functools

import numpy as np
import pytest

from locojax.data import box_transforms as bt
from locojax.data import canvases, pipeline, sources

SIZE = (30, 44)
BOX = np.array([6, 10, 18, 33])


def _example(box=BOX, size=SIZE, dtype=np.uint8, **more):
  """A white box on black, as an example with one object."""
  image = np.zeros((*size, 3), dtype)
  image[box[0] : box[2], box[1] : box[3]] = 255 if dtype == np.uint8 else 1
  return {
    "image": image,
    "boxes": np.array([box / np.tile(size, 2)], np.float32),
    "labels": np.array([2], np.int32),
    "area": np.array([276.0], np.float32),
    "is_crowd": np.array([False]),
    "image_id": np.int64(1),
    "size": np.array(size, np.int32),
    **more,
  }


def _seen(example, low=128):
  image = example["image"][..., 0]
  seen = image >= (low if image.dtype == np.uint8 else 0.5)
  rows, columns = (np.flatnonzero(seen.any(axis=a)) for a in (1, 0))
  return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


def _pixels(example):
  return example["boxes"][0] * np.tile(example["image"].shape[:2], 2)


FOLLOW = {
  "scale_jitter": (functools.partial(bt.scale_jitter, size=(32, 32)), 1.0),
  "resize_to_fit": (functools.partial(bt.resize_to_fit, size=(50, 60)), 1.0),
  "fixed_crop": (functools.partial(bt.fixed_crop, size=(25, 30)), 0.01),
  "flip": (bt.flip, 0.01),
  "random_flip": (bt.random_flip, 0.01),
  "pad": (functools.partial(bt.pad, size=(48, 64), value=0.3), 0.01),
  "to_float": (bt.to_float, 0.01),
}


@pytest.mark.parametrize("name", FOLLOW)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pixels_follow_their_box(name, dtype):
  transform, room = FOLLOW[name]
  for seed in range(15):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, [18, 30])
    own = np.concatenate([corner, corner + rng.integers(6, 12, 2)])
    given = _example(own, dtype=dtype)
    found = transform(given, rng)
    if not bt.filter_invalid(found)["labels"].size:
      continue  # The crop has none of it.
    assert np.abs(_seen(found) - _pixels(found)).max() <= room
    assert found["boxes"].dtype == np.float32
    # What belongs to the image that was read stays.
    assert found["size"].tolist() == list(SIZE) and found["area"][0] == 276


def test_the_whole_training_keeps_pixels_and_boxes_together():
  train = bt.training((40, 40), 3, low=0.6, high=1.5)
  sizes = set()
  for seed in range(25):
    found = train(_example(), np.random.default_rng(seed))
    assert found["image"].shape == (40, 40, 3)
    assert found["boxes"].shape == (3, 4) and found["labels"].shape == (3,)
    sizes.add(tuple(found["unpadded"].tolist()))
    if found["valid"].any():
      assert found["valid"].tolist() == [True, False, False]
      assert np.abs(_seen(found, 140) - _pixels(found)).max() <= 1.0
      assert found["labels"].tolist() == [2, 0, 0]
  assert len(sizes) > 5


def test_flipping_twice_is_the_identity():
  rng = np.random.default_rng(0)
  given = _example() | {"image": rng.integers(0, 256, (9, 8, 3), np.uint8)}
  twice = bt.flip(bt.flip(given))
  np.testing.assert_array_equal(twice["image"], given["image"])
  np.testing.assert_allclose(twice["boxes"], given["boxes"], atol=1e-7)
  never = bt.random_flip(given, rng, probability=0.0)
  always = bt.random_flip(given, rng, probability=1.0)
  np.testing.assert_array_equal(never["image"], given["image"])
  np.testing.assert_array_equal(always["image"], bt.flip(given)["image"])


def test_scale_jitter_has_the_sizes_of_the_method():
  rng = np.random.default_rng(0)
  sides = []
  for _ in range(200):
    found = bt.scale_jitter(_example(), rng, size=(60, 60), low=0.5, high=2.0)
    height, width = found["image"].shape[:2]
    sides.append(width / 60)  # The longer side of s = 1 is 60.
    assert abs(height / width - 30 / 44) < 0.05
  assert 0.48 < min(sides) < 0.6 and 1.9 < max(sides) <= 2.0
  one = bt.scale_jitter(_example(), rng, size=(60, 60), low=1.0, high=1.0)
  assert one["image"].shape[:2] == (int(30 * 60 / 44), 60)


def test_crops_have_two_independent_offsets():
  rng = np.random.default_rng(0)
  y, x = np.meshgrid(np.arange(60), np.arange(60), indexing="ij")
  image = np.stack([y, x, y], axis=-1).astype(np.uint8)
  corners = np.array(
    [
      bt.fixed_crop(_example() | {"image": image}, rng, size=(20, 20))["image"][
        0, 0, :2
      ]
      for _ in range(600)
    ]
  )
  assert corners.min() == 0 and corners.max() == 40
  assert abs(np.corrcoef(corners.T)[0, 1]) < 0.15
  # A shorter side stays.
  found = bt.fixed_crop(_example(), rng, size=(99, 10))
  assert found["image"].shape[:2] == (30, 10)


def test_what_a_crop_leaves_outside_is_filtered():
  given = _example(np.array([0, 0, 3, 3]))
  rng = np.random.default_rng(1)
  found = [bt.fixed_crop(given, rng, size=(12, 12)) for _ in range(40)]
  number = [len(bt.filter_invalid(f)["labels"]) for f in found]
  assert 0 < number.count(0) < 40
  for f, n in zip(found, number):
    assert n == (f["image"].max() > 0)


def _several(number, **more):
  rng = np.random.default_rng(0)
  low = rng.uniform(0, 0.5, (number, 2))
  return _example() | {
    "boxes": np.c_[low, low + 0.3].astype(np.float32),
    "labels": np.arange(1, number + 1, dtype=np.int32),
    "area": np.arange(number, dtype=np.float32),
    "is_crowd": np.arange(number) == 1,
    **more,
  }


def test_filter_leaves_out_crowds_and_empty_boxes():
  given = _several(4)
  given["boxes"][2, 2] = given["boxes"][2, 0]
  assert bt.filter_invalid(given)["labels"].tolist() == [1, 4]
  kept = bt.filter_invalid(given, keep_crowd=True)
  assert kept["labels"].tolist() == [1, 2, 4]
  assert kept["area"].tolist() == [0, 1, 3]


def test_objects_in_slots():
  given = _several(3)
  found = bt.pad_objects(given, max_objects=5)
  assert found["labels"].tolist() == [1, 2, 3, 0, 0]
  assert found["valid"].tolist() == [True] * 3 + [False] * 2
  assert found["boxes"].shape == (5, 4) and found["is_crowd"].dtype == bool
  cut = bt.pad_objects(given, max_objects=2)
  assert cut["labels"].tolist() == [1, 2] and cut["valid"].all()
  empty = bt.pad_objects(
    bt.miss_boxes(given, np.random.default_rng(0), probability=1.0),
    max_objects=2,
  )
  assert empty["labels"].tolist() == [0, 0] and not empty["valid"].any()
  orders = {
    tuple(
      bt.shuffle_objects(given, np.random.default_rng(s))["labels"].tolist()
    )
    for s in range(30)
  }
  assert len(orders) == 6


def test_boxes_are_missing_anew_at_every_showing():
  rng = np.random.default_rng(0)
  given = _several(8)
  found = [
    bt.miss_boxes(given, rng, probability=0.35)["labels"] for _ in range(300)
  ]
  share = np.mean([len(f) / 8 for f in found])
  assert abs(share - 0.65) < 0.03
  assert len({tuple(f.tolist()) for f in found}) > 50


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_colours(dtype):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (6, 7, 3)).astype(np.uint8)
  image = image if dtype == np.uint8 else (image / 255).astype(np.float32)
  given = _example() | {"image": image}
  same = bt.colour_jitter(given, rng, strength=0.0)["image"]
  np.testing.assert_allclose(same, image, atol=1 if dtype == np.uint8 else 2e-3)
  other = bt.colour_jitter(given, rng, strength=0.5)
  assert other["image"].dtype == dtype and other["image"].shape == image.shape
  assert not np.allclose(other["image"], image, rtol=0.05)
  np.testing.assert_array_equal(other["boxes"], given["boxes"])
  # Hue and saturation leave grey alone.
  grey = np.full((2, 2, 3), 0.4, np.float32)
  np.testing.assert_allclose(bt._hue(grey, 0.3), grey, atol=1e-3)
  np.testing.assert_allclose(bt._saturation(grey, 0.3), grey, atol=1e-6)


def test_padding_is_the_value_of_the_method():
  found = bt.pad(_example(dtype=np.float32), size=(40, 50))
  assert (found["image"][30:] == np.float32(0.3)).all()
  assert (found["image"][:, 44:] == np.float32(0.3)).all()
  assert found["unpadded"].tolist() == [30, 44]
  pixels = bt.pad(_example(), size=(40, 50))["image"]
  assert (pixels[30:] == 76).all() and pixels.dtype == np.uint8


def test_evaluation_keeps_all_objects_and_draws_nothing():
  given = _several(3)
  run = bt.evaluation((64, 64), 6)
  found = run(given)
  assert found["image"].shape == (64, 64, 3)
  assert found["unpadded"].tolist() == [44, 64]
  assert found["labels"].tolist() == [1, 2, 3, 0, 0, 0]
  np.testing.assert_allclose(
    found["boxes"][:3], given["boxes"] * [44 / 64, 1, 44 / 64, 1], rtol=1e-6
  )


def test_they_stand_in_the_pipeline():
  source = canvases.shapes(6, seed=0)
  read = lambda: pipeline.batches(
    source,
    batch_size=3,
    seed=1,
    random_map=bt.training((48, 48), 4, missing=0.3, colour_strength=0.5),
    num_threads=0,
  )(0)
  batch, again = next(read()), next(read())
  assert batch["image"].shape == (3, 48, 48, 3)
  assert batch["boxes"].shape == (3, 4, 4) and batch["valid"].shape == (3, 4)
  for name, value in batch.items():
    np.testing.assert_array_equal(value, again[name])
  arrays = sources.as_arrays(
    sources.mapped(source, functools.partial(bt.pad_objects, max_objects=4))
  )
  assert arrays["labels"].shape == (6, 4)


BAD = [
  (lambda r: bt.scale_jitter(_example(), r, size=(3,)), "(height, width)"),
  (lambda r: bt.scale_jitter(_example(), r, size=(3, 3), low=0), "low=0"),
  (
    lambda r: bt.scale_jitter(_example(), r, size=(3, 3), low=9),
    "at most high",
  ),
  (lambda r: bt.pad(_example(), size=(9, 99)), "size=(9, 99)"),
  (lambda r: bt.pad(_example(), size=(99, 99), value=76), "value=76"),
  (lambda r: bt.random_flip(_example(), r, probability=2), "probability=2"),
  (lambda r: bt.miss_boxes(_example(), r, probability=-1), "probability=-1"),
  (lambda r: bt.colour_jitter(_example(), r, strength=2), "strength=2"),
  (lambda r: bt.pad_objects(_example(), max_objects=0), "max_objects=0"),
  (lambda r: bt.to_float({"image": np.zeros(3)}), "shape (3,)"),
  (lambda r: bt.to_float({}), "key='image'"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_values_are_named(call, words):
  with pytest.raises(ValueError) as error:
    call(np.random.default_rng(0))
  assert words in str(error.value)
