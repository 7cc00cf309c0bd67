import itertools

import numpy as np
import pytest

from locojax.data import pipeline, sources

N, B = 11, 4
ARRAYS = {"x": np.arange(N), "y": np.arange(2 * N).reshape(N, 2)}
REMAINDERS = ["drop", "carry"]


def _noise(example, rng):
  return {**example, "noise": rng.integers(0, 2**40)}


def _batch_noise(batch, rng):
  return {**batch, "noise": rng.integers(0, 2**40, len(batch["x"]))}


def _grain(**kwargs):
  kwargs = {"random_map": _noise, "batch_size": B, "seed": 3, **kwargs}
  return pipeline.batches(sources.from_arrays(ARRAYS), **kwargs)


def _fast(**kwargs):
  kwargs = {"random_map": _batch_noise, "batch_size": B, "seed": 3, **kwargs}
  return pipeline.array_batches(ARRAYS, **kwargs)


def _equal(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second):
    assert set(a) == set(b)
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


ways = pytest.mark.parametrize("way", [_grain, _fast])
remainders = pytest.mark.parametrize("remainder", REMAINDERS)


@ways
@remainders
def test_same_seed_same_batches_and_other_seed_other(way, remainder):
  a = list(way(num_epochs=3, remainder=remainder)(0))
  _equal(a, list(way(num_epochs=3, remainder=remainder)(0)))
  other = list(way(num_epochs=3, remainder=remainder, seed=4)(0))
  assert any((u["x"] != v["x"]).any() for u, v in zip(a, other))
  assert a[0]["y"].shape == (B, 2)
  np.testing.assert_array_equal(a[0]["y"][:, 0], 2 * a[0]["x"])


@ways
@remainders
@pytest.mark.parametrize("start", [0, 1, 2, 3, 5, 50])
def test_start_is_skipping(way, remainder, start):
  make = way(num_epochs=4, remainder=remainder)
  _equal(list(make(start)), list(make(0))[start:])


@ways
@remainders
@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_cut_the_same_batches(way, remainder, count):
  settings = {"num_epochs": 3, "remainder": remainder}
  whole = list(way(**settings)(1))
  parts = [
    list(way(process_index=i, process_count=count, **settings)(1))
    for i in range(count)
  ]
  joined = [
    {name: np.concatenate([p[name] for p in rows]) for name in rows[0]}
    for rows in zip(*parts)
  ]
  _equal(joined, whole)


