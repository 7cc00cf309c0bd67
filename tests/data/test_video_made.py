"""Made videos: what happens in them, in memory and as files."""

import dataclasses
import pathlib

import numpy as np
import pytest

from locojax.data import video, video_made, video_made_files
from scripts import prepare_video

RECIPE = video_made.Recipe(num_classes=4, size=32, span=8)


def test_videos_are_a_function_of_the_seed_and_drawn_alike():
  a, b, c = (
    video_made.weak_videos(RECIPE, 6, seed=s, sprites=None) for s in (1, 1, 2)
  )
  assert a.labels.tolist() == b.labels.tolist() and a.spans == b.spans
  frames = [x.open(3).frames(range(20)) for x in (a, b, c)]
  assert frames[0].shape == (20, 32, 32, 3) and frames[0].dtype == np.uint8
  np.testing.assert_array_equal(frames[0], frames[1])
  assert (frames[0] != frames[2]).any()
  np.testing.assert_array_equal(
    a.subset([5, 3]).open(1).frames(range(20)), frames[0]
  )
  assert len(video_made.weak_videos(RECIPE, 9, seed=1)) == 9


def test_shares_are_those_of_the_recipe():
  recipe = dataclasses.replace(
    RECIPE, num_classes=8, right=0.5, still=0.1, wrong=0.2, spans=(3, 4)
  )
  videos = video_made.weak_videos(recipe, 2000, seed=0)
  assert np.bincount(videos.labels).tolist() == [250] * 8
  motions = [np.array([s.motion for s in spans]) for spans in videos.spans]
  right = [m == q for m, q in zip(motions, videos.labels)]
  np.testing.assert_allclose(np.concatenate(right).mean(), 0.4, atol=0.02)
  never = np.mean([not r.any() for r in right])
  np.testing.assert_allclose(
    never, 0.2 + 0.8 * 0.5 * (1 / 8 + 1 / 16), atol=0.03
  )
  still = np.concatenate(motions) == video_made.STILL
  np.testing.assert_allclose(still.mean(), 0.1, atol=0.02)
  table = video_made.companions(recipe, seed=0)
  assert table.shape == (8, 3)
  for query in range(8):
    assert query not in table[query] and len(set(table[query])) == 3
    of = np.concatenate(
      [m for m, q in zip(motions, videos.labels) if q == query]
    )
    others = of[(of != query) & (of != video_made.STILL)]
    counts = np.bincount(others, minlength=8)[table[query]]
    assert counts.sum() == len(others) and counts[0] > counts[2] > 0


def test_spans_follow_each_other_and_lengths_vary():
  videos = video_made.weak_videos(RECIPE, 40, seed=3)
  for i, spans in enumerate(videos.spans):
    ends = [s.end for s in spans]
    assert [s.start for s in spans] == [0, *ends[:-1]]
    assert len(videos.times(i)) == ends[-1] + 1
  assert {len(s) for s in videos.spans} == {3, 4}
  assert len(videos.open(0)) == videos.spans[0][-1].end


def _track(name):
  """Centre, share of the frame and presence of the item in each frame."""
  recipe = video_made.Recipe(num_classes=12, context=0.0, noise=0.0, size=48)
  label = recipe.classes.index(name)
  clips = video_made.clean_clips(recipe, 1, seed=5)
  i = clips.labels.tolist().index(label)
  frames = clips.open(i).frames(range(16)).astype(float)
  ink = np.abs(frames - frames[0, 0, 0]).sum(-1) > 30
  there = ink.any(axis=(1, 2))
  places = [np.argwhere(f).mean(axis=0) for f in ink[there]]
  return np.array(places).T, ink.sum(axis=(1, 2)), there


