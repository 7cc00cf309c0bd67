"""Sources of images with boxes, and the rules that all of them keep.

The readers are in `boxes`, where the rules are told.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from locojax.core import boxes as layouts
from locojax.core import checks, coco_tables
from locojax.data import image_files, sources

BAD_BOXES = ("repair", "refuse")
_ROOM = 1e-3  # of the side, by which a box may leave the image unremarked
_log = logging.getLogger(__name__)


class Annotated(NamedTuple):
  """An image and its objects before the file is opened.

  Attributes:
    file: the image.
    image_id: an integer.
    size: (height, width) that the annotation tells, or None.
    boxes: `[n, 4]` float64 yxyx, in pixels or shares.
    labels: `[n]` int32, from 1.
    area: `[n]` float64, NaN for that of the box.
    is_crowd: `[n]` bool.
  """

  file: pathlib.Path
  image_id: int
  size: tuple[int, int] | None
  boxes: np.ndarray
  labels: np.ndarray
  area: np.ndarray
  is_crowd: np.ndarray


def _turned(boxes: np.ndarray, orientation: int) -> np.ndarray:
  """Boxes in shares of the stored pixels, of the upright image; 5 to 8."""
  top, left, bottom, right = boxes.T
  upright = {
    5: (left, top, right, bottom),
    6: (left, 1 - bottom, right, 1 - top),
    7: (1 - right, 1 - bottom, 1 - left, 1 - top),
    8: (1 - right, top, 1 - left, bottom),
  }
  return np.stack(upright[orientation], axis=-1)


def _proper(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Boxes in shares cut at the image, and which of them have an area."""
  inside = np.clip(boxes, 0.0, 1.0)
  # An area in float32 too, as it is handed out.
  return inside, layouts.is_proper(inside.astype(np.float32))


def _check_boxes(boxes: np.ndarray, where: str, bad_boxes: str) -> int:
  """How many boxes in shares are changed; raises where that is wanted."""
  if not np.isfinite(boxes).all():
    raise ValueError(f"{where}: boxes must be finite numbers.")
  _, proper = _proper(boxes)
  leaves = ((boxes < -_ROOM) | (boxes > 1 + _ROOM)).any(-1)
  changed = leaves | ~proper
  if bad_boxes == "refuse" and changed.any():
    i = int(np.flatnonzero(changed)[0])
    what = "leaves the image" if leaves[i] else "has no area"
    raise ValueError(
      f"{where}: box {i} {what}: {boxes[i].round(4).tolist()}, yxyx as shares."
    )
  return int(changed.sum())


def _example(
  boxes: np.ndarray,
  labels: np.ndarray,
  area: np.ndarray,
  is_crowd: np.ndarray,
  *,
  image_id: int,
  size: tuple[int, int],
) -> dict[str, Any]:
  """All of an example but the image, from boxes in shares."""
  boxes, keep = _proper(boxes)
  height, width = boxes[:, 2:].T - boxes[:, :2].T
  own = height * width * size[0] * size[1]
  area = np.where(np.isnan(area), own, area)
  return {
    "boxes": boxes[keep].astype(np.float32),
    "labels": labels[keep].astype(np.int32),
    "area": area[keep].astype(np.float32),
    "is_crowd": is_crowd[keep].astype(bool),
    "image_id": np.int64(image_id),
    "size": np.array(size, np.int32),
  }


