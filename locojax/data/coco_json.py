"""COCO's two JSON files: true boxes (annotations) and detections (results).

So that detectors of others can be scored here, and ours by others. What is read
is checked by `locojax.core.coco_tables`; messages name the file and the entry.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import coco_tables, files

_REMEDY = "it must be JSON as the COCO data set has it"


def read_coco_annotations(path: str | os.PathLike) -> dict[str, Any]:
  """True boxes of an `instances_*.json`.

  Args:
    path: a JSON object of `images`, `annotations` and `categories`. Annotations
      need `image_id`, `category_id` and `bbox`; `area` and `iscrowd` may be
      missing.

  Returns:
    The columns of `coco_tables`, which `coco_ap` takes as they are; and
    `names` of the `categories` (their ids where there are none), and
    `file_names` and `sizes` `[images, 2]` (height, width) of the `images`, of
    which those that the file does not give are None and (0, 0).

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: not JSON, not of that form, ids twice or unknown, NaN, negative
      sizes; file and entry are named.
  """
  path = pathlib.Path(path)
  found = files.read_json(path, remedy=_REMEDY)
  if not isinstance(found, dict) or "annotations" not in found:
    raise ValueError(
      f"{path} is no object with `annotations`; results are read by "
      "read_coco_results."
    )
  out = coco_tables.true_boxes(found, str(path))
  of = lambda rows, name: [
    row.get(name) if isinstance(row, Mapping) else None for row in rows
  ]
  ids = out["categories"].tolist()
  pairs = zip(ids, of(found["categories"], "name"))
  out["names"] = [str(i) if name is None else str(name) for i, name in pairs]
  out["file_names"] = of(found["images"], "file_name")
  sizes = zip(of(found["images"], "height"), of(found["images"], "width"))
  out["sizes"] = np.array(
    [_size(path, i, *size) for i, size in enumerate(sizes)], np.int64
  ).reshape(-1, 2)
  return out


def _size(path, i: int, height: Any, width: Any) -> tuple[int, int]:
  if height is None and width is None:
    return 0, 0
  for name, value in (("height", height), ("width", width)):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise ValueError(
        f"{path}: images[{i}].{name}={value!r} must be an integer, 1 or more."
      )
  return height, width


def read_coco_results(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Detections of a results file.

  Args:
    path: a JSON list of objects with `image_id`, `category_id`, `bbox` (left,
      top, width, height in pixels) and `score`. It may be empty.

  Returns:
    The columns of `coco_tables`, which `coco_ap` takes.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: not JSON, not of that form, NaN, or negative sizes; file and
      entry are named.
  """
  found = files.read_json(path, remedy=_REMEDY)
  if not isinstance(found, list):
    raise ValueError(
      f"{path} is a {type(found).__name__}, which is not allowed: results are "
      "a list; annotations are read by read_coco_annotations."
    )
  return coco_tables.detections(found, str(path))


def write_coco_results(path: str | os.PathLike, dets: Any) -> pathlib.Path:
  """Writes detections so that any COCO evaluator reads them.

  Args:
    path: where; folders are made.
    dets: columns or a list of objects, as for `coco_ap`.

  Raises:
    ValueError: as `read_coco_results`.
  """
  columns = coco_tables.detections(dets)
  return files.write_text(path, json.dumps(_rows(columns)))


def _rows(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
  lists = [column.tolist() for column in columns.values()]
  return [dict(zip(columns, values)) for values in zip(*lists)]


def write_coco_annotations(
  path: str | os.PathLike,
  gts: Mapping[str, Any],
  *,
  names: Sequence[str] | None = None,
  file_names: Sequence[str] | None = None,
  sizes: Any = None,
) -> pathlib.Path:
  """Writes true boxes so that any COCO evaluator reads them.

  Annotations are numbered from 1: 0 is no match to other evaluators.

  Args:
    path: where; folders are made.
    gts: columns or COCO's dict, as for `coco_ap`.
    names: of the categories; None writes their ids.
    file_names: of the images, or None.
    sizes: `[images, 2]` (height, width) of the images, or None.

  Raises:
    ValueError: as `read_coco_annotations`, or lists of another length.
  """
  columns = coco_tables.true_boxes(gts)
  ids = {k: columns.pop(k).tolist() for k in ("images", "categories")}
  images = [{"id": i} for i in ids["images"]]
  names = list(map(str, ids["categories"])) if names is None else names
  _same("names", names, "categories", ids["categories"])
  if file_names is not None:
    _same("file_names", file_names, "images", images)
    images = [i | {"file_name": f} for i, f in zip(images, file_names)]
  if sizes is not None:
    sizes = np.asarray(sizes).tolist()
    _same("sizes", sizes, "images", images)
    images = [i | {"height": h, "width": w} for i, (h, w) in zip(images, sizes)]
  columns["iscrowd"] = columns["iscrowd"].astype(int)
  rows = [{"id": i, **row} for i, row in enumerate(_rows(columns), 1)]
  pairs = zip(ids["categories"], names)
  return files.write_text(
    path,
    json.dumps(
      {
        "images": images,
        "annotations": rows,
        "categories": [{"id": i, "name": name} for i, name in pairs],
      }
    ),
  )


def _same(name: str, values, other: str, others) -> None:
  if len(values) != len(others):
    raise ValueError(
      f"{name} has {len(values)} entries and there are {len(others)} {other}."
    )
