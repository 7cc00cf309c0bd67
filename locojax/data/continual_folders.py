"""Continual streams of the user's own images, a folder for each task."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.data import continual, folders, image_files

_SPLITS = ("train", "test")


def from_folders(
  root: str | os.PathLike,
  *,
  shared_classes: bool = False,
  test_share: float | None = None,
  seed: int | None = None,
  mode: str = "RGB",
  size: tuple[int, int] | None = None,
) -> continual.Scenario:
  """Images of the user: `root/<task>/<class>/<image>`, tasks in sorted order.

  Or `root/train/<task>/<class>/<image>` and `root/test/...` likewise, if root
  has these two folders and no other.

  Args:
    root: the folder; hidden files are passed over, as by `image_files`.
    shared_classes: False: classes are new in each task (class-incremental), so
      a name in two tasks is refused. True: a name is the same class in all
      tasks (domain-incremental).
    test_share: the share of each class of a task that is for testing, in (0,
      1), at least one image and not all; only without `root/test`.
    seed: of that choice, in [0, 2^32).
    mode: `L`, `RGB` or `RGBA`.
    size: (height, width) to resize to; None keeps each image's own.

  Returns:
    A `Scenario` with the names of tasks and classes.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: no task, a task without a class or a class without an image, a
      class in two tasks, tasks or classes that train and test do not share, a
      class with too few images to share.
  """
  checks.boolean("shared_classes", shared_classes)
  root = pathlib.Path(root)
  if not root.is_dir():
    raise FileNotFoundError(f"root={str(root)!r} is not a folder.")
  read = {"mode": mode, "size": size}
  if {p.name for p in _folders(root)} == set(_SPLITS):
    if test_share is not None or seed is not None:
      raise ValueError(
        f"test_share={test_share!r}, seed={seed!r} are not allowed: root has a "
        "folder `test`."
      )
    found = {s: _task_folders(root / s, read) for s in _SPLITS}
    _check_same_names(root, found)
  else:
    if test_share is None:
      raise ValueError(
        "test_share=None is not allowed: root is not made of the folders "
        "`train` and `test`."
      )
    checks.between("test_share", test_share, 0, 1)
    checks.seed("seed", seed)
    found = _shared_out(_task_folders(root, read), test_share, seed)
  return _folder_scenario(found, shared_classes)


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
  return [p for p in folders.visible(root, deep=False) if p.is_dir()]


def _task_folders(root: pathlib.Path, read) -> dict[str, Any]:
  tasks = _folders(root)
  if not tasks:
    raise ValueError(f"root={str(root)!r} has no sub-folders, one per task.")
  return {p.name: image_files.from_image_folder(p, **read) for p in tasks}


def _check_same_names(root, found) -> None:
  train, test = found["train"], found["test"]
  if train.keys() != test.keys():
    raise ValueError(
      f"{root}: train has the tasks {sorted(train)} and test {sorted(test)}: "
      "they must be equal."
    )
  for name in train:
    if train[name].classes != test[name].classes:
      raise ValueError(
        f"{root}: the task {name!r} has the classes {train[name].classes} in "
        f"train and {test[name].classes} in test: they must be equal."
      )


def _shared_out(tasks, test_share, seed) -> dict[str, dict[str, Any]]:
  """Each class of each task cut in two, by a permutation of its images."""
  out = {"train": {}, "test": {}}
  rng = np.random.default_rng(seed)
  for name, source in tasks.items():
    labels = np.asarray(source.labels)
    is_test = np.zeros(len(labels), bool)
    for label, class_name in enumerate(source.classes):
      rows = np.flatnonzero(labels == label)
      if len(rows) < 2:
        raise ValueError(
          f"the class {class_name!r} of the task {name!r} has 1 image: with "
          "test_share it needs 2 or more."
        )
      num = int(np.clip(round(test_share * len(rows)), 1, len(rows) - 1))
      is_test[rng.permutation(rows)[:num]] = True
    out["train"][name] = source.subset(np.flatnonzero(~is_test))
    out["test"][name] = source.subset(np.flatnonzero(is_test))
  return out


def _folder_scenario(found, shared_classes) -> continual.Scenario:
  names: list[str] = []
  if shared_classes:
    names = sorted({c for s in found["train"].values() for c in s.classes})
  tasks = []
  for i, (task, source) in enumerate(found["train"].items()):
    if not shared_classes:
      twice = sorted(set(names) & set(source.classes))
      if twice:
        raise ValueError(
          f"the task {task!r} has the classes {twice}, which an earlier task "
          "has: that is not allowed unless shared_classes=True."
        )
      names += source.classes
    table = np.array([names.index(c) for c in source.classes])
    moved = [continual.relabelled(found[s][task], table) for s in _SPLITS]
    ids = tuple(sorted(table.tolist()))
    tasks.append(continual.Task(*moved, ids, i, task))
  return continual.Scenario(tuple(tasks), len(names), tuple(names))
