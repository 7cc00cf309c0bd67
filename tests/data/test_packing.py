"""Rows of tokens: nothing lost, nothing twice, read by the pipeline."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from locojax.data import packing, pipeline, sources, token_records

_EOD = 1


def _texts(rng, num):
  return [rng.integers(2, 99, rng.integers(0, 9)).tolist() for _ in range(num)]


def test_rows_and_rest_are_all_tokens_in_order():
  rng = np.random.default_rng(0)
  for num in (0, 1, 5, 40):
    texts = _texts(rng, num)
    packed = packing.pack_documents(texts, seq_len=7, eod_id=_EOD)
    stream = [t for text in texts for t in (*text, _EOD)]
    assert packed.rows.shape[1] == 7 and packed.rest.size < 7
    assert [*packed.rows.reshape(-1).tolist(), *packed.rest.tolist()] == stream


def test_segments_and_positions():
  row = np.array([[5, 6, 1, 1, 7], [1, 5, 5, 5, 5]])
  segments = packing.segments(row, eod_id=1)
  assert segments.tolist() == [[0, 0, 0, 1, 2], [0, 1, 1, 1, 1]]
  positions = packing.positions(row, eod_id=1)
  assert positions.tolist() == [[0, 1, 2, 0, 0], [0, 0, 1, 2, 3]]


@pytest.mark.parametrize(
  ("texts", "settings", "words"),
  [
    ([[2]], {"seq_len": 0}, "seq_len=0"),
    ([[2]], {"eod_id": -1}, "eod_id=-1"),
    ([[2], [3, 1]], {}, r"documents\[1\]"),
    ([[-2]], {}, r"documents\[0\]"),
    ([[2**31]], {}, r"documents\[0\]"),
    ([[0.5]], {}, r"documents\[0\]"),
  ],
)
def test_bad_tokens_are_refused(texts, settings, words):
  with pytest.raises(ValueError, match=words):
    packing.pack_documents(texts, **{"seq_len": 4, "eod_id": _EOD, **settings})


def _folder(path, rows, parts=2, dtype="uint16"):
  found = {}
  for i, part in enumerate(np.array_split(rows, parts)):
    path.mkdir(exist_ok=True)
    content = token_records.file_of_rows(part, dtype=dtype)
    assert content == token_records.file_of_rows(part, dtype=dtype)
    (path / f"{i}.array_record").write_bytes(content)
    found[f"{i}.array_record"] = len(part)
  token_records.write_manifest(
    path, found, seq_len=rows.shape[1], dtype=dtype, eod_id=_EOD
  )
  return path


def test_the_ordinary_pipeline_reads_them(tmp_path):
  rows = np.arange(44, dtype=np.int32).reshape(11, 4)
  source = sources.from_token_records(_folder(tmp_path / "a", rows))
  assert len(source) == 11 and source.about["eod_id"] == _EOD
  found = sources.as_arrays(pickle.loads(pickle.dumps(source)))["tokens"]
  assert found.dtype == np.int32 and (found == rows).all()
  given = pipeline.batches(source, batch_size=11, seed=0, num_epochs=1)
  batch = next(given(0))["tokens"]
  assert sorted(batch.tolist()) == rows.tolist()
  assert batch.tolist() != rows.tolist()


def test_what_does_not_fit_or_is_damaged_is_refused(tmp_path):
  rows = np.full((2, 3), 70_000)
  with pytest.raises(ValueError, match="rows"):
    token_records.file_of_rows(rows, dtype="uint16")
  with pytest.raises(ValueError, match="rows"):
    token_records.file_of_rows(rows[:0], dtype="int32")
  assert [token_records.dtype_of(v) for v in (2**16, 2**16 + 1)] == [
    "uint16",
    "int32",
  ]
  folder = _folder(tmp_path / "a", rows, dtype="int32")
  assert (
    sources.as_arrays(sources.from_token_records(folder))["tokens"] == rows
  ).all()
  (folder / "1.array_record").unlink()
  with pytest.raises(FileNotFoundError, match="1.array_record"):
    sources.from_token_records(folder)
  with pytest.raises(FileNotFoundError, match="records.json"):
    sources.from_token_records(tmp_path)
