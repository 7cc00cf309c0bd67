"""Your own images with captions, in three layouts."""

import json

import numpy as np
import pytest
from PIL import Image

from locojax.data import captions

WANTED = [["a red dot"], ["a blue dot", "something blue"]]


def _images(root):
  for name, value in (("a.png", (200, 0, 0)), ("b.png", (0, 0, 200))):
    Image.new("RGB", (6, 4), value).save(root / name)


def _layout(root, kind):
  _images(root)
  rows = [("a.png", "a red dot"), ("b.png", ["a blue dot", "something blue"])]
  if kind == "jsonl":
    lines = [json.dumps({"file": f, "caption": c}) for f, c in rows]
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
  elif kind == "csv":
    text = "file,caption\nb.png,a blue dot\na.png,a red dot\n"
    (root / "captions.csv").write_text(text + "b.png,something blue\n")
  else:
    (root / "a.txt").write_text("a red dot\n")
    (root / "b.txt").write_text("a blue dot\n\nsomething blue\n")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_every_layout_has_the_same_pairs(tmp_path, kind):
  _layout(tmp_path, kind)
  found = captions.from_caption_folder(tmp_path, size=(8, 8))
  assert [e["captions"] for e in found] == WANTED
  assert found[0]["image"].shape == (8, 8, 3)
  np.testing.assert_array_equal(found[1]["image"][0, 0], [0, 0, 200])


def test_what_is_wrong_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="not a folder"):
    captions.from_caption_folder(tmp_path / "none")
  with pytest.raises(ValueError, match="no captioned image"):
    captions.from_caption_folder(tmp_path)
  path = tmp_path / "captions.jsonl"
  path.write_text('{"file": "x.png", "caption": "x"}\n')
  with pytest.raises(FileNotFoundError, match="x.png"):
    captions.from_caption_folder(tmp_path)
  path.write_text('{"file": "x.png", "caption": " "}\n')
  with pytest.raises(ValueError, match="row 1: caption ' '"):
    captions.from_caption_folder(tmp_path)
  path.write_text('{"file": "x.png"}\n')
  with pytest.raises(ValueError, match="needs `file` and `caption`"):
    captions.from_caption_folder(tmp_path)
  path.unlink()
  (tmp_path / "captions.csv").write_text("name,caption\n")
  with pytest.raises(ValueError, match="file,caption"):
    captions.from_caption_folder(tmp_path)
