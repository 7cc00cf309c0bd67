"""The ledger: chained, torn, ahead of a checkpoint, and its statement."""

from __future__ import annotations

import dataclasses

import pytest

from locojax.methods.dp_ftrl import (
  accounting,
  chain,
  clipping,
  ledger,
  participation,
  releases,
  sensitivity,
)

BASE = releases.Release(
  run_id="run",
  key="aaaa",
  tree_id=0,
  round=0,
  noise_multiplier=7.0,
  clip_norm=0.5,
  num_clients=100.0,
  cohort=releases.cohort_hash([1, 2]),
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
    with pytest.raises(chain.LedgerError, match="was changed"):
      ledger.PrivacyLedger(book.path)


def test_a_torn_last_line_was_no_release(tmp_path):
  book = _filled(tmp_path / "ledger.jsonl")
  whole = book.path.read_text()
  book.path.write_text(whole + '{"kind": "rele')
  again = ledger.PrivacyLedger(book.path)
  assert again.next_round("run") == 5 and again.head == book.head
  again.append(_release(5))
  assert book.path.read_text().startswith(whole)
  assert ledger.PrivacyLedger(book.path).next_round("run") == 6


def test_ahead_of_the_checkpoint(tmp_path):
  book = _filled(tmp_path / "ledger.jsonl")
  with pytest.raises(chain.LedgerError, match="rounds 3 to 4 .*replay"):
    book.resume("run", 3)
  assert [r["round"] for r in book.resume("run", 3, policy="replay")] == [3, 4]
  with pytest.raises(chain.LedgerError, match="does not have"):
    book.resume("run", 7)


def test_a_replay_must_be_the_very_same(tmp_path):
  book = _filled(tmp_path / "ledger.jsonl")
  lines = len(book.records)
  book.append(_release(3))
  assert len(book.records) == lines
  with pytest.raises(chain.LedgerError, match="another cohort"):
    book.append(_release(3, cohort=releases.cohort_hash([7])))


def test_a_new_tree_charges_what_was_lost(tmp_path):
  book = _filled(tmp_path / "ledger.jsonl")
  with pytest.raises(chain.LedgerError, match="not in the ledger"):
    book.resume("run", 3, policy="new_tree", new_key="aaaa")
  book.resume("run", 3, policy="new_tree", new_key="bbbb")
  other = releases.cohort_hash([9])
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
  with pytest.raises(chain.LedgerError, match="fresh key"):
    book.append(_release(0, run_id="other"))
  with pytest.raises(chain.LedgerError, match="round 5 .* not in"):
    book.append(_release(6))
  with pytest.raises(chain.LedgerError, match="no releases"):
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
  with pytest.raises(chain.LedgerError, match="independent"):
    book.statement("run", delta=1e-5)
  found = book.statement(
    "run", delta=1e-5, squared_sensitivity=lambda num, k, b: float(k)
  )
  assert found["rho"] == pytest.approx(accounting.zcdp(2, 7.0))


def _played(path, sampler, num_rounds, period=None, **changes):
  """The ledger of a sampler's rounds, in trees of `period` rounds."""
  book = ledger.PrivacyLedger(path)
  period = period or num_rounds
  for t in range(num_rounds):
    if t % period == 0:
      log = participation.Log()
    cohort = sampler(t)
    log.add(t % period, cohort.clients[cohort.mask])
    book.append(
      _release(
        t,
        tree_id=t // period,
        max_participations=log.max_participations,
        min_sep=log.min_sep,
        **changes,
      )
    )
  return book


def test_rounds_before_anybody_came_back_say_nothing_of_the_separation(
  tmp_path,
):
  sampler = participation.ShuffledEpochs(20, 4, seed=0)  # k = 3, b = 5
  book = _played(tmp_path / "ledger.jsonl", sampler, 13)
  found = book.statement("run", delta=1e-5)
  assert found["squared_sensitivity"] == sensitivity.tree(13, 3, 5)
  assert sensitivity.tree(13, 3, 5) < sensitivity.tree(13, 3, 1)


def test_restarted_trees_are_charged_for_what_was_within_each(tmp_path):
  """Reshuffled epochs: once in each tree, though perhaps twice in a row."""
  sampler = participation.ShuffledEpochs(20, 4, seed=0, reshuffle=True)
  log = participation.logged(sampler, 12)
  assert log.min_sep < 5 and log.max_participations == 3
  book = _played(tmp_path / "a.jsonl", sampler, 12, 5, key="aa")
  found = book.statement("run", delta=1e-5)
  assert found["num_trees"] == 3
  assert found["squared_sensitivity"] == sensitivity.restarts([5, 5, 2])
  # A restart one cohort too early has a client twice in a tree.
  early = _played(
    tmp_path / "b.jsonl", lambda t: sampler(t + 4), 8, 6, key="bb"
  )
  wrong = early.statement("run", delta=1e-5)["squared_sensitivity"]
  assert wrong > sensitivity.restarts([6, 2])


def test_the_count_of_adaptive_clipping_is_charged(tmp_path):
  value, count = clipping.split_noise_multiplier(7.0, 6500)
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  for t in range(8):
    book.append(
      _release(
        t,
        tree_id=t // 4,
        clip_norm=0.1 * (1 + t // 4),
        noise_multiplier=value,
        count_multiplier=count,
        count_key="bbbb",
      )
    )
  found = book.statement("run", delta=1e-6)
  wanted = accounting.zcdp(2 * sensitivity.single(4), 7.0)
  assert found["rho"] == pytest.approx(wanted, abs=1e-12)
  assert wanted > accounting.zcdp(2 * sensitivity.single(4), value)


def test_counts_have_a_key_of_their_own(tmp_path):
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  with pytest.raises(chain.LedgerError, match="count_key='aaaa'"):
    book.append(_release(0, count_key="aaaa"))
  book.append(_release(0, count_key="bbbb"))
  for taken in ({"key": "bbbb"}, {"key": "cccc", "count_key": "aaaa"}):
    with pytest.raises(chain.LedgerError, match="fresh key"):
      book.append(_release(0, run_id="other", **taken))
  with pytest.raises(chain.LedgerError, match="new_key='bbbb'"):
    book.resume("run", 0, policy="new_tree", new_key="bbbb")


def test_a_branch_with_other_settings_is_no_replay(tmp_path):
  one, two = (releases.settings_hash({"rate": r}) for r in (0.1, 0.2))
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  book.append(_release(0, settings=one))
  book.append(_release(0, settings=one))
  for t in (0, 1):  # of the same round, and of the next
    with pytest.raises(chain.LedgerError, match=f"'{one}' there, '{two}'"):
      book.append(_release(t, settings=two))


def test_what_a_release_has_not_is_not_written(tmp_path):
  """Ledgers from before these fields can be replayed."""
  book = _filled(tmp_path / "ledger.jsonl", 1)
  assert not {"count_multiplier", "count_key", "settings"} & set(
    book.records[0]
  )
