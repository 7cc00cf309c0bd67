"""Text sets in files of JSON lines: `DIR/text/NAME.jsonl.gz`."""

from __future__ import annotations

import os
import pathlib

from locojax.core import checks

DATA_DIR = "LOCOJAX_DATA_DIR"
# By set and split.
FILES = {
  "gsm8k": {
    "train": "gsm8k_train.jsonl.gz",
    "test": "gsm8k_test.jsonl.gz",
  },
  "mmlu_stem": {"test": "mmlu_stem.jsonl.gz"},
  "ocw_courses": {"test": "ocw_courses_test.jsonl.gz"},
}


def find(name: str, split: str = "test", *, data_dir: str = "") -> pathlib.Path:
  """The file of a set.

  Args:
    name: a key of `FILES`.
    split: that the set has.
    data_dir: the folder with `text/`; empty takes the variable
      `LOCOJAX_DATA_DIR`.

  Raises:
    ValueError: an unknown set or split.
    FileNotFoundError: it is not there; says where it would be.
  """
  splits = checks.lookup("text set", name, FILES)
  checks.one_of(f"split of {name}", split, splits)
  root = data_dir or os.environ.get(DATA_DIR) or "."
  path = pathlib.Path(os.path.expandvars(root)).expanduser()
  path = path / "text" / splits[split]
  if not path.is_file():
    raise FileNotFoundError(
      f"there is no {path}: put the rows of {name} there as JSON lines, or "
      f"name the folder above text/ by data_dir or the variable {DATA_DIR}."
    )
  return path


def files_of(name: str, *, data_dir: str = "") -> list[pathlib.Path]:
  """All files of a set; raises as `find` does."""
  return [find(name, split, data_dir=data_dir) for split in FILES[name]]
