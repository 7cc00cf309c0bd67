"""Your own images with captions, as a source.

Three layouts of a folder, the first that is found:

  captions.jsonl   a row `{"file": "a.png", "caption": "..."}` an image; the
                   caption may be a list of several
  captions.csv     with a header `file,caption`; rows of one file add up
  a.png, a.txt     a text file beside each image, a caption a line
"""

from __future__ import annotations

import csv
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from locojax.core import checks
from locojax.data import sources

Captions = dict[str, list[str]]


class CaptionedSource:
  """Images of files with their captions; see `from_caption_folder`."""

  def __init__(self, files, captions, mode, size):
    self.files, self.captions = files, captions
    self._mode, self._size = mode, size

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = sources.read_image(
      self.files[index], mode=self._mode, size=self._size
    )
    return {"image": image, "captions": self.captions[index]}


def _texts(value: Any, where: str) -> list[str]:
  """Captions of a row: a text or a list of them, not blank."""
  several = value if isinstance(value, list) else [value]
  if not several or not all(isinstance(v, str) and v.strip() for v in several):
    raise ValueError(f"{where}: caption {value!r} must be a text or texts.")
  return [v.strip() for v in several]


def _from_jsonl(path: pathlib.Path) -> Captions:
  found: Captions = {}
  for i, row in enumerate(sources.from_jsonl(path), 1):
    if not {"file", "caption"} <= set(row):
      raise ValueError(
        f"{path}, row {i} has {sorted(row)}: it needs `file` and `caption`."
      )
    texts = _texts(row["caption"], f"{path}, row {i}")
    found.setdefault(str(row["file"]), []).extend(texts)
  return found


def _from_csv(path: pathlib.Path) -> Captions:
  found: Captions = {}
  with open(path, newline="", encoding="utf-8") as f:
    rows = csv.DictReader(f)
    if not {"file", "caption"} <= set(rows.fieldnames or ()):
      raise ValueError(
        f"{path} has the header {rows.fieldnames}: it needs file,caption."
      )
    for i, row in enumerate(rows, 2):
      texts = _texts(row["caption"], f"{path}, line {i}")
      found.setdefault(row["file"], []).extend(texts)
  return found


def _from_text_files(root: pathlib.Path) -> Captions:
  found: Captions = {}
  for path in sorted(root.rglob("*")):
    text = path.with_suffix(".txt")
    if path.suffix.lower() in sources.IMAGE_SUFFIXES and text.is_file():
      lines = text.read_text("utf-8").splitlines()
      name = path.relative_to(root).as_posix()
      found[name] = _texts([s for s in lines if s.strip()], str(text))
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
    ValueError: no captioned image, or a row that cannot be read.
  """
  checks.one_of("mode", mode, ("L", "RGB", "RGBA"))
  root = pathlib.Path(root)
  if not root.is_dir():
    raise FileNotFoundError(f"root={str(root)!r} is not a folder.")
  try:
    found = _read(root)
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise ValueError(f"the captions in {root} cannot be read: {e}") from e
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
