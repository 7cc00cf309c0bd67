"""Emoji of a package, small and made here, as a tfds data set."""

import json

import numpy as np
import pytest
from PIL import Image

from locojax.data import sources
from scripts import prepare_data, prepare_emoji


def _package(root, num=40):
  """A package whose emoji i of vendor v is of one colour."""
  side = 7
  rows = []
  for short in prepare_emoji.VENDORS.values():
    (root / "img" / short / "sheets").mkdir(parents=True)
  sheets = {
    short: Image.new("RGBA", (34 * side, 34 * side))
    for short in prepare_emoji.VENDORS.values()
  }
  for i in range(num):
    x, y = divmod(i, side)
    for v, sheet in enumerate(sheets.values()):
      box = (34 * x + 1, 34 * y + 1, 34 * x + 33, 34 * y + 33)
      sheet.paste((i, 100 * v, 7, 255), box)
    rows.append(
      {
        "name": f"THING {i}",
        "short_name": f"thing_{i}",
        "short_names": [f"thing_{i}", "item"],
        "unified": f"1F{i:03X}",
        "category": "Objects",
        "subcategory": "things",
        "sheet_x": x,
        "sheet_y": y,
        "has_img_google": True,
        "has_img_twitter": i != 3,
      }
    )
  for short, sheet in sheets.items():
    sheet.save(root / "img" / short / "sheets" / "32.png")
  (root / "emoji.json").write_text(json.dumps(rows))
  return root


def test_a_package_becomes_a_data_set(tmp_path, capsys):
  package = _package(tmp_path / "package")
  argv = ["emoji_pairs", "--data_dir", str(tmp_path), "--from", str(package)]
  assert prepare_data.main(argv) == 0
  assert "emoji_pairs: {'train':" in capsys.readouterr().out
  found = {
    split: [
      dict(sources.from_tfds("emoji_pairs", split=split, data_dir=tmp_path)[i])
      for i in range(
        len(sources.from_tfds("emoji_pairs", split=split, data_dir=tmp_path))
      )
    ]
    for split in ("train", "test")
  }
  text = lambda row, key: np.asarray(row[key]).item().decode()
  names = {s: {text(r, "name") for r in rows} for s, rows in found.items()}
  assert not names["train"] & names["test"]
  every = found["train"] + found["test"]
  assert len(every) == 2 * 40 - 1
  for row in every:
    i = int(text(row, "name").split()[1])
    image = np.asarray(row["image"])
    assert image.shape == (32, 32, 4)
    assert (image == [i, 100 * int(row["vendor"]), 7, 255]).all()
    assert text(row, "keywords") == f"thing {i},item"


def test_what_is_missing_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="npm pack"):
    prepare_emoji.prepare(data_dir=tmp_path)
  with pytest.raises(FileNotFoundError, match="no emoji.json"):
    prepare_emoji.prepare(data_dir=tmp_path, source=tmp_path)
  package = _package(tmp_path / "package", num=3)
  (package / "img" / "google" / "sheets" / "32.png").unlink()
  with pytest.raises(FileNotFoundError, match="32.png"):
    prepare_emoji.prepare(data_dir=tmp_path, source=package)
