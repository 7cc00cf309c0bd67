"""Prepares `emoji_pairs`: emoji of several vendors with names and keywords.

Takes the npm package `emoji-datasource` (`npm pack emoji-datasource`, or its
unpacked folder `package`). Of its drawings only those of Google (Noto) and
Twitter (Twemoji) are taken: they are free, the others are not.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import tarfile
import tempfile
from collections.abc import Iterator

import numpy as np

from locojax.core import checks
from locojax.data import image_files, tfds_dirs

NAME = "emoji_pairs"
VERSION = "1.0.0"
VENDORS = {"noto": "google", "twemoji": "twitter"}
TEST_PERCENT = 15
CELL = 34  # of a sheet: 32 pixels with a border of 1
_HELP = (
  "take the npm package emoji-datasource: `npm pack emoji-datasource`, then "
  "--from that .tgz (or its unpacked folder)."
)


def is_test(hexcode: str) -> bool:
  """Whether an emoji, by its code points, is kept for the test."""
  digest = hashlib.sha256(hexcode.encode()).digest()
  return int.from_bytes(digest[:4], "big") % 100 < TEST_PERCENT


def _folder(source: pathlib.Path, into: str) -> pathlib.Path:
  """The folder with `emoji.json`, unpacked if need be."""
  if source.is_file():
    with tarfile.open(source) as archive:
      archive.extractall(into, filter="data")
    source = pathlib.Path(into)
  for folder in (source, source / "package"):
    if (folder / "emoji.json").is_file():
      return folder
  raise FileNotFoundError(f"no emoji.json in {source}: {_HELP}")


def _sheets(folder: pathlib.Path) -> dict[str, np.ndarray]:
  out = {}
  for vendor, short in VENDORS.items():
    path = folder / "img" / short / "sheets" / "32.png"
    if not path.is_file():
      raise FileNotFoundError(f"{path} is not there: {_HELP}")
    out[vendor] = image_files.read_image(path, mode="RGBA")
  return out


def examples(folder: pathlib.Path, split: str) -> Iterator[tuple[str, dict]]:
  """(key, example) for tfds of an unpacked package.

  Args:
    folder: with `emoji.json` and `img/<vendor>/sheets/32.png`.
    split: `train` or `test`.
  """
  sheets = _sheets(folder)
  from PIL import Image

  rows = json.loads((folder / "emoji.json").read_text("utf-8"))
  for row in rows:
    if is_test(row["unified"]) != (split == "test"):
      continue
    name = (row["name"] or row["short_name"].replace("_", " ")).lower()
    words = [w.replace("_", " ") for w in row["short_names"]]
    for number, (vendor, short) in enumerate(VENDORS.items()):
      if not row[f"has_img_{short}"]:
        continue
      left, top = (CELL * row[k] + 1 for k in ("sheet_x", "sheet_y"))
      cell = sheets[vendor][top : top + 32, left : left + 32]
      if cell.shape != (32, 32, 4):
        raise ValueError(
          f"emoji {row['unified']} lies outside the sheet of {vendor}: the "
          f"package is damaged. {_HELP}"
        )
      file = io.BytesIO()
      Image.fromarray(cell).save(file, "PNG")
      file.seek(0)
      yield (
        f"{row['unified']}_{vendor}",
        {
          "image": file,
          "name": name,
          "keywords": ",".join(words),
          "group": row["category"],
          "subgroup": row["subcategory"],
          "hexcode": row["unified"],
          "vendor": number,
        },
      )


def _builder(folder: pathlib.Path, root: pathlib.Path):
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise ImportError(tfds_dirs.TFDS_HELP) from e
  from tensorflow_datasets.core import registered

  with registered.skip_registration():

    class EmojiPairs(tfds.core.GeneratorBasedBuilder):
      """Emoji and their names."""

      VERSION = tfds.core.Version(VERSION)

      def _info(self):
        text = tfds.features.Text
        features = {
          "image": tfds.features.Image(shape=(32, 32, 4)),
          "vendor": tfds.features.ClassLabel(names=list(VENDORS)),
          **{
            n: text()
            for n in ("name", "keywords", "group", "subgroup", "hexcode")
          },
        }
        return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(features)
        )

      def _split_generators(self, dl_manager):
        del dl_manager
        return {s: self._generate_examples(s) for s in ("train", "test")}

      def _generate_examples(self, split):
        return examples(folder, split)

  EmojiPairs.name = NAME
  EmojiPairs.code_path = pathlib.Path(__file__)
  return EmojiPairs(data_dir=root, file_format="array_record")


def prepare(
  *,
  data_dir: str | os.PathLike | None = None,
  source: str | os.PathLike | None = None,
) -> pathlib.Path:
  """Makes `<data_dir>/emoji_pairs/1.0.0` unless it is there already.

  Args:
    data_dir: None means `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
    source: the package, packed or unpacked.

  Returns:
    The folder of the version.

  Raises:
    FileNotFoundError: no package, or a file of it is missing.
    ImportError: tfds or Pillow is not installed.
  """
  root = tfds_dirs.resolve(data_dir)
  if (root / NAME / VERSION / "dataset_info.json").is_file():
    return tfds_dirs.find(NAME, data_dir=root)
  if source is None:
    raise FileNotFoundError(f"--from is missing: {_HELP}")
  source = pathlib.Path(source)
  if not source.exists():
    raise FileNotFoundError(f"--from {source} is not there: {_HELP}")
  with tempfile.TemporaryDirectory() as into:
    folder = _folder(source, into)
    for split in ("train", "test"):
      checks.positive_int(
        f"emoji of {split}", sum(1 for _ in examples(folder, split))
      )
    _builder(folder, root).download_and_prepare()
  downloads = root / "downloads"
  if downloads.is_dir() and not any(p.is_file() for p in downloads.rglob("*")):
    for path in sorted(downloads.rglob("*"), reverse=True):
      path.rmdir()
    downloads.rmdir()
  return tfds_dirs.find(NAME, data_dir=root)