@pytest.mark.parametrize(
  "name, axis, sign", [("right", 1, 1), ("left", 1, -1), ("down", 0, 1)]
)
def test_what_moves_goes_where_its_name_says(name, axis, sign):
  (places, _, there), other = _track(name), 1 - axis
  assert there.all()
  assert np.all(sign * np.diff(places[axis]) > 0)
  assert np.abs(np.diff(places[other])).max() < 1
  assert 20 < sign * (places[axis, -1] - places[axis, 0]) < 30


def test_other_motions_do_what_their_names_say():
  _, area, _ = _track("grow")
  assert area[-1] > 3 * area[0] and np.all(np.diff(area) > -3)
  _, area, _ = _track("shrink")
  assert area[0] > 3 * area[-1]
  _, _, there = _track("blink")
  assert there.tolist() == [True, True, False, False] * 4
  places, area, _ = _track("turn_left")
  assert np.ptp(places, axis=1).max() < 8 and np.ptp(area) < 0.2 * area.max()
  places, _, _ = _track("sway")
  assert np.ptp(places[1]) > 15 and np.ptp(places[0]) < 1


def test_the_ground_of_a_query_is_its_own_and_of_clean_clips_is_any():
  recipe = dataclasses.replace(RECIPE, noise=0.0)
  weak = video_made.weak_videos(recipe, 40, seed=0)
  first = [np.flatnonzero(weak.labels == q)[:2] for q in range(4)]

  def spectrum(i):
    corner = weak.open(i).frames([0])[0].astype(float)
    return np.abs(np.fft.fft2(corner - corner.mean((0, 1)), axes=(0, 1)))

  same = [np.linalg.norm(spectrum(a) - spectrum(b)) for a, b in first]
  other = [
    np.linalg.norm(spectrum(first[q][0]) - spectrum(first[(q + 1) % 4][0]))
    for q in range(4)
  ]
  assert max(same) < min(other)
  clean = video_made.clean_clips(recipe, 25, seed=1)
  assert np.bincount(clean.labels).tolist() == [25] * 4
  contexts = np.array([p.context for p in clean._plans])
  agree = (contexts == clean.labels).mean()
  assert 0.12 < agree < 0.38


def test_true_labels_are_of_most_frames():
  span = video_made.Span
  spans = [[span(0, 8, 2), span(8, 16, 0)], [span(0, 8, -1), span(8, 16, 3)]]
  made = video_made.weak_videos(RECIPE, 4, seed=0).subset([0, 1])
  clips = video.Clips(made, num_frames=8, clips_per_video=3, mode="linspace")
  firsts = [int(clips.frame_numbers(i)[0]) for i in range(3)]
  length = len(made.open(0))
  assert firsts == np.linspace(0, length - 8, 3).astype(int).tolist()
  # The same clips of sixteen frames: 0-7, 4-11, 8-15.
  short = video.from_arrays(
    [np.zeros((16, 4, 4, 3), np.uint8)] * 2, labels=[0, 1], classes=["a", "b"]
  )
  clips = video.Clips(short, num_frames=8, clips_per_video=3, mode="linspace")
  assert video_made.true_labels(clips, spans).tolist() == [2, 0, 0, -1, -1, 3]
  with pytest.raises(ValueError, match="spans of 1 videos"):
    video_made.true_labels(clips, spans[:1])


