"""Sets of images with boxes, and the score of what is said of them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image

from experiments.pix2seq import bins, predict, scoring, sets, settings
from experiments.pix2seq.configs import detection
from locojax.core import boxes as layouts
from locojax.data import boxes, coco_json
from locojax.report import results

SIDES = ((20, 40), (30, 30), (16, 24), (40, 20), (25, 35))
CLASSES = ("cat", "dog")


def _objects(index: int, size):
  """yxyx in pixels and labels of an image."""
  rng = np.random.default_rng(index)
  num = index % 3
  corner = rng.integers(0, np.array(size) - 8, (num, 2))
  side = rng.integers(4, 9, (num, 2))
  return np.concatenate([corner, corner + side], axis=1), rng.integers(
    1, 3, num
  )


def _coco(root, split="", sides=SIDES, first=1):
  """A folder in COCO's layout; images of several sizes, some without boxes."""
  folder = root / split if split else root / "images"
  folder.mkdir(parents=True)
  images, rows = [], []
  for i, size in enumerate(sides):
    pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    images.append(
      {
        **{"id": i + first, "file_name": f"{i}.png"},
        **{"height": size[0], "width": size[1]},
      }
    )
    found, labels = _objects(i, size)
    rows += [
      {
        **{"id": len(rows) + k, "image_id": i + first},
        **{"category_id": 10 * int(label), "iscrowd": 0},
        **{"bbox": xywh, "area": xywh[2] * xywh[3]},
      }
      for k, (xywh, label) in enumerate(
        zip(layouts.yxyx_to_xywh(found).tolist(), labels)
      )
    ]
  told = {
    "images": images,
    "annotations": rows,
    "categories": [
      {"id": 10 * (i + 1), "name": n} for i, n in enumerate(CLASSES)
    ],
  }
  path = root / "annotations" / f"instances_{split}.json"
  path = path if split else root / "annotations.json"
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(told))
  return path


def _data(**changes):
  return {**detection.get_config("tiny").data.to_dict(), **changes}


def _oracle(source, image_size: int):
  """Says the true boxes, and an empty box of the best score besides."""

  def detect(batch):
    rows = []
    for row in batch["row"]:
      example = source[int(row)]
      height, width = example["size"]
      scale = image_size / max(height, width)
      unpadded = np.round(np.array([height, width]) * scale)
      shares = example["boxes"] * np.tile(unpadded / image_size, 2)
      rows.append((np.pad(shares, ((1, 3 - len(shares)), (0, 0))), example))
    labels = [np.pad(e["labels"], (1, 3 - len(e["labels"]))) for _, e in rows]
    labels = np.stack(labels)
    said = labels > 0
    said[:, 0] = True
    return scoring.Found(
      np.stack([b for b, _ in rows]).astype(np.float32),
      np.maximum(labels, 1),
      np.where(labels > 0, 0.5, 0.9).astype(np.float32),
      said,
      np.zeros((len(rows), 0), np.int32),
    )

  return detect


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_true_boxes_score_1_whatever_the_batch(tmp_path, batch_size):
  """Images of several sizes, padded canvases, a batch that is filled up."""
  path = _coco(tmp_path)
  source = boxes.from_coco(path, tmp_path / "images")
  truth = boxes.ground_truth(source)
  found = scoring.detections(
    _oracle(source, 48),
    source,
    truth["images"],
    source.category_ids,
    image_size=48,
    batch_size=batch_size,
  )
  assert len(found["score"]) == len(truth["bbox"]) == 4
  np.testing.assert_allclose(found["bbox"], truth["bbox"], atol=0.8)
  assert found["category_id"].tolist() == truth["category_id"].tolist()
  numbers = scoring.score(truth, found)
  assert numbers["AP50"] == pytest.approx(1) and "AP_large" not in numbers
  # On canvases of their own size nothing is rounded.
  shapes = sets.load(_data())
  own = scoring.detections(
    _oracle(shapes.test, 32),
    shapes.test,
    shapes.truth["images"],
    shapes.category_ids,
    image_size=32,
    batch_size=batch_size,
  )
  numbers = scoring.score(shapes.truth, own)
  assert numbers["AP"] == pytest.approx(1) == numbers["AR100"]
  curves = scoring.curves(shapes.truth, own)
  assert all(np.allclose(c, 1) for c in curves.values())
  out = tmp_path / f"results_{batch_size}.json"
  coco_json.write_coco_results(out, found)
  again, rows = predict.score(str(path), str(out))
  assert again["AP50"] == pytest.approx(1)
  assert [r["class"] for r in rows] == list(CLASSES)


def test_nothing_said_scores_0():
  shapes = sets.load(_data())

  def silent(batch):
    n = len(batch["row"])
    return scoring.Found(
      np.zeros((n, 2, 4), np.float32),
      np.ones((n, 2), np.int32),
      np.zeros((n, 2), np.float32),
      np.zeros((n, 2), bool),
      np.zeros((n, 0), np.int32),
    )

  found = scoring.detections(
    silent,
    shapes.test,
    shapes.truth["images"],
    shapes.category_ids,
    image_size=32,
    batch_size=5,
  )
  assert scoring.score(shapes.truth, found)["AP"] == 0


