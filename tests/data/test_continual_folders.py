"""A folder for each task: both layouts, shared classes, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from locojax.data import continual, continual_folders, sources

Image = pytest.importorskip("PIL.Image")


def _write(root, tasks, num=4):
  """`{task: classes}` as images whose grey says task, class and number."""
  for t, (task, classes) in enumerate(sorted(tasks.items())):
    for c, name in enumerate(sorted(classes)):
      folder = root / task / name
      folder.mkdir(parents=True)
      for i in range(num):
        grey = np.full((3, 3), 100 * t + 10 * c + i, np.uint8)
        Image.fromarray(grey).save(folder / f"{i}.png")


TASKS = {"1_pets": ["cat", "dog"], "2_cars": ["bus"]}


def test_classes_that_are_new_in_each_task(tmp_path):
  _write(tmp_path, TASKS)
  (tmp_path / ".hidden").mkdir()
  found = continual_folders.from_folders(
    tmp_path, test_share=0.25, seed=0, mode="L"
  )
  assert found.class_names == ("cat", "dog", "bus") and found.num_classes == 3
  assert [t.class_ids for t in found.tasks] == [(0, 1), (2,)]
  assert [t.name for t in found.tasks] == ["1_pets", "2_cars"]
  assert [t.task_id for t in found.tasks] == [0, 1]
  for task in found.tasks:
    assert len(task.test) == len(task.class_ids)
    both = [sources.as_arrays(s) for s in (task.train, task.test)]
    grey = np.concatenate([b["image"][:, 0, 0, 0] for b in both])
    labels = np.concatenate([b["label"] for b in both])
    assert len(set(grey.tolist())) == 4 * len(task.class_ids)
    want = grey // 100 * 2 + grey % 100 // 10
    np.testing.assert_array_equal(labels, want)
    assert set(continual.labels_of(task.train).tolist()) == set(task.class_ids)


def test_the_choice_of_test_images_is_a_function_of_the_seed(tmp_path):
  _write(tmp_path, TASKS)

  def files(seed):
    found = continual_folders.from_folders(
      tmp_path, test_share=0.5, seed=seed, mode="L"
    )
    return [f.name for t in found.tasks for f in t.test.files]

  assert files(0) == files(0)
  assert any(files(0) != files(s) for s in range(1, 5))


def test_folders_of_train_and_test(tmp_path):
  _write(tmp_path / "train", TASKS)
  _write(tmp_path / "test", TASKS, num=1)
  found = continual_folders.from_folders(tmp_path, mode="RGB", size=(2, 5))
  assert [len(t.train) for t in found.tasks] == [8, 4]
  assert [len(t.test) for t in found.tasks] == [2, 1]
  example = found.tasks[1].test[0]
  assert example["image"].shape == (2, 5, 3) and example["label"] == 2
  with pytest.raises(ValueError, match="test_share=0.5.*folder `test`"):
    continual_folders.from_folders(tmp_path, test_share=0.5, seed=0)


def test_classes_that_tasks_share(tmp_path):
  _write(tmp_path, {"day": ["cat", "dog"], "night": ["ant", "cat"]})
  read = {"test_share": 0.25, "seed": 0, "mode": "L"}
  with pytest.raises(ValueError, match=r"'night' has the classes \['cat'\]"):
    continual_folders.from_folders(tmp_path, **read)
  found = continual_folders.from_folders(tmp_path, shared_classes=True, **read)
  assert found.class_names == ("ant", "cat", "dog")
  assert [t.class_ids for t in found.tasks] == [(1, 2), (0, 1)]
  assert sorted(continual.labels_of(found.tasks[1].train).tolist()) == [
    *([0] * 3),
    *([1] * 3),
  ]


def test_a_union_of_folders_keeps_its_labels(tmp_path):
  _write(tmp_path, TASKS)
  found = continual_folders.from_folders(
    tmp_path, test_share=0.25, seed=0, mode="L"
  )
  whole = continual.joint(found)
  labels = sources.as_arrays(whole.train)["label"]
  assert np.bincount(labels).tolist() == [3, 3, 3]


def test_bad_folders_are_refused(tmp_path):
  read = {"test_share": 0.25, "seed": 0}
  with pytest.raises(FileNotFoundError, match="is not a folder"):
    continual_folders.from_folders(tmp_path / "none", **read)
  with pytest.raises(ValueError, match="one per task"):
    continual_folders.from_folders(tmp_path, **read)
  (tmp_path / "task" / "cat").mkdir(parents=True)
  with pytest.raises(ValueError, match="class folder .*cat has no image"):
    continual_folders.from_folders(tmp_path, **read)
  with pytest.raises(ValueError, match="test_share=None"):
    continual_folders.from_folders(tmp_path)
  for share in (0, 1):
    with pytest.raises(ValueError, match=f"test_share={share}"):
      continual_folders.from_folders(tmp_path, test_share=share, seed=0)
  with pytest.raises(ValueError, match="seed=None"):
    continual_folders.from_folders(tmp_path, test_share=0.5)


def test_a_class_of_one_image_cannot_be_shared_out(tmp_path):
  _write(tmp_path, {"task": ["cat"]}, num=1)
  with pytest.raises(ValueError, match="'cat' of the task 'task' has 1 image"):
    continual_folders.from_folders(tmp_path, test_share=0.5, seed=0)


def test_train_and_test_must_have_the_same_tasks_and_classes(tmp_path):
  _write(tmp_path / "train", {"a": ["cat"], "b": ["dog"]})
  _write(tmp_path / "test", {"a": ["cat"]})
  with pytest.raises(ValueError, match=r"tasks \['a', 'b'\] and test \['a'\]"):
    continual_folders.from_folders(tmp_path)
  _write(tmp_path / "test", {"b": ["ant", "dog"]})
  with pytest.raises(ValueError, match="the task 'b' has the classes"):
    continual_folders.from_folders(tmp_path)
