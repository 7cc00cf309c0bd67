"""Sets of videos and clips of them: folders, arrays, records, workers."""

import functools
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from locojax.core import files
from locojax.data import image, pipeline, sources, video, video_sets
from tests.data import video_numbers

NUM = 40


def _frame_folder(folder, frames):
  folder.mkdir(parents=True)
  for i, frame in enumerate(frames):
    Image.fromarray(frame).save(folder / f"frame_{i}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Class folders: files of two kinds, and a folder of frames."""
  root = tmp_path_factory.mktemp("set")
  frames = video_numbers.numbered(NUM)
  video.write_video(root / "jump" / "a.mp4", frames, rate=25, key_every=8)
  video.write_video(root / "jump" / "b.webm", frames[:20], rate=10)
  video.write_video(root / "run" / "c.mkv", frames[::2], rate=25)
  _frame_folder(root / "run" / "d", frames[:12])
  (root / "run" / "notes.txt").write_text("x")
  (root / "run" / ".hidden.mp4").write_text("x")
  (root / "readme.md").write_text("x")
  return root


@pytest.fixture(scope="module")
def videos(root):
  return video.from_video_folder(root, rate=5)


def test_class_folders_are_read(root, caplog):
  with caplog.at_level(logging.WARNING):
    videos = video.from_video_folder(root, rate=5)
  assert videos.classes == ["jump", "run"]
  assert videos.names == ["jump/a.mp4", "jump/b.webm", "run/c.mkv", "run/d"]
  assert videos.labels.tolist() == [0, 0, 1, 1]
  assert videos.labels.dtype == np.int32
  assert "2 files" in caplog.text and "1 hidden" in caplog.text
  lengths = [len(videos.open(i)) for i in range(4)]
  assert lengths == [40, 20, 20, 12]
  durations = [videos.open(i).duration for i in range(4)]
  np.testing.assert_allclose(durations, [1.6, 2.0, 0.8, 2.4], atol=0.02)


def test_a_folder_of_frames_is_in_the_order_of_its_numbers(videos):
  folder = videos.open(3)
  wanted = [11, 2, 10, 2]
  found = folder.frames(wanted)
  assert found.dtype == np.uint8 and video_numbers.read(found) == wanted
  half = folder.frames([5], short_side=24)
  assert half.shape == (1, 24, 32, 3)
  np.testing.assert_allclose(folder.times[:3], [0, 0.2, 0.4])


def test_what_is_no_set_of_videos_is_refused(root, tmp_path):
  with pytest.raises(ValueError, match="rate=None.*run/d"):
    video.from_video_folder(root)
  with pytest.raises(FileNotFoundError, match="nowhere"):
    video.from_video_folder(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="has no sub-folders"):
    video.from_video_folder(root / "jump")
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="empty has no video"):
    video.from_video_folder(tmp_path)
  with pytest.raises(ValueError, match="rate=None"):
    video.open_video(root / "run" / "d")
  with pytest.raises(FileNotFoundError, match="x.mp4"):
    video.from_files([tmp_path / "x.mp4"])
  with pytest.raises(ValueError, match="at least one video"):
    video.from_files([])
  with pytest.raises(ValueError, match="labels from 0 to 2"):
    video.from_files([root / "jump" / "a.mp4"] * 2, labels=[0, 2])
  with pytest.raises(video.VideoError, match="no image"):
    video.open_video(tmp_path / "empty", rate=5)


def test_frames_of_other_sizes_and_damaged_ones_are_named(tmp_path):
  frames = video_numbers.numbered(3)
  _frame_folder(tmp_path / "v", frames)
  Image.fromarray(frames[1, :, :32]).save(tmp_path / "v" / "frame_1.png")
  (tmp_path / "v" / "frame_2.png").write_bytes(b"no image")
  found = video.open_video(tmp_path / "v", rate=5)
  with pytest.raises(video.VideoError, match="frame_1.png has 48 x 32"):
    found.frames([0, 1])
  with pytest.raises(ValueError, match="frame_2.png cannot be read"):
    found.frames([2])


