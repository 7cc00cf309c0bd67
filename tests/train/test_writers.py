"""metrics.jsonl, the progress line, and the optional writers."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import sys
import types

import pytest

from locojax.train import writers


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_start_are_dropped(tmp_path):
  path = tmp_path / writers.METRICS
  first = writers.JsonLines(path, -1)
  for step in range(6):
    first.write(step, step / 2, {"train/loss": 1.0 / (step + 1)})
  first.close()
  before = _rows(path)
  second = writers.JsonLines(path, 3)
  assert _rows(path) == before[:4]
  second.write(4, 2.0, {"train/loss": 7.0})
  second.close()
  assert _rows(path)[-1] == {"step": 4, "seconds": 2.0, "train/loss": 7.0}


def test_a_line_is_there_at_once(tmp_path):
  path = tmp_path / writers.METRICS
  writer = writers.JsonLines(path, -1)
  writer.write(1, 0.5, {"a/b": 2.0})
  assert _rows(path) == [{"step": 1, "seconds": 0.5, "a/b": 2.0}]
  writer.close()


def test_a_cut_last_line_is_left_out_and_others_are_refused(tmp_path):
  path = tmp_path / writers.METRICS
  path.write_text('{"step": 1, "seconds": 0}\n{"step": 2, "sec')
  assert [r["step"] for r in writers.read_lines(path)] == [1]
  writers.JsonLines(path, 5).close()
  assert _rows(path) == [{"step": 1, "seconds": 0}]
  path.write_text('{"step": 1, "sec\n{"step": 2, "seconds": 0}\n')
  with pytest.raises(ValueError, match="line 1"):
    writers.read_lines(path)


def test_values_keep_their_bits(tmp_path):
  path = tmp_path / writers.METRICS
  value = float.fromhex("0x1.23456789abcdep-3")
  writer = writers.JsonLines(path, -1)
  writer.write(1, 0.0, {"a/b": value, "a/c": math.nan})
  writer.close()
  row = writers.read_lines(path)[0]
  assert row["a/b"] == value and math.isnan(row["a/c"])


def _progress(step, **changes):
  settings = {
    "step": step,
    "num_steps": 100,
    "loss": 0.25,
    "examples_per_second": 1234.0,
    "step_seconds": 0.5,
    **changes,
  }
  return writers.Progress(**settings)


def test_progress_line():
  line = writers.progress_line("run", _progress(40, mfu=0.123))
  assert line == "run 40/100  loss 0.25  1234 examples/s  MFU 12.3%  ETA 30.0s"
  assert "MFU" not in writers.progress_line("run", _progress(40))
  assert writers.progress_line("", _progress(100)).endswith("done")


@pytest.mark.parametrize(
  "seconds, text",
  [(3.21, "3.2s"), (75, "1m15s"), (7380, "2h03m"), (math.inf, "?")],
)
def test_duration(seconds, text):
  assert writers.duration(seconds) == text


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_console_writes_in_place_on_a_terminal():
  stream = _Terminal()
  console = writers.Console("run", stream=stream)
  console.progress(_progress(10, loss=0.123456))
  console.progress(_progress(20, loss=0.1))
  console.close()
  text = stream.getvalue()
  assert text.count("\r") == 2 and text.count("\n") == 1
  first, second = text.strip("\r\n").split("\r")
  assert len(second) >= len(first)


def test_console_is_sparing_elsewhere_but_shows_the_last():
  stream = io.StringIO()
  console = writers.Console("run", stream=stream, interval=1000)
  for step in (10, 20, 30, 100):
    console.progress(_progress(step))
  console.close()
  lines = stream.getvalue().splitlines()
  assert [line.split()[1] for line in lines] == ["10/100", "100/100"]


def _fake_tensorboard(monkeypatch, name, module, attribute):
  seen = []

  class Writer:
    def __init__(self, folder):
      seen.append(folder)

    def add_scalar(self, tag, value, step):
      seen.append((tag, value, step))

    def close(self):
      seen.append("closed")

  fake = types.ModuleType(module)
  setattr(fake, attribute, Writer)
  monkeypatch.setitem(sys.modules, module, fake)
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda n, *_: fake if n == name else None
  )
  return seen


@pytest.mark.parametrize(
  "name, module, attribute",
  [
    ("tensorboardX", "tensorboardX", "SummaryWriter"),
    ("tensorboard", "tensorboard.summary", "Writer"),
  ],
)
def test_tensorboard_when_installed(
  monkeypatch, tmp_path, name, module, attribute
):
  seen = _fake_tensorboard(monkeypatch, name, module, attribute)
  several = writers.Several(writers.default(tmp_path))
  several.write(3, 1.5, {"train/loss": 2.0})
  several.close()
  assert seen == [
    str(tmp_path / "tensorboard"),
    ("train/loss", 2.0, 3),
    ("seconds", 1.5, 3),
    "closed",
  ]


def test_absent_packages_are_named(monkeypatch, tmp_path):
  monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
  assert len(writers.default(tmp_path)) == 1
  with pytest.raises(ImportError, match="pip install tensorboard"):
    writers.TensorBoard(tmp_path)
  with pytest.raises(ImportError, match="pip install wandb"):
    writers.WeightsAndBiases("project")
