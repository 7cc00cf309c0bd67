"""Streams of tasks by config, as arrays in memory.

split      classes of a set dealt out to tasks
several    a set for each task
rotated    the classes of a set in every task, its images turned further
gaussian   classes of a set come and go, without boundaries
folder     the user's own: `path/<task>/<class>/<image>`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import places, trained_on
from experiments.l2p import sets
from locojax.data import (
  continual,
  continual_folders,
  continual_streams,
  sources,
)

KINDS = ("split", "several", "rotated", "gaussian", "folder")
Arrays = dict[str, np.ndarray]
# The last task of `rotated` is turned by so many degrees.
_TURN = 150.0


@dataclasses.dataclass(frozen=True)
class Stream:
  """Tasks as arrays.

  Attributes:
    trains, tests: `image` uint8, `label` int32, of each task; the train set of
      a stream without boundaries is in its order, with `class_mask`.
    names: of the tasks, for tables and figures.
    class_ids: classes of each task; without boundaries each class is one, for
      measuring alone.
    num_classes: C.
    boundaries: whether tasks have an end.
  """

  trains: tuple[Arrays, ...]
  tests: tuple[Arrays, ...]
  names: tuple[str, ...]
  class_ids: tuple[tuple[int, ...], ...]
  num_classes: int
  boundaries: bool = True

  @property
  def num_stages(self) -> int:
    """How many times a learner is trained."""
    return len(self.trains)


def class_groups(data: Mapping[str, Any]) -> tuple[tuple[int, ...], ...] | None:
  """Classes of each task, without looking at data; None if they must be read.

  Args:
    data: of the config.
  """
  kind, names = data["kind"], data["names"]
  if kind == "folder":
    return None
  counts = [sets.num_classes(name) for name in names]
  if kind == "several":
    ends = np.cumsum([0, *counts])
    pairs = zip(ends[:-1], ends[1:], strict=True)
    return tuple(tuple(range(a, b)) for a, b in pairs)
  if kind == "rotated":
    return (tuple(range(counts[0])),) * data["num_tasks"]
  num = counts[0] if kind == "gaussian" else data["num_tasks"]
  groups = np.array_split(np.arange(counts[0]), num)
  return tuple(tuple(g.tolist()) for g in groups)


def _set(name: str, data, rows=slice(None)) -> tuple[Any, Any]:
  """Train and test sources of a set."""
  found = sets.load(
    name, data, train=data["train_per_class"], test=data["test_per_class"]
  )
  return tuple(
    sources.from_arrays({k: v[rows] for k, v in found[s].items()})
    for s in ("train", "test")
  )


def _turned(source, degrees: float):
  from PIL import Image

  images = source.arrays["image"]
  turn = lambda x: Image.fromarray(x).rotate(degrees, Image.Resampling.BILINEAR)
  flat = images[..., 0] if images.shape[-1] == 1 else images
  new = np.stack([np.asarray(turn(x)) for x in flat]).reshape(images.shape)
  return sources.from_arrays({**source.arrays, "image": new})


def _rotated(data) -> continual.Scenario:
  """Each task has its own share of the training images."""
  num = data["num_tasks"]
  angles = np.linspace(0, _TURN, num)
  train, test = _set(data["names"][0], data)
  parts = [
    sources.from_arrays({k: v[i::num] for k, v in train.arrays.items()})
    for i in range(num)
  ]
  return continual.domain_incremental(
    [_turned(p, a) for p, a in zip(parts, angles, strict=True)],
    [_turned(test, a) for a in angles],
    names=[f"{a:.0f} degrees" for a in angles],
  )


def _folders(data) -> continual.Scenario:
  side = (data["image_size"],) * 2
  try:
    return continual_folders.from_folders(
      places.expanded(data["path"]),
      shared_classes=data["shared_classes"],
      test_share=None if data["has_test"] else data["test_share"],
      seed=None if data["has_test"] else data["seed"],
      mode="L" if data["channels"] == 1 else "RGB",
      size=side,
    )
  except ValueError as error:
    raise ValueError(
      f"data.path={data['path']!r}: {error} (Settings: data.has_test, whether "
      "it has the folders train and test; data.test_share, what is kept back "
      "otherwise; data.shared_classes, whether tasks have the same classes.)"
    ) from error


def _scenario(data) -> continual.Scenario:
  kind, names = data["kind"], data["names"]
  if kind == "folder":
    return _folders(data)
  if kind == "rotated":
    return _rotated(data)
  if kind == "several":
    counts = {n: sets.num_classes(n) for n in names}
    found = {n: _set(n, data) for n in names}
    return continual.several_datasets(found, num_classes=counts)
  return continual.split_classes(*_set(names[0], data), data["num_tasks"])


def _arrays(source) -> Arrays:
  found = sources.as_arrays(source)
  return {**found, "label": np.asarray(found["label"], np.int32)}


def _task_name(task: continual.Task, first: int) -> str:
  """Its own name, or its classes, counted from that of the set's name."""
  ids = [first + c for c in task.class_ids]
  if task.name:
    return task.name
  return f"{ids[0]}-{ids[-1]}" if len(ids) > 1 else str(ids[0])


@trained_on.cached(lambda data: dict(data))
def _load(data: tuple) -> Stream:
  data = dict(data)
  found = _scenario(data)
  first = 0
  if data["kind"] == "split":
    _, first, _ = sets.parse("data.names", data["names"][0])
  return Stream(
    trains=tuple(_arrays(t.train) for t in found.tasks),
    tests=tuple(_arrays(t.test) for t in found.tasks),
    names=tuple(_task_name(t, first) for t in found.tasks),
    class_ids=tuple(t.class_ids for t in found.tasks),
    num_classes=found.num_classes,
  )


def _without_boundaries(config, data) -> Stream:
  """One stage; the tests of each class by themselves."""
  train, test = _set(data["names"][0], data)
  found = continual_streams.gaussian_schedule(
    train,
    test,
    batch_size=config.batch_size,
    seed=config.seed,
    num_episodes=config.gaussian.num_episodes,
    steps_per_episode=config.gaussian.steps_per_episode,
    std=config.gaussian.std,
  )
  labels = test.arrays["label"]
  classes = range(found.num_classes)
  return Stream(
    trains=(_arrays(found.tasks[0].train),),
    tests=tuple(
      {k: v[labels == c] for k, v in test.arrays.items()} for c in classes
    ),
    names=tuple(map(str, classes)),
    class_ids=tuple((c,) for c in classes),
    num_classes=found.num_classes,
    boundaries=False,
  )


def load(config) -> Stream:
  """The stream of a config; one without boundaries depends on its seed.

  Raises:
    ValueError: data that make no stream; names what is wrong.
    FileNotFoundError: a set is not there; says how to get it.
  """
  data = config.data.to_dict()
  if data["kind"] == "gaussian":
    return _without_boundaries(config, data)
  return _load(tuple(sorted(data.items())))


def union(parts: tuple[Arrays, ...]) -> Arrays:
  """Several tasks as one."""
  names = [n for n in ("image", "label", "query") if n in parts[0]]
  return {n: np.concatenate([p[n] for p in parts]) for n in names}
