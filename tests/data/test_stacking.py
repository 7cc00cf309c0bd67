"""Examples become arrays without a value being changed."""

import numpy as np
import pytest

from locojax.data import pipeline, sources


class Own(list):
  """Examples in a list, as a source."""


def _source(values):
  return Own({"x": v} for v in values)


def _by_grain(values):
  batches = pipeline.batches(
    _source(values), batch_size=len(values), seed=0, shuffle=False
  )
  return next(batches(0))["x"]


WAYS = {
  "as_arrays": lambda values: sources.as_arrays(_source(values))["x"],
  "from_arrays": lambda values: sources.from_arrays({"x": values}).arrays["x"],
  "padded": lambda values: next(
    pipeline.padded_batches(_source(values), len(values))
  )["x"],
  "batches": _by_grain,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
  "values, dtype",
  [
    ([1, 2.5, 0.9], np.float64),
    ([2.5, 1, 3], np.float64),
    ([np.uint8(1), 300, np.uint8(9)], np.int64),
    ([np.float32(1), 0.1], np.float64),
    ([np.int8(-1), np.uint8(200)], np.int16),
    ([True, 2], np.int64),
    ([[1, 2], [0.5, 3]], np.float64),
  ],
)
def test_numbers_are_promoted(way, values, dtype):
  found = WAYS[way](values)
  assert found.dtype == dtype
  assert found.tolist() == [np.asarray(v).tolist() for v in values]


@pytest.mark.parametrize("way", WAYS)
def test_texts_keep_their_length(way):
  values = ["a", "abc", "ab"]
  assert WAYS[way](values).tolist() == values
  arrays = [np.array(v) for v in (["a"], ["abc"])]
  assert WAYS[way](arrays).tolist() == [["a"], ["abc"]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
  "values, words",
  [
    ([2**53 + 1, 0.5], f"'x' has the integer {2**53 + 1}"),
    ([0.5, 2**53 + 1], f"'x' of example 1 has the integer {2**53 + 1}"),
    ([1, "a"], "example 1 has 'x' of str and example 0 of numbers"),
    (["a", b"a"], "example 1 has 'x' of bytes"),
    ([[1, 2], [1, 2], [1]], "example 2 has 'x' of shape"),
    ([1, 2**70], "'x' of example 1 is 1180591620717411303424"),
    ([1, None], "example 1 has 'x' of numbers and example 0 of|of NoneType"),
  ],
)
def test_what_cannot_be_kept_is_refused(way, values, words):
  with pytest.raises(ValueError, match=words):
    WAYS[way](values)


def test_a_late_example_promotes_all_before_it():
  """Chunks, read by several threads, agree on one dtype."""
  values = [*range(200), 0.5, *range(200)]
  found = sources.as_arrays(_source(values), num_threads=4, chunk=7)["x"]
  assert found.dtype == np.float64 and found.tolist() == values


def test_a_last_nul_is_kept():
  values = [b"ab\0", b"c"]
  assert list(sources.from_arrays({"x": values}).arrays["x"]) == values