class BoxSource:
  """Image files with boxes; see the head of this file."""

  def __init__(
    self,
    found: Sequence[Annotated],
    classes: Sequence[str],
    *,
    category_ids: Sequence[int] | None = None,
    in_pixels: bool,
    mode: str,
    bad_boxes: str,
  ):
    checks.one_of("mode", mode, image_files.MODES)
    checks.one_of("bad_boxes", bad_boxes, BAD_BOXES)
    self._found, self._mode, self._in_pixels = list(found), mode, in_pixels
    self._bad_boxes = bad_boxes
    self.classes = tuple(classes)
    ids = (
      range(1, len(self.classes) + 1) if category_ids is None else category_ids
    )
    self.category_ids = np.array(list(ids), np.int64)
    _check_files([a.file for a in self._found])
    self._report()

  def _report(self) -> None:
    """Looks at all boxes whose image need not be opened for it."""
    changed, first = 0, None
    for a in self._found:
      if self._in_pixels and a.size is None:
        continue
      boxes = self._shares(a, a.size or (1, 1))
      number = _check_boxes(boxes, str(a.file), self._bad_boxes)
      first = a.file if number and first is None else first
      changed += number
    if changed:
      _log.warning(
        "%d boxes leave their image or have no area and were cut at its edge "
        "or left out, such as in %s.",
        changed,
        first,
      )

  def _shares(self, a: Annotated, size: tuple[int, int]) -> np.ndarray:
    return a.boxes / np.tile(size, 2) if self._in_pixels else a.boxes

  def __len__(self) -> int:
    return len(self._found)

  @property
  def files(self) -> tuple[pathlib.Path, ...]:
    """The image files, in order."""
    return tuple(a.file for a in self._found)

  @property
  def box_counts(self) -> np.ndarray:
    """Boxes of each image as annotated, `[images]`; no image is opened."""
    return np.array([len(a.labels) for a in self._found])

  def annotation(self, index: int) -> dict[str, Any]:
    """The example without its image, of which only the header is read."""
    a = self._found[index]
    header = image_files.read_header(a.file)
    upright = (header.height, header.width)
    boxes = self._shares(a, a.size or upright)
    if a.size not in (None, upright):
      if a.size != upright[::-1] or header.orientation < 5:
        raise ValueError(
          f"{a.file} has height and width {upright}, and its annotation tells "
          f"{a.size}: boxes of another size are not allowed."
        )
      boxes = _turned(boxes, header.orientation)
    _check_boxes(boxes, str(a.file), self._bad_boxes)
    return _example(
      *(boxes, a.labels, a.area, a.is_crowd),
      image_id=a.image_id,
      size=upright,
    )

  def __getitem__(self, index: int) -> dict[str, Any]:
    file = self._found[index].file
    image = image_files.read_image(file, mode=self._mode)
    return {"image": image, **self.annotation(index)}


def _check_files(files: Sequence[pathlib.Path]) -> None:
  missing = [str(f) for f in files if not f.is_file()]
  if missing:
    raise FileNotFoundError(
      f"{len(missing)} of {len(files)} images are not there, such as "
      f"{missing[0]}."
    )
  if not files:
    raise ValueError("there are no images: at least one is needed.")


class TfdsBoxSource:
  """A split of a tfds data set with boxes; see `from_tfds`."""

  def __init__(self, source: sources.TfdsSource, classes, bad_boxes: str):
    self._source, self._bad_boxes = source, bad_boxes
    self.classes = tuple(classes)
    self.category_ids = np.arange(1, len(self.classes) + 1)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    found = self._source[index]
    image, told = found["image"], found["objects"]
    labels = np.asarray(told["label"]).astype(np.int32) + 1
    number = len(labels)
    boxes = np.asarray(told["bbox"], np.float64).reshape(-1, 4)
    where = f"{self._source.directory}, example {index}"
    _check_boxes(boxes, where, self._bad_boxes)
    area = np.asarray(told.get("area", np.full(number, np.nan)), np.float64)
    crowd = np.asarray(told.get("is_crowd", np.zeros(number)), bool)
    image_id = int(found.get("image/id", index + 1))
    rest = _example(
      *(boxes, labels, area, crowd), image_id=image_id, size=image.shape[:2]
    )
    return {"image": image, **rest}


def ground_truth(source: Any) -> dict[str, Any]:
  """The true boxes of a whole source as columns, for `coco_ap`.

  Boxes are in pixels of the images as the source gives them, and have been
  repaired by its rules. For the official numbers of COCO take the columns of
  `coco_json.read_coco_annotations` instead, where nothing was cut.

  Args:
    source: of this file (images are then not decoded, but for tfds), or any
      source of the same examples.

  Returns:
    The columns of `coco_tables`; categories are `source.category_ids`, or the
    labels where it has none.

  Raises:
    ValueError: two images with the same id.
  """
  read = getattr(source, "annotation", source.__getitem__)
  rows = [read(i) for i in range(len(source))]
  number = [len(r["labels"]) for r in rows]
  scale = [np.tile(r["size"], 2).astype(np.float64) for r in rows]
  boxes = [r["boxes"] * s for r, s in zip(rows, scale)]
  joined = lambda name: np.concatenate([r[name] for r in rows])
  images = np.array([int(r["image_id"]) for r in rows])
  label = joined("labels").astype(np.int64)
  ids = getattr(source, "category_ids", None)
  known = np.unique(label) if ids is None else np.asarray(ids)
  return coco_tables.true_boxes(
    {
      "image_id": np.repeat(images, number),
      "category_id": label if ids is None else known[label - 1],
      "bbox": layouts.yxyx_to_xywh(np.concatenate(boxes)),
      "area": joined("area").astype(np.float64),
      "iscrowd": joined("is_crowd"),
      "images": images,
      "categories": known,
    },
    "the source",
  )
