"""Finds and opens data sets that tfds has prepared, without TensorFlow.

tfds reads what it has prepared as ArrayRecord with `data_source`. Its own
errors for absent data mislead (they speak of TFRECORD) and its downloads retry
for minutes, so the folder is looked for here first.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re

TFDS_HELP = (
  "reading tfds data sets needs tensorflow-datasets: "
  "pip install 'locojax[experiments]'"
)
PILLOW_HELP = "decoding images needs Pillow: pip install 'locojax[experiments]'"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NAME = re.compile(r"(?P<path>\w[\w/.+-]*?)(:(?P<version>[\d.]+))?")


def resolve(data_dir: str | os.PathLike | None) -> pathlib.Path:
  """The data folder: the argument, else `$TFDS_DATA_DIR`, else tfds's own."""
  if data_dir is None:
    data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return pathlib.Path(data_dir).expanduser()


def find(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  download: bool = False,
) -> pathlib.Path:
  """The folder of one prepared version, `<data_dir>/<name>/<version>`.

  Args:
    name: `mnist`, `mnist:3.0.1` or `coco/2017`. Without a version the highest
      one that is there.
    data_dir: see `resolve`.
    download: let tfds fetch and prepare it if it is absent.

  Raises:
    FileNotFoundError: it is not there; the message says how to get it.
    ValueError: a malformed name, or it is there but not as ArrayRecord.
  """
  match = _NAME.fullmatch(name) if isinstance(name, str) else None
  if match is None:
    raise ValueError(
      f"name={name!r} is not allowed: it must be as 'mnist', 'mnist:3.0.1' "
      "or 'coco/2017'."
    )
  root = resolve(data_dir)
  found = _versions(root / match["path"], match["version"])
  if not found and download:
    _prepare(name, root)
    found = _versions(root / match["path"], match["version"])
  if not found:
    raise FileNotFoundError(_absent(name, match["path"], root))
  _check_format(name, found[-1])
  return found[-1]


def _versions(folder: pathlib.Path, version: str | None) -> list[pathlib.Path]:
  if not folder.is_dir():
    return []
  found = [
    p
    for p in folder.iterdir()
    if _VERSION.fullmatch(p.name) and (p / "dataset_info.json").is_file()
  ]
  if version is not None:
    found = [p for p in found if p.name == version]
  return sorted(found, key=lambda p: [int(n) for n in p.name.split(".")])


def _absent(name: str, path: str, root: pathlib.Path) -> str:
  if not root.is_dir():
    there = "there is no such folder"
  elif (root / path).is_dir():
    names = sorted(p.name for p in (root / path).iterdir())
    there = f"{path}/ there holds only: {', '.join(names) or 'nothing'}"
  else:
    names = sorted(p.name for p in root.iterdir() if p.is_dir())
    there = f"that folder holds only: {', '.join(names) or 'nothing'}"
  return (
    f"the data set {name!r} is missing: looked for "
    f"{root / path}/<version>/dataset_info.json, but {there}. To get it:\n"
    "  * if it is prepared elsewhere, name that folder by data_dir or by the "
    "environment variable TFDS_DATA_DIR;\n"
    "  * mnist, fashion_mnist, from raw IDX files or over the internet, in a "
    "checkout of locojax:\n"
    "      python -m scripts.prepare_data mnist --data_dir DIR "
    "[--from IDX_DIR]\n"
    "  * any data set of tfds, over the internet (some need TensorFlow to be "
    "prepared):\n"
    '      python -c "import tensorflow_datasets as tfds; tfds.builder('
    f"'{name}', data_dir='DIR', file_format='array_record')"
    '.download_and_prepare()"'
  )


def info(directory: pathlib.Path) -> dict:
  """The contents of `dataset_info.json` of a version folder.

  Raises:
    ValueError: the file is damaged; it is named.
  """
  path = directory / "dataset_info.json"
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise ValueError(f"{path} is damaged: {e}. Prepare the set anew.") from e


def _check_format(name: str, directory: pathlib.Path) -> None:
  file_format = info(directory).get("fileFormat", "tfrecord")
  if file_format != "array_record":
    raise ValueError(
      f"the data set {name!r} in {directory} was prepared as {file_format}, "
      "which has no random access without TensorFlow. Prepare it again, into "
      "another data_dir, with file_format='array_record':\n"
      f"  tfds.builder('{name}', data_dir='DIR', "
      "file_format='array_record').download_and_prepare()"
    )


def _import_tfds():
  try:
    import tensorflow_datasets
  except ImportError as e:
    raise ImportError(TFDS_HELP) from e
  return tensorflow_datasets


def _prepare(name: str, root: pathlib.Path) -> None:
  tfds = _import_tfds()
  try:
    builder = tfds.builder(name, data_dir=root, file_format="array_record")
    builder.download_and_prepare()
  except ModuleNotFoundError as e:
    raise ImportError(
      f"tfds needs the package {e.name!r} to prepare {name!r}. Install it, or "
      "prepare the set on another machine. mnist and fashion_mnist are "
      "prepared without TensorFlow by `python -m scripts.prepare_data`."
    ) from e


def _has_images(directory: pathlib.Path) -> bool:
  features = directory / "features.json"
  return features.is_file() and "image_feature" in features.read_text()


def _can_decode_images() -> bool:
  return any(importlib.util.find_spec(m) for m in ("PIL", "cv2"))


def open_split(directory: pathlib.Path, split: str):
  """The tfds data source of a split (or slice) in a version folder.

  Raises:
    ValueError: no such split.
    ImportError: tfds or Pillow is not installed.
  """
  tfds = _import_tfds()
  if _has_images(directory) and not _can_decode_images():
    raise ImportError(PILLOW_HELP)
  names = [s["name"] for s in info(directory).get("splits", [])]
  base = re.split(r"[\[+]", split, maxsplit=1)[0] if split else split
  if base not in names:
    raise ValueError(
      f"split={split!r} is not allowed: it must be one of "
      f"{', '.join(map(repr, names))} or a slice such as "
      f"'{names[0] if names else 'train'}[:10%]'; looked in {directory}."
    )
  return tfds.builder_from_directory(directory).as_data_source(split=split)
