"""Augmentations of clips: one draw for all frames."""

import functools

import numpy as np
import pytest

from locojax.data import image, resizing, video

RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 256, (3, 20, 30, 3), np.uint8)


@pytest.mark.parametrize(
  "sides, found", [((120, 200), (256, 426)), ((300, 90), (853, 256))]
)
def test_short_side_rounds_down(sides, found):
  clip = np.zeros((1, *sides, 1), np.uint8)
  assert video.resize_short_side(clip, short_side=256).shape[1:3] == found


def test_a_clip_is_resized_as_its_frames_are():
  found = video.resize_short_side(CLIP, short_side=10)
  wanted = [resizing.resize(frame, (10, 15)) for frame in CLIP]
  np.testing.assert_array_equal(found, np.stack(wanted))


def test_a_random_crop_is_one_window_of_all_frames():
  y, x = np.indices((20, 30))
  still = np.stack([y, x, y * 0], axis=-1).astype(np.uint8)
  clip = np.stack([still, still])
  shares, aspects, sides = [], [], set()
  for seed in range(200):
    rng = np.random.default_rng(seed)
    found = video.random_resized_crop_clip(clip, rng, size=(20, 30))
    np.testing.assert_array_equal(found[0], found[1])
    # The window is read off the coordinates that are in it.
    h = np.ptp(found[0, ..., 0].astype(float)) + 1
    w = np.ptp(found[0, ..., 1].astype(float)) + 1
    shares.append(h * w / 600)
    aspects.append(w / h)
    sides.add((h, w))
  assert 0.42 < min(shares) < 0.56 and max(shares) > 0.9
  assert 0.7 < min(aspects) < 0.85 and 1.7 < max(aspects) < 2.2
  assert len(sides) > 50


def test_a_crop_that_cannot_be_drawn_is_the_largest_in_the_middle():
  clip = np.zeros((1, 100, 10, 1), np.uint8)
  clip[:, 45:55] = 200
  found = video.random_resized_crop_clip(
    clip, np.random.default_rng(0), size=8, area=(1.0, 1.0), aspect=(1.0, 1.0)
  )
  assert found.shape == (1, 8, 8, 1) and found.min() == 200


def test_the_whole_area_at_its_aspect_is_the_clip():
  rng = np.random.default_rng(0)
  found = video.random_resized_crop_clip(
    CLIP, rng, size=(20, 30), area=(1.0, 1.0), aspect=(1.5, 1.5)
  )
  np.testing.assert_array_equal(found, CLIP)


def test_a_flip_is_of_all_frames_or_none():
  seen = set()
  for seed in range(20):
    found = video.random_flip_clip(CLIP, np.random.default_rng(seed))
    flipped = np.array_equal(found, CLIP[:, :, ::-1])
    assert flipped or np.array_equal(found, CLIP)
    seen.add(flipped)
  assert seen == {True, False}
  rng = np.random.default_rng(0)
  always = video.random_flip_clip(CLIP, rng, probability=1.0)
  np.testing.assert_array_equal(always, CLIP[:, :, ::-1])


def test_three_crops_lie_along_the_longer_side():
  found = video.three_crops(CLIP, size=20)
  for crop, left in zip(found, (0, 5, 10), strict=True):
    np.testing.assert_array_equal(crop, CLIP[:, :, left : left + 20])
  tall = CLIP.transpose(0, 2, 1, 3)
  found = video.three_crops(tall, size=19)  # 15 - 9 = 6; across (20 - 19) // 2
  for crop, top in zip(found, (0, 6, 11), strict=True):
    np.testing.assert_array_equal(crop, tall[:, top : top + 19, :19])
  # Halves go to the even side: 7 / 2 - 2 = 1.5 -> 2, 5 / 2 - 1 = 1.5 -> 2.
  wide = np.arange(7, dtype=np.uint8).reshape(1, 1, 7, 1).repeat(5, axis=1)
  found = video.three_crops(wide, size=5)
  assert found[:, 0, 0, 0, 0].tolist() == [0, 2, 2]
  square = video.three_crops(CLIP[:, :, :20], size=20)
  np.testing.assert_array_equal(square[0], square[2])


def test_the_middle_is_cut_out():
  found = video.centre_crop_clip(CLIP, size=(10, 20))
  np.testing.assert_array_equal(found, CLIP[:, 5:15, 5:25])


def test_they_stand_in_a_chain():
  augment = image.chain(
    functools.partial(video.resize_short_side, short_side=24),
    functools.partial(video.random_resized_crop_clip, size=16),
    video.random_flip_clip,
    functools.partial(video.centre_crop_clip, size=12),
    key="clip",
  )
  example = {"clip": CLIP, "label": 3}
  first = augment(example, np.random.default_rng(5))
  again = augment(example, np.random.default_rng(5))
  assert first["clip"].shape == (3, 12, 12, 3) and first["label"] == 3
  assert first["clip"].dtype == np.uint8
  np.testing.assert_array_equal(first["clip"], again["clip"])


_FLOATS, _IMAGE = CLIP / 255.0, CLIP[0]
_CALLS = {
  "resize": lambda clip: video.resize_short_side(clip, short_side=8),
  "crop": lambda clip: video.random_resized_crop_clip(clip, RNG, size=8),
  "flip": lambda clip: video.random_flip_clip(clip, RNG),
  "middle": lambda clip: video.centre_crop_clip(clip, size=8),
  "three": lambda clip: video.three_crops(clip, size=8),
}


@pytest.mark.parametrize("name", _CALLS)
@pytest.mark.parametrize("clip", [_FLOATS, _IMAGE, CLIP[:0]])
def test_what_is_no_clip_is_refused(name, clip):
  with pytest.raises(ValueError, match="a clip of shape"):
    _CALLS[name](clip)


@pytest.mark.parametrize(
  "call, told",
  [
    (lambda: video.resize_short_side(CLIP, short_side=0), "short_side=0"),
    (lambda: video.three_crops(CLIP, size=21), r"size=\(21, 21\)"),
    (lambda: video.centre_crop_clip(CLIP, size=(9, 31)), r"size=\(9, 31\)"),
    (lambda: video.centre_crop_clip(CLIP, size=(9,)), r"size=\(9,\)"),
    (lambda: video.random_flip_clip(CLIP, RNG, probability=2), "probability=2"),
    (
      lambda: video.random_resized_crop_clip(CLIP, RNG, size=8, area=(0, 1)),
      r"area=\(0, 1\)",
    ),
    (
      lambda: video.random_resized_crop_clip(CLIP, RNG, size=8, area=(1, 2)),
      r"area=\(1, 2\)",
    ),
    (
      lambda: video.random_resized_crop_clip(CLIP, RNG, size=8, aspect=(2, 1)),
      r"aspect=\(2, 1\)",
    ),
  ],
)
def test_bad_settings_are_refused(call, told):
  with pytest.raises(ValueError, match=told):
    call()
