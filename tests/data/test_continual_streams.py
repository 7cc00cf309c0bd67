"""The stream without boundaries: worked presence, promises of the rows."""

from __future__ import annotations

import numpy as np
import pytest

from locojax.data import continual, continual_streams, pipeline, sources

LABELS = np.repeat(np.arange(4), 50)


def _train(labels=LABELS):
  return sources.from_arrays({"row": np.arange(len(labels)), "label": labels})


def _stream(train=None, **changes):
  settings = {
    "batch_size": 4,
    "seed": 0,
    "num_episodes": 20,
    "steps_per_episode": 2,
    "std": 5.0,
    **changes,
  }
  train = _train() if train is None else train
  return continual_streams.gaussian_schedule(train, _train(), **settings)


def test_the_worked_presence():
  found = continual_streams.gaussian_presence([0, 50, 100, 150])
  want = [1, 0.6065306597, 0.1353352832, 0.0111089965]
  np.testing.assert_allclose(found, want, rtol=1e-8)
  np.testing.assert_array_equal(
    found, continual_streams.gaussian_presence([0, -50, -100, -150])
  )


def test_the_headline_schedule_has_twelve_and_a_half_classes_inside():
  """C = 100, 200 episodes of 5 batches: peaks 5, 15, 25, ..."""
  found = continual_streams.gaussian_classes(100, seed=0)
  assert found.shape == (200, 100) and found.any(axis=1).all()
  inner = np.mean(
    [
      continual_streams.gaussian_classes(100, seed=s)[40:160].sum(axis=1).mean()
      for s in range(20)
    ]
  )
  # sum over d = 10 k of exp(-d^2 / 5000) = 50 sqrt(2 pi) / 10.
  assert inner == pytest.approx(5 * np.sqrt(2 * np.pi), abs=0.15)


def test_classes_are_present_as_often_as_their_distance_says():
  runs = np.stack(
    [continual_streams.gaussian_classes(100, seed=s) for s in range(400)]
  )
  # Episode e starts at batch 5 e; class 50 peaks at batch 5 + 500.
  for episode in (101, 91, 111, 81, 121):
    want = continual_streams.gaussian_presence(5 * episode - 505)
    share = runs[:, episode, 50].mean()
    deviation = np.sqrt(want * (1 - want) / 400) + 1e-12
    assert abs(share - want) <= 4 * deviation


def test_an_episode_is_drawn_again_until_it_has_a_class():
  for seed in range(30):
    found = continual_streams.gaussian_classes(
      4, num_episodes=40, steps_per_episode=1, std=2.0, seed=seed
    )
    assert found.any(axis=1).all()


def test_there_is_no_task_anywhere():
  scenario = _stream()
  (task,) = scenario.tasks
  assert task.task_id is None and task.class_ids == (0, 1, 2, 3)
  assert set(task.train[0]) == {"row", "label", "class_mask"}


def test_rows_have_the_labels_of_their_episode_and_its_mask():
  (task,) = _stream().tasks
  assert len(task.train) == 20 * 2 * 4
  example = sources.as_arrays(task.train)
  np.testing.assert_array_equal(example["label"], LABELS[example["row"]])
  assert example["class_mask"][np.arange(160), example["label"]].all()
  episodes = example["class_mask"].reshape(20, 8, 4)
  assert (episodes == episodes[:, :1]).all()
  want = continual_streams.gaussian_classes(
    4, num_episodes=20, steps_per_episode=2, std=5.0, seed=0
  )
  np.testing.assert_array_equal(episodes[:, 0], want)


def test_no_example_comes_again_before_its_class_was_seen_whole():
  (task,) = _stream().tasks
  rows = sources.as_arrays(task.train)["row"]
  assert len(set(rows.tolist())) == len(rows)  # 160 of 200: a single pass.
  few = _train(np.repeat(np.arange(4), 5))
  rows = sources.as_arrays(_stream(few).tasks[0].train)["row"]
  for label in range(4):
    own = rows[rows // 5 == label]
    passes = len(own) // 5
    for i in range(passes):
      assert len(set(own[5 * i : 5 * i + 5].tolist())) == 5


def test_the_stream_is_a_function_of_the_seed():
  rows = lambda seed: sources.as_arrays(_stream(seed=seed).tasks[0].train)[
    "row"
  ]
  np.testing.assert_array_equal(rows(1), rows(1))
  assert (rows(1) != rows(2)).any()


def test_an_order_of_classes_moves_their_peaks():
  plain = sources.as_arrays(_stream().tasks[0].train)["class_mask"]
  order = [2, 0, 3, 1]
  moved = sources.as_arrays(_stream(class_order=order).tasks[0].train)
  np.testing.assert_array_equal(moved["class_mask"][:, order], plain)
  one, same = (_stream(class_order="random").tasks[0].train for _ in range(2))
  np.testing.assert_array_equal(one.arrays["row"], same.arrays["row"])


class Plain:
  def __len__(self):
    return len(LABELS)

  def __getitem__(self, index):
    return {"row": np.int64(index), "label": np.int64(LABELS[index])}


def test_any_source_gives_the_same_stream():
  arrays = sources.as_arrays(_stream().tasks[0].train)
  other = sources.as_arrays(_stream(Plain()).tasks[0].train)
  for name, value in arrays.items():
    np.testing.assert_array_equal(value, other[name])
  with pytest.raises(IndexError, match="160"):
    _stream(Plain()).tasks[0].train[160]


def test_batches_resume_and_are_cut_by_process():
  (task,) = _stream().tasks
  read = lambda **more: pipeline.array_batches(
    task.train, batch_size=4, seed=0, shuffle=False, num_epochs=1, **more
  )
  whole = list(read()(0))
  assert len(whole) == 40
  late = list(read()(37))
  for a, b in zip(whole[37:], late, strict=True):
    np.testing.assert_array_equal(a["row"], b["row"])
  halves = [read(process_index=p, process_count=2)(5) for p in (0, 1)]
  both = np.concatenate([next(h)["row"] for h in halves])
  np.testing.assert_array_equal(both, whole[5]["row"])


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"batch_size": 0}, "batch_size=0"),
    ({"seed": -1}, "seed=-1"),
    ({"num_episodes": 1, "steps_per_episode": 1}, "num_classes=4.*1 batches"),
    ({"std": 0}, "std=0"),
    ({"std": 0.1}, "std=0.1.*each episode has a class"),
    ({"class_order": [0, 1, 2]}, "class_order"),
    ({"label": "y"}, "label='y'"),
  ],
)
def test_bad_arguments_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    _stream(**changes)


def test_labels_with_gaps_keep_their_numbers():
  labels = np.repeat([1, 5], 20)
  train = _train(labels)
  scenario = continual_streams.gaussian_schedule(
    train,
    train,
    batch_size=2,
    seed=0,
    num_episodes=5,
    steps_per_episode=2,
    std=5.0,
  )
  assert scenario.num_classes == 6
  assert continual.labels_of(scenario.tasks[0].train).tolist().count(3) == 0
