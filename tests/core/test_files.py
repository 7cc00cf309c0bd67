"""Files that are there whole or not at all."""

from __future__ import annotations

import ast
import pathlib

import numpy as np
import pytest

from locojax.core import files

ROOT = pathlib.Path(__file__).parents[2]
ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False])}
# Files that grow line by line, or are no content: a lock.
_APPENDS = {
  "locojax/core/files.py",
  "locojax/train/lock.py",
  "locojax/train/writers.py",
  "locojax/methods/dp_ftrl/chain.py",
}
_WRITERS = {"write_text", "write_bytes", "savefig", "savez", "savez_compressed"}


class _Fault(Exception):
  pass


def test_what_is_written_is_read(tmp_path):
  made = files.write_json(tmp_path / "deep" / "a.json", {"x": [1, 2.5, None]})
  assert files.read_json(made) == {"x": [1, 2.5, None]}
  assert made.read_text().endswith("\n")
  files.write_text(made, "[]")
  assert files.read_json(made) == []
  found = files.read_arrays(files.write_arrays(tmp_path / "a.npz", **ARRAYS))
  assert found.keys() == ARRAYS.keys()
  for name, x in ARRAYS.items():
    np.testing.assert_array_equal(found[name], x)
  one = files.write_array(tmp_path / "a.npy", ARRAYS["a"])
  np.testing.assert_array_equal(files.read_array(one), ARRAYS["a"])


@pytest.mark.parametrize("fault", [_Fault, KeyboardInterrupt, SystemExit])
def test_what_fails_leaves_the_file_before(tmp_path, fault):
  path = files.write_text(tmp_path / "a.txt", "before")

  def fill(file):
    file.write(b"aft")
    raise fault

  for target in (path, tmp_path / "new.txt"):
    with pytest.raises(fault):
      files.write(target, fill)
  assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
  assert path.read_text() == "before"


def _damages(content: bytes):
  """Cut, emptied, zeroed, and with other bytes in the middle."""
  half = len(content) // 2
  return {
    "cut": content[:half],
    "emptied": b"",
    "zeroed": bytes(len(content)),
    "exchanged": content[:half] + b"\xff" * 64 + content[half + 64 :],
  }


@pytest.mark.parametrize("how", ["cut", "emptied", "zeroed", "exchanged"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, how):
  cases = {
    files.write_json(tmp_path / "a.json", {"x": 1}): files.read_json,
    files.write_arrays(tmp_path / "a.npz", **ARRAYS): files.read_arrays,
    files.write_array(tmp_path / "a.npy", ARRAYS["a"]): files.read_array,
  }
  for path, read in cases.items():
    path.write_bytes(_damages(path.read_bytes())[how])
    if how == "exchanged" and path.suffix == ".npy":
      continue  # of a bare array every byte may be right
    with pytest.raises(files.Damaged, match=rf"{path.name} is damaged") as told:
      read(path)
    assert "makes it again" in str(told.value)
    with pytest.raises(files.Damaged, match="take another folder"):
      read(path, remedy="take another folder")


def _writes(node: ast.AST) -> bool:
  """Whether a call opens or fills a file for writing."""
  if not isinstance(node, ast.Call):
    return False
  name = getattr(node.func, "attr", getattr(node.func, "id", ""))
  # A plain name is a function of ours, which calls one of `files`.
  room = getattr(getattr(node.func, "value", None), "id", "")
  whole = isinstance(node.func, ast.Name) or room in ("files", "folder")
  first = node.args[0] if node.args else None
  to_file = isinstance(first, ast.Name) and first.id == "file"
  if name == "open" and room == "av" and to_file:
    return False  # a container in a file that is open
  if name == "open":
    modes = [*node.args, *(k.value for k in node.keywords)]
    modes = [m.value for m in modes if isinstance(m, ast.Constant)]
    return any(isinstance(m, str) and set(m) & set("wax+") for m in modes[-1:])
  if name == "savefig":
    return not to_file
  return name in _WRITERS and not whole


def test_nobody_writes_a_file_otherwise():
  for source, said in {
    "open(p, 'w')": True,
    "p.open('ab')": True,
    "p.write_text(t)": True,
    "np.savez(p, x=1)": True,
    "figure.savefig(path)": True,
    "av.open(path, 'w')": True,
    "open(file, 'w')": True,
    "av.open(file, 'w')": False,
    "files.write_text(p, t)": False,
    "p.open()": False,
    "open(p, 'rb')": False,
  }.items():
    assert any(map(_writes, ast.walk(ast.parse(source)))) == said, source
  found = []
  for room in ("locojax", "experiments"):
    for path in (ROOT / room).rglob("*.py"):
      name = path.relative_to(ROOT).as_posix()
      if name not in _APPENDS:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found += [f"{name}:{n.lineno}" for n in nodes if _writes(n)]
  assert not found, found
