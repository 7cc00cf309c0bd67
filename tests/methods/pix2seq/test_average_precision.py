"""COCO's numbers: worked ones, invariants, equality with two evaluators."""

import copy

import numpy as np
import pytest

from experiments.pix2seq import coco_peers
from locojax import pix2seq
from locojax.core import boxes as layouts
from locojax.data import sources
from locojax.methods.pix2seq import average_precision

SETS = {
  "random": dict(),
  "tied": dict(grid=25.0, dets=30),
  "crowded": dict(crowd=0.4, objects=9),
  "crowded_tied": dict(crowd=0.3, objects=12, grid=40.0, dets=40, classes=1),
  "truncated": dict(dets=150, classes=1, images=4, objects=25),
  "odd_area": dict(odd_area=True, crowd=0.1, objects=10),
  "no_objects": dict(objects=0),
  "few": dict(images=2, dets=1, classes=8, objects=1),
}


def _close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def _equal_to_peers(truth, results):
  given = lambda: copy.deepcopy((truth, results))
  theirs = coco_peers.run_pycocotools(*coco_peers.load_pycocotools(*given()))
  faster = coco_peers.run_faster(*coco_peers.load_faster(*given()))
  curves = pix2seq.evaluate(truth, results)
  ours = coco_peers.twelve(pix2seq.summarize(curves))
  _close(ours, theirs.stats)
  _close(ours, faster.stats[:12])
  _close(curves.precision, theirs.eval["precision"][..., -1])
  _close(curves.recall, theirs.eval["recall"])
  return ours


@pytest.mark.parametrize("name", SETS)
def test_equal_to_pycocotools_and_faster_coco_eval(name):
  for seed in range(3):
    truth, results = coco_peers.made(seed, **SETS[name])
    ours = _equal_to_peers(truth, results)
    assert (ours[0] == -1) == (name == "no_objects")
    per_class = pix2seq.coco_ap(truth, results)["per_class"]
    for category, numbers in per_class.items():
      keep = lambda rows, c=category: [r for r in rows if r["category_id"] == c]
      alone = pix2seq.coco_ap(
        truth | {"annotations": keep(truth["annotations"])}, keep(results)
      )
      _close(coco_peers.twelve(numbers), coco_peers.twelve(alone))


def test_chunks_do_not_change_the_numbers(monkeypatch):
  truth, results = coco_peers.made(0, **SETS["crowded_tied"])
  whole = pix2seq.evaluate(truth, results)
  monkeypatch.setattr(average_precision, "_PAIRS", 7)
  monkeypatch.setattr(average_precision, "_ROUND_PAIRS", 5)
  parts = pix2seq.evaluate(truth, results)
  np.testing.assert_array_equal(whole.precision, parts.precision)
  np.testing.assert_array_equal(whole.recall, parts.recall)


@pytest.mark.real_data
def test_equal_on_blood_cells(data_dir):
  source = sources.from_tfds("bccd", split="test", data_dir=data_dir / "tfds")
  rng = np.random.default_rng(0)
  annotations, results = [], []
  for image in range(1, len(source) + 1):
    example = source[image - 1]["objects"]
    true = np.asarray(example["bbox"], np.float64) * [480, 640, 480, 640]
    for label, box in zip(example["label"], layouts.yxyx_to_xywh(true)):
      row = dict(image_id=image, category_id=int(label) + 1)
      area = float(box[2] * box[3])
      annotations.append(
        row
        | dict(bbox=box.tolist(), area=area, iscrowd=0)
        | dict(id=len(annotations) + 1)
      )
      for _ in range(2):
        moved = box + rng.normal(0, 0.1, 4) * np.tile(box[2:], 2)
        moved[2:] = np.abs(moved[2:])
        score = float(rng.random())
        results.append(row | dict(bbox=moved.tolist(), score=score))
  truth = {
    "images": [{"id": i + 1} for i in range(len(source))],
    "annotations": annotations,
    "categories": [{"id": c, "name": str(c)} for c in (1, 2, 3)],
  }
  assert len(annotations) == 945
  assert 0.1 < _equal_to_peers(truth, results)[0] < 0.9