@ways
def test_drop_has_whole_epochs_and_carry_leaves_no_row_out(way):
  drop = list(way(num_epochs=3, remainder="drop")(0))
  assert len(drop) == 3 * (N // B)
  for epoch in (drop[:2], drop[2:4], drop[4:]):
    rows = np.concatenate([b["x"] for b in epoch])
    assert len(set(rows.tolist())) == 8
  carry = list(way(num_epochs=4, remainder="carry")(0))
  assert len(carry) == 4 * N // B
  rows = np.concatenate([b["x"] for b in carry])
  assert np.bincount(rows).tolist() == [4] * N
  assert sorted(rows[:N]) == sorted(rows[N : 2 * N]) == list(range(N))
  assert rows[:N].tolist() != rows[N : 2 * N].tolist()


@ways
def test_random_map_differs_in_every_epoch(way):
  out = np.concatenate([b["noise"] for b in way(num_epochs=50)(0)])
  assert len(set(out.tolist())) == len(out)


@ways
def test_without_shuffle_in_order(way):
  rows = [b["x"].tolist() for b in way(shuffle=False, num_epochs=2)(0)]
  assert rows == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


@ways
def test_endless_starts_late_at_once(way):
  assert len(next(way()(10**9))["x"]) == B


@ways
def test_map_is_applied(way):
  double = lambda e: {"x": 2 * e["x"]}
  a = next(way(map=double, random_map=None)(0))
  b = next(way(random_map=None)(0))
  assert set(a) == {"x"}
  np.testing.assert_array_equal(a["x"], 2 * b["x"])


def test_fast_path_is_the_documented_permutation():
  batches = list(_fast(num_epochs=2, random_map=None)(0))
  rows = np.concatenate([b["x"] for b in batches])
  expected = []
  for epoch in range(2):
    sequence = np.random.SeedSequence(3, spawn_key=(0, epoch))
    rng = np.random.Generator(np.random.Philox(sequence))
    expected += rng.permutation(N)[: N // B * B].tolist()
  assert rows.tolist() == expected
  np.testing.assert_array_equal(
    pipeline.epoch_permutation(N, seed=3, epoch=1)[:8], expected[8:]
  )


def test_index_batches_are_the_rows_of_array_batches():
  index = pipeline.index_batches(N, batch_size=B, seed=3)(5)
  rows = _fast(random_map=None)(5)
  for i, batch in itertools.islice(zip(index, rows), 4):
    np.testing.assert_array_equal(ARRAYS["x"][i], batch["x"])


def test_carry_allows_a_batch_larger_than_the_data():
  make = pipeline.index_batches(3, batch_size=8, seed=0, remainder="carry")
  assert np.bincount(next(make(0))[:6]).tolist() == [2, 2, 2]


@pytest.mark.parametrize("num_threads", [0, 1, 8])
def test_threads_change_nothing(num_threads):
  settings = {"num_epochs": 3}
  _equal(
    list(_grain(num_threads=num_threads, **settings)(1)),
    list(_grain(**settings)(1)),
  )


def test_worker_processes_change_nothing():
  def noise(example, rng):  # A closure travels to the workers by value.
    return {**example, "noise": rng.integers(0, 2**40)}

  settings = {"num_epochs": 3, "random_map": noise}
  _equal(
    list(_grain(num_workers=2, **settings)(1)), list(_grain(**settings)(1))
  )


@ways
@pytest.mark.parametrize(
  "setting, message",
  [
    ({"batch_size": 0}, "batch_size=0"),
    ({"batch_size": 12}, "batch_size=12.*at most.*11"),
    ({"seed": -1}, "seed=-1"),
    ({"num_epochs": 0}, "num_epochs=0"),
    ({"remainder": "keep"}, "remainder='keep'.*'drop', 'carry'"),
    ({"process_count": 3}, "multiple of process_count=3"),
    ({"process_index": 2, "process_count": 2}, "process_index=2"),
  ],
)
def test_bad_settings(way, setting, message):
  with pytest.raises(ValueError, match=message):
    way(**setting)


@ways
def test_bad_start(way):
  with pytest.raises(ValueError, match="start=-1"):
    way()(-1)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("kind", ["arrays", "own"])
def test_padded_batches_hold_every_example_once(count, kind):
  own = sources.mapped(sources.from_arrays(ARRAYS), lambda e: e)
  source = ARRAYS if kind == "arrays" else own
  parts = [
    list(
      pipeline.padded_batches(source, 8, process_index=i, process_count=count)
    )
    for i in range(count)
  ]
  assert {len(p) for p in parts} == {2}
  for name, shape in (("x", ()), ("y", (2,)), ("mask", ())):
    shapes = {b[name].shape for p in parts for b in p}
    assert shapes == {(8 // count, *shape)}
  rows = [b for group in zip(*parts) for b in group]
  mask = np.concatenate([b["mask"] for b in rows])
  x = np.concatenate([b["x"] for b in rows])
  assert mask.dtype == np.float32 and mask.sum() == N
  assert x[mask == 1].tolist() == list(range(N)) and not x[mask == 0].any()


def test_padded_batches_map_and_refuse_a_mask():
  out = pipeline.padded_batches(ARRAYS, 4, map=lambda b: {"z": b["x"] + 1})
  assert next(out)["z"].tolist() == [1, 2, 3, 4]
  with pytest.raises(ValueError, match="'mask' already"):
    next(pipeline.padded_batches({"mask": np.ones(3)}, 2))
  with pytest.raises(ValueError, match="batch_size=0"):
    pipeline.padded_batches(ARRAYS, 0)


@pytest.mark.parametrize("window", [0.5, 1, 2, 7.5, 100, 5000])
def test_a_windowed_shuffle_moves_each_row_less_than_the_window(window):
  order = pipeline.windowed_permutation(1000, window=window, seed=3, epoch=1)
  assert sorted(order) == list(range(1000)) and order.dtype == np.int64
  moved = np.abs(order - np.arange(1000))
  assert moved.max() < window
  if 2 < window < 1000:
    assert moved.max() > window / 2
  again = pipeline.windowed_permutation(1000, window=window, seed=3, epoch=1)
  np.testing.assert_array_equal(order, again)
  if window >= 2:
    for other in ({"seed": 4, "epoch": 1}, {"seed": 3, "epoch": 2}):
      rows = pipeline.windowed_permutation(1000, window=window, **other)
      assert (rows != order).any()


def test_the_ends_of_the_window_are_identity_and_full_shuffle():
  make = lambda w: pipeline.windowed_permutation(N, window=w, seed=3, epoch=1)
  full = pipeline.epoch_permutation(N, seed=3, epoch=1)
  np.testing.assert_array_equal(make(0), np.arange(N))
  np.testing.assert_array_equal(make(None), full)
  np.testing.assert_array_equal(make("full"), full)


@pytest.mark.parametrize("make", ["index_batches", "array_batches"])
def test_batches_in_the_order_of_a_window(make):
  def rows(start=0, **settings):
    settings = {"batch_size": B, "seed": 3, "remainder": "carry", **settings}
    settings["num_epochs"] = 4
    if make == "index_batches":
      found = pipeline.index_batches(N, **settings)(start)
    else:
      found = (
        b["x"] for b in pipeline.array_batches(ARRAYS, **settings)(start)
      )
    return np.concatenate(list(found))

  expected = [
    pipeline.windowed_permutation(N, window=3, seed=3, epoch=e)
    for e in range(4)
  ]
  np.testing.assert_array_equal(rows(window=3), np.concatenate(expected))
  np.testing.assert_array_equal(rows(2, window=3), rows(window=3)[2 * B :])
  np.testing.assert_array_equal(rows(window="full"), rows())
  np.testing.assert_array_equal(rows(window=0), rows(shuffle=False))


@pytest.mark.parametrize(
  "setting, message",
  [
    ({"window": -1}, "window=-1"),
    ({"window": "wide"}, "window='wide'.*'full'"),
    ({"window": 3, "shuffle": False}, "window=3.*shuffle=False"),
  ],
)
def test_bad_windows(setting, message):
  with pytest.raises(ValueError, match=message):
    _fast(**setting)
