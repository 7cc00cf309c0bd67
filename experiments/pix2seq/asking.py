"""What a finished run is asked: detections, curves, pictures, other settings.

In its folder: `detections.json`, COCO's results of the whole test set, and
`truth.json`, its images and true boxes as COCO's annotations;
`asked.json`, curves of precision and recall, what is said of the first images
and the scores with other settings; `classes.json`, what labels are called, so
that the run finds objects in other images without its data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.pix2seq import detectors, scoring, sets
from locojax.core import files, types
from locojax.data import coco_json
from locojax.train import distributed

DETECTIONS, ASKED, CLASSES = "detections.json", "asked.json", "classes.json"
TRUTH = "truth.json"
_REMEDY = "remove it, to ask the run again"


def detections(
  config, found: sets.Sets, detect: scoring.Detector
) -> dict[str, np.ndarray]:
  """Detections of the test set of a run as columns of `coco_tables`."""
  return scoring.detections(
    detect,
    found.test,
    found.truth["images"],
    found.category_ids,
    image_size=config.data.image_size,
    batch_size=config.eval_batch_size,
  )


def wanted(config, detector: detectors.Detector) -> list[tuple[str, float]]:
  """Settings and values that a method is asked with besides its own."""
  if detector.vocab is None:
    return []
  name = "eos_offset" if detector.stops else "top_p"
  return [(name, float(v)) for v in config.sweeps[name]]


def _asked(asker: detectors.Asker, name: str, value: float):
  """The settings of a sweep; tokens are drawn for top-p alone."""
  changes = {name: value} | ({"temperature": 1.0} if name == "top_p" else {})
  return dataclasses.replace(asker.default(), **changes)


def _in_mesh(state: types.TrainState) -> contextlib.AbstractContextManager:
  mesh = getattr(state.step.sharding, "mesh", None)
  return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def read(where: pathlib.Path) -> dict[str, Any]:
  """What a run was asked so far; empty if nothing."""
  path = pathlib.Path(where) / ASKED
  return files.read_json(path, remedy=_REMEDY) if path.exists() else {}


def _numbers(config, found: sets.Sets, detect) -> dict[str, float]:
  """Scores, and detections an image above `score_shown`."""
  dets = detections(config, found, detect)
  above = int((dets["score"] >= config.score_shown).sum())
  return {
    **scoring.score(found.truth, dets),
    "detections": above / len(found.test),
  }


def _shown(config, found: sets.Sets, detect) -> list[dict[str, Any]]:
  """What is said of the first images, in shares of the canvas."""
  said = detect(scoring.first(config, found.test))
  num = min(config.num_pictures, len(found.test))
  one = lambda i: {
    "boxes": said.boxes[i].tolist(),
    "labels": said.classes[i].tolist(),
    "scores": said.scores[i].tolist(),
    "tokens": said.tokens[i].tolist(),
  }
  return [one(i) for i in range(num)]


def _write_classes(where: pathlib.Path, found: sets.Sets, num: int) -> None:
  files.write_json(
    where / CLASSES,
    {
      "classes": list(found.classes),
      "category_ids": np.asarray(found.category_ids).tolist(),
      "num_classes": num,
    },
  )


def _write_truth(where: pathlib.Path, found: sets.Sets) -> None:
  coco_json.write_coco_annotations(
    where / TRUTH,
    found.truth,
    names=found.classes,
    file_names=found.test_files,
  )


def ask(
  config,
  where: pathlib.Path,
  final: Callable[[], types.TrainState],
  found: sets.Sets,
  num_classes: int,
) -> Mapping[str, Any]:
  """Asks a finished run what its folder does not say yet.

  Args:
    config: of the run.
    where: its folder.
    final: gives its final state.
    found: its sets.
    num_classes: of its vocabulary.

  Returns:
    `asked.json`: `curves`, `shown`, and rows `sweeps`.
  """
  detector = detectors.make(config, num_classes)
  out = read(where)
  asked = {(r["setting"], r["value"]) for r in out.get("sweeps", ())}
  left = [w for w in wanted(config, detector) if w not in asked]
  pictures = min(config.num_pictures, len(found.test))
  enough = len(out.get("shown", ())) >= pictures and "curves" in out
  if distributed.is_main() and not (where / TRUTH).exists():
    _write_truth(where, found)
  if enough and not left and (where / DETECTIONS).exists():
    return out
  state, asker = final(), detectors.Asker(config, detector)
  with _in_mesh(state):
    detect = asker.on(state)
    dets = detections(config, found, detect)
    out["curves"] = scoring.curves(found.truth, dets)
    out["shown"] = _shown(config, found, detect)
    out.setdefault("sweeps", [])
    for name, value in left:
      numbers = _numbers(
        config, found, asker.on(state, _asked(asker, name, value))
      )
      out["sweeps"].append({"setting": name, "value": value, **numbers})
  if distributed.is_main():
    coco_json.write_coco_results(where / DETECTIONS, dets)
    _write_classes(where, found, num_classes)
    files.write_json(where / ASKED, out)
  return out
