"""Equivalence: hand-checked pairs, the laws, every gold answer at hand."""

from __future__ import annotations

import collections
import gzip
import itertools
import json
import pathlib
import threading
import time

import pytest

from locojax.methods import minerva
from locojax.methods.minerva import equivalence, exact, verdicts

PAIRS = [
  line.split("\t")
  for line in (pathlib.Path(__file__).with_name("pairs.tsv"))
  .read_text(encoding="utf-8")
  .splitlines()[1:]
]


def test_there_are_pairs_of_both_kinds():
  counts = collections.Counter(verdict for *_, verdict in PAIRS)
  assert len(PAIRS) >= 100 and min(counts["equal"], counts["unequal"]) >= 40
  assert len({(a, b) for _, a, b, _ in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize(("kind", "a", "b", "verdict"), PAIRS)
def test_hand_checked_pairs(kind, a, b, verdict):
  assert minerva.compare(a, b).outcome == verdict
  assert minerva.compare(b, a).outcome == verdict


# Where other graders are known to be no equivalence, and plain answers.
LAWS = (
  *("(1,2)", r"\{1,2\}", "(2,1)", "1,2", "2,1", r"10\%", "0.1", "10", "x>3"),
  *(r"(3,\infty)", "3<x", r"5\text{ cm}", r"5\text{ m}", "5", "0.05"),
  *(r"500\text{ cm}", "ABC", "CBA", "2215_6", "2215", "1e3", "1000", ""),
  *(r"45^\circ", "45", r"\text{A}", "(A)", "A", r"3\frac12", "7/2", "3.5"),
  *("y=2x+3", "2x+3", "x=5", "[1,3]", r"[1,2] \cup [2,3]", r"\foo"),
)


@pytest.mark.parametrize("units", ["strict", "ignored"])
def test_it_is_an_equivalence(units):
  """Reflexive, symmetric and transitive."""
  texts = LAWS
  equal = {}
  for a, b in itertools.product(texts, repeat=2):
    equal[a, b] = minerva.is_equivalent(a, b, units=units)
  for a in texts:
    assert equal[a, a]
  for a, b in itertools.combinations(texts, 2):
    assert equal[a, b] == equal[b, a]
    if equal[a, b]:
      assert all(equal[a, c] == equal[b, c] for c in texts), (a, b)


def test_keys_are_shared_by_equal_answers_only():
  texts = LAWS
  for units in ("strict", "ignored"):
    keys = [minerva.canonical_key(t, units=units) for t in texts]
    for (a, x), (b, y) in itertools.combinations(
      zip(texts, keys, strict=True), 2
    ):
      if x == y:
        assert minerva.is_equivalent(a, b, units=units)


UNITS = [
  ("5", r"5\text{ cm}", "unequal", "equal", "equal"),
  (r"5\text{ m}", r"5\text{ cm}", "unequal", "unequal", "equal"),
  (r"10\%", "10", "unequal", "equal", "equal"),
  (r"10\%", "0.1", "equal", "equal", "unequal"),
  (r"45^\circ", "45", "unequal", "equal", "equal"),
  (r"\$5", "5", "unequal", "equal", "equal"),
]


@pytest.mark.parametrize(("a", "b", "strict", "optional", "ignored"), UNITS)
def test_units_count_as_asked(a, b, strict, optional, ignored):
  for units, verdict in zip(
    minerva.UNITS, (strict, optional, ignored), strict=True
  ):
    assert minerva.compare(a, b, units=units).outcome == verdict
    assert minerva.compare(b, a, units=units).outcome == verdict


class Toy:
  """An engine that takes its time and counts."""

  def __init__(self, outcome="equal", wait=0.0):
    self.asked = []
    self._verdict = verdicts.Verdict(outcome, "toy")
    self._wait = wait

  def expressions(self, a, b):
    self.asked.append((a, b))
    time.sleep(self._wait)
    return self._verdict

  def texts(self, a, b):
    return self.expressions(a, b)


OPEN = (r"\sin 2x", r"2\sin x \cos x")


def test_what_values_leave_open_is_unknown_or_asked():
  found = minerva.compare(*OPEN)
  assert (found.outcome, found.level) == ("unknown", "exact") and found.reason
  toy = Toy()
  for pair in (OPEN, OPEN[::-1]):
    found = minerva.compare(*pair, engine=toy)
    assert found == verdicts.Verdict("equal", "toy")
  assert toy.asked[0] == toy.asked[1]  # in an order of its own
  assert all(isinstance(v, exact.Expr) for v in toy.asked[0])
  assert not minerva.is_equivalent("1", "2", engine=toy)
  assert len(toy.asked) == 2


def test_parts_of_answers_are_asked_about():
  points = [f"(1, {text})" for text in OPEN]
  assert minerva.compare(*points, engine=Toy()).outcome == "equal"
  assert minerva.compare(*points, engine=Toy("unequal")).outcome == "unequal"
  far = [f"(1, {OPEN[0]})", f"(2, {OPEN[1]})"]
  assert minerva.compare(*far, engine=Toy()).outcome == "unequal"


def test_a_time_out_is_no_inequality():
  found = minerva.compare(*OPEN, engine=Toy("timed out"))
  assert found.outcome == "timed out" and not found.equal


def test_a_checker_asks_once_from_many_threads():
  toy = Toy(wait=0.05)
  checker = minerva.EquivalenceChecker(toy)
  found = []
  threads = [
    threading.Thread(
      target=lambda k=k: found.append(checker(*OPEN[:: 1 - 2 * (k % 2)]))
    )
    for k in range(16)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(toy.asked) == 1 and len(found) == 16
  assert all(verdict.equal for verdict in found)


def test_a_checker_forgets_what_timed_out_and_what_is_too_much():
  late = Toy("timed out")
  checker = minerva.EquivalenceChecker(late)
  assert [checker(*OPEN).outcome for _ in range(2)] == ["timed out"] * 2
  assert len(late.asked) == 2
  toy = Toy()
  small = equivalence.Remembering(toy, size=2)
  for text in ("a", "b", "c", "a"):
    small.texts(text, "x")
  assert [a for a, _ in toy.asked] == ["a", "b", "c", "a"]


def test_an_engine_that_raises_is_asked_again():
  class Broken(Toy):
    def expressions(self, a, b):
      super().expressions(a, b)
      raise OSError("gone")

  broken = Broken()
  checker = minerva.EquivalenceChecker(broken)
  for _ in range(2):
    with pytest.raises(OSError, match="gone"):
      checker(*OPEN)
  assert len(broken.asked) == 2


@pytest.mark.parametrize(
  "call",
  [
    lambda: minerva.compare(1, "1"),
    lambda: minerva.compare("1", None),
    lambda: minerva.compare("1", "1", units="metric"),
    lambda: minerva.EquivalenceChecker(cache=0),
    lambda: minerva.canonical_key("1", units="optional"),
  ],
)
def test_bad_arguments_are_named(call):
  with pytest.raises(ValueError, match="is not allowed"):
    call()


@pytest.mark.real_data
def test_every_gold_answer_equals_itself_by_value_too(data_dir):
  texts = set()
  for name in ("math_answers", "ocw_courses_test"):
    path = data_dir / "text" / f"{name}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
      texts |= {json.loads(line)["answer"] for line in file}
  assert len(texts) > 4_500
  for text in sorted(texts):
    assert minerva.is_equivalent(text, text)
    # Not as a text: the same value after it was read again.
    value, again = (
      equivalence.latex_reader.read_answer(t) if t.strip() else None
      for t in (text, f" {text} ")
    )
    assert value == again


@pytest.mark.real_data
def test_rewritten_gold_answers_stay_equal(data_dir):
  """Notation of models: `\\dfrac`, `\\left(`, blanks, dollars."""
  path = data_dir / "text" / "math_answers.jsonl.gz"
  with gzip.open(path, "rt", encoding="utf-8") as file:
    texts = sorted({json.loads(line)["answer"] for line in file})
  wrong = []
  for text in texts:
    if not text.strip() or "{array}" in text:
      continue
    other = text.replace(r"\frac", r"\dfrac").replace("+", " + ")
    other = f"${other}$" if "$" not in other else other
    if not minerva.is_equivalent(text, other):
      wrong.append((text, other))
  assert wrong == []
