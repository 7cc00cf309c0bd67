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


# ------------------------------------------------------ what may follow what

OLD = {"rate": 0.1, "data": {"seed": 0, "name": "a"}, "norms": (1, 2)}
NEW = {"rate": 0.1, "data": {"seed": 3, "name": "a"}, "norms": (1, 4)}


def _with(settings, t, **changes):
  name = releases.settings_hash(settings)
  return _release(t, settings=name, **changes), settings


def _append(book, settings, t, **changes):
  release, settings = _with(settings, t, **changes)
  book.append(release, settings=settings)


def test_settings_are_written_once_and_differences_are_named(tmp_path):
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  for t in range(3):
    _append(book, OLD, t)
  assert [r["kind"] for r in book.records] == ["settings", *["release"] * 3]
  again = ledger.PrivacyLedger(book.path)
  words = r"round 3 differs from round 2 .*data.seed \(0 there, 3 here\), nor"
  for one in (book, again):
    release, settings = _with(NEW, 3)
    with pytest.raises(chain.LedgerError, match=words):
      one.append(release, settings=settings)
    with pytest.raises(chain.LedgerError, match=r"norms \(\[1, 2\] there"):
      one.compare(release, settings)
    with pytest.raises(chain.LedgerError, match="settings .*new_tree"):
      one.append(release)  # nobody says what they are
  changes = {
    "noise_multiplier": 6.0,
    "num_clients": 90,
    "mechanism": "independent",
    "count_multiplier": 50.0,
  }
  for name, value in changes.items():
    with pytest.raises(chain.LedgerError, match=f"{name} \\("):
      _append(book, OLD, 3, **{name: value})
  assert book.path.read_text() == again.path.read_text()
  assert len(book.records) == 4
  _append(book, OLD, 3, noise_multiplier=7.0 * (1 + 1e-13))


def test_with_a_new_key_all_may_differ_and_all_is_charged(tmp_path):
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  for t in range(4):
    _append(book, OLD, t)
  changes = {"key": "bbbb", "noise_multiplier": 3.0, "num_clients": 9}
  with pytest.raises(chain.LedgerError, match="key .'aaaa' there, 'bbbb' here"):
    _append(book, NEW, 4, **changes)
  assert book.resume("run", 4, policy="new_tree", new_key="bbbb") == []
  again = ledger.PrivacyLedger(book.path)
  again.resume("run", 4, policy="new_tree", new_key="bbbb")  # said already
  assert again.head == book.head and again.next_round("run") == 4
  for t in range(4, 7):
    _append(again, NEW, t, **changes)
  with pytest.raises(chain.LedgerError, match="key"):
    _append(again, OLD, 7)  # the old key is over
  found = ledger.PrivacyLedger(book.path).statement("run", delta=1e-5)
  parts = (sensitivity.tree(4, 1, 4), 7.0), (sensitivity.tree(3, 1, 3), 3.0)
  assert found["rho"] == sum(accounting.zcdp(*part) for part in parts)
  for taken in ("aaaa", "bbbb", None):
    with pytest.raises(chain.LedgerError, match="new_key="):
      again.resume("run", 7, policy="new_tree", new_key=taken)


def test_a_new_key_for_updates_needs_one_for_counts(tmp_path):
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  book.append(_release(0, count_key="cccc", count_multiplier=9.0))
  book.resume("run", 1, policy="new_tree", new_key="bbbb")
  for taken in ("cccc", "aaaa"):
    with pytest.raises(chain.LedgerError, match="used twice"):
      book.append(_release(1, key="bbbb", count_key=taken))
  book.append(_release(1, key="bbbb", count_key="dddd"))


def test_a_tree_keeps_its_norm_and_its_past(tmp_path):
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  seen = {"tree_id": 1, "max_participations": 2, "min_sep": 4}
  for t in range(6):
    book.append(_release(t, **seen))
  for changes, words in (
    ({"clip_norm": 0.6}, "clip_norm=0.6 of round 6 .*is 0.5 in this tree"),
    ({"clip_norm": 0.4}, "clip_norm=0.4"),
    ({"max_participations": 1}, "was forgotten"),
    ({"min_sep": 5}, "was forgotten"),
    ({"tree_id": 0}, "tree 1 has begun"),
  ):
    with pytest.raises(chain.LedgerError, match=words):
      book.append(_release(6, **{**seen, **changes}))
  book.append(_release(6, tree_id=2, clip_norm=0.7))


