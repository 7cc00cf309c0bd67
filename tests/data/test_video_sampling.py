"""Which frames make a clip."""

import numpy as np
import pytest

from locojax.data import video


def _starts(length, num_frames, **settings):
  return video.clip_indices(length, num_frames, **settings)[:, 0].tolist()


def test_worked_numbers():
  found = video.clip_indices(90, 8, stride=3)
  assert found.tolist() == [list(range(33, 55, 3))]
  assert _starts(90, 8, stride=3, mode="linspace", num_clips=3) == [0, 33, 66]
  found = video.clip_indices(90, 8, mode="tsn")
  assert found.tolist() == [[5, 16, 27, 38, 50, 61, 72, 83]]
  found = video.clip_indices(12, 8, stride=2)
  assert found.tolist() == [[0, 2, 4, 6, 8, 10, 0, 2]]
  found = video.clip_indices(5, 8, mode="tsn")
  assert found.tolist() == [[0, 0, 1, 1, 2, 3, 3, 4]]


def test_random_clips_cover_all_places_and_no_other():
  rng = np.random.default_rng(0)
  settings = {"stride": 3, "mode": "random", "num_clips": 400, "rng": rng}
  assert set(_starts(20, 4, **settings)) == set(range(20 - 9))
  # Too short: from any frame, and around.
  found = video.clip_indices(5, 4, **settings)
  assert set(found[:, 0]) == set(range(5))
  np.testing.assert_array_equal(found, (found[:, :1] + 3 * np.arange(4)) % 5)


def test_even_clips_do_not_overlap_where_they_fit():
  for length in range(60, 90):
    found = video.clip_indices(length, 5, stride=3, mode="even", num_clips=4)
    assert np.all(np.diff(found[:, 0]) >= 15) and found.max() < length
    rng = np.random.default_rng(length)
    found = video.clip_indices(
      length, 5, stride=3, mode="even", num_clips=4, rng=rng
    )
    assert np.all(np.diff(found[:, 0]) >= 15) and found.max() < length
  assert _starts(80, 16, mode="even", num_clips=5) == [0, 16, 32, 48, 64]
  assert _starts(100, 16, mode="even", num_clips=2) == [17, 67]
  assert _starts(20, 16, mode="even", num_clips=3) == [0, 4, 4]


def test_random_segments_have_a_frame_each():
  rng = np.random.default_rng(0)
  found = video.clip_indices(41, 8, mode="tsn", num_clips=300, rng=rng)
  starts = np.linspace(0, 41, 9).astype(int)[:-1]
  assert np.all(found >= starts) and np.all(found < starts + 5)
  assert all(len(set(column)) == 5 for column in found.T)


def test_by_time_a_constant_rate_is_by_number():
  times, duration = np.arange(90) / 25, 90 / 25
  by_time = video.clip_indices_at(times, duration, 8, rate=25, stride=3)
  np.testing.assert_array_equal(by_time, video.clip_indices(90, 8, stride=3))
  half = video.clip_indices_at(times, duration, 8, rate=12.5)
  assert np.all(np.diff(half) == 2)
  double = video.clip_indices_at(times, duration, 8, rate=50)
  assert set(np.diff(double[0])) == {0, 1}


def test_by_time_a_varying_rate_takes_what_shows():
  times = np.array([0.0, 0.1, 0.15, 0.6, 0.62, 1.0])
  found = video.clip_indices_at(times, 1.1, 11, rate=10)
  assert found.tolist() == [[0, 1, 2, 2, 2, 2, 3, 4, 4, 4, 5]]


def test_time_stamps_rounded_by_a_container_are_met():
  wanted = np.arange(300) / 30
  rounded = np.round(wanted, 3)  # WebM
  np.testing.assert_array_equal(
    video.frames_at(rounded, wanted), np.arange(300)
  )
  assert video.frames_at([0.0, 1.0], -3.0) == 0


@pytest.mark.parametrize(
  "change, told",
  [
    ({"length": 0}, "length=0"),
    ({"num_frames": 0}, "num_frames=0"),
    ({"num_frames": 2.0}, "num_frames=2.0"),
    ({"stride": 0}, "stride=0"),
    ({"mode": "midle"}, "did you mean 'middle'"),
    ({"num_clips": 0}, "num_clips=0"),
    ({"num_clips": 2}, "num_clips=2"),
    ({"mode": "random"}, "rng=None"),
    ({"mode": "tsn", "stride": 2}, "stride=2"),
  ],
)
def test_bad_values_are_refused(change, told):
  settings = {"length": 9, "num_frames": 2, **change}
  length, num_frames = settings.pop("length"), settings.pop("num_frames")
  with pytest.raises(ValueError, match=told):
    video.clip_indices(length, num_frames, **settings)


def test_bad_rates_are_refused():
  with pytest.raises(ValueError, match="rate=0"):
    video.clip_indices_at([0.0], 1.0, 2, rate=0)
  with pytest.raises(ValueError, match="duration=-1"):
    video.clip_indices_at([0.0], -1.0, 2, rate=1)