def test_other_labels_and_parts_of_a_set(videos):
  part = videos.subset([2, 0])
  assert part.names == ["run/c.mkv", "jump/a.mp4"]
  assert part.labels.tolist() == [1, 0] and len(part.open(1)) == 40
  other = videos.with_labels([2, 2, 0, 1], ["x", "y", "z"])
  assert other.labels.tolist() == [2, 2, 0, 1] and other.classes[2] == "z"
  with pytest.raises(ValueError, match="labels of shape"):
    videos.with_labels([0], ["x"])


def test_few_indices_are_kept(videos, monkeypatch):
  monkeypatch.setattr(video_sets, "MOST_KEPT", 2)
  fresh = videos.subset(range(4))
  for i in (0, 1, 2, 0):
    fresh.open(i)
  assert list(fresh._kept) == [2, 0]
  assert fresh.open(2) is fresh.open(2)
  assert len(pickle.loads(pickle.dumps(fresh)).open(0)) == NUM


def _arrays():
  frames = video_numbers.numbered(NUM)
  return video.from_arrays(
    [frames, frames[5:30]], labels=[1, 0], classes=["a", "b"], rate=25
  )


def test_arrays_are_videos():
  videos = _arrays()
  found = videos.open(1)
  assert video_numbers.read(found.frames([24, 0])) == [29, 5]
  assert found.duration == 1.0 and videos.labels.tolist() == [1, 0]
  assert found.frames([0], short_side=24).shape == (1, 24, 32, 3)
  assert isinstance(found, video.Video)
  late = video.ArrayVideo(found.frames(range(3)), times=[1.0, 1.5, 2.5])
  assert late.times.tolist() == [0.0, 0.5, 1.5]
  assert late.duration == 2.25
  with pytest.raises(ValueError, match="times must rise"):
    video.ArrayVideo(found.frames(range(3)), times=[1.0, 1.0, 2.0])
  with pytest.raises(ValueError, match="a clip of shape"):
    video.ArrayVideo(np.zeros((2, 3, 4)), rate=1)
  with pytest.raises(ValueError, match="rate=None"):
    video.ArrayVideo(found.frames([0]))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_records_hold_what_was_written(videos, tmp_path, form):
  path = video.write_video_records(
    tmp_path / "v.array_record", videos, form=form
  )
  records = pickle.loads(pickle.dumps(video.from_video_records(path)))
  assert records.classes == videos.classes and records.names == videos.names
  assert records.labels.tolist() == [0, 0, 1, 1]
  for i in range(4):
    old, new = videos.open(i), records.open(i)
    assert (len(old), old.duration) == (len(new), new.duration)
    np.testing.assert_array_equal(old.times, new.times)
    wanted = [len(old) - 1, 0, 7]
    found = new.frames(wanted)
    assert video_numbers.read(found) == video_numbers.read(old.frames(wanted))
    if form != "JPEG":
      np.testing.assert_array_equal(found, old.frames(wanted))
  part = records.subset([3, 0])
  assert part.names == ["run/d", "jump/a.mp4"] and len(part.open(0)) == 12
  assert part.with_labels([0, 0], ["x"]).labels.tolist() == [0, 0]


def test_records_can_be_smaller_and_damage_is_named(videos, tmp_path):
  path = video.write_video_records(
    tmp_path / "v", videos.subset([1]), short_side=24
  )
  small = video.from_video_records(path).open(0)
  assert (small.height, small.width) == (24, 32)
  about = files.read_json(tmp_path / "v.json")
  files.write_json(tmp_path / "v.json", {**about, "names": ["x", "y"]})
  with pytest.raises(ValueError, match="labels of shape"):
    video.from_video_records(path)
  with pytest.raises(FileNotFoundError, match="none"):
    video.from_video_records(tmp_path / "none")
  with pytest.raises(ValueError, match="form='GIF'"):
    video.write_video_records(path, videos, form="GIF")


# Clips.


def test_fixed_clips_are_the_same_everywhere(videos):
  clips = video.Clips(videos, num_frames=6, clips_per_video=3)
  assert len(clips) == 12
  assert clips.labels.tolist() == [0] * 6 + [1] * 6
  example = clips[1]
  assert example["clip"].shape == (6, 48, 64, 3)
  wanted = video.clip_indices(40, 6, mode="even", num_clips=3)[1]
  assert video_numbers.read(example["clip"]) == wanted.tolist()
  assert (example["video"], example["clip_index"], example["label"]) == (
    0,
    1,
    0,
  )
  np.testing.assert_allclose(example["start"], wanted[0] / 25, atol=1e-3)
  np.testing.assert_allclose(clips.seconds(1), wanted / 25, atol=1e-3)
  again = pickle.loads(pickle.dumps(clips))[1]
  np.testing.assert_array_equal(again["clip"], example["clip"])
  assert sources.check(clips) is clips
  with pytest.raises(IndexError):
    clips[12]