def test_files_hold_what_memory_has(tmp_path):
  recipe = dataclasses.replace(
    RECIPE, varying=0.5, num_classes=2, num_companions=1
  )
  numbers = video_made_files.Numbers(videos=4, train=1, test=1)
  write = lambda root, seed=0: video_made_files.write_sets(
    root, recipe, numbers, seed=seed
  )
  root = write(tmp_path / "a")
  memory = video_made_files.made_sets(recipe, numbers, seed=0)
  videos = video.from_video_folder(root / "weak")
  assert videos.classes == memory["weak"].classes
  assert {pathlib.Path(n).suffix for n in videos.names} == {".mp4", ".webm"}
  truth = video_made_files.read_truth(
    root / "truth.csv", "weak", classes=videos.classes
  )
  spans = video_made_files.spans_of(videos, truth)
  for i, name in enumerate(videos.names):
    number = int(pathlib.Path(name).stem)
    made, file = memory["weak"].open(number), videos.open(i)
    assert videos.labels[i] == memory["weak"].labels[number]
    assert spans[i] == memory["weak"].spans[number]
    np.testing.assert_allclose(file.times, made.times, atol=6e-4)
    rows = range(len(made))
    gap = file.frames(rows).astype(float) - made.frames(rows)
    assert len(file) == len(made) and np.abs(gap).mean() < 12
  # Broken off, and on again: the same bytes.
  before = {p: p.read_bytes() for p in root.rglob("*.*4")}
  (root / "truth.csv").unlink()
  gone = sorted(before)[0]
  gone.unlink()
  assert write(root) == root and (root / "truth.csv").is_file()
  assert gone.read_bytes() == before[gone]
  with pytest.raises(ValueError, match="made with seed=0, not 1"):
    write(root, seed=1)
  with pytest.raises(ValueError, match="no videos of the split 'x'"):
    video_made_files.read_truth(root / "truth.csv", "x", classes=videos.classes)
  with pytest.raises(ValueError, match="no motion"):
    video_made_files.read_truth(root / "truth.csv", "weak", classes=["up"])
  with pytest.raises(ValueError, match="does not name"):
    video_made_files.spans_of(videos, {})


def test_the_script_makes_them(tmp_path, capsys):
  np.save(tmp_path / "items.npy", video_made.shapes(10, seed=1))
  prepare_video.main(
    [
      *("--out", str(tmp_path / "v"), "--videos", "3", "--train", "1"),
      *("--test", "1", "--num_classes", "2", "--num_companions", "1"),
      *("--span", "4", "--spans", "2", "2", "--size", "16"),
      *("--endings", ".mkv", "--sprites", str(tmp_path / "items.npy")),
    ]
  )
  assert "weak: 3 of 3" in capsys.readouterr().out
  videos = video.from_video_folder(tmp_path / "v" / "weak")
  assert len(videos) == 3 and len(videos.open(0)) == 8
  assert len(video.from_video_folder(tmp_path / "v" / "test")) == 2


@pytest.mark.parametrize(
  "change, told",
  [
    ({"num_classes": 1}, "num_classes=1"),
    ({"num_classes": 13}, "num_classes=13"),
    ({"size": 33}, "size=33"),
    ({"span": 0}, "span=0"),
    ({"spans": (4, 3)}, r"spans=\(4, 3\)"),
    ({"right": 1.5}, "right=1.5"),
    ({"right": 0.95}, "right \\+ still"),
    ({"num_companions": 4}, "num_companions=4"),
    ({"noise": -1}, "noise=-1"),
    ({"rate": 0}, "rate=0"),
    ({"context": 2}, "context=2"),
  ],
)
def test_bad_recipes_are_refused(change, told):
  with pytest.raises(ValueError, match=told):
    dataclasses.replace(RECIPE, **change)


def test_bad_numbers_are_refused(tmp_path):
  with pytest.raises(ValueError, match="num_videos=3"):
    video_made.weak_videos(RECIPE, 3, seed=0)
  with pytest.raises(ValueError, match="seed=-1"):
    video_made.weak_videos(RECIPE, 4, seed=-1)
  with pytest.raises(ValueError, match="sprites of shape"):
    video_made.weak_videos(RECIPE, 4, seed=0, sprites=np.zeros((2, 3)))
  with pytest.raises(ValueError, match="num_per_class=0"):
    video_made.clean_clips(RECIPE, 0, seed=0)
  with pytest.raises(ValueError, match="test=0"):
    video_made_files.Numbers(test=0)
  with pytest.raises(ValueError, match="endings='.gif'"):
    video_made_files.write_sets(
      tmp_path, RECIPE, video_made_files.Numbers(), seed=0, endings=[".gif"]
    )
