"""The benchmark of readers of video: its files, its counts, its rows."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from experiments.spl import bench_reader as bench
from experiments.spl import bench_reader_peer as peer

_FAKE = """
import json, sys
words = dict(a.lstrip("-").split("=", 1) for a in sys.argv[3:] if "=" in a)
if words["library"] == "opencv":
  print(json.dumps({"missing": "no such library"}))
elif "--probe" in sys.argv:
  print(json.dumps({"version": "1"}))
elif "memory" in words:
  print(json.dumps({"megabytes": [100.0] * 9 + [109.0]}))
else:
  print(json.dumps({"version": "1", "wrong": 5}), flush=True)
  for line in sys.stdin:
    print('"done"', flush=True)
"""


def _fake(folder):
  """A Python that runs another program in the place of the others."""
  script, fake = folder / "fake.py", folder / "python"
  script.write_text(_FAKE)
  fake.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
  fake.chmod(0o755)
  return fake


def test_wrong_frames_are_counted():
  frames = np.full((peer.LENGTH, 32, 8 * peer.BLOCK, 3), 90, np.uint8)
  peer.draw_numbers(frames)
  assert peer.read_numbers(frames).tolist() == list(range(peer.LENGTH))

  def late(path):
    return lambda numbers: frames[np.asarray(numbers) + (path == "late")]

  def broken(path):
    def fail(numbers):
      raise RuntimeError("no frame")

    return fail

  clips = [(0, list(range(16))), (1, list(range(5, 21)))]
  assert peer.Reader(late, ["a", "a"], "held").read(clips) == 0
  assert peer.Reader(late, ["a", "late"], "opened").read(clips) == 16
  assert peer.Reader(broken, ["a", "a"], "held").read(clips) == 32


def test_the_whole_benchmark(tmp_path, capsys, monkeypatch):
  """With another program in the place of the other readers."""
  monkeypatch.setattr(peer, "LENGTH", 40)
  write = bench.write_files
  monkeypatch.setattr(
    bench, "write_files", lambda *args: write(*args, size=8 * peer.BLOCK)
  )
  told = tmp_path / "told.json"
  bench.main(
    [
      *("--results", str(told), "--python", str(_fake(tmp_path))),
      *("--kinds", "MPEG-4 part 2", "--files", "1", "--clips", "2"),
      *("--rounds", "1", "--memory", "20"),
    ]
  )
  found = json.loads(told.read_text())
  assert "opencv" in found["notes"] and "PEER" in found["command"]
  rows = found["rows"]
  timed = [row for row in rows if "way" in row]
  assert [(r["way"], r["reader"]) for r in timed] == [
    (way, name)
    for way in ("held", "opened")
    for name in ("locojax", "decord", "torchcodec")
  ]
  assert [row["wrong"] for row in timed] == [0, 5, 5] * 2
  assert all(row["clips_per_second"] > 0 for row in timed)
  assert timed[0]["times_ours"] == 1
  memory = {row["reader"]: row for row in rows if "kb_a_clip" in row}
  assert memory["decord"]["kb_a_clip"] == pytest.approx(500)
  assert memory["locojax"]["mb_at_the_end"] > 10
  assert "decord" in capsys.readouterr().out


def test_bad_values_are_refused(tmp_path):
  with pytest.raises(ValueError, match="--clips=0"):
    bench.main(["--results", str(tmp_path / "x"), "--clips", "0"])
  with pytest.raises(ValueError, match="kind="):
    bench.write_files(tmp_path, "GIF", 1)
