"""Continual streams: tasks by classes, data sets, domains."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from locojax.data import continual, pipeline, sources

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6))


def _arrays(labels=LABELS, offset=0):
  labels = np.asarray(labels)
  rows = np.arange(offset, offset + len(labels))
  return sources.from_arrays({"row": rows, "label": labels})


class Plain:
  """A source that is neither arrays nor files."""

  def __init__(self, labels, offset=0):
    self._labels, self._offset = labels, offset

  def __len__(self):
    return len(self._labels)

  def __getitem__(self, index):
    return {"row": self._offset + index, "label": int(self._labels[index])}


MAKERS = pytest.mark.parametrize("make", [_arrays, Plain])
TEST = np.repeat(np.arange(10), 2)


@MAKERS
def test_classes_are_dealt_out_in_order(make):
  found = continual.split_classes(make(LABELS), make(TEST), 5)
  assert len(found) == 5 and found.num_classes == 10
  rows = []
  for t, task in enumerate(found.tasks):
    assert task.task_id == t and task.class_ids == (2 * t, 2 * t + 1)
    for source in (task.train, task.test):
      labels = continual.labels_of(source)
      assert set(labels.tolist()) == set(task.class_ids)
    rows += [task.train[i]["row"] for i in range(len(task.train))]
    assert [task.train[0]["label"]] == [LABELS[task.train[0]["row"]]]
  # Each example is in one task.
  assert sorted(map(int, rows)) == list(range(60))


def test_classes_that_do_not_divide_and_a_single_task():
  ids = lambda n: [
    t.class_ids
    for t in continual.split_classes(_arrays(), _arrays(TEST), n).tasks
  ]
  assert ids(3) == [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]
  assert ids(1) == [tuple(range(10))]


def test_an_order_of_classes():
  order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
  found = continual.split_classes(
    _arrays(), _arrays(TEST), 5, class_order=order
  )
  assert [t.class_ids for t in found.tasks][:2] == [(3, 1), (4, 0)]
  # Labels stay as they are.
  assert set(continual.labels_of(found.tasks[0].train).tolist()) == {1, 3}


def test_a_random_order_is_a_function_of_the_seed():
  def ids(seed):
    found = continual.split_classes(
      _arrays(), _arrays(TEST), 5, class_order="random", seed=seed
    )
    return [t.class_ids for t in found.tasks]

  assert ids(0) == ids(0) != ids(1)
  assert sorted(itertools.chain(*ids(1))) == list(range(10))


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"num_tasks": 11}, "num_tasks=11.*number of classes, 10"),
    ({"num_tasks": 0}, "num_tasks=0"),
    ({"class_order": [0, 1]}, "class_order.*each of the classes"),
    ({"class_order": [0] * 10}, "class_order.*each of the classes"),
    ({"class_order": "shuffled"}, "class_order='shuffled'"),
    ({"class_order": "random"}, "seed=None"),
    ({"seed": 1}, "seed=1.*only class_order='random'"),
    ({"label": "name"}, r"label='name'.*\['label', 'row'\]"),
  ],
)
def test_bad_splits_are_refused(settings, words):
  settings = {"num_tasks": 5, **settings}
  with pytest.raises(ValueError, match=words):
    continual.split_classes(_arrays(), _arrays(TEST), **settings)


PAIRS = [[i, i + 1] for i in range(0, 10, 2)]


@pytest.mark.parametrize(
  ("groups", "words"),
  [
    ([], "groups is empty"),
    ("ab", "groups='ab'"),
    ([[]], r"groups\[0\]"),
    ([*PAIRS[:4], [8, 8, 9]], r"groups\[4\].*each of them once"),
    ([*PAIRS, [0]], r"classes \[0\] in several tasks.*allow_repeats"),
    (PAIRS[:4], r"classes \[8, 9\] in no task.*allow_left_out"),
    ([*PAIRS, [10]], r"train of task 5 has no example of the classes \[10\]"),
    ([[0.5]], "must be integers"),
  ],
)
def test_bad_groups_are_refused(groups, words):
  with pytest.raises(ValueError, match=words):
    continual.split_groups(_arrays(), _arrays(TEST), groups)


def test_repeats_and_gaps_are_allowed_where_asked_for():
  found = continual.split_groups(
    _arrays(),
    _arrays(TEST),
    [[0, 1], [1, 2]],
    allow_repeats=True,
    allow_left_out=True,
  )
  assert [len(t.train) for t in found.tasks] == [12, 12]


def test_a_task_without_test_examples_is_named():
  with pytest.raises(ValueError, match="test of task 4 has no example"):
    continual.split_classes(_arrays(), _arrays(TEST[TEST < 8]), 5)


@MAKERS
def test_several_data_sets_have_labels_one_after_the_other(make):
  pair = lambda labels, offset: (make(labels, offset), make(labels, offset))
  found = continual.several_datasets(
    {"a": pair([0, 2, 1], 0), "b": pair([1, 0], 10), "c": pair([0], 20)}
  )
  assert found.num_classes == 6
  assert [t.name for t in found.tasks] == ["a", "b", "c"]
  assert [t.class_ids for t in found.tasks] == [(0, 1, 2), (3, 4), (5,)]
  labels = [continual.labels_of(t.test).tolist() for t in found.tasks]
  assert labels == [[0, 2, 1], [4, 3], [5]]
  assert int(found.tasks[1].train[0]["row"]) == 10


def test_data_sets_of_ten_classes_each_are_ten_labels_apart():
  pair = (_arrays(), _arrays(TEST))
  found = continual.several_datasets(
    dict.fromkeys("abcde", pair), num_classes=dict.fromkeys("abcde", 10)
  )
  starts = [t.class_ids[0] for t in found.tasks]
  assert starts == [0, 10, 20, 30, 40] and found.num_classes == 50


def test_bad_data_sets_are_refused():
  pair = (_arrays(), _arrays(TEST))
  with pytest.raises(ValueError, match="datasets="):
    continual.several_datasets({})
  with pytest.raises(ValueError, match="a pair of sources"):
    continual.several_datasets({"a": _arrays()})
  with pytest.raises(ValueError, match="a: test has the label 10"):
    continual.several_datasets({"a": (_arrays(), _arrays([10]))})
  with pytest.raises(ValueError, match="a: train has the label 9"):
    continual.several_datasets({"a": pair}, num_classes={"a": 9})
  with pytest.raises(ValueError, match="name of a data set='a'"):
    continual.several_datasets({"a": pair}, num_classes={"b": 9})


def test_domains_share_their_classes_and_may_share_a_test_set():
  trains = [_arrays(offset=100 * i) for i in range(3)]
  test = _arrays(TEST)
  found = continual.domain_incremental(trains, test, names=["s1", "s2", "s3"])
  assert all(t.class_ids == tuple(range(10)) for t in found.tasks)
  assert [t.task_id for t in found.tasks] == [0, 1, 2]
  assert [t.name for t in found.tasks] == ["s1", "s2", "s3"]
  assert all(t.test is test for t in found.tasks)
  own = continual.domain_incremental(trains, trains)
  assert [t.test for t in own.tasks] == trains


def test_bad_domains_are_refused():
  trains = [_arrays(), _arrays()]
  with pytest.raises(ValueError, match="trains is empty"):
    continual.domain_incremental([], _arrays())
  with pytest.raises(ValueError, match="tests has 1 entries and trains has 2"):
    continual.domain_incremental(trains, [_arrays()])
  with pytest.raises(ValueError, match=r"tests\[0\] has the classes \[11\]"):
    continual.domain_incremental(trains, _arrays([0, 11]))
  with pytest.raises(ValueError, match="has the label -1"):
    continual.domain_incremental([_arrays([-1])], _arrays())


def test_joint_is_the_union_of_all_tasks():
  found = continual.split_classes(_arrays(), _arrays(TEST), 5)
  whole = continual.joint(found)
  assert whole.task_id is None and whole.class_ids == tuple(range(10))
  rows = [int(whole.train[i]["row"]) for i in range(len(whole.train))]
  assert sorted(rows) == list(range(60)) and len(whole.test) == 20
  assert isinstance(whole.train, sources.ArraySource)
  shared = continual.domain_incremental([_arrays(), _arrays()], _arrays(TEST))
  whole = continual.joint(shared)
  assert len(whole.train) == 120 and len(whole.test) == 20
  mixed = continual.domain_incremental([_arrays(), Plain(TEST)], _arrays(TEST))
  whole = continual.joint(mixed)
  assert len(whole.train) == 80 and int(whole.train[79]["label"]) == 9


def test_the_pipeline_reads_a_task_with_its_class_mask():
  task = continual.split_classes(_arrays(), _arrays(TEST), 5).tasks[1]
  batches = pipeline.array_batches(
    task.train,
    batch_size=4,
    seed=0,
    map=continual.add_class_mask(task.class_ids, 10),
  )
  batch = next(batches(3))
  assert batch["class_mask"].shape == (4, 10)
  assert all(np.flatnonzero(m).tolist() == [2, 3] for m in batch["class_mask"])
  for bad in ([], [10], [-1]):
    with pytest.raises(ValueError, match="class_ids"):
      continual.add_class_mask(bad, 10)
