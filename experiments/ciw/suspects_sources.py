"""Where the examples whose labels are in doubt come from."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.ciw import experiment, noisy_images
from locojax.core import checks
from locojax.data import csv_rows, sources

# Distinct words that a column may have to count as a category.
MOST_WORDS = 50


def from_folder(path: pathlib.Path, size: int | None) -> dict[str, Any]:
  """Images of `path/<class>/`, with names and classes.

  Args:
    path: the folder.
    size: pixels of a side to resize to; None keeps each image's own.

  Raises:
    ValueError: images of several sizes.
  """
  source = sources.from_image_folder(path, size=(size, size) if size else None)
  rows = [source[i] for i in range(len(source))]
  shapes = sorted({row["image"].shape for row in rows})
  if len(shapes) > 1:
    raise ValueError(
      f"the images of {path} have several sizes, {shapes[0]} and {shapes[1]} "
      "among them: give --size."
    )
  return {
    "images": np.stack([row["image"] for row in rows]),
    "labels": np.array([row["label"] for row in rows]),
    "names": np.array([str(pathlib.Path(f).name) for f in source.files]),
    "classes": np.array(source.classes),
  }


def from_known(text: str, num_train: int, seed: int) -> dict[str, Any]:
  """A known set with made noise, as `digits@symmetric:0.4`."""
  name, _, noise = text.partition("@")
  data = {"name": name, "data_dir": "", "validation": 0.0, "pool": 1}
  data |= {"num_train": num_train, "num_test": 1, "exact": False}
  part = noisy_images.make(data, noise, seed)["train"]
  return {"images": part.image, "labels": part.label, "is_noisy": part.wrong}


def from_npz(path: pathlib.Path) -> dict[str, Any]:
  """The arrays of a file."""
  checks.one_of(f"suffix of {path}", path.suffix, [".npz", ".csv"])
  try:
    with np.load(path, allow_pickle=False) as f:
      return dict(f)
  except (ValueError, OSError) as error:
    raise ValueError(f"{path} cannot be read: {error}") from error


def _numbers(cells: Sequence[str]) -> np.ndarray | None:
  """The numbers of a column; None if a cell is something else."""
  try:
    return np.array([float(cell) for cell in cells])
  except ValueError:
    return None


def _column(path, name: str, cells: Sequence[str]) -> np.ndarray:
  """`[n, 1]` numbers, or `[n, words]` zeros and ones for words."""
  numbers = _numbers(cells)
  if numbers is not None:
    if not np.isfinite(numbers).all():
      raise ValueError(f"{path}: the column {name!r} has NaN or infinity.")
    return numbers[:, None]
  words, places = np.unique(np.array(cells), return_inverse=True)
  if len(words) > MOST_WORDS:
    raise ValueError(
      f"{path}: the column {name!r} has {len(words)} distinct texts, such as "
      f"{str(words[0])!r}: numbers, or {MOST_WORDS} categories at most, are "
      "allowed. Leave it out with --ignore, or name examples by it with "
      "--names."
    )
  return np.eye(len(words))[places]


def from_table(
  path: pathlib.Path,
  *,
  label: str,
  names: str | None = None,
  ignore: Sequence[str] = (),
) -> dict[str, Any]:
  """The rows of a CSV file with a header.

  Columns of numbers are features, and so are those of words, one feature a
  word. Classes are the distinct texts of the column of labels, sorted.

  Args:
    path: the file.
    label: the column of labels.
    names: the column that names the examples, which is no feature.
    ignore: columns that are left out.

  Returns:
    `features` float64 `[n, d]`, `labels`, `classes`, and `names` if there are.

  Raises:
    ValueError: no such column, a column of texts that are no categories, or no
      columns left.
  """
  header, rows = csv_rows.with_header(path)
  for option, name in (("label", label), ("names", names)):
    if name is not None:
      checks.one_of(option, name, header)
  for name in ignore:
    checks.one_of("ignore", name, header)
  if not rows:
    raise ValueError(f"{path} has no rows below its header.")
  columns = dict(zip(header, zip(*(row.cells for row in rows), strict=True)))
  classes, labels = np.unique(np.array(columns[label]), return_inverse=True)
  out = {"labels": labels, "classes": classes}
  if names is not None:
    out["names"] = np.array(columns[names])
  used = [n for n in header if n not in {label, names, *ignore}]
  if not used:
    raise ValueError(f"{path} has no columns besides {header}: no features.")
  made = [_column(path, name, columns[name]) for name in used]
  return {**out, "features": np.concatenate(made, axis=1)}


def read(args) -> dict[str, Any]:
  """The arrays that the arguments of the command name.

  Raises:
    ValueError: nothing of the kind, or it cannot be read.
  """
  path = pathlib.Path(args.source)
  if (path / "config.json").is_file():
    return experiment.training_set(path.absolute(), args.replica)
  if path.is_dir():
    return from_folder(path, args.size)
  if path.is_file() and path.suffix == ".csv":
    return from_table(
      path, label=args.label, names=args.names, ignore=args.ignore
    )
  if path.is_file():
    return from_npz(path)
  if "@" in args.source:
    return from_known(args.source, args.num_train, args.seed)
  raise ValueError(
    f"source={args.source!r} is not allowed: it must be a folder of images or "
    "of a finished trial, an .npz or .csv file, or a data set with noise, as "
    "'digits@symmetric:0.4'."
  )
