"""Augmentations: what they do, by example and by batch, in both pipelines."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

from locojax.data import image, pipeline, sources

CROP = functools.partial(image.random_crop, pad=2)
RANDOM = {
  "crop": CROP,
  "crop_edge": functools.partial(CROP, mode="edge"),
  "crop_reflect": functools.partial(CROP, mode="reflect"),
  "flip": image.random_flip,
  "cutout": functools.partial(image.cutout, size=3),
}


def _rng(seed=0):
  return np.random.default_rng(seed)


def _images(n=64, height=6, width=5, channels=3):
  shape = (n, height, width, channels)
  return _rng(8).integers(1, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shape_dtype_and_determinism(name, dtype):
  f, images = RANDOM[name], _images().astype(dtype)
  kept = images.copy()
  out = f(images, _rng(1))
  assert out.shape == images.shape and out.dtype == dtype
  np.testing.assert_array_equal(out, f(images, _rng(1)))
  assert (out != f(images, _rng(2))).any()
  np.testing.assert_array_equal(images, kept)
  one = f(images[0], _rng(1))
  assert one.shape == images.shape[1:] and one.dtype == dtype
  np.testing.assert_array_equal(one, f(images[:1], _rng(1))[0])


def _windows(picture, pad, mode="constant"):
  height, width = picture.shape[:2]
  padded = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)), mode=mode)
  places = itertools.product(range(2 * pad + 1), repeat=2)
  return {
    (i, j): padded[i : i + height, j : j + width].tobytes() for i, j in places
  }


@pytest.mark.parametrize("mode", image.PAD_MODES)
def test_each_image_has_a_window_of_its_own(mode):
  picture = _images(1)[0]
  out = image.random_crop(np.stack([picture] * 2000), _rng(), pad=2, mode=mode)
  place = {w: p for p, w in _windows(picture, 2, mode).items()}
  found = [place[o.tobytes()] for o in out]
  counts = np.zeros((5, 5))
  np.add.at(counts, tuple(np.transpose(found)), 1)
  # Uniform over the 25 places, within 5 standard deviations.
  assert np.abs(counts - 80).max() < 5 * np.sqrt(80)


def test_crop_without_padding_changes_nothing():
  images = _images()
  out = image.random_crop(images, _rng(), pad=0)
  np.testing.assert_array_equal(out, images)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flip(probability):
  images = _images(3000)
  out = image.random_flip(images, _rng(), probability=probability)
  same = (out == images).all(axis=(1, 2, 3))
  mirrored = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
  assert np.all(same | mirrored)
  share = mirrored.mean()
  bound = 5 * np.sqrt(probability * (1 - probability) / 3000)
  assert abs(share - probability) <= bound


def test_cutout_blanks_a_square():
  images = _images(500, 9, 9)
  out = image.cutout(images, _rng(), size=3, fill=0)
  hole = (out == 0).all(axis=-1)
  np.testing.assert_array_equal(out[~hole], images[~hole])
  rows, columns = hole.any(axis=2).sum(axis=1), hole.any(axis=1).sum(axis=1)
  np.testing.assert_array_equal(hole.sum(axis=(1, 2)), rows * columns)
  # Whole inside, and cut at the border; the centre is always in the image.
  assert set(rows) == set(columns) == {2, 3}
  assert len(np.unique(hole, axis=0)) == 81
  whole = image.cutout(images, _rng(), size=40, fill=7)
  assert (whole == 7).all()


def test_normalize():
  images = _images()
  mean, std = image.CIFAR10_MEAN, image.CIFAR10_STD
  out = image.normalize(images, mean=mean, std=std)
  expected = (images / 255.0 - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(out, expected, atol=1e-6)
  assert out.dtype == np.float32
  floats = image.normalize(np.float32(images / 255.0), mean=mean, std=std)
  np.testing.assert_allclose(floats, expected, atol=1e-5)


def _augment():
  last = functools.partial(
    image.normalize, mean=image.CIFAR100_MEAN, std=image.CIFAR100_STD
  )
  return image.chain(CROP, image.random_flip, last)


def test_chain_is_the_functions_in_turn():
  images = _images()
  out = _augment()({"image": images, "label": 3}, _rng(5))
  rng = _rng(5)
  expected = image.normalize(
    image.random_flip(CROP(images, rng), rng),
    mean=image.CIFAR100_MEAN,
    std=image.CIFAR100_STD,
  )
  np.testing.assert_array_equal(out["image"], expected)
  assert out["label"] == 3
  named = image.chain(image.random_flip, key="x")
  assert named({"x": images}, _rng())["x"].shape == images.shape


def _arrays():
  return {"image": _images(32), "label": np.arange(32)}


def _fast(**kwargs):
  return pipeline.array_batches(
    _arrays(), batch_size=8, seed=3, random_map=_augment(), **kwargs
  )


def _grain(**kwargs):
  return pipeline.batches(
    sources.from_arrays(_arrays()),
    batch_size=8,
    seed=3,
    random_map=_augment(),
    num_threads=0,
    **kwargs,
  )


@pytest.mark.parametrize("make", [_fast, _grain])
def test_batch_k_is_a_function_of_the_seed_and_k(make):
  run = list(itertools.islice(make()(0), 6))
  late = next(make()(5))
  np.testing.assert_array_equal(run[5]["image"], late["image"])
  np.testing.assert_array_equal(run[5]["label"], late["label"])
  assert late["image"].shape == (8, 6, 5, 3)
  assert late["image"].dtype == np.float32
  parts = [
    next(make(process_index=i, process_count=2)(5))["image"] for i in range(2)
  ]
  np.testing.assert_array_equal(np.concatenate(parts), late["image"])


@pytest.mark.parametrize("make", [_fast, _grain])
def test_an_image_looks_different_in_each_epoch(make):
  first, second = (
    {int(x): y for b in part for x, y in zip(b["label"], b["image"])}
    for part in (
      itertools.islice(make()(0), 4),
      itertools.islice(make()(4), 4),
    )
  )
  assert sorted(first) == sorted(second) == list(range(32))
  differ = [(first[i] != second[i]).any() for i in range(32)]
  assert sum(differ) > 24


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: image.random_crop(_images(), _rng(), pad=-1), "pad=-1"),
    (lambda: image.random_crop(_images(), _rng(), pad=1.5), "pad=1.5"),
    (
      lambda: CROP(_images(), _rng(), mode="wrap"),
      "mode='wrap'.*'reflect'",
    ),
    (
      lambda: CROP(_images(1, 2, 2), _rng(), mode="reflect"),
      "pad=2",
    ),
    (lambda: CROP(_images()[0, 0], _rng()), r"shape \(5, 3\)"),
    (
      lambda: image.random_flip(_images(), _rng(), probability=2),
      "probability=2",
    ),
    (lambda: image.cutout(_images(), _rng(), size=0), "size=0"),
    (
      lambda: image.normalize(_images(), mean=[0.5], std=[1] * 3),
      r"mean=\[0.5\].*3 channels",
    ),
    (
      lambda: image.normalize(_images(), mean=[0] * 3, std=[1, 0, 1]),
      "std=0.0",
    ),
    (
      lambda: image.normalize(np.arange(3), mean=[0] * 3, std=[1] * 3),
      "dtype int64",
    ),
    (lambda: image.chain(CROP)({"img": 1}, _rng()), "key='image'.*'img'"),
  ],
)
def test_bad_arguments(call, words):
  with pytest.raises(ValueError, match=words):
    call()