def test_own_folders_of_every_format(tmp_path):
  _coco(tmp_path / "coco", "train")
  _coco(tmp_path / "coco", "val", SIDES[:3])
  own = _data(
    name="folder",
    path=str(tmp_path / "coco"),
    format="coco",
    train_split="train",
    test_split="val",
  )
  found = sets.load(own)
  assert (len(found.train), len(found.test)) == (5, 3)
  assert found.classes == CLASSES and found.category_ids.tolist() == [10, 20]
  # Kept small in memory, with the size of the file.
  assert max(found.train[3]["image"].shape[:2]) == 32
  assert found.train[3]["size"].tolist() == [40, 20]
  # The same images as YOLO's text, without splits: a share is kept back.
  yolo = tmp_path / "yolo"
  (yolo / "images").mkdir(parents=True)
  (yolo / "labels").mkdir()
  for i, size in enumerate(SIDES):
    Image.new("RGB", size[::-1]).save(yolo / "images" / f"{i}.png")
    found, labels = _objects(i, size)
    shares = layouts.yxyx_to_cxcywh(found / np.tile(size, 2))
    lines = [
      " ".join(map(str, (k - 1, *row)))
      for k, row in zip(labels.tolist(), shares.tolist())
    ]
    (yolo / "labels" / f"{i}.txt").write_text("\n".join(lines))
  (yolo / "classes.txt").write_text("\n".join(CLASSES))
  own = _data(name="folder", path=str(yolo), format="yolo", held_out_share=0.4)
  found = sets.load(own)
  assert (len(found.train), len(found.test)) == (3, 2)
  ids = [int(s[i]["image_id"]) for s in found[:2] for i in range(len(s))]
  assert sorted(ids) == [1, 2, 3, 4, 5]
  assert found.truth["images"].tolist() == ids[3:]
  named = sets.load({**own, "classes": ("red", "blue", "none")})
  assert named.classes == ("red", "blue", "none")
  with pytest.raises(FileNotFoundError, match="instances_test.json"):
    sets.own(tmp_path / "coco", "coco", "test")


_VOC = """<annotation><filename>0.png</filename>
<size><width>32</width><height>32</height><depth>3</depth></size>
<object><name>cat</name><bndbox><xmin>3</xmin><ymin>5</ymin><xmax>9</xmax>
<ymax>21</ymax></bndbox></object></annotation>"""


@pytest.mark.parametrize("first", (0, 1))
def test_own_edges_and_classes_of_voc(tmp_path, first):
  for i in range(2):
    Image.new("RGB", (32, 32)).save(tmp_path / f"{i}.png")
    (tmp_path / f"{i}.xml").write_text(_VOC.replace("0.png", f"{i}.png"))
  own = _data(
    **{"name": "folder", "path": str(tmp_path), "format": "voc"},
    **{"classes": ("dog", "cat"), "first_pixel": first},
  )
  found = sets.load(own)
  assert found.train[0]["labels"].tolist() == [2]
  np.testing.assert_allclose(
    32 * found.train[0]["boxes"][0], [5 - first, 3 - first, 21, 9], rtol=1e-6
  )


def test_sprites_of_training_and_test_differ():
  data = _data(name="sprites", sprites=("digits",), num_train=6, num_test=6)
  found = sets.load(data)
  assert found.classes[3] == "digits 3"
  assert len(found.train) == 6
  assert all(1 <= k <= 10 for e in found.test._examples for k in e["labels"])


def test_quantised_true_boxes(tmp_path):
  """AP grows with the bins to 1, and rounding is above truncation."""
  out = tmp_path / "bins.json"
  bins.main(["--results", str(out), "--bins", "16", "64", "1024"])
  rows = results.load(out)["rows"]
  rounded = [r["round_AP"] for r in rows]
  assert rounded == sorted(rounded) and rounded[-1] > 0.999
  assert all(r["round_AP"] >= r["floor_AP"] for r in rows)
  assert rows[0]["floor_AP"] < 0.5 * rows[0]["round_AP"]
  assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def _own_config(root, **data):
  config = detection.get_config("tiny")
  with config.unlocked():
    config.data.update(name="folder", path=str(root), format="coco", **data)
    config.batch_size = 2
  return config


def test_what_a_run_cannot_go_on_with_is_said_before_it_trains(
  tmp_path, caplog
):
  path = _coco(tmp_path)
  config = _own_config(tmp_path)
  found = sets.load(config.data.to_dict())
  assert found.train.box_counts.sum() + len(found.truth["image_id"]) == 4
  assert set(found.test_files) < {f"images/{i}.png" for i in range(5)}
  settings.check_sets(config, found)
  with config.unlocked():
    config.sequence.max_objects = 1
  with caplog.at_level(logging.WARNING):
    settings.check_sets(config, found)
  assert "more boxes than sequence.max_objects=1 (up to 2)" in caplog.text
  for changes, match in (
    ({"batch_size": 5}, "batch_size=5 .* at most 4, the images"),
    ({"data.num_classes": 1}, "data.num_classes=1 .* 2 or more"),
  ):
    wrong = _own_config(tmp_path)
    with wrong.unlocked():
      wrong.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=match):
      settings.check_sets(wrong, found)
  told = json.loads(path.read_text())
  path.write_text(json.dumps({**told, "annotations": []}))
  nothing = sets.load({**config.data.to_dict(), "seed": 1})
  with pytest.raises(ValueError, match="no image for training has a box"):
    settings.check_sets(config, nothing)


def test_a_folder_with_splits_is_not_pooled(tmp_path):
  (tmp_path / "images" / "train").mkdir(parents=True)
  with pytest.raises(ValueError, match="data.train_split='' .* 'train'"):
    sets.own(tmp_path, "yolo", "")
  with pytest.raises(FileNotFoundError, match="named by data.train_split"):
    sets.own(tmp_path, "coco", "")


def test_a_broken_image_is_named_before_any_is_asked_about(tmp_path):
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
  (tmp_path / "b.png").write_text("none")
  with pytest.raises(ValueError, match="1 of 2 cannot be read: .*b.png"):
    predict._of_folder(tmp_path)
