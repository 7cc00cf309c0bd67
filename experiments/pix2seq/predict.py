"""Finds objects in your images, and scores detections of any detector.

  python -m experiments.pix2seq.predict detect --run RUNS/augmented/seed_0 \\
    --images FOLDER --out detections.json
  python -m experiments.pix2seq.predict score --truth instances.json \\
    --found detections.json

`detect` writes COCO's results of all images of a folder, and beside them
`detections.images.json`, which tells their ids. With `--truth` the images are
those of a COCO annotation file, with its ids and categories (matched by name),
so that the results can be scored. `score` prints COCO's twelve numbers and
those of each class; the detections may be anybody's.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common import commands
from experiments.pix2seq import detectors, restored, scoring
from locojax.core import checks, files
from locojax.data import coco_json, folders, image_files
from locojax.methods import pix2seq
from locojax.report import tables


class Images:
  """Image files without boxes, as examples of `locojax.data.boxes`.

  Args:
    paths: of the files.
  """

  def __init__(self, paths: Sequence[pathlib.Path]):
    self.paths = list(paths)

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = image_files.read_image(self.paths[index], mode="RGB")
    return {
      "image": image,
      "boxes": np.zeros((0, 4), np.float32),
      "labels": np.zeros(0, np.int32),
      "size": np.array(image.shape[:2], np.int32),
    }


def _of_folder(folder: pathlib.Path) -> tuple[Images, np.ndarray]:
  """All images at any depth, numbered from 1."""
  if not folder.is_dir():
    checks.refuse("--images", str(folder), "a folder of images")
  paths = [
    p for p in folders.visible(folder, deep=True) if image_files.is_image(p)
  ]
  if not paths:
    checks.refuse("--images", str(folder), "a folder with an image in it")
  _check_readable(paths)
  return Images(paths), np.arange(1, len(paths) + 1)


def _check_readable(paths: Sequence[pathlib.Path]) -> None:
  """Before the first of them is asked about."""
  broken = []
  for path in paths:
    try:
      image_files.read_header(path)
    except ValueError as error:
      broken.append(str(error))
  if broken:
    raise ValueError(
      f"--images: {len(broken)} of {len(paths)} cannot be read: {broken[0]}"
    )


def _of_truth(path: str, folder: pathlib.Path, classes: Sequence[str]):
  """Images of an annotation file, their ids, and ids of the run's classes."""
  truth = coco_json.read_coco_annotations(path)
  names = [folder / str(name) for name in truth["file_names"]]
  missing = [str(p) for p in names if not p.is_file()]
  if missing:
    raise ValueError(
      f"--images={str(folder)!r}: {len(missing)} of the {len(names)} images of "
      f"{path} are not there, such as {missing[0]}."
    )
  ids = dict(zip(truth["names"], truth["categories"].tolist()))
  unknown = [c for c in classes if c not in ids]
  if unknown:
    raise ValueError(
      f"--truth={path!r} has no category {unknown[0]!r}, a class of the run; "
      f"it has {sorted(ids)}."
    )
  return Images(names), truth["images"], np.array([ids[c] for c in classes])


def detect(
  run: str,
  images: str,
  *,
  truth: str | None = None,
  batch_size: int | None = None,
  least: float = 0.0,
  asked: detectors.Asked | None = None,
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
  """Detections of a folder of images.

  Args:
    run: folder of a run.
    images: the folder.
    truth: an annotation file that says which images, or None for all.
    batch_size: images of a batch; None takes that of the run's evaluation.
    least: scores below it are left out.
    asked: how the model is asked; None as its config says.

  Returns:
    Columns of `coco_tables`, and of each image `id` and `file_name`.

  Raises:
    ValueError: a folder that is none, classes that the truth does not have.
  """
  found, folder = restored.load(run), pathlib.Path(images)
  if truth is None:
    source, ids = _of_folder(folder)
    category_ids = found.category_ids
  else:
    source, ids, category_ids = _of_truth(truth, folder, found.classes)
  asker = detectors.Asker(found.config, found.detector)
  dets = scoring.detections(
    asker.on(found.state, asked),
    source,
    ids,
    category_ids,
    image_size=found.config.data.image_size,
    batch_size=batch_size or min(found.config.eval_batch_size, len(source)),
  )
  keep = dets["score"] >= least
  names = [str(p.relative_to(folder)) for p in source.paths]
  told = [
    {"id": int(i), "file_name": name} for i, name in zip(ids.tolist(), names)
  ]
  return {k: v[keep] for k, v in dets.items()}, told


def score(truth: str, found: str) -> tuple[dict[str, Any], list[dict]]:
  """COCO's numbers of a results file, and a row for each class.

  Args:
    truth: an annotation file.
    found: a results file, of any detector.

  Raises:
    ValueError: what `coco_ap` refuses.
  """
  columns = coco_json.read_coco_annotations(truth)
  names = dict(zip(columns["categories"].tolist(), columns["names"]))
  numbers = pix2seq.coco_ap(columns, coco_json.read_coco_results(found))
  rows = [
    {
      "class": names[k],
      **{n: v[n] if v[n] >= 0 else None for n in scoring.NUMBERS[:3]},
      "AR100": v["AR100"] if v["AR100"] >= 0 else None,
    }
    for k, v in numbers.pop("per_class").items()
  ]
  return numbers, rows


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m experiments.pix2seq.predict",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  several = parser.add_subparsers(dest="what", required=True)
  one = several.add_parser("detect", help="find objects in a folder of images")
  one.add_argument("--run", required=True, help="folder of a run")
  one.add_argument("--images", required=True, help="folder of images")
  one.add_argument("--out", required=True, help="results file to write")
  one.add_argument("--truth", help="COCO annotations that list the images")
  one.add_argument("--batch_size", type=int)
  one.add_argument("--least", type=float, default=0.0, help="score")
  one.add_argument("--temperature", type=float, help="0: the best token")
  one.add_argument("--top_p", type=float)
  other = several.add_parser("score", help="score a results file")
  other.add_argument("--truth", required=True, help="COCO annotations")
  other.add_argument("--found", required=True, help="COCO results")
  return parser


def _asked(args: argparse.Namespace) -> detectors.Asked | None:
  """How the model is asked; None if nothing is said."""
  if args.temperature is None and args.top_p is None:
    return None
  temperature = 1.0 if args.temperature is None else args.temperature
  top_p = 1.0 if args.top_p is None else args.top_p
  checks.nonnegative("--temperature", temperature)
  checks.in_range("--top_p", checks.positive("--top_p", top_p), 0.0, 1.0)
  return detectors.Asked(temperature=temperature, top_p=top_p)


def main(argv: Sequence[str]) -> None:
  """Detects or scores."""
  args = _parser().parse_args(argv)
  if args.what == "score":
    numbers, rows = score(args.truth, args.found)
    print(tables.render([numbers], list(numbers), digits=3))
    print(f"\n{tables.render(rows, list(rows[0]), digits=3)}" if rows else "")
    return
  if args.batch_size is not None:
    checks.positive_int("--batch_size", args.batch_size)
  dets, images = detect(
    args.run,
    args.images,
    truth=args.truth,
    batch_size=args.batch_size,
    least=checks.in_range("--least", args.least, 0.0, 1.0),
    asked=_asked(args),
  )
  out = pathlib.Path(args.out)
  coco_json.write_coco_results(out, dets)
  files.write_json(out.with_name(f"{out.stem}.images.json"), images)
  num = len(dets["score"])
  print(f"{num} detections in {len(images)} images: {out}")


if __name__ == "__main__":
  sys.exit(commands.run(lambda: main(sys.argv[1:])))
