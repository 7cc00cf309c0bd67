"""Omniglot from its folders and from one file, and as it is read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from experiments.common import drawings, trained_on
from scripts import prepare_data, prepare_omniglot

_SIDE = prepare_omniglot.SIDE


def _folder(root):
  """2 alphabets with 2 characters of 5 drawings, in two archives."""
  for part, alphabets in {"small1": "BA", "small2": "A"}.items():
    for a in alphabets:
      for c in (1, 2):
        for d in range(1, 6):
          where = root / part / f"alphabet_{a}" / f"character0{c}"
          where.mkdir(parents=True, exist_ok=True)
          page = np.full((_SIDE, _SIDE), 255, np.uint8)
          page[d : d + 4, 10 * c] = 0
          Image.fromarray(page).convert("1").save(where / f"0{c}_{d:02}.png")
  return root


def test_folders_become_one_file_and_that_file_itself(tmp_path):
  source = _folder(tmp_path / "archives")
  args = ["omniglot", "--data_dir", str(tmp_path / "a"), "--from"]
  assert prepare_data.main([*args, str(source)]) == 0
  path = drawings.place(tmp_path / "a")
  found = np.load(path)
  # A drawing that is in both archives counts once.
  assert len(found["label"]) == 20
  assert found["alphabet_names"].tolist() == ["alphabet_A", "alphabet_B"]
  assert np.unique(found["label"], return_counts=True)[1].tolist() == [5] * 4
  args[2] = str(tmp_path / "b")
  assert prepare_data.main([*args, str(path)]) == 0
  again = np.load(drawings.place(tmp_path / "b"))
  assert all((found[n] == again[n]).all() for n in found.files)


def test_the_test_has_other_drawers_and_ink_is_bright(tmp_path):
  prepare_omniglot.prepare(
    data_dir=tmp_path, source=_folder(tmp_path / "archives")
  )
  splits = drawings.load("omniglot", data_dir=tmp_path)
  assert len(splits["train"]["label"]) == 16  # drawer 4 of 5 is for the test
  assert len(splits["test"]["label"]) == 4
  image = splits["test"]["image"][0, ..., 0]
  assert image.shape == (_SIDE, _SIDE) and image.sum() == 4 * 255
  assert (image[4:8, 10] == 255).all()
  alphabets = drawings.load("omniglot_alphabets", data_dir=tmp_path)
  assert sorted(set(alphabets["train"]["label"])) == [0, 1]
  data = {"names": ("omniglot",), "data_dir": str(tmp_path)}
  assert set(trained_on.of_data(data)) == {"omniglot"}


def test_what_is_no_omniglot_is_refused(tmp_path, capsys):
  with pytest.raises(FileNotFoundError, match="prepare_data omniglot"):
    drawings.load("omniglot", data_dir=tmp_path)
  with pytest.raises(ValueError, match="'omniglot', 'omniglot_alphabets'"):
    drawings.load("omniglott", data_dir=tmp_path)
  (tmp_path / "empty").mkdir()
  args = ["omniglot", "--data_dir", str(tmp_path), "--from"]
  assert prepare_data.main([*args, str(tmp_path / "empty")]) == 1
  assert "ALPHABET/CHARACTER" in capsys.readouterr().err
  other = tmp_path / "other.npz"
  np.savez(other, label=np.zeros(3))
  assert prepare_data.main([*args, str(other)]) == 1
  assert "must have 'ink_packbits'" in capsys.readouterr().err
  assert prepare_data.main(args[:3]) == 1
  assert "--from is missing" in capsys.readouterr().err