def test_participation_is_what_was_recorded(tmp_path):
  """Cohorts are asked for again, in all trees, and held against the hashes."""
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  sampler = participation.ShuffledEpochs(12, 3, seed=0)
  drawn = lambda t: sampler(t).clients
  logs = participation.Trees()
  for t in range(9):
    logs.add(t, t // 5, drawn(t))
    book.append(
      _release(
        t,
        tree_id=t // 5,
        cohort=releases.cohort_hash(drawn(t)),
        max_participations=logs.tree.max_participations,
        min_sep=logs.tree.min_sep,
      )
    )
  found = book.realised("run", drawn, before=9)
  for name in ("run", "tree"):
    one, two = getattr(found, name), getattr(logs, name)
    assert one.max_participations == two.max_participations
    assert one.min_sep == two.min_sep
  assert found.run.max_participations == 3 and found.run.min_sep == 4
  assert book.realised("run", drawn, before=4).run.max_participations == 1
  for wrong in (0, 6):
    other = lambda t, wrong=wrong: drawn(t + (t == wrong))
    with pytest.raises(chain.LedgerError, match=f"the cohort of round {wrong}"):
      book.realised("run", other, before=9)


def _forced(path, *changes):
  """A ledger as it should not be, with sound lines."""
  lines = chain.Chain(path, releases.check_record)
  for t, change in enumerate(changes):
    lines.append(_release(t, **change).record())
  return ledger.PrivacyLedger(path)


@pytest.mark.parametrize(
  "changes, words",
  [
    ([{}, {"key": "bbbb"}], "key .'aaaa' there, 'bbbb' here"),
    ([{"settings": "a"}, {"settings": "b"}], "settings .'a' there, 'b' here"),
    ([{}, {"noise_multiplier": 9.0}], "noise_multiplier .7.0 there, 9.0 here"),
    ([{"max_participations": 2}, {}], "was forgotten"),
    ([{}, {"clip_norm": 0.6}], "clip_norm=0.6"),
  ],
)
def test_a_ledger_that_broke_the_rules_states_nothing(tmp_path, changes, words):
  """As they were written before there were rules."""
  book = _forced(tmp_path / "ledger.jsonl", *changes)
  said = f"no account covers: .*{words}"
  for use in (
    lambda: book.statement("run", delta=1e-5),
    lambda: book.resume("run", 2),
    lambda: book.realised("run", lambda t: [1, 2], before=2),
  ):
    with pytest.raises(chain.LedgerError, match=said):
      use()


def test_a_ledger_that_says_less_than_was_spent_is_found(tmp_path):
  book = _forced(tmp_path / "a", {}, {})  # the same clients, k = 1
  with pytest.raises(chain.LedgerError, match="round 1 is recorded with max_p"):
    book.realised("run", lambda t: [1, 2], before=2)
  close = {"max_participations": 2, "min_sep": 2}
  book = _forced(tmp_path / "b", close, close)
  with pytest.raises(chain.LedgerError, match="says less than what was spent"):
    book.realised("run", lambda t: [1, 2], before=2)


def test_trees_that_are_filled_up_are_charged_for_it(tmp_path):
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  lengths = (5, 6, 3)
  trees = [i for i, length in enumerate(lengths) for _ in range(length)]
  for t, tree_id in enumerate(trees):
    book.append(_release(t, tree_id=tree_id, completed=True))
  found = book.statement("run", delta=1e-5)["squared_sensitivity"]
  assert found == sensitivity.restarts(lengths, completed=True)
  assert found > sensitivity.restarts(lengths)


def test_mechanisms_of_several_keys_have_their_own_sensitivity(tmp_path):
  book = ledger.PrivacyLedger(tmp_path / "ledger.jsonl")
  kinds = {"aaaa": "tree", "bbbb": "independent", "cccc": "square"}
  for t, (key, mechanism) in enumerate(kinds.items()):
    if t:
      book.resume("run", t, policy="new_tree", new_key=key)
    book.append(_release(t, key=key, mechanism=mechanism))
  given = {"independent": lambda *_: 2.0}
  with pytest.raises(chain.LedgerError, match=r"\['square'\] are not trees"):
    book.statement("run", delta=1e-5, squared_sensitivity=given)
  given["square"] = lambda *_: 5.0
  found = book.statement("run", delta=1e-5, squared_sensitivity=given)
  assert found["squared_sensitivity"] == sensitivity.tree(1, 1, 1) + 7.0
  nobody = ledger.PrivacyLedger(tmp_path / "nobody.jsonl")
  nobody.append(_release(0, max_participations=0, min_sep=1))
  assert nobody.statement("run", delta=1e-5)["rho"] == 0.0


def test_ledgers_from_before_go_on(tmp_path):
  """Without settings in full, and with rounds that were `lost`."""
  lines = chain.Chain(tmp_path / "a", releases.check_record)
  for t in range(3):
    lines.append(_release(t, settings="aa").record())
  lost = {"kind": "lost", "run_id": "run", "key": "bbbb"}
  lines.append({**lost, "first_round": 1, "last_round": 2})
  book = ledger.PrivacyLedger(tmp_path / "a")
  assert book.next_round("run") == 1
  book.append(_release(1, key="bbbb", settings="bb"))
  assert book.statement("run", delta=1e-5)["num_trees"] == 2
  with pytest.raises(chain.LedgerError, match="settings .'bb' there"):
    _append(book, OLD, 2, key="bbbb")
