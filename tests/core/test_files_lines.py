"""Files of JSON lines: whole lines stay, a cut one goes, a bad one is named."""

from __future__ import annotations

import gzip

import pytest

from locojax.core import files


def test_what_was_appended_is_there_once(tmp_path):
  path = tmp_path / "new" / "rows.jsonl"
  with files.Lines(path) as lines:
    assert lines.rows == []
    lines.append({"a": 1})
    lines.append({"b": "\n"})
  path.write_bytes(path.read_bytes() + b'{"c": ')  # killed here
  with files.Lines(path) as lines:
    assert lines.rows == [{"a": 1}, {"b": "\n"}]
    lines.append({"d": 2})
  assert [row for _, row in files.read_lines(path)] == [*lines.rows, {"d": 2}]


def test_a_bad_line_is_named(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"a": 1}\n\n{"b"\n')
  with pytest.raises(files.Damaged, match=r"rows.jsonl .*line 3 is not JSON"):
    files.read_lines(path)
  with pytest.raises(files.Damaged, match="line 3"):
    files.Lines(path)
  packed = tmp_path / "rows.jsonl.gz"
  packed.write_bytes(gzip.compress(b'{"a": 1}\n'))
  assert files.read_lines(packed) == [(1, {"a": 1})]
  packed.write_bytes(packed.read_bytes()[:-9])
  with pytest.raises(files.Damaged, match="rows.jsonl.gz is damaged"):
    files.read_lines(packed)
