"""Prepares `omniglot`: handwritten characters of many alphabets.

Takes the folders of Omniglot's `images_background_small1` and `_small2` (the
archives of Lake, Salakhutdinov and Tenenbaum 2015, MIT licence), packed or
unpacked, or one `.npz` file with the arrays `ink_packbits`, `alphabet`,
`character`, `drawer`, `label`, `alphabet_names`.

Result: `DIR/omniglot/small/drawings.npz`, with the same arrays, read by
`experiments.common.datasets`.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
import zipfile

import numpy as np

from locojax.core import checks, files
from locojax.data import image_files, tfds_dirs

NAME = "omniglot"
SIDE = 105
ARRAYS = {
  **{"ink_packbits": "uint8", "alphabet": "uint8", "character": "uint8"},
  **{"drawer": "uint8", "label": "uint16"},
}
_NAMES = "alphabet_names"
_HELP = (
  "take images_background_small1.zip and images_background_small2.zip of "
  "Omniglot, unpack them into one folder, and give it with --from."
)


def place(data_dir: str | os.PathLike | None) -> pathlib.Path:
  """Where the prepared file is, `DIR/omniglot/small/drawings.npz`."""
  return tfds_dirs.resolve(data_dir) / NAME / "small" / "drawings.npz"


def _drawings(root: pathlib.Path) -> dict[tuple[str, str], list[pathlib.Path]]:
  """Files by alphabet and character; an alphabet may be in several parts."""
  found: dict[tuple[str, str], set[str]] = {}
  out: dict[tuple[str, str], list[pathlib.Path]] = {}
  for path in sorted(root.rglob("*.png")):
    key = (path.parent.parent.name, path.parent.name)
    names = found.setdefault(key, set())
    if path.name not in names:  # the same drawing in both archives
      names.add(path.name)
      out.setdefault(key, []).append(path)
  return out


def _ink(path: pathlib.Path) -> np.ndarray:
  """One drawing, `[side * side]` bool, true where there is ink."""
  image = image_files.read_image(path, mode="L")[..., 0]
  if image.shape != (SIDE, SIDE):
    raise ValueError(
      f"{path} has shape {image.shape}: it must be {SIDE} x {SIDE}."
    )
  return (image < 128).reshape(-1)


def from_folder(root: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of unpacked archives.

  Raises:
    FileNotFoundError: there are no drawings.
    ValueError: a drawing of another size, or a name that does not end in
      `_DRAWER.png`.
  """
  by_character = _drawings(root)
  if not by_character:
    raise FileNotFoundError(f"{root} has no ALPHABET/CHARACTER/*.png: {_HELP}")
  alphabets = sorted({alphabet for alphabet, _ in by_character})
  rows: dict[str, list] = {name: [] for name in ARRAYS}
  for label, (alphabet, character) in enumerate(sorted(by_character)):
    for path in by_character[alphabet, character]:
      drawer = path.stem.rpartition("_")[2]
      if not drawer.isdigit():
        raise ValueError(f"{path} is not named as 0001_01.png is.")
      rows["ink_packbits"].append(np.packbits(_ink(path)))
      rows["alphabet"].append(alphabets.index(alphabet))
      rows["character"].append(int(character.removeprefix("character")))
      rows["drawer"].append(int(drawer))
      rows["label"].append(label)
  out = {name: np.array(rows[name], ARRAYS[name]) for name in rows}
  return {**out, _NAMES: np.array(alphabets)}


def from_file(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a file that has them already.

  Raises:
    ValueError: an array is missing or of another form.
  """
  found = files.read_arrays(path, remedy="fetch it again")
  for name in (*ARRAYS, _NAMES):
    if name not in found:
      raise ValueError(f"{path} has {sorted(found)}: it must have {name!r}.")
  num, packed = len(found["label"]), -(-SIDE * SIDE // 8)
  if found["ink_packbits"].shape != (num, packed):
    raise ValueError(
      f"ink_packbits of {path} has shape {found['ink_packbits'].shape}: it "
      f"must be {(num, packed)}."
    )
  return {name: found[name] for name in (*ARRAYS, _NAMES)}


def prepare(
  *,
  data_dir: str | os.PathLike | None = None,
  source: str | os.PathLike | None = None,
) -> tuple[pathlib.Path, dict[str, int]]:
  """Writes the prepared file.

  Args:
    data_dir: see `tfds_dirs.resolve`.
    source: a folder, a `.zip` or an `.npz`, see the head of this file.

  Returns:
    Its folder, and the number of drawings, characters and alphabets.

  Raises:
    ValueError: no source is given, or it is not what it must be.
    FileNotFoundError: the source is not there, or has no drawings.
  """
  if source is None:
    raise ValueError(f"--from is missing: {_HELP}")
  source = pathlib.Path(source)
  if not source.exists():
    raise FileNotFoundError(f"{source} is not there: {_HELP}")
  if source.suffix == ".npz":
    arrays = from_file(source)
  elif source.is_file():
    checks.one_of("ending of --from", source.suffix, [".zip", ".npz"])
    with tempfile.TemporaryDirectory() as folder:
      with zipfile.ZipFile(source) as archive:
        archive.extractall(folder)
      arrays = from_folder(pathlib.Path(folder))
  else:
    arrays = from_folder(source)
  path = files.write_arrays(place(data_dir), **arrays)
  sizes = {
    "drawings": len(arrays["label"]),
    "characters": len(np.unique(arrays["label"])),
    "alphabets": len(arrays[_NAMES]),
  }
  return path.parent, sizes
