"""Images with boxes of the usual data sets, each by one function.

`from_coco`, `from_voc`, `from_yolo` and `from_tfds` return sources of

  image     uint8 [height, width, channels], see `image_files`
  boxes     float32 [n, 4], yxyx as shares of the image, in [0, 1]
  labels    int32 [n], from 1; 0 stands for no object everywhere
  area      float32 [n], in pixels of this image: COCO's own, else of the box
  is_crowd  bool [n]
  image_id  int64
  size      int32 [2], height and width of this image

with the attributes `classes` (label l is `classes[l - 1]`) and `category_ids`
(what the data set calls it). The rules:

* Labels are 1, 2, ... in the order of the data set's own classes.
* A box that leaves the image is cut at its edge; one without area inside is
  left out (or, with `bad_boxes='refuse'`, both are errors). NaN and boxes that
  end before they begin are refused. How many were changed is logged.
* Images without boxes are kept.
* Photographs are turned upright by EXIF. Boxes belong to the upright image,
  unless the annotation tells a height and width that are those of the stored
  pixels alone: then they are turned with it. Any other size is refused.
* Ids of images and categories must be distinct; those of annotations are not
  looked at. A file that is missing is named when the source is made.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from locojax.core import boxes as layouts
from locojax.core import checks
from locojax.data import (
  box_sources,
  coco_json,
  folders,
  image_files,
  sources,
  voc_xml,
  yolo_text,
)


def _folder(name: str, path: str | os.PathLike) -> pathlib.Path:
  path = pathlib.Path(path)
  if not path.is_dir():
    raise FileNotFoundError(f"{name}={str(path)!r} is not a folder.")
  return path


def _runs(positions: np.ndarray, number: int) -> list[np.ndarray]:
  """For each of `number` values, where it stands, in order."""
  order = np.argsort(positions, kind="stable")
  cuts = np.searchsorted(positions[order], np.arange(1, number))
  return np.split(order, cuts) if number else []


LABELS = ("contiguous", "raw")
ground_truth = box_sources.ground_truth


def from_coco(
  annotations: str | os.PathLike,
  images: str | os.PathLike,
  *,
  labels: str = "contiguous",
  keep_empty: bool = True,
  mode: str = "RGB",
  bad_boxes: str = "repair",
) -> box_sources.BoxSource:
  """Images and boxes of COCO's JSON, in the order of the file.

  Args:
    annotations: the `instances_*.json`.
    images: the folder that its `file_name` are in.
    labels: `contiguous`: 1 to K in the order of category ids; `raw`: the ids
      themselves, holes among them (COCO's 1 to 90), as the official code does.
    keep_empty: whether images without annotations are examples.
    mode: `L`, `RGB` or `RGBA`.
    bad_boxes: `repair` or `refuse`, see the head of this file.

  Returns:
    A source; `category_ids[label - 1]` is COCO's id.

  Raises:
    FileNotFoundError: the file, the folder or an image is not there.
    ValueError: what `coco_json.read_coco_annotations` refuses; images without
      integer ids or a `file_name`; ids below 1 with `raw`.
  """
  checks.one_of("labels", labels, LABELS)
  truth = coco_json.read_coco_annotations(annotations)
  folder = _folder("images", images)
  for name in ("images", "categories"):
    if truth[name].dtype.kind not in "iu":
      raise ValueError(f"{annotations}: ids of {name} must be integers.")
  for i, name in enumerate(truth["file_names"]):
    if not isinstance(name, str) or not name:
      raise ValueError(
        f"{annotations}: images[{i}].file_name={name!r} must be a text."
      )
  order = np.argsort(truth["categories"])
  ids, names = truth["categories"][order], [truth["names"][i] for i in order]
  own = np.searchsorted(ids, truth["category_id"]) + 1
  if labels == "raw":
    ids, names, own = _raw(annotations, ids, names, truth["category_id"])
  by_image = np.argsort(truth["images"])
  place = by_image[
    np.searchsorted(truth["images"][by_image], truth["image_id"])
  ]
  runs = _runs(place, len(truth["images"]))
  boxes = layouts.xywh_to_yxyx(truth["bbox"])
  found = [
    box_sources.Annotated(
      folder / truth["file_names"][i],
      int(truth["images"][i]),
      tuple(truth["sizes"][i].tolist()) if truth["sizes"][i].all() else None,
      *(boxes[at], own[at].astype(np.int32), truth["area"][at]),
      truth["iscrowd"][at],
    )
    for i, at in enumerate(runs)
    if keep_empty or len(at)
  ]
  return box_sources.BoxSource(
    found,
    names,
    category_ids=ids,
    in_pixels=True,
    mode=mode,
    bad_boxes=bad_boxes,
  )


def _raw(where, ids, names, own):
  """Ids as labels: ids and names of 1 to the largest, with holes."""
  if len(ids) and ids[0] < 1:
    raise ValueError(
      f"{where}: the category id {ids[0]} is not allowed with labels='raw': "
      "it must be 1 or more, as 0 stands for no object."
    )
  known = dict(zip(ids.tolist(), names))
  every = np.arange(1, max(known, default=0) + 1)
  return every, [known.get(i, "") for i in every.tolist()], own


def _class_list(classes: Sequence[str] | None, seen: Iterable[str]):
  """Names and labels of classes; those given, or those seen, sorted."""
  names = sorted(set(seen)) if classes is None else list(classes)
  if len(set(names)) < len(names):
    checks.refuse("classes", names, "distinct names")
  return names, {name: i for i, name in enumerate(names, 1)}


def from_voc(
  root: str | os.PathLike,
  *,
  split: str | None = None,
  classes: Sequence[str] | None = None,
  first_pixel: int = 1,
  keep_difficult: bool = True,
  mode: str = "RGB",
  bad_boxes: str = "repair",
) -> box_sources.BoxSource:
  """Images and boxes of Pascal VOC's XML files, sorted by name.

  Args:
    root: has `Annotations/` and `JPEGImages/`; or XML files beside the images.
      The image of `a.xml` is `a` with the ending of an image, or else what the
      file names.
    split: a list of names in `ImageSets/Main/<split>.txt`; None takes all.
    classes: names in the order of their labels; None takes those that occur,
      sorted.
    first_pixel: 1: VOC's own rule, pixels count from 1 and the last one is in
      the box, which goes from (xmin - 1) to xmax. 0: edges as they are, which
      is what LabelImg and others write.
    keep_difficult: whether objects marked so are kept.
    mode: `L`, `RGB` or `RGBA`.
    bad_boxes: `repair` or `refuse`, see the head of this file.

  Raises:
    FileNotFoundError: a folder, the split, an XML file or an image is missing.
    ValueError: an XML file that cannot be read (see `voc_xml`), or a class that
      is not among those given; the file is named.
  """
  checks.one_of("first_pixel", first_pixel, (0, 1))
  root = _folder("root", root)
  flat = not (root / "Annotations").is_dir()
  where = root if flat else root / "Annotations"
  images = root if flat else root / "JPEGImages"
  paths = _voc_files(root, where, split)
  told = [voc_xml.read(path) for path in paths]
  names, label = _class_list(classes, (n for t in told for n in t.names))
  found = []
  for i, (path, t) in enumerate(zip(paths, told), 1):
    unknown = [n for n in t.names if n not in label]
    if unknown:
      raise ValueError(
        f"{path} has the class {unknown[0]!r}, which is none of {names}."
      )
    keep = np.ones(len(t.names), bool) if keep_difficult else ~t.difficult
    boxes = t.boxes[keep] - np.array([first_pixel, first_pixel, 0, 0])
    labels = np.array([label[n] for n in t.names], np.int32)[keep]
    number = len(boxes)
    found.append(
      box_sources.Annotated(
        _voc_image(path, images, t.filename),
        *(i, t.size, boxes, labels),
        *(np.full(number, np.nan), np.zeros(number, bool)),
      )
    )
  return box_sources.BoxSource(
    found, names, in_pixels=True, mode=mode, bad_boxes=bad_boxes
  )


def _voc_files(root, where, split: str | None) -> list[pathlib.Path]:
  """The XML files, those of a split or all."""
  if split is None:
    found = [
      p
      for p in folders.visible(where, deep=False)
      if p.suffix.lower() == ".xml"
    ]
    if not found:
      raise ValueError(f"{where} has no .xml file.")
    return found
  listed = root / "ImageSets" / "Main" / f"{split}.txt"
  if not listed.is_file():
    raise FileNotFoundError(f"split={split!r}: {listed} is not there.")
  names = [line.split()[0] for _, line in sources.lines_of(listed)]
  found = [where / f"{name}.xml" for name in names]
  missing = [str(p) for p in found if not p.is_file()]
  if missing or not found:
    raise FileNotFoundError(f"{listed}: no file {missing or '(none listed)'}.")
  return found


def _voc_image(path, images: pathlib.Path, filename: str | None):
  """The image of an XML file: of the same name, else the one it names."""
  for suffix in image_files.SUFFIXES:
    for ending in (suffix, suffix.upper()):
      beside = images / f"{path.stem}{ending}"
      if beside.is_file():
        return beside
  if filename is not None:
    return images / pathlib.PurePosixPath(filename.replace("\\", "/")).name
  raise FileNotFoundError(f"{path}: no image {images / path.stem}.*.")


def from_yolo(
  root: str | os.PathLike,
  *,
  split: str | None = None,
  classes: Sequence[str] | None = None,
  mode: str = "RGB",
  bad_boxes: str = "repair",
) -> box_sources.BoxSource:
  """Images and boxes of YOLO's text files, sorted by name.

  Args:
    root: has `images/` and `labels/` with the same names in both, below; or
      `SPLIT/images/` and `SPLIT/labels/`; or images with text files beside
      them. An image without a text file has no objects.
    split: a sub-folder of `images/` and `labels/`, or the folder that has
      both; None takes all of `images/`.
    classes: names of classes 0, 1, ...; None takes those of `classes.txt` or
      `obj.names` in `root` (a name a line), else of `data.yaml` (its `names`,
      the rest of it is not read), else the numbers themselves. Label 1 is 0.
    mode: `L`, `RGB` or `RGBA`.
    bad_boxes: `repair` or `refuse`, see the head of this file.

  Raises:
    FileNotFoundError: a folder, or the image of a text file is missing.
    ValueError: no images; a text file that cannot be read, or a class beyond
      the names; file and line are named.
  """
  root = _folder("root", root)
  images, labels = _yolo_folders(root, split)
  names = _yolo_names(root) if classes is None else list(classes)
  texts, taken = _yolo_texts(labels), {}
  files = [
    p for p in folders.visible(images, deep=True) if image_files.is_image(p)
  ]
  read, found = [], []
  for i, file in enumerate(files, 1):
    key = file.relative_to(images).with_suffix("").as_posix()
    path = texts.pop(key, None)
    if key in taken:
      raise ValueError(
        f"{taken[key]} belongs to {file} and to another image of that name."
      )
    if path is not None:
      taken[key] = path
    told = _no_labels() if path is None else yolo_text.read(path)
    _check_classes(told, names, path)
    read.append(told)
    number = len(told.classes)
    found.append(
      box_sources.Annotated(
        *(file, i, None, told.boxes, (told.classes + 1).astype(np.int32)),
        *(np.full(number, np.nan), np.zeros(number, bool)),
      )
    )
  if texts:
    raise FileNotFoundError(
      f"{len(texts)} label files have no image in {images}, such as "
      f"{next(iter(texts.values()))}."
    )
  if names is None:
    most = max((int(t.classes.max(initial=-1)) for t in read), default=-1)
    names = [str(i) for i in range(most + 1)]
  return box_sources.BoxSource(
    found, names, in_pixels=False, mode=mode, bad_boxes=bad_boxes
  )


def _yolo_folders(root, split) -> tuple[pathlib.Path, pathlib.Path]:
  sub = pathlib.Path() if split is None else pathlib.Path(split)
  if (root / "images").is_dir():
    places = root / "images" / sub, root / "labels" / sub
  elif (root / sub / "images").is_dir():
    places = root / sub / "images", root / sub / "labels"
  else:
    places = root / sub, root / sub
  return _folder("images", places[0]), _folder("labels", places[1])


_YOLO_NAMES = ("classes.txt", "obj.names")


def _yolo_names(root: pathlib.Path) -> list[str] | None:
  for name in _YOLO_NAMES:
    if (root / name).is_file():
      return [line.strip() for _, line in sources.lines_of(root / name)]
  path = root / "data.yaml"
  return _yaml_names(path) if path.is_file() else None


def _yaml_names(path: pathlib.Path) -> list[str] | None:
  """`names`: a list, or a name for each of 0, 1, ..."""
  import yaml  # few need it

  try:
    told = yaml.safe_load(path.read_text("utf-8"))
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is no YAML: {error}") from error
  names = told.get("names") if isinstance(told, dict) else None
  if isinstance(names, dict):
    if sorted(names, key=str) != sorted(range(len(names)), key=str):
      what = "names of classes 0, 1, ..., none left out"
      checks.refuse(f"names of {path}", names, what)
    names = [names[i] for i in range(len(names))]
  if names is None:
    return None
  if not isinstance(names, list):
    checks.refuse(f"names of {path}", names, "a list, or names by number")
  return [str(name) for name in names]


def _yolo_texts(labels: pathlib.Path) -> dict[str, pathlib.Path]:
  """Label files by their path below the folder, without the ending."""
  return {
    p.relative_to(labels).with_suffix("").as_posix(): p
    for p in folders.visible(labels, deep=True)
    if p.suffix.lower() == ".txt" and p.name not in _YOLO_NAMES
  }


def _no_labels() -> yolo_text.Labels:
  return yolo_text.Labels(np.zeros(0, np.int64), np.zeros((0, 4)), ())


def _check_classes(told: yolo_text.Labels, names, path) -> None:
  if names is not None and len(told.classes):
    i = int(np.argmax(told.classes))
    if told.classes[i] >= len(names):
      raise ValueError(
        f"{path}, line {told.lines[i]}: class {told.classes[i]} is not allowed:"
        f" it must be below {len(names)}, the number of names."
      )


def from_tfds(
  name: str,
  *,
  split: str,
  data_dir: str | os.PathLike | None = None,
  download: bool = False,
  bad_boxes: str = "repair",
) -> box_sources.TfdsBoxSource:
  """A tfds data set with boxes: `bccd`, `coco/2017`, `voc/2007` and the like.

  Args:
    name, split, data_dir, download: see `sources.from_tfds`.
    bad_boxes: `repair` or `refuse`, when an example is read.

  Returns:
    A source. Areas and crowds are those of the data set if it has them; ids of
    images its `image/id`, else 1, 2, ... in its order.

  Raises:
    FileNotFoundError, ImportError: as `sources.from_tfds`.
    ValueError: as it, or the data set has no boxes.
  """
  checks.one_of("bad_boxes", bad_boxes, box_sources.BAD_BOXES)
  source = sources.from_tfds(
    name, split=split, data_dir=data_dir, download=download
  )
  features = source.features
  objects = getattr(dict(features.items()).get("objects"), "feature", {})
  if not {"bbox", "label"} <= set(objects):
    raise ValueError(
      f"name={name!r} is a data set without boxes: it needs `objects` with "
      f"`bbox` and `label`; it has {', '.join(features)}."
    )
  return box_sources.TfdsBoxSource(source, objects["label"].names, bad_boxes)
