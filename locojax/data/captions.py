"""Your own images with captions, as a source.

Three layouts of a folder, the first that is found:

  captions.jsonl   a row `{"file": "a.png", "caption": "..."}` an image; the
                   caption may be a list of several
  captions.csv     with a header `file,caption`; rows of one file add up. A
                   caption with a comma goes in quotes, see `csv_rows`
  a.png, a.txt     a text file beside each image, a caption a line

Images are read by the rule of `image_files`.
"""

from __future__ import annotations

import os
import pathlib
import posixpath
from collections.abc import Mapping
from typing import Any

from locojax.core import checks
from locojax.data import csv_rows, folders, image_files, sources

Captions = dict[str, list[str]]


class CaptionedSource:
  """Images of files with their captions; see `from_caption_folder`."""

  def __init__(self, files, captions, mode, size):
    self.files, self.captions = files, captions
    self._mode, self._size = mode, size

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = image_files.read_image(
      self.files[index], mode=self._mode, size=self._size
    )
    return {"image": image, "captions": self.captions[index]}


def _texts(value: Any, where: str) -> list[str]:
  """Captions of a row: a text or a list of them, not blank."""
  several = value if isinstance(value, list) else [value]
  if not several or not all(isinstance(v, str) and v.strip() for v in several):
    raise ValueError(f"{where}: caption {value!r} must be a text or texts.")
  return [v.strip() for v in several]


def _name(value: Any, where: str) -> str:
  """A file as a row names it, in one spelling: `./a.png` is `a.png`."""
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f"{where}: file {value!r} must be the name of a file.")
  return posixpath.normpath(value.strip())


def _add(found: Captions, file: Any, caption: Any, where: str) -> None:
  texts = _texts(caption, where)
  found.setdefault(_name(file, where), []).extend(texts)


def _from_jsonl(path: pathlib.Path) -> Captions:
  found: Captions = {}
  for i, (line, row) in enumerate(sources.jsonl_rows(path), 1):
    where = f"{path}, line {line}, row {i}"
    if not {"file", "caption"} <= set(row):
      raise ValueError(
        f"{where} has {sorted(row)}: it needs `file` and `caption`."
      )
    _add(found, row["file"], row["caption"], where)
  return found


def _from_csv(path: pathlib.Path) -> Captions:
  found: Captions = {}
  names, rows = csv_rows.with_header(path, ("file", "caption"))
  for line, cells in rows:
    row = dict(zip(names, cells, strict=True))
    _add(found, row["file"], row["caption"], f"{path}, line {line}")
  return found


def _from_text_files(root: pathlib.Path) -> Captions:
  found: Captions = {}
  bare = []
  for path in folders.visible(root, deep=True):
    text, name = path.with_suffix(".txt"), path.relative_to(root).as_posix()
    if not image_files.is_image(path):
      continue
    if text.is_file():
      lines = [line for _, line in sources.lines_of(text)]
      found[name] = _texts(lines, str(text))
    else:
      bare.append(name)
  folders.report_unused(root, bare, "an image needs a .txt beside it")
  return found


def _read(root: pathlib.Path) -> Mapping[str, list[str]]:
  for name, read in (("jsonl", _from_jsonl), ("csv", _from_csv)):
    path = root / f"captions.{name}"
    if path.is_file():
      return read(path)
  return _from_text_files(root)


def from_caption_folder(
  root: str | os.PathLike,
  *,
  mode: str = "RGB",
  size: tuple[int, int] | None = None,
) -> CaptionedSource:
  """Images and captions of a folder, sorted by file.

  Args:
    root: laid out as the head of this file says; files are named relative to
      it.
    mode: `L`, `RGB` or `RGBA`.
    size: (height, width) to resize to; None keeps each image's own.

  Returns:
    A source of `image` uint8 `[height, width, channels]` and `captions`, a list
    of one or more texts.

  Raises:
    FileNotFoundError: no such folder, or a file that a row names is not there.
    ValueError: no captioned image, or a row that cannot be read; file and line
      are named.
  """
  checks.one_of("mode", mode, ("L", "RGB", "RGBA"))
  root = pathlib.Path(root)
  if not root.is_dir():
    raise FileNotFoundError(f"root={str(root)!r} is not a folder.")
  found = _read(root)
  if not found:
    raise ValueError(
      f"root={str(root)!r} has no captioned image: it needs captions.jsonl, "
      "captions.csv, or a .txt beside each image."
    )
  names = sorted(found)
  files = [root / n for n in names]
  missing = [str(f) for f in files if not f.is_file()]
  if missing:
    raise FileNotFoundError(
      f"{len(missing)} captioned images are not there, such as {missing[0]}."
    )
  return CaptionedSource(files, [found[n] for n in names], mode, size)