def test_clips_by_time_have_the_same_pace(videos):
  clips = video.Clips(videos, num_frames=4, rate=5, mode="middle")
  for i, times in enumerate((25, 10, 25, 5)):
    found = clips.seconds(i)
    np.testing.assert_allclose(np.diff(found) % 100, 0.2, atol=1 / times)


def test_clips_take_labels_of_their_own(videos):
  clips = video.Clips(videos, num_frames=2, clips_per_video=2)
  kept = np.array([1, 0, 1, 1, 0, 0, 0, 1], bool)
  made = clips.with_labels(np.arange(8), list("abcdefgh")).subset(kept)
  assert made.labels.tolist() == [0, 2, 3, 7]
  assert [int(made[i]["video"]) for i in range(4)] == [0, 1, 1, 3]
  assert [int(made[i]["clip_index"]) for i in range(4)] == [0, 0, 1, 1]
  assert made[2]["label"] == 3 and clips[1]["label"] == 0
  np.testing.assert_array_equal(made[2]["clip"], clips[3]["clip"])
  with pytest.raises(ValueError, match="not empty"):
    clips.subset(np.zeros(8, bool))


@pytest.mark.parametrize(
  "settings, told",
  [
    ({"num_frames": 0}, "num_frames=0"),
    ({"mode": "random"}, "mode='random'"),
    ({"mode": "middle", "clips_per_video": 2}, "clips_per_video=2"),
    ({"rate": -1}, "rate=-1"),
    ({"short_side": 0}, "short_side=0"),
    ({"size": (3,)}, r"size=\(3,\)"),
    ({"size": (3, 3), "short_side": 2}, "None where short_side"),
  ],
)
def test_bad_settings_of_clips_are_refused(settings, told):
  with pytest.raises(ValueError, match=told):
    video.Clips(_arrays(), **{"num_frames": 2, **settings})


def _augmented(videos, **settings):
  """Random clips of a set as batches for training."""
  augment = image.chain(
    functools.partial(video.random_resized_crop_clip, size=16),
    video.random_flip_clip,
    key="clip",
  )
  read = video.RandomClips(videos, num_frames=4, stride=2, short_side=24)
  return pipeline.batches(
    video.VideoRefs(videos),
    random_map=video.then(read, augment),
    batch_size=4,
    seed=3,
    **settings,
  )


def test_batches_of_random_clips_are_a_function_of_seed_and_step(videos):
  batches = _augmented(videos, num_threads=2)
  run = batches(0)
  first, second = next(run), next(run)
  assert first["clip"].shape == (4, 4, 16, 16, 3)
  assert first["clip"].dtype == np.uint8 and set(first) == {
    *("video", "label", "clip", "start")
  }
  np.testing.assert_array_equal(first["label"], videos.labels[first["video"]])
  late = next(_augmented(videos, num_threads=0)(1))
  for name in second:
    np.testing.assert_array_equal(second[name], late[name])
  assert not np.array_equal(first["clip"], second["clip"])
  halves = [
    next(_augmented(videos, process_index=p, process_count=2)(0))
    for p in range(2)
  ]
  both = np.concatenate([h["clip"] for h in halves])
  np.testing.assert_array_equal(both, first["clip"])


@pytest.mark.slow
def test_batches_do_not_depend_on_worker_processes(videos):
  alone = _augmented(videos, num_epochs=3)(1)
  shared = _augmented(videos, num_epochs=3, num_workers=2)(1)
  for a, b in zip(alone, shared, strict=True):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("mode", ["tsn", "even"])
def test_other_modes_of_random_clips(videos, mode):
  read = video.RandomClips(videos, num_frames=4, mode=mode)
  seen = {
    tuple(
      video_numbers.read(
        read({"video": 0}, np.random.default_rng(seed))["clip"]
      )
    )
    for seed in range(8)
  }
  assert len(seen) > 4
  with pytest.raises(ValueError, match="mode='middle'"):
    video.RandomClips(videos, num_frames=4, mode="middle")
