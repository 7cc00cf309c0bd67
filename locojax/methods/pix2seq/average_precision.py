"""COCO's average precision of boxes, in NumPy and without loops over boxes.

The twelve numbers of the COCO evaluation as pycocotools 2.0.11 computes them,
and the same for every class. Detections are matched to true boxes in rounds:
round r takes the r-th detection of every image and class at once, for all
thresholds and ranges of area. Only pairs that overlap enough are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from locojax.core import checks, coco_tables

THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Not arange / 100, which differs in seven places, nor in float32.
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {
  "all": (0.0, 1e10),
  "small": (0.0, 32.0**2),
  "medium": (32.0**2, 96.0**2),
  "large": (96.0**2, 1e10),
}
_PAIRS = 2**21  # looked at together
_ROUND_PAIRS = 2**13  # matched together


class Evaluation(NamedTuple):
  """Curves, -1 where there is no true box; T, R, K, A, M as below.

  Attributes:
    precision: `[T, R, K, A]` float64, at `THRESHOLDS`, `RECALLS`, for the
      categories and `AREAS`, of the most detections.
    recall: `[T, K, A, M]` float64, in the end, for each of `max_dets`.
    categories: `[K]`, ascending.
    max_dets: M numbers, ascending.
  """

  precision: np.ndarray
  recall: np.ndarray
  categories: np.ndarray
  max_dets: tuple[int, ...]


class _Pairs(NamedTuple):
  """Pairs of a detection and a true box that overlap by the least threshold.

  Detections are numbered by category, image, score; so are pairs.
  """

  detection: np.ndarray
  truth: np.ndarray
  iou: np.ndarray


def iou_matrix(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray):
  """Overlap of boxes row by row, `[n]` float64.

  Intersection over union; for a crowd, over the area of the first box.

  Args:
    boxes, others: `[n, 4]` float64 xywh.
    crowd: `[n]` bool, whether the other is a crowd.
  """
  a, b = boxes.T, others.T
  width = np.minimum(a[2] + a[0], b[2] + b[0]) - np.maximum(a[0], b[0])
  height = np.minimum(a[3] + a[1], b[3] + b[1]) - np.maximum(a[1], b[1])
  both = width * height
  own = a[2] * a[3]
  either = np.where(crowd, own, own + b[2] * b[3] - both)
  touch = (width > 0) & (height > 0)
  return np.divide(both, either, out=np.zeros_like(both), where=touch)


def coco_ap(
  gts: Any,
  dets: Any,
  iou_type: str = "bbox",
  *,
  max_dets: Sequence[int] = (1, 10, 100),
) -> dict[str, Any]:
  """The COCO numbers of detections.

  Args:
    gts: true boxes, crowds among them: COCO's dict of `images`, `annotations`
      and `categories`, or a dict of columns, see `locojax.core.coco_tables`.
      Ids of annotations do not matter.
    dets: COCO's list of results, or a dict of columns; may be empty.
    iou_type: `bbox`.
    max_dets: detections of an image and class that count; AP takes the most.

  Returns:
    `AP`, `AP50`, `AP75`, `AP_small`, `AP_medium`, `AP_large`, `AR1`, `AR10`,
    `AR100` (by `max_dets`), `AR_small`, `AR_medium`, `AR_large`; and
    `per_class`, the same by category id. -1 where there is nothing to find.

  Raises:
    ValueError: a bad setting; NaN, negative sizes, images or categories that
      `gts` does not have, by name and entry.
  """
  return summarize(evaluate(gts, dets, iou_type, max_dets=max_dets))


def evaluate(
  gts: Any,
  dets: Any,
  iou_type: str = "bbox",
  *,
  max_dets: Sequence[int] = (1, 10, 100),
) -> Evaluation:
  """Precision and recall for every threshold, class and range of area.

  Arguments and errors are those of `coco_ap`.
  """
  checks.one_of("iou_type", iou_type, ("bbox",))
  most = checks.sizes("max_dets", max_dets)
  if not most or list(most) != sorted(set(most)):
    checks.refuse("max_dets", most, "ascending, one or more")
  truth = coco_tables.true_boxes(gts)
  found = coco_tables.detections(dets)
  category_ids = np.sort(truth["categories"])
  truth = _grouped(truth, truth, ("gts", ""))
  at = ("dets", "" if isinstance(dets, Mapping) else ".")
  found = _kept(_grouped(found, truth, at), most[-1])
  normal = _normal(truth)
  pairs = _overlapping(found, truth)
  which, status = _match(pairs, found["group"], truth, normal)
  num = np.stack(
    [
      np.bincount(truth["category"][own], minlength=len(category_ids))
      for own in normal.T
    ],
    axis=-1,
  )
  recall = _recall(found, which, status, num, most)
  precision = _precision(found, which, status, num)
  return Evaluation(precision, recall, category_ids, most)


def _grouped(columns, truth, at) -> dict[str, np.ndarray]:
  """Sorted by category and image, detections by score within; ties as given."""
  out = dict(columns)
  images, categories = truth["images"], truth["categories"]
  out["image"] = coco_tables.check_declared(
    columns["image_id"], np.sort(images), "image_id", at
  )
  out["category"] = coco_tables.check_declared(
    columns["category_id"], np.sort(categories), "category_id", at
  )
  out["group"] = out["category"] * len(images) + out["image"]
  if "score" in out:
    order = np.lexsort((-out["score"], out["group"]))
    names = ("image", "category", "group", "bbox", "score")
    return {k: out[k][order] for k in names}
  order = np.argsort(out["group"], kind="stable")
  names = ("image", "category", "group", "bbox", "area", "iscrowd")
  sorted_ = {k: out[k][order] for k in names}
  return sorted_ | {"images": images, "categories": categories}


def _places(group: np.ndarray) -> np.ndarray:
  """Places within each run of equal values, from 0."""
  if not len(group):
    return np.zeros(0, np.int64)
  starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
  lengths = np.diff(np.r_[starts, len(group)])
  return np.arange(len(group)) - np.repeat(starts, lengths)


def _kept(found: dict[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
  """The best `most` detections of each image and category."""
  found = found | {"place": _places(found["group"])}
  keep = found["place"] < most
  return {k: v[keep] for k, v in found.items()}


def _in_range(area: np.ndarray) -> np.ndarray:
  """`[n, A]`: which areas are in which range, both ends in."""
  low, high = np.array(list(AREAS.values())).T
  return (area[:, None] >= low) & (area[:, None] <= high)


def _normal(truth) -> np.ndarray:
  """`[n, A]`: which true boxes count; the others are ignored."""
  return ~truth["iscrowd"][:, None] & _in_range(truth["area"])


def _overlapping(found, truth) -> _Pairs:
  """All pairs of an image and class with the least overlap that counts."""
  low = np.searchsorted(truth["group"], found["group"], "left")
  counts = np.searchsorted(truth["group"], found["group"], "right") - low
  some = np.flatnonzero(counts)
  parts = []
  ends = np.cumsum(counts[some])
  start = 0
  while start < len(some):
    before = ends[start - 1] if start else 0
    stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS, "right")))
    parts.append(_pairs(found, truth, some[start:stop], low, counts))
    start = stop
  empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
  return _Pairs(*(np.concatenate(c) for c in zip(empty, *parts)))


def _pairs(found, truth, chosen, low, counts) -> _Pairs:
  """Pairs of some detections with enough overlap."""
  number = counts[chosen]
  detection = np.repeat(chosen, number)
  offset = np.arange(number.sum()) - np.repeat(
    np.cumsum(number) - number, number
  )
  true = np.repeat(low[chosen], number) + offset
  iou = iou_matrix(
    found["bbox"][detection], truth["bbox"][true], truth["iscrowd"][true]
  )
  enough = iou >= min(THRESHOLDS[0], 1 - 1e-10)
  return _Pairs(detection[enough], true[enough], iou[enough])


def _match(pairs: _Pairs, group, truth, normal):
  """Who is matched: `which` detections `[C]`, `status` `[C, T, A]` int8.

  Status 1: with a true box that counts; 2: with one that is ignored; 0: not.
  The detections are those of `pairs`, in order; all others have status 0.
  """
  which, first = np.unique(pairs.detection, return_index=True)
  lengths = np.diff(np.r_[first, len(pairs.detection)])
  status = np.zeros((len(which), len(THRESHOLDS), len(AREAS)), np.int8)
  used = np.zeros((len(truth["group"]), *status.shape[1:]), bool)
  # Within a detection: the larger overlap, of equal ones the later true box.
  # The order of all pairs by that makes it one number.
  by_value = np.lexsort((pairs.truth, pairs.iou))
  value = np.empty(len(by_value), np.int64)
  value[by_value] = np.arange(len(by_value))
  truth_by_value = pairs.truth[by_value]
  for chosen in _rounds(_places(group[which]), lengths):
    at, starts = _spans(first[chosen], lengths[chosen])
    true = pairs.truth[at]
    open_ = ~used[true] | truth["iscrowd"][true][:, None, None]
    enough = pairs.iou[at][:, None] >= np.minimum(THRESHOLDS, 1 - 1e-10)
    # A true box that counts goes before all that are ignored.
    key = value[at][:, None] + len(value) * normal[true]
    key = np.where(open_ & enough[:, :, None], key[:, None, :], -1)
    best = np.maximum.reduceat(key, starts, axis=0)
    d, t, a = np.nonzero(best >= 0)
    taken = truth_by_value[best[d, t, a] % len(value)]
    used[taken, t, a] = True
    status[chosen[d], t, a] = np.where(normal[taken, a], 1, 2)
  return which, status


def _rounds(place: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
  """Positions of detections that can be matched together, in order."""
  order = np.argsort(place, kind="stable")
  sizes = np.cumsum(lengths[order])
  ends = np.flatnonzero(np.diff(place[order])) + 1
  start = 0
  for end in [*ends.tolist(), len(order)]:
    while start < end:
      before = sizes[start - 1] if start else 0
      cut = int(np.searchsorted(sizes, before + _ROUND_PAIRS, "right"))
      stop = min(end, max(start + 1, cut))
      yield order[start:stop]
      start = stop


def _spans(starts: np.ndarray, lengths: np.ndarray):
  """Positions of spans one behind the other, and where each begins there."""
  begin = np.cumsum(lengths) - lengths
  shift = np.repeat(starts - begin, lengths)
  return np.arange(len(shift)) + shift, begin


def _recall(found, which, status, num, max_dets) -> np.ndarray:
  """`[T, K, A, M]`: the share of true boxes that were found in the end."""
  category, place = found["category"][which], found["place"][which]
  out = np.full((status.shape[1], *num.shape, len(max_dets)), -1.0)
  shape = (status.shape[1], *num.shape)
  d, t, a = np.nonzero(status == 1)
  cell = np.ravel_multi_index((t, category[d], a), shape)
  for m, most in enumerate(max_dets):
    among = cell[place[d] < most]
    hits = np.bincount(among, minlength=np.prod(shape)).reshape(shape)
    out[..., m] = np.where(num > 0, hits / np.maximum(num, 1), -1.0)
  return out


def _precision(found, which, status, num) -> np.ndarray:
  """`[T, R, K, A]`: precision at the grid of recalls."""
  num_t, num_a = status.shape[1:]
  out = np.full((num_t, len(RECALLS), len(num), num_a), -1.0)
  order = np.lexsort((-found["score"], found["category"]))
  size = found["bbox"][:, 2] * found["bbox"][:, 3]
  inside = _in_range(size)[order]
  # Of the detections up to each one, those that count if none is matched.
  so_far = np.cumsum(inside, axis=0, dtype=np.int64)
  place = np.empty(len(order), np.int64)
  place[order] = np.arange(len(order))
  some = np.flatnonzero(status.any(axis=(1, 2)))
  matched = some[np.argsort(place[which[some]], kind="stable")]
  at, status = place[which][matched], status[matched]
  category = found["category"][order]
  ends = np.searchsorted(category, np.arange(len(num) + 1))
  cuts = np.searchsorted(at, ends)
  for k in np.flatnonzero(num.max(axis=1)):
    own = slice(cuts[k], cuts[k + 1])
    before = so_far[ends[k] - 1] if ends[k] else np.zeros(num_a, np.int64)
    base = so_far[at[own]] - before
    curve = _curves(status[own], base, inside[at[own]], num[k])
    out[:, :, k] = np.where(num[k] > 0, curve, -1.0)
  return out


def _curves(status, base, inside, num) -> np.ndarray:
  """`[T, R, A]` of one category, from its detections that are matched.

  Precision is a maximum over what comes later, so it is that at a true
  positive, and recall grows there alone: the others only have to be counted.

  Args:
    status: `[C, T, A]` in order of score.
    base: `[C, A]` detections up to each one that count if not matched.
    inside: `[C, A]` whether it is one of them itself.
    num: `[A]` true boxes.
  """
  _, num_t, num_a = status.shape
  hit = np.moveaxis(status == 1, 0, -1).reshape(num_t * num_a, -1)
  other = np.moveaxis(status == 2, 0, -1).reshape(num_t * num_a, -1)
  own = np.tile(inside.T, (num_t, 1))
  counts = np.where(hit, 1, np.where(other, 0, own)) - own
  total = np.tile(base.T, (num_t, 1)) + np.cumsum(counts, axis=1)
  hits = np.cumsum(hit, axis=1)
  precision = np.where(hit, hits / (total + np.spacing(1)), 0.0)
  best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
  at_hits = np.r_[best[hit], 0.0]  # row by row
  per_row = hit.sum(axis=1)
  first = np.cumsum(per_row) - per_row
  needed = np.tile(np.stack([_needed(n) for n in num]), (num_t, 1))
  at = first[:, None] + np.maximum(needed, 1) - 1
  reached = np.maximum(needed, 1) <= per_row[:, None]
  rows = np.where(reached, at_hits[np.where(reached, at, -1)], 0.0)
  return rows.reshape(num_t, num_a, -1).transpose(0, 2, 1)


def _needed(num: int) -> np.ndarray:
  """True positives that reach each recall of the grid, of `num` boxes."""
  shares = np.arange(num + 1) / max(num, 1)
  return np.searchsorted(shares, RECALLS, side="left")


def _mean(values: np.ndarray) -> float:
  found = values[values > -1]
  return float(found.mean()) if found.size else -1.0


def summarize(evaluation: Evaluation) -> dict[str, Any]:
  """The twelve numbers, overall and by class; see `coco_ap`."""
  precision, recall, categories, max_dets = evaluation
  per_class = {
    category.item(): _numbers(
      precision[:, :, k : k + 1], recall[:, k : k + 1], max_dets
    )
    for k, category in enumerate(categories)
  }
  return _numbers(precision, recall, max_dets) | {"per_class": per_class}


def _numbers(precision, recall, max_dets) -> dict[str, float]:
  """Of `[T, R, K, A]` and `[T, K, A, M]`."""
  at = {"AP50": 0, "AP75": 5}
  out = {"AP": _mean(precision[..., 0])}
  out |= {k: _mean(precision[t, ..., 0]) for k, t in at.items()}
  sized = list(enumerate(AREAS))[1:]
  out |= {f"AP_{name}": _mean(precision[..., a]) for a, name in sized}
  for m, most in enumerate(max_dets):
    out[f"AR{most}"] = _mean(recall[:, :, 0, m])
  return out | {f"AR_{name}": _mean(recall[..., a, -1]) for a, name in sized}
