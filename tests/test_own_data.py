"""The README's table of your own data: its commands read such data."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import shlex

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

import locojax
from experiments.common import launch
from experiments.completion import corpora
from experiments.dp_ftrl import tasks as dp_tasks
from experiments.l2p import tasks as l2p_tasks
from experiments.limoe import pairs
from experiments.locoprop import corpus
from experiments.minerva import grade, texts
from experiments.pix2seq import sets as box_sets

ROOT = pathlib.Path(__file__).parents[1]
NAMES = {"locoprop": "LocoProp", "smelu": "SmeLU", "ciw": "CIW"}
NAMES |= {"dp_ftrl": "DP-FTRL", "limoe": "LIMoE", "l2p": "L2P"}
NAMES |= {"pix2seq": "Pix2Seq", "completion": "code completion"}
NAMES |= {"minerva": "Minerva", "spl": "SPL"}


def _rows() -> list[tuple[str, list[str]]]:
  """System and words of the command of each row."""
  text = (ROOT / "README.md").read_text("utf-8")
  section = text.split("\n## Your own data\n")[1].split("\n## ")[0]
  lines = [r for r in section.splitlines() if r.startswith("| ")][2:]
  cells = [r.strip("| ").split(" | ") for r in lines]
  return [(c[0], shlex.split(c[-1].strip("`"))) for c in cells]


RUNS = {
  words[2].split("/")[1]: words for _, words in _rows() if words[0] == "RUN"
}
PROGRAMS = [words for _, words in _rows() if words[0] == "python"]


def test_every_system_has_a_row():
  named = {system for system, _ in _rows()}
  assert named == {NAMES[n] for n in locojax.METHODS}


@pytest.mark.parametrize("words", PROGRAMS, ids=lambda w: w[2])
def test_programs_and_their_options_are_there(words):
  assert words[1] == "-m"
  spec = importlib.util.find_spec(words[2])
  source = pathlib.Path(spec.origin).read_text("utf-8")
  for option in (w for w in words[3:] if w.startswith("--")):
    assert f'"{option}"' in source, option


def _image(path: pathlib.Path, shade: int = 90) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((16, 16, 3), shade, np.uint8)).save(path)


def _tokens(root):
  np.save(root / "FILE.npy", np.arange(9000) % 200)
  return root / "FILE.npy"


def _user_texts(root):
  for k in range(40):
    (root / f"{k}.txt").write_text("one two. three four.\n" * 4 + "five six.\n")
  return root


def _captions(root):
  rows = [{"file": f"{k}.png", "caption": f"a thing, {k}"} for k in range(8)]
  for row in rows:
    _image(root / row["file"])
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (root / "captions.jsonl").write_text(lines)
  return root


def _streams(root):
  for k, task in enumerate(("a", "b")):
    for c in range(2):
      for n in range(6):
        _image(root / task / f"class{2 * k + c}" / f"{n}.png", 40 * n)
  return root


def _boxes(root):
  images = [
    {"id": k, "file_name": f"{k}.png", "width": 16, "height": 16}
    for k in range(5)
  ]
  one = {"category_id": 1, "bbox": [2, 2, 8, 8], "area": 64, "iscrowd": 0}
  found = {
    "images": images,
    "annotations": [{**one, "id": k, "image_id": k} for k in range(5)],
    "categories": [{"id": 1, "name": "thing"}],
  }
  for image in images:
    _image(root / image["file_name"])
  (root / "annotations.json").write_text(json.dumps(found))
  return root


def _packages(root):
  for n, name in enumerate(("one", "two", "three")):
    (root / name).mkdir()
    for k in range(4):
      body = "".join(f"x{n}{k}{i} = {i} + {n}{k}\n" for i in range(30))
      (root / name / f"m{k}.py").write_text(body)
  return root


def _solved(root):
  row = {"question": "1 + 1?", "solution": "1 + 1 = 2", "answer": "2"}
  lines = [json.dumps({**row, "question": f"{k} + 1?"}) for k in range(80)]
  (root / "FILE.jsonl").write_text("\n".join(lines))
  return root / "FILE.jsonl"


def _videos(root):
  for part in ("weak", "train", "test"):
    for name in ("run", "walk"):
      for frame in range(4):
        _image(root / part / name / "clip" / f"{frame}.png")
  return root


MADE = {
  "locoprop": _tokens,
  "dp_ftrl": _user_texts,
  "limoe": _captions,
  "l2p": _streams,
  "pix2seq": _boxes,
  "completion": _packages,
  "minerva": _solved,
  "spl": _videos,
}


def _config(words: list[str], path: pathlib.Path, root: pathlib.Path):
  """The config of a command, with its file or folder in place of the name."""
  places = {"DIR": path, "FILE.npy": path, "FILE.jsonl": path}
  (root / "VIT.npz").write_bytes(b"")
  places["VIT.npz"] = root / "VIT.npz"
  line = ["run", f"--config={ROOT / words[2]}"]
  for word in words[3:]:
    name, _, value = word.partition("=")
    line.append(f"{name}={places.get(value, value)}")
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=line)
  values(line)
  return values.config


def _read_l2p(config):
  with config.unlocked():
    config.data.image_size = 16
  stream = l2p_tasks.load(config)
  assert stream.num_stages == 2


READ = {
  "locoprop": lambda c: corpus.load(
    c.data.name,
    path=c.data.path,
    length=c.model.max_len,
    vocab_size=c.model.vocab_size,
  ),
  "dp_ftrl": dp_tasks.make,
  "limoe": lambda c: pairs.load(c.data),
  "l2p": _read_l2p,
  "pix2seq": lambda c: box_sets.load(c.data),
  "completion": corpora.load,
  "minerva": lambda c: texts.read(c.data.path),
  "spl": lambda c: None,  # `tests/experiments/test_spl.py` reads such folders.
}


@pytest.mark.parametrize("name", MADE)
def test_runs_accept_a_folder_as_the_table_has_it(name, tmp_path):
  assert set(MADE) == set(RUNS)
  root = tmp_path / "data"
  root.mkdir()
  config = _config(RUNS[name], MADE[name](root), tmp_path)
  launch.check_settings(config)
  READ[name](config)


def test_grading_of_own_samples(tmp_path, capsys):
  row = {"id": "q", "gold": "2", "samples": [r"It is $\boxed{2}$.", "no"]}
  (tmp_path / "FILE.jsonl").write_text(json.dumps(row) + "\n")
  (words,) = [w for w in PROGRAMS if w[2] == "experiments.minerva.grade"]
  out = str(tmp_path / "graded")
  args = [str(tmp_path / "FILE.jsonl"), *words[4:-1], out]
  grade.main([*args, "--engine", "none", "--workers", "1"])
  assert "pass" in capsys.readouterr().out
