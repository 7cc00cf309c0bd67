"""Sets of drawings by name: Omniglot's characters, emoji by group.

  omniglot             its two small background sets, the character is the class
  omniglot_alphabets   the same drawings, the alphabet is the class
  emoji_groups         drawings of several vendors, the Unicode group (smileys,
                       food, flags, ...) is the class

Omniglot is prepared by `python -m scripts.prepare_data omniglot`, emoji by
`... emoji_pairs`.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import numpy as np

from locojax.core import checks, files
from locojax.data import image, sources, tfds_dirs

Split = dict[str, np.ndarray]
SIDE = 105
# Of Omniglot's 20 drawers of an alphabet these are for the test.
TEST_DRAWERS = (4, 9, 14, 19)
# Groups of which there are too few drawings to learn anything.
_NO_CLASS = ("", "Component")
EMOJI = "emoji_pairs"
_OMNIGLOT_HELP = (
  "get it by `python -m scripts.prepare_data omniglot --data_dir DIR --from "
  "SOURCE` (--help says from where), and name DIR as data_dir"
)


def place(data_dir: str | os.PathLike | None) -> pathlib.Path:
  """The prepared file of Omniglot.

  Raises:
    FileNotFoundError: it is not there; says how to get it.
  """
  root = tfds_dirs.resolve(data_dir)
  path = root / "omniglot" / "small" / "drawings.npz"
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not there: {_OMNIGLOT_HELP}.")
  return path


def _omniglot(label: str) -> Callable[..., dict[str, Split]]:
  def read(data_dir):
    found = files.read_arrays(place(data_dir), remedy="prepare it again")
    bits = np.unpackbits(found["ink_packbits"], axis=1)[:, : SIDE * SIDE]
    images = (bits * np.uint8(255)).reshape(-1, SIDE, SIDE, 1)
    labels = found[label].astype(np.int32)
    test = np.isin(found["drawer"], TEST_DRAWERS)
    return {
      "train": {"image": images[~test], "label": labels[~test]},
      "test": {"image": images[test], "label": labels[test]},
    }

  return read


def _emoji(data_dir) -> dict[str, Split]:
  """Groups in the order of their names; transparent parts are white."""
  rows = {}
  for split in ("train", "test"):
    source = sources.from_tfds(EMOJI, split=split, data_dir=data_dir or None)
    found = [source[i] for i in range(len(source))]
    groups = [np.asarray(r["group"]).item().decode("utf-8") for r in found]
    keep = [i for i, g in enumerate(groups) if g not in _NO_CLASS]
    pictures = image.opaque(np.stack([found[i]["image"] for i in keep]))
    rows[split] = pictures, [groups[i] for i in keep]
  names = sorted(set(rows["train"][1]))
  return {
    split: {
      "image": pictures,
      "label": np.array([names.index(g) for g in groups], np.int32),
    }
    for split, (pictures, groups) in rows.items()
  }


SETS: dict[str, Callable[..., dict[str, Split]]] = {
  "omniglot": _omniglot("label"),
  "omniglot_alphabets": _omniglot("alphabet"),
  "emoji_groups": _emoji,
}
NUM_CLASSES = {"omniglot": 242, "omniglot_alphabets": 8, "emoji_groups": 9}


def load(
  name: str, *, data_dir: str | os.PathLike | None = None
) -> dict[str, Split]:
  """Both splits of a set, in memory and in a fixed order.

  Args:
    name: a key of `SETS`.
    data_dir: see `tfds_dirs.resolve`.

  Returns:
    Split name -> `image` uint8 `[n, side, side, channels]` (Omniglot 105 x 105
    with ink at 255 in one channel, emoji 48 x 48 x 3) and `label` int32 `[n]`.

  Raises:
    ValueError: an unknown name (the known ones are listed).
    FileNotFoundError: the set is not there; says how to get it.
  """
  return checks.lookup("name", name, SETS)(data_dir)


def files_of(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
  """The file or folder that a set is read from, for digests.

  Raises:
    FileNotFoundError: as `load`.
  """
  if checks.one_of("name", name, SETS) == "emoji_groups":
    return tfds_dirs.find(EMOJI, data_dir=data_dir or None)
  return place(data_dir)
