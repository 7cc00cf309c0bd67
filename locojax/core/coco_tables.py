"""COCO's formats of boxes as columns, by one strict rule for all readers.

True boxes are a dict of columns, of n boxes in `images` and `categories`:

  image_id, category_id  [n] integers or texts
  bbox                   [n, 4] float64, pixels: left, top, width, height
  area                   [n] float64; that of the mask in COCO, else of the box
  iscrowd                [n] bool
  images, categories     the ids that there are, each once

and detections are `image_id`, `category_id`, `bbox` and `score` `[n]`. Both are
made here from columns (what is missing is filled in) or from COCO's own lists
of objects. NaN and infinite numbers, negative widths and heights, ids that
nobody declared and ids declared twice are refused, by name and entry. Ids of
annotations play no role, so that they may begin at 0 or repeat.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Columns = dict[str, np.ndarray]
_REQUIRED = object()


def _column(rows: Sequence[Any], name: str, where: str, default=_REQUIRED):
  """The values of a key in a list of objects."""
  try:
    if default is _REQUIRED:
      return [row[name] for row in rows]
    return [row.get(name, default) for row in rows]
  except (KeyError, TypeError, AttributeError):
    for i, row in enumerate(rows):
      if not isinstance(row, Mapping):
        raise ValueError(
          f"{where}[{i}] is a {type(row).__name__}: it must be an object."
        ) from None
      if name not in row and default is _REQUIRED:
        raise ValueError(
          f"{where}[{i}] has no {name!r}; it has {sorted(map(str, row))}."
        ) from None
    raise


def _list(value: Any, where: str) -> Sequence[Any]:
  if not isinstance(value, list | tuple):
    raise ValueError(
      f"{where} is a {type(value).__name__}: it must be a list of objects."
    )
  return value


def _numbers(values: Any, where: tuple[str, str]) -> np.ndarray:
  """Float64 `[n]`; the first entry that is no number is named."""
  kinds = set() if isinstance(values, np.ndarray) else set(map(type, values))
  if not kinds <= {int, float}:
    for i, v in enumerate(values):
      if isinstance(v, bool | str | bytes) or not np.isscalar(v):
        raise ValueError(f"{where[0]}[{i}]{where[1]}={v!r} must be a number.")
  found = np.asarray(values)
  if found.ndim != 1 or (found.size and found.dtype.kind not in "biuf"):
    raise ValueError(
      f"{where[0]}{where[1]} has dtype {found.dtype} and shape {found.shape}: "
      "it must be [n] numbers."
    )
  return found.astype(np.float64)


def _flags(values: Any, where: tuple[str, str]) -> np.ndarray:
  """Bool `[n]` from 0, 1, False and True."""
  found = _numbers(np.asarray(values), where)
  bad = ~np.isin(found, (0, 1))
  if bad.any():
    i = int(np.flatnonzero(bad)[0])
    raise ValueError(f"{where[0]}[{i}]{where[1]}={values[i]!r} must be 0 or 1.")
  return found.astype(bool)


def _boxes(values: Any, where: tuple[str, str]) -> np.ndarray:
  """Float64 `[n, 4]` from lists of four."""
  if isinstance(values, np.ndarray) and values.ndim == 2:
    if values.shape[1] != 4:
      raise ValueError(f"{where[0]} has bbox of shape {values.shape}: [n, 4].")
    return values.astype(np.float64)
  if not _are_fours(values):
    for i, v in enumerate(values):
      if not _are_fours([v]):
        raise ValueError(
          f"{where[0]}[{i}]{where[1]}={v!r} must be [left, top, width, height]."
        )
  flat = list(itertools.chain.from_iterable(values))
  if not set(map(type, flat)) <= {int, float}:
    for i, v in enumerate(values):
      _numbers(v, (f"{where[0]}[{i}]{where[1]}", ""))
  return np.fromiter(flat, np.float64, len(flat)).reshape(-1, 4)


def _are_fours(values: Any) -> bool:
  if not set(map(type, values)) <= {list, tuple, np.ndarray}:
    return False
  return set(map(len, values)) <= {4}


def _ids(values: Any, where: tuple[str, str]) -> np.ndarray:
  """`[n]` integers or texts."""
  if isinstance(values, np.ndarray):
    found = values
  else:
    own = set(map(type, values))
    if own not in ({int}, {str}, set()):
      _refuse_ids(values, where)
    found = np.array(values, np.int64 if not own else None)
  if found.ndim != 1 or (found.size and found.dtype.kind not in "iuU"):
    raise ValueError(
      f"{where[0]}{where[1]} has dtype {found.dtype} and shape {found.shape}: "
      "it must be [n] integers or texts."
    )
  return found if found.size else found.astype(np.int64)


def _refuse_ids(values: Any, where: tuple[str, str]) -> None:
  """Names the first id that is none, or not of the kind of the first one."""
  kind = str if isinstance(values[0], str) else (int, np.integer)
  for i, v in enumerate(values):
    if not isinstance(v, kind) or isinstance(v, bool):
      raise ValueError(
        f"{where[0]}[{i}]{where[1]}={v!r} must be an integer (or all of them "
        "texts)."
      )


def _declared(values: Any, where: str) -> np.ndarray:
  """Ids, each once, from a list of them or of objects with an `id`."""
  if isinstance(values, np.ndarray) or not any(
    isinstance(v, Mapping) for v in values
  ):
    ids = _ids(values, (where, ""))
  else:
    ids = _ids(_column(values, "id", where), (where, ".id"))
  _, first, counts = np.unique(ids, return_index=True, return_counts=True)
  if (counts > 1).any():
    twice = ids[first[counts > 1][0]]
    at = np.flatnonzero(ids == twice)[:2]
    raise ValueError(
      f"{where}[{at[0]}] and {where}[{at[1]}] have the same id "
      f"{twice.item()!r}: an id stands for one."
    )
  return ids


def _say(where: tuple[str, str], name: str, i: int) -> str:
  return f"{where[0]}[{i}].{name}" if where[1] else f"{where[0]}.{name}[{i}]"


def _check_boxes(columns: Columns, where: tuple[str, str], names) -> None:
  """Finite numbers, no negative sizes."""
  for name in names:
    bad = ~np.isfinite(columns[name])
    if bad.any():
      i = int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
      value = columns[name][i].tolist()
      raise ValueError(f"{_say(where, name, i)}={value} must be finite.")
  negative = (columns["bbox"][:, 2:] < 0).any(1)
  if negative.any():
    i = int(np.flatnonzero(negative)[0])
    raise ValueError(
      f"{_say(where, 'bbox', i)}={columns['bbox'][i].tolist()} has a negative "
      "width or height: [left, top, width, height] is wanted. Leave out boxes "
      "that end before they begin."
    )


def check_declared(
  ids: np.ndarray, known: np.ndarray, name: str, where: tuple[str, str]
) -> np.ndarray:
  """Positions of ids among the sorted known ones.

  Raises:
    ValueError: an id that is not known.
  """
  if (
    ids.size
    and known.size
    and (ids.dtype.kind == "U") != (known.dtype.kind == "U")
  ):
    raise ValueError(
      f"{_say(where, name, 0)}={ids[0].item()!r} and those declared, such as "
      f"{known[0].item()!r}, must both be integers or both texts."
    )
  at = np.searchsorted(known, ids)
  right = np.zeros(len(ids), bool)
  inside = at < len(known)
  right[inside] = known[at[inside]] == ids[inside]
  if not right.all():
    i = int(np.flatnonzero(~right)[0])
    what = {"image_id": "images", "category_id": "categories"}[name]
    raise ValueError(
      f"{_say(where, name, i)}={ids[i].item()!r} is none of the {len(known)} "
      f"{what}."
    )
  return at


def _lengths(columns: Columns, where: str) -> None:
  sizes = {k: len(v) for k, v in columns.items()}
  if len(set(sizes.values())) > 1:
    raise ValueError(f"{where} has columns of different lengths: {sizes}.")


def true_boxes(given: Mapping[str, Any], where: str = "gts") -> Columns:
  """Columns of true boxes; see the head of this file.

  Args:
    given: COCO's dict of `images`, `annotations`, `categories`; or columns:
      `image_id`, `category_id`, `bbox`, and perhaps `area` (that of the boxes),
      `iscrowd` (none), `images`, `categories` (those that boxes name).
    where: it is from, for messages.

  Raises:
    ValueError: what is wrong, by name and entry.
  """
  if not isinstance(given, Mapping):
    raise ValueError(
      f"{where} is a {type(given).__name__}: it must be COCO's dict of images, "
      "annotations and categories, or a dict of columns."
    )
  if "annotations" in given:
    out, at = _from_coco(given, where)
  else:
    out, at = _from_columns(given, where)
  _check_boxes(out, at, ("bbox", "area"))
  for name, known in (("image_id", "images"), ("category_id", "categories")):
    check_declared(out[name], np.sort(out[known]), name, at)
  return out


def _from_coco(given, where: str) -> tuple[Columns, tuple[str, str]]:
  for name in ("images", "categories"):
    if name not in given:
      raise ValueError(f"{where} has no {name!r}; it has {sorted(given)}.")
  at = f"{where}: annotations"
  rows = _list(given["annotations"], at)
  read = lambda name, *default: _column(rows, name, at, *default)
  boxes = _boxes(read("bbox"), (at, ".bbox"))
  area = read("area", None)
  if None in area:
    own = (boxes[:, 2] * boxes[:, 3]).tolist()
    area = [b if a is None else a for a, b in zip(area, own)]
  out = {
    "image_id": _ids(read("image_id"), (at, ".image_id")),
    "category_id": _ids(read("category_id"), (at, ".category_id")),
    "bbox": boxes,
    "area": _numbers(area, (at, ".area")),
    "iscrowd": _flags(read("iscrowd", 0), (at, ".iscrowd")),
  }
  for name in ("images", "categories"):
    there = f"{where}: {name}"
    out[name] = _declared(_list(given[name], there), there)
  return out, (at, ".")


def _from_columns(given, where: str) -> tuple[Columns, tuple[str, str]]:
  out = _needed(given, ("image_id", "category_id", "bbox"), where)
  own = out["bbox"][:, 2] * out["bbox"][:, 3]
  area, crowd = given.get("area"), given.get("iscrowd")
  out["area"] = own if area is None else _numbers(area, (f"{where}.area", ""))
  if crowd is None:
    crowd = np.zeros(len(own))
  out["iscrowd"] = _flags(crowd, (f"{where}.iscrowd", ""))
  _lengths(out, where)
  for name, of in (("images", "image_id"), ("categories", "category_id")):
    ids = given.get(name)
    if ids is None:
      out[name] = np.unique(out[of])
    else:
      out[name] = _declared(ids, f"{where}.{name}")
  return out, (where, "")


def _needed(given, names: Sequence[str], where: str) -> Columns:
  for name in names:
    if name not in given:
      raise ValueError(f"{where} has no {name!r}; it has {sorted(given)}.")
  read = {"bbox": _boxes, "score": _numbers}
  out = {}
  for name in names:
    value = given[name]
    if hasattr(value, "__array__"):
      value = np.asarray(value)
    out[name] = read.get(name, _ids)(value, (f"{where}.{name}", ""))
  return out


def detections(given: Any, where: str = "dets") -> Columns:
  """Columns of detections; see the head of this file.

  Args:
    given: COCO's list of objects with `image_id`, `category_id`, `bbox` and
      `score`; or a dict of these columns. It may be empty.
    where: it is from, for messages.

  Raises:
    ValueError: what is wrong, by name and entry.
  """
  names = ("image_id", "category_id", "bbox", "score")
  if isinstance(given, Mapping):
    out, at = _needed(given, names, where), (where, "")
    _lengths(out, where)
  else:
    rows = _list(given, where)
    read = lambda name: _column(rows, name, where)
    out, at = (
      {
        "image_id": _ids(read("image_id"), (where, ".image_id")),
        "category_id": _ids(read("category_id"), (where, ".category_id")),
        "bbox": _boxes(read("bbox"), (where, ".bbox")),
        "score": _numbers(read("score"), (where, ".score")),
      },
      (where, "."),
    )
  _check_boxes(out, at, ("bbox", "score"))
  return out
