"""The ledger: chained, torn, ahead of a checkpoint, and its statement."""

from __future__ import annotations

import dataclasses

import pytest

from locojax.methods.dp_ftrl import accounting, ledger, sensitivity

BASE = ledger.Release(
  run_id="run",
  key="aaaa",
  tree_id=0,
  round=0,
  noise_multiplier=7.0,
  clip_norm=0.5,
  num_clients=100.0,
  cohort=ledger.cohort_hash([1, 2]),
  max_participations=1,
  min_sep=10,
)


def _release(t, **changes):
  return dataclasses.replace(BASE, round=t, **changes)


def _filled(path, num=5):
  book = ledger.PrivacyLedger(path)
  for t in range(num):
    book.append(_release(t))
  return book


def test_written_lines_are_read_again(tmp_path):
  book = _filled(tmp_path / "a" / "ledger.jsonl")
  again = ledger.PrivacyLedger(book.path)
  assert again.records == book.records and again.head == book.head
  assert again.next_round("run") == 5
  assert again.resume("run", 5) == []


@pytest.mark.parametrize("line", [0, 2])
def test_changed_and_missing_lines_are_found(tmp_path, line):
  book = _filled(tmp_path / "ledger.jsonl")
  lines = book.path.read_text().splitlines(keepends=True)
  changed = lines.copy()
  changed[line] = changed[line].replace("7.0", "9.0")
  for text in (changed, lines[:line] + lines[line + 1 :]):
    book.path.write_text("".join(text))
    with pytest.raises(ledger.LedgerError, match="was changed"):
      ledger.PrivacyLedger(book.path)


def test_a_torn_last_line_was_no_release(tmp_path):
  book = _filled(tmp_path / "ledger.jsonl")
  whole = book.path.read_text()
  book.path.write_text(whole + '{"kind": "rele')
  again = ledger.PrivacyLedger(book.path)
  assert again.next_round("run") == 5 and book.path.read_text() == whole
  again.append(_release(5))
  assert ledger.PrivacyLedger(book.path).next_round("run") == 6


def test_ahead_of_the_checkpoint(tmp_path):
  book = _filled(tmp_path / "ledger.jsonl")
  with pytest.raises(ledger.LedgerError, match="rounds 3 to 4 .*replay"):
    book.resume("run", 3)
  assert [r["round"] for r in book.resume("run", 3, policy="replay")] == [3, 4]
  with pytest.raises(ledger.LedgerError, match="does not have"):
    book.resume("run", 7)


def test_a_replay_must_be_the_very_same(tmp_path):
  book = _filled(tmp_path / "ledger.jsonl")
  lines = len(book.records)
  book.append(_release(3))
  assert len(book.records) == lines
  with pytest.raises(ledger.LedgerError, match="another cohort"):
    book.append(_release(3, cohort=ledger.cohort_hash([7])))


def test_a_new_tree_charges_what_was_lost(tmp_path):
  book = _filled(tmp_path / "ledger.jsonl")
  with pytest.raises(ledger.LedgerError, match="not in the ledger"):
    book.resume("run", 3, policy="new_tree", new_key="aaaa")
  book.resume("run", 3, policy="new_tree", new_key="bbbb")
  other = ledger.cohort_hash([9])
  for t in range(3, 9):
    book.append(_release(t, key="bbbb", tree_id=1, cohort=other))
  found = book.statement("run", delta=1e-6)
  squared = sensitivity.tree(5, 1, 10) + sensitivity.tree(6, 1, 10)
  assert found["num_trees"] == 2 and found["num_rounds"] == 11
  assert found["rho"] == pytest.approx(accounting.zcdp(squared, 7.0))
  again = ledger.PrivacyLedger(book.path)
  assert again.statement("run", delta=1e-6) == found


def test_keys_are_for_one_run_and_rounds_follow(tmp_path):
  book = _filled(tmp_path / "ledger.jsonl")
  with pytest.raises(ledger.LedgerError, match="fresh key"):
    book.append(_release(0, run_id="other"))
  with pytest.raises(ledger.LedgerError, match="round 5 .* not in"):
    book.append(_release(6))
  with pytest.raises(ledger.LedgerError, match="no releases"):
    book.statement("other", delta=1e-6)


def test_the_statement_uses_realised_participation(tmp_path):
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  for t in range(12):
    k = 1 + t // 4
    book.append(_release(t, max_participations=k, min_sep=4))
  found = book.statement("run", delta=1e-5)
  assert found["squared_sensitivity"] == sensitivity.tree(12, 3, 4)
  assert found["eps_exact"] <= found["eps_rdp"]


def test_other_mechanisms_need_their_sensitivity(tmp_path):
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  for t in range(6):
    k = 1 + t // 3
    book.append(
      _release(t, max_participations=k, min_sep=3, mechanism="independent")
    )
  with pytest.raises(ledger.LedgerError, match="independent"):
    book.statement("run", delta=1e-5)
  found = book.statement(
    "run", delta=1e-5, squared_sensitivity=lambda num, k, b: float(k)
  )
  assert found["rho"] == pytest.approx(accounting.zcdp(2, 7.0))
