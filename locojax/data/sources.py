"""Random-access sources of examples.

A source is any object with `__len__` and `__getitem__`, see `Source`. This file
opens the usual ones and does plain arithmetic on them: take, subset,
concatenate, map, and `as_arrays` to decode a whole source into memory.
TensorFlow is not needed and never imported by reading.
"""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol, runtime_checkable

import numpy as np

from locojax.core import checks
from locojax.data import image_files, stacking, tfds_dirs, token_records

Example = Mapping[str, Any]
# Images, and rows of tokens, are read in files of their own.
IMAGE_SUFFIXES = image_files.SUFFIXES
read_image = image_files.read_image
from_image_folder = image_files.from_image_folder
from_token_records = token_records.from_token_records
ImageFolderSource = image_files.ImageFolderSource


@runtime_checkable
class Source(Protocol):
  """What the pipeline reads: `len(source)` examples, by position.

  Promises that a source keeps:
    * `source[i]` for `0 <= i < len(source)` is a dict of NumPy arrays or
      scalars, text (`str`, `bytes`) or dicts of these; other `i` may raise.
    * `source[i]` is the same at every call and in every process: anything
      random belongs to the pipeline, which hands out generators.
    * reading is safe from several threads.
    * for worker processes it can be pickled.

  A source may also have `__getitems__(indices) -> list of examples` where many
  at once are cheaper than one at a time.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


def check(source: Any, name: str = "source") -> Source:
  """The same object, if it is a source with at least one example.

  Raises:
    ValueError: no `__len__` or `__getitem__`, no example, or the first example
      is not a dict.
  """
  if isinstance(source, Mapping) or not isinstance(source, Source):
    raise ValueError(
      f"{name} is a {type(source).__name__}, which is not allowed: it must "
      "have __len__ and __getitem__(int) -> dict. A dict of arrays goes "
      "through sources.from_arrays."
    )
  if len(source) < 1:
    raise ValueError(f"{name} has no examples: at least one is needed.")
  first = source[0]
  if not isinstance(first, Mapping):
    raise ValueError(
      f"{name}[0] is a {type(first).__name__}, which is not allowed: an "
      "example must be a dict of arrays."
    )
  return source


class ArraySource:
  """Rows of arrays in memory; `arrays` is the dict of them."""

  def __init__(self, arrays: Mapping[str, np.ndarray]):
    self.arrays = arrays
    self._length = len(next(iter(arrays.values())))

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {k: v[index] for k, v in self.arrays.items()}


def from_arrays(arrays: Mapping[str, Any]) -> ArraySource:
  """A source from a dict of arrays `[examples, ...]`.

  Args:
    arrays: arrays with the same leading size, at least 1, which are not
      copied; or lists, by the rule of `stacking`.

  Returns:
    A source of `{name: array[i]}`.

  Raises:
    ValueError: empty, scalar, or of different leading sizes; a list whose
      entries do not go together.
  """
  if not isinstance(arrays, Mapping) or not arrays:
    raise ValueError(
      f"arrays={arrays!r} is not allowed: it must be a dict of arrays, not "
      "empty."
    )
  out = {k: stacking.array(repr(k), v) for k, v in arrays.items()}
  sizes = {k: v.shape[0] if v.ndim else None for k, v in out.items()}
  if len(set(sizes.values())) != 1 or not all(sizes.values()):
    raise ValueError(
      "arrays must all have the same leading size, 1 or more; got "
      f"{sizes} (None: a scalar)."
    )
  return ArraySource(out)


class TfdsSource:
  """A split prepared by tfds as ArrayRecord, decoded to NumPy."""

  def __init__(self, directory: pathlib.Path, split: str):
    self.directory = directory
    self.split = split
    self._source = tfds_dirs.open_split(directory, split)

  def __len__(self) -> int:
    return len(self._source)

  @property
  def features(self) -> Any:
    """What tfds knows of the features, names of classes among it."""
    return self._source.dataset_info.features

  def __getitem__(self, index: int) -> Any:
    return _to_numpy(self._source[index])

  def __getitems__(self, indices: Sequence[int]) -> list[Any]:
    return [_to_numpy(e) for e in self._source.__getitems__(list(indices))]


def _to_numpy(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {k: _to_numpy(v) for k, v in value.items()}
  return value if isinstance(value, str | bytes) else np.asarray(value)


def from_tfds(
  name: str,
  *,
  split: str,
  data_dir: str | os.PathLike | None = None,
  download: bool = False,
) -> TfdsSource:
  """A split of a tfds data set, read without TensorFlow.

  Args:
    name: as tfds writes it: `mnist`, `mnist:3.0.1`, `coco/2017`.
    split: a split, or a slice of one as `train[:10%]`.
    data_dir: the folder that holds `<name>/<version>/`; None means
      `$TFDS_DATA_DIR`, or `~/tensorflow_datasets` if that is unset.
    download: let tfds fetch and prepare what is absent.

  Returns:
    A source of dicts of NumPy arrays; text comes as `bytes`.

  Raises:
    FileNotFoundError: the data set (or its version) is not there; the message
      lists where it was looked for and the ways to get it.
    ValueError: not prepared as ArrayRecord, or no such split.
    ImportError: tfds or an image decoder is not installed.
  """
  found = tfds_dirs.find(name, data_dir=data_dir, download=download)
  return TfdsSource(found, split)


class ListSource:
  """Examples that are already dicts in a list."""

  def __init__(self, examples: Sequence[Example]):
    self._examples = examples

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]


def _paths(paths) -> list[pathlib.Path]:
  if isinstance(paths, str | os.PathLike):
    paths = [paths]
  paths = [pathlib.Path(p) for p in paths]
  missing = [str(p) for p in paths if not p.is_file()]
  if missing or not paths:
    raise FileNotFoundError(f"paths: no such file {missing or '(none given)'}.")
  return paths


def read_text(path: str | os.PathLike) -> str:
  """A UTF-8 file; `.gz` is unpacked, a byte-order mark is no text.

  Raises:
    ValueError: it cannot be read; it is named.
  """
  path = pathlib.Path(path)
  opener = gzip.open if path.suffix == ".gz" else open
  try:
    with opener(path, "rt", encoding="utf-8-sig") as f:
      return f.read()
  except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
    raise ValueError(f"the text file {path} cannot be read: {e}") from e


def lines_of(path: str | os.PathLike) -> list[tuple[int, str]]:
  """Numbers and texts of the lines of a file that are not blank."""
  lines = read_text(path).split("\n")
  return [(i, line) for i, line in enumerate(lines, 1) if line.strip()]


def from_text(
  paths: str | os.PathLike | Iterable[str | os.PathLike],
  *,
  unit: str = "line",
) -> ListSource:
  """Text files, a line or a whole file to an example, kept in memory.

  Args:
    paths: a UTF-8 file or several; `.gz` is unpacked.
    unit: `line` (line ends dropped, empty lines left out) or `file`.

  Returns:
    A source of `text` and `path`, both `str`.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is not text (it is named), or nothing was in them.
  """
  checks.one_of("unit", unit, ("line", "file"))
  out = []
  for path in _paths(paths):
    text = read_text(path)
    pieces = [text] if unit == "file" else text.split("\n")
    pieces = (p.removesuffix("\r") for p in pieces)
    out += [{"text": p, "path": str(path)} for p in pieces if p]
  if not out:
    raise ValueError(f"paths={paths!r} hold no text.")
  return ListSource(out)


def jsonl_rows(path: str | os.PathLike) -> list[tuple[int, dict[str, Any]]]:
  """Line numbers and objects of a file of JSON objects, one a line.

  Raises:
    ValueError: a line is no JSON object, or has a key twice (file and line are
      named).
  """
  return [(i, _json_object(path, i, line)) for i, line in lines_of(path)]


def from_jsonl(
  paths: str | os.PathLike | Iterable[str | os.PathLike],
) -> ListSource:
  """JSON objects, one a line (`.gz` is unpacked), kept in memory.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: as `jsonl_rows`, or no objects.
  """
  out = [row for path in _paths(paths) for _, row in jsonl_rows(path)]
  if not out:
    raise ValueError(f"paths={paths!r} hold no JSON objects.")
  return ListSource(out)


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  """An object whose keys all differ; JSON itself would keep the last."""
  out = dict(pairs)
  if len(out) < len(pairs):
    names = [name for name, _ in pairs]
    twice = sorted({n for n in names if names.count(n) > 1})
    raise ValueError(f"the keys {twice} come twice")
  return out


def _json_object(path, number: int, line: str) -> dict[str, Any]:
  try:
    value = json.loads(line, object_pairs_hook=_distinct)
  except ValueError as e:
    raise ValueError(f"{path}, line {number}: not JSON ({e}).") from e
  if not isinstance(value, dict):
    raise ValueError(
      f"{path}, line {number}: a {type(value).__name__}, not a JSON object."
    )
  return value


class MappedSource:
  """A function of the examples of another source."""

  def __init__(self, source: Source, f: Callable[[Example], Example]):
    self._source, self._f = source, f

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    return self._f(self._source[index])


def mapped(source: Source, f: Callable[[Example], Example]) -> MappedSource:
  """`f(source[i])` for each i, computed when asked for; `f` is not random."""
  return MappedSource(check(source), f)


class SubsetSource:
  """Chosen positions of another source."""

  def __init__(self, source: Source, indices: np.ndarray):
    self._source, self._indices = source, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Example:
    return self._source[int(self._indices[index])]


def subset(source: Source, indices: Any) -> Source:
  """The examples at `indices` `[n]` (integers, any order, repeats allowed).

  Raises:
    ValueError: not a list of integers, empty, or out of range.
  """
  check(source)
  indices = np.asarray(indices)
  if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
    raise ValueError(
      f"indices of shape {indices.shape} and dtype {indices.dtype} are not "
      "allowed: they must be a list of integers, not empty."
    )
  if indices.size == 0:
    raise ValueError("indices are empty: at least one is needed.")
  low, high = indices.min(), indices.max()
  if low < 0 or high >= len(source):
    raise ValueError(
      f"indices from {low} to {high} are not allowed: they must be in "
      f"[0, {len(source) - 1}]."
    )
  if isinstance(source, ArraySource):
    return ArraySource({k: v[indices] for k, v in source.arrays.items()})
  return SubsetSource(source, indices)


def take(source: Source, num_examples: int) -> Source:
  """The first `num_examples` examples; asking for too many is an error."""
  checks.positive_int("num_examples", num_examples)
  return subset(source, np.arange(num_examples))


class ConcatenatedSource:
  """Sources one after the other."""

  def __init__(self, parts: Sequence[Source]):
    self._parts = parts
    self._ends = np.cumsum([len(p) for p in parts])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(f"index {index} of a source of {len(self)} examples.")
    part = int(np.searchsorted(self._ends, index, side="right"))
    start = self._ends[part - 1] if part else 0
    return self._parts[part][int(index - start)]


def concatenate(*parts: Source) -> ConcatenatedSource:
  """All examples of the first source, then the second, and so on.

  Raises:
    ValueError: no sources, or their first examples differ in names.
  """
  if not parts:
    raise ValueError("concatenate needs at least one source.")
  names = [sorted(check(p)[0]) for p in parts]
  for i, other in enumerate(names):
    if other != names[0]:
      raise ValueError(
        f"source {i} has the names {other} and source 0 has {names[0]}: "
        "they must be equal."
      )
  return ConcatenatedSource(parts)


def as_arrays(
  source: Source, *, num_threads: int = 4, chunk: int = 512
) -> dict[str, np.ndarray]:
  """Decodes a whole source once into arrays `[examples, ...]`.

  No value is changed: dtypes are promoted, and what cannot be kept is refused,
  by the rule of `stacking`.

  Args:
    source: examples as flat dicts whose values agree in shape.
    num_threads: threads that read chunks at the same time.
    chunk: examples a thread reads at a time.

  Returns:
    A dict of stacked arrays in the order of the source. Single texts become
    arrays of objects.

  Raises:
    ValueError: examples differ in names, in a shape, or in kind (both are
      named), or an integer would be rounded among floats.
  """
  check(source)
  checks.positive_int("num_threads", num_threads)
  checks.positive_int("chunk", chunk)
  if isinstance(source, ArraySource):
    return dict(source.arrays)
  first = source[0]
  out = {
    k: stacking.Stack(repr(k), stacking.leaf(repr(k), v), len(source))
    for k, v in first.items()
  }
  starts = range(0, len(source), chunk)
  with futures.ThreadPoolExecutor(num_threads) as pool:
    done = pool.map(lambda s: _fill(source, out, s, chunk), starts)
    for _ in done:
      pass
  return {k: made.result() for k, made in out.items()}


def _fill(source, out, start: int, chunk: int) -> None:
  indices = range(start, min(start + chunk, len(source)))
  for i, example in zip(indices, _getitems(source, indices), strict=True):
    if set(example) != set(out):
      raise ValueError(
        f"example {i} has the names {sorted(example)} and example 0 has "
        f"{sorted(out)}: they must be equal."
      )
    for name, made in out.items():
      made.put(i, example[name])


def _getitems(source: Source, indices: Sequence[int]) -> list[Example]:
  if hasattr(source, "__getitems__"):
    return source.__getitems__(indices)
  return [source[i] for i in indices]
