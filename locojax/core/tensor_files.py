"""Named tensors of other programs' files, `.npz` and `.safetensors`.

A safetensors file is eight bytes, the length N of the header (little-endian);
N bytes of JSON that say of each tensor its dtype, shape and bytes; the bytes.
It is read here and not by its library, whose NumPy side has no bfloat16.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Callable, Container, Mapping
from typing import Any, BinaryIO

import numpy as np

from locojax.core import files

REMEDY = "get it again"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_ZIP = b"PK\x03\x04"
_MAX_HEADER = 100_000_000  # of the library as well


def read(
  path: str | os.PathLike, *, keep: Callable[[str], bool] | None = None
) -> dict[str, np.ndarray]:
  """The floating tensors of a file by name, all as float32.

  float32 holds every float16 and bfloat16; float64 is rounded.

  Args:
    path: a `.npz` or `.safetensors` file; what it is, its content tells.
    keep: which names to read; None reads all. Of a safetensors file the bytes
      of the others are not touched.

  Returns:
    Arrays of the host.

  Raises:
    Damaged: it is neither, or not whole.
    ValueError: a tensor to be read is not of floats; all such are listed.
    OSError: it is not there or cannot be read.
  """
  path = pathlib.Path(path)
  keep = keep or (lambda name: True)
  with path.open("rb") as file:
    start = file.read(len(_ZIP))
  if start != _ZIP:
    return _read_safetensors(path, keep)
  found = files.read_arrays(path, remedy=REMEDY)
  found = {n: _from_void(x) for n, x in found.items() if keep(n)}
  _check_floats(path, {n: x.dtype for n, x in found.items()}, "f")
  return {n: x.astype(np.float32) for n, x in found.items()}


def _check_floats(
  path: pathlib.Path, dtypes: Mapping[str, Any], known: Container[str]
) -> None:
  """`known` has all dtypes, or their kinds where they are NumPy's."""
  bad = {n: d for n, d in dtypes.items() if getattr(d, "kind", d) not in known}
  if bad:
    listed = ", ".join(f"{n} ({dtype})" for n, dtype in sorted(bad.items()))
    raise ValueError(f"{path} has tensors that are not of floats: {listed}.")


def _wide(x: np.ndarray) -> np.ndarray:
  """bfloat16, given as its bits in uint16, as float32."""
  return (x.astype(np.uint32) << 16).view(np.float32)


def _from_void(x: np.ndarray) -> np.ndarray:
  """As `x`, or what two nameless bytes are: how NumPy saves bfloat16."""
  if x.dtype.kind == "V" and x.dtype.itemsize == 2:
    return _wide(x.view(np.uint16))
  return x


def _read_safetensors(
  path: pathlib.Path, keep: Callable[[str], bool]
) -> dict[str, np.ndarray]:
  size = path.stat().st_size
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
      raise _damaged(path, "neither a zip archive nor safetensors")
    header = _header(path, file.read(length))
    _check_cover(path, header, size - 8 - length)
    wanted = {name: entry for name, entry in header.items() if keep(name)}
    _check_floats(path, {n: e["dtype"] for n, e in wanted.items()}, _DTYPES)
    return {n: _tensor(file, 8 + length, e) for n, e in wanted.items()}


def _damaged(path: pathlib.Path, why: object) -> files.Damaged:
  return files.Damaged(f"{path} is damaged ({why}): {REMEDY}.")


def _header(path: pathlib.Path, text: bytes) -> dict[str, Any]:
  """Tensors by name, their fields known to be there."""
  try:
    header = json.loads(text)
    header.pop("__metadata__", None)
    for name, entry in header.items():
      start, stop = entry["data_offsets"]
      sizes = [start, stop, *entry["shape"]]
      if not all(isinstance(n, int) and n >= 0 for n in sizes):
        raise ValueError(f"{name} has sizes that are none")
      count = math.prod(entry["shape"])
      width = np.dtype(_DTYPES.get(entry["dtype"], "u1")).itemsize
      if entry["dtype"] in _DTYPES and stop - start != count * width:
        raise ValueError(f"{name} has {stop - start} bytes for {count} numbers")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise _damaged(path, error or type(error).__name__) from error
  return header


def _check_cover(path, header: dict[str, Any], size: int) -> None:
  """Every byte belongs to one tensor."""
  end = 0
  for start, stop in sorted(e["data_offsets"] for e in header.values()):
    if start != end or stop < start:
      raise _damaged(path, "holes or overlaps between tensors")
    end = stop
  if end != size:
    raise _damaged(path, f"it has {size} bytes of tensors, not {end}")


def _tensor(
  file: BinaryIO, offset: int, entry: Mapping[str, Any]
) -> np.ndarray:
  """A tensor of floats as float32; `offset` is where the first one begins."""
  start, stop = entry["data_offsets"]
  file.seek(offset + start)
  x = np.frombuffer(file.read(stop - start), _DTYPES[entry["dtype"]])
  x = x.reshape(entry["shape"])
  return _wide(x) if entry["dtype"] == "BF16" else x.astype(np.float32)
