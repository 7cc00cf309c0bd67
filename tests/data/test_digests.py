"""Digests differ where data do, and only there."""

import shutil

import numpy as np
import pytest

from locojax.data import digests


def test_arrays_count_with_values_order_shape_and_dtype():
  x = np.arange(6)
  same = digests.of_arrays({"x": x, "y": ["a"]})
  assert same == digests.of_arrays({"y": ["a"], "x": x.copy()})
  others = (x[::-1], x.reshape(2, 3), x.astype(np.int32), x + (x == 5))
  for other in others:
    assert digests.of_arrays({"x": other, "y": ["a"]}) != same
  assert digests.of_arrays({"z": x, "y": ["a"]}) != same
  assert digests.of_arrays({"x": x, "y": ["b"]}) != same


def _folder(root):
  for name in ("cat", "dog"):
    (root / name).mkdir(parents=True)
    (root / name / "0.png").write_text(name)
  return root


@pytest.mark.parametrize("whole", [True, False])
def test_folders_count_with_names_and_contents(tmp_path, monkeypatch, whole):
  if not whole:
    monkeypatch.setattr(digests, "WHOLE", 0)
  root = _folder(tmp_path / "a")
  first = digests.of_files(root)
  (root / ".DS_Store").write_text("x")
  assert digests.of_files(root) == first
  assert digests.of_files(shutil.copytree(root, tmp_path / "b")) == first
  (root / "cat" / "0.png").write_text("bat")
  assert digests.of_files(root) != first
  (root / "cat" / "0.png").write_text("cat")
  assert digests.of_files(root) == first
  (root / "cat" / "0.png").rename(root / "dog" / "1.png")
  assert digests.of_files(root) != first


def test_large_files_are_sampled(tmp_path, monkeypatch):
  monkeypatch.setattr(digests, "WHOLE", 10)
  path = tmp_path / "tokens.npy"
  content = bytearray(2 * 16 * 2**16)
  path.write_bytes(content)
  first = digests.of_files(path)
  for place in (0, len(content) // 15 * 7, len(content) - 1):
    changed = content.copy()
    changed[place] = 1
    path.write_bytes(changed)
    assert digests.of_files(path) != first
