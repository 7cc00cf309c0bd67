"""Tensors of other programs' files: values, dtypes, and damage."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import files, tensor_files

X = np.array([[1.5, -2.0, 3.25], [0.0, 1e-3, -1e5]])


def pack(entries, tail=b"", metadata=None):
  """The bytes of a safetensors file: `{name: (dtype, shape, bytes)}`."""
  header, data = {}, b""
  if metadata:
    header["__metadata__"] = metadata
  for name, (dtype, shape, content) in entries.items():
    ends = [len(data), len(data) + len(content)]
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": ends}
    data += content
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text + data + tail


def _bfloat16(x):
  return np.asarray(jnp.asarray(x, jnp.bfloat16)).view(np.uint16)


ENTRIES = {
  "double": ("F64", [2, 3], X.astype("<f8").tobytes()),
  "single": ("F32", [3, 2], X.astype("<f4").tobytes()),
  "half": ("F16", [2, 3], X.clip(-6e4, 6e4).astype("<f2").tobytes()),
  "brain": ("BF16", [2, 3], _bfloat16(X).astype("<u2").tobytes()),
  "number": ("F32", [], np.float32(7).tobytes()),
  "nothing": ("F32", [0, 4], b""),
}


def test_safetensors_become_float32(tmp_path):
  path = tmp_path / "a.safetensors"
  path.write_bytes(pack(ENTRIES, metadata={"format": "pt"}))
  found = tensor_files.read(path)
  assert set(found) == set(ENTRIES)
  assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}
  single = X.astype(np.float32)
  np.testing.assert_array_equal(found["double"], single)
  np.testing.assert_array_equal(found["single"], single.reshape(3, 2))
  half = X.clip(-6e4, 6e4).astype(np.float16).astype(np.float32)
  np.testing.assert_array_equal(found["half"], half)
  brain = np.asarray(jnp.asarray(X, jnp.bfloat16).astype(jnp.float32))
  np.testing.assert_array_equal(found["brain"], brain)
  assert found["number"].shape == () and found["number"] == 7
  assert found["nothing"].shape == (0, 4)
  assert all(x.flags.writeable for x in found.values())


def test_npz_becomes_float32(tmp_path):
  path = tmp_path / "a.npz"
  brain = _bfloat16(X)
  np.savez(
    path, **{"a/b": X, "half": X.astype(np.float32), "brain": brain.view("V2")}
  )
  found = tensor_files.read(path)
  np.testing.assert_array_equal(found["a/b"], X.astype(np.float32))
  want = np.asarray(jnp.asarray(X, jnp.bfloat16).astype(jnp.float32))
  np.testing.assert_array_equal(found["brain"], want)
  assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}


def test_only_what_is_kept_is_read(tmp_path):
  entries = {**ENTRIES, "steps": ("I64", [1], bytes(8))}
  path = tmp_path / "a.safetensors"
  path.write_bytes(pack(entries))
  found = tensor_files.read(path, keep=lambda name: name == "single")
  assert list(found) == ["single"]
  archive = tmp_path / "a.npz"
  np.savez(archive, x=X, steps=np.arange(3))
  assert list(tensor_files.read(archive, keep=lambda n: n == "x")) == ["x"]


def test_what_is_not_of_floats_is_listed(tmp_path):
  path = tmp_path / "a.safetensors"
  steps = {"steps": ("I64", [1], bytes(8)), "mask": ("BOOL", [2], bytes(2))}
  path.write_bytes(pack({**ENTRIES, **steps}))
  with pytest.raises(ValueError, match=r"a\.safetensors.*mask.*steps \(I64\)"):
    tensor_files.read(path)
  archive = tmp_path / "a.npz"
  np.savez(archive, x=X, steps=np.arange(3), text=np.array("a"))
  with pytest.raises(ValueError, match=r"a\.npz.*steps \(int64\), text"):
    tensor_files.read(archive)


GOOD = pack(ENTRIES)
LENGTH = int.from_bytes(GOOD[:8], "little")


def _with(change):
  header = json.loads(GOOD[8 : 8 + LENGTH])
  change(header)
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + GOOD[8 + LENGTH :]


DAMAGED = {
  "empty": b"",
  "short": b"PK",
  "cut": GOOD[:-1],
  "longer": GOOD + b"\0",
  "header_cut": GOOD[: 8 + LENGTH // 2],
  "huge_header": (2**60).to_bytes(8, "little") + GOOD[8:],
  "no_json": (4).to_bytes(8, "little") + b"abcd",
  "a_list": (2).to_bytes(8, "little") + b"[]",
  "no_shape": _with(lambda h: h["half"].pop("shape")),
  "other_shape": _with(lambda h: h["half"].update(shape=[2, 4])),
  "negative": _with(lambda h: h["half"].update(shape=[-2, -3])),
  "text_offsets": _with(lambda h: h["half"].update(data_offsets=["a", "b"])),
  "hole": _with(lambda h: h.pop("half")),
  "overlap": _with(
    lambda h: h["half"].update(data_offsets=h["brain"]["data_offsets"])
  ),
  "half_an_archive": b"PK\x03\x04" + bytes(20),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_named(tmp_path, kind):
  path = tmp_path / "weights.bin"
  path.write_bytes(DAMAGED[kind])
  with pytest.raises(files.Damaged, match=r"weights\.bin is damaged.*again"):
    tensor_files.read(path)


def test_no_file(tmp_path):
  with pytest.raises(FileNotFoundError):
    tensor_files.read(tmp_path / "none.npz")