def _worked():
  rows = [
    (1, [10, 10, 40, 40], 1600.0),
    (1, [60, 10, 20, 20], 400.0),
    (2, [5, 5, 100, 100], 10000.0),
  ]
  truth = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 1, "name": "thing"}],
    "annotations": [
      dict(id=i, image_id=m, category_id=1, bbox=b, area=a, iscrowd=0)
      for i, (m, b, a) in enumerate(rows, 1)
    ],
  }
  found = [
    (1, [12, 10, 40, 40], 0.9),
    (1, [10, 12, 40, 40], 0.8),
    (1, [60, 10, 20, 20], 0.3),
    (2, [5, 5, 100, 70], 0.7),
  ]
  return truth, [
    dict(image_id=m, category_id=1, bbox=b, score=s) for m, b, s in found
  ]


def test_worked_numbers():
  found = coco_peers.twelve(pix2seq.coco_ap(*_worked()))
  wanted = [
    *(0.62549505, 0.83415842, 0.5, 1.0, 0.9, 0.5),
    *(0.46666667, 0.8, 0.8, 1.0, 0.9, 0.5),
  ]
  np.testing.assert_allclose(found, wanted, atol=1e-8)


def _itself(truth, score=lambda i: 0.5):
  """The true boxes as detections."""
  names = ("image_id", "category_id", "bbox")
  return [
    {k: row[k] for k in names} | {"score": score(i)}
    for i, row in enumerate(truth["annotations"])
  ]


