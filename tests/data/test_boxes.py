"""Images with boxes from COCO, VOC, YOLO and tfds, and what they refuse."""

import copy
import json
import logging

import numpy as np
import pytest
from PIL import Image

from locojax.data import box_sources, boxes, coco_json, image_files, sources
from locojax.methods import pix2seq

HEIGHT, WIDTH = 20, 40
# yxyx in pixels; the same objects in every format.
PIXELS = np.array([[2, 4, 10, 12], [5, 20, 15, 36]], float)
SHARES = PIXELS / [HEIGHT, WIDTH, HEIGHT, WIDTH]


def _image(path, size=(HEIGHT, WIDTH), orientation=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.zeros((*size, 3), np.uint8)
  pixels[: size[0] // 2, : size[1] // 2] = 255
  exif = Image.Exif()
  if orientation:
    exif[0x0112] = orientation
  Image.fromarray(pixels).save(path, exif=exif, quality=100)


def _coco_dict():
  return {
    "images": [
      {"id": 7, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH},
      {"id": 3, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH},
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
      _row(7, 9, [20, 5, 16, 10], id=0, area=99.5),
      _row(7, 2, [4, 2, 8, 8], id=0, iscrowd=1, area=50),
    ],
  }


def _row(image_id, category_id, bbox, **more):
  return dict(image_id=image_id, category_id=category_id, bbox=bbox, **more)


def _coco(root, told=None, **settings):
  for name in ("a.jpg", "b.jpg"):
    if not (root / name).exists():
      _image(root / name)
  path = root / "instances.json"
  path.write_text(json.dumps(_coco_dict() if told is None else told))
  return boxes.from_coco(path, root, **settings)


def _voc_text(objects, size=(HEIGHT, WIDTH), head=""):
  parts = [f"<size><height>{size[0]}</height><width>{size[1]}</width></size>"]
  for name, (top, left, bottom, right), difficult in objects:
    edges = f"<xmin>{left}</xmin><ymin>{top}</ymin>"
    edges += f"<xmax>{right}</xmax><ymax>{bottom}</ymax>"
    parts.append(
      f"<object><name>{name}</name><difficult>{difficult}</difficult>"
      f"<bndbox>{edges}</bndbox></object>"
    )
  return f"{head}<annotation>{''.join(parts)}</annotation>"


def _voc(root, objects=None, **settings):
  from_one = PIXELS + [1, 1, 0, 0]
  own = [("cat", from_one[0], 0), ("dog", from_one[1], 1)]
  for name in ("a", "b"):
    _image(root / "JPEGImages" / f"{name}.jpg")
    path = root / "Annotations" / f"{name}.xml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(_voc_text(objects or (own if name == "b" else [])))
  return boxes.from_voc(root, **settings)


def _yolo(root, text="0 0.2 0.3 0.2 0.4\n\n1 0.7 0.5 0.4 0.5\n", **settings):
  for name in ("a", "b"):
    _image(root / "images" / "train" / f"{name}.jpg")
  labels = root / "labels" / "train"
  labels.mkdir(parents=True, exist_ok=True)
  (labels / "b.txt").write_text(text)
  return boxes.from_yolo(root, split="train", **settings)


def _check(example, area, crowd=(False, False)):
  order = np.argsort(example["labels"])
  np.testing.assert_allclose(example["boxes"][order], SHARES, atol=1e-6)
  assert example["labels"][order].tolist() == [1, 2]
  np.testing.assert_allclose(example["area"][order], area, rtol=1e-5)
  assert example["is_crowd"][order].tolist() == list(crowd)
  assert example["size"].tolist() == [HEIGHT, WIDTH]
  assert example["image"].shape == (HEIGHT, WIDTH, 3)
  kinds = {k: example[k].dtype for k in ("boxes", "labels", "area", "size")}
  assert kinds == dict(
    boxes=np.float32, labels=np.int32, area=np.float32, size=np.int32
  )


def _check_empty(example):
  assert example["boxes"].shape == (0, 4) and example["labels"].shape == (0,)
  assert example["image"].dtype == np.uint8


def test_coco(tmp_path):
  found = _coco(tmp_path)
  _check(found[0], [50, 99.5], crowd=(True, False))
  _check_empty(found[1])
  assert [int(e["image_id"]) for e in (found[0], found[1])] == [7, 3]
  assert found.classes == ("cat", "dog")
  assert found.category_ids.tolist() == [2, 9]
  raw = _coco(tmp_path, labels="raw")
  assert sorted(raw[0]["labels"].tolist()) == [2, 9]
  assert raw.classes[8] == "dog" and raw.classes[0] == ""
  assert len(_coco(tmp_path, keep_empty=False)) == 1


def test_voc(tmp_path):
  found = _voc(tmp_path)
  _check(found[1], [64, 160])
  _check_empty(found[0])
  assert found.classes == ("cat", "dog") and int(found[1]["image_id"]) == 2
  assert len(_voc(tmp_path, keep_difficult=False)[1]["labels"]) == 1
  given = _voc(tmp_path, classes=["cow", "dog", "cat"])
  assert sorted(given[1]["labels"].tolist()) == [2, 3]
  # Edges as they are: the same file has boxes that begin a pixel later.
  edges = _voc(tmp_path, first_pixel=0)[1]["boxes"]
  shift = [1 / HEIGHT, 1 / WIDTH, 0, 0]
  np.testing.assert_allclose(edges, SHARES + shift, atol=1e-6)
  lists = tmp_path / "ImageSets" / "Main"
  lists.mkdir(parents=True)
  (lists / "val.txt").write_text("b 1\n")
  assert len(boxes.from_voc(tmp_path, split="val")) == 1


def test_voc_files_beside_their_images(tmp_path):
  _image(tmp_path / "x.png")
  objects = [("cell", (0, 0, 5, 5), 0)]
  text = _voc_text(objects).replace(
    "<size>", "<filename>C:\\photos\\x.png</filename><size>"
  )
  (tmp_path / "other.xml").write_text(text)
  found = boxes.from_voc(tmp_path, first_pixel=0)
  np.testing.assert_allclose(found[0]["boxes"], [[0, 0, 0.25, 0.125]])


def test_yolo(tmp_path):
  found = _yolo(tmp_path)
  _check(found[1], [64, 160])
  _check_empty(found[0])  # It has no text file.
  assert found.classes == ("0", "1")
  (tmp_path / "classes.txt").write_text("cat\ndog\n")
  assert _yolo(tmp_path).classes == ("cat", "dog")
  assert _yolo(tmp_path, classes=["c", "d", "e"]).classes == ("c", "d", "e")


def test_yolo_with_names_in_yaml_and_splits_outside(tmp_path):
  _yolo(tmp_path)
  told = tmp_path / "data.yaml"
  told.write_text("nc: 2\ntrain: ../train/images\nnames: ['cat', 7]\n")
  assert boxes.from_yolo(tmp_path, split="train").classes == ("cat", "7")
  told.write_text("names:\n  1: dog\n  0: cat\n")
  assert boxes.from_yolo(tmp_path, split="train").classes == ("cat", "dog")
  for text, match in (
    ("names: {0: cat, 2: dog}", "none left out"),
    ("names: 3", "a list, or names by number"),
    ("names: [a", "data.yaml is no YAML"),
  ):
    told.write_text(text)
    with pytest.raises(ValueError, match=match):
      boxes.from_yolo(tmp_path, split="train")
  told.write_text("names: [cat, dog]")
  for part in ("images", "labels"):
    (tmp_path / "train").mkdir(exist_ok=True)
    (tmp_path / part / "train").rename(tmp_path / "train" / part)
    (tmp_path / part).rmdir()
  found = boxes.from_yolo(tmp_path, split="train")
  _check(found[1], [64, 160])
  assert found.classes == ("cat", "dog") and len(found) == 2


def test_endings_in_capitals_are_read_and_one_text_has_one_image(tmp_path):
  _yolo(tmp_path)
  labels = tmp_path / "labels" / "train"
  (labels / "b.txt").rename(labels / "b.TXT")
  _check(boxes.from_yolo(tmp_path, split="train")[1], [64, 160])
  _image(tmp_path / "images" / "train" / "b.png")
  with pytest.raises(ValueError, match="b.TXT belongs to .* another image"):
    boxes.from_yolo(tmp_path, split="train")
  _voc(tmp_path / "voc")
  path = tmp_path / "voc" / "Annotations" / "b.xml"
  path.rename(path.with_suffix(".XML"))
  assert len(boxes.from_voc(tmp_path / "voc")) == 2


def test_all_formats_tell_the_same_truth(tmp_path):
  read = (_coco, _voc, _yolo)
  found = [make(tmp_path / make.__name__) for make in read]
  columns = [boxes.ground_truth(s) for s in found]
  order = [np.argsort(c["category_id"]) for c in columns]
  for c, at in zip(columns, order):
    np.testing.assert_allclose(
      c["bbox"][at], [[4, 2, 8, 8], [20, 5, 16, 10]], atol=1e-4
    )
  assert columns[0]["category_id"].tolist() == [9, 2]
  assert columns[1]["category_id"].tolist() == [1, 2]
  dets = {k: columns[1][k] for k in ("image_id", "category_id", "bbox")}
  dets["score"] = np.ones(2)
  assert pix2seq.coco_ap(columns[1], dets)["AP"] == pytest.approx(1)


def test_boxes_outside_are_cut_or_left_out_or_refused(tmp_path, caplog):
  told = _coco_dict()
  told["annotations"] += [
    _row(3, 2, [-5, -5, 15, 15]),
    _row(3, 2, [30, 10, 999, 999], area=30),
    _row(3, 2, [50, 5, 5, 5]),
    _row(3, 2, [5, 5, 0, 5]),
  ]
  with caplog.at_level(logging.WARNING):
    found = _coco(tmp_path, told)[1]
  assert "4 boxes leave their image or have no area" in caplog.text
  np.testing.assert_allclose(
    found["boxes"], [[0, 0, 0.5, 0.25], [0.5, 0.75, 1, 1]]
  )
  # Areas are those told, or of the boxes as they were told.
  assert found["area"].tolist() == [225, 30]
  with pytest.raises(ValueError, match="a.jpg: box 0 leaves the image"):
    _coco(tmp_path, told, bad_boxes="refuse")
  text = "0 0.2 0.3 0 0.4\n"
  with pytest.raises(ValueError, match="b.jpg: box 0 has no area"):
    _yolo(tmp_path, text, bad_boxes="refuse")


def _filled(box, size):
  """The image of a box of shares, white on black."""
  out = np.zeros(size, np.uint8)
  top, left, bottom, right = np.round(
    np.asarray(box) * np.tile(size, 2)
  ).astype(int)
  out[top:bottom, left:right] = 1
  return out


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_follow_photographs_that_are_turned(tmp_path, orientation):
  # The box is the white quarter of the stored pixels.
  _image(tmp_path / "a.png", orientation=orientation)
  stored = image_files.read_header(tmp_path / "a.png")
  told = {
    "images": [
      {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    ],
    "categories": [{"id": 1, "name": "white"}],
    "annotations": [_row(1, 1, [0, 0, WIDTH // 2, HEIGHT // 2])],
  }
  path = tmp_path / "told.json"
  path.write_text(json.dumps(told))
  example = boxes.from_coco(path, tmp_path)[0]
  size = example["image"].shape[:2]
  assert size == (stored.height, stored.width) == tuple(example["size"])
  white = (example["image"][..., 0] > 0).astype(np.uint8)
  if orientation >= 5:  # The size tells that the stored pixels are meant.
    assert size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(_filled(example["boxes"][0], size), white)
    told["images"][0] |= {"height": WIDTH, "width": HEIGHT}
    told["annotations"][0]["bbox"] = [0, 0, HEIGHT // 2, WIDTH // 2]
    path.write_text(json.dumps(told))
    example = boxes.from_coco(path, tmp_path)[0]
  # Of the upright image, the upper left quarter.
  np.testing.assert_allclose(example["boxes"], [[0, 0, 0.5, 0.5]])


def test_sizes_that_are_not_those_of_the_image_are_refused(tmp_path):
  told = _coco_dict()
  told["images"][0] |= {"height": WIDTH, "width": HEIGHT}
  with pytest.raises(
    ValueError, match=r"b.jpg has height and width \(20, 40\)"
  ):
    _coco(tmp_path, told)[0]
  for image in told["images"]:
    del image["height"], image["width"]
  _check(_coco(tmp_path, told)[0], [50, 99.5], crowd=(True, False))


def _edited(root, where, i, **change):
  told = copy.deepcopy(_coco_dict())
  told[where][i] |= change
  return _coco(root, {k: v for k, v in told.items() if k != "gone"})


ENTITY = '<!DOCTYPE annotation [<!ENTITY a "b">]>'
BAD = [
  (lambda r: _edited(r, "images", 1, id=7), "images[0] and "),
  (lambda r: _edited(r, "categories", 1, id=9), "same id"),
  (lambda r: _edited(r, "annotations", 1, image_id=8), "annotations[1].image_"),
  (
    lambda r: _edited(r, "annotations", 1, category_id=8),
    "=8 is none of the 2",
  ),
  (lambda r: _edited(r, "annotations", 0, bbox=[1, 1, -1, 2]), "negative"),
  (lambda r: _edited(r, "annotations", 0, bbox=[float("nan")] * 4), "finite"),
  (lambda r: _edited(r, "images", 0, file_name=None), "images[0].file_name"),
  (lambda r: _edited(r, "images", 0, width=0), "images[0].width=0"),
  (lambda r: _coco(r, {"images": [], "categories": []}), "instances.json"),
  (lambda r: _coco(r, dict(images=[], annotations=[], categories=[])), "no im"),
  (lambda r: _coco(r, labels="row"), "labels='row'"),
  (lambda r: _coco(r, bad_boxes="drop"), "bad_boxes='drop'"),
  (lambda r: _voc(r, [("cat", (9, 9, 5, 5), 0)]), "ends before it begins"),
  (
    lambda r: _voc(r, [("cat", ("x", 9, 5, 5), 0)]),
    "a.xml, object 0: ymin='x'",
  ),
  (lambda r: _voc(r, [("cat", ("nan", 9, 5, 5), 0)]), "finite number"),
  (lambda r: _voc(r, classes=["dog"]), "b.xml has the class 'cat'"),
  (lambda r: _yolo(r, "0 0.5 0.5 0.1\n"), "b.txt, line 1 has 4 columns"),
  (lambda r: _yolo(r, "\n0.5 1 1 1 1\n"), "b.txt, line 2: '0.5 1 1 1 1'"),
  (lambda r: _yolo(r, "0 nan 1 1 1\n"), "four finite numbers"),
  (lambda r: _yolo(r, "0 0.5 0.5 -1 1\n"), "negative size"),
  (lambda r: _yolo(r, "4 0.5 0.5 1 1\n", classes=["a"]), "below 1, the number"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_files_are_named(tmp_path, call, words):
  with pytest.raises(ValueError) as error:
    call(tmp_path)
  assert words in str(error.value)


@pytest.mark.parametrize(
  ("head", "words"),
  [(ENTITY, "document type"), ("<other/>", "cannot be read"), ("<", "cannot")],
)
def test_xml_that_is_more_than_an_annotation_is_refused(tmp_path, head, words):
  _image(tmp_path / "x.png")
  (tmp_path / "x.xml").write_text(_voc_text([], head=head))
  with pytest.raises(ValueError, match=f"x.xml.*{words}"):
    boxes.from_voc(tmp_path)


def test_missing_files_are_named(tmp_path):
  _coco(tmp_path)
  (tmp_path / "b.jpg").unlink()
  with pytest.raises(FileNotFoundError, match="1 of 2 images.*b.jpg"):
    boxes.from_coco(tmp_path / "instances.json", tmp_path)
  with pytest.raises(FileNotFoundError, match="none"):
    boxes.from_coco(tmp_path / "instances.json", tmp_path / "none")
  root = tmp_path / "yolo"
  _yolo(root)
  (root / "images" / "train" / "b.jpg").unlink()
  with pytest.raises(FileNotFoundError, match="b.txt"):
    boxes.from_yolo(root, split="train")
  root = tmp_path / "voc"
  _voc(root)
  (root / "JPEGImages" / "b.jpg").unlink()
  with pytest.raises(FileNotFoundError, match="b.xml"):
    boxes.from_voc(root)
  with pytest.raises(FileNotFoundError, match="val.txt"):
    boxes.from_voc(root, split="val")


def test_sources_are_random_access_and_can_be_pickled(tmp_path):
  import pickle

  found = sources.check(_coco(tmp_path))
  again = pickle.loads(pickle.dumps(found))
  assert again[0]["boxes"].tobytes() == found[0]["boxes"].tobytes()
  bare = found.annotation(0)
  assert "image" not in bare and bare.keys() < found[0].keys()


def test_results_and_annotations_go_through_json(tmp_path):
  truth = boxes.ground_truth(_coco(tmp_path))
  path = tmp_path / "deep" / "truth.json"
  coco_json.write_coco_annotations(
    path, truth, names=["cat", "dog"], sizes=[[20, 40]] * 2
  )
  again = coco_json.read_coco_annotations(path)
  for name, column in truth.items():
    np.testing.assert_array_equal(again[name], column)
  assert again["names"] == ["cat", "dog"]
  told = json.loads(path.read_text())
  assert [a["id"] for a in told["annotations"]] == [1, 2]
  dets = {k: truth[k] for k in ("image_id", "category_id", "bbox")}
  dets["score"] = np.array([0.1, 1 / 3])
  results = tmp_path / "results.json"
  coco_json.write_coco_results(results, dets)
  read = coco_json.read_coco_results(results)
  for name, column in dets.items():
    np.testing.assert_array_equal(read[name], column)
  assert (
    pix2seq.coco_ap(again, read)["AP"] == pix2seq.coco_ap(truth, dets)["AP"]
  )
  coco_json.write_coco_results(results, [])
  assert len(coco_json.read_coco_results(results)["score"]) == 0


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("[{", "damaged"),
    ("{}", "is a dict"),
    ('[{"image_id": 1}]', "results.json[0] has no 'category_id'"),
    (
      '[{"image_id": 1, "category_id": 1, "bbox": [1, 1, 1, 1], "score": NaN}]',
      "results.json[0].score=nan",
    ),
    (
      '[{"image_id": 1, "category_id": 1, "bbox": [1, 1, -1, 1], "score": 1}]',
      "negative",
    ),
  ],
)
def test_bad_results_name_file_and_entry(tmp_path, text, words):
  path = tmp_path / "results.json"
  path.write_text(text)
  with pytest.raises(ValueError) as error:
    coco_json.read_coco_results(path)
  assert words in str(error.value) and "results.json" in str(error.value)


def test_a_data_set_without_boxes_is_refused(monkeypatch):
  plain = type("Plain", (), {"features": {"image": 1, "label": 2}})()
  monkeypatch.setattr(sources, "from_tfds", lambda *a, **k: plain)
  with pytest.raises(ValueError, match="without boxes.*image, label"):
    boxes.from_tfds("mnist", split="train")


@pytest.mark.real_data
def test_real_data_sets(data_dir):
  counts = {"bccd": ("test", 72, 945, 3), "coco128": ("train", 128, 929, 80)}
  for name, (split, images, number, classes) in counts.items():
    found = boxes.from_tfds(name, split=split, data_dir=data_dir / "tfds")
    assert isinstance(found, box_sources.TfdsBoxSource)
    assert (len(found), len(found.classes)) == (images, classes)
    examples = [found[i] for i in range(len(found))]
    assert sum(len(e["labels"]) for e in examples) == number
    every = np.concatenate([e["boxes"] for e in examples])
    assert every.min() >= 0 and every.max() <= 1
    labels = np.concatenate([e["labels"] for e in examples])
    assert labels.min() == 1 and labels.max() <= classes
    if name == "coco128":
      assert sum(len(e["labels"]) == 0 for e in examples) == 2
      size = np.concatenate(
        [np.c_[e["boxes"] * np.tile(e["size"], 2)] for e in examples]
      )
      sides = size[:, 2:] - size[:, :2]
      assert (sides.min(axis=1) < 1).sum() == 3
