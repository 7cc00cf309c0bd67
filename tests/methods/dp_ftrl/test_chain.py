"""Lines that follow one another, on a disk that keeps them."""

from __future__ import annotations

import json

import pytest

from locojax.methods.dp_ftrl import chain, ledger, releases

RELEASE = {
  "kind": "release",
  "run_id": "run",
  "key": "aa",
  "tree_id": 0,
  "round": 0,
  "noise_multiplier": 2.0,
  "clip_norm": 0.5,
  "num_clients": 8,
  "cohort": "cc",
  "max_participations": 1,
  "min_sep": 1,
  "mechanism": "tree",
}


def _chain(path):
  return chain.Chain(path, releases.check_record)


def _filled(path, num=4):
  out = _chain(path)
  for t in range(num):
    out.append({**RELEASE, "round": t, "min_sep": t + 1})
  return out


def _last(path, record):
  """Adds a line as a hand would, that follows the one before."""
  before = _chain(path).head["hash"]
  with path.open("ab") as file:
    file.write(json.dumps({**record, "before": before}).encode() + b"\n")


def test_what_is_written_is_read_again_and_reading_writes_nothing(tmp_path):
  path = tmp_path / "a" / "ledger.jsonl"
  assert _chain(path).head["records"] == 0 and not path.parent.exists()
  made = _filled(path)
  again = _chain(path)
  assert again.records == made.records and again.head == made.head
  assert made.head["records"] == 4


@pytest.mark.parametrize(
  "line, words",
  [
    (b"{", "line 5"),
    (b"", "line 5"),
    (b"[1]", "a list, not an object"),
    (b"7", "a int, not an object"),
    (b'"release"', "not an object"),
    (b"\xff\xfe", "line 5.*utf-8"),
    (b"\x00" * 8, "line 5"),
    (b'{"kind": NaN}', "NaN is not a number"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"kind": "release"}', "does not follow the line before"),
  ],
)
def test_a_malformed_line_is_named(tmp_path, line, words):
  path = tmp_path / "ledger.jsonl"
  _filled(path)
  with path.open("ab") as file:
    file.write(line + b"\n")
  with pytest.raises(chain.LedgerError, match=words) as found:
    _chain(path)
  assert str(found.value).startswith(f"{path}, line 5: ")


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"kind": None}, "kind=None"),
    ({"kind": "realease"}, "did you mean 'release'"),
    ({"round": None}, "the release has no 'round'"),
    ({"round": -1}, "round=-1"),
    ({"round": 1.5}, "round=1.5"),
    ({"round": True}, "round=True"),
    ({"tree_id": "0"}, "tree_id='0'"),
    ({"noise_multiplier": "2"}, "noise_multiplier='2'"),
    ({"noise_multiplier": -2.0}, "noise_multiplier=-2.0"),
    ({"clip_norm": 0}, "clip_norm=0"),
    ({"clip_norm": 1e999}, "Infinity is not a number"),
    ({"key": 7}, "key=7"),
    ({"cohort": ["a"]}, r"cohort=\['a'\]"),
    ({"completed": 1}, "completed=1"),
    ({"z": 2.0}, r"\['z'\], which are not known"),
  ],
)
def test_a_record_that_is_none_is_named(tmp_path, changes, words):
  path = tmp_path / "ledger.jsonl"
  _filled(path)
  record = {**RELEASE, "round": 4, **changes}
  record = {n: v for n, v in record.items() if v is not None}
  if words != "Infinity is not a number":
    with pytest.raises(ValueError, match=words):  # it cannot be written either
      _filled(tmp_path / "other", 0).append(record)
  _last(path, record)
  with pytest.raises(chain.LedgerError, match=f"line 5: .*{words}"):
    _chain(path)


def test_settings_are_those_of_their_hash(tmp_path):
  path = tmp_path / "ledger.jsonl"
  settings = {"rate": 0.1}
  record = {"kind": "settings", "run_id": "run", "settings": settings}
  _chain(path).append({**record, "hash": releases.settings_hash(settings)})
  _last(path, {**record, "hash": "0" * 16})
  with pytest.raises(chain.LedgerError, match="line 2: hash and settings"):
    _chain(path)


def test_a_last_line_cut_anywhere(tmp_path):
  """Torn: left out, and the next one takes its place. Whole: it counts."""
  path = tmp_path / "ledger.jsonl"
  made = _filled(path)
  whole = path.read_bytes()
  start = whole.rindex(b"\n", 0, -1) + 1
  fifth = {**RELEASE, "round": 4, "min_sep": 5}
  for end in (*range(start + 1, len(whole) - 1, 29), len(whole) - 1):
    path.write_bytes(whole[:end])
    again = _chain(path)
    assert path.read_bytes() == whole[:end]
    is_whole = end == len(whole) - 1
    assert again.torn is not is_whole
    assert len(again.records) == (4 if is_whole else 3)
    if not is_whole:
      with pytest.raises(chain.LedgerError, match="has 3 of the 4 records"):
        again.verify(made.head)
      again.append(made.records[3])
    again.append(fifth)
    assert path.read_bytes().startswith(whole)
    assert len(_chain(path).records) == 5


def test_a_head_finds_what_happened_to_the_end(tmp_path):
  path = tmp_path / "ledger.jsonl"
  _filled(path, 3)
  early = _chain(path).head
  made = _filled(tmp_path / "b" / "ledger.jsonl", 4)
  head, text = made.head, made.path.read_text()
  lines = text.splitlines(keepends=True)
  other = _filled(tmp_path / "other", 6)
  damages = {
    "has 3 of the 4": "".join(lines[:-1]),
    "has 0 of the 4": "",
    "line 4: it is not the line": text.replace(
      '"min_sep": 4, "', '"min_sep": 9, "'
    ),
  }
  for words, damaged in damages.items():
    made.path.write_text(damaged)
    with pytest.raises(chain.LedgerError, match=words):
      _chain(made.path).verify(head)
  made.path.unlink()
  with pytest.raises(chain.LedgerError, match="has 0 of the 4"):
    _chain(made.path).verify(head)
  made.path.write_text(text)
  _chain(made.path).verify(head, is_end=True)
  _chain(made.path).verify(early)  # ahead
  for more in ("{", lines[-1].replace("\n", "")):
    made.path.write_text(text + more)
    with pytest.raises(chain.LedgerError, match="line 5"):
      _chain(made.path).verify(head, is_end=True)
  other.verify(head)  # the same first lines
  with pytest.raises(chain.LedgerError, match="came after the run was fin"):
    other.verify(head, is_end=True)
  for bad in ("aa", {}, {"records": "many", "hash": ""}):
    with pytest.raises(chain.LedgerError, match="head="):
      made.verify(bad)


def test_two_writers_do_not_meet(tmp_path):
  path = tmp_path / "ledger.jsonl"
  one, two = _filled(path), _chain(path)
  one.append({**RELEASE, "round": 4})
  text = path.read_text()
  with pytest.raises(chain.LedgerError, match="something else"):
    two.append({**RELEASE, "round": 4})
  path.unlink()
  with pytest.raises(chain.LedgerError, match="something else"):
    one.append({**RELEASE, "round": 5})
  path.write_text(text)
  assert ledger.PrivacyLedger(path).next_round("run") == 5