def test_the_true_boxes_have_average_precision_one():
  truth, _ = coco_peers.made(1)
  found = pix2seq.coco_ap(truth, _itself(truth))
  # tp / (tp + fp + 2^-52), as all evaluators have it.
  assert found["AP"] == pytest.approx(1, abs=1e-12) and found["AR100"] == 1
  for numbers in found["per_class"].values():
    assert numbers["AP"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("ids", ["from_0", "same", "none"])
def test_ids_of_annotations_play_no_role(ids):
  truth, _ = coco_peers.made(1)
  truth = copy.deepcopy(truth)
  for i, row in enumerate(truth["annotations"]):
    row["id"] = i if ids == "from_0" else 7
    if ids == "none":
      del row["id"]
  assert pix2seq.coco_ap(truth, _itself(truth))["AP"] == pytest.approx(1)


def test_monotone_maps_of_scores_change_nothing():
  truth, results = coco_peers.made(2, crowd=0.2)
  mapped = [r | {"score": np.exp(5 * r["score"]) - 3} for r in results]
  mapped = [r | {"score": float(r["score"])} for r in mapped]
  assert pix2seq.coco_ap(truth, results) == pix2seq.coco_ap(truth, mapped)


def test_the_grid_of_recalls_is_that_of_linspace_in_float64():
  # 6 of 10 objects found: a grid in float32 has .594.
  columns = {
    "image_id": np.arange(10),
    "category_id": np.ones(10, int),
    "bbox": np.tile([10.0, 10, 20, 20], (10, 1)),
  }
  dets = {k: v[:6] for k, v in columns.items()} | {"score": np.ones(6)}
  found = pix2seq.coco_ap(columns, dets)
  np.testing.assert_allclose(found["AP"], 61 / 101, atol=1e-12)
  assert pix2seq.RECALLS.dtype == np.float64


def test_no_detections_are_an_average_precision_of_zero():
  truth, _ = coco_peers.made(0)
  found = pix2seq.coco_ap(truth, [])
  assert found["AP"] == 0 and found["AR100"] == 0
  nothing = truth | {"annotations": []}
  assert pix2seq.coco_ap(nothing, [])["AP"] == -1
  assert set(found["per_class"]) == {10, 20, 30}


def test_other_numbers_of_detections():
  truth, results = coco_peers.made(3, dets=40, classes=1)
  found = pix2seq.coco_ap(truth, results, max_dets=(1, 2, 5))
  assert 0 < found["AR1"] < found["AR2"] < found["AR5"] and found["AP"] > 0
  best = sorted(results, key=lambda r: -r["score"])
  kept = [
    r for i in range(1, 13) for r in [b for b in best if b["image_id"] == i][:5]
  ]
  same = pix2seq.coco_ap(truth, kept)
  assert same["AP"] == found["AP"] and same["AR100"] == found["AR5"]


def test_columns_are_the_same_as_lists_of_objects():
  truth, results = coco_peers.made(4, crowd=0.2, odd_area=True)
  rows = truth["annotations"]
  columns = {
    k: np.array([row[k] for row in rows])
    for k in ("image_id", "category_id", "bbox", "area", "iscrowd")
  }
  columns["images"] = [i["id"] for i in truth["images"]]
  columns["categories"] = [c["id"] for c in truth["categories"]]
  dets = {k: np.array([r[k] for r in results]) for k in results[0]}
  wanted = pix2seq.coco_ap(truth, results)
  assert pix2seq.coco_ap(columns, dets) == wanted
  # The order of images, and what they are called, do not matter.
  names = lambda ids: np.array([f"image {i:02d}" for i in ids])
  shuffled = np.random.default_rng(0).permutation(columns["images"])
  told = columns | {"image_id": names(columns["image_id"])}
  told["images"] = names(shuffled)
  dets = dets | {"image_id": names(dets["image_id"])}
  assert pix2seq.coco_ap(told, dets) == wanted


def _changed(where, i, **change):
  truth, results = copy.deepcopy(_worked())
  rows = results if where == "dets" else truth[where]
  rows[i] = rows[i] | change
  rows[i] = {k: v for k, v in rows[i].items() if v != "gone"}
  return pix2seq.coco_ap(truth, results)


def _columns(**change):
  dets = dict(image_id=[1], category_id=[1], bbox=[[1, 1, 2, 2]], score=[0.5])
  return pix2seq.coco_ap(_worked()[0], dets | change)


NAN = float("nan")
BAD = [
  (lambda: _changed("dets", 2, score=NAN), "dets[2].score=nan must be finite"),
  (lambda: _changed("dets", 1, bbox=[1, 1, -4, 4]), "dets[1].bbox=[1.0, 1.0"),
  (lambda: _changed("dets", 1, bbox=[1, 1, -4, -4]), "negative width or"),
  (lambda: _changed("dets", 0, bbox=[1, 1, 4]), "dets[0].bbox=[1, 1, 4]"),
  (lambda: _changed("dets", 0, bbox=[1, 1, 4, "4"]), "dets[0].bbox[3]='4'"),
  (lambda: _changed("dets", 0, bbox=[1, 1, 4, NAN]), "must be finite"),
  (lambda: _changed("dets", 3, category_id=9), "dets[3].category_id=9 is none"),
  (
    lambda: _changed("dets", 3, image_id=7),
    "dets[3].image_id=7 is none of the 2",
  ),
  (lambda: _changed("dets", 3, image_id="2"), "dets[3].image_id='2'"),
  (lambda: _changed("dets", 3, image_id=1.0), "dets[3].image_id=1.0"),
  (lambda: _changed("dets", 3, score="gone"), "dets[3] has no 'score'"),
  (lambda: _changed("dets", 3, score=True), "dets[3].score=True"),
  (lambda: _changed("annotations", 1, image_id=3), "annotations[1].image_id=3"),
  (lambda: _changed("annotations", 1, category_id=3), "none of the 1 categori"),
  (lambda: _changed("annotations", 1, bbox="gone"), "annotations[1] has no"),
  (lambda: _changed("annotations", 1, area=NAN), "annotations[1].area=nan"),
  (lambda: _changed("annotations", 2, iscrowd=2), "iscrowd=2 must be 0 or 1"),
  (lambda: _changed("annotations", 2, iscrowd="0"), "has dtype <U"),
  (lambda: _columns(score=np.ones((1, 1))), "dets.score has dtype float64 and"),
  (lambda: _columns(score=np.ones(2)), "columns of different lengths"),
  (lambda: _columns(bbox=np.ones((1, 3))), "bbox of shape (1, 3)"),
  (lambda: _columns(category_id=np.ones(1)), "[n] integers or texts"),
  (lambda: _columns(bbox=np.full((1, 4), NAN)), "dets.bbox[0]=[nan"),
  (lambda: _changed("images", 1, id=1), "images[0] and gts: images[1]"),
  (lambda: _changed("images", 1, id=True), "images[1].id=True"),
  (lambda: pix2seq.coco_ap(_worked()[0], {}), "no 'image_id'"),
  (lambda: pix2seq.coco_ap([], []), "gts is a list"),
  (lambda: pix2seq.coco_ap(_worked()[0], 3), "dets is a int"),
  (lambda: pix2seq.coco_ap(_worked()[0], [3]), "dets[0] is a int"),
  (lambda: pix2seq.coco_ap({"annotations": []}, []), "no 'images'"),
  (lambda: pix2seq.coco_ap(*_worked(), "segm"), "iou_type='segm'"),
  (lambda: pix2seq.coco_ap(*_worked(), max_dets=(10, 1)), "ascending"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_what_others_pass_over_is_refused(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value)
