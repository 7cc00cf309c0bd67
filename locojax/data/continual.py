"""Continual streams: tasks one after the other, or no tasks at all.

  split_classes       new classes in each task (class-incremental)
  several_datasets    a data set for each task, labels one after the other
  domain_incremental  the same classes in each task, other inputs
  joint               all tasks as one: the upper bound

and in files of their own

  continual_folders.from_folders       the user's images, a folder for each task
  continual_streams.gaussian_schedule  classes that come and go, no boundaries

Each gives a `Scenario` of `Task`s, whose train and test sets are random-access
sources for the pipeline. Nothing is random but by `seed`. A stream without
boundaries is one task with `task_id` None, whose train set is in the order of
the stream: read it with `shuffle=False`, so that batch k is rows
[k b, (k + 1) b) for any number of processes and from any start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.data import image_files, sources

LABEL, CLASS_MASK = "label", "class_mask"
_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Task:
  """What is learned between two boundaries, and what measures it.

  Attributes:
    train, test: sources with a `label`, an integer of the whole stream.
    class_ids: its classes, in order.
    task_id: its place in the stream; None in a stream without boundaries.
    name: of a data set, domain or folder; empty if it has none.
  """

  train: sources.Source
  test: sources.Source
  class_ids: tuple[int, ...]
  task_id: int | None
  name: str = ""


@dataclasses.dataclass(frozen=True)
class Scenario:
  """Tasks in order.

  Attributes:
    tasks: at least one.
    num_classes: C, of the whole stream.
    class_names: C names; empty where labels have none.
  """

  tasks: tuple[Task, ...]
  num_classes: int
  class_names: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.tasks)


def labels_of(source: sources.Source, *, label: str = LABEL) -> np.ndarray:
  """The labels of a source, `[n]` int64; images need not be read for them.

  Of arrays and image folders at once; of other sources by reading each example.

  Raises:
    ValueError: no such entry, or labels that are no single integers.
  """
  sources.check(source)
  if isinstance(source, sources.ArraySource):
    found = source.arrays.get(label)
  elif isinstance(source, image_files.ImageFolderSource) and label == LABEL:
    found = source.labels
  elif label in source[0]:
    found = [source[i][label] for i in range(len(source))]
  else:
    found = None
  if found is None:
    raise ValueError(
      f"label={label!r} is not allowed: examples have the names "
      f"{sorted(source[0])}."
    )
  found = checks.integers(label, np.asarray(found), np.int64)
  if found.ndim != 1:
    raise ValueError(
      f"{label} of shape {found.shape} is not allowed: it must be one integer "
      "for each example."
    )
  return found


def classes_in(name: str, labels: np.ndarray) -> np.ndarray:
  """The classes of labels, in order; `name` for the error of negative ones."""
  if labels.min() < 0:
    raise ValueError(
      f"{name} has the label {labels.min()}, which is not allowed: labels must "
      "be 0 or more."
    )
  return np.unique(labels)


def _rows(source, labels, class_ids, where: str) -> sources.Source:
  rows = np.flatnonzero(np.isin(labels, class_ids))
  if not rows.size:
    raise ValueError(
      f"{where} has no example of the classes {list(class_ids)}: a task needs "
      "at least one."
    )
  return sources.subset(source, rows)


def split_groups(
  train: sources.Source,
  test: sources.Source,
  groups: Sequence[Sequence[int]],
  *,
  label: str = LABEL,
  allow_repeats: bool = False,
  allow_left_out: bool = False,
) -> Scenario:
  """Tasks of the classes that you say. Labels stay as they are.

  Args:
    train, test: sources of examples with an integer label.
    groups: for each task its classes.
    label: the name of the labels.
    allow_repeats: whether a class may be in several tasks (all its examples in
      each).
    allow_left_out: whether a class of `train` may be in no task.

  Returns:
    A `Scenario`; `num_classes` is the largest label of `train` plus 1.

  Raises:
    ValueError: no task, a task without classes or without examples; a class in
      two tasks, in one twice, or in none.
  """
  _check_sequence("groups", groups)
  known = labels_of(train, label=label)
  test_labels = labels_of(test, label=label)
  classes = classes_in("train", known)
  groups = [tuple(_group(i, g)) for i, g in enumerate(groups)]
  _check_groups(groups, classes, allow_repeats, allow_left_out)
  tasks = tuple(
    Task(
      _rows(train, known, ids, f"train of task {i}"),
      _rows(test, test_labels, ids, f"test of task {i}"),
      ids,
      i,
    )
    for i, ids in enumerate(groups)
  )
  return Scenario(tasks, int(classes.max()) + 1)


def _check_sequence(name: str, values: Any) -> None:
  if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
    checks.refuse(name, values, "a list, one entry for each task")
  if not len(values):
    raise ValueError(f"{name} is empty: there must be at least one task.")


def _group(index: int, group: Any) -> list[int]:
  name = f"groups[{index}]"
  found = checks.integers(name, group, np.int64)
  if found.ndim != 1 or not found.size:
    checks.refuse(name, group, "a list of classes, not empty")
  if len(set(found.tolist())) < found.size:
    checks.refuse(name, group, "a list of classes, each of them once")
  return found.tolist()


def _check_groups(groups, classes, allow_repeats, allow_left_out) -> None:
  checks.boolean("allow_repeats", allow_repeats)
  checks.boolean("allow_left_out", allow_left_out)
  every = [c for g in groups for c in g]
  twice = sorted({c for c in every if every.count(c) > 1})
  if twice and not allow_repeats:
    raise ValueError(
      f"groups has the classes {twice} in several tasks, which is not allowed "
      "unless allow_repeats=True."
    )
  absent = sorted(set(classes.tolist()) - set(every))
  if absent and not allow_left_out:
    raise ValueError(
      f"groups has the classes {absent} in no task, which is not allowed "
      "unless allow_left_out=True."
    )


def split_classes(
  train: sources.Source,
  test: sources.Source,
  num_tasks: int,
  *,
  class_order: Sequence[int] | str | None = None,
  seed: int | None = None,
  label: str = LABEL,
) -> Scenario:
  """Class-incremental: the classes dealt out to tasks in order.

  As Split CIFAR-100, MNIST, ...: task t has the next C / num_tasks classes; if
  that is no whole number, the first tasks have one more. Labels stay as they
  are.

  Args:
    train, test: sources of examples with an integer label.
    num_tasks: 1 up to the number of classes.
    class_order: a permutation of the classes of `train`; None for their order;
      `random`, drawn by `seed`.
    seed: of a random order, in [0, 2^32).
    label: the name of the labels.

  Returns:
    A `Scenario`.

  Raises:
    ValueError: fewer classes than tasks; an order that lacks a class or has one
      twice; a seed without a random order, or the other way round.
  """
  checks.positive_int("num_tasks", num_tasks)
  classes = classes_in("train", labels_of(train, label=label))
  if num_tasks > len(classes):
    checks.refuse(
      "num_tasks", num_tasks, f"at most the number of classes, {len(classes)}"
    )
  order = class_sequence(class_order, classes, seed)
  groups = np.array_split(order, num_tasks)
  return split_groups(train, test, groups, label=label)


def class_sequence(class_order, classes, seed) -> np.ndarray:
  """The classes in the order that `split_classes` describes."""
  if isinstance(class_order, str):
    checks.one_of("class_order", class_order, ("random",))
    checks.seed("seed", seed)
    return np.random.default_rng(seed).permutation(classes)
  if seed is not None:
    raise ValueError(
      f"seed={seed!r} is not allowed: only class_order='random' needs it."
    )
  if class_order is None:
    return classes
  order = checks.integers("class_order", class_order, np.int64)
  if sorted(order.ravel().tolist()) != classes.tolist() or order.ndim != 1:
    checks.refuse(
      "class_order",
      order.tolist(),
      f"a list with each of the classes {classes.tolist()} once",
    )
  return order


class RelabelledSource:
  """Another source with its labels moved through a table."""

  def __init__(self, source: sources.Source, table: np.ndarray, label: str):
    self._source, self._table, self._label = source, table, label

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> sources.Example:
    example = self._source[index]
    new = np.int32(self._table[int(example[self._label])])
    return {**example, self._label: new}


def relabelled(
  source: sources.Source, table: np.ndarray, *, label: str = LABEL
) -> sources.Source:
  """A source whose label y is table[y]; arrays stay arrays, files files.

  Args:
    source: labels in [0, len(table)).
    table: new labels, integers.
    label: the name of the labels.
  """
  if isinstance(source, sources.ArraySource):
    moved = table[labels_of(source, label=label)].astype(np.int32)
    return sources.ArraySource({**source.arrays, label: moved})
  if isinstance(source, image_files.ImageFolderSource) and label == LABEL:
    names = dict(zip(table.tolist(), source.classes, strict=False))
    known = [names.get(i, "") for i in range(int(table.max()) + 1)]
    return source.with_labels(table[np.asarray(source.labels)].tolist(), known)
  return RelabelledSource(source, table, label)


def several_datasets(
  datasets: Mapping[str, tuple[sources.Source, sources.Source]],
  *,
  num_classes: Mapping[str, int] | None = None,
  label: str = LABEL,
) -> Scenario:
  """A data set for each task; labels go on where the last set ended.

  As 5-datasets (Ebrahimi et al. 2020): with ten classes each, set i has the
  labels 10 i to 10 i + 9. The sets' images must be of one shape to be batched
  by one model: map them first (`sources.mapped`).

  Args:
    datasets: name -> (train, test), in the order of the tasks.
    num_classes: name -> how many labels are kept for it; None takes the largest
      label of its train set plus 1.
    label: the name of the labels.

  Returns:
    A `Scenario` with new labels, of which those that a set does not use are in
    no task.

  Raises:
    ValueError: no set, no pair, a label beyond the number of classes.
  """
  if not isinstance(datasets, Mapping) or not datasets:
    checks.refuse("datasets", datasets, "a dict of (train, test), not empty")
  offset, tasks = 0, []
  for i, (name, pair) in enumerate(datasets.items()):
    train, test = _pair(f"datasets[{name!r}]", pair)
    classes = classes_in(f"{name}: train", labels_of(train, label=label))
    size = int(classes.max()) + 1
    if num_classes is not None:
      given = checks.lookup("name of a data set", name, num_classes)
      size = checks.positive_int(f"num_classes[{name!r}]", given)
    for split, source in zip(_SPLITS, (train, test), strict=True):
      top = int(labels_of(source, label=label).max())
      if top >= size:
        raise ValueError(
          f"{name}: {split} has the label {top}, which is not allowed: it must "
          f"be in [0, {size - 1}]."
        )
    table = offset + np.arange(size)
    moved = [relabelled(s, table, label=label) for s in (train, test)]
    ids = tuple((offset + classes).tolist())
    tasks.append(Task(*moved, ids, i, name))
    offset += size
  return Scenario(tuple(tasks), offset)


def _pair(name: str, pair: Any) -> tuple[sources.Source, sources.Source]:
  if not isinstance(pair, tuple | list) or len(pair) != 2:
    checks.refuse(name, pair, "a pair of sources, (train, test)")
  return tuple(
    sources.check(s, f"{name}: {split}")
    for s, split in zip(pair, _SPLITS, strict=True)
  )


def domain_incremental(
  trains: Sequence[sources.Source],
  tests: sources.Source | Sequence[sources.Source],
  *,
  names: Sequence[str] | None = None,
  label: str = LABEL,
) -> Scenario:
  """The same classes in each task, in another domain.

  As CORe50 (sessions of recording, one test set for all), or rotated digits.

  Args:
    trains: a source for each domain.
    tests: likewise; or one source, which all tasks share.
    names: of the domains.
    label: the name of the labels.

  Returns:
    A `Scenario`; each task has the classes that its train set has.

  Raises:
    ValueError: no domain, an empty one, numbers of entries that differ, a test
      label that no domain trains.
  """
  _check_sequence("trains", trains)
  shared = isinstance(tests, sources.Source) and not isinstance(
    tests, list | tuple
  )
  tests = [tests] * len(trains) if shared else list(tests)
  names = [""] * len(trains) if names is None else list(names)
  for name, values in (("tests", tests), ("names", names)):
    if len(values) != len(trains):
      raise ValueError(
        f"{name} has {len(values)} entries and trains has {len(trains)}: they "
        "must be as many."
      )
  classes = [
    classes_in(f"trains[{i}]", labels_of(s, label=label))
    for i, s in enumerate(trains)
  ]
  every = np.unique(np.concatenate(classes))
  for i, test in enumerate(tests[:1] if shared else tests):
    unknown = np.setdiff1d(labels_of(test, label=label), every).tolist()
    if unknown:
      raise ValueError(
        f"tests[{i}] has the classes {unknown}, which no domain trains."
      )
  tasks = tuple(
    Task(train, test, tuple(ids.tolist()), i, name)
    for i, (train, test, ids, name) in enumerate(
      zip(trains, tests, classes, names, strict=True)
    )
  )
  return Scenario(tasks, int(every.max()) + 1)


def joint(scenario: Scenario) -> Task:
  """All tasks as one, for the upper bound: train on it in any order.

  A test set that tasks share is there once.
  """
  parts = {"train": [], "test": []}
  for task in scenario.tasks:
    for split, found in parts.items():
      source = getattr(task, split)
      if not any(source is s for s in found):
        found.append(source)
  ids = sorted({c for t in scenario.tasks for c in t.class_ids})
  whole = {k: _concatenated(v) for k, v in parts.items()}
  return Task(whole["train"], whole["test"], tuple(ids), None, "joint")


def _concatenated(parts: Sequence[sources.Source]) -> sources.Source:
  """Sources one after the other; arrays stay arrays."""
  whole = sources.concatenate(*parts)
  if not all(isinstance(p, sources.ArraySource) for p in parts):
    return whole
  names = parts[0].arrays
  arrays = {k: [p.arrays[k] for p in parts] for k in names}
  alike = all(
    len({(x.dtype, x.shape[1:]) for x in v}) == 1 for v in arrays.values()
  )
  if not alike:
    return whole
  return sources.ArraySource({k: np.concatenate(v) for k, v in arrays.items()})


def add_class_mask(
  class_ids: Sequence[int], num_classes: int, *, label: str = LABEL
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """A map of batches, for the pipeline, that adds `class_mask` `[n, C]` bool.

  Args:
    class_ids: the classes of the task.
    num_classes: C.
    label: the name of the labels, for n.

  Raises:
    ValueError: no classes, or one outside [0, C).
  """
  ids = checks.integers("class_ids", class_ids, np.int64)
  if not ids.size or ids.min() < 0 or ids.max() >= num_classes:
    checks.refuse(
      "class_ids", ids.tolist(), f"classes in [0, {num_classes - 1}], not empty"
    )
  mask = np.isin(np.arange(num_classes), ids)

  def add(batch):
    rows = np.shape(batch[label])
    return {**batch, CLASS_MASK: np.broadcast_to(mask, (*rows, num_classes))}

  return add
